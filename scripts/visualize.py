#!/usr/bin/env python
"""Look at what a model has learned.

    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py reconstructions --model_name_or_path M --pictures a.jpg b.jpg --output FILE.png
    python scripts/visualize.py embeddings      --model_name_or_path M --dataset D --output FILE.png \\
        --compare_with random --html FILE.html
    python scripts/visualize.py attention       --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py neighbours      --model_name_or_path M --dataset D --output FILE.png

Pictures are those of the validation split where there is one, else of the training split; `--train_split` or
`--validation_split` names another. The same flags and seed give the same figure. Classes have Okabe and Ito's colours,
which colour-blind readers tell apart, in four shapes.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import transformers
from matplotlib.figure import Figure

import modeling_sit  # noqa: F401  registers SiT with AutoModel and AutoImageProcessor
from modeling_sit.cli.help_text import ExampleHelpFormatter
from modeling_sit.cli.parser import DatasetArguments, RecipeArgumentParser, choose_command
from modeling_sit.data.label_encoding import listed
from modeling_sit.data.sources import Pictures, load_pictures
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.gmml import CORRUPTIONS
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.atomic_files import naming_what_cannot_be_written, replace_file
from modeling_sit.runtime.devices import choose_device
from modeling_sit.runtime.errors import UserError, one_line_errors
from modeling_sit.visualization.attention import attention_figure, attention_maps
from modeling_sit.visualization.embeddings import (
    FeatureMap,
    cluster_features,
    default_num_clusters,
    embedding_figure,
    map_features,
    neighbour_agreement,
)
from modeling_sit.visualization.hover_page import hover_page
from modeling_sit.visualization.models import load_reconstructing_model
from modeling_sit.visualization.neighbours import ShownPicture, nearest_pictures, neighbours_figure
from modeling_sit.visualization.palette import style_groups
from modeling_sit.visualization.reconstructions import preview_sheet, to_uint8
from modeling_sit.visualization.selection import (
    choose_rows,
    choose_split,
    data_uri,
    file_name,
    frozen_features,
    label_sets,
    label_text,
    order_of_choice,
    picture_files,
    read_first,
    read_given_files,
    short_name,
    tell_shortage,
    thumbnail,
)

THUMBNAIL_SIZE = 96
RANDOM = "random"
NUM_PICTURES = 8
MAX_PICTURES_OF_A_MAP = 2000
MAX_PICTURES_OF_A_GALLERY = 20000
NUM_QUERIES = 6


@dataclass
class FigureArguments(WeightsFileArguments):
    """The model, and the figure's file.

    Raises:
        `ValueError`: If the file is of another kind.
    """

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    output: str = field(metadata={"help": "File for the figure, .png or .pdf; replaced if it is there. Required."})
    seed: int = field(default=0, metadata={"help": "Seed of which pictures are shown, and of all that is random."})
    device: str | None = field(default=None, metadata={"help": "cpu or cuda. Default: cuda where there is one."})

    def __post_init__(self):
        if Path(self.output).suffix.lower() not in (".png", ".pdf"):
            raise ValueError(f"--output {self.output}: the name must end in .png or .pdf")


@dataclass
class ResolutionArguments:
    """How fine a PNG is."""

    dots_per_inch: int = field(default=150, metadata={"help": "Pixels an inch of the PNG; print wants 300."})

    def __post_init__(self):
        if not 20 <= self.dots_per_inch <= 1200:
            raise ValueError(f"--dots_per_inch {self.dots_per_inch}: must be from 20 to 1200")


@dataclass
class ChosenPicturesArguments(DatasetArguments):
    """A few pictures: of a data set, or files from anywhere."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Pictures: a folder, a parquet or webdataset tar file or a folder of them, a `save_to_disk` folder, a "
            "Hub id, or the built-in `digits`. This or --pictures is required."
        },
    )
    pictures: list[str] | None = field(
        default=None, metadata={"help": "Picture files to show, from anywhere, in place of a data set."}
    )
    num_pictures: int = field(default=NUM_PICTURES, metadata={"help": "How many pictures of the data set to show."})

    def __post_init__(self):
        if (self.dataset is None) == (not self.pictures):
            raise ValueError("give --dataset or --pictures, and not both")
        if self.num_pictures < 1:
            raise ValueError(f"--num_pictures {self.num_pictures}: must be at least 1")


