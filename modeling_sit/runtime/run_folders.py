"""The folder of a run: the mark that says so, and how to delete what a run wrote there, and nothing else.

A user's folder may hold anything beside a run, under any name. So a run leaves a mark in its folder, and what is deleted is
named file by file; a folder goes only when nothing is left in it.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from modeling_sit.runtime.errors import SiTError

MARK = ".modeling_sit_run"
# What every run writes that leaves a model: weights, settings, and the files of this package that travel with them.
MODEL_FILES = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("config.json", "preprocessor_config.json"),
    *sorted(path.name for path in Path(__file__).parents[1].glob("[!_]*.py")),
)


def mark_run(folder: Path, program: str) -> None:
    """Make the folder of a run, with a mark that says which program wrote there, such as `pretrain`."""
    if not is_marked(folder, program):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / MARK).open("a", encoding="utf-8") as file:
            file.write(f"{program}\n")


def is_marked(folder: Path, program: str | None = None) -> bool:
    """Whether [`mark_run`] was called for a folder, by this program or by any; or for one that was renamed since."""
    try:
        programs = (folder / MARK).read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return program is None or program in programs


def find_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files in a folder that one of the patterns of `Path.glob` describes, such as `previews/step-*.png`."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return list(dict.fromkeys(path for path in found if path.is_file()))


def delete_files(folder: Path, files: Iterable[Path]) -> None:
    """Delete files below a folder, and of the folders that they were in those that are empty then; `folder` itself too.

    A folder that is a link stays: the user has made it.
    """
    emptied = {folder}
    for file in files:
        file.unlink(missing_ok=True)
        emptied |= {parent for parent in file.parents if parent.is_relative_to(folder)}
    for path in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        delete_if_empty(path)


def delete_if_empty(folder: Path) -> None:
    """Delete a folder that has nothing in it, and is no link."""
    if folder.is_dir() and not folder.is_symlink() and next(folder.iterdir(), None) is None:
        folder.rmdir()


def check_foreign(
    folder: Path, patterns: Iterable[str], remedy: str = "name another folder, or move away what is there"
) -> None:
    """Check that nothing would be replaced that no run has written, in a folder that is not a run's.

    Args:
        folder (`Path`): The output folder.
        patterns (iterable of `str`): What a run writes there.
        remedy (`str`, *optional*): What to do.

    Raises:
        [`SiTError`]: If there is such a file.
    """
    foreign = [str(path.relative_to(folder)) for path in find_files(folder, patterns)]
    if foreign:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more files" if len(foreign) > 3 else "")
        raise SiTError(
            f"{folder} holds {named} of something else, which would be replaced",
            argument="output_dir",
            remedy=remedy,
        )


def keep_foreign(folder: Path, patterns: Iterable[str]) -> None:
    """Rename what [`check_foreign`] refuses, and say so."""
    for path in find_files(folder, patterns):
        tqdm.write(f"{path} is of no run: it is {set_aside(path)} from now on", file=sys.stderr)


def set_aside(path: Path) -> Path:
    """Rename a user's file that stands where a run writes, such as `README.md` to `README.old.md`; gives the new path."""
    kept, number = path.with_name(f"{path.stem}.old{path.suffix}"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.old-{number}{path.suffix}")
    path.rename(kept)
    return kept
