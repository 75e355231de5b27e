"""The reader of webdataset tar files: the image and the labels of each sample, and nothing else."""

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import datasets
from datasets.builder import Key

from modeling_sit.data.shard_files import shard_errors
from modeling_sit.data.split_names import split_of_name, tell_once
from modeling_sit.data.tar_members import (
    DOTS_IN_NAMES,
    SampleCheck,
    decode_member,
    fit_value,
    image_prefix,
    is_file_here,
    may_hold_label,
    member_name,
    read_samples,
)
from modeling_sit.runtime.errors import SiTError

# The column of classes that folders in the tar files tell.
FOLDER_LABEL = "label"


UNPACK = "unpack it and give the folder, or make a tar file of each split, called NAME-train.tar and NAME-test.tar"


@functools.lru_cache(4096)
def splits_told_by(folder: str) -> frozenset[str]:
    """The kind of split that the names of a folder and of those above it tell, if one is called so and nothing else."""
    known = [split_of_name(part) for part in folder.split("/")]
    return frozenset([split.kind for split in known if split is not None and split.is_bare][-1:])


@dataclass
class TarConfig(datasets.BuilderConfig):
    """
    What is read.

    Args:
        has_dots (`bool`): Whether the names of samples have dots.
        image (`str`, *optional*): The column of the image, a field such as `png` or `seg.png`.
        any_ending (`bool`): Whether an image of another ending (`jpg`, `seg.jpg`) is taken where there is none of this.
        known_prefixes (`tuple` of `str`, *optional*): What stands before the endings of images. An image with another
            prefix is an error. Default: no error.
        labels (`tuple` of `str`): The columns of the labels.
        known_fields (`tuple` of `str`): The fields of files that are no images, as far as the first ones tell.
        is_strict (`bool`): Whether a label that does not fit is an error. Else it is told, and none.
        folders (`tuple` of `str`, *optional*): The folders that are read, `""` for all. Default: all, but an error if they
            tell several splits.
        classes (`tuple` of `str`, *optional*): Which sub-folders of these are the classes in the column `FOLDER_LABEL`.
            Images in others have none. Default: there is no such column, or files hold it.
    """

    has_dots: bool = False
    image: str | None = None
    any_ending: bool = True
    known_prefixes: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()
    known_fields: tuple[str, ...] = ()
    is_strict: bool = True
    folders: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None


