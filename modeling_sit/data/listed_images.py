"""Images that a file of annotations in COCO's form lists as those of a validation or test split.

Such files often lie beside one folder with all images. Without them, pretraining would learn from the test images, too.
"""

import json
import os
from collections.abc import Iterable, Mapping

from modeling_sit.data.folder_tree import Part
from modeling_sit.data.split_names import split_of_name, tell_once

ENDING = ".json"


def split_listed(folder: str, splits: Mapping[str, list[Part]], others: Iterable[str]) -> dict[str, list[Part]]:
    """The splits of a folder of images, with those of lists where it has no others. Images that no list of a validation or
    test split names are of `train`.

    Args:
        folder (`str`): The dataset's folder.
        splits (mapping from `str` to `list[Part]`): What its sub-folders tell.
        others (iterable of `str`): The files in it that are no images.
    """
    if set(splits) != {"train"}:
        return dict(splits)
    paths = [path for _, inside in splits["train"] for path in inside]
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(os.path.basename(path), []).append(path)
    listed: dict[str, str] = {}  # the split of a path
    told: dict[str, str] = {}  # the file of a split
    for file in others:
        split = _split_of_list(folder, file) if file.lower().endswith(ENDING) else None
        names = _image_names(file) if split is not None else []
        found = [path for name in names if (path := _find(name, by_name)) is not None]
        listed |= {path: split for path in found if path not in listed}
        told |= {split: file} if found else {}
    if not listed or len(listed) == len(paths):  # nothing would be left to train on
        return dict(splits)
    # What all images have in common is no class.
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    found = {"train": [path for path in paths if path not in listed]}
    found |= {split: [path for path in paths if listed.get(path) == split] for split in told}
    lists = ", ".join(f"{split} ({len(found[split]):,} images, by {told[split]})" for split in told)
    tell_once(f"{folder}: files list the images of splits, which are not trained on: {lists}")
    return {split: [(above, inside)] for split, inside in found.items()}


def _split_of_list(folder: str, file: str) -> str | None:
    """The validation or test split that the name of a file tells, or else of a folder on its way."""
    way = os.path.relpath(os.path.splitext(file)[0], folder).split(os.sep)
    known = [split for name in reversed(way) if (split := split_of_name(name)) is not None]
    return known[0].name.lower() if known and known[0].kind != "train" else None


def _image_names(file: str) -> list[str]:
    """The names of images in a file of annotations; none in another."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened)
        return [image["file_name"].replace("\\", "/") for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # whatever it is, it lists no images


def _find(name: str, by_name: Mapping[str, list[str]]) -> str | None:
    same = by_name.get(name.rpartition("/")[2], [])
    whole = [path for path in same if path.replace(os.sep, "/").endswith(f"/{name}")]
    found = whole or same
    return found[0] if len(found) == 1 else None
