"""Maps of features, and the figure that shows them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization import embeddings
from modeling_sit.visualization.embeddings import (
    FeatureMap,
    Panel,
    cluster_features,
    default_num_clusters,
    embedding_figure,
    map_embeddings,
    map_features,
    neighbour_agreement,
)
from modeling_sit.visualization.palette import style_groups


@pytest.fixture
def blobs() -> tuple[torch.Tensor, list[int]]:
    """Three groups of directions; lengths say nothing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    directions = 5 * torch.eye(3, 8)[labels] + 0.3 * torch.randn(30, 8, generator=generator)
    return directions * (1 + 10 * torch.rand(30, 1, generator=generator)), labels.tolist()


def far_and_near(points: np.ndarray, labels: list[int]) -> tuple[float, float]:
    """Smallest distance between the groups' centres, and the largest from a point to its own."""
    labels = np.array(labels)
    centres = np.stack([points[labels == label].mean(axis=0) for label in range(3)])
    near = np.linalg.norm(points - centres[labels], axis=1).max()
    return min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))), near


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_what_is_alike_lies_close(blobs, method):
    features, labels = blobs
    before = features.clone()
    points, axes = map_features(features, method, seed=0)
    far, near = far_and_near(points, labels)
    assert points.shape == (30, 2) and points.dtype == np.float64 and far > 2 * near
    assert len(axes) == 2 and axes[0] != axes[1]
    assert torch.equal(features, before)


def test_umap():
    pytest.importorskip("umap")
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    points, axes = map_features(features, "umap", seed=0)
    assert points.shape == (20, 2) and axes == ("UMAP 1", "UMAP 2")
    np.testing.assert_array_equal(points, map_features(features, "umap", seed=0)[0])


def test_umap_that_is_not_installed(blobs, monkeypatch):
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SiTError, match="pip install umap-learn"):
        map_features(blobs[0], "umap", seed=0)


def test_pca_against_the_eigenvectors_of_the_covariance(blobs):
    features, _ = blobs
    points, axes = map_features(features, "pca", seed=0)
    vectors = features.double() / features.double().norm(dim=1, keepdim=True)
    centred = vectors - vectors.mean(dim=0)
    values, directions = torch.linalg.eigh(centred.T @ centred)
    expected = (centred @ directions[:, [-1, -2]]).numpy()
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    assert axes[0] == f"component 1 ({float(values[-1] / values.sum()):.0%} of the variance)"


