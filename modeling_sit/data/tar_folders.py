"""Folders in tar files: a tar file is read as the folder that was packed, whose sub-folders may be splits and classes."""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from modeling_sit.data.folder_splits import split_folders
from modeling_sit.data.folder_tree import Part, group_by_class, group_by_sub_folder
from modeling_sit.data.label_encoding import label_columns
from modeling_sit.data.shard_files import shard_errors
from modeling_sit.data.shard_splits import ENDING
from modeling_sit.data.split_names import split_of_name, tell_once
from modeling_sit.data.tar_files import (
    MAX_BYTES,
    NUM_IMAGES,
    TarFiles,
    describe_tars,
    feature_of,
    is_image,
)
from modeling_sit.data.tar_members import may_hold_label, member_name, split_name
from modeling_sit.data.tar_reading import UNPACK, splits_told_by
from modeling_sit.runtime.errors import SiTError

# The names of so many members are read at most, which takes less than a minute.
MAX_MEMBERS = 2_000_000
BLOCK_SIZE = 512


@dataclass
class _Contents:
    """
    What is in tar files.

    Args:
        images (`dict` of `str` to `list[str]`): Names of the images in each file.
        labels (`dict` of `str` to `list[bytes]`): Contents of the first files of each field that may hold labels.
        num_links (`int`): Images that are links to others.
        num_members (`int`): All members.
    """

    images: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    num_links: int = 0
    num_members: int = 0


@dataclass
class _Found:
    """The tar files of a split, the folders in them that are splits, and whether their names tell so."""

    tars: TarFiles
    contents: _Contents | None = None
    splits: Mapping[str, list[Part]] = field(default_factory=dict)
    is_told: bool = False


def split_tars(
    dataset: str, files: Mapping[str, list[str]], streaming: bool, asked: Iterable[str] = ()
) -> dict[str, TarFiles]:
    """
    The splits in tar files, and their classes: those of the folder that was packed ([`split_folders`]).

    Where files tell labels (`003.cls`), folders tell no classes. Where the names of all members are known only after
    reading all that is in them, as of compressed files that are streamed, folders tell none, and may not tell splits.

    Args:
        dataset (`str`): The tar file, or the folder of tar files.
        files (`dict` of `str` to `list[str]`): The files of each split, as far as their own names tell.
        streaming (`bool`): Whether they are streamed.
        asked (iterable of `str`, *optional*): Names of splits that the user gives.

    Raises:
        [`SiTError`]: If a file cannot be read, or it is not clear which folders are meant.
    """
    found = {split: _look(dataset, split, paths, streaming, asked) for split, paths in files.items()}
    if len(found) == 1:
        ((split, only),) = found.items()
        parts = only.splits or {split: []}
        found = {
            (name if only.is_told else split): replace(only, splits={name: inside}) for name, inside in parts.items()
        }
    for split, each in found.items():
        if each.is_told:
            _check_split(split, each)
    classes = {split: _classes(each.splits) for split, each in found.items()}
    names = sorted(set().union(*(each or () for each in classes.values())))
    has_others = any(label_columns(each.tars.features, None) for each in found.values())
    tells_classes = len(names) > 1 and not has_others and not _are_numbers_of_shards(names, found.values())
    return {
        split: replace(
            _tars_of(dataset, each), classes=tuple(names) if tells_classes else None, has_classes=bool(classes[split])
        )
        for split, each in found.items()
    }


def check_unknown_folders(tars: TarFiles, split: str, remedy: str = "") -> TarFiles:
    """The same tar files. Which folders they have is not known, apart from the first ones.

    Args:
        tars ([`TarFiles`]): The tar files of a split.
        split (`str`): Its name.
        remedy (`str`, *optional*): What else to do than to unpack them, as the beginning of a sentence.

    Raises:
        [`SiTError`]: If those tell a split, and the names of the files do not tell the same.
    """
    folders = {os.path.dirname(name) for name in tars.seen if is_image(name)}
    splits = set().union(*map(splits_told_by, folders))
    # The stream of a dataset on the Hub may hold nothing but `train/`; if not, its reader refuses the first other folder.
    may_be_all = splits == {"train"} and "://" in tars.files[0]
    if splits and not (len(splits) == 1 and (may_be_all or all(_told_by_path(file) == splits for file in tars.files))):
        raise SiTError(
            f"split {split}: folders in its tar files tell splits ({', '.join(sorted(splits))}), and which others there are "
            "is known only after reading all of them",
            argument="dataset",
            remedy=f"{remedy}{UNPACK}",
        )
    if len(folders) > 1 and not label_columns(tars.features, None):
        tell_once(
            f"{tars.files[0]}: its folders are not read as classes, because they are known only after reading all; unpack it "
            "and give the folder if they are"
        )
    return tars


def _told_by_path(path: str) -> set[str]:
    *_, folder, file = ["", *path.split("/")]
    known = split_of_name(ENDING.sub("", file)) or split_of_name(folder)
    return {known.kind} if known is not None else set()


def _look(dataset: str, split: str, files: list[str], streaming: bool, asked: Iterable[str]) -> _Found:
    tars = describe_tars(files)
    for file in files:
        _check_end(file)
    if not any("/" in name for name in tars.seen):
        # Only for what it says of names of files, such as `test_1.png`.
        split_folders(dataset, sorted(os.path.join(dataset, name) for name in tars.seen if is_image(name)))
        return _Found(tars)
    contents = _read_contents(tars, streaming)
    if contents is None:
        return _Found(check_unknown_folders(tars, split, "leave out `streaming`; or " if streaming else ""))
    if contents.num_links:
        tell_once(
            f"{dataset}: {contents.num_links:,} images are not read, because they are links in the tar file; pack what "
            "they point to, as `tar -h` does"
        )
    labels = {each: feature_of(each, values) for each, values in contents.labels.items()}
    tars = replace(tars, others={**tars.others, **labels})
    paths = sorted(os.path.join(dataset, name) for names in contents.images.values() for name in set(names))
    folder = _packed_folder(dataset, paths)
    splits = split_folders(folder, paths, asked)
    _check_whole(dataset, paths, splits)
    return _Found(tars, contents, splits, [part for parts in splits.values() for part, _ in parts] != [folder])


