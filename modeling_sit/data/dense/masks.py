"""Rows of images and masks: their masks are checked, and brought into one form where they are not."""

from collections.abc import Sequence

import datasets
import numpy as np

from modeling_sit.data.dataset_forms import arrow_images
from modeling_sit.data.dense.mask_values import check_values, encode_mask, is_black_and_white, read_mask, recode
from modeling_sit.data.dense.rows import IGNORED_PIXEL, pixel_features
from modeling_sit.data.image_datasets import image_name
from modeling_sit.data.image_sizes import is_turned, some_rows, upright_size
from modeling_sit.runtime.errors import SiTError

# So many masks of a split are decoded beforehand, if the classes are named; else all are.
NUM_DECODED = 2000


class MaskReader:
    """
    Checks masks. What their values mean is told by all splits together.

    Args:
        label_names (`list[str]`, *optional*): Names of the classes. Default: numbers, up to the largest value.
        colors (`np.ndarray` of shape `(classes, 3)`, *optional*): Colors of the classes, for masks in RGB.
        reduce_labels (`bool`): Whether 0 stands for no class. The name that goes with the first color is then left out.
    """

    def __init__(self, label_names: list[str] | None, colors: np.ndarray | None, reduce_labels: bool):
        if reduce_labels and label_names is not None and colors is not None and len(colors) == len(label_names):
            label_names = label_names[1:]
        self.label_names = label_names
        self.colors = colors
        self.reduce_labels = reduce_labels
        self.notes: list[str] = []
        if reduce_labels and label_names:
            self.notes.append(f"0 in the masks is no class, and 1 is {label_names[0]}")
        self._is_black_and_white: bool | None = None
        self._is_zero_and_one = False

    def read(self, rows: datasets.Dataset, others: Sequence[dict] = ()) -> datasets.Dataset:
        """The rows with masks as of [`pixel_features`].

        Args:
            rows (`datasets.Dataset`): Columns `image` and `label`, both encoded.
            others (sequence of `dict`, *optional*): Masks of other splits, by which classes that have no names are counted.

        Raises:
            [`SiTError`]: If a mask is none, is of another size than its image, or has values beyond the classes.
        """
        masks = list(rows["label"])
        names = [_mask_name(mask, row, str(rows.split or "the dataset")) for row, mask in enumerate(masks)]
        decoded = some_rows(len(rows), NUM_DECODED) if self.label_names is not None else range(len(rows))
        present = {row: np.unique(read_mask(masks[row], names[row], self.colors)) for row in decoded}
        self._settle(present, others, str(rows.split or "the dataset"))
        for row, values in present.items():
            check_values(np.unique(self._recode(values)), self.label_names, names[row])
        self._check_sizes(rows, masks, names)
        if not (self._is_black_and_white or self.reduce_labels or self.colors is not None):
            return rows
        encoded = [
            encode_mask(self._recode(read_mask(mask, name, self.colors)))
            for mask, name in zip(masks, names, strict=True)
        ]
        column = datasets.Dataset.from_dict(
            {"label": arrow_images(encoded=encoded)}, features=datasets.Features({"label": pixel_features()["label"]})
        )
        return datasets.concatenate_datasets([rows.select_columns(["image"]), column], axis=1, split=rows.split)

    def _recode(self, values: np.ndarray) -> np.ndarray:
        return recode(values, bool(self._is_black_and_white), self.reduce_labels)

    def _settle(self, present: dict[int, np.ndarray], others: Sequence[dict], split: str) -> None:
        """Set what the values mean, once.

        Raises:
            [`SiTError`]: If they mean something else here than in the splits before.
        """
        values = np.unique(np.concatenate(list(present.values())))
        if self._is_zero_and_one and is_black_and_white(values):
            raise SiTError(
                f"the masks of {split} have the values 0 and 255 only, and those of another split 0 and 1",
                argument="dataset",
                remedy="give the masks of all splits the same values",
            )
        if self._is_black_and_white is None:
            is_recoded = self.reduce_labels or self.colors is not None
            self._is_zero_and_one = not is_recoded and values.tolist() == [0, 1]
            self._is_black_and_white = is_black_and_white(values) and not self.reduce_labels
            if self._is_black_and_white:
                self.notes.append("the masks have the values 0 and 255 only: 255 is class 1, and no pixel is left out")
        if self.label_names is None:
            known = [np.unique(read_mask(mask, mask["path"] or "a mask", self.colors)) for mask in others]
            found = np.unique(self._recode(np.unique(np.concatenate([values, *known]))))
            largest = max((value for value in found.tolist() if value != IGNORED_PIXEL), default=0)
            self.label_names = [str(index) for index in range(largest + 1)]
            self.notes.append(
                f"no file names the classes (id2label.json or classes.txt): they are 0 to {largest}, the values in the masks"
            )

    def _check_sizes(self, rows: datasets.Dataset, masks: list[dict], names: list[str]) -> None:
        for row in some_rows(len(rows)):
            image, mask = upright_size(rows[row]["image"]), upright_size(masks[row])
            if image is not None and mask is not None and image != mask:
                remedy = "write the image as it was labeled, without EXIF" if is_turned(image, mask) else None
                raise SiTError(
                    f"{names[row]} is a mask of {mask[0]} x {mask[1]} pixels, and its image {image_name(rows, row)} of "
                    f"{image[0]} x {image[1]}",
                    argument="dataset",
                    remedy=remedy or "give each image a mask of its own size",
                )


def _mask_name(mask: dict | None, row: int, split: str) -> str:
    path = (mask or {}).get("path")
    if path and mask["bytes"] is None:
        return path
    return f"the mask in row {row} of {split}" + (f" ({path})" if path else "")
