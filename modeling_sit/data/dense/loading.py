"""Open a dataset for a dense task, whatever its form."""

import os
from typing import Any, Literal, Protocol

import datasets

from modeling_sit.data.dense.coco_files import read_coco_file
from modeling_sit.data.dense.coco_folders import CocoFolder, find_coco_files, json_files
from modeling_sit.data.dense.columns import MaskColumns, ObjectColumns
from modeling_sit.data.dense.mask_folders import MaskFolder, find_pairs
from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.data.opening import max_image_pixels, timely_listing
from modeling_sit.data.split_names import split_of_name
from modeling_sit.runtime.errors import SiTError

Kind = Literal["boxes", "masks", "pixels"]
SAVED = ("dataset_dict.json", "state.json")


class DenseDataset(Protocol):
    """
    A dataset for a dense task. Its splits are read one by one; the first that is read tells the classes, if nothing else
    does.

    Args:
        splits (`list[str]`): Names of its splits.
        label_names (`list[str]`, *optional*): Names of the classes, in the order of their indices. `None` until a split is
            read.
        notes (`list[str]`): What was understood or left out that the user may not expect, a line each.
    """

    splits: list[str]
    label_names: list[str] | None
    notes: list[str]

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split: of objects as of [`~modeling_sit.data.dense.rows.object_features`], or with a class for each
        pixel as of [`~modeling_sit.data.dense.rows.pixel_features`]."""


def open_dense(
    dataset: Any,
    kind: Kind,
    *,
    dataset_config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    asked: tuple[str, ...] = (),
    label_names: list[str] | None = None,
    reduce_labels: bool = False,
) -> DenseDataset:
    """Open a dataset for a dense task. Images are not decoded.

    Args:
        dataset (`str`, path, or object of the `datasets` library): Of objects one of

            - a folder with files in COCO's form, `train.json` and `images/`, `annotations/instances_train2017.json` and
              `train2017/`, or `train/_annotations.coco.json`;
            - parquet files, a `save_to_disk` folder, the id of a dataset on the Hub or a dataset in memory, with a column
              `objects` of boxes and categories;

            and with a class for each pixel one of

            - a folder of images and masks of the same names, `images/` and `masks/`, `train/images/` and `train/masks/`, or
              `images/train/` and `annotations/train/`, or `a.jpg` and `a_mask.png` side by side; names of the classes in
              `id2label.json` or `classes.txt` there;
            - parquet files and the like with a column of masks, called such as `label`, `annotation` or `mask`.
        kind (`str`):
            `"boxes"` for objects with boxes, and masks where there are some; `"masks"` for objects that all have masks;
            `"pixels"` for a class for each pixel.
        dataset_config_name, image_column, label_column (`str`, *optional*):
            As for [`~modeling_sit.data.sources.load_images`]. `label_column` is the column of objects or masks.
        asked (`tuple[str, ...]`, *optional*): Names of splits that the user gives.
        label_names (`list[str]`, *optional*): Names of the classes, if they are known, such as those of a model.
        reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether 0 in masks stands for no class, so that classes begin at 1.

    Raises:
        [`SiTError`]: If there is no such dataset, or it holds nothing of the kind.
    """
    max_image_pixels()
    in_memory = not isinstance(dataset, (str, os.PathLike))
    folder = "" if in_memory else os.path.abspath(os.path.expanduser(dataset))
    with timely_listing(folder):
        is_saved = any(os.path.isfile(os.path.join(folder, name)) for name in SAVED)
        is_folder = not in_memory and dataset != "digits" and os.path.isdir(folder) and not is_saved
    if is_folder and dataset_config_name is not None and os.path.isdir(os.path.join(folder, dataset_config_name)):
        folder, dataset_config_name = os.path.join(folder, dataset_config_name), None
    if is_folder and kind != "pixels":
        files = find_coco_files(folder, asked)
        if files:
            return CocoFolder(folder, files, kind == "masks", label_names)
    if is_folder and kind == "pixels":
        pairs = find_pairs(folder)
        if pairs:
            return MaskFolder(folder, pairs, label_names, reduce_labels)
    columns = (image_column, label_column)
    try:
        if kind == "pixels":
            return MaskColumns(dataset, dataset_config_name, columns, asked, (label_names, reduce_labels))
        return ObjectColumns(dataset, dataset_config_name, columns, asked, (label_names, kind == "masks"))
    except SiTError as error:
        if is_folder and kind != "pixels":
            _check_no_other_json(folder)
        other = _other_kind(folder, kind) if is_folder else None
        if other is not None:
            raise SiTError(f"{folder}: {other}", argument="dataset") from error
        name = dataset_name(dataset)
        problem = error.problem if error.problem.startswith(f"{name}: ") else f"{name}: {error.problem}"
        raise SiTError(problem, argument=error.argument or "dataset", remedy=error.remedy) from error


def _other_kind(folder: str, kind: Kind) -> str | None:
    """What a folder holds in place of what is wanted."""
    if kind == "pixels":
        files = find_coco_files(folder)
        path = next(iter(files.values()), None)
        return f"it has objects ({path}), and no class for each pixel" if path is not None else None
    pairs = next(iter(find_pairs(folder).values()), None)
    return f"it has a class for each pixel ({pairs.masks[0]}), and no objects" if pairs is not None else None


def _check_no_other_json(folder: str) -> None:
    """Say what is wrong with a file that is called like one of annotations, if there is no other."""
    for path in json_files(folder):
        stem = os.path.splitext(os.path.basename(path))[0].lower()
        if split_of_name(stem) is not None or "coco" in stem or "instances" in stem or "annotations" in stem:
            read_coco_file(path)
