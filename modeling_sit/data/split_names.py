"""Which split the name of a file or a folder tells: the Hub's rule
(https://huggingface.co/docs/hub/datasets-file-names-and-splits), and a few more words that are in use."""

import functools
import itertools
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import datasets

from modeling_sit.data.image_datasets import TEST_SPLITS, TRAIN_SPLITS, VALIDATION_SPLITS
from modeling_sit.data.label_encoding import natural_order
from modeling_sit.runtime.errors import SiTError

logger = logging.getLogger(__name__)

KINDS = {
    **dict.fromkeys(VALIDATION_SPLITS, "validation"),
    **dict.fromkeys(TEST_SPLITS, "test"),
    **dict.fromkeys(TRAIN_SPLITS, "train"),
}
# What lies beside images and is neither a split to train on nor a class.
BESIDE_IMAGES = {
    *("annotation", "annotations", "groundtruth", "gt", "label", "labels", "mask", "masks", "pred"),
    *("segmentation", "segmentations", "trimap", "trimaps", "unlabeled", "unlabelled", "unsupervised"),
}
# Words end at all that is not a letter, and where a capital letter begins one: `trainA`, `TrainingSet`.
CAPITAL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# What a split's folder may be called beside the split's word, also in one word with it: `trainset`, `test_images`.
CONTENTS = {
    *("data", "dataset", "files", "folder", "image", "images", "img", "imgs", "set", "sets", "split"),
}
IN_ONE_WORD = re.compile(
    rf"(?<![^\W\d_])({'|'.join(KINDS)})({'|'.join(sorted(CONTENTS, key=len, reverse=True))})(?![^\W\d_])",
    re.IGNORECASE,
)
WORD = re.compile(r"(?:hold|held)[\W_]out(?![^\W\d_])|[^\W\d_]+", re.IGNORECASE)
# Most names tell nothing, and of a large dataset there are many: these are fast to look for.
MAY_TELL_SPLIT = re.compile(rf"{'|'.join(KINDS)}|hold|held", re.IGNORECASE)
MAY_LIE_BESIDE = re.compile(rf"{'|'.join(BESIDE_IMAGES)}|truth", re.IGNORECASE)
END = "\0"  # of a word, within a name


@dataclass(frozen=True)
class SplitName:
    """
    A name that tells a split.

    Args:
        word (`str`): The word that tells it, as it is written, such as `Val`.
        kind (`str`): `"train"`, `"validation"` or `"test"`.
        scheme (`tuple[str, ...]`): The words of the name in lower case, with `*` in the place of that word. `train_0` and
            `val` are of one scheme, `seg_train` and `train_masks` of two others.
    """

    word: str
    kind: str
    scheme: tuple[str, ...]

    @property
    def name(self) -> str:
        """What to call the split: the word, without what divides it (`hold_out`)."""
        return re.sub(r"[\W_]", "", self.word)

    @property
    def is_bare(self) -> bool:
        """Whether the name has no other word."""
        return self.scheme == ("*",)

    @property
    def is_plain(self) -> bool:
        """Whether the name has no other word, or such as `images` and `set`."""
        return all(word == "*" or word in CONTENTS for word in self.scheme)


def split_of_name(name: str) -> SplitName | None:
    """The split that a name tells: one of the Hub's words anywhere in it, not as a part of another word.

    The words are `train`, `training`; `validation`, `validate`, `valid`, `val`, `dev`; `test`, `testing`, `eval`,
    `evaluation`, `holdout`, `hold_out`, `heldout`, `held_out`; each also as in `trainset`. Upper and lower case are alike. The last word counts: `test_tubes-train-0000` is of the training split. Two words of
    different splits side by side, such as `train_val`, tell none.

    Args:
        name (`str`): Name of a folder, or of a file without its ending.
    """
    if MAY_TELL_SPLIT.search(name) is None:
        return None
    words = words_of(name)
    kinds = [KINDS.get(re.sub(r"[\W_]", "", word).lower()) for word in words]
    places = [place for place, kind in enumerate(kinds) if kind is not None]
    if not places:
        return None
    place = places[-1]
    kind = kinds[place]
    if len(places) > 1 and places[-2] == place - 1 and kinds[place - 1] != kind:
        return None
    scheme = (*words[:place], "*", *words[place + 1 :])
    return SplitName(words[place], kind, tuple(word.lower() for word in scheme))


