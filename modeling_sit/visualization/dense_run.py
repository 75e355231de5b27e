"""Figures of what models with the head of a dense task find, from arguments to files."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_sit.data.decoding import Image, UnreadableImage
from modeling_sit.data.dense.loading import DenseDataset
from modeling_sit.data.image_datasets import TRAIN_SPLITS, VALIDATION_SPLITS
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.dense_models import DenseModel, Output, load_dense_model, match_labels
from modeling_sit.evaluation.dense_predictions import Found, FoundObjects, ReadImage, predict
from modeling_sit.evaluation.dense_protocols import true_pixels
from modeling_sit.evaluation.dense_run import choose_split, open_for_output
from modeling_sit.evaluation.features import evaluation_mode
from modeling_sit.image_modes import PixelFormat, as_shown
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.arguments import (
    NUM_DENSE_IMAGES,
    DenseImagesArguments,
    DetectionsArguments,
    FigureArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.detections import ImageWithObjects, ShownObjects, detections_figure
from modeling_sit.visualization.saving import Visualization, check_writable, finish
from modeling_sit.visualization.segmentation import ImageWithPixels, segmentation_figure
from modeling_sit.visualization.selection import (
    choose_split as split_to_show,
)
from modeling_sit.visualization.selection import (
    file_name,
    image_files,
    read_first,
    read_given_files,
    warn_shortage,
)


@dataclass
class ShownRows:
    """
    The images of a figure.

    Args:
        images (`list`): Decoded.
        captions (`list[str]`): Their names.
        numbers (`list`): Their rows in the split; `None` where nothing is known of them.
        rows (`datasets.Dataset`, *optional*): The split, with objects or masks.
        label_names (`list[str]`, *optional*): Names of its classes.
    """

    images: list[Image]
    captions: list[str]
    numbers: list[int | None]
    rows: datasets.Dataset | None = None
    label_names: list[str] | None = None


def run_detections(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: DetectionsArguments,
    chosen: DenseImagesArguments,
) -> Visualization:
    """Draw the [`detections_figure`] of a model that finds boxes or masks of objects.

    Raises:
        [`SiTError`]: If an argument is wrong, the model or the images cannot be used, or the file cannot be written.
    """
    dense = _load(figure, chosen)
    dense.require(("masks", "boxes"), "detections", "model_name_or_path")
    shown, notes = read_chosen(dense, "boxes", chosen, figure.seed)
    drawn = draw_detections(dense, shown, arguments.threshold)
    return finish(drawn, figure.output, resolution, notes)


def run_segmentation(
    figure: FigureArguments, resolution: ResolutionArguments, chosen: DenseImagesArguments
) -> Visualization:
    """Draw the [`segmentation_figure`] of a model that finds a class for each pixel.

    Raises:
        [`SiTError`]: As [`run_detections`].
    """
    dense = _load(figure, chosen)
    dense.require(("pixels",), "segmentation", "model_name_or_path")
    shown, notes = read_chosen(dense, "pixels", chosen, figure.seed)
    return finish(draw_segmentation(dense, shown), figure.output, resolution, notes)


def draw_detections(dense: DenseModel, shown: ShownRows, threshold: float = 0.5) -> Figure:
    """The [`detections_figure`] of what a model finds: masks of objects if it gives such, else boxes.

    Args:
        dense ([`DenseModel`]): The model.
        shown ([`ShownRows`]): The images.
        threshold (`float`, *optional*, defaults to 0.5): Objects with a lower score are not drawn.

    Raises:
        [`SiTError`]: If the model knows none of the dataset's classes.
    """
    output: Output = "masks" if "masks" in dense.outputs else "boxes"
    names = _names_of(dense, shown.label_names)
    images = [
        ImageWithObjects(
            as_shown(image),
            caption,
            _found_objects(getattr(found, output), names),
            None if number is None else _true_objects(shown.rows[number], shown.label_names),
        )
        for image, caption, number, found in zip(
            shown.images, shown.captions, shown.numbers, find(dense, shown.images, output), strict=True
        )
    ]
    return detections_figure(images, shown.label_names or list(dense.id2label.values()), threshold)


def draw_segmentation(dense: DenseModel, shown: ShownRows) -> Figure:
    """The [`segmentation_figure`] of what a model finds.

    Args:
        dense ([`DenseModel`]): The model.
        shown ([`ShownRows`]): The images.

    Raises:
        [`SiTError`]: If the model knows none of the dataset's classes, or a label map cannot be read.
    """
    names = _names_of(dense, shown.label_names)
    # The dataset's classes, then those that the model alone has.
    label_names = list(dict.fromkeys([*(shown.label_names or ()), *names.values()]))
    indices = np.full(max(names) + 1, -1)
    for number, name in names.items():
        indices[number] = label_names.index(name)
    images = [
        ImageWithPixels(
            as_shown(image),
            caption,
            indices[found.pixels],
            None if number is None else _true_pixels(shown.rows, number, shown.label_names),
        )
        for image, caption, number, found in zip(
            shown.images, shown.captions, shown.numbers, find(dense, shown.images, "pixels"), strict=True
        )
    ]
    return segmentation_figure(images, label_names)


@torch.no_grad()
def find(dense: DenseModel, images: Sequence[Image], output: Output) -> list[Found]:
    """What a model finds in images, one after the other."""
    with evaluation_mode(dense.model):
        return [
            found for image in images for found in predict(dense, [ReadImage.of(dense.processor, image)], (output,))
        ]


def read_chosen(
    dense: DenseModel, output: Output, arguments: DenseImagesArguments, seed: int
) -> tuple[ShownRows, list[str]]:
    """The images to show, and lines for the user: files; or rows of a dataset at random, with what is true of them if the
    dataset has it.

    Raises:
        [`SiTError`]: If there are none, or none can be read.
    """
    if arguments.images:
        split = image_files(arguments.images)
        names = [Path(path).name for path in arguments.images]
        return ShownRows(read_given_files(split, dense.pixel_format), names, [None] * len(names)), []
    dataset, problem = _open(dense, output, arguments)
    if dataset is not None:
        rows, label_names = dataset.read(_choose_split(dataset.splits, arguments)), dataset.label_names
        notes = list(dataset.notes)
    else:
        # Images of which nothing is known.
        try:
            images = load_images(**arguments.for_loading)
        except SiTError:
            raise problem from None
        rows = split_to_show(images, arguments.train_split, arguments.validation_split)
        label_names = None
        notes = [f"without truth: {problem.problem}"]
    shown = choose_shown(rows, label_names, arguments.num_images, seed, dense.pixel_format)
    warn_shortage("num_images", arguments.num_images, NUM_DENSE_IMAGES, len(shown.images))
    return shown, notes


def choose_shown(
    rows: datasets.Dataset, label_names: list[str] | None, count: int, seed: int, pixel_format: PixelFormat
) -> ShownRows:
    """Rows of a split at random that can be read.

    Args:
        rows (`datasets.Dataset`): Column `image`, and `objects` or `label` where classes are named.
        label_names (`list[str]`, *optional*): Names of the classes. Default: nothing is known of the images.
        count (`int`): Number of images, at most.
        seed (`int`): Seed of the choice.
        pixel_format ([`PixelFormat`]): What images are decoded to.

    Raises:
        [`SiTError`]: If none can be read.
    """
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    numbers, images = read_first(rows, order, count, pixel_format)
    captions = [file_name(rows, number) or f"row {number}" for number in numbers]
    if label_names is None:
        return ShownRows(images, captions, [None] * len(numbers))
    return ShownRows(images, captions, numbers, rows, label_names)


def _load(figure: FigureArguments, chosen: DenseImagesArguments) -> DenseModel:
    check_writable(figure.output, chosen.dataset)
    for name in ("network", "num_attention_heads"):
        if getattr(figure, name) is not None:
            raise SiTError("is for a file of weights, which has no head of such a task", argument=name)
    device = choose_device(figure.device)
    dense = load_dense_model(figure.model_name_or_path)
    chosen.set_intensity_range(dense.processor, dense.model.config)
    dense.model.to(device)
    return dense


def _open(
    dense: DenseModel, output: Output, arguments: DenseImagesArguments
) -> tuple[DenseDataset | None, SiTError | None]:
    try:
        return open_for_output(output, dense, arguments), None
    except SiTError as problem:
        if arguments.label_column is not None:
            raise
        return None, problem


def _choose_split(splits: Sequence[str], arguments: DenseImagesArguments) -> str:
    if arguments.train_split is not None and arguments.validation_split is not None:
        raise SiTError("only one split is shown", argument="train_split", remedy="give this or `validation_split`")
    with argument_names(validation_split="train_split") if arguments.train_split is not None else nullcontext():
        return choose_split(
            splits, arguments.train_split or arguments.validation_split, (*VALIDATION_SPLITS, *TRAIN_SPLITS)
        )


def _names_of(dense: DenseModel, label_names: list[str] | None) -> dict[int, str]:
    """What a figure calls each class of a model: as the dataset does, if it has it."""
    names = dense.id2label
    if label_names is None:
        return names
    indices = match_labels(names, label_names)
    return {number: label_names[indices[number]] if indices[number] >= 0 else name for number, name in names.items()}


def _found_objects(found: FoundObjects, names: dict[int, str]) -> ShownObjects:
    return ShownObjects(
        [names.get(label, str(label)) for label in found.labels.tolist()],
        found.boxes,
        found.masks,
        found.scores.tolist(),
    )


def _true_pixels(rows: datasets.Dataset, number: int, label_names: list[str]) -> np.ndarray:
    try:
        return true_pixels(rows, number, label_names)
    except UnreadableImage as problem:
        raise SiTError(str(problem), argument="dataset") from problem


def _true_objects(row: dict, label_names: list[str]) -> ShownObjects:
    objects = row["objects"]
    boxes = np.array(objects["bbox"], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = objects["segmentation"]
    return ShownObjects(
        [label_names[category] for category in objects["category"]],
        boxes,
        masks if all(mask is not None for mask in masks) else None,
        is_crowd=[bool(crowd) for crowd in objects["iscrowd"]],
    )
