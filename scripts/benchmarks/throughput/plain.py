"""SiT's step written plainly. The batched, fused and cached code must be faster, and must give the same results."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import PIL.Image
import torch
from corruption import plain_corrupt
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms import v2

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.data.views import ViewArguments


def plain_view(
    arguments: ViewArguments, view: int, image_shape: tuple[int, int], image_mean: list[float], image_std: list[float]
) -> v2.Compose:
    """What makes view 0 or view 1 of a PIL image, by torchvision's transforms one after the other.

    Args:
        arguments (`ViewArguments`): Probabilities and ranges.
        view (`int`): Which of the two views.
        image_shape (pair of `int`): Height and width in pixels.
        image_mean, image_std (lists of three `float`): Of values in [0, 1].
    """
    crop = v2.RandomResizedCrop(
        image_shape,
        scale=tuple(arguments.crop_scale),
        ratio=tuple(arguments.crop_ratio),
        interpolation=v2.InterpolationMode.BICUBIC,
    )
    return v2.Compose([crop, plain_augmentation(arguments, view, image_shape, image_mean, image_std)])


def plain_augmentation(
    arguments: ViewArguments, view: int, image_shape: tuple[int, int], image_mean: list[float], image_std: list[float]
) -> v2.Compose:
    """What follows the crop in [`plain_view`], of a PIL image or of pixels, uint8 `(channels, height, width)`."""
    sigma = [value * max(image_shape) / 224 for value in arguments.blur_sigma]
    kernel_size = 2 * max(1, round(2 * sigma[1])) + 1
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(arguments.horizontal_flip_probability),
            v2.RandomVerticalFlip(arguments.vertical_flip_probability),
            v2.RandomApply([v2.ColorJitter(*arguments.color_jitter)], arguments.color_jitter_probability),
            v2.RandomGrayscale(arguments.grayscale_probability),
            v2.RandomApply([v2.GaussianBlur(kernel_size, sigma)], arguments.blur_probability[view]),
            v2.RandomSolarize(255 * arguments.solarize_threshold, arguments.solarize_probability[view]),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(image_mean, image_std),
        ]
    )


class TransformedImages(torch.utils.data.Dataset):
    """
    Images decoded anew whenever they are asked for, each through every transform.

    Args:
        images (`datasets.Dataset`): Column `image` of encoded images.
        transforms (callables): From an RGB image of PIL to a tensor.
    """

    def __init__(self, images: Dataset, *transforms: Callable[[PIL.Image.Image], torch.Tensor]):
        self.images = images
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        encoded = self.images[index]["image"]
        file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with PIL.Image.open(file) as opened:
            image = opened.convert("RGB")
        return tuple(transform(image) for transform in self.transforms)

    def batches(self, count: int, batch_size: int, **reading: Any) -> DataLoader:
        """`count` batches of images in random order, epoch after epoch; `reading` as of `DataLoader`."""
        return DataLoader(self, batch_size, sampler=RandomSampler(self, num_samples=count * batch_size), **reading)


class CorruptedViews:
    """
    Collates two views of each image, and corrupts them image by image, where they are read.

    Args:
        processor ([`SiTImageProcessor`]): With the corruption's settings.
    """

    def __init__(self, processor: SiTImageProcessor):
        self.processor = processor

    def __call__(self, items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        """Clean views `(2 * batch, channels, height, width)`, view 1 first, corrupted ones, and their mask."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        views = [torch.stack(view) for view in zip(*items, strict=True)]
        corrupted, masks = zip(*(plain_corrupt(view, self.processor, generator) for view in views), strict=True)
        return torch.cat(views), torch.cat(corrupted), torch.cat(masks)


class PlainReference:
    """
    The plain step: torchvision's transforms image by image, a corruption that loops over images and blocks, the
    network in float32 without compiler, AdamW that is not fused, a teacher that loops over parameters.

    Args:
        name (`str`): What tables call it.
        student ([`SiTForPreTraining`]): Copied; its weights are those to begin with.
        processor ([`SiTImageProcessor`]): With corruption and normalization.
        images (`datasets.Dataset`): Column `image` of encoded images.
        views (`ViewArguments`): How views are augmented.
        schedule (callable): From the number of a step, from 0, to its learning rate, weight decay and teacher's momentum.
        batch_size (`int`): Images in a batch.
        num_workers (`int`): Processes that read, augment and corrupt.
        attention (`str`): transformers' name of the attention's implementation.
        flops_per_image (`int`): Counted.
    """

    num_views = 2

    def __init__(
        self,
        name: str,
        student: SiTForPreTraining,
        processor: SiTImageProcessor,
        images: Dataset,
        views: ViewArguments,
        schedule: Callable[[int], dict[str, float]],
        batch_size: int,
        num_workers: int,
        attention: str,
        flops_per_image: int,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float = 3.0,
    ):
        self.name, self.batch_size, self.num_workers = name, batch_size, num_workers
        self.flops_per_image = flops_per_image
        self.schedule, self.max_grad_norm, self.number = schedule, max_grad_norm, 0
        config = copy.deepcopy(student.config)
        config._attn_implementation = attention
        self.student = self._copy(student, config).train()
        for copied, parameter in zip(self.student.parameters(), student.parameters(), strict=True):
            copied.requires_grad_(parameter.requires_grad)
        config = copy.deepcopy(config)
        config.drop_path_rate = 0.0
        self.teacher = self._copy(student, config).train().requires_grad_(False)
        decaying, other = [], []
        for parameter_name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                is_vector = parameter.ndim == 1 or parameter_name.endswith(("cls_token", "position_embeddings"))
                (other if is_vector else decaying).append(parameter)
        groups = [{"params": decaying}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=False)
        image_shape = student.config.image_shape
        self.images = TransformedImages(
            images,
            *(plain_view(views, view, image_shape, processor.image_mean, processor.image_std) for view in range(2)),
        )
        self.collate = CorruptedViews(processor)

    @staticmethod
    def _copy(student: SiTForPreTraining, config) -> SiTForPreTraining:
        model = SiTForPreTraining(config).to(student.device)
        model.load_state_dict(student.state_dict())
        return model

    def batches(self, count: int) -> Iterator[tuple[torch.Tensor, ...]]:
        yield from self.images.batches(
            count, self.batch_size, num_workers=self.num_workers, collate_fn=self.collate, pin_memory=self._pins()
        )

    def _pins(self) -> bool:
        return self.student.device.type == "cuda"

    def train_on(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Learn from clean views, corrupted views and their mask, as the method's equations say it."""
        clean, corrupted, mask = (tensor.to(self.student.device) for tensor in batch)
        now = self.schedule(self.number)
        self.number += 1
        for group, weight_decay in zip(self.optimizer.param_groups, (now["weight_decay"], 0.0), strict=True):
            group["lr"], group["weight_decay"] = now["learning_rate"], weight_decay
        with torch.no_grad():
            teacher_projections = self.teacher.project(clean)
        loss = self.student(
            corrupted,
            target_pixel_values=clean,
            corruption_mask=mask,
            teacher_projections=teacher_projections,
        ).loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.max_grad_norm)
        self.optimizer.step()
        momentum = now["teacher_momentum"]
        with torch.no_grad():
            for averaged, parameter in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                averaged.mul_(momentum).add_(parameter, alpha=1 - momentum)
        return loss.detach()
