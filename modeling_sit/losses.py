"""SiT's losses: reconstruction of the clean image, contrast between views, and rotation. Pure functions of tensors."""

import torch
from torch.nn import functional as F


def reconstruction_loss(
    reconstruction: torch.Tensor,
    target_pixel_values: torch.Tensor,
    corruption_mask: torch.Tensor | None = None,
    norm: str = "l1",
    num_pixels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean distance between reconstruction and clean image, per channel of a pixel.

    Args:
        reconstruction (`torch.Tensor` of shape `(batch, channels, height, width)`): In normalized pixel space.
        target_pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): The clean images.
        corruption_mask (`torch.Tensor` of shape `(batch, 1, height, width)`, *optional*):
            Bool, the pixels that count. Default: all pixels. A mask without a pixel gives 0.
        norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` (arXiv 2104.03602, section 3.2) or `"l2"`, the squared distance.
        num_pixels (`torch.Tensor`, scalar, *optional*):
            What to divide by in place of the mask's own count of pixels. Where several processes share a batch, the mean
            of their counts: then the mean of their losses, and of their gradients, is that of the whole batch.

    Returns:
        `torch.Tensor`: Scalar, float32 at least.

    Raises:
        `ValueError`: If the shapes do not fit each other, `norm` is none of the two, or `num_pixels` has no mask.
    """
    if target_pixel_values.shape != reconstruction.shape:
        raise ValueError(
            f"target_pixel_values {tuple(target_pixel_values.shape)} must have the shape of the reconstruction "
            f"{tuple(reconstruction.shape)}"
        )
    mask_shape = (len(reconstruction), 1, *reconstruction.shape[2:])
    if corruption_mask is not None and corruption_mask.shape != mask_shape:
        raise ValueError(
            f"corruption_mask {tuple(corruption_mask.shape)} must be {mask_shape}, for a reconstruction of "
            f"{tuple(reconstruction.shape)}"
        )
    if corruption_mask is None and num_pixels is not None:
        raise ValueError("num_pixels stands for the count of a corruption_mask: without a mask all pixels count")
    difference = reconstruction.float() - target_pixel_values.float()
    if norm == "l1":
        distance = difference.abs()
    elif norm == "l2":
        distance = difference.square()
    else:
        raise ValueError(f"norm must be 'l1' or 'l2', got {norm!r}")
    if corruption_mask is None:
        return distance.mean()
    if num_pixels is None:
        num_pixels = corruption_mask.sum().clamp(min=1)
    else:
        # A mean over processes can lie below 1, and be 0 only where this mask is empty too.
        num_pixels = torch.where(num_pixels > 0, num_pixels, 1).to(distance.dtype)
    return (distance * corruption_mask).sum() / (num_pixels * distance.shape[1])


def contrastive_loss(
    projections: torch.Tensor,
    teacher_projections: torch.Tensor,
    temperature: float = 0.2,
    offset: int = 0,
) -> torch.Tensor:
    """Contrast of the student's views with the teacher's, crossed.

    The student's view 1 of each image has to find the teacher's view 2 of the same image among the teacher's views
    2 of all images, and the reverse: cross-entropy over cosine similarities divided by the temperature, scaled by
    twice the temperature, summed over the two directions (arXiv 2104.03602, section 3.3; scale as in the authors' code).

    Args:
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): The student's, view 1 first.
        teacher_projections (`torch.Tensor` of shape `(2 * total_batch, projection_size)`):
            The teacher's of all processes, view 1 of all of them first. No gradient reaches them.
        temperature (`float`, *optional*, defaults to 0.2): Above 0.
        offset (`int`, *optional*, defaults to 0): Which of the `total_batch` images is the first of `projections`.

    Returns:
        `torch.Tensor`: Scalar, float32 at least.

    Raises:
        `ValueError`: If a number of views is odd, or images from `offset` on lie outside the teacher's.
    """
    batch_size = _num_images("projections", projections)
    total_batch_size = _num_images("teacher_projections", teacher_projections)
    if not 0 <= offset <= total_batch_size - batch_size:
        raise ValueError(f"{batch_size} images at offset {offset} lie outside the teacher's {total_batch_size} images")
    same_image = torch.arange(offset, offset + batch_size, device=projections.device)
    # Mixed precision would compute the similarities in 16 bits.
    with torch.autocast(projections.device.type, enabled=False):
        view_1, view_2 = F.normalize(projections.float(), dim=-1).chunk(2)
        teacher_view_1, teacher_view_2 = F.normalize(teacher_projections.detach().float(), dim=-1).chunk(2)
        loss = F.cross_entropy(view_1 @ teacher_view_2.T / temperature, same_image) + F.cross_entropy(
            view_2 @ teacher_view_1.T / temperature, same_image
        )
    return 2 * temperature * loss


def nt_xent_loss(
    projections: torch.Tensor,
    temperature: float = 0.2,
    all_projections: torch.Tensor | None = None,
    offset: int = 0,
) -> torch.Tensor:
    """NT-Xent without a teacher: each view has to find the other view of its image among all 2N - 1 others.

    Args:
        projections (`torch.Tensor` of shape `(2 * batch, projection_size)`): View 1 first.
        temperature (`float`, *optional*, defaults to 0.2): Above 0.
        all_projections (`torch.Tensor` of shape `(2 * total_batch, projection_size)`, *optional*):
            Those of all processes, view 1 of all of them first, `projections` among them: each of `projections` has to
            find its other view among all but itself. Gradients flow through them, so that, gathered by an operation
            whose backward pass sums over processes, the mean of the processes' gradients is that of the whole batch.
            Default: `projections`.
        offset (`int`, *optional*, defaults to 0): Which of the `total_batch` images is the first of `projections`.

    Returns:
        `torch.Tensor`: Scalar, float32 at least: the mean over the 2N views (arXiv 2104.03602, equation 2; SimCLR).

    Raises:
        `ValueError`: If a number of views is odd, or images from `offset` on lie outside `all_projections`.
    """
    batch_size = _num_images("projections", projections)
    total_batch_size = batch_size if all_projections is None else _num_images("all_projections", all_projections)
    if not 0 <= offset <= total_batch_size - batch_size:
        raise ValueError(f"{batch_size} images at offset {offset} lie outside all {total_batch_size} images")
    # Mixed precision would compute the similarities in 16 bits.
    with torch.autocast(projections.device.type, enabled=False):
        projections = F.normalize(projections.float(), dim=-1)
        candidates = projections if all_projections is None else F.normalize(all_projections.float(), dim=-1)
        similarity = projections @ candidates.T / temperature
    all_views = torch.arange(2 * total_batch_size, device=projections.device)
    itself = all_views.unflatten(0, (2, total_batch_size))[:, offset : offset + batch_size].flatten()
    similarity = similarity.masked_fill(itself[:, None] == all_views, float("-inf"))
    other_view = all_views.roll(total_batch_size)[itself]
    return F.cross_entropy(similarity, other_view)


def rotation_loss(logits: torch.Tensor, rotation_labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of guessing by how many quarter turns each view was rotated (Gidaris et al. 2018; a task of the first
    version of arXiv 2104.03602).

    Args:
        logits (`torch.Tensor` of shape `(2 * batch, 4)`): Of 0 to 3 quarter turns.
        rotation_labels (`torch.Tensor` of shape `(2 * batch,)`): Int64, the numbers of quarter turns, 0 to 3.

    Returns:
        `torch.Tensor`: Scalar, float32 at least.

    Raises:
        `ValueError`: If there is not one label for each view.
    """
    if rotation_labels.shape != logits.shape[:1]:
        raise ValueError(
            f"rotation_labels {tuple(rotation_labels.shape)} must hold one number of quarter turns for each of "
            f"{len(logits)} views"
        )
    return F.cross_entropy(logits.float(), rotation_labels)


def _num_images(name: str, projections: torch.Tensor) -> int:
    """How many images these projections are of, two views each."""
    if len(projections) % 2:
        raise ValueError(f"{name} must hold two views of each image, got an odd number of rows: {len(projections)}")
    return len(projections) // 2
