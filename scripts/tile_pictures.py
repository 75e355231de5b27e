#!/usr/bin/env python
"""Make a multi-label data set: tile pictures with one label each into pictures with several.

    python scripts/tile_pictures.py --dataset flowers --output_dir flowers-tiled [--grid 2 2] [--image_size 224]

Each tiled picture shows as many pictures of one split as the grid has places (2 x 2 by default), and its labels are the
classes that they are of: one to four of them, for pictures of one class may meet. The pictures of a split are shuffled and
dealt out, so that none meets itself and all are seen equally often, and that again in every pass (up to the few that are left
over in each). The splits are tiled apart: nothing that is trained on is in the others.

Each picture of the training split is in several tilings, so pictures that are held back of the tiled ones would share what
they show with those that are trained on, and what is chosen by them would be chosen on training pictures. So where a set
has no validation split, a tenth of the training pictures (--validation_share) is set aside before the tiling, and becomes
one. scripts/finetune.py then chooses by it and measures on the test split; give scripts/evaluate.py --validation_split test
to measure there.

Every picture is cut to its place's shape around its centre and resized to it. `--output_dir` gets parquet files for each
split, with the columns `image` (JPEG) and `label` (a list of class labels), which every program here takes as `--dataset`,
and `datasets.load_dataset` reads. The same flags make the same set.
"""

import io
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ImageOps
from tqdm import tqdm

from modeling_sit.cli.help_text import ExampleHelpFormatter
from modeling_sit.cli.parser import DatasetArguments, RecipeArgumentParser
from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.labeled import hold_back, labelled_splits, labels_of
from modeling_sit.data.sources import VALIDATION_SPLITS, Pictures, load_pictures, read_row
from modeling_sit.finetuning.splits import TEST_SPLITS
from modeling_sit.hub.provenance import typed_command
from modeling_sit.runtime.atomic_files import naming_what_cannot_be_written, replace_files
from modeling_sit.runtime.errors import UserError, one_line_errors

PICTURES_IN_A_FILE = 10_000
PICTURES_IN_A_ROW_GROUP = 100
JPEG_QUALITY = 95
SET_ASIDE = "validation"


