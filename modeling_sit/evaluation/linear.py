"""The linear probe: what one linear layer on frozen features tells of the labels."""

import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def linear_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    num_labels: int,
    C: float = 1.0,
    max_iterations: int = 100,
) -> torch.Tensor:
    """
    Score labels by multinomial logistic regression on standardised features, fitted by L-BFGS (scikit-learn's).

    Every dimension is shifted and scaled to mean 0 and standard deviation 1 over the training pictures. The same arguments
    give the same scores; nothing is drawn.

    Args:
        train_features (`torch.Tensor` of shape `(num_train, hidden_size)`):
            Features of the training pictures, any float dtype and device.
        train_labels (`torch.Tensor` of shape `(num_train,)`):
            Integer labels in `[0, num_labels)`. A label that is not among them gets a score of 0 everywhere.
        features (`torch.Tensor` of shape `(num_pictures, hidden_size)`):
            Features of the pictures to label.
        num_labels (`int`):
            Number of labels.
        C (`float`, *optional*, defaults to 1.0):
            Inverse strength of the L2 penalty: what minimises `C * sum of cross-entropies + half the squared norm of the
            weights` is sought.
        max_iterations (`int`, *optional*, defaults to 100):
            Iterations of L-BFGS after which it is left at that, converged or not.

    Returns:
        `torch.Tensor` of shape `(num_pictures, num_labels)`: Probabilities, each row summing to 1, float32, on the CPU.

    Raises:
        `ValueError`: If shapes do not fit, there is no training picture, `C` or `max_iterations` is not positive, a label is
            out of range, or a feature is not finite.
    """
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise ValueError(
            "train_features and features must be of shapes (num_train, hidden_size) and (num_pictures, hidden_size), not "
            f"{tuple(train_features.shape)} and {tuple(features.shape)}"
        )
    num_train = len(train_features)
    if num_train == 0 or train_labels.shape != (num_train,):
        raise ValueError(
            f"{num_train} training features and labels of shape {tuple(train_labels.shape)}: not one each"
        )
    if not C > 0 or max_iterations < 1:
        raise ValueError(f"C ({C}) and max_iterations ({max_iterations}) must be positive")
    if not 0 <= train_labels.min() <= train_labels.max() < num_labels:
        raise ValueError(
            f"train_labels run from {train_labels.min()} to {train_labels.max()}, outside [0, {num_labels})"
        )
    for name, values in (("train_features", train_features), ("features", features)):
        if not values.isfinite().all():
            raise ValueError(f"{name} are not all finite")

    scores = torch.zeros(len(features), num_labels)
    known_labels = train_labels.unique().cpu()
    if len(known_labels) == 1 or len(features) == 0:
        # There is no boundary to learn, or nothing to put on either side of it: scikit-learn refuses both.
        scores[:, known_labels[:1]] = 1.0
        return scores
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iterations))
    with warnings.catch_warnings():
        # That it has not converged, and that labels are many for so few pictures: both are left to the caller's choice.
        warnings.simplefilter("ignore", UserWarning)
        probe.fit(_to_numpy(train_features), train_labels.cpu().numpy())
    scores[:, known_labels] = torch.from_numpy(probe.predict_proba(_to_numpy(features))).float()
    return scores


def _to_numpy(features: torch.Tensor) -> np.ndarray:
    return features.detach().to("cpu", torch.float64).numpy()