def words_of(name: str) -> list[str]:
    """The words of a name, as they are written."""
    marked = IN_ONE_WORD.sub(rf"\1{END}\2", CAPITAL.sub(END, name))
    return [word.replace(END, "") for word in WORD.findall(marked)]


def lies_beside_images(name: str) -> bool:
    """Whether a name tells what images come with, such as masks, or images that are set apart, such as `unlabelled`."""
    if MAY_LIE_BESIDE.search(name) is None:
        return False
    words = [word.lower() for word in words_of(name)]
    return not BESIDE_IMAGES.isdisjoint([*words, *map("".join, itertools.pairwise(words))])


def tells_only_what_is_beside(name: str) -> bool:
    """Whether a name tells nothing else: `masks` and `ground_truth_2`, not `with_mask`."""
    if not lies_beside_images(name):
        return False
    words = [word.lower() for word in words_of(name)]
    return set(words) <= BESIDE_IMAGES or "".join(words) in BESIDE_IMAGES


def known_splits(names: Iterable[str]) -> dict[str, SplitName]:
    """The names that tell a split. `train_masks` does not where others do, such as `train` or `train_images`."""
    known = {name: split for name in names if (split := split_of_name(name)) is not None}
    plain = {name: split for name, split in known.items() if not lies_beside_images(name)}
    return plain or known


def join_paths(paths: Iterable[str]) -> str:
    """At most ten paths in a list, for a message, in natural order, and how many more there are."""
    paths = natural_order(paths)
    return ", ".join(paths[:10]) + (f" and {len(paths) - 10:,} more" if len(paths) > 10 else "")


def split_named(name: str) -> datasets.NamedSplit:
    """The name of a split as `datasets` takes it, such as `cells_train` for `cells-train`."""
    return datasets.NamedSplit(re.sub(r"\W+", "_", name))


def tell_left_out(dataset: str, splits: Collection[str], left_out: Mapping[str, int], unit: str) -> None:
    """Say in one line, once, what is beside the splits and therefore not read.

    Args:
        dataset (`str`): The dataset's folder.
        splits (collection of `str`): Names of the splits; none, if the dataset is not divided.
        left_out (mapping from `str` to `int`): How many of a unit each part has. "" stands for the folder itself.
        unit (`str`): Such as `"image"`.
    """
    parts = [
        f"{name or 'the folder itself'} ({count:,} {unit}{'s' if count != 1 else ''})"
        for name, count in left_out.items()
    ]
    if parts:
        can_name = any(name and os.sep not in name for name in left_out)
        remedy = "; `train_split` or `validation_split` can name one that is meant" if can_name else ""
        which = f"splits ({', '.join(splits)})" if splits else "images"
        tell_once(f"{dataset}: not read, because it lies beside the {which}: {join_paths(parts)}{remedy}")


@functools.cache  # programs that read a dataset several times say it once
def tell_once(message: str) -> None:
    logger.warning("%s", message)


def check_training_split(splits: Iterable[str], left_out: Iterable[str], are_files: bool = False) -> None:
    """Raise a [`SiTError`] if no split is to train on, and what is beside the splits may be."""
    known = [split_of_name(name) for name in splits]
    is_clear = any(split is None or split.kind == "train" for split in known)
    others = [name for name in left_out if name]
    rename = "rename the files to train on, such as train-0000" if are_files else "rename what is a class"
    if not is_clear and (others or "" in left_out):
        raise SiTError(
            f"no name tells what to train on: there is {', '.join(splits)}, and beside it "
            f"{', '.join(others[:5]) or 'the rest of the folder'}",
            argument="train_split",
            remedy=f"name it, such as {others[0]}; or {rename}" if others else "move it into a sub-folder train",
        )
