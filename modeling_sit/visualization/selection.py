"""The images that a figure shows: which ones, under which names, and their features."""

import base64
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.sources import ImageDatasets, image_name, read_row
from modeling_sit.evaluation.features import extract_features
from modeling_sit.runtime.errors import SiTError

# Images smaller than this are made of visible pixels, which JPEG would smear.
SMALL_IMAGE = 48


def choose_split(images: ImageDatasets, train_split: str | None, validation_split: str | None) -> datasets.Dataset:
    """The one split to show: the one that a flag names, else that for validation, else that for training.

    Raises:
        [`SiTError`]: If both flags name one, or none can be chosen.
    """
    if train_split is not None and validation_split is not None:
        raise SiTError("--train_split and --validation_split: one split is shown; give one of them")
    split = images.train if train_split is not None or images.validation is None else images.validation
    if split is None:
        raise SiTError(f"--validation_split: name one of the splits of {images.name}: {', '.join(images.splits)}")
    if len(split) == 0:
        raise SiTError(f"--dataset {images.name}: split {split.split} holds no images")
    return split


def image_files(paths: Sequence[str]) -> datasets.Dataset:
    """Files as a split without labels.

    Raises:
        [`SiTError`]: If one is no file.
    """
    for path in paths:
        if not Path(path).is_file():
            raise SiTError(f"--images {path}: no such file")
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
    """What a page calls an image: its path below the dataset's folder, or its file's name, or the row where its bytes are.

    Unlike [`image_name`] it says nothing of where a set lies on this machine.
    """
    image = split[row]["image"] or {"bytes": None, "path": None}
    name = f"row {row} of {split.split or 'the dataset'}"
    if not image["path"]:
        return name
    path, folder = Path(os.path.abspath(image["path"])), Path(os.path.abspath(Path(folder).expanduser()))
    if image["bytes"] is not None:
        return f"{name} ({path.name})"
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name


def file_name(split: datasets.Dataset, row: int) -> str:
    """Name of an image's file without what it ends in; empty where it has none."""
    return Path((split[row]["image"] or {}).get("path") or "").stem


def tell_shortage(flag: str, asked: int, default: int, there: int) -> None:
    """Say on stderr that a flag asks for more than there is; not of its default, which nobody asked for."""
    if asked > there and asked != default:
        print(f"{flag} {asked}: there are {there}", file=sys.stderr)


def label_text(labels: tuple[str, ...] | None) -> str | None:
    """How a figure writes the classes of an image."""
    return None if labels is None else " + ".join(labels) or "none of the classes"


def order_of_choice(labels: Sequence[tuple[str, ...] | None], seed: int) -> list[int]:
    """All rows in a random order in which every class (or combination of classes) comes up in each round, as long as it
    has images: the first few show as many classes as they can."""
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
    split: datasets.Dataset, rows: Iterable[int], count: int, num_channels: int
) -> tuple[list[int], list[PIL.Image.Image]]:
    """The first `count` of these rows whose images can be read, and the images; the others are named on stderr.

    Raises:
        [`SiTError`]: If none can be read.
    """
    kept, images = [], []
    for row in rows:
        try:
            images.append(read_row(split, row, num_channels)[0])
            kept.append(row)
        except UnreadableImage as problem:
            print(f"skipped {problem}", file=sys.stderr)
        if len(kept) == count:
            break
    if not kept:
        raise SiTError(f"none of the images can be read; the first is {image_name(split, 0)}")
    return kept, images


def read_given_files(split: datasets.Dataset, num_channels: int) -> list[PIL.Image.Image]:
    """All images of [`image_files`].

    Raises:
        [`SiTError`]: Naming the file, if one cannot be read.
    """
    try:
        return [read_row(split, row, num_channels)[0] for row in range(len(split))]
    except UnreadableImage as problem:
        raise SiTError(f"--images {problem}") from problem


def frozen_features(
    model: PreTrainedModel, split: datasets.Dataset, processor: BaseImageProcessor, **settings
) -> tuple[torch.Tensor, list[int]]:
    """Features of the images that can be read, with a line on stderr for each that cannot.

    Args:
        model, split, processor, settings: As of [`extract_features`].

    Returns:
        `tuple[torch.Tensor, list[int]]`: Features `(num_kept, width)`, float32, on the CPU, and the row of each in `split`.

    Raises:
        [`SiTError`]: If no image can be read, or a feature is not finite.
    """
    images = split.select_columns("image")
    try:
        found = extract_features(model, images, processor, **settings)
    except ValueError as problem:
        raise SiTError(f"split {split.split}: {problem}") from problem
    for name, reason in found.skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if not found.features.isfinite().all():
        raise SiTError("the model gives features that are not finite: its training has diverged; take another")
    return found.features, rows_left(images, [name for name, _ in found.skipped])


def rows_left(split: datasets.Dataset, skipped: Iterable[str]) -> list[int]:
    """The rows of a split without those of these names, as [`image_name`] gives them."""
    skipped = set(skipped)
    if not skipped:
        return list(range(len(split)))
    return [row for row in range(len(split)) if image_name(split, row) not in skipped]


def thumbnail(split: datasets.Dataset, row: int, size: int, num_channels: int = 3) -> PIL.Image.Image:
    """An image of at most `size` pixels a side, in RGB."""
    image = decode_image(split[row]["image"], num_channels).convert("RGB")
    image.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
    return image


def data_uri(image: PIL.Image.Image) -> str:
    """An image as a `data:` address: JPEG, or PNG where it is small."""
    buffer = io.BytesIO()
    kind = "png" if max(image.size) < SMALL_IMAGE else "jpeg"
    image.save(buffer, kind, **({"quality": 80} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
