"""Targets of a classifier, its losses, and the balance of its classes."""

import torch
from torch import nn
from torchvision.transforms import v2

# Of Ridnik et al. 2021: exponents that reduce the weight of easy negatives and positives, and the probability below
# which a negative counts nothing.
NEGATIVE_FOCUS, POSITIVE_FOCUS, NEGATIVE_MARGIN = 4.0, 1.0, 0.05


def soft_targets(labels: torch.Tensor, num_labels: int, smoothing: float = 0.0) -> torch.Tensor:
    """Labels as probabilities, smoothed.

    Args:
        labels (`torch.Tensor`): Class indices `(batch,)`, or 0 and 1 `(batch, num_labels)`.
        num_labels (`int`): Number of classes.
        smoothing (`float` in [0, 1), *optional*, defaults to 0.0):
            Fraction that all classes get alike (Szegedy et al. 2016); with several labels, each moves towards 1/2.

    Returns:
        `torch.Tensor` of shape `(batch, num_labels)`, float32.
    """
    if labels.ndim == 1:
        return nn.functional.one_hot(labels, num_labels).float() * (1 - smoothing) + smoothing / num_labels
    return labels.float() * (1 - smoothing) + smoothing / 2


def create_mixing(mixup_alpha: float, cutmix_alpha: float) -> v2.Transform | None:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of `(pixel_values, targets)`, targets of [`soft_targets`].

    With both, each batch draws one with equal probabilities, as in DeiT. `None` if both alphas are 0.
    """
    kinds = []
    if mixup_alpha > 0:
        kinds.append(v2.MixUp(alpha=mixup_alpha))
    if cutmix_alpha > 0:
        kinds.append(v2.CutMix(alpha=cutmix_alpha))
    return v2.RandomChoice(kinds) if kinds else None


class SingleLabelLoss(nn.Module):
    """
    Cross-entropy with probabilities as targets; in the mean, an image counts by the weights of its classes.

    Args:
        class_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*): Default: all the same.
    """

    def __init__(self, class_weights: torch.Tensor | None = None):
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits and targets, both `(batch, num_labels)`."""
        if self.class_weights is None:
            return nn.functional.cross_entropy(logits.float(), targets)
        weighted = targets * self.class_weights
        return -(weighted * logits.float().log_softmax(dim=1)).sum() / weighted.sum()


class MultiLabelLoss(nn.Module):
    """
    A loss of each label on its own, the mean over images and labels: binary cross-entropy, or the asymmetric loss
    (Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", equation 7). That one reduces the weight of
    easy examples, negatives more than positives, and drops negatives that are nearly certain.

    Args:
        asymmetric (`bool`): Whether it is the asymmetric loss.
        positive_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            Factors of the positives' loss. Default: 1.
    """

    def __init__(self, asymmetric: bool, positive_weights: torch.Tensor | None = None):
        super().__init__()
        self.asymmetric = asymmetric
        self.register_buffer("positive_weights", positive_weights)

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Scalar loss of logits and targets, both `(batch, num_labels)`, targets in [0, 1]."""
        logits = logits.float()
        if not self.asymmetric:
            return nn.functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.positive_weights)
        probabilities = logits.sigmoid()
        positive = (1 - probabilities) ** POSITIVE_FOCUS * nn.functional.logsigmoid(logits)
        if self.positive_weights is not None:
            positive = positive * self.positive_weights
        shifted = (probabilities - NEGATIVE_MARGIN).clamp(min=0)
        negative = shifted**NEGATIVE_FOCUS * torch.log1p(-shifted)
        return -(targets * positive + (1 - targets) * negative).mean()


def balanced_class_weights(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Weights of the classes with which all count the same in the loss, `(num_labels,)`, float32.

    Args:
        labels (`torch.Tensor`): Of the training images: class indices `(n,)`, or 0 and 1 `(n, num_labels)`.
        num_labels (`int`): Number of classes.

    Returns:
        For single labels, number of images / (number of classes with images * images of the class), scikit-learn's
        "balanced"; for several, images without / with the label, for [`MultiLabelLoss`]. 1 for a class without images, and for a
        label that all images have, which would count nothing.
    """
    if labels.ndim == 1:
        counts = labels.bincount(minlength=num_labels).float()
        weights = len(labels) / ((counts > 0).sum() * counts)
    else:
        counts = labels.float().sum(dim=0)
        weights = (len(labels) - counts) / counts
        counts = torch.where(counts < len(labels), counts, 0)
    return torch.where(counts > 0, weights, torch.ones_like(weights))


def balancing_weights(labels: torch.Tensor) -> torch.Tensor:
    """How likely to draw each image so that all classes come equally often.

    With several labels an image, its rarest counts; images without any label are a class of their own.

    Args:
        labels (`torch.Tensor`): Class indices `(n,)`, or 0 and 1 `(n, num_labels)`.

    Returns:
        `torch.Tensor` of shape `(n,)`, float64: one over the number of images of the class.
    """
    if labels.ndim == 1:
        return 1 / labels.bincount().double()[labels]
    labels = torch.cat([labels, (labels.sum(dim=1, keepdim=True) == 0).to(labels.dtype)], dim=1).double()
    return (labels / labels.sum(dim=0).clamp(min=1)).amax(dim=1)
