"""Files of annotations in COCO's form: read, and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from modeling_sit.data.label_encoding import join
from modeling_sit.runtime.errors import SiTError

LISTS = ("images", "annotations", "categories")
REMEDY = "give a file with the lists `images`, `annotations` and `categories`"


class Category(NamedTuple):
    """A category: its number or name in the file, its name, and that of the category above it, if any."""

    id: int | str
    name: str
    above: str | None


@dataclass
class CocoFile:
    """
    A file of annotations.

    Args:
        path (`str`): The file.
        images (`dict[int | str, dict]`): By their ids, as they are written.
        annotations (`dict[int | str, list[dict]]`): By the ids of their images, of which each has a list.
        categories (`dict[int | str, Category]`): By their ids, in the order of these.
    """

    path: str
    images: dict[int | str, dict[str, Any]]
    annotations: dict[int | str, list[dict[str, Any]]]
    categories: dict[int | str, Category]

    def image_numbers(self) -> dict[int | str, int]:
        """A number for each id of an image: itself, or where some are texts their place in the file, from 1."""
        if all(isinstance(key, int) for key in self.images):
            return {key: key for key in self.images}
        return {key: number for number, key in enumerate(self.images, 1)}

    def has_unique_ids(self) -> bool:
        """Whether annotations have ids that are different numbers above 0. pycocotools takes 0 for none."""
        ids = [annotation.get("id") for each in self.annotations.values() for annotation in each]
        return all(type(number) is int and number > 0 for number in ids) and len(set(ids)) == len(ids)


def read_coco_file(path: str) -> CocoFile:
    """Read a file of annotations of objects.

    Ids may be numbers or texts; a text of digits is the number.

    Raises:
        [`SiTError`]: If it is none; if an image or a category has no id, or that of another; or an annotation is of an
            image or a category that is not there.
    """
    lists = _read_lists(path)
    images: dict[int | str, dict] = {}
    for place, image in enumerate(lists["images"]):
        key = _key(image, "id", f"{path}: image {place}")
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            raise _error(f"{path}: image {key} has no `file_name`")
        if key in images:
            raise _error(f"{path}: two images have the id {key}: {images[key]['file_name']} and {image['file_name']}")
        images[key] = image
    categories: dict[int | str, Category] = {}
    for place, category in enumerate(lists["categories"]):
        key = _key(category, "id", f"{path}: category {place}")
        if key in categories:
            raise _error(f"{path}: two categories have the id {key}")
        categories[key] = Category(key, str(category.get("name", key)), category.get("supercategory"))
    annotations: dict[int | str, list[dict]] = {key: [] for key in images}
    for place, annotation in enumerate(lists["annotations"]):
        name = f"{path}: annotation {annotation.get('id', place)}"
        image, category = _key(annotation, "image_id", name), _key(annotation, "category_id", name)
        if image not in images:
            raise _error(f"{name} is of image {image}, which is not among its images")
        if category not in categories:
            known = join(map(str, sorted(categories, key=str)[:10])) + (", ..." if len(categories) > 10 else "")
            raise _error(
                f"{name} of {images[image]['file_name']} is of category {category}, and the categories are {known}"
            )
        annotation["category_id"] = category
        annotations[image].append(annotation)
    ordered = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return CocoFile(path, images, annotations, {key: categories[key] for key in ordered})


def looks_like_coco(path: str, num_bytes: int = 1 << 16) -> bool:
    """Whether the beginning of a file may be that of annotations, for files that are called anything."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            start = file.read(num_bytes)
    except OSError:
        return False
    return start.lstrip("\ufeff \t\r\n").startswith("{") and any(f'"{name}"' in start for name in LISTS)


def label_names_of(file: CocoFile) -> list[str]:
    """Names of the categories, in the order of their ids, without those that only stand above others, as in Roboflow's files.

    Raises:
        [`SiTError`]: If there are none, or two are called alike.
    """
    used = {annotation["category_id"] for each in file.annotations.values() for annotation in each}
    above = {category.above for category in file.categories.values()}
    names = [
        category.name
        for key, category in file.categories.items()
        if key in used or category.name not in above or category.above not in (None, "none", "")
    ]
    if not names:
        raise _error(f"{file.path}: there are no categories")
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise _error(f"{file.path}: several categories are called {join(repeated[:5])}", "give each a name of its own")
    return names


def indices_of(file: CocoFile, label_names: list[str]) -> dict[int | str, int]:
    """For each category of a file that has an annotation, the index of its class, by its name.

    Raises:
        [`SiTError`]: If there is no such class.
    """
    by_name = {name: index for index, name in enumerate(label_names)}
    used = {annotation["category_id"] for each in file.annotations.values() for annotation in each}
    unknown = [
        file.categories[key].name
        for key in file.categories
        if key in used and file.categories[key].name not in by_name
    ]
    if unknown:
        raise _error(
            f"{file.path}: objects are of categories that are not among the classes: {join(unknown[:10])}",
            "add them to the categories of the training split, or take the objects out",
        )
    return {key: by_name[category.name] for key, category in file.categories.items() if category.name in by_name}


def _read_lists(path: str) -> dict[str, list[dict]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise _error(f"{path}: {error.strerror}", "the file must be readable") from error
    except (ValueError, RecursionError) as error:
        raise _error(f"{path} is no JSON file: {error}", REMEDY) from error
    if isinstance(content, list):
        raise _error(f"{path} is a list, as COCO's results are, and no file of annotations", REMEDY)
    if not isinstance(content, Mapping):
        raise _error(f"{path} is no COCO file: it holds {type(content).__name__}", REMEDY)
    lists = {}
    for name in LISTS:
        entries = content.get(name)
        if not isinstance(entries, list):
            what = "has no list" if entries is None else f"holds {type(entries).__name__}, and no list, as"
            raise _error(f"{path} is no COCO file: it {what} `{name}`", REMEDY)
        wrong = next((entry for entry in entries if not isinstance(entry, dict)), None)
        if wrong is not None:
            raise _error(f"{path}: among `{name}` is {wrong!r:.50}, which has no fields", REMEDY)
        lists[name] = entries
    if not lists["images"]:
        raise _error(f"{path}: its list `images` is empty", REMEDY)
    return lists


def _key(entry: dict, field: str, name: str) -> int | str:
    """An id: a number, or a text that is none."""
    value = entry.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise _error(f"{name} has no `{field}`" if value is None else f"{name}: `{field}` is {value!r}, and no id")
    return value


def _error(problem: str, remedy: str | None = "correct the file") -> SiTError:
    return SiTError(problem, argument="dataset", remedy=remedy)
