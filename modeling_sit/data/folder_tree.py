"""Paths of images, by the folders that they lie in."""

import logging
import os
from collections.abc import Collection, Iterable

logger = logging.getLogger(__name__)

# A folder, and the images below it.
Part = tuple[str, list[str]]


def group_by_sub_folder(folder: str, paths: list[str]) -> dict[str, list[str]]:
    """Group paths by the first-level sub-folder that they lie in. "" stands for the folder itself."""
    groups: dict[str, list[str]] = {}
    start = len(os.path.join(folder, ""))
    for path in paths:
        sub_folder, separator, _ = path[start:].partition(os.sep)
        groups.setdefault(sub_folder if separator else "", []).append(path)
    return groups


def group_by_class(parts: Iterable[Part]) -> dict[str, list[str]] | None:
    """Group the paths of a split by class, which are the sub-folders of its folders. `None` if some lie in none of them."""
    by_class: dict[str, list[str]] = {}
    for folder, paths in parts:
        for name, inside in group_by_sub_folder(folder, paths).items():
            by_class.setdefault(name, []).extend(inside)
    if "" not in by_class:
        return by_class
    if len(by_class) > 1:
        folder = ", ".join(folder for folder, _ in parts)
        logger.warning("%s: some images lie in the folder itself, so its sub-folders are not classes", folder)
    return None


def group_by_folder(folder: str, paths: list[str]) -> dict[str, list[str]]:
    """Group paths by the folder that they lie in, relative to the one above all. "" stands for that folder itself."""
    groups: dict[str, list[str]] = {}
    start = len(os.path.join(folder, ""))
    for path in paths:
        groups.setdefault(path[start:].rpartition(os.sep)[0], []).append(path)
    return groups


def first_place(way: list[str], names: Collection[str]) -> int | None:
    """Where on the way down the first folder with one of these names is, from 0."""
    return next((place for place, name in enumerate(way) if name in names), None)