def _check_whole(dataset: str, paths: list[str], splits: Mapping[str, list[Part]]) -> None:
    """Raise a [`SiTError`] if something in a folder is left out, such as `test/` beside the classes: tar files are read by
    folder."""
    for split, parts in splits.items():
        for folder, inside in parts:
            if len(inside) < sum(path.startswith(os.path.join(folder, "")) for path in paths):
                where = os.path.relpath(folder, dataset)
                raise SiTError(
                    f"not all that is in the tar files in {'their topmost folder' if where == os.curdir else where} is of "
                    f"split {split}",
                    argument="dataset",
                    remedy=UNPACK,
                )


def _check_end(file: str) -> None:
    """Say so if a tar file has no end, which is two blocks of zeros. Readers take what there is without a word."""
    with open(file, "rb") as opened:
        header = opened.read(BLOCK_SIZE)
        opened.seek(-min(2 * BLOCK_SIZE, os.path.getsize(file)), os.SEEK_END)
        if header[257:262] == b"ustar" and any(opened.read()):
            tell_once(
                f"{file}: the end is missing, as of a copy that was cut off; images may be missing, too: copy it again"
            )


def _read_contents(tars: TarFiles, streaming: bool) -> _Contents | None:
    """What is in tar files, with the contents of files that may hold labels, if their fields are not known. `None` if too
    much must be read for that."""
    contents = _Contents()
    for file in tars.files:
        contents.images[file] = []
        with shard_errors(file, "webdataset"):
            tar = _opened(file, streaming)
            if tar is None:
                return None
            with tar:
                for member in _members(tar):
                    contents.num_members += 1
                    if contents.num_members > MAX_MEMBERS:
                        return None
                    _add(contents, file, tar, member, tars)
    return contents


def _add(contents: _Contents, file: str, tar: tarfile.TarFile, member: tarfile.TarInfo, tars: TarFiles) -> None:
    name = member_name(member.name)
    if name is not None and is_image(name):
        if member.isreg():
            contents.images[file].append(name)
        contents.num_links += member.issym() or member.islnk()
    elif name is not None and member.isreg() and member.size <= MAX_BYTES:
        _, field = split_name(name, tars.has_dots) or (None, "")
        if may_hold_label(field) and field not in tars.others and len(contents.labels[field]) < NUM_IMAGES:
            contents.labels[field].append(tar.extractfile(member).read())


def _opened(file: str, streaming: bool) -> tarfile.TarFile | None:
    """A tar file. `None` if it is compressed, and to be streamed."""
    try:
        return tarfile.open(file, "r:")
    except tarfile.ReadError:
        return None if streaming else tarfile.open(file, "r|*")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # it would keep all of them


def _packed_folder(folder: str, paths: list[str]) -> str:
    """The folder that was packed: below the folders that hold nothing else, such as `flowers` of `flowers/rose/1.jpg`, as
    long as they are not called like a split and have sub-folders themselves."""
    groups = group_by_sub_folder(folder, paths)
    if len(groups) != 1 or "" in groups:
        return folder
    (name,) = groups
    split = split_of_name(name)
    inner = os.path.join(folder, name)
    if (split is not None and split.is_bare) or "" in group_by_sub_folder(inner, paths):
        return folder
    return _packed_folder(inner, paths)


def _check_split(split: str, found: _Found) -> None:
    """Raise a [`SiTError`] if folders in the tar files of a split tell other splits."""
    told = {inside: known for inside in found.splits if (known := split_of_name(inside)) is not None}
    own = split_of_name(split)
    is_train = {known.kind == "train" for known in told.values()}
    if len(found.splits) > 1 or (own is not None and is_train == {own.kind != "train"}):
        raise SiTError(
            f"split {split}: folders in its tar files tell splits of their own ({', '.join(found.splits)})",
            argument="dataset",
            remedy=f"give one of the tar files; or {UNPACK}",
        )


def _classes(splits: Mapping[str, list[Part]]) -> list[str] | None:
    by_class = [group_by_class(parts) for parts in splits.values()]
    return list(by_class[0]) if by_class and by_class[0] else None


def _are_numbers_of_shards(names: list[str], found: Iterable[_Found]) -> bool:
    """Whether each tar file has a folder of its own, called like a number: `00000/000000123.jpg` in `00000.tar`."""
    if not all(name.isdecimal() for name in names):
        return False
    folders_of_files = [
        {os.path.dirname(name) for name in names_of_file}
        for each in found
        for names_of_file in (each.contents.images.values() if each.contents is not None else ())
    ]
    return len(folders_of_files) > 1 and all(len(folders) == 1 for folders in folders_of_files)


def _tars_of(dataset: str, found: _Found) -> TarFiles:
    """The tar files that hold images of a split, and its folders in them."""
    if found.contents is None:
        return found.tars
    folders = tuple(
        "" if folder == dataset else os.path.relpath(folder, dataset)
        for parts in found.splits.values()
        for folder, _ in parts
    )
    prefixes = tuple(f"{folder}/" if folder else "" for folder in folders)
    files = [file for file, names in found.contents.images.items() if any(name.startswith(prefixes) for name in names)]
    return replace(found.tars, files=files or found.tars.files, folders=folders)
