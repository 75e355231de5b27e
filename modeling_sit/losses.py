"""SiT's losses: reconstruction of the clean picture, and contrast between views. Pure functions of tensors."""

import torch
from torch.nn import functional as F


def reconstruction_loss(
    reconstruction: torch.Tensor,
    target_pixel_values: torch.Tensor,
    corruption_mask: torch.Tensor | None = None,
    norm: str = "l1",
) -> torch.Tensor:
    """Mean distance between reconstruction and clean picture, per channel of a pixel.

    Args:
        reconstruction (`torch.Tensor` of shape `(batch, channels, height, width)`): In normalised pixel space.
        target_pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The clean pictures.
        corruption_mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*):
            Bool, the pixels that count. Default: all pixels. A mask without a pixel gives 0.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` (arXiv 2104.03602, section 3.2) or `"l2"`, the squared distance.

    Returns:
        `torch.Tensor`: Scalar, float32 at least.
    """
    difference = reconstruction.float() - target_pixel_values.float()
    if norm == "l1":
        distance = difference.abs()
    elif norm == "l2":
        distance = difference.square()
    else:
        raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    if corruption_mask is None:
        return distance.mean()
    corrupted_values = corruption_mask.sum().clamp(min=1) * distance.shape[1]
    return (distance * corruption_mask).sum() / corrupted_values


def contrastive_loss(
    projections: torch.Tensor,
    teacher_projections: torch.Tensor,
    temperature: float = 0.2,
    offset: int = 0,
) -> torch.Tensor:
    """Contrast of the student's views with the teacher's, crossed.

    The student's view 1 of each picture has to find the teacher's view 2 of the same picture among the teacher's views
    2 of all pictures, and the reverse: cross-entropy over cosine similarities divided by the temperature, scaled by
    twice the temperature, summed over the two directions (arXiv 2104.03602, section 3.3; scale as in the authors' code).

    Args:
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): The student's, view 1 first.
        teacher_projections (`torch.Tensor` of shape `(2 * total_batch, projection_size)`):
            The teacher's of all processes, view 1 of all of them first. No gradient reaches them.
        temperature (`float`, *optional*, defaults to 0.2): Above 0.
        offset (`int`, *optional*, defaults to 0): Which of the `total_batch` pictures is the first of `projections`.

    Returns:
        `torch.Tensor`: Scalar, float32 at least.
    """
    batch_size, total_batch_size = len(projections) // 2, len(teacher_projections) // 2
    if not 0 <= offset <= total_batch_size - batch_size:
        raise ValueError(
            f"{batch_size} pictures at offset {offset} lie outside the teacher's {total_batch_size} pictures"
        )
    same_picture = torch.arange(offset, offset + batch_size, device=projections.device)
    # Mixed precision would compute the similarities in 16 bits.
    with torch.autocast(projections.device.type, enabled=False):
        view_1, view_2 = F.normalize(projections.float(), dim=-1).chunk(2)
        teacher_view_1, teacher_view_2 = F.normalize(teacher_projections.detach().float(), dim=-1).chunk(2)
        loss = F.cross_entropy(view_1 @ teacher_view_2.T / temperature, same_picture) + F.cross_entropy(
            view_2 @ teacher_view_1.T / temperature, same_picture
        )
    return 2 * temperature * loss


def nt_xent_loss(projections: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """NT-Xent without a teacher: each view has to find the other view of its picture among all 2N - 1 others.

    Args:
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): View 1 first.
        temperature (`float`, *optional*, defaults to 0.2): Above 0.

    Returns:
        `torch.Tensor`: Scalar, float32 at least: the mean over the 2N views (arXiv 2104.03602, equation 2; SimCLR).
    """
    # Mixed precision would compute the similarities in 16 bits.
    with torch.autocast(projections.device.type, enabled=False):
        projections = F.normalize(projections.float(), dim=-1)
        similarity = projections @ projections.T / temperature
    similarity = similarity.masked_fill(
        torch.eye(len(projections), dtype=torch.bool, device=projections.device), float("-inf")
    )
    other_view = torch.arange(len(projections), device=projections.device).roll(len(projections) // 2)
    return F.cross_entropy(similarity, other_view)
