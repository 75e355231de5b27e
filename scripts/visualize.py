#!/usr/bin/env python
"""Look at what a model has learned.

    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py reconstructions --model_name_or_path M --images a.jpg b.jpg --output FILE.png
    python scripts/visualize.py embeddings      --model_name_or_path M --dataset D --output FILE.png \\
        --compare_with random --html FILE.html
    python scripts/visualize.py attention       --model_name_or_path M --dataset D --output FILE.png
    python scripts/visualize.py neighbours      --model_name_or_path M --dataset D --output FILE.png

Images are those of the validation split where there is one, else of the training split; `--train_split` or
`--validation_split` names another. The same flags and seed give the same figure. Classes have Okabe and Ito's colors,
which color-blind readers can tell apart, in four shapes.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import transformers

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import ExampleHelpFormatter, RecipeArgumentParser, choose_command
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.label_encoding import listed
from modeling_sit.data.sources import ImageDatasets, load_images
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.gmml import CORRUPTIONS
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.devices import choose_device
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.attention import attention_figure, attention_maps
from modeling_sit.visualization.embeddings import (
    FeatureMap,
    cluster_features,
    default_num_clusters,
    embedding_figure,
    map_features,
    neighbour_agreement,
)
from modeling_sit.visualization.run import (
    SavedFigure,
    run_attention,
    run_embeddings,
    run_neighbours,
    run_reconstructions,
)


@dataclass
class Command:
    """A kind of figure: its arguments, the function that draws and saves it, and what `--help` says about it."""

    purpose: str
    arguments: tuple[type, ...]
    run: Callable[..., SavedFigure]
    example: str
    rule: str


SPLIT_RULE = (
    "Images are those of the validation split where there is one, else of the training split; --train_split or\n"
    "--validation_split names another. The first few show as many classes as possible."
)
MAP_RULE = SPLIT_RULE.partition(" The first")[0] + " Of more than --max_images, that many are chosen at random."
NEIGHBOURS_RULE = (
    "Queries are images of the validation split, and their neighbors are sought in the training split. If there is only one\n"
    "split, both are of it, and no image is its own neighbor. --train_split and --validation_split name others."
)
COMMANDS = {
    "reconstructions": Command(
        "Images clean, corrupted, reconstructed, and with the reconstruction pasted into the holes.",
        (FigureArguments, ReconstructionArguments, ChosenImagesArguments),
        run_reconstructions,
        "    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png\n"
        "    python scripts/visualize.py reconstructions --model_name_or_path M --images a.jpg b.jpg --output FILE.png",
        SPLIT_RULE,
    ),
    "embeddings": Command(
        "A map of the features, on which similar images lie close, colored by label or by cluster.",
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        run_embeddings,
        "    python scripts/visualize.py embeddings --model_name_or_path M --dataset D --output FILE.png \\\n"
        "        --compare_with random --html FILE.html",
        MAP_RULE,
    ),
    "attention": Command(
        "Where the contrastive token looks, for each head.",
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        run_attention,
        "    python scripts/visualize.py attention --model_name_or_path M --dataset D --output FILE.png",
        SPLIT_RULE,
    ),
    "neighbours": Command(
        "Images, and those whose features are nearest to theirs.",
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        run_neighbours,
        "    python scripts/visualize.py neighbours --model_name_or_path M --dataset D --output FILE.png",
        NEIGHBOURS_RULE,
    ),
}


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
    with one_line_errors(parser.flags):
        figure, *_ = arguments
        check_writable(figure.output)
        command.draw(*arguments)


def draw_reconstructions(
    figure: FigureArguments, arguments: ReconstructionArguments, chosen: ChosenImagesArguments
) -> None:
    device = choose_device(figure.device)
    model, processor = load_reconstructing_model(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    if arguments.corruption is not None:
        processor.corruption = arguments.corruption
    images, captions = read_chosen(chosen, figure.seed, model.config.num_channels)
    if len(images) == 1 and "replace" in processor.corruption:
        raise SiTError(
            f"corruption {processor.corruption} fills an image from another one, and there is one alone; give several, "
            "or --corruption noise"
        )
    crops = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    crops = crops.round().clamp(0, 255).to(torch.uint8)
    sheet = preview_sheet(model.to(device), processor, crops, figure.seed, arguments.image_size, captions)
    save(figure.output, sheet.save)


def draw_attention(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: AttentionArguments,
    chosen: ChosenImagesArguments,
) -> None:
    device = choose_device(figure.device)
    model, processor = load_encoder(figure.model_name_or_path, figure.network, figure.num_attention_heads)
    images, captions = read_chosen(chosen, figure.seed, model.config.num_channels)
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
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
    images = load_images(**vars(dataset_arguments))
    split = choose_split(images, dataset_arguments.train_split, dataset_arguments.validation_split)
    color_by = choose_colors(arguments, images)
    tell_shortage("--max_images", arguments.max_images, MAX_IMAGES_OF_A_MAP, len(split))
    split = split.select(choose_rows(len(split), arguments.max_images, figure.seed))
    num_channels = model.config.num_channels

    features, rows = frozen_features(
        model, split, processor, device=device, **feature_arguments.settings(model.config)
    )
    shown = split.select(rows)
    labels = label_sets(shown, images.label_names)
    if color_by == "label" and not any(names is not None for names in labels):
        if arguments.color_by is not None or arguments.color_label is not None:
            raise SiTError(f"--color_by label: none of the images of split {split.split} has a label")
        color_by = "cluster"

    panels = [(title_of(figure.model_name_or_path, arguments.compare_with), features)]
    if compared is not None:
        before, before_processor, title = compared
        before_features, before_rows = frozen_features(
            before, shown, before_processor, device=device, **feature_arguments.settings(before.config)
        )
        if len(before_rows) != len(rows):
            raise SiTError(f"--compare_with {arguments.compare_with}: it cannot read all of the images")
        panels.insert(0, (title, before_features))
    maps = []
    for title, panel_features in panels:
        points, axes = map_features(panel_features, arguments.method, figure.seed)
        agreement, note = neighbour_agreement(panel_features, labels), None
        if agreement is not None:
            kind = "shares a class" if images.multi_label else "of the same class"
            note = f"nearest neighbour {kind}: {agreement.share:.0%} (by chance {agreement.chance:.0%})"
        maps.append(FeatureMap(title, points, axes, note))
        print(": ".join(filter(None, (title, note))))

    if color_by == "cluster":
        num_clusters = arguments.num_clusters or default_num_clusters(len(features), len(images.label_names or ()))
        order = [str(number + 1) for number in range(num_clusters)]
        classes = [order[number] for number in cluster_features(features, num_clusters, figure.seed)]
        legend_title = "cluster (k-means)" if compared is None else "cluster (k-means) on the right"
    elif arguments.color_label is not None:
        order = [arguments.color_label, f"without {arguments.color_label}"]
        classes = [None if names is None else order[arguments.color_label not in names] for names in labels]
        legend_title = "label"
    else:
        order, legend_title = images.label_names, "class"
        classes = [label_text(names) for names in labels]
    groups = style_groups(classes, order)
    save_figure(figure.output, resolution, embedding_figure(maps, groups, legend_title))
    if arguments.html is not None:
        page = hover_page(
            maps,
            groups,
            legend_title,
            names=[caption_on_page(shown, row, labels[row], classes[row], images.name) for row in range(len(shown))],
            images=[data_uri(thumbnail(shown, row, THUMBNAIL_SIZE, num_channels)) for row in range(len(shown))],
            title=f"{len(shown):,} images of {Path(images.name).name or images.name}",
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
    images = load_images(**vars(dataset_arguments))
    gallery = images.train if images.train is not None else images.validation
    of_gallery = arguments.images is None and (images.validation is None or images.validation.split == gallery.split)
    tell_shortage("--max_images", arguments.max_images, MAX_IMAGES_OF_A_GALLERY, len(gallery))
    gallery = gallery.select(choose_rows(len(gallery), arguments.max_images, figure.seed))

    if arguments.images is not None:
        queries = image_files(arguments.images)
        read_given_files(queries, num_channels)
        chosen = list(range(len(queries)))
    else:
        queries = gallery if of_gallery else images.validation
        order = order_of_choice(label_sets(queries, images.label_names), figure.seed)
        chosen, _ = read_first(queries, order, arguments.num_queries, num_channels)
        tell_shortage("--num_queries", arguments.num_queries, NUM_QUERIES, len(chosen))
    queries = queries.select(chosen)

    settings = {"device": device, **feature_arguments.settings(model.config)}
    query_features, _ = frozen_features(model, queries, processor, **settings)
    gallery_features, rows = frozen_features(model, gallery, processor, **settings)
    try:
        own_rows = [rows.index(row) for row in chosen] if of_gallery else None
        similarities, nearest = nearest_images(query_features, gallery_features, arguments.num_neighbours, own_rows)
    except ValueError as problem:
        raise SiTError(f"--num_neighbours {arguments.num_neighbours}: {problem}") from problem

    def show(split, row: int, similarity: float | None = None) -> ShownImage:
        (labels,) = label_sets(split.select([row]), images.label_names)
        return ShownImage(thumbnail(split, row, THUMBNAIL_SIZE * 2, num_channels), labels, similarity)

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
    "Images are those of the validation split where there is one, else of the training split; --train_split or\n"
    "--validation_split names another. The first few show as many classes as they can."
)
MAP_RULE = SPLIT_RULE.partition(" The first")[0] + " Of more than --max_images, so many are chosen at random."
NEIGHBOURS_RULE = (
    "Queries are images of the validation split, and their neighbours are sought in the training split. Where there is\n"
    "one split alone, both are of it, and no image is its own neighbour. --train_split and --validation_split name others."
)
COMMANDS = {
    "reconstructions": Command(
        "Images clean, corrupted, reconstructed, and with the reconstruction pasted into the holes.",
        (FigureArguments, ReconstructionArguments, ChosenImagesArguments),
        draw_reconstructions,
        "    python scripts/visualize.py reconstructions --model_name_or_path M --dataset D --output FILE.png\n"
        "    python scripts/visualize.py reconstructions --model_name_or_path M --images a.jpg b.jpg --output FILE.png",
        SPLIT_RULE,
    ),
    "embeddings": Command(
        "A map of the features, on which similar images lie close, colored by label or by cluster.",
        (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        draw_embeddings,
        "    python scripts/visualize.py embeddings --model_name_or_path M --dataset D --output FILE.png \\\n"
        "        --compare_with random --html FILE.html",
        MAP_RULE,
    ),
    "attention": Command(
        "Where the contrastive token looks, for each head.",
        (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        draw_attention,
        "    python scripts/visualize.py attention --model_name_or_path M --dataset D --output FILE.png",
        SPLIT_RULE,
    ),
    "neighbours": Command(
        "Images, and those whose features are nearest to theirs.",
        (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        draw_neighbours,
        "    python scripts/visualize.py neighbours --model_name_or_path M --dataset D --output FILE.png",
        NEIGHBOURS_RULE,
    ),
}


def choose_colors(arguments: EmbeddingsArguments, images: ImageDatasets) -> Literal["label", "cluster"]:
    """What the colors of a map stand for.

    Raises:
        [`SiTError`]: If it is the label, and there is none, or it is not clear which.
    """
    names = images.label_names
    flag = "--color_by label" if arguments.color_label is None else f"--color_label {arguments.color_label}"
    if arguments.color_by is None and arguments.color_label is None:
        if images.multi_label:
            print(
                "images may have several labels, so colors tell clusters; --color_label NAME tells which have that label"
            )
        return "cluster" if names is None or images.multi_label else "label"
    if arguments.color_by == "cluster":
        return "cluster"
    if names is None:
        raise SiTError(f"{flag}: {images.name} has no labels; name their column with --label_column")
    known = listed(names if len(names) <= 20 else [*names[:20], "..."])
    if arguments.color_label is None and images.multi_label:
        raise SiTError(f"{flag}: images of {images.name} may have several; name one with --color_label: {known}")
    if arguments.color_label not in (None, *names):
        raise SiTError(f"{flag}: no such label, only {known}")
    return "label"


def caption_on_page(split, row: int, labels: tuple[str, ...] | None, color: str | None, folder: str) -> str:
    """An image's file or row, and its labels where the colors tell something else."""
    name, text = short_name(split, row, folder), label_text(labels)
    return name if text is None or text == color else f"{text} ({name})"


