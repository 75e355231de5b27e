"""Datasets with a column of objects, or with one of masks: parquet files, saved datasets, the Hub, and in memory."""

import json
import os
from collections.abc import Sequence
from typing import Any

import datasets

from modeling_sit.data.dataset_forms import load_splits, reader_errors
from modeling_sit.data.dense.annotations import AnnotationCheck, ImageOfObjects
from modeling_sit.data.dense.mask_values import find_label_names
from modeling_sit.data.dense.masks import MaskReader
from modeling_sit.data.dense.rows import ENCODED, object_columns, object_features, table_of
from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.image_sizes import is_turned, some_rows, upright_size
from modeling_sit.data.label_encoding import MASK_COLUMNS, find_image_column, image_columns, join, type_name
from modeling_sit.data.unread_splits import SplitStream, UnreadSplit
from modeling_sit.runtime.errors import SiTError

OBJECTS = ("objects", "annotations", "object")
BOXES = ("bbox", "bboxes", "boxes", "box")
CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
SEGMENTATIONS = ("segmentation", "segmentations", "mask", "masks")
CROWDS = ("iscrowd", "is_crowd")
SIZES = ("image_id", "width", "height")


class _Columns:
    """Splits of which some columns are read."""

    def __init__(self, dataset: Any, config_name: str | None, image_column: str | None, asked: Sequence[str]):
        found = load_splits(dataset, config_name, False, image_column, asked)
        if any(isinstance(rows, SplitStream) for rows in found.values()):
            raise SiTError(
                "it is streamed, and objects and masks must be known beforehand",
                argument="dataset",
                remedy="give a `datasets.Dataset` or files",
            )
        self.found: dict[str, datasets.Dataset | UnreadSplit] = found
        self.image_column = image_column
        self.notes: list[str] = []
        self.features: dict[str, Any] = {}
        for rows in reversed(list(found.values())):
            self.features |= rows.features

    @property
    def splits(self) -> list[str]:
        return list(self.found)

    def rows(self, split: str, image: str, others: Sequence[str]) -> datasets.Dataset:
        """A split with the column `image`, and others by their own names.

        Raises:
            [`SiTError`]: If it has no such columns, or no row.
        """
        rows = self.found[split]
        for column in (image, *others):
            if column not in rows.features and column not in SIZES:
                raise SiTError(f"split {split} has no column {column}, only {join(rows.features)}", argument="dataset")
        others = [column for column in others if column in rows.features]
        if isinstance(rows, UnreadSplit):
            with reader_errors(f"split {split} cannot be read"):
                rows = rows.read(image, list(others))
        if len(rows) == 0:
            raise SiTError(f"split {split} is empty", argument="dataset")
        rows = rows.select_columns([image, *others])
        rows = rows if rows._indices is None else rows.flatten_indices()  # only then columns can be put beside it
        rows = rows.rename_column(image, "image") if image != "image" else rows
        rows = rows.cast_column("image", ENCODED)
        return datasets.Dataset(rows.data, info=rows.info, split=datasets.NamedSplit(split.replace("-", "_")))


