"""Features of a frozen encoder, which every protocol measures."""

import inspect
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.labeled import labels_of
from modeling_sit.data.loaders import BatchLoader, worker_deaths
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.image_modes import OTHER_CHANNELS, PixelFormat
from modeling_sit.modeling_sit import pool
from modeling_sit.runtime.accelerator import reshard
from modeling_sit.runtime.distributed import sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.products import fast_products
from modeling_sit.runtime.progress import bar_of_images

logger = logging.getLogger(__name__)


@dataclass
class Features:
    """
    Features of the images of a dataset, in its order, without the images that could not be read.

    Args:
        features (`torch.Tensor` of shape `(num_images, hidden_size)`, or twice the width for `"token_mean"`):
            One row an image, float32, on the CPU.
        labels (`torch.Tensor` of shape `(num_images,)`, or `(num_images, num_labels)`, *optional*):
            Labels where the dataset has them: int64, or float32 of 0 and 1 where an image can have several.
        skipped (`list[tuple[str, str]]`):
            Name of each image that could not be read, and the reason.
        rows (`torch.Tensor` of shape `(num_images,)`, *optional*):
            The row of each image in the dataset, int64. `None` where the features are not of one dataset.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    skipped: list[tuple[str, str]]
    rows: torch.Tensor | None = None


def frozen_features(
    model: PreTrainedModel,
    split: datasets.Dataset,
    processor: BaseImageProcessor,
    arguments: FeatureArguments | None = None,
    *,
    device: torch.device | str | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    rows: range | None = None,
) -> Features | None:
    """
    [`extract_features`], checked. Each image that cannot be read gets a warning.

    Args:
        model, split, processor, arguments, device, accelerator, progress: As for [`extract_features`].
        rows (`range`, *optional*): Read these rows only, none of which has to be readable. Default: the whole split.

    Returns:
        [`Features`]: With rows of the whole split. `None` in all processes but the main one.

    Raises:
        [`SiTError`]: As [`extract_features`], or if no image of the split can be read, or a feature is not finite. In
            every process.
    """
    with nullcontext() if accelerator is None else sync_errors(accelerator):
        images = split if rows is None else split.select(rows)
        found = extract_features(
            model, images, processor, arguments, device=device, accelerator=accelerator, progress=progress
        )
        if found is None:
            return None
        if rows is not None:
            found = _in_split(found, split, rows)
        if len(found.features) == 0 and rows is None:
            first = "".join(f"; the first, {name}: {reason}" for name, reason in found.skipped[:1])
            unfit = found.skipped and all(reason.startswith(OTHER_CHANNELS) for _, reason in found.skipped)
            raise SiTError(
                f"split {split.split}: none of {len(split)} images can be read{first}",
                remedy="give images with the channels that the model was trained on, or another model"
                if unfit
                else None,
            )
        for line in _lines_about(found.skipped):
            logger.warning("skipped %s", line)
        # Chunk by chunk, because the check makes a copy.
        if not all(chunk.isfinite().all() for chunk in found.features.split(65536)):
            raise SiTError(
                "the model's features are not finite: its training has diverged",
                argument="model_name_or_path",
                remedy="choose another model",
            )
    return found


def _lines_about(skipped: list[tuple[str, str]]) -> Iterator[str]:
    """A line for each image that was skipped; one for all with the same other channels, which are sound."""
    unfit = Counter(reason for _, reason in skipped if reason.startswith(OTHER_CHANNELS))
    for name, reason in skipped:
        number = unfit.pop(reason, 0)
        if number > 1:
            yield f"{number:,} images, such as {name}: {reason}"
        elif number or not reason.startswith(OTHER_CHANNELS):
            yield f"{name}: {reason}"


def _in_split(found: Features, split: datasets.Dataset, rows: range) -> Features:
    """Features of some rows of a split, with rows and names of the whole split."""
    kept = set(found.rows.tolist())
    skipped_rows = [row for number, row in enumerate(rows) if number not in kept]
    skipped = [(image_name(split, row), reason) for row, (_, reason) in zip(skipped_rows, found.skipped, strict=True)]
    return replace(found, rows=torch.tensor(rows)[found.rows], skipped=skipped)


def extract_features(
    model: PreTrainedModel,
    dataset: datasets.Dataset,
    processor: BaseImageProcessor,
    arguments: FeatureArguments | None = None,
    *,
    device: torch.device | str | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Features | None:
    """
    Features of every image of a dataset, from a frozen encoder, each read once.

    With an `accelerator` every process must call this. The processes share the images batch by batch, and the main
    process alone keeps the features: `num_images * hidden_size * 4` bytes. The others hold a batch at a time.

    Args:
        model (`PreTrainedModel`):
            The encoder, or a model with heads, of which only the encoder is used. Its `last_hidden_state` has one
            token in front of the patches' (and register tokens, if its config counts them). It runs in evaluation mode
            and is then put back as it was, but for `device`.
        dataset (`datasets.Dataset`):
            Images in the column `image`, `datasets.Image(decode=False)`, and labels, if any, in the column `label`.
        processor (`BaseImageProcessor`):
            Image processor that makes the model's `pixel_values`.
        arguments ([`FeatureArguments`], *optional*):
            Pooling and layer: layers from 1 to `num_hidden_layers` are not normed. Default: what the model's own
            `pooling` names of the encoder's output.
        device (`torch.device` or `str`, *optional*):
            Device to move the model to. Default: the accelerator's, or where the model is.
        accelerator (`Accelerator`, *optional*):
            Knows the processes that share the work. Default: this one does it alone.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar with images per second on stderr, in the main process.

    Returns:
        [`Features`]: The features, the labels and what was skipped; no rows at all where no image can be read. `None`
        in all processes but the main one.

    Raises:
        [`SiTError`]: If there is no such pooling or layer, or the model gives no tokens.
    """
    encoder = _encoder_of(model)
    arguments = settle_features(arguments or FeatureArguments(), encoder.config)
    num_processes, process_index = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    is_main = process_index == 0
    if device is not None or accelerator is not None:
        model.to(device or accelerator.device)
    batch_size = arguments.per_device_eval_batch_size
    loader = BatchLoader(
        range(len(dataset)),
        batch_sampler=distributed_batches(len(dataset), batch_size, num_processes, process_index),
        limit=arguments.dataloader_timeout,
        num_workers=arguments.dataloader_num_workers,
        # The workers read: the collate function is the one function of a loader that sees a batch as a whole.
        collate_fn=partial(
            read_batch,
            dataset=dataset,
            processor=processor,
            pixel_format=PixelFormat.of_model(encoder.config, processor),
        ),
        pin_memory=encoder.device.type == "cuda",
        # A loader draws a seed for its workers, by default from the global generator.
        generator=torch.Generator(),
    )

    features, num_read = None, 0
    readable = torch.zeros(len(dataset), dtype=torch.bool)
    unreadable: list[tuple[int, str]] = []
    with (
        worker_deaths(),
        evaluation_mode(encoder),
        fast_products(encoder),
        torch.no_grad(),
        bar_of_images(len(dataset), "features", shown=progress and is_main) as bar,
    ):
        for pixel_values, is_readable, batch_unreadable in loader:
            unreadable += batch_unreadable
            pooled = _pooled_features(encoder, pixel_values, arguments)
            is_readable = is_readable.to(encoder.device)
            if num_processes > 1:
                pooled, is_readable = accelerator.gather((pooled, is_readable))
            # What was added to give every process the same number of images stands at the end.
            rows = slice(num_read, min(num_read + len(pooled), len(dataset)))
            readable[rows] = is_readable[: rows.stop - rows.start].bool().cpu()
            if is_main:
                if features is None:
                    features = torch.empty(len(dataset), pooled.shape[1])
                features[rows] = pooled[: rows.stop - rows.start].cpu()
            bar.update(rows.stop - rows.start)
            num_read = rows.stop

    if num_processes > 1:
        unreadable = gather_object(unreadable)
    if not is_main:
        return None
    if features is None:  # the dataset has no rows
        features = torch.empty(0, encoder.config.hidden_size * (2 if arguments.pooling == "token_mean" else 1))
    return Features(
        features=features if readable.all() else _moved_together(features, readable),
        labels=labels_of(dataset)[readable] if "label" in dataset.column_names else None,
        # The full name takes another look at the row, which the many readable images can do without.
        skipped=[(image_name(dataset, index), reason) for index, reason in sorted(dict(unreadable).items())],
        rows=readable.nonzero()[:, 0],
    )


@contextmanager
def evaluation_mode(*networks: torch.nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode; afterwards every module is in the mode that it had, and FSDP modules are
    sharded.

    A forward pass without a backward pass leaves the outermost weights of a sharded network gathered.

    Args:
        networks (`torch.nn.Module`): Any number of them.
    """
    training_flags = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in training_flags:
            module.training = training
        for network in networks:
            reshard(network)


