"""The splits of a folder of parquet or tar files, by the names of the files and of the folders that they lie in."""

import os
import re
from collections.abc import Collection, Iterable

from modeling_sit.data.file_names import masked_name
from modeling_sit.data.split_names import (
    SplitName,
    check_training_split,
    lies_beside_images,
    split_of_name,
    tell_left_out,
    tell_once,
    tells_only_what_is_beside,
    words_of,
)
from modeling_sit.runtime.errors import SiTError

ENDING = re.compile(r"\.(parquet|tar|tar\.gz|tgz)$", re.IGNORECASE)
# The number of a shard, and what writers put behind it.
NUMBER = re.compile(r"[-_. ]*\d+-of-\d+.*$|[-_. ]*\d+$")
OF_HOW_MANY = re.compile(r"[-_. ]*(\d+)-of-(\d+)")


def split_shards(
    folder: str, paths: list[str], asked: Iterable[str] = (), config_name: str | None = None
) -> dict[str, list[str]]:
    """The files of each split, by its name. What is left out is told.

    The file name tells the split ([`split_of_name`]), or else the folder that it lies in: `NAME-train-0000.tar`,
    `food_test.parquet`, `val/0.tar`. If no name tells one, all files are `train`. Files of one split whose names differ
    before the split's word, or that lie in different folders, are of different configurations, for they often hold the
    same images.

    Args:
        folder (`str`): The dataset's folder.
        paths (`list[str]`): Its files.
        asked (iterable of `str`, *optional*): Names of splits that the user gives. One may be the name of files without a
            split, without their number: `extra` for `extra-00000-of-00002.parquet`.
        config_name (`str`, *optional*): Which configuration to read.

    Raises:
        [`SiTError`]: If it is not clear which files are meant, or there is no such configuration.
    """
    asked = set(asked)
    told, untold = {}, []
    for path in paths:
        found = _split_of_shard(os.path.relpath(path, folder))
        if found is None:
            untold.append(path)
        else:
            told[path] = found
    told, untold = _of_configuration(told, untold, folder, config_name)
    _tell_missing(folder, [*told, *untold])

    splits: dict[str, list[str]] = {}
    for path, (split, _, _) in told.items():
        splits.setdefault(split.name.lower(), []).append(path)
    beside: dict[str, list[str]] = {}
    for path in untold:
        beside.setdefault(_name_without_number(os.path.relpath(path, folder)), []).append(path)
    masks = [path for path, (_, _, name) in told.items() if lies_beside_images(name)]
    if len(masks) < len(told):
        for path in masks:
            split, _, name = told[path]
            splits[split.name.lower()].remove(path)
            beside.setdefault(name, []).append(path)
        splits = {split: shards for split, shards in splits.items() if shards}
    splits |= {name: beside.pop(name) for name in sorted(asked & set(beside))}
    if not splits:
        left_out = {name: len(shards) for name, shards in beside.items() if _comes_with(name, beside)}
        if len(left_out) == len(beside):
            return {"train": paths}
        tell_left_out(folder, (), left_out, "file")
        return {
            "train": [path for path in paths if _name_without_number(os.path.relpath(path, folder)) not in left_out]
        }
    left_out = {name: len(shards) for name, shards in beside.items()}
    check_training_split(splits, left_out, are_files=True)
    tell_left_out(folder, splits, left_out, "file")
    return splits


def _tell_missing(folder: str, paths: Iterable[str]) -> None:
    """Say which numbered files are not there, as after a download that was cut off."""
    numbers: dict[tuple[str, str, int], set[int]] = {}
    for path in paths:
        above, file = os.path.split(os.path.relpath(path, folder))
        found = OF_HOW_MANY.search(file)
        if found is not None:
            numbers.setdefault((above, file[: found.start()], int(found[2])), set()).add(int(found[1]))
    for (above, name, total), there in numbers.items():
        if len(there) < total:
            of_name = f" {os.path.join(above, name)}" if name else f" of {above}" if above else ""
            tell_once(f"{folder}: {total - len(there)} of {total} files{of_name} are missing")


def _comes_with(name: str, others: Collection[str]) -> bool:
    """Whether files are called like what comes with the images of others: `masks`, or `cells_masks` beside `cells`."""
    return tells_only_what_is_beside(name) or masked_name(name) in others


def _split_of_shard(path: str) -> tuple[SplitName, str, str] | None:
    """The split in a path such as `data/train-00000-of-00002.parquet` or `val/0.tar`, the configuration, which is what
    stands before the split's word, and the name that tells it. The file name goes first."""
    *folders, file = path.split(os.sep)
    parts = [*folders, NUMBER.sub("", ENDING.sub("", file))]
    for place in reversed(range(len(parts))):
        split = split_of_name(parts[place])
        if split is not None:
            before = parts[place][: _place_of_word(parts[place], split.word)].strip("-_. ")
            above = [part for part in parts[:place] if (other := split_of_name(part)) is None or not other.is_bare]
            named = [part for part in (*above, before) if words_of(part)]  # shards are numbered: 000/train-0.tar
            return split, "/".join(named), parts[place]
    return None


def _place_of_word(name: str, word: str) -> int:
    """Where a word begins for the last time, as a word of its own."""
    matches = [found.start() for found in re.finditer(re.escape(word), name)]
    return next(start for start in reversed(matches) if split_of_name(name[start:]) is not None)


def _of_configuration(
    told: dict[str, tuple[SplitName, str, str]], untold: list[str], folder: str, config_name: str | None
) -> tuple[dict[str, tuple[SplitName, str, str]], list[str]]:
    """The files of the configuration that is asked for, or of the only one."""
    configurations: dict[str, set[str]] = {}
    for split, configuration, _ in told.values():
        configurations.setdefault(split.kind, set()).add(configuration)
    known = sorted(set().union(*configurations.values()) - {""}) if configurations else []
    if config_name is not None:
        if config_name not in known:
            there = f", only {', '.join(known)}" if known else ""
            raise SiTError(f"no configuration {config_name}{there}", argument="dataset_config_name")
        return {path: found for path, found in told.items() if found[1] == config_name}, []
    if any(len(names) > 1 for names in configurations.values()):
        raise SiTError(
            "it has files of one split in different configurations: "
            + ", ".join(known + ["the folder itself"] * any("" in names for names in configurations.values())),
            argument="dataset_config_name",
            remedy="name one; or lay files that belong together into one folder, with names like train-0000",
        )
    return told, untold


def _name_without_number(path: str) -> str:
    """What files are called that tell no split: `extra` of `extra-00000-of-00002.parquet` and of `extra/0.parquet`."""
    *folders, file = path.split(os.sep)
    name = NUMBER.sub("", ENDING.sub("", file))
    return name or next((part for part in reversed(folders) if part), file)
