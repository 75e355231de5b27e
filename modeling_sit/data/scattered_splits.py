"""Splits that lie in different folders, `2020/train` and `2021/test`, and folders of validation or test images among those
to train on."""

import os
from collections.abc import Iterable, Mapping

from modeling_sit.data.folder_tree import Part, first_place, group_by_folder
from modeling_sit.data.split_names import SplitName, join_paths, lies_beside_images, split_of_name, tell_once
from modeling_sit.runtime.errors import SiTError


def scattered_splits(folder: str, paths: list[str]) -> tuple[dict[str, list[Part]], dict[str, int]] | None:
    """The splits of a dataset of which no two lie side by side: `siteA/train` and `siteB/test`.

    They are splits if there is one folder of each kind, and nothing else but what comes with images.

    Args:
        folder (`str`): The dataset's folder.
        paths (`list[str]`): Its images.

    Returns:
        `tuple`: The folders of each split, and of what is left out the number of images, by path. `None` if there are no
        such folders of two kinds, or only at the top.

    Raises:
        [`SiTError`]: If it is not clear which folders are meant.
    """
    groups = group_by_folder(folder, paths)
    names = {name for path in groups for name in path.split(os.sep)}
    beside = {name for name in names if lies_beside_images(name)}
    clear = _clear_names(names - beside)
    inside: dict[str, list[str]] = {}  # folders of images, by the topmost folder on the way that tells a split
    rest, others = [], []
    for path in groups:
        way = path.split(os.sep)
        place = first_place(way, clear)
        if not beside.isdisjoint(way[:place]):
            rest.append(path)
        elif place is None:
            others.append(path)
        else:
            inside.setdefault(os.sep.join(way[: place + 1]), []).append(path)
    splits = {path: clear[os.path.basename(path)] for path in inside}
    kinds = [split.kind for split in splits.values()]
    if not any(os.sep in path for path in splits) or set(kinds) == {"train"} or (not others and len(set(kinds)) == 1):
        return None
    if not others and "train" in kinds and len(kinds) == len(set(kinds)):
        parts: dict[str, list[Part]] = {}
        for path, below in inside.items():
            images = sorted(image for each in below for image in groups[each])
            parts[splits[path].name] = [(os.path.join(folder, path), images)]
        return parts, {os.path.join(folder, path): len(groups[path]) for path in rest}
    if "train" in kinds or not others or _share_classes(inside, others):
        names = [*inside, *dict.fromkeys(_topmost_without(path, inside) or "the folder itself" for path in others)]
        raise SiTError(
            "what is called like splits lies in different folders, and it is not clear what is to train on: "
            + join_paths(names),
            argument="dataset",
            remedy="lay the dataset out as train/CLASS/ and test/CLASS/, or give the folder of one part; rename what is no "
            "split",
        )
    return None


def _clear_names(names: Iterable[str]) -> dict[str, SplitName]:
    """The names that tell a split and little else, or of which there are two kinds: `seg_train`, `seg_test`."""
    known = {name: split for name in names if (split := split_of_name(name)) is not None}
    kinds: dict[tuple[str, ...], set[str]] = {}
    for split in known.values():
        kinds.setdefault(split.scheme, set()).add(split.kind)
    return {name: split for name, split in known.items() if split.is_plain or len(kinds[split.scheme]) > 1}


def _topmost_without(path: str, splits: Iterable[str]) -> str:
    """The topmost folder on the way to a folder that has no split in it."""
    way = path.split(os.sep)
    ways = [os.sep.join(way[: end + 1]) for end in range(len(way))]
    return next(
        (each for each in ways if not any(f"{split}{os.sep}".startswith(f"{each}{os.sep}") for split in splits)), path
    )


def _share_classes(inside: Mapping[str, list[str]], others: Iterable[str]) -> bool:
    """Whether a folder that tells a split has a sub-folder with the name of a folder elsewhere."""
    classes = {path[len(split) + 1 :].partition(os.sep)[0] for split, below in inside.items() for path in below} - {""}
    return not classes.isdisjoint(name for path in others for name in path.split(os.sep))


def tell_held_out_inside(folder: str, splits: Mapping[str, list[Part]]) -> None:
    """Name the folders that are called like validation or test within what is to train on, such as `train/a/val`.

    One that another split has, too, is a class: `train/test` and `val/test`. For the sub-folders of a dataset without
    splits, others are to tell.
    """
    inside = {split: _held_out(parts) for split, parts in splits.items()}
    for split, parts in splits.items():
        known = split_of_name(split)
        if known is not None and known.kind != "train":
            continue
        elsewhere = set().union(*(names for other, names in inside.items() if other != split))
        names = sorted(inside[split] - elsewhere)
        if [path for path, _ in parts] == [folder]:
            names = [name for name in names if os.sep in name]
        above = os.path.relpath(parts[0][0], folder) if len(parts) == 1 else os.curdir
        if names:
            names = [os.path.normpath(os.path.join(above, name)) for name in names]
            tell_once(
                f"{folder}: read as {split}, though they are called like validation or test: {join_paths(names)}; if they "
                "are, lay the dataset out as train/CLASS/ and test/CLASS/"
            )


def _held_out(parts: Iterable[Part]) -> set[str]:
    ways = [path.split(os.sep) for folder, paths in parts for path in group_by_folder(folder, paths)]
    known = {name: split_of_name(name) for name in {name for way in ways for name in way}}
    held_out = {
        name for name, split in known.items() if split is not None and split.is_plain and split.kind != "train"
    }
    places = [(way, first_place(way, held_out)) for way in ways] if held_out else []
    return {os.sep.join(way[: place + 1]) for way, place in places if place is not None}
