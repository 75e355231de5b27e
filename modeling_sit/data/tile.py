"""Make a multi-label dataset: tile images with one label each into images with several.

Each tiled image shows as many images of one split as the grid has places (2 x 2 by default). Its labels are the classes
of these images: one to four of them, because images of one class may be tiled together. In every pass the images of a
split are shuffled and dealt out, so that no image is tiled with itself and all are used equally often, but for the few
that are left over in each pass. Each split is tiled separately: no training image is in another split.

Each image of the training split is in several tilings. So tiled images that are held back would show the same images as
others that are trained on, and a choice made with them would be made on training images. If a dataset has no validation
split, a tenth of the training images is set aside before the tiling, and becomes one.

Every image is cut to its place's shape around its center and resized to it. The output folder gets parquet files for each
split, with the columns `image` (JPEG; a NumPy array of 8 bits, if the channels are no colors) and `label` (a list of class
labels). The same arguments make the same dataset.
"""

import io
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ImageOps
from tqdm.auto import tqdm

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.decoding import Image, UnreadableImage
from modeling_sit.data.image_datasets import TEST_SPLITS, VALIDATION_SPLITS, ImageDatasets, read_row
from modeling_sit.data.image_facts import read_image_facts
from modeling_sit.data.labeled import labeled_splits, labels_of
from modeling_sit.data.opening import max_image_pixels
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import train_validation_split
from modeling_sit.image_modes import PixelFormat, as_image, map_channels
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.atomic_files import replace_files, write_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.progress import bar_of_images

IMAGES_IN_A_FILE = 10_000
IMAGES_IN_A_ROW_GROUP = 100
JPEG_QUALITY = 95
SET_ASIDE = "validation"
# Images are decoded one at a time and leave small, so they may be larger than where many are in memory at once.
MAX_PIXELS = 10**9


