"""What comes with images and is no class of them, such as `masks/` beside `images/`, is left out."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from modeling_sit.data.folder_tree import Part, group_by_folder, group_by_sub_folder
from modeling_sit.data.split_names import lies_beside_images, tells_only_what_is_beside, words_of

# A folder that is called so holds the images themselves, beside others with what comes with them.
IMAGES = {"images", "imgs"}
# So does one that is called so, if nothing else is there, for these may be classes: `photo` beside `label` and `chart`.
HOLDERS = {
    *("frame", "frames", "image", "img", "input", "inputs", "jpeg", "jpegs", "jpg", "original", "originals", "photo"),
    *("photos", "png", "raw", "rgb", "scan", "scans"),
}
# And one with classes in it that is called so.
LABELED = {"labeled", "labelled"}


@dataclass
class _Beside:
    """
    What comes with the images of a folder.

    Args:
        folders (`set[str]`): The folders to leave out, relative to that folder.
        holders (`set[str]`): Names of its sub-folders that take its place.
    """

    folders: set[str] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)


def leave_out_beside(splits: Mapping[str, list[Part]]) -> tuple[dict[str, list[Part]], dict[str, int]]:
    """The splits without what comes with their images.

    A folder is left out if its name tells so ([`lies_beside_images`]), and it lies beside

    - a folder that holds the images: `masks` beside `images`, `unlabeled` beside `labeled/CLASS`. What else lies beside
      `images` is left out, too. The classes are the sub-folders of the images' folder; or
    - images, and all other folders there are called so; or
    - classes that it has once more: `masks/cat` beside `cat`.

    So `with_mask` and `without_mask` are classes, and so are `cat`, `dog` and `masks`.

    Args:
        splits (mapping from `str` to `list[Part]`): The folders of each split, and the images in them.

    Returns:
        `tuple`: The splits, and the number of images in what is left out, by path. Of folders with one name, such as
        `a/masks` and `b/masks`, it is `*/masks`.
    """
    kept: dict[str, list[Part]] = {}
    left_out: dict[str, int] = {}
    holders: set[str] = set()
    for split, parts in splits.items():
        kept[split] = []
        for folder, paths in parts:
            groups = group_by_folder(folder, paths)
            found = _find_beside(groups)
            if found.folders:
                paths = _without(folder, groups, found.folders, left_out)
            holders |= found.holders
            kept[split].append((folder, paths))
    # Also of a split that has nothing beside its images.
    return {
        split: [part for each in parts for part in _held(each, holders)] for split, parts in kept.items()
    }, left_out


def _find_beside(groups: Mapping[str, list[str]]) -> _Beside:
    """What to leave out of a folder, of whose images the folders are given."""
    names = {name for path in groups for name in path.split(os.sep)}
    beside = {name for name in names if lies_beside_images(name)}
    found = _Beside()
    if not beside:
        return found
    children: dict[str, set[str]] = {}
    for path in groups:
        way = path.split(os.sep) if path else []
        for place, name in enumerate(way):
            children.setdefault(os.sep.join(way[:place]), set()).add(name)
    for folder, inside in children.items():
        if inside.isdisjoint(beside):
            continue
        below = {name: children.get(f"{folder}{os.sep}{name}" if folder else name, set()) for name in inside}
        others = inside - beside
        holders = _holders(others, below, any(map(tells_only_what_is_beside, inside)))
        if holders:
            dropped = inside - holders
            if not folder and "" not in groups:
                found.holders = holders
        elif folder in groups and not others:
            dropped = inside if all(map(tells_only_what_is_beside, inside)) else set()
        else:
            dropped = {name for name in inside & beside if tells_only_what_is_beside(name) and below[name] & others}
        found.folders |= {f"{folder}{os.sep}{name}" if folder else name for name in dropped}
    return found


def _holders(names: set[str], below: Mapping[str, set[str]], is_clear: bool) -> set[str]:
    """Which of the folders hold the images, by their names and their sub-folders."""
    words = {name: {word.lower() for word in words_of(name)} for name in names}
    images = {name for name in names if words[name] & IMAGES and words[name] <= HOLDERS | IMAGES}
    if images or not is_clear:
        return images
    held = {
        name for name in names if words[name] and (words[name] <= HOLDERS or (words[name] <= LABELED and below[name]))
    }
    return held if held == names else set()


def _without(folder: str, groups: Mapping[str, list[str]], dropped: set[str], left_out: dict[str, int]) -> list[str]:
    """The images that do not lie in the folders that are dropped; those that do are counted."""
    number = Counter(map(os.path.basename, dropped))
    kept = []
    for path, images in groups.items():
        way = path.split(os.sep)
        place = next((place for place in range(len(way)) if os.sep.join(way[: place + 1]) in dropped), None)
        if place is None:
            kept += images
            continue
        above = os.sep.join(way[:place]) if number[way[place]] == 1 else "*"
        name = os.path.join(folder, above, way[place])
        left_out[name] = left_out.get(name, 0) + len(images)
    return sorted(kept)  # as they were


def _held(part: Part, holders: set[str]) -> list[Part]:
    """The folders that hold the images of a part, if it has no others."""
    folder, paths = part
    groups = group_by_sub_folder(folder, paths) if holders else {}
    if not groups or not set(groups) <= holders:
        return [part]
    return [(os.path.join(folder, name), inside) for name, inside in groups.items()]
