"""What masked image modeling has in common: one view of an image, patches of it masked, and their pixels to predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import PIL.Image
import torch
from accelerate import Accelerator

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.training_data import CropGroup
from modeling_sit.data.views import ViewArguments
from modeling_sit.evaluation.features import evaluation_mode
from modeling_sit.pretraining.method import Method, ViewGroup
from modeling_sit.pretraining.patches import enlarge_mask, patch_grid
from modeling_sit.pretraining.students import Student
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.reconstructions import masked_sheet

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing

# Crop and flip, and no change of color: what the published recipes have.
PLAIN_VIEWS: Mapping[str, Any] = {
    "color_jitter": [0.0, 0.0, 0.0, 0.0],
    "grayscale_probability": 0.0,
    "blur_probability": [0.0, 0.0],
    "solarize_probability": [0.0, 0.0],
}


def choose_plain_views(choosing: "Choosing", crop_scale: list[float]) -> None:
    """Choose crops of this range of areas, and no change of color."""
    choosing.choose("crop_scale", crop_scale, "the paper's; what is masked makes the task hard, not the crop")
    for name, value in PLAIN_VIEWS.items():
        choosing.choose(name, value, "crop and flip only, as in the paper")


@dataclass
class MaskArguments:
    """How much is masked.

    Raises:
        [`SiTError`]: If the value is out of range.
    """

    mask_ratio: float | None = field(
        default=None, metadata={"help": "Fraction of the image that is masked. Default: MAE's 0.75, SimMIM's 0.6."}
    )

    def __post_init__(self):
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise SiTError(f"must be between 0 and 1, got {self.mask_ratio}", argument="mask_ratio")


class MaskedImageModeling(Method):
    """
    A method that masks patches of one view and predicts their pixels.

    A subclass sets `student`, whose `forward(pixel_values, **masks)` gives a `ModelOutput` with `loss`, `reconstruction_loss`,
    `reconstruction` and `masked_patches`, bool `(views, patches)`; and it gives [`draw_masks`] and [`pixels`].
    """

    losses = ("loss", "reconstruction_loss")
    forward_methods = ("features",)
    tags = ("masked-image-modeling",)
    # The means of patch tokens have much in common, in healthy networks too: a standard deviation of 0.02 is none too low.
    collapse_signs = ("rankme",)
    preview_rows = "clean view, masked view, reconstruction, reconstruction pasted into the masked places"

    student: Student

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        self.grid = patch_grid(config.image_shape, config.patch_shape)

    def view_groups(self, arguments: ViewArguments) -> list[ViewGroup]:
        shape, processor = self.config.image_shape, self.processor
        augment = ViewAugmentation(arguments, shape, processor.image_mean, processor.image_std, num_views=1)
        return [ViewGroup(CropGroup(1, shape, tuple(arguments.crop_scale)), augment)]

    def draw_masks(
        self, num_views: int, device: torch.device, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """The student's arguments that say which patches are masked, as many in every view.

        Args:
            num_views (`int`): Number of views.
            device (`torch.device`): Of the views.
            generator (`torch.Generator`, *optional*): Source of the draws, on that device. Default: PyTorch's global one.
        """
        raise NotImplementedError

    def pixels(self, reconstruction: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """A student's reconstruction as normalized images of the shape of the clean ones, to look at."""
        raise NotImplementedError

    @torch.no_grad()
    def inputs(
        self, views: Sequence[torch.Tensor], accelerator: Accelerator, schedule: Mapping[str, float]
    ) -> dict[str, Any]:
        (clean,) = views
        return {"pixel_values": clean, **self.draw_masks(len(clean), clean.device)}

    @torch.no_grad()
    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.student.features(pixel_values)}

    @torch.no_grad()
    def preview(self, crops: torch.Tensor, seed: int) -> PIL.Image.Image:
        device = self.student.device
        # They are read by the range already: percentiles of a crop would stretch it once more.
        settings = {"do_resize": False, "do_convert_rgb": False, "intensity_range": None}
        clean = self.processor(list(crops), **settings, return_tensors="pt")["pixel_values"].to(device)
        masks = self.draw_masks(len(clean), device, torch.Generator(device).manual_seed(seed))
        with evaluation_mode(self.student):
            output = self.student(clean, **masks)
        mask = enlarge_mask(output.masked_patches, self.grid, self.config.patch_shape).unsqueeze(1)
        return masked_sheet(clean, self.pixels(output.reconstruction, clean), mask, self.processor)

    @property
    def has_preview(self) -> bool:
        return True
