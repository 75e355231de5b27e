"""Datasets with a column of objects, or with one of masks: parquet files, saved datasets, the Hub, and in memory."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import datasets

from modeling_sit.data.dataset_forms import load_splits, reader_errors
from modeling_sit.data.dense.annotations import AnnotationCheck, ImageOfObjects
from modeling_sit.data.dense.mask_values import find_label_names
from modeling_sit.data.dense.masks import MaskReader
from modeling_sit.data.dense.rows import ENCODED, object_columns, object_features, table_of
from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.image_sizes import is_turned, some_rows, upright_size
from modeling_sit.data.label_encoding import MASK_COLUMNS, find_image_column, image_columns, join, type_name
from modeling_sit.data.split_names import split_named
from modeling_sit.data.unread_splits import SplitStream, UnreadSplit
from modeling_sit.runtime.errors import SiTError

BOXES = ("bbox", "bboxes", "boxes", "box")
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
SEGMENTATIONS = ("segmentation", "segmentations", "mask", "masks")
CROWDS = ("iscrowd", "is_crowd")
SIZES = ("image_id", "width", "height")
# If a larger fraction of the images is of another size than their rows say, something is wrong with all of them.
MANY_WRONG = 0.1


class _Columns(ABC):
    """
    Splits of which the column of images is read, and one that says what is true of them.

    Attributes:
        kind (`str`): What that column holds, such as `masks`.
        usual (collection of `str`): What it is called, in lower case, if nobody names it.
        other_form (`str`): The other form of such a dataset, which was not found.
        remedy (`str`): What to give.
    """

    kind: ClassVar[str]
    usual: ClassVar[Collection[str]]
    other_form: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(
        self, dataset: Any, config_name: str | None, columns: tuple[str | None, str | None], asked: Sequence[str]
    ):
        found = load_splits(dataset, config_name, False, columns[0], asked)
        if any(isinstance(rows, SplitStream) for rows in found.values()):
            raise SiTError(
                "it is streamed, and objects and masks must be known beforehand",
                argument="dataset",
                remedy="give a `datasets.Dataset` or files",
            )
        self.found: dict[str, datasets.Dataset | UnreadSplit] = found
        self.notes: list[str] = []
        self.features: dict[str, Any] = {}
        for rows in reversed(list(found.values())):
            self.features |= rows.features
        self.truth = self._find_truth(columns[1])
        others = {name: feature for name, feature in self.features.items() if name != self.truth}
        self.image = find_image_column(others, columns[0])

    @property
    def splits(self) -> list[str]:
        return list(self.found)

    @staticmethod
    @abstractmethod
    def holds(feature: Any) -> bool:
        """Whether a column of this type may be the one that says what is true."""

    def _find_truth(self, asked: str | None) -> str:
        """The column that is asked for, or the only one that is called as usual.

        Raises:
            [`SiTError`]: If there is none, or several.
        """
        if asked is not None and asked not in self.features:
            raise SiTError(f"no column {asked}, only {join(self.features)}", argument="label_column")
        if asked is not None and not self.holds(self.features[asked]):
            raise SiTError(
                f"column {asked} holds {type_name(self.features[asked])}, and no {self.kind}",
                argument="label_column",
                remedy=self.remedy,
            )
        called = [name for name in self.features if name == asked or (asked is None and name.lower() in self.usual)]
        found = [name for name in called if self.holds(self.features[name])]
        if len(found) > 1:
            raise SiTError(
                f"several columns of {self.kind}: {join(found)}", argument="label_column", remedy="choose one"
            )
        if not found:
            raise SiTError(
                f"no {self.other_form}, and no column of {self.kind} among {join(self.features)}",
                argument="dataset",
                remedy=self.remedy,
            )
        return found[0]

    def rows(self, split: str, *others: str) -> datasets.Dataset:
        """A split with the column `image`, that of what is true, and others, by their own names.

        Raises:
            [`SiTError`]: If it has no such columns, or no row.
        """
        rows = self.found[split]
        for column in (self.image, self.truth):
            if column not in rows.features:
                raise SiTError(f"split {split} has no column {column}, only {join(rows.features)}", argument="dataset")
        read = [self.truth, *(column for column in others if column in rows.features)]
        if isinstance(rows, UnreadSplit):
            with reader_errors(f"split {split} cannot be read"):
                rows = rows.read(self.image, read)
        if len(rows) == 0:
            raise SiTError(f"split {split} is empty", argument="dataset")
        rows = rows.select_columns([self.image, *read])
        rows = rows if rows._indices is None else rows.flatten_indices()  # only then columns can be put beside it
        rows = rows.rename_column(self.image, "image") if self.image != "image" else rows
        rows = rows.cast_column("image", ENCODED)
        return datasets.Dataset(rows.data, info=rows.info, split=split_named(split))


class ObjectColumns(_Columns):
    """
    A dataset with a column of objects: a struct of lists, or a list of structs, with boxes (`bbox`: x, y, width, height in
    pixels) and categories, and maybe `area`, `iscrowd`, `segmentation`, `id`.

    Args:
        dataset, config_name, asked: As for [`~modeling_sit.data.dense.loading.open_dense`].
        columns (pair of `str`, *optional*): Names of the columns of the images and of the objects.
        classes (pair): Names of the classes, if they are known, and whether every object must have a mask.
    """

    kind, usual = "objects", ("objects", "annotations", "object")
    other_form = "file of annotations (.json)"
    remedy = "give a folder with train.json and images/, or a dataset with a column `objects` of bbox and category"

    def __init__(
        self,
        dataset: Any,
        config_name: str | None,
        columns: tuple[str | None, str | None],
        asked: Sequence[str],
        classes: tuple[list[str] | None, bool],
    ):
        super().__init__(dataset, config_name, columns, asked)
        self.label_names, self.needs_masks = classes
        of_objects = _fields(self.features[self.truth])
        self.boxes = _named(of_objects, BOXES)
        self.categories = _named(of_objects, CATEGORIES)
        if self.categories is None or (self.boxes is None and _named(of_objects, SEGMENTATIONS) is None):
            raise SiTError(
                f"column {self.truth} has the fields {join(of_objects)}: boxes (bbox) and categories (category) are needed",
                argument="label_column",
            )
        self.feature = of_objects[self.categories]
        if isinstance(self.feature, datasets.ClassLabel):
            self.stored_names = self.feature.names
        else:
            self.stored_names = None

    @staticmethod
    def holds(feature: Any) -> bool:
        return bool(_fields(feature))

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`~modeling_sit.data.dense.rows.object_features`]."""
        rows = self.rows(split, *SIZES)
        told = rows.select_columns([name for name in rows.column_names if name != "image"])
        if self.label_names is None:
            self.label_names = self.stored_names or self._count_classes(told)
        sizes, wrong = self._sizes(rows, told)
        check = AnnotationCheck(str(rows.split), self.needs_masks, box_name=self.boxes or "bbox")
        by_name = {name: index for index, name in enumerate(self.label_names)}
        number, objects = 0, []
        for row, entry in enumerate(told):
            image = ImageOfObjects(f"row {row}", *sizes[row])
            of_image = []
            for annotation in _of_image(entry[self.truth]) if row not in wrong else ():
                number += 1
                index = self._index(annotation.get(self.categories), by_name, f"{rows.split}: row {row}")
                found = check.read(self._as_coco(annotation, number), index, number, image)
                if found is not None:
                    of_image.append(found)
            objects.append(of_image)
        self.notes += check.notes()
        columns = object_columns(self._image_ids(told), sizes, objects)
        features = object_features(self.label_names)
        others = table_of(columns, datasets.Features({name: features[name] for name in columns}), str(rows.split))
        rows = datasets.concatenate_datasets([rows.select_columns(["image"]), others], axis=1, split=rows.split)
        return rows.select([row for row in range(len(rows)) if row not in wrong]) if wrong else rows

    def _as_coco(self, annotation: dict[str, Any], number: int) -> dict[str, Any]:
        segmentation = next((annotation[name] for name in SEGMENTATIONS if annotation.get(name) is not None), None)
        if isinstance(segmentation, str):  # some write JSON into a column
            segmentation = json.loads(segmentation)
        if isinstance(segmentation, dict):
            segmentation = {name: value for name, value in segmentation.items() if value is not None}
        crowd = next((annotation[name] for name in CROWDS if annotation.get(name) is not None), 0)
        id = annotation.get("id", annotation.get("bbox_id", number))
        box = annotation.get(self.boxes) if self.boxes is not None else None
        return {"id": id, "bbox": box, "area": annotation.get("area"), "iscrowd": crowd, "segmentation": segmentation}

    def _index(self, category: Any, by_name: dict[str, int], name: str) -> int:
        """The index of an object's class, of the indices by their names.

        Raises:
            [`SiTError`]: If there is no such class.
        """
        if self.stored_names is not None and isinstance(category, int) and 0 <= category < len(self.stored_names):
            category = self.stored_names[category]
        if str(category) not in by_name:
            known = join(self.label_names[:10]) + (", ..." if len(self.label_names) > 10 else "")
            raise SiTError(
                f"{name} has an object of category {category}, and the classes are {known}",
                argument="dataset",
                remedy="correct it or take it out",
            )
        return by_name[str(category)]

    def _count_classes(self, rows: datasets.Dataset) -> list[str]:
        found = {annotation.get(self.categories) for row in rows for annotation in _of_image(row[self.truth])} - {None}
        if not found:
            raise SiTError(f"column {self.truth} of {rows.split} holds no object", argument="label_column")
        if not all(isinstance(value, str) for value in found):
            self.notes.append(
                f"the categories have no names: there are {len(found)}, and their values are their names"
            )
        return [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))]

    def _image_ids(self, rows: datasets.Dataset) -> list[int]:
        ids = list(rows["image_id"]) if "image_id" in rows.column_names else []
        is_usable = bool(ids) and all(isinstance(id, int) for id in ids) and len(set(ids)) == len(ids)
        return ids if is_usable else list(range(len(rows)))

    def _sizes(self, rows: datasets.Dataset, told: datasets.Dataset) -> tuple[list[tuple[int, int]], set[int]]:
        """Width and height of each image. Those that are told are compared with the images'; the rows where they differ, whose
        objects are therefore nowhere, are given too.

        Raises:
            [`SiTError`]: If many differ, or a size is not known.
        """
        sizes: list[tuple[int, int] | None] = [None] * len(rows)
        if {"width", "height"} <= set(told.column_names):
            pairs = zip(told["width"], told["height"], strict=True)
            sizes = [(int(width), int(height)) if width and height else None for width, height in pairs]
        checked = set(some_rows(len(rows)))
        images = rows.select_columns(["image"])
        wrong: dict[int, str] = {}
        for row, size in enumerate(sizes):
            if size is not None and row not in checked:
                continue
            real = upright_size(images[row]["image"])
            if real is None and size is None:
                raise SiTError(
                    f"{image_name(rows, row)} cannot be read, and no column tells its size", argument="dataset"
                )
            if None not in (real, size) and real != size:
                turned = "; its EXIF turns it" if is_turned(real, size) else ""
                wrong[row] = (
                    f"{image_name(rows, row)} is of {real[0]} x {real[1]} pixels, and its row says {size[0]} x {size[1]}"
                    f"{turned}"
                )
            sizes[row] = size or real
        if len(wrong) > MANY_WRONG * len(checked):
            raise SiTError(
                f"{len(wrong):,} of {len(checked):,} images are of another size than their row says: {next(iter(wrong.values()))}",
                argument="dataset",
                remedy="give the images that were annotated, in their size",
            )
        if wrong:
            self.notes.append(
                f"{rows.split}: {len(wrong):,} images of another size than their row says are left out: "
                f"{next(iter(wrong.values()))}"
            )
        return sizes, set(wrong)