@dataclass(kw_only=True)
class TilingArguments(DatasetArguments):
    """What is tiled, and how.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    output_dir: str = field(metadata={"help": "Folder for the parquet files. It must be new or empty. Required."})
    grid: list[int] = field(
        default_factory=lambda: [2, 2], metadata={"help": "Rows and columns of images in a tiled image."}
    )
    image_size: int = field(default=224, metadata={"help": "Height and width of a tiled image, in pixels."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "The one split to tile beside the training split. Default: `validation` and `test`, those that there "
            "are."
        },
    )
    passes: int | None = field(
        default=None,
        metadata={
            "help": "Number of tiled images that each image is in. Default: the number of places in the grid. Then "
            "there are about as many tiled images as images."
        },
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Fraction in [0, 1) of the training images of each class to set aside before the tiling, as a "
            "validation split, if the dataset has none. 0 makes none."
        },
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the shuffling and of the choice of the validation images."}
    )

    def __post_init__(self):
        if len(self.grid) != 2 or min(self.grid) < 1 or self.num_places < 2:
            raise SiTError(
                f"must be two numbers, rows and columns of 2 places at least, got {self.grid}", argument="grid"
            )
        if self.image_size < 1 or any(self.image_size % places for places in self.grid):
            step = math.lcm(*self.grid)
            nearest = max(1, round(self.image_size / step)) * step
            raise SiTError(
                f"{self.image_size} cannot be divided among {self.grid[0]} rows and {self.grid[1]} columns",
                argument="image_size",
                remedy=f"the nearest that can is {nearest}",
            )
        if not 0 <= self.validation_fraction < 1:
            raise SiTError(f"must be in [0, 1), got {self.validation_fraction}", argument="validation_fraction")
        if self.passes is not None and self.passes < 1:
            raise SiTError(f"must be at least 1, got {self.passes}", argument="passes")
        if self.seed < 0:
            raise SiTError(f"must be at least 0, got {self.seed}", argument="seed")

    @property
    def num_places(self) -> int:
        return self.grid[0] * self.grid[1]


def tile(
    dataset: str | datasets.Dataset, output_dir: str | Path, *, recipe: str | Path | None = None, **arguments: Any
) -> Path:
    """
    Tile the images of a labeled dataset into images with several labels.

    Args:
        dataset (`str` or `datasets.Dataset`): Images with a label each.
        output_dir (`str` or `Path`): Folder for the parquet files; new or empty.
        recipe (`str` or `Path`, *optional*): YAML file of defaults for the arguments.
        arguments: Fields of [`TilingArguments`], such as `grid=[2, 2]`.

    Returns:
        `Path`: The folder. It can be given wherever a dataset is taken.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If a value is out of range, the folder is not empty, or there are too few images.
    """
    keywords = {"dataset": dataset, "output_dir": output_dir, **arguments}
    return run_tiling(*build_arguments((TilingArguments,), keywords, recipe, "tile"))


def run_tiling(arguments: TilingArguments, command: str | None = None) -> Path:
    """As [`tile`], for arguments that are built.

    Args:
        arguments ([`TilingArguments`]): What is tiled, and how.
        command (`str`, *optional*): What was typed, for the dataset's README.
    """
    output_dir = Path(arguments.output_dir)
    check_outside_dataset(output_dir, arguments.dataset)
    check_output_dir(output_dir)
    write_tilings(_load(arguments, arguments.validation_split), output_dir, arguments, command)
    return output_dir


def _load(arguments: TilingArguments, validation_split: str | None) -> ImageDatasets:
    return load_images(
        arguments.dataset,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        train_split=arguments.train_split,
        validation_split=validation_split,
        labels="required",
    )


def check_output_dir(output_dir: Path) -> None:
    """Raise a [`SiTError`] if the folder cannot be made, or is not empty: the dataset would be mixed with what is there."""
    with write_errors(output_dir, "name another `output_dir`"):
        output_dir.mkdir(parents=True, exist_ok=True)
    if any(output_dir.iterdir()):
        raise SiTError(
            f"{output_dir} is not empty", argument="output_dir", remedy="name another, or remove what is there"
        )


def write_tilings(images: ImageDatasets, output_dir: Path, arguments: TilingArguments, command: str | None) -> None:
    """Tile each split, and write all of it, or nothing."""
    splits = choose_splits(images, arguments)
    pixel_format = choose_format(images, arguments)
    drawn = {}
    for number, (name, split) in enumerate(splits.items()):
        if len(split) < arguments.num_places:
            grid = f"a grid of {arguments.grid[0]} x {arguments.grid[1]}"
            if name == SET_ASIDE and split.split == splits["train"].split:
                raise SiTError(
                    f"the {len(split)} images set aside do not fill {grid}",
                    argument="validation_fraction",
                    remedy="raise it, or give 0 for no validation split",
                )
            raise SiTError(f"split {split.split}: {len(split)} images with a label do not fill {grid}")
        generator = np.random.default_rng([arguments.seed, number])
        drawn[name] = draw_tilings(
            len(split), arguments.num_places, arguments.passes or arguments.num_places, generator
        )

    with (
        write_errors(output_dir, "make room or name another `output_dir`"),
        replace_files(output_dir) as folder,
    ):
        for name, split in splits.items():
            labels = write_split(folder, name, split, drawn[name], images.label_names, arguments, pixel_format)
            print(
                f"{name}: {len(labels):,} images of {len(split):,}, each with "
                f"{np.mean([len(classes) for classes in labels]):.2f} of {len(images.label_names)} labels on average"
            )
        (folder / "README.md").write_text(describe(images, splits, arguments, command), encoding="utf-8")
    print(f"written to {output_dir}")


def describe(
    images: ImageDatasets, splits: dict[str, datasets.Dataset], arguments: TilingArguments, command: str | None
) -> str:
    """The text of the dataset's README.md."""
    rows, columns = arguments.grid
    text = (
        f"Images of {images.name}, tiled {rows} x {columns} within each split; `label` lists the classes in an image."
    )
    if SET_ASIDE in splits and splits[SET_ASIDE].split == splits["train"].split:
        text += (
            f"\n\n`validation` is made of {len(splits[SET_ASIDE])} images of {splits['train'].split} (a fraction of "
            f"{arguments.validation_fraction:g}), set aside before the tiling: none of them is in `train`. Choose by it, not by "
            "images held back of `train`: each of these shows images that others of `train` show too."
        )
    if set(splits) & set(TEST_SPLITS) and SET_ASIDE in splits:
        text += "\n\nTo measure on the test images, evaluate with `validation_split` set to `test`."
    return f"{text}\n" if command is None else f"{text}\n\nMade by\n\n    {command}\n"


def choose_format(images: ImageDatasets, arguments: TilingArguments) -> PixelFormat:
    """What images are decoded to: their channels, if these are no colors; else RGB.

    Raises:
        [`SiTError`]: If the range does not fit the channels.
    """
    facts = read_image_facts(images) if images.train is not None else None
    num_channels = 3 if facts is None or facts.num_channels in (1, 3) else facts.num_channels
    arguments.check_intensity_range(num_channels)
    return PixelFormat(num_channels, arguments.intensity_range)


