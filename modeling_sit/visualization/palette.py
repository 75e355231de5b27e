"""Colors and shapes that tell classes apart, for color-blind readers too, and names cut to fit."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Okabe and Ito's palette (jfly.uni-koeln.de/color) without its yellow, which is hard to see on white paper.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
# Matplotlib's markers: after the last color, the colors start again with another shape.
MARKERS = ("o", "^", "s", "D")
MAX_GROUPS = len(COLORS) * len(MARKERS)
NEUTRAL_COLOR, NEUTRAL_MARKER, NO_LABEL_MARKER = "#BBBBBB", ".", "x"
AGREES, DIFFERS = COLORS[2], COLORS[5]

# Of areas, which need no paper around them: with the yellow, and with lighter and darker colors.
AREAS = (
    *(*COLORS, "#F0E442", "#7F4F00", "#8CD3BF", "#6B2C52", "#F2B48C", "#003D5C"),
    *("#E8C4DA", "#5C5C00", "#A8D5F2", "#00523C", "#F6D9A0", "#9C1C1C", "#C5E39C"),
)
# On images, which are dark or light: without black, the light colors first.
ON_IMAGES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2")

NO_LABEL = "no label"


@dataclass
class Group:
    """
    Points that share a color and a shape.

    Args:
        name (`str`): Of the class or cluster, in full.
        color (`str`): `#RRGGBB`.
        marker (`str`): One of matplotlib's.
        members (`numpy.ndarray` of shape `(num_members,)`): Indices of the points, int64, rising.
    """

    name: str
    color: str
    marker: str
    members: np.ndarray


def style_groups(names: Sequence[str | None], order: Sequence[str] | None = None) -> list[Group]:
    """Give every class its color and shape: seven colors of Okabe and Ito in four shapes.

    Args:
        names (sequence of `str` or `None`): The class of each point; `None` for none.
        order (sequence of `str`, *optional*):
            The order of the classes; the others follow, sorted. Default: sorted.

    Returns:
        `list[Group]`: The classes that have points. Of more than 28, the 27 largest have a style of their own; the
        others are one gray group. Points without a class are gray too. The gray groups come last.
    """
    counts = Counter(name for name in names if name is not None)
    classes = list(dict.fromkeys([*(order or ()), *sorted(counts)]))
    if len(classes) > MAX_GROUPS:
        classes = [name for name in classes if name in counts]
    shown = classes
    if len(classes) > MAX_GROUPS:
        largest = set(sorted(classes, key=lambda name: -counts[name])[: MAX_GROUPS - 1])
        shown = [name for name in classes if name in largest]

    members: dict[str, list[int]] = {name: [] for name in shown}
    others, unlabeled = [], []
    for index, name in enumerate(names):
        (unlabeled if name is None else members.get(name, others)).append(index)
    groups = [
        # By its place among all the classes, so that a figure of some of them gives it the same style.
        Group(name, COLORS[number % len(COLORS)], MARKERS[number // len(COLORS)], np.array(members[name]))
        for number, name in enumerate(shown)
        if members[name]
    ]
    if others:
        name = f"{len(classes) - len(shown)} others"
        groups.append(Group(name, NEUTRAL_COLOR, NEUTRAL_MARKER, np.array(others)))
    if unlabeled:
        groups.append(Group(NO_LABEL, NEUTRAL_COLOR, NO_LABEL_MARKER, np.array(unlabeled)))
    return groups


def shortened(text: str, length: int) -> str:
    """The text on one line, with its middle cut out if it is longer than `length` characters: names that start alike
    often differ at their ends. It is cut between words where that leaves the better part of them."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    short = f"{text[: length - 1 - tail].rstrip()}…{text[len(text) - tail :].lstrip()}"
    # Words with what parts them from the next: spaces, or what stands for them in the names of files.
    words = re.findall(r"[^ ]+ ?" if " " in text else r"[^_/-]+[_/-]*", text)
    candidates = []
    for num_last in range(1, len(words)):
        end = "".join(words[len(words) - num_last :])
        for num_first in range(1, len(words) - num_last):
            start = "".join(words[:num_first])
            whole_words = f"{start}… {end}" if start.endswith(" ") else f"{start}…{end}"
            if len(whole_words) <= length and len(end) <= length // 2:
                candidates.append(whole_words)
    whole_words = max(candidates, key=len, default="")
    return whole_words if len(whole_words) >= 0.6 * length else short


def shortened_apart(names: Sequence[str], length: int) -> list[str]:
    """Different names cut so that they stay different: those that would come out the same lose what they begin with
    alike, and are numbered where that does not help."""
    short = [shortened(name, length) for name in names]
    for same in [text for text, count in Counter(short).items() if count > 1]:
        alike = [number for number, text in enumerate(short) if text == same]
        first, last = (choose(names[number] for number in alike) for choose in (min, max))
        length_alike = next(
            (place for place, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), 0
        )
        start = 1 + max(first.rfind(mark, 0, length_alike) for mark in " _-/")  # whole words
        for number in alike:
            end = names[number][start:]
            short[number] = "…" + (end if len(end) < length else _cut_at_the_end(end, length - 1))
    for same in [text for text, count in Counter(short).items() if count > 1]:
        alike = [number for number, text in enumerate(short) if text == same]
        for place, number in enumerate(alike, 1):
            short[number] = f"{short[number][: length - len(str(place)) - 2]}… {place}"
    return short


def _cut_at_the_end(text: str, length: int) -> str:
    whole_words, space, _ = text[:length].rpartition(" ")
    return (whole_words if space and len(whole_words) >= 0.6 * length else text[: length - 1].rstrip()) + "…"
