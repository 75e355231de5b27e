"""Models as figures need them: their names, their features, and the one that reconstructs."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTForPreTraining
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.evaluation.features import Features, frozen_features
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.runtime.errors import SiTError

RANDOM = "random"
UNTRAINED = "before training (random weights)"


def title_of(model_name_or_path: str) -> str:
    """What a figure calls a model."""
    return Path(model_name_or_path).name or model_name_or_path


def titles_of(models: Sequence[str]) -> list[str]:
    """What a figure calls several models, different ones.

    Args:
        models (sequence of `str`): Different folders, Hub ids or files of weights, or `random`. With `random` and one
            other, that one is called `after training`.

    Returns:
        `list[str]`: Names, with as many of the folders above as tell them apart.
    """
    if len(models) == 2 and models[0] == RANDOM:
        return [UNTRAINED, "after training"]
    titles = [UNTRAINED if model == RANDOM else title_of(model) for model in models]
    for title in {title for title in titles if titles.count(title) > 1}:
        alike = [number for number, other in enumerate(titles) if other == title]
        parts = [Path(models[number]).parts for number in alike]
        depth = next(
            depth for depth in range(2, 1 + max(map(len, parts))) if len({p[-depth:] for p in parts}) == len(parts)
        )
        for number, part in zip(alike, parts, strict=True):
            titles[number] = str(Path(*part[-depth:]))
    return titles


def features_of(
    model: PreTrainedModel,
    split: datasets.Dataset,
    processor: BaseImageProcessor,
    arguments: FeatureArguments,
    device: torch.device,
) -> Features:
    """The [`frozen_features`] of a split, without its labels: they may be missing."""
    return frozen_features(model, split.select_columns("image"), processor, arguments, device=device)


def load_reconstructing_model(
    model_name_or_path: str, network: str | None = None, num_attention_heads: int | None = None
) -> tuple[SiTForPreTraining, BaseImageProcessor]:
    """
    Load a pretrained SiT with its decoder, and its image processor.

    Args:
        model_name_or_path, network, num_attention_heads: As of [`~interop.load.load_checkpoint`].

    Returns:
        `tuple[SiTForPreTraining, BaseImageProcessor]`: The model in evaluation mode, on the CPU, in float32, and the
        image processor.

    Raises:
        [`SiTError`]: If there is no such model, or it does not reconstruct images.
    """
    loaded = load_checkpoint(
        model_name_or_path, SiTForPreTraining, network=network, num_attention_heads=num_attention_heads
    )
    missing = [name for name in loaded.missing_keys if name.startswith("decoder.")]
    reason = f"it has no {missing[0]}" if missing else "it was pretrained with reconstruction_weight=0"
    if missing or loaded.model.config.reconstruction_weight == 0:
        raise SiTError(
            f"{model_name_or_path} reconstructs nothing: {reason}",
            argument="model_name_or_path",
            remedy="give a SiT that was pretrained with reconstruction, and not fine-tuned",
        )
    loaded.log_notes()
    return loaded.model, loaded.require_processor()
