"""Features of a frozen encoder, the ground of every protocol here."""

import math
from dataclasses import dataclass
from functools import partial

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.labeled import labels_of
from modeling_sit.data.sources import image_name
from modeling_sit.image_modes import MODES
from modeling_sit.modeling_sit import pool

POOLINGS = ("token", "mean", "token_mean")


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
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    skipped: list[tuple[str, str]]


def extract_features(
    model: PreTrainedModel,
    dataset: datasets.Dataset,
    processor: BaseImageProcessor,
    *,
    batch_size: int = 64,
    pooling: str = "token",
    layer: int = -1,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Features | None:
    """
    Features of every image of a dataset, from a frozen encoder, each read once.

    With an `accelerator` every process must call this; they share out the images batch by batch, and the main process
    alone keeps the features: `num_images * hidden_size * 4` bytes. The others hold a batch at a time.

    Args:
        model (`PreTrainedModel`):
            The encoder, or a model with heads on it, of which the encoder alone is used. Its `last_hidden_state` has one
            token in front of the patches' (and register tokens, if its config counts them). Run in evaluation mode and
            then put back as it was, but for `device`.
        dataset (`datasets.Dataset`):
            Images in the column `image`, `datasets.Image(decode=False)`, and labels, if any, in the column `label`.
        processor (`BaseImageProcessor`):
            Image processor that makes the model's `pixel_values`.
        batch_size (`int`, *optional*, defaults to 64):
            Images of each process at a time.
        pooling (`str`, *optional*, defaults to `"token"`):
            What stands for the image: the `"token"` in front, the `"mean"` of the patches' tokens, or both side by side
            (`"token_mean"`).
        layer (`int`, *optional*, defaults to -1):
            Whose output the tokens are: -1 the encoder's, after its last norm; 0 the embeddings', and from 1 to
            `num_hidden_layers` that block's, not normed. Lower ones than -1 count back from the last block: -2 is the one
            before it.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and process images; 0 does it in this one.
        device (`torch.device` or `str`, *optional*):
            Device to move the model to. Default: the accelerator's, or where the model is.
        accelerator (`Accelerator`, *optional*):
            Knows the processes that share the work. Default: this one does it alone.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar with images per second on stderr, in the main process.

    Returns:
        [`Features`]: The features, the labels and what was skipped. `None` in all processes but the main one.

    Raises:
        `ValueError`: If `pooling` is none of the three, there is no such layer, `batch_size` is less than 1, the model gives
            no tokens, or no image could be read.
    """
    encoder = model.base_model
    check_features_asked_for(encoder.config, pooling, layer)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    num_processes, process_index = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    is_main = process_index == 0
    if device is not None or accelerator is not None:
        model.to(device or accelerator.device)
    loader = DataLoader(
        range(len(dataset)),
        batch_sampler=distributed_batches(len(dataset), batch_size, num_processes, process_index),
        num_workers=num_workers,
        # Reading is left to the workers by way of the one function of a loader that sees a batch as a whole.
        collate_fn=partial(
            _read_batch, dataset=dataset, processor=processor, num_channels=encoder.config.num_channels
        ),
        pin_memory=encoder.device.type == "cuda",
        # A loader draws a seed for its workers, by default from the global generator.
        generator=torch.Generator(),
    )

    features, num_read = None, 0
    readable = torch.zeros(len(dataset), dtype=torch.bool)
    unreadable: list[tuple[int, str]] = []
    training_flags = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with tqdm(total=len(dataset), desc="features", unit=" images", disable=not (progress and is_main)) as bar:
            for pixel_values, is_readable, batch_unreadable in loader:
                unreadable += batch_unreadable
                with torch.no_grad():
                    pixel_values = pixel_values.to(encoder.device, encoder.dtype, non_blocking=True)
                    output = encoder(pixel_values=pixel_values, output_hidden_states=layer != -1)
                    tokens = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
                    pooled = _pool_tokens(tokens.float(), encoder.config, pooling)
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
    finally:
        for module, training in training_flags:
            module.training = training

    if num_processes > 1:
        unreadable = gather_object(unreadable)
    # The full name takes another look at the row, which the many readable images can do without.
    skipped = [(image_name(dataset, index), reason) for index, reason in sorted(dict(unreadable).items())]
    if not readable.any():
        first = "".join(f"; the first, {name}: {reason}" for name, reason in skipped[:1])
        raise ValueError(f"none of {len(dataset)} images could be read{first}")
    if not is_main:
        return None
    return Features(
        features=features if readable.all() else _moved_together(features, readable),
        labels=labels_of(dataset)[readable] if "label" in dataset.column_names else None,
        skipped=skipped,
    )


def check_features_asked_for(config: PreTrainedConfig, pooling: str, layer: int) -> None:
    """Whether an encoder of this config has such features.

    Raises:
        `ValueError`: If not, with what there is.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    num_layers = getattr(config, "num_hidden_layers", None)
    if num_layers is not None and not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(
            f"layer must be -1 (after the last norm), from 0 (the embeddings) to {num_layers} (the last block), or from -2 "
            f"back to {-num_layers - 1}, not {layer}"
        )


def distributed_batches(num_images: int, batch_size: int, num_processes: int, process_index: int) -> list[list[int]]:
    """
    Batches of indices of one process, so that every process has as many, of the same sizes.

    The batches of the same number, one process after the other, hold consecutive indices; past the last they start again at
    0. So what is gathered batch by batch has the images' order, with what is too much at its end.

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


def _pool_tokens(last_hidden_state: torch.Tensor, config: PreTrainedConfig, pooling: str) -> torch.Tensor:
    if last_hidden_state.ndim != 3:
        raise ValueError(
            f"{config.model_type} gives features of shape {tuple(last_hidden_state.shape)}, not (batch, tokens, hidden_size)"
        )
    num_registers = getattr(config, "num_register_tokens", 0)
    tokens = torch.cat([last_hidden_state[:, :1], last_hidden_state[:, 1 + num_registers :]], dim=1)
    return pool(tokens, pooling)


def _moved_together(features: torch.Tensor, readable: torch.Tensor, chunk_size: int = 65536) -> torch.Tensor:
    """The rows that are readable, moved to the front of the same memory: a copy would take as much again."""
    rows = readable.nonzero()[:, 0]
    for start in range(0, len(rows), chunk_size):
        chunk = rows[start : start + chunk_size]
        features[start : start + len(chunk)] = features[chunk]
    return features[: len(rows)]


def _read_batch(
    indices: list[int], dataset: datasets.Dataset, processor: BaseImageProcessor, num_channels: int
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, str]]]:
    """`pixel_values` of images, 1 for each that can be read, and index and reason of those that cannot: grey takes their
    place, for all processes must go on with as many images."""
    images, readable, unreadable = [], [], []
    for index in indices:
        name = str(index)
        try:
            images.append(decode_image(dataset[index]["image"], num_channels=num_channels, name=name))
            readable.append(1)
        except UnreadableImage as problem:
            images.append(Image.new(MODES[num_channels], (32, 32), "grey"))
            readable.append(0)
            unreadable.append((index, str(problem).removeprefix(f"{name}: ")))
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixel_values, torch.tensor(readable, dtype=torch.uint8), unreadable