@dataclass(kw_only=True)
class TilingArguments(DatasetArguments):
    """What is tiled, and how."""

    output_dir: str = field(metadata={"help": "Folder for the parquet files; new or empty. Required."})
    grid: list[int] = field(
        default_factory=lambda: [2, 2], metadata={"help": "Rows and columns of pictures in a tiled one."}
    )
    image_size: int = field(default=224, metadata={"help": "Height and width of a tiled picture, in pixels."})
    passes: int | None = field(
        default=None,
        metadata={
            "help": "How many tiled pictures each picture is in. Default: as many as the grid has places, which gives about "
            "as many tiled pictures as there are pictures."
        },
    )
    validation_share: float = field(
        default=0.1,
        metadata={
            "help": "Share of each class's training pictures, in [0, 1), to set aside before the tiling for a validation split, "
            "where the set has none; 0 makes none."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the shuffling, and of what is set aside."})

    def __post_init__(self):
        if len(self.grid) != 2 or min(self.grid) < 1 or self.num_places < 2:
            raise ValueError(f"--grid takes two numbers, rows and columns of 2 places at least, got {self.grid}")
        if self.image_size < 1 or any(self.image_size % places for places in self.grid):
            step = math.lcm(*self.grid)
            nearest = max(1, round(self.image_size / step)) * step
            raise ValueError(
                f"--image_size {self.image_size} cannot be divided among {self.grid[0]} rows and {self.grid[1]} columns; the "
                f"nearest that can is {nearest}"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"--validation_share {self.validation_share}: must be in [0, 1)")
        if self.passes is not None and self.passes < 1:
            raise ValueError(f"--passes must be at least 1, got {self.passes}")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {self.seed}")

    @property
    def num_places(self) -> int:
        return self.grid[0] * self.grid[1]


def main() -> None:
    (arguments,) = RecipeArgumentParser(
        (TilingArguments,), description=__doc__, formatter_class=ExampleHelpFormatter
    ).parse()
    with one_line_errors():
        output_dir = Path(arguments.output_dir)
        check_output_dir(output_dir)
        pictures = load_pictures(
            arguments.dataset,
            dataset_config_name=arguments.dataset_config_name,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            train_split=arguments.train_split,
            validation_split=arguments.validation_split,
            labels="required",
        )
        tile_pictures(pictures, output_dir, arguments)


def check_output_dir(output_dir: Path) -> None:
    """Raise `UserError` if the folder cannot be made, or holds something: a set would be mixed with what is there."""
    with naming_what_cannot_be_written(output_dir, "name another --output_dir"):
        output_dir.mkdir(parents=True, exist_ok=True)
    if any(output_dir.iterdir()):
        raise UserError(f"--output_dir {output_dir} is not empty; name another, or remove what is there")


def tile_pictures(pictures: Pictures, output_dir: Path, arguments: TilingArguments) -> None:
    """Tile each split, and write all of it, or nothing."""
    splits = choose_splits(pictures, arguments)
    drawn = {}
    for number, (name, split) in enumerate(splits.items()):
        if len(split) < arguments.num_places:
            grid = f"a grid of {arguments.grid[0]} x {arguments.grid[1]}"
            if name == SET_ASIDE and split.split == splits["train"].split:
                raise UserError(
                    f"--validation_share {arguments.validation_share}: the {len(split)} pictures set aside do not fill {grid}; "
                    "raise it, or give 0 for no validation split"
                )
            raise UserError(f"split {split.split}: {len(split)} pictures with a label do not fill {grid}")
        generator = np.random.default_rng([arguments.seed, number])
        drawn[name] = draw_tilings(
            len(split), arguments.num_places, arguments.passes or arguments.num_places, generator
        )

    with (
        naming_what_cannot_be_written(output_dir, "make room or name another --output_dir"),
        replace_files(output_dir) as folder,
    ):
        for name, split in splits.items():
            labels = write_split(folder, name, split, drawn[name], pictures.label_names, arguments)
            print(
                f"{name}: {len(labels):,} pictures of {len(split):,}, each with "
                f"{np.mean([len(classes) for classes in labels]):.2f} of {len(pictures.label_names)} labels on average"
            )
        (folder / "README.md").write_text(description(pictures, splits, arguments))
    print(f"written to {output_dir}")


def description(pictures: Pictures, splits: dict[str, datasets.Dataset], arguments: TilingArguments) -> str:
    """What the set's README.md says."""
    rows, columns = arguments.grid
    text = f"Pictures of {pictures.name}, tiled {rows} x {columns} within each split; `label` lists the classes in a picture."
    if SET_ASIDE in splits and splits[SET_ASIDE].split == splits["train"].split:
        text += (
            f"\n\n`validation` is made of {len(splits[SET_ASIDE])} pictures of {splits['train'].split} (--validation_share "
            f"{arguments.validation_share:g}), set aside before the tiling: none of them is in `train`. Choose by it, not by "
            "pictures held back of `train`, each of which shows pictures that others of `train` show too."
        )
    if set(splits) & set(TEST_SPLITS) and SET_ASIDE in splits:
        text += "\n\nTo measure on the test pictures, give `scripts/evaluate.py` `--validation_split test`."
    return f"{text}\n\nMade by\n\n    {typed_command()}\n"


def choose_splits(pictures: Pictures, arguments: TilingArguments) -> dict[str, datasets.Dataset]:
    """The splits to tile, by the names that they get; where none is to choose by, one is made of training pictures.

    Raises:
        [`UserError`]: If a class has only one training picture, so that none can be set aside.
    """
    train, other = labelled_splits(pictures, validation="if there")
    splits = {"train": train}
    if other is not None:
        name = str(other.split).lower()
        splits[name if name in VALIDATION_SPLITS else SET_ASIDE] = other
    if arguments.validation_share > 0 and set(splits) <= {"train", *TEST_SPLITS}:
        splits["train"], splits[SET_ASIDE] = hold_back(train, arguments.validation_share, arguments.seed)
    return splits


def draw_tilings(num_pictures: int, num_places: int, passes: int, generator: np.random.Generator) -> np.ndarray:
    """Deal out the pictures: int64 `(num_tilings, num_places)`, rows of the split, each once at most in each pass."""
    num_tilings = num_pictures // num_places
    dealt = [generator.permutation(num_pictures)[: num_tilings * num_places] for _ in range(passes)]
    return np.concatenate(dealt).reshape(-1, num_places)


def write_split(
    folder: Path,
    name: str,
    split: datasets.Dataset,
    tilings: np.ndarray,
    label_names: list[str],
    arguments: TilingArguments,
) -> list[list[int]]:
    """Write the tiled pictures of a split to parquet files of [`PICTURES_IN_A_FILE`]; gives their labels."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=label_names))}
    )
    num_files = -(-len(tilings) // PICTURES_IN_A_FILE)
    rows = tiled_rows(split, tilings, arguments)
    labels = []
    with tqdm(total=len(tilings), desc=name, unit=" pictures") as bar:
        for number in range(num_files):
            path = folder / f"{name}-{number:05}-of-{num_files:05}.parquet"
            num_rows = min(PICTURES_IN_A_FILE, len(tilings) - number * PICTURES_IN_A_FILE)
            with pq.ParquetWriter(path, features.arrow_schema) as writer:
                for start in range(0, num_rows, PICTURES_IN_A_ROW_GROUP):
                    group = [next(rows) for _ in range(min(PICTURES_IN_A_ROW_GROUP, num_rows - start))]
                    writer.write_table(pa.Table.from_pylist(group, schema=features.arrow_schema))
                    labels += [row["label"] for row in group]
                    bar.update(len(group))
    return labels


def tiled_rows(split: datasets.Dataset, tilings: np.ndarray, arguments: TilingArguments) -> Iterator[dict]:
    """The rows of the new set. A picture that cannot be read leaves its place grey and its label out, and is named."""
    labels = labels_of(split)
    has_class = labels > 0 if labels.ndim == 2 else None
    unreadable = set()
    for tiling in tilings.tolist():
        places, classes = [], set()
        for row in tiling:
            try:
                places.append(read_row(split, row)[0])
            except UnreadablePicture as problem:
                places.append(None)
                if row not in unreadable:
                    tqdm.write(f"skipped an unreadable picture: {problem}", file=sys.stderr)
                unreadable.add(row)
            else:
                classes |= {int(labels[row])} if has_class is None else set(has_class[row].nonzero()[:, 0].tolist())
        buffer = io.BytesIO()
        tile(places, arguments.grid, arguments.image_size).save(buffer, "JPEG", quality=JPEG_QUALITY)
        yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": sorted(classes)}


def tile(places: list[PIL.Image.Image | None], grid: list[int], image_size: int) -> PIL.Image.Image:
    """One square picture of several, row by row, each cut to its place's shape around the centre; grey for `None`."""
    rows, columns = grid
    height, width = image_size // rows, image_size // columns
    tiled = PIL.Image.new("RGB", (image_size, image_size), "grey")
    for number, picture in enumerate(places):
        if picture is not None:
            row, column = divmod(number, columns)
            fitted = ImageOps.fit(picture, (width, height), PIL.Image.Resampling.BICUBIC)
            tiled.paste(fitted, (column * width, row * height))
    return tiled


if __name__ == "__main__":
    main()
