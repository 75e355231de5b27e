"""What the names of image files tell, which the reader does not go by: splits, and masks among the images."""

import os
import re
from collections.abc import Sequence

from modeling_sit.data.split_names import BESIDE_IMAGES, split_of_name, tell_once

# So many names are looked at, evenly spaced.
NUM_NAMES = 2_000
# `lesion (1)_mask_2` is a mask of `lesion (1)`.
MASK = re.compile(
    rf"(.+?)[-_. ]+(?:{'|'.join(sorted(BESIDE_IMAGES, key=len, reverse=True))})[-_. ]*\d*", re.IGNORECASE
)


def tell_splits_in_file_names(folder: str, paths: Sequence[str]) -> None:
    """Say that the names of files, such as `test_1.png`, make no splits, if most of them tell one, and not the same.

    Args:
        folder (`str`): The dataset's folder.
        paths (`list[str]`): Its images.
    """
    names = [os.path.basename(path) for path in _sample(paths)]
    kinds = [split.kind for name in names if (split := split_of_name(os.path.splitext(name)[0])) is not None]
    if len(set(kinds)) > 1 and 2 * len(kinds) >= len(names):
        tell_once(
            f"{folder}: the images' file names tell splits, but of images only folders are splits: all are read as train; "
            "move them into sub-folders train and test if they are splits"
        )


def masked_name(name: str) -> str | None:
    """What a file is called of which this is called like a mask: `a` for `a_mask_2`; `None` if it is not."""
    found = MASK.fullmatch(name)
    return None if found is None else found[1]


def tell_masks_in_file_names(folder: str, paths: Sequence[str]) -> None:
    """Say that files are called like masks of others that lie beside them, such as `a_mask.png` beside `a.png`.

    Args:
        folder (`str`): The dataset's folder.
        paths (`list[str]`): The images of a split.
    """
    masks = [path for path in _sample(paths) if masked_name(os.path.splitext(os.path.basename(path))[0]) is not None]
    stems = {os.path.splitext(path)[0] for path in paths} if masks else set()
    for path in masks:
        above, name = os.path.split(os.path.splitext(path)[0])
        image = os.path.join(above, masked_name(name))
        if image in stems:
            tell_once(
                f"{folder}: files are called like masks of other images, such as {os.path.relpath(path, folder)} beside "
                f"{os.path.basename(image)}; all are read as images; move masks out of the folder"
            )
            return


def _sample(paths: Sequence[str]) -> Sequence[str]:
    return paths[:: max(1, -(-len(paths) // NUM_NAMES))]
