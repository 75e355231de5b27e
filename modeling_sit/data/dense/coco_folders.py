"""Folders of images with files of annotations in COCO's form.

A file's name tells its split, or else the folder that it lies in: `train.json`, `annotations/instances_val2017.json`,
`valid/_annotations.coco.json`. The images lie beside the file, in `images/`, or in a folder that is called like the split.
"""

import logging
import os
from collections.abc import Iterable

import datasets

from modeling_sit.data.dataset_forms import arrow_images, reader_errors
from modeling_sit.data.dense.annotations import AnnotationCheck, ImageOfObjects
from modeling_sit.data.dense.coco_files import CocoFile, indices_of, label_names_of, looks_like_coco, read_coco_file
from modeling_sit.data.dense.rows import object_columns, object_features, table_of
from modeling_sit.data.image_sizes import is_turned, some_rows, upright_size
from modeling_sit.data.label_encoding import join
from modeling_sit.data.own_files import list_folder
from modeling_sit.data.split_names import split_of_name, words_of
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

ENDING = ".json"
# What other files beside COCO's annotations of instances are called.
OTHER_ANNOTATIONS = {"captions", "keypoints", "panoptic", "stuff", "info"}
OBJECTS = "instances"
NUM_TRIED_IMAGES = 20
MAX_DEPTH = 2


def find_coco_files(folder: str, asked: Iterable[str] = ()) -> dict[str, str]:
    """The file of annotations of each split of a folder; none, if it is no such folder.

    Args:
        folder (`str`): The dataset's folder.
        asked (iterable of `str`, *optional*): Names of splits that the user gives: also a file's name without its ending.

    Raises:
        [`SiTError`]: If several files are of one split.
    """
    every = json_files(folder)
    paths = [path for path in every if looks_like_coco(path)]
    known = [path for path in paths if not OTHER_ANNOTATIONS & set(_words(path))]
    instances = [path for path in known if OBJECTS in _words(path)]
    asked = set(asked)
    splits: dict[str, list[str]] = {}
    for path in instances or known:
        stem = _stem(path)
        above = os.path.relpath(os.path.dirname(path), folder).split(os.sep)
        split = next((told for name in (stem, *reversed(above)) if (told := split_of_name(name)) is not None), None)
        splits.setdefault(stem if stem in asked else split.name.lower() if split else "train", []).append(path)
    for path in every if splits else ():
        # Beside such files, a `train.json` that is none is damaged: without it, another split would be trained on.
        split = split_of_name(_stem(path))
        if split is not None and split.is_bare:
            splits.setdefault(split.name.lower(), [path])
    for name, files in splits.items():
        if len(files) > 1:
            raise SiTError(
                f"several files are of split {name}: {join(os.path.relpath(file, folder) for file in files)}",
                argument="train_split",
                remedy=f"name the one that is meant, such as {_stem(files[0])}, or keep one",
            )
    return {name: file for name, (file,) in splits.items()}


def json_files(folder: str, depth: int = MAX_DEPTH) -> list[str]:
    """Those in a folder and its sub-folders that are not hidden."""
    folders: set[str] = set()
    with reader_errors(f"{folder} cannot be read"):
        entries = sorted(list_folder(folder, folders), key=lambda entry: entry.name)
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    found = [entry.path for entry in visible if entry.name not in folders and entry.name.lower().endswith(ENDING)]
    if depth:
        for entry in visible:
            found += json_files(entry.path, depth - 1) if entry.name in folders else []
    return found


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _words(path: str) -> list[str]:
    return [word.lower() for word in words_of(_stem(path))]


