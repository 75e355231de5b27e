"""The images of a comparison: every run trains on the same ones and is measured on the same ones."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.description import describe_copies, tell, tell_more
from modeling_sit.data.duplicates import find_duplicates
from modeling_sit.data.image_datasets import (
    TEST_SPLITS,
    VALIDATION_SPLITS,
    ImageDatasets,
    dataset_name,
    image_name,
)
from modeling_sit.data.labeled import labeled_rows, labeled_splits, labels_of
from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import NothingToHoldOut, hold_out_labeled, train_validation_rows
from modeling_sit.evaluation.feature_files import encoded_images
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.interop.convert_in import range_of

# Where there are no images to measure, this fraction of the training images is held back, by this seed.
TEST_FRACTION, TEST_SEED = 0.2, 0


class UsualNeighbors(ProtocolArguments):
    """Those of a comparison in which nobody gives `knn_k`: where fewer training images can be read, all of these vote."""

    def neighbors(self, num_train: int) -> int:
        return min(self.knn_k, num_train)


def protocol_class(given: Collection[str]) -> type[ProtocolArguments]:
    """The class of a comparison's arguments of protocols, by the names of those that are given."""
    return ProtocolArguments if "knn_k" in given else UsualNeighbors


@dataclass(frozen=True)
class ComparedImages:
    """
    Labeled images to train on and to measure.

    Args:
        train, test (`datasets.Dataset`): Columns `image` and `label`.
        label_names (`list[str]`): Names of the classes, in the order of their indices.
        test_name (`str`): What the test images are, for the user.
        arguments (`dict`): Fields of [`DatasetArguments`] by which a run finds the same images.
        is_held_back (`bool`, *optional*, defaults to `False`): Whether the test images are a part of the training split.
        has_other_validation (`bool`, *optional*, defaults to `False`): Whether there is a validation split that is not measured.
        copies (`str`, *optional*): That some test images are training images too, in a line. `None` if none is known to be.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    label_names: list[str]
    test_name: str
    arguments: Mapping[str, Any]
    is_held_back: bool = False
    has_other_validation: bool = False
    copies: str | None = None

    @property
    def for_finetuning(self) -> Mapping[str, Any]:
        """`arguments` for networks. By a validation split that is not measured they would choose with all its labels, whatever the
        fraction of the labels; classifiers of raw pixels could not. They do not see it."""
        if not self.has_other_validation:
            return self.arguments
        return self._in_memory({"train": self.train, self.arguments["validation_split"]: self.test})

    def measured_name(self, num_images: int) -> str:
        """`test_name`; where some test images cannot be read, also how many were measured.

        Args:
            num_images (`int`): Test images that were measured.
        """
        if num_images == len(self.test):
            return self.test_name
        return f"{self.test_name} (the {num_images:,} that can be read)"

    def fingerprint(self) -> str:
        """A short checksum that differs where images were added, removed or labeled otherwise."""
        checksum = hashlib.blake2b("\n".join(self.label_names).encode(), digest_size=8)
        for split in (self.train, self.test):
            checksum.update(f"\n{len(split)} ".encode() + labels_of(split).numpy().tobytes())
        return checksum.hexdigest()

    def files(self) -> str:
        """A short checksum that differs where images were replaced, too. A file is known by its name, its folder's and its size."""
        checksum = hashlib.blake2b(digest_size=8)
        for split in (self.train, self.test):
            for path, content in encoded_images(split):
                checksum.update(f"\n{'/'.join(Path(path or '').parts[-2:])} ".encode())
                checksum.update(_size_of(path) if content is None else content)
        return checksum.hexdigest()

    def protocol_arguments(self) -> dict[str, Any]:
        """Arguments of the protocols of frozen features, where the usual ones need more training images."""
        return {} if self.can_hold_out() else {"linear_c": [1.0]}

    def can_hold_out(self) -> bool:
        """Whether training images can be held out to choose by."""
        try:
            hold_out_labeled(self.train.select_columns(["label"]), TEST_FRACTION, TEST_SEED)
        except NothingToHoldOut:
            return False
        return True

    def in_memory(self, train: datasets.Dataset, test: datasets.Dataset) -> "ComparedImages":
        """The same with other splits, such as a part of each, which runs find in memory."""
        arguments = self._in_memory({"train": train, "test": test})
        return replace(self, train=train, test=test, arguments=arguments, has_other_validation=False)

    def _in_memory(self, splits: dict[str, datasets.Dataset]) -> dict[str, Any]:
        """`arguments` for other splits in memory; the last one is measured."""
        for split in splits.values():
            split.info.dataset_name = dataset_name(self.arguments["dataset"])  # what results and cards call it
        kept = {name: value for name, value in self.arguments.items() if name == "intensity_range"}
        found = {"dataset": datasets.DatasetDict(splits), "validation_split": list(splits)[-1]}
        return {**dict.fromkeys(self.arguments), **found, **kept}


