"""Figures from arguments to files: load the model and the images, draw, save."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from matplotlib.figure import Figure
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.decoding import Image
from modeling_sit.data.description import tell
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.label_encoding import join
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.evaluation.features import Features, frozen_features
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.arguments import (
    MAX_IMAGES_OF_A_GALLERY,
    MAX_IMAGES_OF_A_MAP,
    NUM_IMAGES,
    NUM_QUERIES,
    AttentionArguments,
    ChosenImagesArguments,
    EmbeddingsArguments,
    FigureArguments,
    NeighboursArguments,
    ReconstructionArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.attention import draw_attention
from modeling_sit.visualization.embeddings import EmbeddingMaps, map_embeddings
from modeling_sit.visualization.hover_page import hover_page
from modeling_sit.visualization.models import load_reconstructing_model
from modeling_sit.visualization.neighbours import EmbeddedImages, draw_neighbours
from modeling_sit.visualization.reconstructions import draw_reconstructions
from modeling_sit.visualization.selection import (
    choose_rows,
    choose_split,
    data_uri,
    file_name,
    image_files,
    label_sets,
    label_text,
    order_of_choice,
    read_first,
    read_given_files,
    short_name,
    thumbnail,
    warn_shortage,
)

THUMBNAIL_SIZE = 96
RANDOM = "random"
REMEDY = "give another place"


@dataclass(frozen=True)
class SavedFigure:
    """
    What a call wrote.

    Args:
        paths (`list[Path]`): The files.
        notes (`list[str]`, *optional*): Lines to show to the user.
    """

    paths: list[Path]
    notes: list[str] = field(default_factory=list)


def run_reconstructions(
    figure: FigureArguments, arguments: ReconstructionArguments, chosen: ChosenImagesArguments
) -> SavedFigure:
    """Save the sheet of [`draw_reconstructions`].

    Raises:
        [`SiTError`]: If an argument is wrong, the model or the images cannot be used, or the file cannot be written.
    """
    check_writable(figure.output, chosen.dataset)
    device = choose_device(figure.device)
    model, processor = load_reconstructing_model(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    chosen.set_intensity_range(processor, model.config)
    images, captions = read_chosen(chosen, figure.seed, PixelFormat.of_model(model.config, processor))
    sheet = draw_reconstructions(
        model.to(device),
        processor,
        images,
        captions,
        corruption=arguments.corruption,
        seed=figure.seed,
        image_size=arguments.image_size,
    )
    return SavedFigure([save(figure.output, sheet.save)])


def run_attention(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: AttentionArguments,
    chosen: ChosenImagesArguments,
) -> SavedFigure:
    """Save the figure of [`draw_attention`].

    Raises:
        [`SiTError`]: As [`run_reconstructions`].
    """
    check_writable(figure.output, chosen.dataset)
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    chosen.set_intensity_range(processor, model.config)
    images, captions = read_chosen(chosen, figure.seed, PixelFormat.of_model(model.config, processor))
    drawn = draw_attention(model.to(device), processor, images, captions, arguments.layer)
    return SavedFigure([save_figure(figure.output, resolution, drawn)])


def run_embeddings(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: EmbeddingsArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> SavedFigure:
    """Save the figure, and the page, of [`map_embeddings`].

    Raises:
        [`SiTError`]: As [`run_reconstructions`].
    """
    for argument, path in (("output", figure.output), ("html", arguments.html)):
        if path is not None:
            check_writable(path, dataset_arguments.dataset, argument)
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    settle_features(feature_arguments, model.config)  # each of two models has its own pooling
    dataset_arguments.set_intensity_range(processor, model.config)
    compared = load_compared(arguments.compare_with, model, processor, figure)
    images = load_images(**dataset_arguments.for_loading)
    tell(images, intensity_range=getattr(processor, "intensity_range", None))
    split = choose_split(images, dataset_arguments.train_split, dataset_arguments.validation_split)
    color_by, notes = choose_colors(arguments, images)
    warn_shortage("max_images", arguments.max_images, MAX_IMAGES_OF_A_MAP, len(split))
    split = split.select(choose_rows(len(split), arguments.max_images, figure.seed))

    found = features_of(model, split, processor, feature_arguments, device)
    shown = split.select(found.rows.tolist())
    labels = label_sets(shown, images.label_names)
    asked = [name for name in ("color_by", "color_label") if getattr(arguments, name) is not None]
    if color_by == "label" and asked and all(names is None for names in labels):
        raise SiTError(f"none of the images of split {split.split} has a label", argument=asked[0])

    panels = [(title_of(figure.model_name_or_path, arguments.compare_with), found.features)]
    if compared is not None:
        other, other_processor, title = compared
        others = features_of(other, shown, other_processor, feature_arguments, device)
        if len(others.rows) != len(found.rows):
            raise SiTError(f"{arguments.compare_with} cannot read all of the images", argument="compare_with")
        panels.insert(0, (title, others.features))
    embedded = map_embeddings(
        panels,
        labels,
        images.label_names,
        color_by=color_by,
        color_label=arguments.color_label,
        num_clusters=arguments.num_clusters,
        method=arguments.method,
        seed=figure.seed,
    )
    notes += [": ".join(filter(None, (each.title, each.note))) for each in embedded.maps]
    paths = [save_figure(figure.output, resolution, embedded.figure())]
    if arguments.html is not None:
        page = page_of(
            embedded,
            shown,
            labels,
            images.name,
            title_of(figure.model_name_or_path),
            PixelFormat.of_model(model.config, processor),
        )
        paths.append(save(arguments.html, lambda path: path.write_text(page, encoding="utf-8")))
    return SavedFigure(paths, notes)


def run_neighbours(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: NeighboursArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> SavedFigure:
    """Save the figure of [`draw_neighbours`].

    Raises:
        [`SiTError`]: As [`run_reconstructions`].
    """
    check_writable(figure.output, dataset_arguments.dataset)
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    settle_features(feature_arguments, model.config)
    dataset_arguments.set_intensity_range(processor, model.config)
    pixel_format = PixelFormat.of_model(model.config, processor)
    images = load_images(**dataset_arguments.for_loading)
    tell(images, intensity_range=pixel_format.intensity_range)
    gallery = images.train if images.train is not None else images.validation
    of_gallery = arguments.images is None and (images.validation is None or images.validation.split == gallery.split)
    warn_shortage("max_images", arguments.max_images, MAX_IMAGES_OF_A_GALLERY, len(gallery))
    gallery = gallery.select(choose_rows(len(gallery), arguments.max_images, figure.seed))

    if arguments.images is not None:
        queries = image_files(arguments.images)
        read_given_files(queries, pixel_format)
        chosen = list(range(len(queries)))
    else:
        queries = gallery if of_gallery else images.validation
        order = order_of_choice(label_sets(queries, images.label_names), figure.seed)
        chosen, _ = read_first(queries, order, arguments.num_queries, pixel_format)
        warn_shortage("num_queries", arguments.num_queries, NUM_QUERIES, len(chosen))

    def embedded(split: datasets.Dataset) -> tuple[EmbeddedImages, list[int]]:
        found = features_of(model, split, processor, feature_arguments, device)
        readable = split.select(found.rows.tolist())
        image = partial(thumbnail, readable, size=THUMBNAIL_SIZE * 2, pixel_format=pixel_format)
        return EmbeddedImages(found.features, label_sets(readable, images.label_names), image), found.rows.tolist()

    embedded_queries, _ = embedded(queries.select(chosen))
    embedded_gallery, rows = embedded(gallery)
    own_rows = [rows.index(row) for row in chosen] if of_gallery else None
    drawn = draw_neighbours(embedded_queries, embedded_gallery, arguments.num_neighbours, own_rows)
    return SavedFigure([save_figure(figure.output, resolution, drawn)])


def features_of(
    model: PreTrainedModel,
    split: datasets.Dataset,
    processor: BaseImageProcessor,
    arguments: FeatureArguments,
    device: torch.device,
) -> Features:
    """The [`frozen_features`] of a split, without its labels: they may be missing."""
    return frozen_features(model, split.select_columns("image"), processor, arguments, device=device)


def choose_colors(
    arguments: EmbeddingsArguments, images: ImageDatasets
) -> tuple[Literal["label", "cluster"], list[str]]:
    """What the colors of a map mean, and notes for the user.

    Raises:
        [`SiTError`]: If it is the label, and there is none, or there are several and none is chosen.
    """
    names = images.label_names
    if arguments.color_by is None and arguments.color_label is None:
        note = (
            "images may have several labels, so colors mean clusters; `color_label` shows which images have one label"
        )
        notes = [note] if images.multi_label else []
        return ("cluster" if names is None or images.multi_label else "label"), notes
    if arguments.color_by == "cluster":
        return "cluster", []
    argument = "color_by" if arguments.color_label is None else "color_label"
    if names is None:
        raise SiTError(
            f"{images.name} has no labels", argument=argument, remedy="name their column with `label_column`"
        )
    known = join(names if len(names) <= 20 else [*names[:20], "..."])
    if arguments.color_label is None and images.multi_label:
        raise SiTError(
            f"images of {images.name} may have several labels",
            argument=argument,
            remedy=f"name one with `color_label`: {known}",
        )
    if arguments.color_label not in (None, *names):
        raise SiTError(f"no label {arguments.color_label!r}, only {known}", argument=argument)
    return "label", []


def page_of(
    embedded: EmbeddingMaps,
    shown: datasets.Dataset,
    labels: list[tuple[str, ...] | None],
    dataset: str,
    model: str,
    pixel_format: PixelFormat,
) -> str:
    """The [`hover_page`] of some maps of the images `shown`, with their thumbnails."""

    def caption(row: int) -> str:
        """The image's file or row, and its labels where the colors mean something else."""
        name, text = short_name(shown, row, dataset), label_text(labels[row])
        return name if text is None or text == embedded.classes[row] else f"{text} ({name})"

    return hover_page(
        embedded.maps,
        embedded.groups,
        embedded.legend_title,
        names=[caption(row) for row in range(len(shown))],
        images=[data_uri(thumbnail(shown, row, THUMBNAIL_SIZE, pixel_format)) for row in range(len(shown))],
        title=f"{len(shown):,} images of {Path(dataset).name or dataset}",
        subtitle=f"Split {shown.split}, features of {model}.",
    )


