"""Whether a network's embeddings have collapsed: two statistics of them, and the warning that they give."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Below these the embeddings count as collapsed. Networks with random weights, and trained ones, have a standard
# deviation from 0.06 and a rank from 1.9 up; those that a far too high learning rate has destroyed, 0.02 and 1.25 at
# most. A standard deviation of 0.03 means that two images' embeddings have a cosine similarity of 0.999 on average.
COLLAPSED_STD = 0.03
COLLAPSED_RANKME = 1.3


def effective_rank(embeddings: torch.Tensor, epsilon: float = 1e-7) -> float:
    """
    RankMe (Garrido et al., arXiv 2210.02885, equation 1): the exponential of the entropy of the singular values, each
    divided by their sum.

    Args:
        embeddings (`torch.Tensor` of shape `(num_images, size)`): One row an image; computed on in float64.
        epsilon (`float`, *optional*, defaults to 1e-7): Added to each fraction, as in the paper.

    Returns:
        `float`: Between 1 and the smaller of `num_images` and `size`, to some 1e-6 a dimension.
    """
    singular_values = torch.linalg.svdvals(embeddings.double())
    fractions = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float64).tiny) + epsilon
    return torch.exp(-(fractions * fractions.log()).sum()).item()


def embedding_std(embeddings: torch.Tensor) -> float:
    """
    Standard deviation of the L2-normalized embeddings, averaged over the dimensions, times the root of their number
    (Chen and He, arXiv 2011.10566, section 4.1): 0 if all point the same way, 1 if they point evenly in all
    directions.

    Args:
        embeddings (`torch.Tensor` of shape `(num_images, size)`): One row an image; computed on in float64.
    """
    directions = F.normalize(embeddings.double(), dim=1)
    return directions.std(dim=0, correction=0).mean().item() * embeddings.shape[1] ** 0.5


def collapse_warning(values: dict[str, float], range_of_dark: Callable[[], str | None] = lambda: None) -> str | None:
    """One line that says which values show a collapse of the embeddings, and what to try; `None` if none does.

    Args:
        values (`dict[str, float]`): What the monitors measured, by name: `embedding_std` and `rankme` count.
        range_of_dark (callable, *optional*): Gives the range of values that the images need, such as `0 4095`, or `None`. It is called
            after a collapse only.
    """
    thresholds = {"embedding_std": COLLAPSED_STD, "rankme": COLLAPSED_RANKME}
    signs = [
        f"{name} {values[name]:.3g} is below {threshold}"
        for name, threshold in thresholds.items()
        if name in values and values[name] < threshold
    ]
    if not signs:
        return None
    needed = range_of_dark()
    first = (
        "" if needed is None else f"First give `intensity_range` {needed}: without it the images are nearly black. "
    )
    return (
        f"the embeddings have collapsed, nearly all images have the same one: {' and '.join(signs)}. {first}If this stays, try a "
        "lower `base_learning_rate`, more `warmup_steps` or a larger `per_device_train_batch_size`"
    )
