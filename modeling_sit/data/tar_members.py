"""Members of webdataset tar files: how their names are read, and what a sample's files hold.

A sample's files share a name up to the first dot: `003.png`, `003.cls`, `003.seg.png`. What follows the dot is a field.
Where the names themselves have dots (`photo.2020.01.png`), the last dot begins the field.
"""

import functools
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
from datasets.features.features import cast_to_python_objects
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from modeling_sit.data.label_encoding import LABEL_COLUMNS
from modeling_sit.data.opening import image_extensions
from modeling_sit.runtime.errors import SiTError

SIDE_BY_SIDE = "a sample's files must stand side by side in one folder, as `tar --sort=name` puts them"
DOTS_IN_NAMES = "names must have no dot but the one before the ending"


def member_name(name: str) -> str | None:
    """A member's name without what packing put before it, such as `./`, and with `/` for the `\\` of Windows. `None` for
    hidden files, files in hidden folders, and what macOS adds (`__MACOSX`, `._1.jpg`)."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts or parts[-1].startswith("__") or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return "/".join(parts)


def split_name(name: str, has_dots: bool) -> tuple[str, str] | None:
    """A sample's key and the field, in lower case, of a member's name. `None` if it has none.

    Args:
        name (`str`): Such as `a/003.seg.png`.
        has_dots (`bool`): Whether the keys have dots.
    """
    folder, slash, base = name.rpartition("/")
    key, _, field = base.rpartition(".") if has_dots else base.partition(".")
    return (f"{folder}{slash}{key}", field.lower()) if key and field else None


@functools.lru_cache(4096)
def image_prefix(field: str) -> str | None:
    """What stands before the ending in an image's field: `""` for `png`, `seg` for `seg.png`. `None` for other files."""
    prefix, _, ending = field.rpartition(".")
    return prefix if f".{ending}" in image_extensions() else None


@functools.lru_cache(4096)
def may_hold_label(field: str) -> bool:
    """Whether a field has one of the usual names of labels, or may have fields of such a name."""
    return field.partition(".")[0] in LABEL_COLUMNS or field in ("json", "jsn")


def names_have_dots(names: Iterable[str]) -> bool:
    """Whether dots are a part of the keys, rather than the beginning of a field.

    They begin a field if a sample has a field without a second dot beside an image with one (`003.cls`, `003.seg.png`), or
    if there are fewer such fields than samples and each of them is in half of the samples or more.
    """
    fields_of = defaultdict(set)
    for key, field in filter(None, (split_name(name, False) for name in names)):
        fields_of[key].add(field)
    samples_of = defaultdict(int)
    one_image_each = True
    for fields in fields_of.values():
        with_dots = [field for field in fields if image_prefix(field)]
        if with_dots and any("." not in field for field in fields):
            return False
        one_image_each = one_image_each and len(with_dots) <= 1
        for field in with_dots:
            samples_of[field] += 1
    are_fields = len(samples_of) < len(fields_of) and min(samples_of.values(), default=0) * 2 >= len(fields_of)
    return bool(samples_of) and (one_image_each or not are_fields)


def is_file_here(name: str) -> bool:
    """Whether a file in the current folder is called like a member. `datasets` would read it instead of the member's bytes.

    It is asked here because `datasets` puts a slower function in the place of `os.path.isfile` in the reader's module.
    """
    return os.path.isfile(name)


class SampleCheck:
    """
    Notices samples of which the image stands in one place of a tar file and the label in another.

    Args:
        path (`str`): What to call the tar file in the error.
    """

    def __init__(self, path: str):
        self.path = path
        self._images: set[int] = set()  # hashes of the keys, without folders: labels may lie in one of their own
        self._labels: set[int] = set()  # of samples without an image

    def add(self, key: str, has_image: bool, has_label: bool) -> None:
        """The next sample. Raises a [`SiTError`]."""
        number = hash(os.path.basename(key))
        if number in (self._labels if has_image else self._images) and (has_image or has_label):
            raise SiTError(f"{self.path}: the image and the label of {key} stand in different places: {SIDE_BY_SIDE}")
        if has_image:
            self._images.add(number)
        elif has_label:
            self._labels.add(number)


def read_samples(
    path: str, members: Iterable[tuple[str, BinaryIO]], has_dots: bool, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """
    Samples of a tar file: members of one key that stand side by side.

    Args:
        path (`str`): What to call the tar file in an error.
        members (iterable of names and files): As `datasets` gives them.
        has_dots (`bool`): Whether the keys have dots.
        is_wanted (callable): Says of a field whether its content is read.

    Returns:
        Iterator over pairs: the key, and for each field the content, or `None` if it is not wanted.

    Raises:
        [`SiTError`]: If a sample has two files of one field.
    """
    key, sample = None, {}
    for name, file in members:
        parts = split_name(name, has_dots)
        if parts is None:
            continue
        if parts[0] != key:
            if sample:
                yield key, sample
            key, sample = parts[0], {}
        field = parts[1]
        if field in sample and is_wanted(field):
            raise SiTError(f"{path}: {name} is in it twice, or differs from another only in upper and lower case")
        sample[field] = file.read() if is_wanted(field) else None
    if sample:
        yield key, sample


def decode_member(field: str, content: bytes) -> Any:
    """The value in a file that is no image: an integer, a text, the values of a JSON file, ...

    A file that should hold an integer may hold a text.

    Raises:
        `Exception`: Of any kind, if it is not what its ending says.
    """
    ending = field.rpartition(".")[2]
    if ending not in WebDataset.DECODERS:
        raise ValueError(f"files that end in .{ending} are not read")
    if WebDataset.DECODERS[ending] is int:
        text = content.decode().strip()
        try:
            return int(text)
        except ValueError:
            return text or None
    if ending in ("json", "jsn"):
        return json.loads(content)
    value = WebDataset.DECODERS[ending](content)
    return value.strip() if isinstance(value, str) else value


def infer_feature(values: list[Any]) -> Any:
    """A feature that holds all the values. `None` if there is none."""
    values = [cast_to_python_objects(value, only_1d_for_numpy=True) for value in values]
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, dict) for value in known):
        names = dict.fromkeys(name for value in known for name in value)
        features = {name: infer_feature([value.get(name) for value in known]) for name in names}
        return {name: feature for name, feature in features.items() if feature is not None} or None
    try:
        return datasets.Features.from_arrow_schema(pa.schema([("", pa.array(values).type)]))[""]
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError):
        are_scalars = all(isinstance(value, (str, int, float)) for value in known)
        return datasets.Value("string") if are_scalars else None


def fit_value(value: Any, feature: Any) -> Any:
    """The value in the type of the feature: numbers as texts, if some were texts, and no fields of structs but its own.

    Raises:
        `pa.ArrowInvalid`, `pa.ArrowTypeError`, `ValueError`: If it does not fit.
    """
    usual = {int: "int64", str: "string"}.get(type(value))
    if value is None or (usual is not None and usual == getattr(feature, "dtype", None)):
        return value
    if isinstance(feature, dict):
        if not isinstance(value, dict):
            raise ValueError("not a struct")
        return {name: fit_value(value.get(name), inner) for name, inner in feature.items()}
    if feature == datasets.Value("string") and isinstance(value, (int, float)):
        return str(value)
    value = cast_to_python_objects(value, only_1d_for_numpy=True)
    pa.array([value], datasets.Features({"": feature}).arrow_schema.field("").type)
    return value
