"""Webdataset tar files of one split: what a look into them tells of their samples."""

import itertools
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets
from datasets.download.streaming_download_manager import StreamingDownloadManager

from modeling_sit.data.shard_files import Reading, data_files_of, shard_errors
from modeling_sit.data.tar_members import (
    SampleCheck,
    decode_member,
    image_prefix,
    infer_feature,
    may_hold_label,
    member_name,
    names_have_dots,
    read_samples,
    split_name,
)
from modeling_sit.data.tar_reading import FOLDER_LABEL, TarReader
from modeling_sit.runtime.errors import SiTError

# How far one looks into a tar file: images before its reading ends, members in all, and members of which only the names
# are read (0.4 s), in the first file if it can be read at any place.
NUM_IMAGES = 100
NUM_MEMBERS = 2_000
NUM_NAMES = 10_000
# Larger files beside the images are not looked into.
MAX_BYTES = 2**20


@dataclass
class TarFiles:
    """
    The tar files of a split.

    Args:
        files (`list[str]` or `datasets.data_files.DataFilesList`): Their paths or addresses.
        has_dots (`bool`): Whether the names of samples have dots.
        images (`dict` of `str` to `list[str]`): The fields of images (`png`, `jpg`; `seg.png`) by their prefix (`""`;
            `seg`).
        separate (`set[str]`): Prefixes of which a sample may have several images, of different endings.
        others (`dict` of `str` to features): The fields of other files.
        seen (`list[str]`): Names of the members that were looked at.
        folders (`tuple[str, ...]`, *optional*): The folders in the tar files that the split is read from; `""` is all of
            them. `None` if the names of members that were not looked at are unknown, and may tell other splits.
        classes (`tuple[str, ...]`, *optional*): Names of the classes, of all splits, that folders tell.
        has_classes (`bool`): Whether the sub-folders of this split are some of them.
        names (`dict` of `str` to `str`): The columns of the images, by their prefix.
        is_asked (`bool`): Whether the user has named one of them.
    """

    files: list[str]
    has_dots: bool
    images: dict[str, list[str]]
    separate: set[str]
    others: dict[str, Any]
    seen: list[str] = field(default_factory=list, repr=False)
    folders: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    has_classes: bool = False
    names: dict[str, str] = field(default_factory=dict)
    is_asked: bool = False
    num_rows: int | None = None  # only reading them would tell

    @property
    def features(self) -> datasets.Features:
        """All columns."""
        features = datasets.Features()
        for prefix, fields in self.images.items():
            for column in fields if prefix in self.separate else [self.names.get(prefix, fields[0])]:
                features[column] = datasets.Image()
        if self.classes is not None:
            features[FOLDER_LABEL] = datasets.ClassLabel(names=list(self.classes))
        return datasets.Features({**features, **self.others})

    def builder(self, reading: Reading) -> TarReader:
        """What reads these columns."""
        image = reading.image
        columns: dict[str, Any] = {} if image is None else {image: datasets.Image()}
        for label in reading.labels:
            struct, _, inner = label.partition(".")
            if label in self.features:
                columns[label] = self.features[label]
            else:
                columns.setdefault(struct, {})[inner] = self.features[struct][inner]
        prefix = None if image is None else image_prefix(image)
        return TarReader(
            cache_dir=reading.cache_dir,
            data_files=data_files_of(reading.split, self.files),
            features=datasets.Features(columns),
            has_dots=self.has_dots,
            image=image,
            any_ending=prefix is not None and prefix not in self.separate,
            known_prefixes=None if self.has_dots or self.is_asked else tuple(self.images),
            labels=tuple(column for column in columns if column != image),
            known_fields=tuple(self.others),
            is_strict=reading.is_strict,
            folders=self.folders,
            classes=(self.classes if self.has_classes else ()) if self.classes and FOLDER_LABEL in columns else None,
            hash="2",
        )


