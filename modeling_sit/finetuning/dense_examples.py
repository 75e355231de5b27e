"""The drawing of what a finished model of detection or segmentation finds in a few images, for its card."""

import logging
from pathlib import Path

import datasets
import torch
from matplotlib.figure import Figure

from modeling_sit.data.dense.rows import OBJECTS
from modeling_sit.evaluation.dense_models import load_dense_model
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.dense_run import choose_shown, draw_detections, draw_segmentation

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 3


def draw_examples(
    folder: Path, split: datasets.Dataset, label_names: list[str], device: torch.device, seed: int
) -> Figure | None:
    """Draw a few images with what is true of them and what a model finds.

    Of images with objects only those that have some are drawn: where objects are rare, a few others would show nothing.

    Args:
        folder (`Path`): The model's folder.
        split (`datasets.Dataset`): Rows as of `data.dense.rows`.
        label_names (`list[str]`): Names of the classes.
        device (`torch.device`): Where the model is to run.
        seed (`int`): Seed of the choice of images.

    Returns:
        `Figure`, *optional*: `None` if there is no such image, or none can be read; a warning says why then.
    """
    has_objects = OBJECTS in split.column_names
    if has_objects:
        objects = split.select_columns([OBJECTS])[OBJECTS]
        split = split.select([row for row, each in enumerate(objects) if each["category"]])
    if len(split) == 0:
        return None
    dense = load_dense_model(str(folder))
    dense.model.to(device)
    try:
        shown = choose_shown(split, label_names, NUM_EXAMPLES, seed, dense.pixel_format)
        return draw_detections(dense, shown) if has_objects else draw_segmentation(dense, shown)
    except SiTError as problem:
        logger.warning("the card shows no examples: %s", problem.problem)
        return None
