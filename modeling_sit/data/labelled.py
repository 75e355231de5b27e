"""Labelled pictures, for fine-tuning and for measuring features."""

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from modeling_sit.cli.errors import UserError
from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.sources import Pictures, read_row
from modeling_sit.picture_modes import MODES

# What cross-entropy leaves out, and what a picture that cannot be read therefore gets for a label.
IGNORED_LABEL = -100


def labelled_splits(pictures: Pictures) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The training and the validation split, each without the pictures that have no label.

    Raises:
        [`UserError`]: If there is no such split, they are one and the same, or there are no labels.
    """
    splits = {"--train_split": pictures.train, "--validation_split": pictures.validation}
    for flag, split in splits.items():
        if split is None:
            raise UserError(
                f"{flag}: name one of the splits of {pictures.name}, which are {', '.join(pictures.splits)}"
            )
    if pictures.label_names is None:
        raise UserError(f"--label_column: {pictures.name} has no labels; name their column")
    if pictures.train.split == pictures.validation.split:
        raise UserError(f"--validation_split {pictures.validation.split}: this is the training split; name another")
    return tuple(_with_labels(split, flag) for flag, split in splits.items())


def _with_labels(split: datasets.Dataset, flag: str) -> datasets.Dataset:
    labels = split.with_format("numpy")["label"][:]
    if (labels < 0).all():
        raise UserError(f"{flag} {split.split}: none of its pictures has a label")
    return split if (labels >= 0).all() else split.select((labels >= 0).nonzero()[0])


def select_label_fraction(split: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """A random share of the pictures of every class, at least one of each, in their old order.

    Args:
        split (`datasets.Dataset`): Column `label`.
        fraction (`float` in (0, 1]): Share of each class's pictures, rounded.
        seed (`int`): Seed of the choice.
    """
    labels = split.with_format("numpy")["label"][:]
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen.append(generator.permutation(members)[: max(1, round(fraction * len(members)))])
    return split.select(np.sort(np.concatenate(chosen)))


class LabelledPictures(torch.utils.data.Dataset):
    """
    Pictures with labels, as a classifier reads them.

    Args:
        split (`datasets.Dataset`): Columns `image` (encoded) and `label`.
        num_channels (`int`): 1 (grey), 3 (RGB) or 4 (RGBA).
        transform (callable, *optional*): From picture to picture; random in training.

    An item is a dict of `image` (`PIL.Image.Image`), `label` (`int`) and `unreadable` (`str` or `None`): a picture that
    cannot be read is grey, and its label one that losses and metrics leave out.
    """

    def __init__(self, split: datasets.Dataset, num_channels: int, transform=None):
        self.split = split
        self.num_channels = num_channels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict:
        try:
            picture, row = read_row(self.split, index, self.num_channels)
            label, unreadable = row["label"], None
        except UnreadablePicture as problem:
            picture = Image.new(MODES[self.num_channels], (32, 32), "grey")
            label, unreadable = IGNORED_LABEL, str(problem)
        if self.transform is not None:
            picture = self.transform(picture)
        return {"image": picture, "label": label, "unreadable": unreadable}


def random_crop_and_flip(image_shape: tuple[int, int], crop_scale: tuple[float, float], flip: float) -> v2.Compose:
    """The plain augmentation of a classifier's training pictures: random resized crop, bicubic, and mirroring.

    Args:
        image_shape (pair of `int`): Height and width of the crop in pixels.
        crop_scale (pair of `float` in (0, 1]): Range of the crop's area, as share of the picture's.
        flip (`float` in [0, 1]): Chance of mirroring.
    """
    crop = v2.RandomResizedCrop(image_shape, scale=crop_scale, interpolation=InterpolationMode.BICUBIC)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip)])