def load_compared(
    compare_with: str | None, model: PreTrainedModel, processor: BaseImageProcessor, figure: FigureArguments
) -> tuple[PreTrainedModel, BaseImageProcessor, str] | None:
    """The encoder to compare with, its image processor and its title; `None` if there is none."""
    if compare_with is None:
        return None
    if compare_with == RANDOM:
        encoder = random_encoder(model, figure.model_name_or_path, figure.seed)
        return encoder, processor, "before training (random weights)"
    with argument_names(model_name_or_path="compare_with"):
        return *load_encoder(compare_with), title_of(compare_with)


def title_of(model_name_or_path: str, compared_with: str | None = None) -> str:
    """What a figure calls a model."""
    return "after training" if compared_with == RANDOM else Path(model_name_or_path).name or model_name_or_path


def read_chosen(
    arguments: ChosenImagesArguments, seed: int, pixel_format: PixelFormat
) -> tuple[list[Image], list[str]]:
    """The images to show, and a caption of each: the class, or the name of the file."""
    if arguments.images:
        split = image_files(arguments.images)
        return read_given_files(split, pixel_format), [Path(path).stem for path in arguments.images]
    images = load_images(**arguments.for_loading)
    tell(images, intensity_range=pixel_format.intensity_range)
    split = choose_split(images, arguments.train_split, arguments.validation_split)
    labels = label_sets(split, images.label_names)
    rows, shown = read_first(split, order_of_choice(labels, seed), arguments.num_images, pixel_format)
    warn_shortage("num_images", arguments.num_images, NUM_IMAGES, len(rows))
    if images.label_names is None:
        return shown, [file_name(split, row) for row in rows]
    return shown, [label_text(labels[row]) or "" for row in rows]


def check_writable(output: str, dataset: Any, argument: str = "output") -> None:
    """Check that a file can be written and will not lie in the dataset, before anything is computed for it. Leaves nothing
    behind.

    Raises:
        [`SiTError`]: If it cannot, or will.
    """
    check_outside_dataset(output, dataset, argument)
    path = Path(output)
    if path.is_dir():
        raise SiTError(f"{path} cannot be written: it is a folder", remedy=REMEDY)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with write_errors(path, REMEDY), tempfile.TemporaryFile(dir=folder):
        pass


def save_figure(output: str, resolution: ResolutionArguments, figure: Figure) -> Path:
    return save(output, lambda path: figure.savefig(path, dpi=resolution.dots_per_inch))


def save(output: str, write: Callable[[Path], object]) -> Path:
    """Write a file; it is whole or not there."""
    path = Path(output)
    with write_errors(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as unfinished:
            write(unfinished)
    return path
