"""What to do about a dataset without labels: name a column, or sort image files into folders."""

import os

import datasets

from modeling_sit.data.own_files import walk

NAME_COLUMN = "name their column"
IN_FOLDERS = "put the images of each class into a sub-folder of its own, such as rose/ and tulip/"
# Files that may hold labels.
TABLES = (".csv", ".jsonl", ".json")


def lies_in_files(dataset: str, images: object) -> bool:
    """Whether images are files of a folder, so that there is no column of labels to name.

    Args:
        dataset (`str`): Name of the dataset: the folder, if it is one.
        images (`datasets.Dataset` or else): A split, with its column `image` only.
    """
    if not isinstance(images, datasets.Dataset) or list(images.features) != ["image"] or not len(images):
        return False
    folder = os.path.join(os.path.abspath(os.path.expanduser(dataset)), "")
    first = images.data.column("image")[0].as_py()
    path = first.get("path") if isinstance(first, dict) and first.get("bytes") is None else None
    return path is not None and path.startswith(folder) and os.path.isdir(folder)


def give_labels(dataset: str, images: object, name_column: str = NAME_COLUMN) -> str:
    """The remedy for a dataset without labels.

    Args:
        dataset, images: As for [`lies_in_files`].
        name_column (`str`, *optional*): The remedy where the dataset has columns.
    """
    if not lies_in_files(dataset, images):
        return name_column
    folder = os.path.abspath(os.path.expanduser(dataset))
    try:
        table = next((path for path in walk(folder, []) if path.lower().endswith(TABLES)), None)
    except OSError:
        table = None
    if table is None:
        return IN_FOLDERS
    return (
        f"files of labels, such as {os.path.relpath(table, folder)}, are not read: {IN_FOLDERS}; or in Python give what "
        '`datasets.load_dataset("imagefolder", data_dir=...)` returns, which reads metadata.csv and metadata.jsonl'
    )
