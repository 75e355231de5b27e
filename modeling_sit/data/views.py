"""How the views of each image are augmented. They are cropped where images are decoded; the rest is done in batch on the
device."""

from dataclasses import dataclass, field

import torch

from modeling_sit.runtime.errors import SiTError

# The paper's values of the arguments that a preset chooses (arXiv 2104.03602, section 4).
PAPER_VIEWS = {
    "crop_scale": [0.2, 1.0],
    "color_jitter": [0.4, 0.4, 0.2, 0.1],
    "grayscale_probability": 0.2,
    "blur_probability": [1.0, 0.1],
    "solarize_probability": [0.0, 0.2],
}


@dataclass
class ViewArguments:
    """How the views are augmented (arXiv 2104.03602, section 4).

    Pairs of probabilities are of view 1 and view 2. Further views, if a method has them, are like view 2. What is `None` is
    chosen by the run's preset before any view is made.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    crop_scale: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the area of a crop, as a fraction of the image's area. Default: by `preset`; the paper's is "
            "0.2 1."
        },
    )
    crop_ratio: list[float] = field(
        default_factory=lambda: [3 / 4, 4 / 3],
        metadata={
            "help": "Range of the width of a crop divided by its height; of views that are not square, a multiple of theirs."
        },
    )
    horizontal_flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    vertical_flip_probability: float = field(
        default=0.0, metadata={"help": "Probability of a vertical flip, for images without a top and a bottom."}
    )
    color_jitter: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strength of the color jitter: brightness, contrast, saturation (factors 1 - x to 1 + x) and hue"
            " (turns). Default: by `preset`; the paper's is 0.4 0.4 0.2 0.1."
        },
    )
    color_jitter_probability: float = field(default=0.8, metadata={"help": "Probability of color jitter."})
    grayscale_probability: float | None = field(
        default=None, metadata={"help": "Probability of a gray view. Default: by `preset`; the paper's is 0.2."}
    )
    blur_probability: list[float] | None = field(
        default=None,
        metadata={
            "help": "Probabilities of Gaussian blur in view 1 and view 2. Default: by `preset`; the paper's are 1 0.1."
        },
    )
    blur_sigma: list[float] = field(
        default_factory=lambda: [0.1, 2.0],
        metadata={
            "help": "Range of the standard deviation of the blur, in pixels of a view 224 wide. It is scaled to "
            "other sizes."
        },
    )
    solarize_probability: list[float] | None = field(
        default=None,
        metadata={
            "help": "Probabilities of solarization in view 1 and view 2. Default: by `preset`; the paper's are 0 0.2."
        },
    )
    solarize_threshold: float = field(
        default=0.5, metadata={"help": "Solarization inverts pixels of at least this brightness, in [0, 1]."}
    )

    def __post_init__(self):
        pairs = ("crop_scale", "crop_ratio", "blur_probability", "blur_sigma", "solarize_probability")
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, length in [*((pair, 2) for pair in pairs), ("color_jitter", 4)]:
            if name in given and len(given[name]) != length:
                raise SiTError(f"must be {length} numbers, got {len(given[name])}", argument=name)
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = given.get(name, (1, 1))
            if not 0 < low <= high:
                raise SiTError(f"must be a range 0 < low <= high, got {low} {high}", argument=name)
        if "crop_scale" in given and self.crop_scale[1] > 1:
            raise SiTError(
                f"must be a fraction of the image, at most 1, got {self.crop_scale[1]}", argument="crop_scale"
            )
        if "color_jitter" in given and (min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5):
            raise SiTError(
                f"must be at least 0, and the last number (hue) at most 0.5, got {self.color_jitter}",
                argument="color_jitter",
            )
        if not 0 <= self.solarize_threshold <= 1:
            raise SiTError(
                f"must be a brightness in [0, 1], got {self.solarize_threshold}", argument="solarize_threshold"
            )
        for name, value in given.items():
            values = value if isinstance(value, list) else [value]
            if name.endswith("_probability") and not all(0 <= probability <= 1 for probability in values):
                raise SiTError(f"must be in [0, 1], got {value}", argument=name)

    def crop_ratio_for(self, image_shape: tuple[int, int]) -> tuple[float, float]:
        """Range of the width of a crop in an image, divided by its height.

        Views that are not square are no more stretched than square ones are: the range is around their own ratio.

        Args:
            image_shape (pair of `int`): Height and width of the views in pixels.
        """
        height, width = image_shape
        low, high = self.crop_ratio
        return low * width / height, high * width / height


def rotate_views(views: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate each view by a random number of quarter turns, counter-clockwise as an image is shown.

    It comes after the augmentation and before the corruption, so that student and teacher see the same rotated views.

    Args:
        views (`torch.Tensor` of shape `(views, channels, height, width)`): Square, of any type; left unchanged.
        generator (`torch.Generator`, *optional*): Source of the draws. Default: PyTorch's global one of the views' device.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The rotated views, and the quarter turns of each, int64 `(views,)`, 0 to 3.

    Raises:
        `ValueError`: If the views are not square.
    """
    height, width = views.shape[-2:]
    if height != width:
        raise ValueError(f"a quarter turn swaps height and width: views must be square, got {height} x {width} pixels")
    draw_device = views.device if generator is None else generator.device
    labels = torch.randint(4, (len(views),), generator=generator, device=draw_device).to(views.device)
    rotated = views
    # Every view is turned in all three ways and keeps at most one: cheap, and the host need not wait for the labels.
    for quarter_turns in (1, 2, 3):
        turned = torch.rot90(views, quarter_turns, dims=(-2, -1))
        rotated = torch.where((labels == quarter_turns).view(-1, 1, 1, 1), turned, rotated)
    return rotated, labels
