"""Classifiers as they are: what a checkpoint with the head of a classifier says of images, and how often it is right."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedConfig, PreTrainedModel

from modeling_sit.data.labeled import is_labeled, labels_of
from modeling_sit.evaluation.feature_arguments import BATCH_SIZE
from modeling_sit.evaluation.features import evaluation_mode, read_batch
from modeling_sit.evaluation.metric_results import primary_metric
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.runtime.errors import SiTError

ARCHITECTURE = "ForImageClassification"


def load_classifier(model_name_or_path: str) -> PreTrainedModel | None:
    """
    Load a checkpoint with the head of a classifier.

    Args:
        model_name_or_path (`str`): A folder of `save_pretrained`, the id of a model on the Hub, or a file of weights.

    Returns:
        `PreTrainedModel`: In evaluation mode, on the CPU, in float32; `None` if the checkpoint has no such head.

    Raises:
        [`SiTError`]: If it has one, and cannot be loaded.
    """
    # A file of weights has no head of a task.
    config = {} if Path(model_name_or_path).is_file() else PreTrainedConfig.get_config_dict(model_name_or_path)[0]
    if not (config.get("architectures") or [""])[0].endswith(ARCHITECTURE):
        return None
    loaded = load_checkpoint(model_name_or_path, AutoModelForImageClassification)
    return None if loaded.missing_keys else loaded.model


def measure_classifier(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    split: datasets.Dataset,
    label_names: Sequence[str],
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
) -> float:
    """
    How often a classifier is right. Its classes and those of the images are matched by their names.

    Args:
        model (`PreTrainedModel`): The classifier; moved to `device`.
        processor (`BaseImageProcessor`): Its image processor.
        split (`datasets.Dataset`): Readable images, with labels as [`~data.image_datasets.ImageDatasets`] has them. Those
            without a label do not count.
        label_names (sequence of `str`): Names of the classes of the images.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where it computes.
        batch_size (`int`, *optional*, defaults to 64): Images at a time.

    Returns:
        `float`: Accuracy among all classes of the classifier; where an image may have several classes, the mean average
        precision of those of the images. In [0, 1].

    Raises:
        [`SiTError`]: If the classifier does not know one of the classes.
    """
    places = {str(name): int(number) for number, name in model.config.id2label.items()}
    unknown = [name for name in label_names if name not in places]
    if unknown:
        raise SiTError(f"the classifier does not know the class {unknown[0]}, only {len(places):,} others")
    labels = labels_of(split)
    rows = is_labeled(labels).nonzero()[:, 0].tolist()
    pixel_format, logits = PixelFormat.of_model(model.config, processor), []
    with evaluation_mode(model.to(device)), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            pixel_values, *_ = read_batch(rows[start : start + batch_size], split, processor, pixel_format)
            logits.append(model(pixel_values=pixel_values.to(device)).logits.float().cpu())
    scores, own = torch.cat(logits), torch.tensor([places[name] for name in label_names])
    if labels.ndim == 2:
        return primary_metric(scores[:, own], labels[rows])
    return primary_metric(scores, own[labels[rows]])