class TarReader(datasets.GeneratorBasedBuilder):
    """Reads tar files for the `datasets` library, which stores or streams the rows."""

    BUILDER_CONFIG_CLASS = TarConfig
    DEFAULT_WRITER_BATCH_SIZE = 100  # as for webdatasets: rows in memory before they are written

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        names = self.config.data_files
        paths = dl_manager.download(names)
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={
                    "names": list(names[split]),
                    "archives": [dl_manager.iter_archive(path) for path in paths[split]],
                },
            )
            for split in names
        ]

    def _generate_shards(self, names: list[str], archives: list) -> Iterator[str]:
        yield from names

    def _generate_examples(self, names: list[str], archives: list) -> Iterator[tuple[Key, dict[str, Any]]]:
        for number, (name, archive) in enumerate(zip(names, archives, strict=True)):
            with shard_errors(name, "webdataset"):
                check = SampleCheck(name)
                members = self._members_of_split(name, archive)
                samples = read_samples(name, members, self.config.has_dots, self._is_wanted)
                for place, (key, sample) in enumerate(samples):
                    row = self._row(name, key, sample, check)
                    if row is not None:
                        yield Key(number, place), row

    def _members_of_split(self, name: str, archive: Iterable[tuple[str, BinaryIO]]) -> Iterator[tuple[str, BinaryIO]]:
        for packed_name, file in archive:
            member = member_name(packed_name)
            if member is None:
                continue
            if self.config.folders is None:
                self._splits |= splits_told_by(os.path.dirname(member))
                if len(self._splits) > 1:
                    raise SiTError(
                        f"{name}: its folders tell several splits ({', '.join(sorted(self._splits))}): {UNPACK}"
                    )
                yield member, file
            elif self._folder_of(member) is not None:
                yield member, file

    @functools.cached_property
    def _splits(self) -> set[str]:
        """The splits that folders in the tar files told so far."""
        return set()

    def _folder_of(self, member: str) -> str | None:
        """Which of the folders that are read a member lies in."""
        return next((each for each in self.config.folders or ("",) if not each or member.startswith(f"{each}/")), None)

    def _is_wanted(self, field: str) -> bool:
        return field in self.config.labels or self._is_the_image(field)

    def _is_the_image(self, field: str) -> bool:
        wanted = self.config.image
        if wanted is None or field == wanted:
            return field == wanted
        return self.config.any_ending and image_prefix(field) == image_prefix(wanted)

    def _row(self, name: str, key: str, sample: dict[str, bytes | None], check: SampleCheck) -> dict | None:
        """The row of a sample. `None` if it has neither an image nor a label."""
        images = [field for field in sample if self._is_the_image(field)]
        if len(images) > 1 and self.config.any_ending:  # and not one of each kind, as the first samples have them
            raise SiTError(
                f"{name}: {key}.{images[0]} and {key}.{images[1]} have one name, and the first images have none such beside them",
                argument="dataset",
                remedy="rename one of them, or unpack the files into a folder",
            )
        has_label = any(field in self.config.labels or may_hold_label(field) for field in sample)
        if self.config.image is None and self.config.classes is not None:
            has_label = any(image_prefix(field) is not None for field in sample)
        if self.config.image is not None:
            self._check_prefixes(name, key, sample)
            check.add(key, bool(images), has_label)
            if not self.config.labels:
                self._tell_late_labels(name, key, sample)
        if not images and not has_label:
            return None
        row: dict[str, Any] = {}
        if self.config.image is not None:
            row[self.config.image] = self._image(key, sample, images)
        for column in self.config.labels:
            if column == FOLDER_LABEL and self.config.classes is not None:
                row[column] = self._class_of(key)
            else:
                row[column] = self._label(name, key, sample, column)
        return row

    def _class_of(self, key: str) -> int:
        """Index of the class that the folder of a sample tells, -1 for none."""
        folder = self._folder_of(key)
        start = len(folder) + 1 if folder else 0
        name, slash, _ = key[start:].partition("/")
        return self._classes.get(name, -1) if slash else -1

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.config.classes)}

    @functools.cached_property
    def _told(self) -> set[str]:
        """The fields of which it is told that labels are not read: one example is enough."""
        return set()

    def _tell_late_labels(self, name: str, key: str, fields: Iterable[str]) -> None:
        for field in fields:
            if may_hold_label(field) and field not in self.config.known_fields and field not in self._told:
                self._told.add(field)
                tell_once(
                    f"{name}: labels such as {key}.{field} are not read, because the first files have none; pack some with "
                    "a label first"
                )

    def _check_prefixes(self, name: str, key: str, sample: Iterable[str]) -> None:
        known = self.config.known_prefixes
        for field in sample if known is not None else ():
            if image_prefix(field) not in (None, *known):
                raise SiTError(
                    f"{name}: {key}.{field} is no image of a kind that the first ones had: {DOTS_IN_NAMES}, unless all "
                    "samples have it"
                )

    def _image(self, key: str, sample: dict[str, bytes | None], images: list[str]) -> dict[str, Any] | None:
        if not images:
            return None
        field = self.config.image if self.config.image in images else images[0]
        path = f"{key}.{field}"
        return {"bytes": sample[field], "path": None if is_file_here(path) else path}

    def _label(self, name: str, key: str, sample: dict[str, bytes | None], column: str) -> Any:
        if sample.get(column) is None:
            return None
        feature = self.info.features[column]
        try:
            value = decode_member(column, sample[column])
            return fit_value(value, feature)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"{name}: {key}.{column} does not hold what the first ones do ({feature}): {reason}"
            if self.config.is_strict:
                raise SiTError(problem, argument="label_column") from error
            if column not in self._told:
                self._told.add(column)
                tell_once(f"{name}: labels are not read where they are of another kind, such as {key}.{column}")
            return None
