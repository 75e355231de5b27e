"""The programs' own files never count as images: output folders in a dataset are not read, and no new ones are made there."""

import itertools
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from modeling_sit.data.opening import timely_listing
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import MARK

# Files by which an output folder is known, each set enough: the mark of a run, and for folders without it the files of
# pretraining, of evaluation, of a model or a checkpoint, of a run that was cut off, and of a comparison.
MARKS = (
    {MARK},
    {"run_state.json"},
    {"eval_results.json"},
    {"trainer_state.json"},
    {"config.json", "model.safetensors"},
    {"config.json", "preprocessor_config.json"},
    {"metrics.jsonl", "checkpoints"},
    {"metrics.jsonl", "previews"},
    {"settings.json", "results.json"},
)
# Figures in such a folder.
FIGURES = ("loss_curve.png", "examples.png", "results.png", "reconstructions.png")
PREVIEW = re.compile(r"step-\d+\.png")
ENTRIES_AT_A_TIME = 1000


def is_output_folder(names: Collection[str]) -> bool:
    """Whether a folder with files and folders of these names is an output folder of this package's programs."""
    return any(mark <= set(names) for mark in MARKS)


def walk(folder: str, own: list[str], above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """The files in a folder and its sub-folders that are not hidden, in sorted order. Links are followed, and a disk that
    does not answer is waited for as long as for a file.

    Args:
        folder (`str`): The folder. It may be an output folder itself, then only its figures and previews are left out.
        own (`list[str]`): The output folders, figures and previews that are left out are added to it.
        above (tuple, *optional*): Devices and inodes of the folders above it.
    """
    with timely_listing(folder):
        status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a link back to a folder that we are in
        return
    folders: set[str] = set()
    found = sorted(list_folder(folder, folders), key=lambda entry: entry.name)
    is_output = is_output_folder([entry.name for entry in found])
    if is_output and above:
        own.append(folder)
        return
    for entry in found:
        if entry.name.startswith("."):
            continue
        if is_output and (entry.name in FIGURES or (entry.name == "previews" and _holds_previews(entry.path))):
            own.append(entry.path)
        elif entry.name in folders:
            yield from walk(entry.path, own, (*above, identity))
        else:
            yield entry.path


def list_folder(folder: str, folders: set[str]) -> list[os.DirEntry]:
    """What is in a folder, in no order.

    Args:
        folder (`str`): The folder.
        folders (`set[str]`): The names of the sub-folders, and of links to folders, are added to it.
    """
    found = []
    with timely_listing(folder):
        entries = os.scandir(folder)
    with entries:
        while True:
            with timely_listing(folder):  # of many files, some at a time
                some = list(itertools.islice(entries, ENTRIES_AT_A_TIME))
                # Of links it asks the disk.
                folders.update(entry.name for entry in some if not entry.name.startswith(".") and entry.is_dir())
            if not some:
                return found
            found += some


def _holds_previews(folder: str) -> bool:
    with timely_listing(folder):
        return os.path.isdir(folder) and all(PREVIEW.fullmatch(name) for name in os.listdir(folder))


def check_outside_dataset(output: str | os.PathLike | None, dataset: Any, argument: str = "output_dir") -> None:
    """Check that what a program writes does not lie among the images that it reads, where it would count as one later.

    Args:
        output (`str` or `os.PathLike`, *optional*): The folder or file to write.
        dataset: As for [`~modeling_sit.data.sources.load_images`].
        argument (`str`, *optional*, defaults to `"output_dir"`): Name of the argument that `output` is.

    Raises:
        [`SiTError`]: If it does. Hidden folders and earlier output folders are allowed, because they are not read.
    """
    if output is None or not isinstance(dataset, (str, os.PathLike)) or not dataset or dataset == "digits":
        return
    with timely_listing(dataset):
        folder, place = (Path(os.path.expanduser(path)).resolve() for path in (dataset, output))
        if not folder.is_dir() or not place.is_relative_to(folder):
            return
        way = [path for path in (place, *place.parents) if path != folder and path.is_relative_to(folder)]
        if any(path.name.startswith(".") or (path.is_dir() and is_output_folder(os.listdir(path))) for path in way):
            return
    raise SiTError(
        f"{output} lies in the dataset {os.fspath(dataset)}: what is written there would count as images",
        argument=argument,
        remedy="name a place outside of it",
    )