class ObjectColumns(_Columns):
    """
    A dataset with a column of objects: a struct of lists, or a list of structs, with boxes (`bbox`: x, y, width, height in
    pixels) and categories, and maybe `area`, `iscrowd`, `segmentation`, `id`.

    Args:
        dataset, config_name, asked: As for [`~modeling_sit.data.dense.loading.open_dense`].
        columns (pair of `str`, *optional*): Names of the columns of the images and of the objects.
        classes (pair): Names of the classes, if they are known, and whether every object must have a mask.
    """

    def __init__(
        self,
        dataset: Any,
        config_name: str | None,
        columns: tuple[str | None, str | None],
        asked: Sequence[str],
        classes: tuple[list[str] | None, bool],
    ):
        super().__init__(dataset, config_name, columns[0], asked)
        self.label_names, self.needs_masks = classes
        self.image = find_image_column(self.features, columns[0])
        self.objects = self._find_objects(columns[1])
        of_objects = _fields(self.features[self.objects])
        self.boxes = _named(of_objects, BOXES)
        self.categories = _named(of_objects, CATEGORIES)
        if self.categories is None or (self.boxes is None and _named(of_objects, SEGMENTATIONS) is None):
            raise SiTError(
                f"column {self.objects} has the fields {join(of_objects)}: boxes (bbox) and categories (category) are needed",
                argument="label_column",
            )
        self.feature = of_objects[self.categories]
        if isinstance(self.feature, datasets.ClassLabel):
            self.stored_names = self.feature.names
        else:
            self.stored_names = None

    def _find_objects(self, asked: str | None) -> str:
        if asked is not None and asked not in self.features:
            raise SiTError(f"no column {asked}, only {join(self.features)}", argument="label_column")
        found = [asked] if asked is not None else [name for name in OBJECTS if name in self.features]
        found = [name for name in found if _fields(self.features[name])]
        if not found:
            raise SiTError(
                f"no file of annotations (.json) and no column of objects among {join(self.features)}"
                if asked is None
                else f"column {asked} holds {type_name(self.features[asked])}, and no objects",
                argument="dataset" if asked is None else "label_column",
                remedy="give a folder with train.json and images/, or a dataset with a column `objects` of bbox and category",
            )
        return found[0]

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`~modeling_sit.data.dense.rows.object_features`]."""
        rows = self.rows(split, self.image, [self.objects, *SIZES])
        told = rows.select_columns([name for name in rows.column_names if name != "image"])
        if self.label_names is None:
            self.label_names = self.stored_names or self._count_classes(told)
        sizes = self._sizes(rows, told)
        check = AnnotationCheck(str(rows.split), self.needs_masks, box_name=self.boxes or "bbox")
        number, objects = 0, []
        for row, entry in enumerate(told):
            image = ImageOfObjects(f"row {row}", *sizes[row])
            of_image = []
            for annotation in _of_image(entry[self.objects]):
                number += 1
                index = self._index(annotation.get(self.categories), f"{rows.split}: row {row}")
                found = check.read(self._as_coco(annotation, number), index, number, image)
                if found is not None:
                    of_image.append(found)
            objects.append(of_image)
        self.notes += check.notes()
        columns = object_columns(self._image_ids(told), sizes, objects)
        features = object_features(self.label_names)
        others = table_of(columns, datasets.Features({name: features[name] for name in columns}), str(rows.split))
        return datasets.concatenate_datasets([rows.select_columns(["image"]), others], axis=1, split=rows.split)

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

    def _index(self, category: Any, name: str) -> int:
        """The index of an object's class.

        Raises:
            [`SiTError`]: If there is no such class.
        """
        if self.stored_names is not None and isinstance(category, int) and 0 <= category < len(self.stored_names):
            category = self.stored_names[category]
        if str(category) not in self._by_name:
            known = join(self.label_names[:10]) + (", ..." if len(self.label_names) > 10 else "")
            raise SiTError(
                f"{name} has an object of category {category}, and the classes are {known}",
                argument="dataset",
                remedy="correct it or take it out",
            )
        return self._by_name[str(category)]

    @property
    def _by_name(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.label_names)}

    def _count_classes(self, rows: datasets.Dataset) -> list[str]:
        found = {annotation.get(self.categories) for row in rows for annotation in _of_image(row[self.objects])} - {
            None
        }
        if not found:
            raise SiTError(f"column {self.objects} of {rows.split} holds no object", argument="label_column")
        self.notes.append(f"the categories have no names: there are {len(found)}, and their values are their names")
        return [str(value) for value in sorted(found, key=lambda value: (isinstance(value, str), value))]

    def _image_ids(self, rows: datasets.Dataset) -> list[int]:
        ids = list(rows["image_id"]) if "image_id" in rows.column_names else []
        is_usable = bool(ids) and all(isinstance(id, int) for id in ids) and len(set(ids)) == len(ids)
        return ids if is_usable else list(range(len(rows)))

    def _sizes(self, rows: datasets.Dataset, told: datasets.Dataset) -> list[tuple[int, int]]:
        """Width and height of each image. Those that are told are compared with the images'."""
        sizes: list[tuple[int, int] | None] = [None] * len(rows)
        if {"width", "height"} <= set(told.column_names):
            pairs = zip(told["width"], told["height"], strict=True)
            sizes = [(int(width), int(height)) if width and height else None for width, height in pairs]
        checked = set(some_rows(len(rows)))
        images = rows.select_columns(["image"])
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
                raise SiTError(
                    f"{image_name(rows, row)} is of {real[0]} x {real[1]} pixels, and its row says {size[0]} x {size[1]}"
                    f"{turned}",
                    argument="dataset",
                    remedy="give the images that were annotated, in their size",
                )
            sizes[row] = size or real
        return sizes


class MaskColumns(_Columns):
    """
    A dataset with a column of masks.

    Args:
        dataset, config_name, asked: As for [`~modeling_sit.data.dense.loading.open_dense`].
        columns (pair of `str`, *optional*): Names of the columns of the images and of the masks.
        classes (pair): Names of the classes, if they are known, and whether 0 stands for no class.
    """

    def __init__(
        self,
        dataset: Any,
        config_name: str | None,
        columns: tuple[str | None, str | None],
        asked: Sequence[str],
        classes: tuple[list[str] | None, bool],
    ):
        super().__init__(dataset, config_name, columns[0], asked)
        self.masks = self._find_masks(columns[1])
        self.image = find_image_column(
            {name: feature for name, feature in self.features.items() if name != self.masks}, columns[0]
        )
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

    def _find_masks(self, asked: str | None) -> str:
        known = [name for name, feature in self.features.items() if image_columns({name: feature})]
        found = [asked] if asked is not None else [name for name in known if name.lower() in MASK_COLUMNS]
        if len(found) > 1:
            raise SiTError(f"several columns of masks: {join(found)}", argument="label_column", remedy="choose one")
        if not found or found[0] not in known:
            raise SiTError(
                f"no folder of masks beside the images, and no column of masks among {join(self.features)}"
                if asked is None
                else f"no column {asked} of masks among {join(self.features)}",
                argument="dataset" if asked is None else "label_column",
                remedy="give a folder with images/ and masks/, or a dataset with the columns `image` and `label`, both images",
            )
        return found[0]

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`~modeling_sit.data.dense.rows.pixel_features`]."""
        rows = self.rows(split, self.image, [self.masks])
        rows = rows.rename_column(self.masks, "label") if self.masks != "label" else rows
        others = [] if self.label_names is not None else [name for name in self.splits if name != split]
        masks = [mask for name in others for mask in self.rows(name, self.image, [self.masks])[self.masks]]
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