@dataclass
class ReconstructionArguments:
    """How the pictures are corrupted, and drawn."""

    corruption: Literal[CORRUPTIONS] | None = field(
        default=None, metadata={"help": "How to corrupt the pictures. Default: as in pretraining."}
    )
    picture_size: int = field(
        default=96, metadata={"help": "Pixels a picture has at least on its longer side, by enlarging each pixel."}
    )

    def __post_init__(self):
        if not 1 <= self.picture_size <= 1024:
            raise ValueError(f"--picture_size {self.picture_size}: must be from 1 to 1024")


@dataclass
class AttentionArguments:
    """Which attention is shown."""

    layer: int | None = field(default=None, metadata={"help": "Layer, from 1. Default: the last."})


@dataclass
class EmbeddingsArguments:
    """How the features are mapped and coloured."""

    method: Literal["tsne", "umap", "pca"] = field(
        default="tsne", metadata={"help": "How to bring features down to two dimensions; umap needs umap-learn."}
    )
    compare_with: str | None = field(
        default=None,
        metadata={
            "help": "A second model, drawn to the left: a folder, a Hub id, or `random` for the same model before any "
            "training."
        },
    )
    color_by: Literal["label", "cluster"] | None = field(
        default=None,
        metadata={
            "help": "What the colours stand for. Default: the label where pictures have one each, else clusters."
        },
    )
    color_label: str | None = field(
        default=None,
        metadata={"help": "One label, by its name: colours tell which pictures have it, among others perhaps."},
    )
    num_clusters: int | None = field(
        default=None,
        metadata={
            "help": "Clusters of --color_by cluster (k-means). Default: as many as classes, or else 10, but at most one for "
            "each five pictures."
        },
    )
    max_pictures: int = field(
        default=MAX_PICTURES_OF_A_MAP, metadata={"help": "Pictures on the map; of more, so many are chosen at random."}
    )
    html: str | None = field(
        default=None, metadata={"help": "File for a page, .html, that shows each picture when hovered over."}
    )

    def __post_init__(self):
        if self.max_pictures < 4:
            raise ValueError(f"--max_pictures {self.max_pictures}: must be at least 4")
        if self.num_clusters is not None and self.num_clusters < 2:
            raise ValueError(f"--num_clusters {self.num_clusters}: must be at least 2")
        if self.num_clusters is not None and (self.color_by == "label" or self.color_label is not None):
            raise ValueError("--num_clusters is for --color_by cluster")
        if self.color_label is not None and self.color_by == "cluster":
            raise ValueError("--color_label is for --color_by label")
        if self.html is not None and Path(self.html).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--html {self.html}: the name must end in .html")


@dataclass
class NeighboursArguments:
    """Whose neighbours are shown. They are sought in the training split; where there is no other, queries are of it too."""

    num_neighbours: int = field(default=6, metadata={"help": "Neighbours of each query."})
    num_queries: int = field(
        default=NUM_QUERIES, metadata={"help": "How many pictures of the validation split are queries."}
    )
    pictures: list[str] | None = field(
        default=None, metadata={"help": "Picture files, from anywhere, as queries in place of the data set's."}
    )
    max_pictures: int = field(
        default=MAX_PICTURES_OF_A_GALLERY,
        metadata={"help": "Pictures to seek neighbours in; of more, so many are chosen at random."},
    )

    def __post_init__(self):
        for name in ("num_neighbours", "num_queries", "max_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")


def main() -> None:
    purposes = {name: command.purpose for name, command in COMMANDS.items()}
    name, argv = choose_command(purposes, __doc__.partition("\n")[0])
    command = COMMANDS[name]
    parser = RecipeArgumentParser(
        command.arguments,
        prog=f"{os.path.basename(sys.argv[0])} {name}",
        description=f"{command.purpose}\n\n{command.example}\n\n{command.rule}",
        formatter_class=ExampleHelpFormatter,
    )
    arguments = parser.parse(argv)
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors():
        figure, *_ = arguments
        check_writable(figure.output)
        command.draw(*arguments)