def _size_of(path: str | None) -> bytes:
    try:
        return str(os.path.getsize(path)).encode()
    except (OSError, TypeError):
        return b""


def compared_images(arguments: DatasetArguments, model_name_or_path: str | None = None) -> ComparedImages:
    """
    The images of a comparison. The split to measure is the one that the arguments name; else one that is called like a
    test split and has labels; else one that is called like a validation split; else a fifth of the training images of each
    class, which no run trains on.

    Args:
        arguments ([`DatasetArguments`]): Which images.
        model_name_or_path (`str`, *optional*): A model that says by which range they are read.

    Raises:
        [`SiTError`]: If there is no such dataset or split, labels are missing, or there is one class only.
    """
    arguments.check_intensity_range()
    given = arguments.for_loading
    images = load_images(**given, labels="required")
    if arguments.validation_split is None:
        given["validation_split"], images = _measured_split(given, images)
    tell(images, intensity_range=range_of(model_name_or_path, arguments.intensity_range))
    train, test = labeled_splits(images, validation="if there")
    intensities = {"intensity_range": arguments.intensity_range}
    if test is not None:
        name = f"{len(test):,} images of {test.split}"
        others = {each.lower() for each in images.splits if each not in (str(train.split), given["validation_split"])}
        has_other = bool(others & {*VALIDATION_SPLITS} - {*TEST_SPLITS})
        copies = [
            describe_copies(found, images.name) for found in find_duplicates([images.train, images.validation]) or ()
        ]
        return ComparedImages(
            *(train, test, images.label_names, name, given | intensities),
            has_other_validation=has_other,
            copies=next(iter(copies), None),
        )

    rest, held_back = train_validation_rows(train, TEST_FRACTION, TEST_SEED)
    name = f"{100 * TEST_FRACTION:g} % of {train.split}, {len(held_back):,} images, held back"
    copies = _copies_of_held_back(images, train, rest, held_back)
    if copies is not None:
        tell_more(f"warning: {copies}")
    train, test = train.select(rest), train.select(held_back)
    found = ComparedImages(
        *(train, test, images.label_names, name, given | intensities), is_held_back=True, copies=copies
    )
    return found.in_memory(train, test)


def _copies_of_held_back(
    images: ImageDatasets, train: datasets.Dataset, rest: np.ndarray, held_back: np.ndarray
) -> str | None:
    """That images which are held back are among the rest too, in a line.

    Args:
        images ([`ImageDatasets`]): The dataset.
        train (`datasets.Dataset`): Its labeled training images.
        rest, held_back (`np.ndarray`): Rows of `train`.
    """
    rows = labeled_rows(images.train)
    for found in find_duplicates([train.select(rest), train.select(held_back)]) or ():
        places = (held_back[found.rows[0]], rest[found.rows[1]])
        names = tuple(image_name(images.train, int(rows[place])) for place in places)
        parts = {"split": f"the part of {train.split} that is held back", "other": "the rest of it"}
        return describe_copies(replace(found, **parts, names=names), images.name)
    return None


def _measured_split(given: Mapping[str, Any], images: ImageDatasets) -> tuple[str | None, ImageDatasets]:
    """The name of the split to measure and the images with it, or `None` if there is none."""
    train = str(images.train.split) if images.train is not None else None
    others = {name.lower(): name for name in images.splits if name != train}
    for usual in (*TEST_SPLITS, *VALIDATION_SPLITS):
        if usual in others:
            name = others[usual]
            found = load_images(**{**given, "validation_split": name}, labels="required")
            # Test sets on the Hub often come without their labels.
            if usual not in TEST_SPLITS or not (labels_of(found.validation) < 0).all():
                return name, found
    images.validation = None
    return None, images
