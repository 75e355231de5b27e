"""Features of a frozen encoder, the ground of every protocol here."""

from dataclasses import dataclass
from functools import partial

import datasets
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit.data.decoding import UnreadablePicture, read_picture
from modeling_sit.data.sources import picture_name
from modeling_sit.modeling_sit import pool

POOLINGS = ("token", "mean", "token_mean")


@dataclass
class Features:
    """
    Features of the pictures of a data set, in its order, without the pictures that could not be read.

    Args:
        features (`torch.Tensor` of shape `(num_pictures, hidden_size)`, or twice the width for `"token_mean"`):
            One row a picture, float32, on the CPU.
        labels (`torch.Tensor` of shape `(num_pictures,)`, *optional*):
            Labels, int64, where the data set has them.
        skipped (`list[tuple[str, str]]`):
            Name of each picture that could not be read, and the reason.
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
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Features:
    """
    Features of every picture of a data set, from a frozen encoder.

    Args:
        model (`PreTrainedModel`):
            The encoder, or a model with heads on it, of which the encoder alone is used. Its `last_hidden_state` has one
            token in front of the patches' (and register tokens, if its config counts them). Run in evaluation mode and
            then put back as it was, but for `device`.
        dataset (`datasets.Dataset`):
            Pictures in the column `image`, `datasets.Image(decode=False)`, and labels, if any, in the column `label`.
        processor (`BaseImageProcessor`):
            Image processor that makes the model's `pixel_values`.
        batch_size (`int`, *optional*, defaults to 64):
            Pictures a batch.
        pooling (`str`, *optional*, defaults to `"token"`):
            What stands for the picture: the `"token"` in front, the `"mean"` of the patches' tokens, or both side by side
            (`"token_mean"`).
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read and process pictures; 0 does it in this one.
        device (`torch.device` or `str`, *optional*):
            Device to move the model to. Default: where it is.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a bar with pictures per second on stderr.

    Returns:
        [`Features`]: The features, the labels and what was skipped.

    Raises:
        `ValueError`: If `pooling` is none of the three, the model gives no tokens, or no picture could be read.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    encoder = model.base_model
    if device is not None:
        model.to(device)
    loader = DataLoader(
        range(len(dataset)),
        batch_size=batch_size,
        num_workers=num_workers,
        # Reading is left to the workers by way of the one function of a loader that sees a batch as a whole.
        collate_fn=partial(
            _read_batch, dataset=dataset, processor=processor, num_channels=encoder.config.num_channels
        ),
        pin_memory=encoder.device.type == "cuda",
    )

    features, labels, skipped, num_kept = None, [], [], 0
    training_flags = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with tqdm(total=len(dataset), desc="features", unit=" pictures", disable=not progress) as bar:
            for pixel_values, batch_labels, batch_skipped in loader:
                skipped += batch_skipped
                labels += batch_labels
                bar.update(len(batch_labels) + len(batch_skipped))
                if pixel_values is None:
                    continue
                with torch.inference_mode():
                    pixel_values = pixel_values.to(encoder.device, encoder.dtype, non_blocking=True)
                    last_hidden_state = encoder(pixel_values=pixel_values).last_hidden_state.float()
                    pooled = _pool_tokens(last_hidden_state, encoder.config, pooling)
                # Outside inference mode, so that a probe can be trained on the features.
                if features is None:
                    features = torch.empty(len(dataset), pooled.shape[1])
                features[num_kept : num_kept + len(pooled)] = pooled
                num_kept += len(pooled)
    finally:
        for module, training in training_flags:
            module.training = training

    if features is None:
        first = "".join(f"; the first, {name}: {reason}" for name, reason in skipped[:1])
        raise ValueError(f"none of {len(dataset)} pictures could be read{first}")
    return Features(
        features=features[:num_kept],
        labels=torch.tensor(labels) if "label" in dataset.column_names else None,
        skipped=skipped,
    )


def _pool_tokens(last_hidden_state: torch.Tensor, config: PreTrainedConfig, pooling: str) -> torch.Tensor:
    if last_hidden_state.ndim != 3:
        raise ValueError(
            f"{config.model_type} gives features of shape {tuple(last_hidden_state.shape)}, not (batch, tokens, hidden_size)"
        )
    num_registers = getattr(config, "num_register_tokens", 0)
    tokens = torch.cat([last_hidden_state[:, :1], last_hidden_state[:, 1 + num_registers :]], dim=1)
    return pool(tokens, pooling)


def _read_batch(
    indices: list[int], dataset: datasets.Dataset, processor: BaseImageProcessor, num_channels: int
) -> tuple[torch.Tensor | None, list[int | None], list[tuple[str, str]]]:
    """`pixel_values` and labels of the pictures that can be read, name and reason of those that cannot."""
    pictures, labels, skipped = [], [], []
    for index in indices:
        row, name = dataset[index], str(index)
        try:
            pictures.append(read_picture(row["image"], num_channels=num_channels, name=name))
        except UnreadablePicture as problem:
            # The full name takes another look at the row, which the many readable pictures can do without.
            skipped.append((picture_name(dataset, index), str(problem).removeprefix(f"{name}: ")))
        else:
            labels.append(row.get("label"))
    pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"] if pictures else None
    return pixel_values, labels, skipped
