"""Figures from arguments: load the model and the images, draw, and write the file that is asked for."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.decoding import Image
from modeling_sit.data.description import tell
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.arguments import (
    MAX_IMAGES_OF_A_GALLERY,
    NUM_IMAGES,
    NUM_QUERIES,
    AttentionArguments,
    ChosenImagesArguments,
    FigureArguments,
    NeighboursArguments,
    ReconstructionArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.attention import draw_attention
from modeling_sit.visualization.models import features_of, load_reconstructing_model
from modeling_sit.visualization.neighbours import EmbeddedImages, draw_neighbours
from modeling_sit.visualization.reconstructions import draw_reconstructions, stacked_sheets
from modeling_sit.visualization.saving import Visualization, check_writable, finish
from modeling_sit.visualization.selection import (
    choose_rows,
    choose_split,
    dataset_title,
    file_name,
    image_files,
    label_sets,
    label_text,
    order_of_choice,
    read_first,
    read_given_files,
    thumbnail,
    warn_shortage,
)

THUMBNAIL_SIZE = 192


def run_reconstructions(
    figure: FigureArguments, arguments: ReconstructionArguments, chosen: ChosenImagesArguments
) -> Visualization:
    """Draw the sheet of [`draw_reconstructions`]; of several groups of images with their titles.

    Every group is corrupted as if it were alone, with the same seed.

    Raises:
        [`SiTError`]: If an argument is wrong, the model or the images cannot be used, or the file cannot be written.
    """
    for dataset in (chosen.dataset, *(arguments.other_datasets or ())):
        check_writable(figure.output, dataset)
    device = choose_device(figure.device)
    model, processor = load_reconstructing_model(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    chosen.set_intensity_range(processor, model.config)
    groups = read_groups(arguments, chosen, figure.seed, PixelFormat.of_model(model.config, processor))
    model.to(device)
    sheets = [
        draw_reconstructions(
            model,
            processor,
            group.images,
            group.captions,
            corruption=arguments.corruption,
            seed=figure.seed,
            image_size=arguments.image_size,
        )
        for group in groups
    ]
    if len(sheets) == 1 and arguments.titles is None:
        return finish(sheets[0], figure.output)
    titles = arguments.titles or [group.title for group in groups]
    return finish(stacked_sheets(sheets, titles, arguments.image_size), figure.output)


def run_attention(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: AttentionArguments,
    chosen: ChosenImagesArguments,
) -> Visualization:
    """Draw the figure of [`draw_attention`].

    Raises:
        [`SiTError`]: As [`run_reconstructions`].
    """
    check_writable(figure.output, chosen.dataset)
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    chosen.set_intensity_range(processor, model.config)
    shown = read_chosen(chosen, figure.seed, PixelFormat.of_model(model.config, processor))
    drawn = draw_attention(model.to(device), processor, shown.images, shown.captions, arguments.layer)
    return finish(drawn, figure.output, resolution)


def run_neighbours(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: NeighboursArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> Visualization:
    """Draw the figure of [`draw_neighbours`].

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
    images.refuse_streams()
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
        image = partial(thumbnail, readable, size=THUMBNAIL_SIZE, pixel_format=pixel_format)
        return EmbeddedImages(found.features, label_sets(readable, images.label_names), image), found.rows.tolist()

    embedded_queries, _ = embedded(queries.select(chosen))
    embedded_gallery, rows = embedded(gallery)
    own_rows = [rows.index(row) for row in chosen] if of_gallery else None
    drawn = draw_neighbours(embedded_queries, embedded_gallery, arguments.num_neighbours, own_rows)
    return finish(drawn, figure.output, resolution)


@dataclass(frozen=True)
class ShownImages:
    """
    Images to show together.

    Args:
        title (`str`): Where they come from.
        images (`list`): Decoded.
        captions (`list[str]`): The class of each, or the name of its file.
    """

    title: str
    images: list[Image]
    captions: list[str]


def read_groups(
    arguments: ReconstructionArguments, chosen: ChosenImagesArguments, seed: int, pixel_format: PixelFormat
) -> list[ShownImages]:
    """The images of each split that is asked for, or the chosen ones, and then those of the other datasets.

    Raises:
        [`SiTError`]: If there is no such split or dataset, or none of its images can be read.
    """
    if not arguments.splits:
        groups = [read_chosen(chosen, seed, pixel_format)]
    else:
        if chosen.images or chosen.train_split or chosen.validation_split:
            other = "images" if chosen.images else "train_split" if chosen.train_split else "validation_split"
            raise SiTError(f"goes with `dataset`, and not with `{other}`", argument="splits")
        with argument_names(validation_split="splits"):
            groups = [
                read_chosen(replace(chosen, validation_split=split), seed, pixel_format) for split in arguments.splits
            ]
    with argument_names(dataset="other_datasets", train_split="other_datasets", validation_split="other_datasets"):
        others = [
            ChosenImagesArguments(dataset=name, num_images=chosen.num_images)
            for name in arguments.other_datasets or ()
        ]
        return groups + [read_chosen(other, seed, pixel_format) for other in others]


def read_chosen(arguments: ChosenImagesArguments, seed: int, pixel_format: PixelFormat) -> ShownImages:
    """The images to show.

    Raises:
        [`SiTError`]: If there are no such images, or none can be read.
    """
    if arguments.images:
        split = image_files(arguments.images)
        return ShownImages(
            "files", read_given_files(split, pixel_format), [Path(path).stem for path in arguments.images]
        )
    images = load_images(**arguments.for_loading)
    tell(images, intensity_range=pixel_format.intensity_range)
    split = choose_split(images, arguments.train_split, arguments.validation_split)
    labels = label_sets(split, images.label_names)
    rows, shown = read_first(split, order_of_choice(labels, seed), arguments.num_images, pixel_format)
    warn_shortage("num_images", arguments.num_images, NUM_IMAGES, len(rows))
    if images.label_names is None:
        captions = [file_name(split, row) for row in rows]
    else:
        captions = [label_text(labels[row]) or "" for row in rows]
    return ShownImages(f"{dataset_title(images.name)}, {split.split}", shown, captions)
