"""The linear probe: how well one linear layer on frozen features predicts the labels.

Two ways to fit it: L-BFGS to the optimum, in memory, and stochastic gradients close to it, for any number of images.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# Fewer steps of stochastic gradients than these end far from the optimum, however small the set is.
MIN_STEPS = 2000
# L-BFGS stops after so much work, in products of a feature and a weight: minutes on one core.
LBFGS_MAX_PRODUCTS = 10**11
LBFGS_ITERATIONS = (200, 10_000)


def linear_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    num_labels: int,
    C: float = 1.0,
    max_iterations: int = 100,
) -> torch.Tensor:
    """
    Score labels by multinomial logistic regression on standardized features, fitted by L-BFGS (scikit-learn's).

    Every dimension is shifted and scaled to mean 0 and standard deviation 1 over the training images. The same
    arguments give the same scores; nothing is random.

    Args:
        train_features (`torch.Tensor` of shape `(num_train, hidden_size)`):
            Features of the training images, any float dtype and device.
        train_labels (`torch.Tensor` of shape `(num_train,)`):
            Integer labels in `[0, num_labels)`. A label that is not among them gets a score of 0 everywhere.
        features (`torch.Tensor` of shape `(num_images, hidden_size)`):
            Features of the images to label.
        num_labels (`int`):
            Number of labels.
        C (`float`, *optional*, defaults to 1.0):
            Inverse strength of the L2 penalty: the fit minimizes `C * sum of cross-entropies + half the squared norm
            of the weights`. For two labels the weights are one vector, that of the second label's log-odds.
        max_iterations (`int`, *optional*, defaults to 100):
            Iterations of L-BFGS after which it stops, converged or not.

    Returns:
        `torch.Tensor` of shape `(num_images, num_labels)`: Probabilities, each row summing to 1, float32, on the CPU.

    Raises:
        `ValueError`: If shapes do not fit, there is no training image, `C` or `max_iterations` is not positive, a
            label is out of range, or a feature is not finite.
    """
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise ValueError(
            "train_features and features must be of shapes (num_train, hidden_size) and (num_images, hidden_size), not "
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

    (probe,) = fit_by_lbfgs(
        train_features, train_labels, num_labels, [C], max_iterations=max_iterations, tolerance=1e-4
    )
    return probe.predict(features)


@dataclass(frozen=True)
class LinearProbe:
    """
    Logistic regression on standardized features: multinomial where an image has one label, and one against the rest
    for each label where it has several.

    Args:
        mean (`torch.Tensor` of shape `(hidden_size,)`): Subtracted from the features.
        scale (`torch.Tensor` of shape `(hidden_size,)`): By which they are then divided.
        weight (`torch.Tensor` of shape `(num_labels, hidden_size)`): Weights of the standardized features.
        bias (`torch.Tensor` of shape `(num_labels,)`): Added; minus infinity for a label that cannot be predicted.
        multi_label (`bool`): Whether an image can have several labels.
        converged (`bool`, *optional*, defaults to `True`): Whether the fit ended at its optimum, and not at its last
            iteration. Always `True` after [`fit_by_sgd`], which does not know.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    multi_label: bool
    converged: bool = True

    @torch.no_grad()
    def predict(self, features: torch.Tensor, chunk_size: int = 4096) -> torch.Tensor:
        """Probabilities of the labels, `(num_images, num_labels)`, float32, on the CPU, from features on any
        device."""
        scores = torch.empty(len(features), len(self.bias))
        for start in range(0, len(features), chunk_size):
            chunk = features[start : start + chunk_size].to(self.weight)
            logits = (chunk - self.mean) / self.scale @ self.weight.T + self.bias
            scores[start : start + chunk_size] = (
                logits.sigmoid() if self.multi_label else logits.softmax(dim=1)
            ).cpu()
        return scores


def standardization(features: torch.Tensor, chunk_size: int = 16384) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mean and standard deviation of every dimension, `(hidden_size,)` each, float64, on the CPU, by scikit-learn's
    `StandardScaler`. A constant dimension has standard deviation 1.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for chunk in features.detach().split(chunk_size):
        scaler.partial_fit(chunk.double().cpu().numpy())
    return torch.from_numpy(scaler.mean_), torch.from_numpy(scaler.scale_)


def fit_by_lbfgs(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    strengths: list[float],
    *,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    max_iterations: int | None = None,
    tolerance: float = 1e-8,
) -> list[LinearProbe]:
    """
    Fit probes by L-BFGS (scikit-learn's `LogisticRegression`) in float64, to the optimum unless the iterations run
    out, with nothing random.

    It copies the features in float64, and holds several copies of the scores: [`fit_by_sgd`] is for sets too large for
    that.

    Args:
        features (`torch.Tensor` of shape `(num_images, hidden_size)`):
            Features of the training images, finite.
        labels (`torch.Tensor` of shape `(num_images,)` with values in `[0, num_labels)`, or `(num_images, num_labels)`
            of 0 and 1):
            Their labels. A label that no image has is never predicted.
        num_labels (`int`):
            Number of labels.
        strengths (`list[float]`):
            Inverse strengths C of the L2 penalty: the fit minimizes `C * sum of cross-entropies + half the squared
            norm of the weights`. Each label has a vector of weights; two labels, of which an image has one, share
            one, that of the second's log-odds. Each fit starts from the one before, so give them in rising order.
        statistics (pair of `torch.Tensor`, *optional*):
            Mean and standard deviation to standardize by. Default: [`standardization`] of these features.
        max_iterations (`int`, *optional*):
            Iterations of each fit at most. A weak penalty needs thousands. Default: 10,000 up to
            1e7 = `num_images * hidden_size * num_labels`, and in inverse proportion to it beyond, down to 200.
        tolerance (`float`, *optional*, defaults to 1e-8):
            Largest component of the gradient, of the mean over the images, at which a fit has ended.

    Returns:
        `list[LinearProbe]`: One for each of `strengths`.
    """
    mean, scale = statistics or standardization(features)
    # In place, because each step would make another copy.
    standardized = features.detach().to("cpu", torch.float64, copy=True).sub_(mean).div_(scale).numpy()
    if max_iterations is None:
        fewest, most = LBFGS_ITERATIONS
        max_iterations = max(fewest, min(most, LBFGS_MAX_PRODUCTS // max(1, features.numel() * num_labels)))
    labels = labels.cpu()
    multi_label = labels.ndim == 2
    targets = labels.T.numpy() > 0.5 if multi_label else [labels.numpy()]
    coefficients = [_fit_path(standardized, target, strengths, max_iterations, tolerance) for target in targets]
    probes = []
    for number in range(len(strengths)):
        weight = torch.zeros(num_labels, features.shape[1], dtype=torch.float64)
        bias = torch.full((num_labels,), -torch.inf, dtype=torch.float64)
        if multi_label:
            for label, path in enumerate(coefficients):
                weight[label], bias[label] = torch.from_numpy(path[number][0][0]), float(path[number][1][0])
            converged = all(path[number][2] for path in coefficients)
        else:
            known = labels.unique()
            *known_coefficients, converged = coefficients[0][number]
            known_weight, known_bias = map(torch.from_numpy, known_coefficients)
            if len(known) == 2:
                # Of two classes scikit-learn keeps the weights of the second alone.
                known_weight = torch.cat([-known_weight, known_weight]) / 2
                known_bias = torch.cat([-known_bias, known_bias]) / 2
            weight[known], bias[known] = known_weight, known_bias
        probes.append(LinearProbe(mean, scale, weight, bias, multi_label, converged))
    return probes


def _fit_path(
    standardized: np.ndarray, target: np.ndarray, strengths: list[float], max_iterations: int, tolerance: float
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Weights and biases for each strength, of the classes that occur (of two, the second's), and whether the fit
    ended."""
    from sklearn.linear_model import LogisticRegression

    num_classes = len(np.unique(target))
    if num_classes == 1:
        # Nothing to tell apart: all images are of this class, or all or none have this label.
        bias = 0.0 if target.dtype != bool else np.inf if target[0] else -np.inf
        return [(np.zeros((1, standardized.shape[1])), np.array([bias]), True)] * len(strengths)
    model = LogisticRegression(max_iter=max_iterations, tol=tolerance, warm_start=True)
    path = []
    with warnings.catch_warnings():
        # Of a fit that has not converged, which the probe says, and of many labels for few images.
        warnings.simplefilter("ignore", UserWarning)
        for strength in strengths:
            model.set_params(C=strength).fit(standardized, target)
            converged = bool(model.n_iter_.max() < max_iterations)
            path.append((model.coef_.copy(), model.intercept_.copy(), converged))
    return path


@dataclass(frozen=True)
class SgdSettings:
    """
    How [`fit_by_sgd`] goes about it.

    Args:
        epochs (`int`, *optional*, defaults to 20): Passes over the images; more where that makes less than `MIN_STEPS`
            steps.
        batch_size (`int`, *optional*, defaults to 256): Images a step.
        learning_rate (`float`, *optional*, defaults to 0.01): The rate of the first step.
        seed (`int`, *optional*, defaults to 0): Seed of the images' order.
    """

    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 0.01
    seed: int = 0


def fit_by_sgd(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    strengths: list[float],
    *,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    settings: SgdSettings = SgdSettings(),
    device: torch.device | str = "cpu",
) -> list[LinearProbe]:
    """
    Fit probes by stochastic gradients (Adam, the rate falling to zero on a cosine), in float32, near the optimum of
    [`fit_by_lbfgs`] for C up to about 1: weaker penalties need more steps, and stopping early regularizes in their
    place. All strengths are fitted in one pass over the features, which are not copied.

    Args:
        features, labels, num_labels, strengths, statistics: As for [`fit_by_lbfgs`].
        settings ([`SgdSettings`], *optional*): Epochs, batch size, learning rate and seed.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the fit is computed.

    Returns:
        `list[LinearProbe]`: One for each of `strengths`, on `device`.
    """
    mean, scale = (each.float().to(device) for each in statistics or standardization(features))
    multi_label = labels.ndim == 2
    shape = (len(strengths), num_labels)
    weight = torch.zeros(*shape, features.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(shape, device=device, requires_grad=True)
    # A label that no image has stays out of the softmax.
    known = labels.any(dim=0) if multi_label else torch.bincount(labels, minlength=num_labels) > 0
    never = torch.zeros(num_labels, device=device).masked_fill_(~known.to(device), -torch.inf)
    penalty = 0.5 / (torch.tensor(strengths, device=device) * len(features))
    if not multi_label and known.sum() == 2:
        # Here two labels have weights -w / 2 and w / 2, whose squared norm is half that of scikit-learn's w.
        penalty = 2 * penalty
    optimizer = torch.optim.Adam([weight, bias], lr=settings.learning_rate, fused=True)
    steps_an_epoch = -(-len(features) // settings.batch_size)
    epochs = max(settings.epochs, -(-MIN_STEPS // steps_an_epoch))
    num_steps = epochs * steps_an_epoch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(settings.batch_size):
            batch = (features[rows].to(device, torch.float32) - mean) / scale
            targets = labels[rows].to(device)
            logits = torch.einsum("bh,slh->sbl", batch, weight) + bias[:, None]
            if multi_label:
                targets = targets.float().expand_as(logits)
                # The sum over the labels: each label has a fit of its own.
                losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=2)
            else:
                losses = F.cross_entropy(
                    (logits + never).flatten(0, 1), targets.repeat(len(strengths)), reduction="none"
                ).unflatten(0, logits.shape[:2])
            loss = (losses.mean(dim=1) + penalty * weight.square().sum(dim=(1, 2))).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return [
        LinearProbe(mean, scale, one_weight, one_bias + never, multi_label)
        for one_weight, one_bias in zip(weight.detach(), bias.detach(), strict=True)
    ]
