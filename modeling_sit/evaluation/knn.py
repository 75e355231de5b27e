"""The weighted k-nearest-neighbors protocol: labels predicted from frozen features, with nothing to train."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    num_labels: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 4096,
) -> torch.Tensor:
    """
    Score labels by the votes of each image's k nearest training images, after Wu et al. 2018 (arXiv 1805.01978,
    section 3.4), with the settings under which DINO (arXiv 2104.14294) reports it.

    Nearness is cosine similarity, and a neighbor's vote weighs `exp(similarity / temperature)`. The scores are
    fractions of the votes, so `scores.argmax(dim=1)` is the prediction and `scores.topk(5)` the five best guesses.

    Order decides ties: of equally near training images the earlier ones are the neighbors; of labels with
    equal scores, `argmax` takes the lower. A feature of norm zero has similarity zero to every other.

    Args:
        train_features (`torch.Tensor` of shape `(num_train, hidden_size)`):
            Features of the training images, any float dtype; normalized here. They may be on another device than
            `features`: they are copied one chunk at a time.
        train_labels (`torch.Tensor` of shape `(num_train,)`, or `(num_train, num_labels)`):
            Integer labels in `[0, num_labels)`; or, where an image can have several, 0 and 1 for each label.
        features (`torch.Tensor` of shape `(num_images, hidden_size)`):
            Features of the images to label. The computation is done on their device, in float32 at least.
        num_labels (`int`):
            Number of labels.
        k (`int`, *optional*, defaults to 20):
            Number of neighbors that vote, at most `num_train`.
        temperature (`float`, *optional*, defaults to 0.07):
            The lower it is, the more the nearest neighbors decide.
        chunk_size (`int`, *optional*, defaults to 4096):
            Images compared at a time, on either side. Working memory grows with its square, whatever the number of
            images: half a gigabyte at most at 4096.

    Returns:
        `torch.Tensor` of shape `(num_images, num_labels)`: Scores in `[0, 1]`, the fraction of the votes for each
        label, in float32 (float64 for float64 features), on the device of `features`. Each row sums to 1, unless
        images can have several labels.

    Raises:
        `ValueError`: If shapes do not fit, `k` is not in `[1, num_train]`, `temperature` or `chunk_size` is not
            positive, a label is out of range, or a feature is not finite.
    """
    if train_features.ndim != 2 or features.ndim != 2 or train_features.shape[1] != features.shape[1]:
        raise ValueError(
            "train_features and features must be of shapes (num_train, hidden_size) and (num_images, hidden_size), not "
            f"{tuple(train_features.shape)} and {tuple(features.shape)}"
        )
    num_train = len(train_features)
    multi_label = train_labels.ndim == 2
    if train_labels.shape != ((num_train, num_labels) if multi_label else (num_train,)):
        raise ValueError(f"{num_train} training features need as many labels, not {tuple(train_labels.shape)}")
    if not 1 <= k <= num_train:
        raise ValueError(f"k = {k} neighbors cannot be drawn from {num_train} training images")
    if temperature <= 0 or chunk_size < 1:
        raise ValueError(f"temperature ({temperature}) and chunk_size ({chunk_size}) must be positive")
    num_values = 2 if multi_label else num_labels
    if not 0 <= train_labels.min() <= train_labels.max() < num_values:
        raise ValueError(
            f"train_labels run from {train_labels.min()} to {train_labels.max()}, outside [0, {num_values})"
        )

    dtype = torch.promote_types(features.dtype, torch.float32)
    train_labels = train_labels.to(features.device, dtype if multi_label else torch.long)
    scores = torch.zeros(len(features), num_labels, dtype=dtype, device=features.device)
    for start in range(0, len(features), chunk_size):
        chunk = _normalize(features[start : start + chunk_size], "features", start).to(dtype)
        similarities, neighbours = _nearest(chunk, train_features, k, chunk_size)
        votes = (similarities / temperature).softmax(dim=1)
        # One neighbor at a time: a single scatter over repeated labels has no fixed order on a GPU.
        for vote, neighbour in zip(votes.split(1, dim=1), neighbours.T, strict=True):
            if multi_label:
                scores[start : start + chunk_size].addcmul_(vote, train_labels[neighbour])
            else:
                scores[start : start + chunk_size].scatter_add_(1, train_labels[neighbour][:, None], vote)
    return scores


def _nearest(
    features: torch.Tensor, train_features: torch.Tensor, k: int, chunk_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities and indices, `(num_images, k)` each, of the k training features nearest to normalized features."""
    similarities = features.new_empty(len(features), 0)
    indices = torch.empty(len(features), 0, dtype=torch.long, device=features.device)
    for start in range(0, len(train_features), chunk_size):
        chunk = _normalize(train_features[start : start + chunk_size].to(features.device), "train_features", start)
        chunk_similarities, columns = _top_k(features @ chunk.to(features.dtype).T, k)
        similarities, kept = _top_k(torch.cat([similarities, chunk_similarities], dim=1), k)
        indices = torch.cat([indices, start + columns], dim=1).gather(1, kept)
    return similarities, indices


def _top_k(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row (or all, if fewer) in the order of their columns; of equals, those in the first
    columns.

    `torch.topk` takes any of several equal values. A stable sort does not, but is many times slower.
    """
    values, columns = similarities.topk(min(k + 1, similarities.shape[1]), dim=1)
    columns = columns[:, :k]
    if values.shape[1] > k:
        undecided = values[:, k - 1] == values[:, k]
        columns[undecided] = similarities[undecided].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    return similarities.gather(1, columns), columns


def _normalize(features: torch.Tensor, name: str, start: int) -> torch.Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"{name}[{start + int(finite.long().argmin())}] is not finite")
    return F.normalize(features, dim=1)
