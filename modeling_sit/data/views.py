"""Two augmented views of each image: cropped where images are decoded, the rest in batch on the device."""

from dataclasses import dataclass, field

import torch


@dataclass
class ViewArguments:
    """How the two views are augmented (arXiv 2104.03602, section 4). Pairs of probabilities are of view 1 and view 2."""

    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0], metadata={"help": "Range of a crop's area, as share of the image's."}
    )
    crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3], metadata={"help": "Range of a crop's width divided by its height."}
    )
    horizontal_flip_probability: float = field(default=0.5, metadata={"help": "Chance of a mirrored view."})
    vertical_flip_probability: float = field(
        default=0.0, metadata={"help": "Chance of a view upside down, for images without an up."}
    )
    color_jitter: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={
            "help": "Strength of jitter in brightness, contrast, saturation (factors 1 - x to 1 + x) and hue (turns)."
        },
    )
    color_jitter_probability: float = field(default=0.8, metadata={"help": "Chance of color jitter."})
    grayscale_probability: float = field(default=0.2, metadata={"help": "Chance of a grey view."})
    blur_probability: list[float] = field(
        default_factory=lambda: [1.0, 0.1], metadata={"help": "Chances of Gaussian blur of view 1 and view 2."}
    )
    blur_sigma: list[float] = field(
        default_factory=lambda: [0.1, 2.0],
        metadata={
            "help": "Range of the blur's standard deviation, in pixels of a view 224 wide; scaled to other sizes."
        },
    )
    solarize_probability: list[float] = field(
        default_factory=lambda: [0.0, 0.2], metadata={"help": "Chances of solarization of view 1 and view 2."}
    )
    solarize_threshold: float = field(
        default=0.5, metadata={"help": "Brightness in [0, 1] from which solarization inverts."}
    )

    def __post_init__(self):
        pairs = ("crop_scale", "crop_ratio", "blur_probability", "blur_sigma", "solarize_probability")
        for name, length in [*((pair, 2) for pair in pairs), ("color_jitter", 4)]:
            if len(getattr(self, name)) != length:
                raise ValueError(f"--{name} takes {length} numbers, got {len(getattr(self, name))}")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"--{name} takes a range 0 < low <= high, got {low} {high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"--crop_scale is a share of the image, at most 1, got {self.crop_scale[1]}")
        if min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                f"--color_jitter takes numbers from 0 on, the last one (hue) up to 0.5, got {self.color_jitter}"
            )
        if not 0 <= self.solarize_threshold <= 1:
            raise ValueError(f"--solarize_threshold is a brightness in [0, 1], got {self.solarize_threshold}")
        for name in vars(self):
            if name.endswith("_probability"):
                value = getattr(self, name)
                if not all(0 <= chance <= 1 for chance in (value if isinstance(value, list) else [value])):
                    raise ValueError(f"--{name} takes chances in [0, 1], got {value}")


def rotate_views(views: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate each view by a number of quarter turns of its own draw, counter-clockwise as an image is shown.

    Comes after the augmentation and before the corruption, so that all who see the views see them rotated.

    Args:
        views (`torch.Tensor` of shape `(2 * batch, channels, height, width)`): Square, of any type; left unchanged.
        generator (`torch.Generator`, *optional*): Source of the draws. Default: PyTorch's global one of the views' device.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The rotated views; int64 `(2 * batch,)`, how many quarter turns, 0 to 3.

    Raises:
        `ValueError`: If the views are not square.
    """
    height, width = views.shape[-2:]
    if height != width:
        raise ValueError(f"a quarter turn swaps height and width: views must be square, got {height} x {width} pixels")
    draw_device = views.device if generator is None else generator.device
    labels = torch.randint(4, (len(views),), generator=generator, device=draw_device).to(views.device)
    rotated = views
    # All turns of all views, of which each view keeps one at most: cheap, and the host need not wait to know the labels.
    for quarter_turns in (1, 2, 3):
        turned = torch.rot90(views, quarter_turns, dims=(-2, -1))
        rotated = torch.where((labels == quarter_turns).view(-1, 1, 1, 1), turned, rotated)
    return rotated, labels
