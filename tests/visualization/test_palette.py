"""Classes keep apart in color and shape, and names fit."""

import re

import numpy as np
import pytest

from modeling_sit.visualization.palette import (
    COLORS,
    MARKERS,
    MAX_GROUPS,
    NO_LABEL,
    shortened,
    shortened_apart,
    style_groups,
)


def deuteranope(color: str) -> np.ndarray:
    """What is left of a color without green cones (Viénot, Brettel and Mollon 1999)."""
    srgb = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]) @ linear
    return seen.clip(0, 1) ** (1 / 2.4)


def test_colors_differ_without_green_cones():
    seen = [deuteranope(color) for color in COLORS]
    distances = [np.linalg.norm(a - b) for number, a in enumerate(seen) for b in seen[:number]]
    assert min(distances) > 0.12
    # Red and green of the traffic lights are the same to such a reader.
    assert np.linalg.norm(deuteranope("#C05000") - deuteranope("#788000")) < 0.12


def test_every_class_has_a_style_of_its_own():
    names = [f"class {number:02}" for number in range(MAX_GROUPS)] * 2
    groups = style_groups(names)
    assert [group.name for group in groups] == sorted(set(names))
    assert len({(group.color, group.marker) for group in groups}) == MAX_GROUPS == len(COLORS) * len(MARKERS)
    for group in groups:
        assert [names[index] for index in group.members] == [group.name] * 2


def test_of_many_classes_the_largest_are_shown_and_no_point_is_lost():
    names = [f"{number}" for number in range(100) for _ in range(1 + (number >= 60))] + [None]
    groups = style_groups(names)
    *shown, others, unlabeled = groups
    assert len(shown) == MAX_GROUPS - 1 and all(int(group.name) >= 60 for group in shown)
    assert others.name == "73 others" and unlabeled.name == NO_LABEL and unlabeled.members.tolist() == [140]
    assert sorted(index for group in groups for index in group.members) == list(range(len(names)))


def test_a_class_keeps_its_style_where_others_are_missing():
    order = ["c", "a", "b"]
    whole = {group.name: (group.color, group.marker) for group in style_groups(["a", "b", "c"], order)}
    assert list(whole) == order
    (part,) = style_groups(["b", "b"], order)
    assert (part.color, part.marker) == whole["b"]
    assert [group.name for group in style_groups(["z", "a"], order)] == ["a", "z"]


@pytest.mark.parametrize("length", [8, 15, 24])
def test_names_are_cut_in_the_middle(length):
    male, female = (f"Northern hawk-owl of the forest, {sex}" for sex in ("adult male", "juvenile"))
    cut = shortened(male, length)
    assert len(cut) <= length and cut.startswith("North"[: length // 2]) and cut.endswith("le")
    assert cut != shortened(female, length) or length == 8
    assert shortened("short", length) == "short"
    assert shortened("two\n lines", 24) == "two lines"


def test_colors_are_hexadecimal():
    assert all(re.fullmatch("#[0-9A-F]{6}", color) for color in COLORS)


@pytest.mark.parametrize(
    "names",
    [
        [f"species number {number} of a long name" for number in range(120)],
        ["x" * 40 + str(number) + "y" * 40 for number in range(12)],
        ["plain", "a name that is so long that it has to be cut", "another"],
    ],
)
def test_different_names_stay_different(names):
    for length in (18, 28):
        short = shortened_apart(names, length)
        assert len(set(short)) == len(names) and max(map(len, short)) <= length
    if "plain" in names:
        assert short[0] == "plain" and short[1] == shortened(names[1], 28)
    if "species number 7 of a long name" in names:
        assert shortened_apart(names, 18)[7] == "…7 of a long name"


@pytest.mark.parametrize(
    ("name", "length", "short"),
    [
        ("Northern hawk-owl of the forest, adult male", 24, "Northern hawk-owl … male"),
        ("a class whose name is far too long", 18, "a class … too long"),
        ("IMG_20200312_173355_edited_crop.png", 24, "IMG_20200312_…crop.png"),
    ],
)
def test_names_are_cut_between_words(name, length, short):
    assert shortened(name, length) == short
