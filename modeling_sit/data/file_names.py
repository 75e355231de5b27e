"""What the names of image files tell: masks among the images, which are left out, and splits, which the reader does not go by."""

import os
import re
from collections.abc import Mapping, Sequence

import PIL.Image

from modeling_sit.data.folder_tree import Part
from modeling_sit.data.image_sizes import some_rows, upright_size
from modeling_sit.data.opening import load_pixels, max_image_pixels, opened, read_image, too_large
from modeling_sit.data.split_names import BESIDE_IMAGES, split_of_name, tell_once

# So many names are looked at for splits, evenly spaced.
NUM_NAMES = 2_000
# So many masks are looked at. Of photographs, gray ones too, few have so few colors.
NUM_COMPARED, MAX_COLORS = 8, 64
# Words for masks.
MASKS = BESIDE_IMAGES - {"pred", "unlabeled", "unlabelled", "unsupervised"} | {"annot", "annots", "seg", "labelids"}
WORDS = "|".join(sorted(BESIDE_IMAGES | MASKS, key=len, reverse=True))
# `lesion (1)_mask_2` is a mask of `lesion (1)`. Most names are none, which the first of the two finds out fast.
MAY_BE_MASK = re.compile(rf"(?:{WORDS})[-_. ]*\d*$", re.IGNORECASE)
MASK = re.compile(rf"(.+?)[-_. ]+(?:{WORDS})[-_. ]*\d*", re.IGNORECASE)
# They do not keep the values of a mask.
LOSSY_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")


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
    found = MASK.fullmatch(name) if MAY_BE_MASK.search(name) is not None else None
    return None if found is None else found[1]


def masks_beside(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The masks that lie beside their images, by their names: `a_mask.png` beside `a.jpg`.

    Args:
        paths (sequence of `str`): Files.

    Returns:
        `tuple[dict[str, str], list[str]]`: The image of each mask; and those that are called like masks, of no image.
    """
    called: dict[str, str] = {}
    for path in paths:
        folder, file = os.path.split(path)
        name = masked_name(os.path.splitext(file)[0])
        if name is not None:
            called[path] = os.path.join(folder, name)
    if not called:  # as in most datasets, of which some have a million images
        return {}, []
    wanted = set(called.values())
    images = {stem: path for path in paths if path not in called and (stem := os.path.splitext(path)[0]) in wanted}
    masks = {path: images[image] for path, image in called.items() if image in images}
    return masks, [path for path in called if path not in masks]


def leave_out_masks(folder: str, splits: Mapping[str, list[Part]]) -> dict[str, list[Part]]:
    """The splits without masks that lie beside their images ([`masks_beside`]). A line says so.

    All of them stay if that is in doubt: if a file is called like a mask and is beside no such image, or one is a JPEG, is of
    another size than its image, or has many colors. A line says that, too.

    Args:
        folder (`str`): The dataset's folder.
        splits (mapping from `str` to `list[Part]`): The folders of each split, and the images in them.
    """
    masks, others = masks_beside([path for parts in splits.values() for _, paths in parts for path in paths])
    if not masks:
        return dict(splits)
    mask = next(iter(masks))
    example = f"such as {os.path.relpath(mask, folder)} beside {os.path.basename(masks[mask])}"
    if others or any(mask.lower().endswith(LOSSY_ENDINGS) for mask in masks) or not _look_like_masks(masks):
        tell_once(
            f"{folder}: files are called like masks of other images, {example}; all are read as images; move masks out of "
            "the folder"
        )
        return dict(splits)
    tell_once(
        f"{folder}: masks beside their images are not read: {len(masks):,}, {example}; rename them if they are images"
    )
    return {
        split: [(part, [path for path in paths if path not in masks]) for part, paths in parts]
        for split, parts in splits.items()
    }


def _look_like_masks(masks: Mapping[str, str]) -> bool:
    """Whether some masks are as large as their images and have few colors, as far as these can be read."""
    pairs = list(masks.items())
    for row in some_rows(len(pairs), NUM_COMPARED):
        mask, image = (upright_size({"bytes": None, "path": path}) for path in pairs[row])
        if None not in (mask, image) and (mask != image or not _has_few_colors(pairs[row][0])):
            return False
    return True


def _has_few_colors(path: str) -> bool:
    limit = max_image_pixels()

    def colors(image: PIL.Image.Image) -> list | None:
        if limit is not None and image.width * image.height > limit:
            raise too_large(*image.size, limit)
        load_pixels(image)
        return image.getcolors(MAX_COLORS)

    try:
        with opened(path) as file:
            return read_image(file, colors) is not None
    except Exception:  # whatever it is, it is not for certain a mask
        return False


def _sample(paths: Sequence[str]) -> Sequence[str]:
    return paths[:: max(1, -(-len(paths) // NUM_NAMES))]