def check_writable(output: str) -> None:
    """Raise [`SiTError`] if there can be no such file, before anything is computed for it. Leaves nothing behind."""
    path = Path(output)
    if path.is_dir():
        raise SiTError(f"{path} cannot be written: it is a folder; give another place")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with write_errors(path, "give another place"), tempfile.TemporaryFile(dir=folder):
        pass


def load_compared(compare_with: str | None, model, processor, seed: int):
    """The encoder to compare with, its image processor and its title; `None` if there is none."""
    if compare_with is None:
        return None
    if compare_with == RANDOM:
        return random_encoder(model, seed), processor, "before training (random weights)"
    with argument_names(model_name_or_path="compare_with"):
        return *load_encoder(compare_with), title_of(compare_with)


def title_of(model_name_or_path: str, compared_with: str | None = None) -> str:
    return "after training" if compared_with == RANDOM else Path(model_name_or_path).name or model_name_or_path


def read_chosen(arguments: ChosenImagesArguments, seed: int, num_channels: int) -> tuple[list, list[str]]:
    """The images to show, and a caption each: the class, or the name of the file."""
    if arguments.images:
        split = image_files(arguments.images)
        return read_given_files(split, num_channels), [Path(path).stem for path in arguments.images]
    source = {name: value for name, value in vars(arguments).items() if name not in ("images", "num_images")}
    images = load_images(**source)
    split = choose_split(images, arguments.train_split, arguments.validation_split)
    labels = label_sets(split, images.label_names)
    rows, shown = read_first(split, order_of_choice(labels, seed), arguments.num_images, num_channels)
    tell_shortage("--num_images", arguments.num_images, NUM_IMAGES, len(rows))
    if images.label_names is None:
        return shown, [file_name(split, row) for row in rows]
    return shown, [label_text(labels[row]) or "" for row in rows]


def save_figure(output: str, resolution: ResolutionArguments, figure: Figure) -> None:
    save(output, lambda path: figure.savefig(path, dpi=resolution.dots_per_inch))


def save(output: str, write: Callable[[Path], object]) -> None:
    """Write a file that is whole or not there."""
    path = Path(output)
    with write_errors(path, "give another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as unfinished:
            write(unfinished)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
