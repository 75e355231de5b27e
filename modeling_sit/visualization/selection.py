"""The images that a figure shows: which ones, and under which names."""

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from modeling_sit.data.decoding import Image, UnreadableImage, decode_image
from modeling_sit.data.image_datasets import ImageDatasets, image_name, read_row
from modeling_sit.image_modes import PixelFormat, as_shown
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

# Images smaller than this have visible pixels, which JPEG would smear.
SMALL_IMAGE = 48


def choose_split(images: ImageDatasets, train_split: str | None, validation_split: str | None) -> datasets.Dataset:
    """The one split to show: the one that an argument names, else the validation split, else the training split.

    Raises:
        [`SiTError`]: If both arguments are given, or there is no such split, or it is empty.
    """
    images.refuse_streams()
    if train_split is not None and validation_split is not None:
        raise SiTError("only one split is shown", argument="train_split", remedy="give this or `validation_split`")
    split = images.train if train_split is not None or images.validation is None else images.validation
    if split is None:
        raise SiTError(
            f"name one of the splits of {images.name}: {', '.join(images.splits)}", argument="validation_split"
        )
    if len(split) == 0:
        raise SiTError(f"split {split.split} of {images.name} holds no images", argument="dataset")
    return split


def image_files(paths: Sequence[str]) -> datasets.Dataset:
    """Files as a split without labels.

    Raises:
        [`SiTError`]: If there is no such file.
    """
    for path in paths:
        if not Path(path).is_file():
            raise SiTError(f"{path}: no such file", argument="images")
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": [str(path) for path in paths]}, features=features)


def label_sets(split: datasets.Dataset, label_names: Sequence[str] | None) -> list[tuple[str, ...] | None]:
    """Names of the classes of each image: one in a single-label set, any number in a multi-label one, `None` where no
    label is known."""
    if label_names is None or "label" not in split.column_names:
        return [None] * len(split)
    single = isinstance(split.features["label"], datasets.ClassLabel)
    named = []
    for label in split.with_format(None)["label"][:]:
        if label is None or (single and label < 0):
            named.append(None)
        else:
            named.append(tuple(label_names[index] for index in ([label] if single else sorted(label))))
    return named


def short_name(split: datasets.Dataset, row: int, folder: str | Path) -> str:
    """Name of an image on a page: its path below the dataset's folder, or its file's name, or the row where its bytes
    are.

    Unlike [`image_name`] it does not show where a dataset lies on this machine.
    """
    image = split[row]["image"] or {"bytes": None, "path": None}
    name = f"row {row} of {split.split or 'the dataset'}"
    if not image["path"]:
        return name
    path, folder = Path(os.path.abspath(image["path"])), Path(os.path.abspath(os.path.expanduser(folder)))
    if image["bytes"] is not None:
        return f"{name} ({path.name})"
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def dataset_title(dataset: str) -> str:
    """What a figure calls a dataset: the last part of its path or of its Hub id."""
    return Path(dataset).name or dataset


def file_name(split: datasets.Dataset, row: int) -> str:
    """Name of an image's file without its extension; empty where it has none."""
    return Path((split[row]["image"] or {}).get("path") or "").stem


def warn_shortage(argument: str, asked: int, default: int, available: int) -> None:
    """Warn that an argument asks for more than there is, unless it has its default, which nobody asked for."""
    if asked > available and asked != default:
        logger.warning("%s %d: there are only %d", argument, asked, available)


def label_text(labels: tuple[str, ...] | None) -> str | None:
    """The classes of an image as a figure shows them."""
    return None if labels is None else " + ".join(labels) or "none of the classes"


def order_of_choice(labels: Sequence[tuple[str, ...] | None], seed: int) -> list[int]:
    """All rows in a random order, in rounds: each round has one image of every class (or combination of classes) that
    has images left. The first few therefore show as many classes as possible."""
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    seen: Counter = Counter()
    rounds = []
    for row in order:
        rounds.append(seen[labels[row]])
        seen[labels[row]] += 1
    return [order[place] for place in np.argsort(rounds, kind="stable")]


def choose_rows(num_rows: int, count: int, seed: int) -> list[int]:
    """`count` rows at random, or all, in their order."""
    if count >= num_rows:
        return list(range(num_rows))
    return sorted(np.random.default_rng(seed).choice(num_rows, count, replace=False).tolist())


def read_first(
    split: datasets.Dataset, rows: Iterable[int], count: int, pixel_format: PixelFormat | int
) -> tuple[list[int], list[Image]]:
    """The first `count` of these rows whose images can be read, and the images. The others get a warning.

    Raises:
        [`SiTError`]: If none can be read.
    """
    kept, images = [], []
    for row in rows:
        try:
            images.append(read_row(split, row, pixel_format)[0])
            kept.append(row)
        except UnreadableImage as problem:
            logger.warning("skipped %s", problem)
        if len(kept) == count:
            break
    if not kept:
        raise SiTError(f"none of the images can be read; the first is {image_name(split, 0)}")
    return kept, images


def read_given_files(split: datasets.Dataset, pixel_format: PixelFormat | int) -> list[Image]:
    """All images of [`image_files`].

    Raises:
        [`SiTError`]: Naming the file, if one cannot be read.
    """
    try:
        return [read_row(split, row, pixel_format)[0] for row in range(len(split))]
    except UnreadableImage as problem:
        raise SiTError(str(problem), argument="images") from problem


def thumbnail(split: datasets.Dataset, row: int, size: int, pixel_format: PixelFormat | int = 3) -> PIL.Image.Image:
    """An image of at most `size` pixels a side, in RGB; as of [`as_shown`]."""
    image = as_shown(decode_image(split[row]["image"], pixel_format))
    image.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    return image


def data_uri(image: PIL.Image.Image, is_exact: bool = False) -> str:
    """An image as a `data:` URI: JPEG, or PNG where it is small, or asked to have its exact pixels."""
    buffer = io.BytesIO()
    kind = "png" if is_exact or max(image.size) < SMALL_IMAGE else "jpeg"
    image.save(buffer, kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
