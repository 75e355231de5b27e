"""Folders of images, and beside them masks with a class for each pixel.

A file is a mask if a folder on its way is called like one: `masks`, `annotations`, `train_labels`, `trainannot`. Its image has
the same path without such words, and without `images` and the like: `train/images/a.jpg` and `train/masks/a.png`, or
`images/train/a.jpg` and `annotations/train/a.png`, or `train/a.jpg` and `train_masks/a_mask.gif`. The names of the folders tell
the splits. Where no folder is called so, masks lie beside their images: `train/a.jpg` and `train/a_mask.png`.
"""

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, replace

import datasets

from modeling_sit.data.beside_images import HOLDERS, IMAGES
from modeling_sit.data.dataset_forms import arrow_images, reader_errors
from modeling_sit.data.dense.mask_values import find_label_names
from modeling_sit.data.dense.masks import MaskReader
from modeling_sit.data.file_names import MASKS, masks_beside
from modeling_sit.data.label_encoding import join
from modeling_sit.data.opening import image_extensions
from modeling_sit.data.own_files import walk
from modeling_sit.data.split_names import KINDS, split_of_name, words_of
from modeling_sit.runtime.errors import SiTError

# Words that do not tell where a file belongs: `SegmentationClass` of the Pascal sets is that of `JPEGImages`.
NAMES_OF_FOLDERS = MASKS | IMAGES | HOLDERS | {"class"}
# A word for masks in one word with that of a split: `trainannot`.
IN_ONE_WORD = re.compile(rf"^({'|'.join(KINDS)})({'|'.join(sorted(MASKS, key=len, reverse=True))})$", re.IGNORECASE)
# What the names of masks may have behind those of the images.
SUFFIX = re.compile(rf"[-_. ](?:{'|'.join(sorted(MASKS, key=len, reverse=True))}|l|p|pixels?)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Place:
    """Where a file belongs: the words on its way that are neither of masks nor of images, its name, and its split."""

    way: tuple[str, ...]
    stem: str
    split: str
    is_mask: bool


@dataclass
class Pairs:
    """
    Images and masks of a split.

    Args:
        images, masks (`list[str]`): Their paths, in the same order.
        without_mask, without_image (`list[str]`): Paths of what has no partner.
    """

    images: list[str]
    masks: list[str]
    without_mask: list[str]
    without_image: list[str]


def find_pairs(folder: str) -> dict[str, Pairs]:
    """The pairs of each split of a folder; none, if there are no masks in it.

    Raises:
        [`SiTError`]: If no image has a mask, or several have one.
    """
    extensions = image_extensions()
    with reader_errors(f"{folder} cannot be read"):
        paths = [path for path in walk(folder, []) if path.lower().endswith(extensions)]
    places = {path: _place_of(os.path.relpath(path, folder)) for path in paths}
    if not any(place.is_mask for place in places.values()):
        beside, _ = masks_beside(paths)
        if not beside:
            return {}
        for mask, image in beside.items():
            places[mask] = replace(places[image], is_mask=True)
    found: dict[str, Pairs] = {}
    for split in dict.fromkeys(place.split for place in places.values()):
        images = {path: place for path, place in places.items() if place.split == split and not place.is_mask}
        masks = {path: place for path, place in places.items() if place.split == split and place.is_mask}
        pairs = _pair(images, masks)
        if pairs.images:
            found[split] = pairs
    if not found:
        image = next((path for path, place in places.items() if not place.is_mask), None)
        mask = next(path for path, place in places.items() if place.is_mask)
        others = f"no image has the name of a mask, such as {os.path.relpath(mask, folder)}"
        if image is not None:
            others += f"; one of the images is {os.path.relpath(image, folder)}"
        raise SiTError(
            f"{folder}: {others}", argument="dataset", remedy="call each mask as its image: a.jpg and a.png"
        )
    return found


def _place_of(path: str) -> _Place:
    *folders, file = path.split(os.sep)
    way, split, is_mask = [], "train", False
    for name in folders:
        words = [part for word in words_of(name) for part in (IN_ONE_WORD.sub(r"\1 \2", word)).lower().split()]
        pairs = map("".join, itertools.pairwise(words))  # `ground_truth`
        is_mask |= not MASKS.isdisjoint([*words, *pairs])
        told = split_of_name(name) or split_of_name(" ".join(words))
        split = told.name.lower() if told is not None else split
        rest = [word for word in words if word not in NAMES_OF_FOLDERS and word not in KINDS]
        # Numbers divide, too: `part_1` and `part_2` may have images of one name.
        numbers = re.findall(r"\d+", name)
        way += [*rest, *numbers]
    return _Place(tuple(way), os.path.splitext(file)[0].lower(), split, is_mask)


def _pair(images: dict[str, _Place], masks: dict[str, _Place]) -> Pairs:
    by_name: dict[tuple, list[str]] = {}
    for path, place in masks.items():
        for stem in dict.fromkeys([place.stem, SUFFIX.sub("", place.stem)]):
            by_name.setdefault((place.way, stem), []).append(path)
    number = Counter((place.way, place.stem) for place in images.values())
    pairs = Pairs([], [], [], [])
    for path, place in images.items():
        key = (place.way, place.stem)
        of_image = by_name.get(key) or by_name.get((place.way, SUFFIX.sub("", place.stem)), [])
        exact = [mask for mask in of_image if masks[mask].stem == place.stem] or of_image
        if len(exact) > 1 or (exact and number[key] > 1):
            others = exact if len(exact) > 1 else [image for image, other in images.items() if other == place]
            raise SiTError(
                f"it is not clear which mask belongs to which image: {join(others[:4])}",
                argument="dataset",
                remedy="keep one mask for each image, with the same name",
            )
        if exact:
            pairs.images.append(path)
            pairs.masks.append(exact[0])
        else:
            pairs.without_mask.append(path)
    used = set(pairs.masks)
    pairs.without_image = [path for path in masks if path not in used]
    return pairs


class MaskFolder:
    """
    A folder of images and masks.

    Args:
        folder (`str`): The folder.
        pairs (`dict` of `str` to [`Pairs`]): Those of each split.
        label_names (`list[str]`, *optional*):
            Names of the classes. Default: those in a file of the folder, or of the folders of the masks, or else numbers.
        reduce_labels (`bool`, *optional*, defaults to `False`): Whether 0 stands for no class.
    """

    def __init__(
        self, folder: str, pairs: dict[str, Pairs], label_names: list[str] | None = None, reduce_labels: bool = False
    ):
        self.pairs = pairs
        of_masks = {os.path.dirname(mask) for found in pairs.values() for mask in found.masks}
        named, colors = find_label_names(folder, sorted(of_masks))
        self.reader = MaskReader(label_names or named, colors, reduce_labels)
        self.notes = self.reader.notes
        for split, found in pairs.items():
            for paths, problem in (
                (found.without_mask, "images have no mask and are left out"),
                (found.without_image, "masks have no image and are left out"),
            ):
                if paths:
                    self.notes.append(f"{split}: {len(paths):,} {problem}, such as {paths[0]}")

    @property
    def splits(self) -> list[str]:
        return list(self.pairs)

    @property
    def label_names(self) -> list[str] | None:
        return self.reader.label_names

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`~modeling_sit.data.dense.rows.pixel_features`]."""
        pairs = self.pairs[split]
        images = arrow_images(paths=pairs.images)
        columns = {"image": images, "label": arrow_images(paths=pairs.masks)}
        rows = datasets.Dataset.from_dict(
            columns,
            features=datasets.Features({name: datasets.Image(decode=False) for name in columns}),
            split=datasets.NamedSplit(split),
        )
        others = [self.pairs[name].masks for name in self.splits if name != split]
        return self.reader.read(rows, [{"bytes": None, "path": path} for paths in others for path in paths])