class CocoFolder:
    """
    A folder with files of annotations of objects.

    Args:
        folder (`str`): The folder.
        files (`dict[str, str]`): The file of each split.
        needs_masks (`bool`): Whether every object must have a mask.
        label_names (`list[str]`, *optional*): Names of the classes. Default: the categories of the split that is read first.
    """

    def __init__(self, folder: str, files: dict[str, str], needs_masks: bool, label_names: list[str] | None = None):
        self.folder = folder
        self.files = files
        self.needs_masks = needs_masks
        self.label_names = label_names
        self.category_ids: list[int | str] | None = None
        self.notes: list[str] = []

    @property
    def splits(self) -> list[str]:
        return list(self.files)

    def read(self, split: str) -> datasets.Dataset:
        """The rows of a split, as of [`object_features`]. Images without objects are kept.

        Raises:
            [`SiTError`]: If the file is none, or an image of it is not there.
        """
        file = read_coco_file(self.files[split])
        if self.label_names is None:
            self.label_names = label_names_of(file)
        indices = indices_of(file, self.label_names)
        if self.category_ids is None:
            ids = {index: key for key, index in indices.items()}
            self.category_ids = [ids.get(index, index) for index in range(len(self.label_names))]
        paths = self._find_images(file, split)
        images = arrow_images(paths=paths)
        sizes = self._sizes(file, paths)
        check = AnnotationCheck(file.path, self.needs_masks)
        keeps_ids = file.has_unique_ids()
        number, objects = 0, []
        for (key, image), (width, height) in zip(file.images.items(), sizes, strict=True):
            about, of_image = ImageOfObjects(image["file_name"], width, height), []
            for annotation in file.annotations[key]:
                number += 1
                id = annotation["id"] if keeps_ids else number
                found = check.read(annotation, indices[annotation["category_id"]], id, about)
                if found is not None:
                    of_image.append(found)
            objects.append(of_image)
        self.notes += check.notes()
        columns = {"image": images, **object_columns(list(file.image_numbers().values()), sizes, objects)}
        return table_of(columns, object_features(self.label_names), split)

    def _find_images(self, file: CocoFile, split: str) -> list[str]:
        """The paths of a file's images.

        Raises:
            [`SiTError`]: If one is not there.
        """
        names = [image["file_name"].replace("\\", "/") for image in file.images.values()]
        folders = self._image_folders(file.path, split)
        tried = [names[row] for row in some_rows(len(names), NUM_TRIED_IMAGES)]
        # Names are relative to some folder; of those that are written with folders of another machine, the last part is.
        ways = [(folder, shorten) for shorten in (False, True) for folder in folders]
        found = {way: sum(os.path.isfile(_place(name, *way)) for name in tried) for way in ways}
        best = max(ways, key=lambda way: found[way])
        paths = [_place(name, *best) for name in names]
        there = _existing(paths)
        missing = [name for name, path in zip(names, paths, strict=True) if path not in there]
        if not missing:
            return paths
        where = best[0] if found[best] else join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        raise SiTError(
            f"{file.path}: {len(missing):,} of its {len(names):,} images are not in {where}, such as {missing[0]}",
            argument="dataset",
            remedy="put the images there, or take them out of the file",
        )

    def _image_folders(self, path: str, split: str) -> list[str]:
        """Where the images of a file may lie, the likeliest first."""
        kind = getattr(split_of_name(split), "kind", None)
        roots = list(dict.fromkeys([os.path.dirname(path), self.folder, os.path.dirname(os.path.dirname(path))]))
        roots = [root for root in roots if os.path.commonpath([root, self.folder]) == self.folder]
        candidates = []
        for root in roots:
            folders: set[str] = set()
            list_folder(root, folders)
            images = [os.path.join(root, name) for name in sorted(folders) if "images" in _words(name)]
            candidates += [root, *images]
            for above in (root, *images):
                inside: set[str] = set()
                list_folder(above, inside)
                # Of `train2014` and `train2017`, the one with the words and numbers of the file.
                alike = [name for name in inside if getattr(split_of_name(name), "kind", None) == kind]
                alike.sort(key=lambda name: (name not in os.path.basename(path), name))
                candidates += [os.path.join(above, name) for name in alike]
                candidates += [os.path.join(above, name, "images") for name in alike]
        return [folder for folder in dict.fromkeys(candidates) if os.path.isdir(folder)]

    def _sizes(self, file: CocoFile, paths: list[str]) -> list[tuple[int, int]]:
        """Width and height of each image, as the file says, or else of the image itself.

        Raises:
            [`SiTError`]: If an image that is looked at is of another size than the file says, or of none.
        """
        sizes: list[tuple[int, int] | None] = []
        for image in file.images.values():
            width, height = image.get("width"), image.get("height")
            is_told = all(isinstance(side, int) and side > 0 for side in (width, height))
            sizes.append((width, height) if is_told else None)
        checked = set(some_rows(len(paths)))
        for row, path in enumerate(paths):
            if sizes[row] is not None and row not in checked:
                continue
            real = upright_size({"bytes": None, "path": path})
            if sizes[row] is None and real is None:
                raise SiTError(f"{path} cannot be read, and {file.path} does not tell its size", argument="dataset")
            if sizes[row] is not None and real is not None and real != sizes[row]:
                raise wrong_size(path, real, sizes[row], file.path)
            sizes[row] = sizes[row] or real
        return sizes


def wrong_size(image: str, real: tuple[int, int], told: tuple[int, int], source: str) -> SiTError:
    """The error about an image of another size than its annotations say."""
    remedy = "give the images that were annotated, in their size"
    if is_turned(real, told):
        remedy = "its EXIF turns it: write the image as it was annotated, without EXIF"
    return SiTError(
        f"{image} is of {real[0]} x {real[1]} pixels, and {source} says {told[0]} x {told[1]}",
        argument="dataset",
        remedy=remedy,
    )


def _place(name: str, folder: str, shorten: bool) -> str:
    return os.path.join(folder, os.path.basename(name) if shorten else name)


def _existing(paths: Iterable[str]) -> set[str]:
    """Those of these paths that are files. Each folder is listed once."""
    by_folder: dict[str, set[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    existing = set()
    for folder, names in by_folder.items():
        if os.path.isdir(folder):
            folders: set[str] = set()
            there = {entry.name for entry in list_folder(folder, folders)}
            existing |= {os.path.join(folder, name) for name in (names & there) - folders}
    return existing
