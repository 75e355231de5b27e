"""transformers' own pretraining models with SiT's encoder sizes, fed as transformers' example programs feed them."""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from datasets import Dataset
from torchvision.transforms import v2
from transformers import PreTrainedModel, ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

from modeling_sit import SiTConfig, SiTImageProcessor
from throughput.arithmetic import NUM_COUNTED, count_training_flops
from throughput.plain import TransformedImages

MASKED_SHARE = 0.6  # of patches, what the example of masked image modelling masks
LEARNING_RATE = 1e-4
NARROWEST = 192  # hidden size of ViT-Tiny


class TransformersModel:
    """
    A model of transformers in a loop as its Trainer's: one view an image by a random resized crop and a flip, mixed
    precision and fused AdamW as in SiT's own run.

    Args:
        name (`str`): What tables call it.
        model ([`PreTrainedModel`]): To be trained, on the accelerator's device.
        draw_inputs (callable): From a number of images and a device to what the model gets beside `pixel_values`.
        crop_scale (pair of `float`): Range of the crop's area, as a fraction of the image's.
        images (`datasets.Dataset`): Column `image` of encoded images.
        processor ([`SiTImageProcessor`]): With the normalization.
        accelerator (`Accelerator`): With the run's precision.
        batch_size, num_workers (`int`): Images in a batch, and processes that read.
        flops_per_image (`int`): Counted.
    """

    num_views = 1

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        draw_inputs: Callable[[int, torch.device], dict[str, torch.Tensor]],
        crop_scale: tuple[float, float],
        images: Dataset,
        processor: SiTImageProcessor,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int,
        flops_per_image: int,
    ):
        self.name, self.batch_size, self.num_workers = name, batch_size, num_workers
        self.flops_per_image, self.accelerator, self.draw_inputs = flops_per_image, accelerator, draw_inputs
        fused = accelerator.device.type in ("cpu", "cuda")
        model = model.to(accelerator.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=fused)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(
                    (processor.size["height"], processor.size["width"]),
                    scale=crop_scale,
                    interpolation=v2.InterpolationMode.BICUBIC,
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(processor.image_mean, processor.image_std),
            ]
        )
        self.images = TransformedImages(images, transform)

    def batches(self, count: int) -> Iterator[torch.Tensor]:
        pin_memory = self.accelerator.device.type == "cuda"
        for (pixel_values,) in self.images.batches(
            count, self.batch_size, num_workers=self.num_workers, pin_memory=pin_memory
        ):
            yield pixel_values

    def train_on(self, batch: torch.Tensor) -> torch.Tensor:
        pixel_values = batch.to(self.accelerator.device, non_blocking=True)
        inputs = self.draw_inputs(len(pixel_values), pixel_values.device)
        loss = self.model(pixel_values, **inputs).loss
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def create_mae(name: str, config: SiTConfig, **settings) -> TransformersModel:
    """Masked autoencoder (He et al. 2022) with transformers' decoder, which an encoder narrower than ViT-Tiny's would be
    nothing beside: that gets a decoder of its own sizes. `settings` as of [`TransformersModel`]."""
    sizes, decoder_sizes = _encoder_sizes(config), {}
    if config.hidden_size < NARROWEST:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        decoder_sizes = {f"decoder_{name}": sizes[name] for name in names}
    mae_config = ViTMAEConfig(**sizes, **decoder_sizes)
    flops = count_training_flops(ViTMAEForPreTraining, mae_config)
    return TransformersModel(
        name,
        ViTMAEForPreTraining(mae_config),
        draw_inputs=lambda num_images, device: {},  # it draws its mask itself
        crop_scale=(0.2, 1.0),
        flops_per_image=flops,
        **settings,
    )


def create_mim(name: str, config: SiTConfig, **settings) -> TransformersModel:
    """Masked image modelling (Xie et al. 2022) with transformers' one-layer decoder; `settings` as of
    [`TransformersModel`]."""
    mim_config = ViTConfig(**_encoder_sizes(config), encoder_stride=config.patch_size)
    num_patches = (mim_config.image_size // mim_config.patch_size) ** 2

    def draw_masks(num_images: int, device: torch.device) -> dict[str, torch.Tensor]:
        order = torch.rand(num_images, num_patches, device=device).argsort(dim=1)
        return {"bool_masked_pos": order < round(MASKED_SHARE * num_patches)}

    meta_masks = torch.empty(NUM_COUNTED, num_patches, dtype=torch.bool, device="meta")
    flops = count_training_flops(ViTForMaskedImageModeling, mim_config, bool_masked_pos=meta_masks)
    return TransformersModel(
        name,
        ViTForMaskedImageModeling(mim_config),
        draw_inputs=draw_masks,
        crop_scale=(0.67, 1.0),
        flops_per_image=flops,
        **settings,
    )


def _encoder_sizes(config: SiTConfig) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    images = ("image_size", "patch_size", "num_channels")
    return {name: getattr(config, name) for name in (*names, *images)}
