"""Masks with a class for each pixel: which files are such, what their values mean, and names of the classes."""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from modeling_sit.data.dense.rows import IGNORED_PIXEL, MAX_PIXEL_CLASSES
from modeling_sit.data.label_encoding import join
from modeling_sit.data.opening import load_pixels, opened, read_image
from modeling_sit.runtime.errors import SiTError

# Pillow's modes of one channel of 8 bits or less. Values of "P" are indices into a palette: the classes themselves.
INDEX_MODES = ("1", "L", "P")
LOSSY_FORMATS = ("JPEG", "MPO")
# The last one is of Roboflow.
NAME_FILES = ("id2label.json", "classes.txt", "labels.txt", "label_names.txt", "_classes.csv")
COLOR_FILES = ("class_dict.csv", "labelmap.txt", "label_colors.txt")
REMEDY = "save each mask as a PNG of one channel and 8 bits, whose values are the classes, 255 for none"


def read_mask(image: dict[str, Any] | None, name: str, colors: np.ndarray | None = None) -> np.ndarray:
    """The values of a mask.

    Args:
        image (`dict`): `{"bytes": ..., "path": ...}`.
        name (`str`): What to call it in an error.
        colors (`np.ndarray` of shape `(classes, 3)`, *optional*): The color of each class, for masks in RGB.

    Returns:
        `np.ndarray`: uint8 `(height, width)`.

    Raises:
        [`SiTError`]: If it is no mask, or cannot be read.
    """
    if image is None:
        raise _error(f"{name}: there is no mask")

    def values(opened_image: PIL.Image.Image) -> np.ndarray:
        if opened_image.format in LOSSY_FORMATS:
            raise _error(f"{name} is a JPEG, which does not keep the values of a mask exactly")
        mode = opened_image.mode
        if mode not in INDEX_MODES and (colors is None or mode not in ("RGB", "RGBA")):
            raise _wrong_mode(name, mode)
        load_pixels(opened_image)
        if opened_image.format == "GIF":  # writers number its colors anew in each file
            return _gray_values(np.asarray(opened_image.convert("RGB")), name)
        if mode == "P" and colors is not None:  # writers may number a palette as they like
            by_color = _indices_of_palette(opened_image, colors, name)
            if by_color is not None:
                return by_color
        if mode in INDEX_MODES:
            return np.array(opened_image, dtype=np.uint8)
        return _indices_of_colors(np.asarray(opened_image)[..., :3], colors, name)

    try:
        with opened(image["path"] if image["bytes"] is None else image["bytes"]) as file:
            return read_image(file, values)
    except SiTError:
        raise
    except Exception as error:
        raise _error(f"{name} cannot be read: {error}", "repair it, or remove it with its image") from error


def _gray_values(pixels: np.ndarray, name: str) -> np.ndarray:
    if (pixels != pixels[..., :1]).any():
        raise _wrong_mode(name, "GIF")
    return pixels[..., 0].copy()


def _indices_of_palette(mask: PIL.Image.Image, colors: np.ndarray, name: str) -> np.ndarray | None:
    """The classes of the colors of a mask's palette; `None` if its values are the classes: none of its colors is of a class, or each
    value has the color of the class of this number, apart from those of no class."""
    values = np.array(mask, dtype=np.uint8)
    palette = np.array(mask.getpalette("RGB")).reshape(-1, 3)
    classes = {}
    for value in np.unique(values).tolist():
        (found,) = np.nonzero((colors == palette[value]).all(axis=1)) if value < len(palette) else ([],)
        classes[value] = int(found[0]) if len(found) else None
    known = {value: index for value, index in classes.items() if index is not None}
    if all(value == index for value, index in known.items()):
        return None
    if len(known) < len(classes):
        value = next(value for value in classes if value not in known)
        raise _error(
            f"{name} has the color ({', '.join(map(str, palette[value].tolist()))}), which is of no class, and others which are",
            "add it to the file of colors",
        )
    table = np.zeros(256, dtype=np.uint8)
    table[list(known)] = list(known.values())
    return table[values]


def _wrong_mode(name: str, mode: str) -> SiTError:
    if mode.startswith("I") or mode == "F":
        return _error(f"{name} is a mask of {'32' if mode in ('I', 'F') else '16'} bits, and a class has 8")
    return _error(
        f"{name} is a mask in color ({mode}), whose classes are not known",
        f"{REMEDY}; or write the colors into class_dict.csv beside it, a line `name,r,g,b` for each class",
    )


def _indices_of_colors(pixels: np.ndarray, colors: np.ndarray, name: str) -> np.ndarray:
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    known = colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    order = known.argsort()
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    is_known = known[order][place] == codes
    if not is_known.all():
        y, x = np.argwhere(~is_known)[0]
        color = ", ".join(map(str, pixels[y, x].tolist()))
        raise _error(
            f"{name} has the color ({color}) at ({x}, {y}), which is of no class", "add it to the file of colors"
        )
    return order[place].astype(np.uint8)


