"""Checks of the annotations of objects: what is wrong with one is an error that names it, or leaves it out and counts it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modeling_sit.data.dense.run_lengths import BadMask, box_of_mask, compress, num_bad_polygons
from modeling_sit.runtime.errors import SiTError

# A box may reach beyond its image by rounding: less than this many pixels is cut without a word.
ROUNDING = 1.0
# Reasons to leave something out, or to change it. `{}` is the number.
ZERO_SIZE = "{} boxes of zero size are left out"
OUTSIDE = "{} boxes outside of their image are left out"
CUT = "{} boxes that reach beyond their image are cut at its border"
FEW_POINTS = "{} polygons of fewer than three points are left out"
NO_MASK = "{} objects without a mask are left out"
EMPTY_MASK = "{} masks without a pixel are left out"
# Of boxes that are read as corner and size, more than this fraction reach beyond their image if nearly all are two corners.
MANY_BEYOND, NEARLY_ALL = 0.1, 0.95
# More than this fraction of them, and so many, if they are anything else, such as centers and sizes. Boxes of objects that are
# partly outside of their image would reach beyond its left and upper borders too.
MOST_BEYOND, ENOUGH_BEYOND = 0.25, 10


class AnnotatedObject(NamedTuple):
    """
    An object of an image.

    Args:
        id (`int`): Number of its annotation.
        box (`tuple` of `float`): x, y of its upper left corner, width, height, in pixels, within the image.
        category (`int`): Index of its class.
        area (`float`): In square pixels.
        is_crowd (`int`): 1 if it is a crowd of objects, which measures leave out; else 0.
        mask (`dict`, *optional*): Its mask as compressed run lengths.
    """

    id: int
    box: tuple[float, float, float, float]
    category: int
    area: float
    is_crowd: int
    mask: dict[str, Any] | None


class ImageOfObjects(NamedTuple):
    """Name and size in pixels of the image that annotations belong to."""

    name: str
    width: int
    height: int


@dataclass
class AnnotationCheck:
    """
    Reads the annotations of a file or a split, and counts what is left out.

    Args:
        source (`str`): What to call it in errors, such as the file's path.
        needs_masks (`bool`): Whether an object without a mask is left out.
        keeps_masks (`bool`): Whether masks are read where there are any.
        box_name (`str`, *optional*, defaults to `"bbox"`): What the boxes are called there.
    """

    source: str
    needs_masks: bool
    keeps_masks: bool = True
    box_name: str = "bbox"
    counts: dict[str, list[str]] = field(default_factory=dict)
    num_read: int = 0
    num_boxes: int = 0
    num_beyond: int = 0
    num_before: int = 0
    num_corners: int = 0
    may_be_fractions: bool = True

    def read(
        self, annotation: dict[str, Any], category: int, number: int, image: ImageOfObjects
    ) -> AnnotatedObject | None:
        """An object, or `None` if it is left out.

        Args:
            annotation (`dict`): Fields `bbox`, `segmentation`, `area`, `iscrowd`, `id`, as COCO has them. One of the first
                two is needed.
            category (`int`): Index of its class.
            number (`int`): The annotation's number in the result.
            image ([`ImageOfObjects`]): The image.

        Returns:
            [`AnnotatedObject`], *optional*.

        Raises:
            [`SiTError`]: If it is no annotation.
        """
        self.num_read += 1
        name = f"annotation {annotation.get('id', number)} of {image.name}"
        is_crowd = annotation.get("iscrowd") or 0
        if is_crowd not in (0, 1):
            raise self._error(name, f"`iscrowd` is {is_crowd!r}, not 0 or 1")
        mask, num_pixels = self._mask(annotation, name, image) or (None, None)
        if self.needs_masks and not num_pixels:
            return self._leave_out(NO_MASK if mask is None else EMPTY_MASK, name)
        mask = mask if num_pixels else None
        box = self._box(annotation, mask, name, image)
        if box is None:
            return None
        area = annotation.get("area")
        if not _is_number(area) or area <= 0:
            area = num_pixels or box[2] * box[3]
        return AnnotatedObject(number, box, category, float(area), int(is_crowd), mask)

    def _mask(self, annotation: dict[str, Any], name: str, image: ImageOfObjects) -> tuple[dict[str, Any], int] | None:
        segmentation = annotation.get("segmentation")
        is_wanted = self.keeps_masks or annotation.get("bbox") is None
        if not is_wanted or segmentation is None or (isinstance(segmentation, (list, dict)) and not segmentation):
            return None
        try:
            for _ in range(num_bad_polygons(segmentation)):
                self._leave_out(FEW_POINTS, name)
            return compress(segmentation, image.height, image.width)
        except BadMask as problem:
            raise self._error(name, str(problem)) from None

    def _box(self, annotation: dict[str, Any], mask: dict[str, Any] | None, name: str, image: ImageOfObjects):
        box = annotation.get("bbox")
        if box is None:
            if mask is None:
                raise self._error(name, f"it has neither `{self.box_name}` nor a mask")
            box = box_of_mask(mask)
        if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
            raise self._error(name, f"`{self.box_name}` is {box!r}, not four numbers")
        x, y, width, height = map(float, box)
        self._note_form(x, y, width, height, image)
        if width <= 0 or height <= 0:
            return self._leave_out(ZERO_SIZE, name)
        left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + width, image.width), min(y + height, image.height)
        if right <= left or bottom <= top:
            return self._leave_out(OUTSIDE, name)
        beyond = max(left - x, top - y, x + width - right, y + height - bottom)
        if beyond >= ROUNDING:
            self._leave_out(CUT, name)
        # Boxes within the image keep their numbers to the last bit.
        return (x, y, width, height) if beyond <= 0 else (left, top, right - left, bottom - top)

    def _note_form(self, x: float, y: float, width: float, height: float, image: ImageOfObjects) -> None:
        self.num_boxes += 1
        self.num_beyond += x + width > image.width + ROUNDING or y + height > image.height + ROUNDING
        self.num_before += min(x, y) < -ROUNDING
        self.num_corners += x < width <= image.width + ROUNDING and y < height <= image.height + ROUNDING
        self.may_be_fractions &= max(x, y, width, height) <= 1 < min(image.width, image.height)

    def notes(self) -> list[str]:
        """What was left out or changed, a line each.

        Raises:
            [`SiTError`]: If masks are needed and there are none; or the boxes are two corners, or fractions of the image, or
                otherwise not in pixels from a corner on.
        """
        without = len(self.counts.get(NO_MASK, ()))
        if without and without == self.num_read:
            raise SiTError(
                f"{self.source}: none of its {without:,} objects has a mask",
                argument="dataset",
                remedy="there are boxes only: detect objects, without masks",
            )
        wanted = "x, y, width and height in pixels"
        if self.num_boxes and self.may_be_fractions:
            raise SiTError(
                f"{self.source}: the boxes are fractions of the image, not {wanted}",
                argument="dataset",
                remedy="multiply them by the size of the image",
            )
        are_corners = self.num_corners >= NEARLY_ALL * self.num_boxes
        if are_corners and self.num_beyond > MANY_BEYOND * self.num_boxes:
            raise SiTError(
                f"{self.source}: the boxes are two corners (x1, y1, x2, y2), not {wanted}",
                argument="dataset",
                remedy="subtract the first corner from the second",
            )
        if self.num_beyond > max(MOST_BEYOND * self.num_boxes, ENOUGH_BEYOND - 1) and not self.num_before:
            raise SiTError(
                f"{self.source}: the boxes are not {wanted}: read so, {self.num_beyond:,} of {self.num_boxes:,} reach beyond "
                "the right or lower border of their image, and none beyond the others",
                argument="dataset",
                remedy="write them so; or, if they are, cut them at the border",
            )
        return [
            f"{self.source}: {reason.format(f'{len(names):,}')}, such as that of {names[0]}"
            for reason, names in self.counts.items()
        ]

    def _leave_out(self, reason: str, name: str) -> None:
        self.counts.setdefault(reason, []).append(name)

    def _error(self, name: str, problem: str) -> SiTError:
        return SiTError(f"{self.source}: {name}: {problem}", argument="dataset", remedy="correct it or take it out")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
