"""The splits of a folder of images: which of its sub-folders are splits, and which are classes.

Sub-folders that lie side by side are splits, not classes, if

- two of them are called alike but for the word of the split ([`split_of_name`]): `train` and `val`, `seg_train` and
  `seg_test`, `train2017` and `val2017`; or
- all of them are called like splits (`train` alone, `training_set` and `val`), apart from those that are called like what
  comes with images ([`lies_beside_images`]): `train` and `masks`; or
- one is called like a split and nothing else, or `test_images`, and has the same sub-folders as another: `test/CLASS` and
  `data/CLASS`; or
- some are called like validation or test, and have the others as sub-folders: `cat`, `dog` and `test/cat`; or
- the user names one with `train_split` or `validation_split`.

So `train`, `car` and `test_tube` are classes. Splits may lie deeper, `images/train` and `images/val`, and in different folders
([`scattered_splits`]). What lies beside the splits is left out, and told; so are `train_masks` beside `train`, what comes with
images ([`leave_out_beside`]), masks among them ([`leave_out_masks`]), and the whole set once more beside itself. Where it is not clear which sub-folders are meant, as in
`fine/train` and `coarse/train`, there is an error that names them.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from modeling_sit.data.beside_images import leave_out_beside
from modeling_sit.data.file_names import leave_out_masks, tell_splits_in_file_names
from modeling_sit.data.folder_tree import Part, group_by_sub_folder
from modeling_sit.data.scattered_splits import scattered_splits, tell_held_out_inside
from modeling_sit.data.split_names import (
    SplitName,
    check_training_split,
    join_paths,
    known_splits,
    lies_beside_images,
    split_of_name,
    tell_left_out,
    tell_once,
    tells_only_what_is_beside,
    words_of,
)
from modeling_sit.runtime.errors import SiTError

# What the numbered parts of a dataset are called: `fold_1`, `images_part_2`.
PARTS = {"batch", "chunk", "fold", "part", "shard", "split"}
MAY_BE_PART = re.compile(rf"{'|'.join(sorted(PARTS))}|images|imgs", re.IGNORECASE)


@dataclass
class _Layer:
    """
    Sub-folders side by side that are splits.

    Args:
        splits (`dict[str, list[Part]]`): The folders of each split, by its name.
        left_out (`dict[str, int]`): Of what lies beside them, the number of images, by path.
    """

    splits: dict[str, list[Part]]
    left_out: dict[str, int] = field(default_factory=dict)


def split_folders(folder: str, paths: list[str], asked: Iterable[str] = ()) -> dict[str, list[Part]]:
    """The splits of a folder of images. What is left out is told.

    Args:
        folder (`str`): The dataset's folder.
        paths (`list[str]`): Its images, in sorted order.
        asked (iterable of `str`, *optional*): Names of splits that the user gives.

    Returns:
        `dict[str, list[Part]]`: For each split its folders, whose sub-folders are classes. `train` is the folder itself,
        if no sub-folders are splits.

    Raises:
        [`SiTError`]: If it is not clear which sub-folders are meant.
    """
    layer = _find_layer(folder, paths, frozenset(asked)) or _scattered(folder, paths)
    splits = {"train": [(folder, paths)]} if layer is None else layer.splits
    splits, beside = leave_out_beside(splits)
    left_out = (layer.left_out if layer is not None else {}) | beside
    left_out = {os.path.relpath(path, folder) if path != folder else "": n for path, n in left_out.items()}
    tell_left_out(folder, splits if layer is not None else (), left_out, "image")
    _tell_pooled(folder, splits)
    if layer is None:
        _tell_classes_called_like_splits(folder, *splits["train"][0])
        tell_splits_in_file_names(folder, paths)
    _tell_doubtful_classes(folder, splits)
    tell_held_out_inside(folder, splits)
    return leave_out_masks(folder, splits)


def _scattered(folder: str, paths: list[str]) -> _Layer | None:
    found = scattered_splits(folder, paths)
    if found is None:
        return None
    splits, left_out = found
    return _Layer({split: [_unwrapped(*part) for part in parts] for split, parts in splits.items()}, left_out)


def _find_layer(
    folder: str, paths: list[str], asked: frozenset[str] = frozenset(), only_pairs: bool = False
) -> _Layer | None:
    """The splits in a folder or deeper in it. With `only_pairs`, a training split and another of its naming scheme."""
    groups = group_by_sub_folder(folder, paths)
    names = [name for name in groups if name]
    is_wrapper = len(groups) == 1 and len(names) == 1
    layer = _layer_beside_classes(folder, groups, asked)
    if layer is not None:
        return layer
    splits = _splits_among(folder, groups, asked, only_pairs)
    if splits is not None and not is_wrapper:
        _check_no_splits_inside(folder, groups, splits)
    inner = {}
    if splits is None or is_wrapper:
        inner = _layers_inside(folder, groups, asked if is_wrapper else frozenset(), only_pairs or not is_wrapper)
    if splits is not None and not any(len(layer.splits) > 1 for layer in inner.values()):
        return _layer_of(folder, groups, splits)
    if not inner:
        return None
    meant = [name for name in inner if not lies_beside_images(name)] or list(inner)
    if len(meant) > 1:
        raise SiTError(
            "several sub-folders have splits of their own: "
            + ", ".join(f"{name} ({', '.join(inner[name].splits)})" for name in meant[:5])
            + (f" and {len(meant) - 5} more" if len(meant) > 5 else ""),
            argument="dataset_config_name",
            remedy="name the one that is meant, or lay the dataset out as train/CLASS/ and test/CLASS/",
        )
    layer = inner[meant[0]]
    beside = {os.path.join(folder, name) if name else folder: len(groups[name]) for name in groups if name != meant[0]}
    layer.left_out |= beside
    return layer


def _layer_beside_classes(folder: str, groups: Mapping[str, list[str]], asked: frozenset[str]) -> _Layer | None:
    """The classes to train on, and beside them folders of validation or test images that have the same sub-folders, or
    that the user names."""
    known = known_splits(name for name in groups if name)
    if not known:
        return None
    classes = _sub_folders(folder, groups)
    others = {name for name in groups if name and name not in known and not lies_beside_images(name)}
    is_held_out = all(split.is_plain and split.kind != "train" for split in known.values())
    is_named = len(others) > 1 and set(known) <= asked
    if not is_held_out or (asked & set(groups)) - set(known):
        return None
    if not is_named and not any(classes[name] & others for name in known):
        return None
    splits = {name: [name] for name in known if name in asked}
    unnamed = {name: split for name, split in known.items() if name not in asked}
    splits |= _choose(unnamed) if unnamed else {}
    paths = [path for name, inside in groups.items() if name in others for path in inside]
    left_out = {name: len(inside) for name, inside in groups.items() if name not in {*others, *known}}
    return _Layer(
        {
            "train": [(folder, paths)],
            **{
                split: [(os.path.join(folder, name), groups[name]) for name in names]
                for split, names in splits.items()
            },
        },
        {os.path.join(folder, name) if name else folder: n for name, n in left_out.items()},
    )


def _layers_inside(
    folder: str, groups: Mapping[str, list[str]], asked: frozenset[str], only_pairs: bool
) -> dict[str, _Layer]:
    found = {
        name: _find_layer(os.path.join(folder, name), inside, asked, only_pairs)
        for name, inside in groups.items()
        if name
    }
    return {name: layer for name, layer in found.items() if layer is not None}


def _check_no_splits_inside(folder: str, groups: Mapping[str, list[str]], splits: Mapping[str, list[str]]) -> None:
    for name in [name for names in splits.values() for name in names]:
        inner = _find_layer(os.path.join(folder, name), groups[name], only_pairs=True)
        if inner is not None:
            raise SiTError(
                f"{name} is a split, and has splits of its own: {', '.join(inner.splits)}",
                argument="dataset",
                remedy="give that folder, or one of each split",
            )


def _splits_among(
    folder: str, groups: Mapping[str, list[str]], asked: frozenset[str], only_pairs: bool
) -> dict[str, list[str]] | None:
    """Names of the sub-folders of each split, by its name; `None` if they are no splits."""
    known = known_splits(name for name in groups if name)
    named = [name for name in groups if name and name in asked]
    is_layer = _is_layer(folder, groups, known, only_pairs)
    if not is_layer and not named:
        if not only_pairs:
            _check_no_split_among_classes(folder, groups, known)
        return None
    try:
        splits = _choose(known) if is_layer else {}
    except SiTError:
        if not named:
            raise
        splits = {}
    if all(splits.get(name) == [name] for name in named):
        return splits
    # Beside `train2017` that the user names, `val2017` is meant, not `val2014`.
    patterns = {_pattern(name, known[name]) for name in named if name in known}
    others = {
        name: split
        for name, split in known.items()
        if is_layer and name not in named and (not patterns or _pattern(name, split) in patterns)
    }
    return {**(_choose(others) if others else {}), **{name: [name] for name in named}}


def _pattern(name: str, split: SplitName) -> str:
    return name.lower().replace(split.word.lower(), "*")


def _is_layer(folder: str, groups: Mapping[str, list[str]], known: Mapping[str, SplitName], only_pairs: bool) -> bool:
    if not known:
        return False
    pairs = [kinds for kinds in _kinds_of_schemes(known).values() if len(kinds) > 1]
    if only_pairs:
        return any("train" in kinds for kinds in pairs)
    if pairs:
        return True
    others = [name for name in groups if name and name not in known]
    kinds = {split.kind for split in known.values()}
    if all(lies_beside_images(name) for name in others):
        return all(split.is_plain for split in known.values()) or ("train" in kinds and len(kinds) > 1)
    classes = _sub_folders(folder, groups)
    plain = [name for name, split in known.items() if split.is_plain]
    return any(len(classes[name] & classes[other]) > 1 for name in plain for other in others)


def _sub_folders(folder: str, groups: Mapping[str, list[str]]) -> dict[str, set[str]]:
    return {name: set(group_by_sub_folder(os.path.join(folder, name), groups[name])) - {""} for name in groups}


def _check_no_split_among_classes(
    folder: str, groups: Mapping[str, list[str]], known: Mapping[str, SplitName]
) -> None:
    """Raise if a folder `train` has sub-folders and its neighbours have none: is it a split, or a class as they are?"""
    trains = [name for name, split in known.items() if split.is_plain and split.kind == "train"]
    classes = _sub_folders(folder, groups) if trains else {}
    for name in trains:
        if len(classes[name]) > 1 and not any(inside for other, inside in classes.items() if other not in known):
            neighbours = [other for other in groups if other and other != name]
            raise _unclear([name, *neighbours], f"{name} has sub-folders as a split has, its neighbours do not")


def _kinds_of_schemes(known: Mapping[str, SplitName]) -> dict[tuple[str, ...], set[str]]:
    kinds: dict[tuple[str, ...], set[str]] = {}
    for split in known.values():
        kinds.setdefault(split.scheme, set()).add(split.kind)
    return kinds


def _choose(known: Mapping[str, SplitName]) -> dict[str, list[str]]:
    """Which of the folders that are called like splits are the splits.

    Those of the naming scheme that has the most splits are: `train_images` and `test_images`, not `train_small`. Names that
    differ only in numbers, such as `train_0` and `train_1`, are parts of one split.
    """
    kinds_of_schemes = _kinds_of_schemes(known)
    most = max(map(len, kinds_of_schemes.values()))
    leading = [scheme for scheme, kinds in kinds_of_schemes.items() if len(kinds) == most]
    main = ("*",) if ("*",) in leading else leading[0]
    chosen: list[str] = []
    for kind in dict.fromkeys(split.kind for split in known.values()):
        candidates = [name for name, split in known.items() if split.kind == kind]
        if main in {known[name].scheme for name in candidates} and (main == ("*",) or len(leading) == 1):
            candidates = [name for name in candidates if known[name].scheme == main]
        if len({known[name].scheme for name in candidates}) > 1:
            raise _unclear(candidates, f"several sub-folders are called like the {kind} split")
        chosen += candidates
    by_word: dict[str, list[str]] = {}
    for name in chosen:
        by_word.setdefault(known[name].name.lower(), []).append(name)
    numbered = [name for names in by_word.values() for name in names if len(names) > 1]
    if sum(len(names) > 1 for names in by_word.values()) > 1:  # of two years, or the folds of a cross-validation
        raise _unclear(numbered, "several sub-folders are called like each split")
    return {known[names[0]].name: names for names in by_word.values()}


def _unclear(names: Iterable[str], problem: str) -> SiTError:
    return SiTError(
        f"it is not clear which sub-folders are splits: {problem} ({', '.join(names)})",
        argument="train_split",
        remedy="name the one that is meant, and another with `validation_split`; or rename what is no split",
    )


def _layer_of(folder: str, groups: Mapping[str, list[str]], splits: Mapping[str, list[str]]) -> _Layer:
    used = {name for names in splits.values() for name in names}
    left_out = {name: len(inside) for name, inside in groups.items() if name not in used}
    check_training_split(splits, left_out)
    parts = {
        split: [_unwrapped(os.path.join(folder, name), groups[name]) for name in names]
        for split, names in splits.items()
    }
    return _Layer(parts, {os.path.join(folder, name) if name else folder: n for name, n in left_out.items()})


def _unwrapped(folder: str, paths: list[str]) -> Part:
    """A split's folder, or the one folder in it that is called like the same split: `seg_train/seg_train/CLASS`."""
    split = split_of_name(os.path.basename(folder))
    groups = group_by_sub_folder(folder, paths)
    inner = split_of_name(next(iter(groups))) if len(groups) == 1 else None
    if split is None or inner is None or inner.kind != split.kind:
        return folder, paths
    return _unwrapped(os.path.join(folder, *groups), paths)


