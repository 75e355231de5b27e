"""Draws from labeled images: a fraction of the labels, images of each class, and a validation split."""

import numpy as np
import pytest
from labeled_rows import labeled, multi_labeled, rows_of

from modeling_sit.data.splits import (
    NothingToHoldOut,
    hold_out_labeled,
    select_label_fraction,
    select_per_class,
    train_validation_split,
)
from modeling_sit.runtime.errors import SiTError


def random_multi_labels(num_images: int, chances: list[float], seed: int = 0) -> list[list[int]]:
    draws = np.random.default_rng(seed).random((num_images, len(chances)))
    return [[label for label, chance in enumerate(chances) if draw[label] < chance] for draw in draws]


def counts_of(labels: list[list[int]], num_labels: int) -> list[int]:
    return [sum(label in row for row in labels) for label in range(num_labels)]


class TestTrainValidationSplit:
    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
    def test_fraction_of_every_class(self, fraction):
        counts = [40, 21, 2, 3]
        given = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], counts))
        rest, held_back = train_validation_split(labeled(given.tolist()), fraction, seed=0)
        for label, count in enumerate(counts[:3]):
            expected = min(max(1, round(fraction * count)), count - 1)
            assert held_back["label"][:].count(label) == expected and rest["label"][:].count(label) == count - expected
        assert -1 not in held_back["label"] and -1 not in rest["label"]

    @pytest.mark.parametrize("kind", ["single", "multi"])
    def test_every_image_is_in_one_part_in_its_order(self, kind):
        if kind == "single":
            split = labeled([0, 1, 2] * 9, images=[f"row {row}".encode() for row in range(27)])
            known = list(range(27))
        else:
            given = [*random_multi_labels(30, [0.5, 0.4, 0.6]), None, [], None]
            split, known = multi_labeled(given), [*range(30), 31]
        parts = train_validation_split(split, 0.3, seed=1)
        rows = [rows_of(part) for part in parts]
        assert rows[0] == sorted(rows[0]) and rows[1] == sorted(rows[1])
        assert sorted(rows[0] + rows[1]) == known
        for part, numbers in zip(parts, rows, strict=True):
            assert part["label"][:] == [split["label"][number] for number in numbers]
        assert [rows_of(part) for part in train_validation_split(split, 0.3, seed=1)] == rows
        assert [rows_of(part) for part in train_validation_split(split, 0.3, seed=2)] != rows

    @pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
    @pytest.mark.parametrize("seed", range(5))
    def test_multi_label_fractions(self, fraction, seed):
        """Near to each class's fraction where a random choice, of rare classes above all, is not."""
        chances = [0.5, 0.3, 0.2, 0.1, 0.04]
        given = random_multi_labels(400, chances, seed)
        rest, held_back = train_validation_split(multi_labeled(given, names="abcde"), fraction, seed)
        total = counts_of(given, 5)
        for label, count in enumerate(counts_of(held_back["label"][:], 5)):
            assert abs(count - fraction * total[label]) <= 1.5
        assert min(counts_of(rest["label"][:], 5)) >= 1 and min(counts_of(held_back["label"][:], 5)) >= 1
        assert abs(len(held_back) - fraction * 400) <= 1
        # Both parts get images of no class.
        assert any(not labels for labels in held_back["label"]) and any(not labels for labels in rest["label"])

    @pytest.mark.parametrize("fraction", [0.1, 0.5])
    def test_multi_label_fractions_where_all_classes_are_common(self, fraction):
        """As in tiled images: what is chosen for one class must not spoil the fractions of the others."""
        tiles = np.random.default_rng(0).integers(0, 12, (300, 4))
        given = [sorted(set(row)) for row in tiles.tolist()]
        _, held_back = train_validation_split(multi_labeled(given, names="abcdefghijkl"), fraction, seed=0)
        for count, total in zip(counts_of(held_back["label"][:], 12), counts_of(given, 12), strict=True):
            assert abs(count - fraction * total) <= 1.5
        assert abs(len(held_back) - fraction * 300) <= 2

    @pytest.mark.parametrize("seed", range(20))
    def test_every_class_is_left_an_image(self, seed):
        """Also where classes come together so that they cannot all be in both parts."""
        given = [[0, 1], [0, 2], [1, 2]]
        rest, held_back = train_validation_split(multi_labeled(given), 0.5, seed)
        assert min(counts_of(rest["label"][:], 3)) >= 1 and len(held_back) <= 1

    def test_a_class_with_one_image(self):
        for split in (labeled([0, 0, 1, 2, 2]), multi_labeled([[0, 1], [0, 2], [2], []])):
            with pytest.raises(SiTError, match=r"split train: only one image of b, .*`validation_split`"):
                train_validation_split(split, 0.2, seed=0)

    @pytest.mark.parametrize("fraction", [0, 1, -0.1])
    def test_fractions_out_of_range(self, fraction):
        with pytest.raises(ValueError, match="fraction"):
            train_validation_split(labeled([0, 0]), fraction, seed=0)


