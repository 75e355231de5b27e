"""The images of a dataset, not decoded yet: its splits, its labels, and what to call its rows."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from modeling_sit.data.decoding import DraftScale, Image, UnreadableImage, decode_image
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError

TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("test", "testing", "eval", "evaluation", "holdout", "heldout")
VALIDATION_SPLITS = ("validation", "validate", "valid", "val", "dev", *TEST_SPLITS)


@dataclass
class Shard:
    """A part of a stream, for messages that name its rows.

    Args:
        name (`str`): Its file, or what else to call it.
        first_row (`int`, *optional*, defaults to 0): Row number of the shard's first row within `name`.
    """

    name: str
    first_row: int = 0


@dataclass
class ImageDatasets:
    """The images of a dataset, not decoded yet.

    Each split has the column `image` (a `datasets.Image(decode=False)`: `{"bytes": ..., "path": ...}`, or `None` in a
    row without an image). If `label_names` is not `None`, it also has the column `label`, with the same encoding in all
    splits:

    - a `datasets.ClassLabel`, -1 where an image has no label, as in the Hub's test sets;
    - in a multi-label dataset a `datasets.List` of such, the indices of the image's classes, ascending; null where no
      label is known, and an empty list where the image has none of the classes.

    Streamed splits have the same columns, with labels as they are stored. If the dataset does not name its classes,
    `label` holds integers, and `label_names` is `None`.

    Args:
        name (`str`): What the user gave as the dataset, for logs and model cards: [`dataset_name`].
        train (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            `None` if there are several splits and none is called `train`.
        validation (`datasets.Dataset` or `datasets.IterableDataset`, *optional*):
            `None` if the dataset has no such split. None is made up.
        label_names (`list[str]`, *optional*): Names of the classes, in the order of their indices.
        splits (`list[str]`): Names of all splits of the dataset, including those that are not used.
        num_train (`int`, *optional*):
            Number of images to train on. `None` if only reading the whole stream would give it.
        train_shards (`list[Shard]`, *optional*): What `train` is made of, in its order, if it is streamed.
        multi_label (`bool`, *optional*, defaults to `False`): Whether an image may have several classes.
        in_memory (`bool`, *optional*, defaults to `False`):
            Whether the user gave an object of the `datasets` library, whose name does not identify its images.
        notes (`list[str]`, *optional*):
            What its reader understood or left out that the user may not expect, a line each.
        image_column, label_column (`str`, *optional*): Where the dataset has them: what was asked for, or chosen.
        first_of_stream (`list`, *optional*):
            First images of a stream, encoded, once [`~modeling_sit.data.image_sample.first_encoded`] has read them.
    """

    name: str
    train: datasets.Dataset | datasets.IterableDataset | None
    validation: datasets.Dataset | datasets.IterableDataset | None
    label_names: list[str] | None
    splits: list[str]
    num_train: int | None = None
    train_shards: list[Shard] | None = None
    multi_label: bool = False
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)
    image_column: str | None = None
    label_column: str | None = None
    first_of_stream: list[dict | None] | None = field(default=None, repr=False, compare=False)

    def refuse_streams(self) -> None:
        """Raise [`SiTError`] if a split is streamed, for what takes images by their row."""
        if any(isinstance(split, datasets.IterableDataset) for split in (self.train, self.validation)):
            raise SiTError(
                f"{self.name} is streamed, and its images must be known beforehand",
                argument="dataset",
                remedy="give a `datasets.Dataset` or files",
            )


def dataset_name(dataset: Any) -> str:
    """What to call a dataset in logs and model cards.

    Args:
        dataset: As for [`~modeling_sit.data.sources.load_images`].

    Returns:
        `str`: The string itself. Of a dataset in memory, its name if it has one, or else its number of rows.
    """
    if isinstance(dataset, (str, os.PathLike)):
        return os.fspath(dataset)
    splits = list(dataset.values()) if isinstance(dataset, Mapping) else [dataset]
    if not splits:
        return "no rows in memory"
    info = splits[0].info
    # The readers of files, such as `parquet`, call a dataset by their own name where they know no other.
    if info.dataset_name and info.dataset_name != info.builder_name:
        return info.dataset_name
    if isinstance(splits[0], datasets.IterableDataset):
        return "a stream in memory"
    return f"{sum(map(len, splits)):,} rows in memory"


def image_name(dataset: datasets.Dataset, index: int) -> str:
    """What to call an image in a log: its file's path, or the row that holds its bytes.

    Args:
        dataset (`datasets.Dataset`): A split of [`ImageDatasets`].
        index (`int`): Row of the image, from 0.

    Returns:
        `str`: Such as `/data/cells/a/007.png`, or `row 17 of train (007.png)`.
    """
    image = dataset[index]["image"] or {"bytes": None, "path": None}
    if image["path"] and image["bytes"] is None:
        return image["path"]
    row = f"row {index} of {dataset.split or 'the dataset'}"
    return f"{row} ({image['path']})" if image["path"] else row


def read_row(
    dataset: datasets.Dataset,
    index: int,
    pixel_format: PixelFormat | int = 3,
    draft_scale: DraftScale | None = None,
    max_pixels: int | None = None,
) -> tuple[Image, dict[str, Any]]:
    """Decode an image of a dataset.

    Args:
        dataset (`datasets.Dataset`): A split of [`ImageDatasets`].
        index (`int`): Row of the image, from 0.
        pixel_format ([`PixelFormat`] or `int`, *optional*, defaults to 3): What to decode it to.
        draft_scale ([`DraftScale`], *optional*): By how much to shrink it. Default: not at all.
        max_pixels (`int`, *optional*): How many pixels may be decoded. Default: `PIL.Image.MAX_IMAGE_PIXELS`, or the
            environment variable `SIT_MAX_IMAGE_PIXELS`.

    Returns:
        `tuple[Image, dict]`: The image, as of [`decode_image`], and its row.

    Raises:
        [`UnreadableImage`]: If the image cannot be decoded. The message names it as [`image_name`] does.
    """
    row, name = dataset[index], str(index)
    try:
        return decode_image(row["image"], pixel_format, name, draft_scale, max_pixels), row
    except UnreadableImage as problem:
        # The full name reads the row once more, so it is made for unreadable images only.
        reason = str(problem).removeprefix(f"{name}: ")
        raise type(problem)(f"{image_name(dataset, index)}: {reason}") from None


def first_rows(split: datasets.Dataset | datasets.IterableDataset, num_rows: int) -> datasets.Dataset:
    """The split itself; of a stream its first `num_rows` rows, or as many as there are."""
    if not isinstance(split, datasets.IterableDataset):
        return split
    return datasets.Dataset.from_list(list(split.take(num_rows)), features=split.features, split=split.split)