def encode_mask(values: np.ndarray) -> bytes:
    """uint8 `(height, width)` as PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def is_black_and_white(values: Sequence[int] | np.ndarray) -> bool:
    """Whether masks have two values, 0 and 255, which are then background and foreground: 255 is not ignored."""
    return set(np.asarray(values).tolist()) == {0, 255}


def recode(values: np.ndarray, black_and_white: bool, reduce_labels: bool) -> np.ndarray:
    """Masks as [`~modeling_sit.data.dense.rows.pixel_features`] has them."""
    if black_and_white:
        return (values > 0).astype(np.uint8)
    if reduce_labels:  # 0 wraps around to 255, and what is ignored stays
        return np.where(values == IGNORED_PIXEL, values, values - np.uint8(1))
    return values


def check_values(present: np.ndarray, label_names: Sequence[str], name: str) -> None:
    """Raise a [`SiTError`] if a mask has values beyond the classes.

    Args:
        present (`np.ndarray`): Its distinct values, recoded.
        label_names (sequence of `str`): Names of the classes.
        name (`str`): What to call it.
    """
    wrong = [value for value in present.tolist() if len(label_names) <= value != IGNORED_PIXEL]
    if wrong:
        raise _error(
            f"{name} has the values {join(map(str, wrong[:10]))}, and there are {len(label_names)} classes, from 0 on",
            "name all classes in id2label.json or classes.txt, or write 255 where there is none",
        )


def find_label_names(folder: str, others: Sequence[str] = ()) -> tuple[list[str] | None, np.ndarray | None]:
    """Names of classes, and their colors `(classes, 3)`, of a file in a folder that tells them.

    Args:
        folder (`str`): The folder.
        others (sequence of `str`, *optional*): Folders to look in if it has no such file. Several of them must tell the same.

    Raises:
        [`SiTError`]: If there is such a file, and it does not tell them.
    """
    path = _find_file(folder)
    found = [path] if path is not None else [path for other in others if (path := _find_file(other)) is not None]
    told = [_read_file(path) for path in found]
    for (names, _), path in zip(told, found, strict=True):
        if names != told[0][0]:
            raise _error(
                f"{found[0]} and {path} name other classes", "write one such file into the folder of the dataset"
            )
    return told[0] if told else (None, None)


def _find_file(folder: str) -> str | None:
    paths = (os.path.join(folder, name) for name in (*COLOR_FILES, *NAME_FILES))
    return next((path for path in paths if os.path.isfile(path)), None)


def _read_file(path: str) -> tuple[list[str], np.ndarray | None]:
    if os.path.basename(path) in COLOR_FILES:
        return _read_colors(path)
    return _read_names(path), None


def _read_names(path: str) -> list[str]:
    text = _text_of(path)
    if path.endswith(".txt"):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        try:
            by_index = _read_json(text) if path.endswith(".json") else _read_csv(text)
        except (ValueError, AttributeError) as error:
            remedy = (
                'write {"0": "sky", "1": "road"}' if path.endswith(".json") else "write a line `0, sky` for each class"
            )
            raise _error(f"{path} is no table of indices and names", remedy) from error
        if sorted(by_index) != list(range(len(by_index))):
            raise _error(
                f"{path}: the indices are {join(map(str, sorted(by_index)[:10]))}, and not 0, 1, ... without gaps"
            )
        names = [by_index[index] for index in range(len(by_index))]
    if not 0 < len(names) <= MAX_PIXEL_CLASSES:
        raise _error(f"{path} names {len(names)} classes, and there may be 1 to {MAX_PIXEL_CLASSES}")
    if len(set(names)) < len(names):
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        raise _error(f"{path}: several classes are called {join(repeated[:5])}", "give each a name of its own")
    return names


def _read_json(text: str) -> dict[int, str]:
    return {int(index): str(name) for index, name in json.loads(text).items()}


def _read_csv(text: str) -> dict[int, str]:
    """Lines such as `0, background`, below a line of titles."""
    lines = [line.split(",", 1) for line in text.splitlines() if line.strip()]
    return {int(value): name.strip() for value, name in lines[1:]}


def _read_colors(path: str) -> tuple[list[str], np.ndarray]:
    """Lines such as `Sky,128,128,128`, `Sky:128,128,128::` or `128 128 128  Sky`."""
    found: dict[str, tuple[int, ...]] = {}
    for line in _text_of(path).splitlines():
        fields = line.replace(":", ",").replace("\t", " ").strip().split("," if "," in line else None)
        numbers = [int(field) for field in fields if field.strip().isdecimal()][:3]
        words = [field.strip() for field in fields if field.strip() and not field.strip().isdecimal()]
        if len(numbers) == 3 and max(numbers) < 256 and words:
            found[" ".join(words[:1] if "," in line else words)] = tuple(numbers)
    if not found or len(set(found.values())) < len(found) or len(found) > MAX_PIXEL_CLASSES:
        raise _error(f"{path} does not tell a color for each class", "write a line `name,r,g,b` for each")
    return list(found), np.array(list(found.values()))


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _error(f"{path} cannot be read: {error}", None) from error


def _error(problem: str, remedy: str | None = REMEDY) -> SiTError:
    return SiTError(problem, argument="dataset", remedy=remedy)