class TestHoldOutLabeled:
    @pytest.mark.parametrize("seed", range(3))
    def test_is_the_usual_draw_where_each_class_has_two_images(self, seed):
        split = multi_labeled(random_multi_labels(40, [0.5, 0.4, 0.6]))
        drawn, expected = (each(split, 0.3, seed) for each in (hold_out_labeled, train_validation_split))
        assert [rows_of(part) for part in drawn] == [rows_of(part) for part in expected]

    def test_the_only_image_of_a_class_is_left(self):
        rest, held_out = hold_out_labeled(labeled([0, 1, 0, 2, 0, 2]), 0.3, seed=0)
        assert 1 in rest["label"] and sorted(held_out["label"]) == [0, 2]

    @pytest.mark.parametrize(
        "split",
        [
            labeled([0, 1, 2]),
            labeled([0, 1, -1, -1]),
            multi_labeled([[0], [1], [2], [], [], [], None]),
            multi_labeled([[0, 1], [1, 2], [2]]),  # the second one's only other image is the first one, which stays
        ],
    )
    def test_nothing_to_hold_out(self, split):
        with pytest.raises(NothingToHoldOut):
            hold_out_labeled(split, 0.2, seed=0)


class TestPerClass:
    def test_as_many_of_every_class(self):
        split = labeled(np.random.default_rng(0).permutation([0] * 9 + [1] * 5 + [-1] * 4).tolist())
        for count in (1, 3, 5):
            assert np.bincount(select_per_class(split, count, seed=0)["label"][:]).tolist() == [count, count]

    def test_multi_label(self):
        given = random_multi_labels(60, [0.6, 0.3, 0.15])
        split = multi_labeled([*given, None])
        for seed in range(5):
            chosen = select_per_class(split, 4, seed)
            rows = rows_of(chosen)
            assert rows == sorted(set(rows)) and chosen["label"][:] == [given[row] for row in rows]
            assert min(counts_of(chosen["label"][:], 3)) >= 4 and len(rows) <= 3 * 4

    def test_images_that_were_chosen_for_a_rarer_class_count(self):
        """Four images have all three classes: nothing more is needed."""
        split = multi_labeled([[0, 1, 2]] * 4 + [[0, 1]] * 5 + [[0]] * 9)
        assert rows_of(select_per_class(split, 4, seed=0)) == [0, 1, 2, 3]

    def test_is_a_function_of_the_seed(self):
        split = multi_labeled(random_multi_labels(60, [0.6, 0.3, 0.15]))
        rows = [rows_of(select_per_class(split, 3, seed)) for seed in (0, 0, 1)]
        assert rows[0] == rows[1] != rows[2]

    def test_too_few_images(self):
        for split in (labeled([0, 0, 0, 2, 2, -1]), multi_labeled([[0], [0, 2], [0], [2], None])):
            with pytest.raises(SiTError, match=r"split train: fewer than 3 images of c; .* at most 2"):
                select_per_class(split, 3, seed=0)
            assert len(select_per_class(split, 2, seed=0)) <= 4  # of class b there is no image


class TestLabelFraction:
    labels = [0] * 20 + [1] * 10 + [2] * 3
    split = labeled(list(np.random.default_rng(0).permutation(labels)))

    @pytest.mark.parametrize(
        ("fraction", "counts"), [(0.1, [2, 1, 1]), (0.5, [10, 5, 2]), (0.52, [10, 5, 2]), (1.0, [20, 10, 3])]
    )
    def test_fraction_of_every_class(self, fraction, counts):
        chosen = select_label_fraction(self.split, fraction, seed=0)
        assert np.bincount(chosen["label"][:]).tolist() == counts

    def test_images_keep_their_labels_and_order(self):
        chosen = select_label_fraction(self.split, 0.5, seed=0)
        place = {image["bytes"]: number for number, image in enumerate(self.split["image"])}
        places = [place[image["bytes"]] for image in chosen["image"]]
        assert places == sorted(set(places))
        assert chosen["label"][:] == [self.split["label"][place] for place in places]

    def test_is_a_function_of_the_seed(self):
        chosen = [[p["bytes"] for p in select_label_fraction(self.split, 0.5, seed)["image"]] for seed in (0, 0, 1)]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_a_class_without_images_is_no_trouble(self):
        assert select_label_fraction(labeled([0, 2, 2]), 0.5, 0)["label"][:] == [0, 2]

    @pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
    def test_multi_label(self, fraction):
        chances = [0.5, 0.2, 0.03]
        given = random_multi_labels(300, chances)
        chosen = select_label_fraction(multi_labeled([*given, None, None]), fraction, seed=0)
        assert chosen["label"][:] == [given[row] for row in rows_of(chosen)]
        for count, total in zip(counts_of(chosen["label"][:], 3), counts_of(given, 3), strict=True):
            assert count >= 1 and abs(count - fraction * total) <= 2
        assert abs(len(chosen) - fraction * 300) <= 4

    def test_all_of_a_multi_label_set(self):
        given = [[0], [], None, [1, 2], [2], [0, 1]]
        assert rows_of(select_label_fraction(multi_labeled(given), 1.0, seed=0)) == [0, 1, 3, 4, 5]