def _tell_pooled(folder: str, splits: Mapping[str, list[Part]]) -> None:
    """Name the folders of one split that are called alike but for numbers: `train_20` may be a part of `train_80`."""
    for split, parts in splits.items():
        if len(parts) > 1:
            names = [os.path.relpath(path, folder) for path, _ in parts]
            tell_once(
                f"{folder}: {split} is made of all folders that are called alike: {join_paths(names)}; if not all are meant, "
                "name one with `train_split` or `validation_split`, or give it alone"
            )


def _tell_classes_called_like_splits(dataset: str, folder: str, paths: list[str]) -> None:
    """Name the classes that are called like splits, and little else; with images in the folder there are no classes."""
    groups = group_by_sub_folder(folder, paths)
    called = [name for name in groups if name and (split := split_of_name(name)) is not None and split.is_plain]
    if called and "" not in groups:
        tell_once(
            f"{dataset}: {join_paths(called)}: read as a class, like the other sub-folders; if it is a split, name it with "
            "`train_split` or `validation_split`"
        )


def _tell_doubtful_classes(folder: str, splits: Mapping[str, list[Part]]) -> None:
    """Name the classes to train on that may be none: what is called like masks, or like a numbered part of the images."""
    for split, parts in splits.items():
        known = split_of_name(split)
        groups = {name for part in parts for name in group_by_sub_folder(*part)}
        if "" in groups or len(groups) == 1 or (known is not None and known.kind != "train"):
            continue
        doubtful = sorted(_doubtful(groups))
        if doubtful:
            tell_once(
                f"{folder}: {join_paths(doubtful)}: read as a class, like the other sub-folders in {split}; if it is none, "
                "move it out of there, or its images to those of their classes"
            )


def _doubtful(classes: Collection[str]) -> Iterator[str]:
    called = [name for name in classes if MAY_BE_PART.search(name) is not None]
    words = {name: [word.lower() for word in words_of(name)] for name in called}
    parts = Counter(re.sub(r"\d+", "0", name) for name in called if words[name] and words[name][-1] in PARTS)
    for name in classes:
        if tells_only_what_is_beside(name):  # but `mask` beside `no_mask` is a class
            stem = words_of(name)[-1].lower().rstrip("s")
            if not any(stem in other.lower() for other in classes if other != name):
                yield name
        elif name in words and (words[name] in (["images"], ["imgs"]) or parts[re.sub(r"\d+", "0", name)] > 1):
            yield name
