"""SimMIM: replace squares of an image by a mask token, and predict their pixels by one linear layer (arXiv 2111.09886)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from modeling_sit import SiTConfig, SiTImageProcessor
from modeling_sit.interop.resize import pair
from modeling_sit.losses import reconstruction_loss
from modeling_sit.pretraining.masked import PLAIN_VIEWS, MaskArguments, MaskedImageModeling, choose_plain_views
from modeling_sit.pretraining.method import DEFAULTS
from modeling_sit.pretraining.patches import draw_places, enlarge_mask, patch_grid, unpatchify
from modeling_sit.pretraining.students import Student, create_peer
from modeling_sit.runtime.errors import SiTError

if TYPE_CHECKING:
    from modeling_sit.pretraining.flags import PretrainingFlags
    from modeling_sit.pretraining.presets import Choosing, Facts

CITATION = """@inproceedings{xie2022simmim,
  title     = {SimMIM: A Simple Framework for Masked Image Modeling},
  author    = {Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi and Hu, Han},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""

# At least, where the preset chooses their size: with fewer, a fraction of them is no fraction of the image.
SQUARES_IN_A_ROW = 4


@dataclass
class SimMIMArguments(MaskArguments):
    """What is masked.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    mask_square_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of a masked square in pixels, a multiple of `patch_size` that divides `image_size`. Default: by"
            " `preset`, two patches where that fits; the paper's is 32, with patches of 16."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mask_square_size is not None and self.mask_square_size < 1:
            raise SiTError(f"must be at least 1, got {self.mask_square_size}", argument="mask_square_size")


class SimMIMStudent(Student):
    """The backbone, a mask token, and one linear layer from a patch's token to its pixels as head."""

    def __init__(self, config: SiTConfig):
        super().__init__(config, nn.Linear(config.hidden_size, config.num_channels * math.prod(config.patch_shape)))
        std = config.initializer_range
        token = torch.empty(config.hidden_size)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=std, a=-std, b=std))

    def forward(self, pixel_values: torch.Tensor, masked_patches: torch.Tensor) -> ModelOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(views, channels, height, width)`): Clean views.
            masked_patches (`torch.Tensor` of shape `(views, patches)`): Bool, as many in every view.

        Returns:
            `ModelOutput`: `loss` and `reconstruction_loss`, the mean absolute error of the masked pixels; `reconstruction`
            of the shape of the views; `masked_patches`.
        """
        encoded = self.vit(pixel_values, bool_masked_pos=masked_patches, mask_token=self.mask_token.view(1, 1, -1))
        grid = patch_grid(self.config.image_size, self.config.patch_size)
        reconstruction = unpatchify(self.head(encoded.last_hidden_state[:, 1:]), grid, self.config.patch_shape)
        mask = enlarge_mask(masked_patches, grid, self.config.patch_shape).unsqueeze(1)
        # Every image has as many masked pixels: the mean over processes is the mean over their images.
        loss = reconstruction_loss(reconstruction, pixel_values, mask)
        return ModelOutput(
            loss=loss, reconstruction_loss=loss, reconstruction=reconstruction, masked_patches=masked_patches
        )


class SimMIM(MaskedImageModeling):
    """
    Squares of the image are replaced by a learned token, all tokens go through the encoder, and one linear layer predicts the
    pixels. The loss is the absolute error of the masked ones.

    Args:
        config ([`SiTConfig`]): The backbone.
        processor ([`SiTImageProcessor`]): Normalizes.
        flags ([`PretrainingFlags`]): What the user asked for.
    """

    title = "SimMIM (masked image modeling, [arXiv 2111.09886](https://arxiv.org/abs/2111.09886))"
    citation = CITATION

    Arguments = SimMIMArguments
    defaults: Mapping[str, Any] = {**DEFAULTS, "max_grad_norm": 5.0, "pooling": "mean", "mask_ratio": 0.6}
    # The learning rate is 1e-4 for a batch of 512; it falls on a cosine here, and there to a tenth near the end.
    paper: Mapping[str, Any] = {
        "base_learning_rate": 5e-5,
        "mask_square_size": 32,
        "crop_scale": [0.67, 1.0],
        **PLAIN_VIEWS,
    }

    def __init__(self, config: SiTConfig, processor: SiTImageProcessor, flags: "PretrainingFlags"):
        super().__init__(config, processor, flags)
        side, ratio = self.arguments.mask_square_size, self.arguments.mask_ratio
        sizes = square_sizes(config.image_shape, config.patch_shape)
        if side not in sizes:
            raise SiTError(
                f"squares of {side} pixels must be of whole patches of {config.patch_size}, and the image of {config.image_size}"
                " of whole squares, two or more in a row",
                argument="mask_square_size",
                remedy=f"choose one of {', '.join(map(str, sizes))}" if sizes else "choose smaller patches",
            )
        self.squares = patch_grid(config.image_shape, side)
        self.patches_of_a_square = patch_grid(side, config.patch_shape)
        num_squares = math.prod(self.squares)
        self.num_masked = math.ceil(ratio * num_squares)  # as in the authors' code
        if self.num_masked == num_squares:
            raise SiTError(
                f"{ratio} of {num_squares} squares of {side} pixels, rounded up, is the whole image",
                argument="mask_ratio",
                remedy="choose a lower one, or smaller squares",
            )
        self.student = create_peer(SimMIMStudent, config, flags.model, flags.run.seed)

    @classmethod
    def choose(cls, choosing: "Choosing", facts: "Facts") -> None:
        image, patch = pair(choosing["image_size"]), pair(choosing["patch_size"])
        wanted = 2 * math.lcm(*patch)
        sizes = square_sizes(image, patch)
        # Where none fits, the check of the size says what is wrong.
        fine = [side for side in sizes if min(image) // side >= SQUARES_IN_A_ROW] or sizes[:1] or [wanted]
        side = min(fine, key=lambda side: abs(side - wanted))
        reason = f"about two patches of {choosing['patch_size']}, as the paper's 32 are of 16, {min(image) // side} in a row"
        choosing.choose("mask_square_size", side, reason)
        choose_plain_views(choosing, [0.67, 1.0])

    def draw_masks(
        self, num_views: int, device: torch.device, generator: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        num_squares = math.prod(self.squares)
        places = draw_places(num_views, num_squares, self.num_masked, device, generator)
        squares = torch.zeros(num_views, num_squares, dtype=torch.bool, device=device).scatter(1, places, True)
        return {"masked_patches": enlarge_mask(squares, self.squares, self.patches_of_a_square).flatten(1)}

    def pixels(self, reconstruction: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        return reconstruction

    @classmethod
    def encoder_tokens(cls, settings: Mapping[str, Any]) -> int:
        return 3 * (1 + math.prod(patch_grid(settings["image_size"], settings["patch_size"])))


def square_sizes(image_shape: tuple[int, int], patch_shape: tuple[int, int]) -> list[int]:
    """Sides in pixels of squares that are made of whole patches, and that an image is made of, at least two in a row."""
    step = math.lcm(*patch_shape)
    sides = range(step, min(image_shape) // 2 + 1, step)
    return [side for side in sides if not any(length % side for length in image_shape)]
