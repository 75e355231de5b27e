"""The reader of webdataset tar files: the image and the labels of each sample, and nothing else."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.builder import Key

from modeling_sit.data.shard_files import shard_errors
from modeling_sit.data.tar_members import (
    DOTS_IN_NAMES,
    SampleCheck,
    decode_member,
    fit_value,
    image_prefix,
    is_file_here,
    may_hold_label,
    read_samples,
)
from modeling_sit.runtime.errors import SiTError


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
    """

    has_dots: bool = False
    image: str | None = None
    any_ending: bool = True
    known_prefixes: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()


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
                samples = read_samples(name, archive, self.config.has_dots, self._is_wanted)
                for place, (key, sample) in enumerate(samples):
                    row = self._row(name, key, sample, check)
                    if row is not None:
                        yield Key(number, place), row

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
        has_label = any(field in self.config.labels or may_hold_label(field) for field in sample)
        if self.config.image is not None:
            self._check_prefixes(name, key, sample)
            check.add(key, bool(images), has_label)
        if not images and not has_label:
            return None
        row: dict[str, Any] = {}
        if self.config.image is not None:
            row[self.config.image] = self._image(key, sample, images)
        for column in self.config.labels:
            row[column] = self._label(name, key, sample, column)
        return row

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
            raise SiTError(
                f"{name}: {key}.{column} does not hold what the first ones do ({feature}): {reason}"
            ) from error