def distributed_batches(num_images: int, batch_size: int, num_processes: int, process_index: int) -> list[list[int]]:
    """
    Batches of indices of one process. Every process has the same number of batches, of the same sizes.

    The n-th batches of all processes together hold consecutive indices; after the last index they start again at 0.
    What is gathered batch by batch is therefore in the images' order, with the surplus at its end.

    Args:
        num_images (`int`): Images to share out.
        batch_size (`int`): Images at a time of one process, at most.
        num_processes (`int`): Number of processes.
        process_index (`int`): Which of them this is.
    """
    per_process = math.ceil(num_images / num_processes)
    batches = []
    for start in range(0, per_process, batch_size):
        size = min(batch_size, per_process - start)
        first = start * num_processes + process_index * size
        batches.append([index % num_images for index in range(first, first + size)])
    return batches


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a model with heads; of an encoder, itself. That of DINOv3 calls its blocks alone its base."""
    base = model.base_model
    if not isinstance(base, PreTrainedModel):  # timm's own
        return model
    return model if next(iter(inspect.signature(base.forward).parameters)) == "hidden_states" else base


def _pooled_features(
    encoder: PreTrainedModel, pixel_values: torch.Tensor, arguments: FeatureArguments
) -> torch.Tensor:
    config = encoder.config
    pixel_values = pixel_values.to(encoder.device, encoder.dtype, non_blocking=True)
    output = encoder(pixel_values=pixel_values, output_hidden_states=arguments.layer != -1)
    tokens = output.last_hidden_state if arguments.layer == -1 else output.hidden_states[arguments.layer]
    if tokens.ndim != 3:
        raise SiTError(
            f"{config.model_type} gives features of shape {tuple(tokens.shape)}, not (batch, tokens, hidden_size)",
            argument="model_name_or_path",
        )
    # YOLOS has its detection tokens behind the patches.
    tokens = tokens[:, : tokens.shape[1] - getattr(config, "num_detection_tokens", 0)]
    num_front = _num_front_tokens(encoder, pixel_values, tokens)
    if num_front == 0:
        if arguments.pooling != "mean":
            raise SiTError(
                f"{config.model_type} has no token of the whole image",
                argument="pooling",
                remedy="give `pooling=mean`",
            )
        return tokens.float().mean(dim=1)
    # Registers, and DeiT's token of distillation, are of no patch.
    tokens = torch.cat([tokens[:, :1], tokens[:, num_front:]], dim=1)
    return pool(tokens.float(), arguments.pooling)


def _num_front_tokens(encoder: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor) -> int:
    """How many tokens an encoder has in front of those of the patches; of one in stages, which merges patches, 0."""
    timm_model = getattr(encoder, "timm_model", None)
    if timm_model is not None:
        has_token = getattr(timm_model, "cls_token", None) is not None  # some have it and count nothing
        return getattr(timm_model, "num_prefix_tokens", int(has_token))
    patch = getattr(encoder.config, "patch_size", None)
    if patch is None:
        return 1 + getattr(encoder.config, "num_register_tokens", 0)
    height, width = patch if isinstance(patch, tuple | list) else (patch, patch)
    num_patches = (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
    return max(0, tokens.shape[1] - num_patches)


def _moved_together(features: torch.Tensor, readable: torch.Tensor, chunk_size: int = 65536) -> torch.Tensor:
    """The rows that are readable, moved to the front of the same memory: a copy would take as much again."""
    rows = readable.nonzero()[:, 0]
    for start in range(0, len(rows), chunk_size):
        chunk = rows[start : start + chunk_size]
        features[start : start + len(chunk)] = features[chunk]
    return features[: len(rows)]


def read_batch(
    indices: list[int],
    dataset: datasets.Dataset,
    processor: BaseImageProcessor,
    pixel_format: PixelFormat | int,
    **settings,
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, str]]]:
    """
    Read and process some images. A gray image takes the place of one that cannot be read, because every process must
    go on with the same number of images.

    Args:
        indices (`list[int]`): Rows of the dataset.
        dataset (`datasets.Dataset`): Images in the column `image`, `datasets.Image(decode=False)`.
        processor (`BaseImageProcessor`): Makes `pixel_values` of them.
        pixel_format ([`PixelFormat`] or `int`): What the images are decoded to.
        settings: More arguments of the processor, such as `do_corrupt=False`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, list[tuple[int, str]]]`: `pixel_values`; `(num_images,)`, uint8, 1 for each
        image that can be read; index and reason of each that cannot.
    """
    pixel_format = PixelFormat.of(pixel_format)
    images, readable, unreadable = [], [], []
    for index in indices:
        name = str(index)
        try:
            images.append(decode_image(dataset[index]["image"], pixel_format, name=name))
            readable.append(1)
        except UnreadableImage as problem:
            images.append(pixel_format.blank())
            readable.append(0)
            unreadable.append((index, str(problem).removeprefix(f"{name}: ")))
    pixel_values = processor(images=images, return_tensors="pt", **settings)["pixel_values"]
    return pixel_values, torch.tensor(readable, dtype=torch.uint8), unreadable