def draw_reconstructions(
    figure: FigureArguments, arguments: ReconstructionArguments, chosen: ChosenPicturesArguments
) -> None:
    device = choose_device(figure.device)
    model, processor = load_reconstructing_model(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    if arguments.corruption is not None:
        processor.corruption = arguments.corruption
    pictures, captions = read_chosen(chosen, figure.seed, model.config.num_channels)
    if len(pictures) == 1 and "replace" in processor.corruption:
        raise UserError(
            f"corruption {processor.corruption} fills a picture from another one, and there is one alone; give several, "
            "or --corruption noise"
        )
    crops = processor(pictures, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    crops = crops.round().clamp(0, 255).to(torch.uint8)
    sheet = preview_sheet(model.to(device), processor, crops, figure.seed, arguments.picture_size, captions)
    save(figure.output, sheet.save)


def draw_attention(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: AttentionArguments,
    chosen: ChosenPicturesArguments,
) -> None:
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    pictures, captions = read_chosen(chosen, figure.seed, model.config.num_channels)
    pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"]
    maps = attention_maps(model.to(device), pixel_values, arguments.layer)
    shown = to_uint8(pixel_values, processor.image_mean, processor.image_std)
    layer = arguments.layer or model.config.num_hidden_layers
    save_figure(figure.output, resolution, attention_figure(shown, maps, captions, layer))


def draw_embeddings(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: EmbeddingsArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> None:
    if arguments.html is not None:
        check_writable(arguments.html)
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    compared = load_compared(arguments.compare_with, model, processor, figure.seed)
    pictures = load_pictures(**vars(dataset_arguments))
    split = choose_split(pictures, dataset_arguments.train_split, dataset_arguments.validation_split)
    color_by = choose_colors(arguments, pictures)
    tell_shortage("--max_pictures", arguments.max_pictures, MAX_PICTURES_OF_A_MAP, len(split))
    split = split.select(choose_rows(len(split), arguments.max_pictures, figure.seed))
    num_channels = model.config.num_channels

    features, rows = frozen_features(
        model, split, processor, device=device, **feature_arguments.settings(model.config)
    )
    shown = split.select(rows)
    labels = label_sets(shown, pictures.label_names)
    if color_by == "label" and not any(names is not None for names in labels):
        if arguments.color_by is not None or arguments.color_label is not None:
            raise UserError(f"--color_by label: none of the pictures of split {split.split} has a label")
        color_by = "cluster"

    panels = [(title_of(figure.model_name_or_path, arguments.compare_with), features)]
    if compared is not None:
        before, before_processor, title = compared
        before_features, before_rows = frozen_features(
            before, shown, before_processor, device=device, **feature_arguments.settings(before.config)
        )
        if len(before_rows) != len(rows):
            raise UserError(f"--compare_with {arguments.compare_with}: it cannot read all of the pictures")
        panels.insert(0, (title, before_features))
    maps = []
    for title, panel_features in panels:
        points, axes = map_features(panel_features, arguments.method, figure.seed)
        agreement, note = neighbour_agreement(panel_features, labels), None
        if agreement is not None:
            kind = "shares a class" if pictures.multi_label else "of the same class"
            note = f"nearest neighbour {kind}: {agreement.share:.0%} (by chance {agreement.chance:.0%})"
        maps.append(FeatureMap(title, points, axes, note))
        print(": ".join(filter(None, (title, note))))

    if color_by == "cluster":
        num_clusters = arguments.num_clusters or default_num_clusters(len(features), len(pictures.label_names or ()))
        order = [str(number + 1) for number in range(num_clusters)]
        classes = [order[number] for number in cluster_features(features, num_clusters, figure.seed)]
        legend_title = "cluster (k-means)" if compared is None else "cluster (k-means) on the right"
    elif arguments.color_label is not None:
        order = [arguments.color_label, f"without {arguments.color_label}"]
        classes = [None if names is None else order[arguments.color_label not in names] for names in labels]
        legend_title = "label"
    else:
        order, legend_title = pictures.label_names, "class"
        classes = [label_text(names) for names in labels]
    groups = style_groups(classes, order)
    save_figure(figure.output, resolution, embedding_figure(maps, groups, legend_title))
    if arguments.html is not None:
        page = hover_page(
            maps,
            groups,
            legend_title,
            names=[caption_on_page(shown, row, labels[row], classes[row], pictures.name) for row in range(len(shown))],
            pictures=[data_uri(thumbnail(shown, row, THUMBNAIL_SIZE, num_channels)) for row in range(len(shown))],
            title=f"{len(shown):,} pictures of {Path(pictures.name).name or pictures.name}",
            subtitle=f"Split {split.split}, features of {title_of(figure.model_name_or_path)}.",
        )
        save(arguments.html, lambda path: path.write_text(page, encoding="utf-8"))


def draw_neighbours(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: NeighboursArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> None:
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    num_channels = model.config.num_channels
    pictures = load_pictures(**vars(dataset_arguments))
    gallery = pictures.train if pictures.train is not None else pictures.validation
    of_gallery = arguments.pictures is None and (
        pictures.validation is None or pictures.validation.split == gallery.split
    )
    tell_shortage("--max_pictures", arguments.max_pictures, MAX_PICTURES_OF_A_GALLERY, len(gallery))
    gallery = gallery.select(choose_rows(len(gallery), arguments.max_pictures, figure.seed))

    if arguments.pictures is not None:
        queries = picture_files(arguments.pictures)
        read_given_files(queries, num_channels)
        chosen = list(range(len(queries)))
    else:
        queries = gallery if of_gallery else pictures.validation
        order = order_of_choice(label_sets(queries, pictures.label_names), figure.seed)
        chosen, _ = read_first(queries, order, arguments.num_queries, num_channels)
        tell_shortage("--num_queries", arguments.num_queries, NUM_QUERIES, len(chosen))
    queries = queries.select(chosen)

    settings = {"device": device, **feature_arguments.settings(model.config)}
    query_features, _ = frozen_features(model, queries, processor, **settings)
    gallery_features, rows = frozen_features(model, gallery, processor, **settings)
    try:
        own_rows = [rows.index(row) for row in chosen] if of_gallery else None
        similarities, nearest = nearest_pictures(query_features, gallery_features, arguments.num_neighbours, own_rows)
    except ValueError as problem:
        raise UserError(f"--num_neighbours {arguments.num_neighbours}: {problem}") from problem

    def show(split, row: int, similarity: float | None = None) -> ShownPicture:
        (labels,) = label_sets(split.select([row]), pictures.label_names)
        return ShownPicture(thumbnail(split, row, THUMBNAIL_SIZE * 2, num_channels), labels, similarity)

    sheet = [
        (
            show(queries, number),
            [show(gallery, rows[row], value) for value, row in zip(values.tolist(), found.tolist(), strict=True)],
        )
        for number, (values, found) in enumerate(zip(similarities, nearest, strict=True))
    ]
    save_figure(figure.output, resolution, neighbours_figure(sheet))


@dataclass
class Command:
    """A kind of figure: the flags that it takes, the function that draws it from them, and what `--help` says of it."""

    purpose: str
    arguments: tuple[type, ...]
    draw: Callable[..., None]
    example: str
    rule: str


SPLIT_RULE = (
    "Pictures are those of the validation split where there is one, else of the training split; --train_split or\n"
    "--validation_split names another. The first few show as many classes as they can."
)
MAP_RULE = SPLIT_RULE.partition(" The first")[0] + " Of more than --max_pictures, so many are chosen at random."
NEIGHBOURS_RULE = (
    "Queries are pictures of the validation split, and their neighbours are sought in the training split. Where there is\n"
    "one split alone, both are of it, and no picture is its own neighbour. --train_split and --validation_split name others."
)
COMMANDS = {
    "reconstructions": Command(
        "Pictures clean, corrupted, reconstructed, and with the reconstruction pasted into the holes.",
        (FigureArguments, ReconstructionArguments, ChosenPicturesArguments),
        draw_reconstructions,
        "    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png\n"
        "    python scripts/visualize.py reconstructions --model_name_or_path M --pictures a.jpg b.jpg --output FILE.png",
        SPLIT_RULE,
    ),
    "embeddings": Command(
        "A map of the features, on which similar pictures lie close, coloured by label or by cluster.",
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        draw_embeddings,
        "    python scripts/visualize.py embeddings --model_name_or_path M --dataset D --output FILE.png \\\n"
        "        --compare_with random --html FILE.html",
        MAP_RULE,
    ),
    "attention": Command(
        "Where the contrastive token looks, for each head.",
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenPicturesArguments),
        draw_attention,
        "    python scripts/visualize.py attention --model_name_or_path M --dataset D --output FILE.png",
        SPLIT_RULE,
    ),
    "neighbours": Command(
        "Pictures, and those whose features are nearest to theirs.",
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        draw_neighbours,
        "    python scripts/visualize.py neighbours --model_name_or_path M --dataset D --output FILE.png",
        NEIGHBOURS_RULE,
    ),
}


def choose_colors(arguments: EmbeddingsArguments, pictures: Pictures) -> Literal["label", "cluster"]:
    """What the colours of a map stand for.

    Raises:
        [`UserError`]: If it is the label, and there is none, or it is not clear which.
    """
    names = pictures.label_names
    flag = "--color_by label" if arguments.color_label is None else f"--color_label {arguments.color_label}"
    if arguments.color_by is None and arguments.color_label is None:
        if pictures.multi_label:
            print(
                "pictures may have several labels, so colours tell clusters; --color_label NAME tells which have that label"
            )
        return "cluster" if names is None or pictures.multi_label else "label"
    if arguments.color_by == "cluster":
        return "cluster"
    if names is None:
        raise UserError(f"{flag}: {pictures.name} has no labels; name their column with --label_column")
    known = listed(names if len(names) <= 20 else [*names[:20], "..."])
    if arguments.color_label is None and pictures.multi_label:
        raise UserError(f"{flag}: pictures of {pictures.name} may have several; name one with --color_label: {known}")
    if arguments.color_label not in (None, *names):
        raise UserError(f"{flag}: no such label, only {known}")
    return "label"


def caption_on_page(split, row: int, labels: tuple[str, ...] | None, color: str | None, folder: str) -> str:
    """A picture's file or row, and its labels where the colours tell something else."""
    name, text = short_name(split, row, folder), label_text(labels)
    return name if text is None or text == color else f"{text} ({name})"


def check_writable(output: str) -> None:
    """Raise [`UserError`] if there can be no such file, before anything is computed for it. Leaves nothing behind."""
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder; give another place")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with naming_what_cannot_be_written(path, "give another place"), tempfile.TemporaryFile(dir=folder):
        pass


def load_compared(compare_with: str | None, model, processor, seed: int):
    """The encoder to compare with, its image processor and its title; `None` if there is none."""
    if compare_with is None:
        return None
    if compare_with == RANDOM:
        return random_encoder(model, seed), processor, "before training (random weights)"
    try:
        return *load_encoder(compare_with), title_of(compare_with)
    except UserError as problem:
        raise UserError(str(problem).replace("--model_name_or_path", "--compare_with", 1)) from problem


def title_of(model_name_or_path: str, compared_with: str | None = None) -> str:
    return "after training" if compared_with == RANDOM else Path(model_name_or_path).name or model_name_or_path


def read_chosen(arguments: ChosenPicturesArguments, seed: int, num_channels: int) -> tuple[list, list[str]]:
    """The pictures to show, and a caption each: the class, or the name of the file."""
    if arguments.pictures:
        split = picture_files(arguments.pictures)
        return read_given_files(split, num_channels), [Path(path).stem for path in arguments.pictures]
    source = {name: value for name, value in vars(arguments).items() if name not in ("pictures", "num_pictures")}
    pictures = load_pictures(**source)
    split = choose_split(pictures, arguments.train_split, arguments.validation_split)
    labels = label_sets(split, pictures.label_names)
    rows, shown = read_first(split, order_of_choice(labels, seed), arguments.num_pictures, num_channels)
    tell_shortage("--num_pictures", arguments.num_pictures, NUM_PICTURES, len(rows))
    if pictures.label_names is None:
        return shown, [file_name(split, row) for row in rows]
    return shown, [label_text(labels[row]) or "" for row in rows]


def save_figure(output: str, resolution: ResolutionArguments, figure: Figure) -> None:
    save(output, lambda path: figure.savefig(path, dpi=resolution.dots_per_inch))


def save(output: str, write: Callable[[Path], object]) -> None:
    """Write a file that is whole or not there."""
    path = Path(output)
    with naming_what_cannot_be_written(path, "give another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as unfinished:
            write(unfinished)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