def choose_splits(images: ImageDatasets, arguments: TilingArguments) -> dict[str, datasets.Dataset]:
    """The splits to tile, by the names that they get; where none is to choose by, one is made of training images.

    Raises:
        [`SiTError`]: If a class has only one training image, so that none can be set aside.
    """
    train, other = labeled_splits(images, validation="if there")
    splits = {"train": train}
    if other is not None:
        name = str(other.split).lower()
        splits[name if name in VALIDATION_SPLITS else SET_ASIDE] = other
        taken = {*splits, arguments.train_split}
        unused = [each for each in images.splits if each.lower() in TEST_SPLITS and not {each, each.lower()} & taken]
        if unused and arguments.validation_split is None:
            try:
                test = labeled_splits(_load(arguments, unused[0]))[1]
                problem = "its images do not fill the grid" if len(test) < arguments.num_places else None
            except SiTError as error:
                problem = error.problem
            if problem is None:
                splits[unused[0].lower()] = test
            else:  # nobody asked for it
                print(f"split {unused[0]} is left out: {problem}")
    if arguments.validation_fraction > 0 and set(splits) <= {"train", *TEST_SPLITS}:
        splits["train"], splits[SET_ASIDE] = train_validation_split(
            train, arguments.validation_fraction, arguments.seed
        )
    return splits


def draw_tilings(num_images: int, num_places: int, passes: int, generator: np.random.Generator) -> np.ndarray:
    """Deal out the images: int64 `(num_tilings, num_places)`, rows of the split, each once at most in each pass."""
    num_tilings = num_images // num_places
    dealt = [generator.permutation(num_images)[: num_tilings * num_places] for _ in range(passes)]
    return np.concatenate(dealt).reshape(-1, num_places)


def write_split(
    folder: Path,
    name: str,
    split: datasets.Dataset,
    tilings: np.ndarray,
    label_names: list[str],
    arguments: TilingArguments,
    pixel_format: PixelFormat,
) -> list[list[int]]:
    """Write the tiled images of a split to parquet files of [`IMAGES_IN_A_FILE`]; gives their labels."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.ClassLabel(names=label_names))}
    )
    num_files = -(-len(tilings) // IMAGES_IN_A_FILE)
    rows = tiled_rows(split, tilings, arguments, pixel_format)
    labels = []
    with bar_of_images(len(tilings), name) as bar:
        for number in range(num_files):
            path = folder / f"{name}-{number:05}-of-{num_files:05}.parquet"
            num_rows = min(IMAGES_IN_A_FILE, len(tilings) - number * IMAGES_IN_A_FILE)
            with pq.ParquetWriter(path, features.arrow_schema) as writer:
                for start in range(0, num_rows, IMAGES_IN_A_ROW_GROUP):
                    group = [next(rows) for _ in range(min(IMAGES_IN_A_ROW_GROUP, num_rows - start))]
                    writer.write_table(pa.Table.from_pylist(group, schema=features.arrow_schema))
                    labels += [row["label"] for row in group]
                    bar.update(len(group))
    return labels


def tiled_rows(
    split: datasets.Dataset, tilings: np.ndarray, arguments: TilingArguments, pixel_format: PixelFormat
) -> Iterator[dict]:
    """The rows of the new dataset. An image that cannot be read leaves its place gray and its label out, and is named."""
    labels = labels_of(split)
    has_class = labels > 0 if labels.ndim == 2 else None
    unreadable = set()
    max_pixels = max(MAX_PIXELS, max_image_pixels() or MAX_PIXELS)
    for tiling in tilings.tolist():
        places, classes = [], set()
        for row in tiling:
            try:
                places.append(read_row(split, row, pixel_format, max_pixels=max_pixels)[0])
            except UnreadableImage as problem:
                places.append(None)
                if row not in unreadable:
                    tqdm.write(f"skipped an unreadable image: {problem}", file=sys.stderr)
                unreadable.add(row)
            else:
                classes |= {int(labels[row])} if has_class is None else set(has_class[row].nonzero()[:, 0].tolist())
        buffer = io.BytesIO()
        tiled = compose(places, arguments.grid, arguments.image_size, pixel_format)
        if pixel_format.num_channels == 3:
            as_image(tiled).save(buffer, "JPEG", quality=JPEG_QUALITY)
        else:
            np.save(buffer, tiled)
        yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": sorted(classes)}


def compose(
    places: list[Image | None], grid: list[int], image_size: int, pixel_format: PixelFormat | int = 3
) -> np.ndarray:
    """One square image of several, row by row, each cut to its place's shape around the center; gray for `None`.

    Returns:
        `np.ndarray`: uint8 `(image_size, image_size, channels)`.
    """
    rows, columns = grid
    height, width = image_size // rows, image_size // columns
    tiled = np.asarray(PixelFormat.of(pixel_format).blank((image_size, image_size))).copy()
    for number, image in enumerate(places):
        if image is not None:
            row, column = divmod(number, columns)
            fitted = _fit(image, (width, height))
            tiled[row * height : (row + 1) * height, column * width : (column + 1) * width] = fitted
    return tiled


def _fit(image: Image, size: tuple[int, int]) -> np.ndarray:
    def fit(channel: PIL.Image.Image) -> PIL.Image.Image:
        return ImageOps.fit(channel, size, PIL.Image.Resampling.BICUBIC)

    return np.asarray(fit(image)) if isinstance(image, PIL.Image.Image) else map_channels(image, fit)