class MaskColumns(_Columns):
    """
    A dataset with a column of masks.

    Args:
        dataset, config_name, asked: As for [`~modeling_sit.data.dense.loading.open_dense`].
        columns (pair of `str`, *optional*): Names of the columns of the images and of the masks.
        classes (pair): Names of the classes, if they are known, and whether 0 stands for no class.
    """

    kind, usual = "masks", MASK_COLUMNS
    other_form = "folder of masks beside the images"
    remedy = "give a folder with images/ and masks/, or a dataset with the columns `image` and `label`, both images"

    def __init__(
        self,
        dataset: Any,
        config_name: str | None,
        columns: tuple[str | None, str | None],
        asked: Sequence[str],
        classes: tuple[list[str] | None, bool],
    ):
        super().__init__(dataset, config_name, columns, asked)
        names, colors = classes[0], None
        if isinstance(dataset, (str, os.PathLike)):
            folder = os.path.abspath(os.path.expanduser(dataset))
            found, colors = find_label_names(folder if os.path.isdir(folder) else os.path.dirname(folder))
            names = names or found
        self.reader = MaskReader(names, colors, classes[1])
        self.notes = self.reader.notes

    @property
    def label_names(self) -> list[str] | None:
        return self.reader.label_names

    @staticmethod
    def holds(feature: Any) -> bool:
        return bool(image_columns({"": feature}))

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`~modeling_sit.data.dense.rows.pixel_features`]."""
        rows = self.rows(split)
        rows = rows.rename_column(self.truth, "label") if self.truth != "label" else rows
        others = [] if self.label_names is not None else [name for name in self.splits if name != split]
        masks = [mask for name in others for mask in self.rows(name).cast_column(self.truth, ENCODED)[self.truth]]
        return self.reader.read(rows.cast_column("label", ENCODED), masks)


def _fields(feature: Any) -> dict[str, Any]:
    """The fields of an object in a column: a struct of lists, or a list of structs; none of another."""
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return dict(feature.feature) if isinstance(feature.feature, dict) else {}
    if not isinstance(feature, dict):
        return {}
    return {
        name: each.feature for name, each in feature.items() if isinstance(each, (datasets.List, datasets.LargeList))
    }


def _of_image(objects: Any) -> list[dict[str, Any]]:
    """The objects of a row, each a `dict`."""
    if objects is None:
        return []
    if isinstance(objects, list):
        return objects
    lists = {name: values for name, values in objects.items() if isinstance(values, list)}
    number = max(map(len, lists.values()), default=0)
    return [{name: values[place] for name, values in lists.items() if place < len(values)} for place in range(number)]


def _named(fields: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in fields), None)