def describe_tars(files: list[str]) -> TarFiles:
    """
    Look into the first and the last tar file, and into others if these have no image. On the Hub, the last one is spared.

    Raises:
        [`SiTError`]: If one cannot be read, or images and labels stand in different places.
    """
    members, names = [], []
    for number, file in enumerate(dict.fromkeys([files[0], files[-1], *files])):
        if number > int("://" not in file) and any(is_image(name) for name in names):
            break
        with shard_errors(file, "webdataset"):
            first = _first_members(file)
            if number == 0:
                first += _more_members(file, first)
            members.append((file, first))
            names += [name for name, _ in first]
    has_dots = names_have_dots(names)
    images, separate, contents = defaultdict(list), set(), defaultdict(list)
    for file, first in members:
        for _, sample in _group(file, first, has_dots):
            of_sample = [(image_prefix(each), each) for each in sample if image_prefix(each) is not None]
            for prefix, each in of_sample:
                if each not in images[prefix]:
                    images[prefix].append(each)
            prefixes = [prefix for prefix, _ in of_sample]
            separate |= {prefix for prefix in prefixes if prefixes.count(prefix) > 1}
            for each, content in sample.items():
                if image_prefix(each) is None and content is not None:
                    contents[each].append(content)
    arrays = [each for each in contents if each.rpartition(".")[2] == "npy"]
    if not images and (arrays or not contents):
        raise SiTError(
            f"{files[0]}: it holds no image{', but arrays (.npy)' if arrays else ''}",
            argument="dataset",
            remedy="arrays are read from folders: unpack it"
            if arrays
            else "links are not read: pack what they point to, as `tar -h` does",
        )
    others = {each: feature_of(each, values) for each, values in contents.items()}
    return TarFiles(files, has_dots, dict(images), separate, others, names)


def name_alike(splits: Iterable[TarFiles], image_column: str | None) -> None:
    """Give the images of all splits columns of the same names, whatever their endings are."""
    fields = defaultdict(list)
    for files in splits:
        for prefix, seen in files.images.items():
            fields[prefix] += seen
    names = {prefix: image_column if image_column in seen else seen[0] for prefix, seen in fields.items()}
    for files in splits:
        files.names, files.is_asked = names, image_column is not None


def _first_members(path: str) -> list[tuple[str, bytes | None]]:
    """Names of the first members, with the contents of small files that are no images."""
    members, num_images = [], 0
    for packed_name, file in StreamingDownloadManager().iter_archive(path):
        name = member_name(packed_name)
        if name is None:
            continue
        num_images += is_image(name)
        if num_images > NUM_IMAGES or len(members) == NUM_MEMBERS:
            break
        content = None if is_image(name) else file.read(MAX_BYTES + 1)
        members.append((name, content if content is not None and len(content) <= MAX_BYTES else None))
    return members


def _more_members(path: str, first: list[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """Names of the members after the first ones, if the tar file is here and not compressed, with the contents of some that
    may hold labels, if there were none of their ending before."""
    known = {os.path.splitext(name)[1] for name, content in first if content is not None}
    more, num_read = [], 0
    try:
        with tarfile.open(path, "r:") as tar:
            named = [(name, member) for member in itertools.islice(tar, NUM_NAMES) if (name := _usual_name(member))]
            for name, member in named[len(first) :]:
                is_read = num_read < NUM_IMAGES and os.path.splitext(name)[1] not in known and _may_be_label(name)
                is_read = is_read and member.size <= MAX_BYTES
                num_read += is_read
                more.append((name, tar.extractfile(member).read() if is_read else None))
    except (OSError, tarfile.TarError):
        return more
    return more


def _usual_name(member: tarfile.TarInfo) -> str | None:
    """The name of a member that is a file and not hidden."""
    return None if not member.isreg() or os.path.basename(member.name).startswith((".", "__")) else member.name


def _may_be_label(name: str) -> bool:
    """Whether a file may hold a label, with and without dots in the names of samples."""
    return any(
        parts is not None and may_hold_label(parts[1]) for parts in (split_name(name, dots) for dots in (False, True))
    )


def is_image(name: str) -> bool:
    parts = split_name(name, True)
    return parts is not None and image_prefix(parts[1]) is not None


def _group(path: str, members: list[tuple[str, bytes | None]], has_dots: bool) -> Iterable[tuple[str, dict]]:
    check = SampleCheck(path)
    contents = [(name, _Content(content)) for name, content in members]
    for key, sample in read_samples(path, contents, has_dots, lambda _: True):
        check.add(key, any(image_prefix(each) is not None for each in sample), any(map(may_hold_label, sample)))
        yield key, sample


class _Content:
    """A file that has been read."""

    def __init__(self, content: bytes | None):
        self.read = lambda: content


def feature_of(field: str, contents: list[bytes]) -> Any:
    try:
        feature = infer_feature([decode_member(field, content) for content in contents])
    except Exception:  # decoders raise nearly everything
        feature = None
    return datasets.Value("binary") if feature is None else feature