def test_tsne_is_a_function_of_the_seed(blobs):
    state = np.random.get_state()[1].copy()
    first, second = (map_features(blobs[0], "tsne", seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_four_images_are_enough_and_three_are_not(blobs, method):
    assert np.isfinite(map_features(blobs[0][:4], method, seed=0)[0]).all()
    with pytest.raises(SiTError, match="3 images are too few"):
        map_features(blobs[0][:3], method, seed=0)


def test_collapsed_model():
    with pytest.raises(SiTError, match="collapsed"):
        map_features(torch.ones(10, 4) * torch.arange(1, 11)[:, None], "tsne", seed=0)


def test_clusters_are_the_groups_largest_first(blobs):
    features, labels = blobs
    rows = [row for row, label in enumerate(labels) if label != 1 or row < 20]
    clusters = cluster_features(features[rows], 3, seed=0)
    assert adjusted_rand_score([labels[row] for row in rows], clusters) == 1
    assert (np.diff(np.bincount(clusters)) <= 0).all()
    with pytest.raises(SiTError, match="num_clusters: 31"):
        cluster_features(features, 31, seed=0)


@pytest.mark.parametrize("choices", [[("a",), ("b",), None], [("a", "b"), ("b", "c"), (), None, ("c",)]])
def test_neighbour_agreement_one_by_one(blobs, choices):
    features, _ = blobs
    labels = [choices[row * row % 7 % len(choices)] for row in range(30)]
    hits, pairs = [], []

    def shares(one, other):
        return bool(set(one) & set(other)) or one == other

    for row in range(30):
        others = [other for other in range(30) if other != row and labels[other] is not None]
        if labels[row] is not None:
            cosine = [float(torch.cosine_similarity(features[row], features[other], dim=0)) for other in others]
            hits.append(shares(labels[row], labels[others[int(np.argmax(cosine))]]))
            pairs += [shares(labels[row], labels[other]) for other in others]
    agreement = neighbour_agreement(features, labels)
    assert agreement.fraction == pytest.approx(np.mean(hits)) and agreement.chance == pytest.approx(np.mean(pairs))
    assert neighbour_agreement(features, [None] * 29 + [("a",)]) is None


def test_default_clusters_have_some_images_each():
    assert [default_num_clusters(*of) for of in ((1000, 3), (1000, None), (30, 12), (4, None))] == [3, 10, 6, 2]


class TestFigure:
    names = ("_hidden", "$5 or $6", "plain")

    @pytest.fixture
    def figure(self):
        generator = np.random.default_rng(0)
        self.maps = [
            FeatureMap(title, generator.normal(size=(12, 2)), ("across", "up"), "a note", result)
            for title, result in (("one $x$", None), ("two", "accuracy: 5%"))
        ]
        self.groups = style_groups([self.names[number % 3] for number in range(12)], self.names)
        return embedding_figure(self.maps, self.groups, "class")

    def test_all_points_are_there_in_their_colors(self, figure):
        assert len(figure.axes) == 2
        for axes, feature_map in zip(figure.axes, self.maps, strict=True):
            assert axes.get_xlabel() == "across" + (f"\n{feature_map.result}" if feature_map.result else "")
            assert axes.get_ylabel() == "up"
            assert axes.get_title() == f"{feature_map.title}\na note"
            drawn = np.concatenate([scatter.get_offsets() for scatter in axes.collections])
            expected = np.concatenate([feature_map.points[group.members] for group in self.groups])
            np.testing.assert_array_equal(drawn, expected)

    def test_legend_takes_names_as_they_are(self, figure, tmp_path):
        (legend,) = figure.legends
        assert tuple(text.get_text() for text in legend.get_texts()) == self.names
        figure.savefig(tmp_path / "figure.png", dpi=30)  # dollars would be mathematics

    def test_many_classes_with_long_names_stay_on_the_paper(self):
        names = [f"a class with a rather long name, number {number}" for number in range(100)]
        points = np.random.default_rng(0).normal(size=(100, 2))
        figure = embedding_figure([FeatureMap("map", points, ("x", "y"))], style_groups(names), "class")
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert len(legend.get_texts()) == 28
        assert box.x0 > figure.axes[0].get_window_extent().x1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y0 >= -1

    @pytest.mark.parametrize("num_maps", [1, 2, 4])
    def test_texts_stay_on_the_page(self, num_maps, assert_texts_stay_on_the_page, texts_on):
        names = ["an exceedingly long name of a class indeed", "W" * 40, "b"] * 4
        points = np.random.default_rng(0).normal(size=(12, 2))
        note = "nearest neighbor of the same class: 100% (by chance 100%)"
        result = "accuracy: kNN 100.0%, classifier 100.0%"
        maps = [FeatureMap("a rather long name of a model " * 3, points, ("across", "up"), note, result)] * num_maps
        figure = embedding_figure(maps, style_groups(names), "cluster (k-means) of the last map", "images " * 28)
        assert_texts_stay_on_the_page(figure)
        texts = texts_on(figure)
        assert any(note in text for text in texts) and any(result in text for text in texts)  # whole

    @pytest.mark.parametrize(
        ("num_maps", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (5, 2, 3), (9, 3, 3), (12, 3, 4)]
    )
    def test_maps_are_of_one_size_in_rows(self, num_maps, rows, columns):
        maps = [FeatureMap(str(number), np.eye(4, 2), ("x", "y")) for number in range(num_maps)]
        figure = embedding_figure(maps, style_groups(["a"] * 4), "class")
        figure.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in figure.axes[:num_maps]]
        assert len({round(box.y0) for box in boxes}) == rows and len({round(box.x0) for box in boxes}) == columns
        assert np.ptp([(box.width, box.height) for box in boxes]) < 2


class TestMapEmbeddings:
    @pytest.fixture
    def labels(self, blobs):
        return [(str(label),) for label in blobs[1]]

    def test_by_class_with_agreement(self, blobs, labels):
        features, _ = blobs
        embedded = map_embeddings([Panel("before", features.flip(0)), Panel("after", features)], labels, method="pca")
        assert [each.title for each in embedded.maps] == ["before", "after"] and embedded.legend_title == "class"
        np.testing.assert_array_equal(embedded.maps[1].points, map_features(features, "pca", 0)[0])
        assert embedded.maps[1].note.startswith("nearest neighbor of the same class: 100%")
        assert embedded.classes == [names[0] for names in labels]
        assert len(embedded.figure().axes) == 2

    def test_two_maps_of_one_title(self, blobs, labels):
        assert (
            len(map_embeddings([Panel("model", blobs[0]), Panel("model", blobs[0])], labels, method="pca").maps) == 2
        )

    def test_a_mistake_names_the_model(self, blobs, labels):
        panels = [Panel("fine", blobs[0]), Panel("collapsed one", torch.ones(len(labels), 4))]
        with pytest.raises(SiTError, match="collapsed one: the features"):
            map_embeddings(panels, labels, method="pca")

    def test_by_cluster_of_the_last_map(self, blobs, labels):
        features, truth = blobs
        for given, color_by in ((labels, "cluster"), ([None] * len(labels), None)):
            maps = [Panel("noise", torch.randn(features.shape)), Panel("model", features)]
            embedded = map_embeddings(maps, given, color_by=color_by, num_clusters=3, method="pca")
            assert adjusted_rand_score(truth, embedded.classes) == 1
            assert embedded.legend_title == "cluster (k-means) of the last map"

    def test_one_label_of_several(self, blobs):
        labels = [("a", "b"), ("b",), (), None] * 7 + [("a",)] * 2
        embedded = map_embeddings([Panel("model", blobs[0])], labels, ["a", "b"], color_label="a", method="pca")
        assert embedded.classes[:4] == ["a", "without a", "without a", None]
        assert "nearest neighbor shares a class" in embedded.maps[0].note
