"""Maps of the features: thousands of dimensions brought down to two, colored by class or by cluster."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.page import fitted, text_width, wrapped
from modeling_sit.visualization.palette import Group, shortened_apart, style_groups
from modeling_sit.visualization.selection import label_text

METHODS = ("tsne", "umap", "pca")
# Number of principal components for t-SNE, as its authors advise: the others are mostly noise.
TSNE_COMPONENTS = 50
PERPLEXITY = 30
MIN_IMAGES = 4
LEGEND_ROWS = 16
PANEL_INCHES, MAX_PANELS_IN_A_ROW = 3.9, 3
TITLE_SIZE, LEGEND_SIZE = 8, 8


class Panel(NamedTuple):
    """
    What a map is made of.

    Args:
        title (`str`): Which model's features these are.
        features (`torch.Tensor` of shape `(num_images, width)`): Of all images.
        result (`str`, *optional*): A line below the map, such as the accuracies of the model.
    """

    title: str
    features: torch.Tensor
    result: str | None = None


@dataclass
class FeatureMap:
    """
    One panel of the figure.

    Args:
        title (`str`): Which model's features these are.
        points (`numpy.ndarray` of shape `(num_images, 2)`): Float64.
        axes (pair of `str`): What the two axes are.
        note (`str`, *optional*): A second line below the title.
        result (`str`, *optional*): A line below the map.
    """

    title: str
    points: np.ndarray
    axes: tuple[str, str]
    note: str | None = None
    result: str | None = None


@dataclass
class EmbeddingMaps:
    """
    Maps of the same images by one or several models.

    Args:
        maps (list of [`FeatureMap`]): One a model.
        groups (list of [`Group`]): Which points have which color and shape.
        legend_title (`str`): What the colors mean.
        classes (list of `str` or `None`): The group of each image.
    """

    maps: list[FeatureMap]
    groups: list[Group]
    legend_title: str
    classes: list[str | None]

    def figure(self, caption: str | None = None) -> Figure:
        """The [`embedding_figure`], with a line below all maps."""
        return embedding_figure(self.maps, self.groups, self.legend_title, caption)


def map_embeddings(
    panels: Sequence[Panel],
    labels: Sequence[tuple[str, ...] | None],
    label_names: Sequence[str] | None = None,
    *,
    color_by: Literal["label", "cluster"] | None = None,
    color_label: str | None = None,
    num_clusters: int | None = None,
    method: str = "tsne",
    seed: int = 0,
) -> EmbeddingMaps:
    """
    Map the features of some images by one or several models, colored by class or by cluster.

    Args:
        panels (sequence of [`Panel`]): For each map its title and the features, all of the same images. Clusters are those
            of the last.
        labels (sequence): For each image a `tuple` of the names of its classes, or `None` if it has no label.
        label_names (sequence of `str`, *optional*): All classes, in the order of the legend.
        color_by (`str`, *optional*): `"label"` or `"cluster"`. Default: the label, if there are any.
        color_label (`str`, *optional*): One class: colors say which images have it.
        num_clusters (`int`, *optional*): Default: [`default_num_clusters`].
        method (`str`, *optional*, defaults to `"tsne"`): As for [`map_features`].
        seed (`int`, *optional*, defaults to 0): Of all that is random.

    Returns:
        [`EmbeddingMaps`]: Each map has a note with its [`NeighbourAgreement`], where there are labels.

    Raises:
        [`SiTError`]: As [`map_features`] and [`cluster_features`]; of several panels with its title.
    """
    is_single = all(names is None or len(names) == 1 for names in labels)
    kind = "of the same class" if is_single else "shares a class"
    maps = []
    for title, features, result in panels:
        with errors_of(title if len(panels) > 1 else None):
            points, axes = map_features(features, method, seed)
        agreement, note = neighbour_agreement(features, labels), None
        if agreement is not None:
            note = f"nearest neighbor {kind}: {agreement.fraction:.0%} (by chance {agreement.chance:.0%})"
        maps.append(FeatureMap(title, points, axes, note, result))

    if color_by == "cluster" or all(names is None for names in labels):
        num_clusters = num_clusters or default_num_clusters(len(labels), len(label_names or ()))
        order = [str(number + 1) for number in range(num_clusters)]
        classes = [order[number] for number in cluster_features(features, num_clusters, seed)]
        legend_title = "cluster (k-means)" if len(maps) == 1 else "cluster (k-means) of the last map"
    elif color_label is not None:
        order, legend_title = [color_label, f"without {color_label}"], "label"
        classes = [None if names is None else order[color_label not in names] for names in labels]
    else:
        order, legend_title = label_names, "class"
        classes = [label_text(names) for names in labels]
    return EmbeddingMaps(maps, style_groups(classes, order), legend_title, classes)


@contextmanager
def errors_of(title: str | None) -> Iterator[None]:
    """Begin every [`SiTError`] that the block raises with the title of the model that it is about, if there is one."""
    try:
        yield
    except SiTError as error:
        if title is None:
            raise
        raise SiTError(f"{title}: {error.problem}", argument=error.argument, remedy=error.remedy) from error


def map_features(features: torch.Tensor, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """Reduce features to two dimensions, in which images of similar features (cosine) lie close to each other.

    Args:
        features (`torch.Tensor` of shape `(num_images, width)`): Of at least 4 images.
        method (`str`):
            `"tsne"` (van der Maaten and Hinton 2008; perplexity 30, or a third of the images), `"umap"` (McInnes et
            al. 2018; needs umap-learn) or `"pca"`. Only PCA's distances mean the same everywhere on the map.
        seed (`int`): Of t-SNE's and UMAP's randomness.

    Returns:
        `tuple[numpy.ndarray, tuple[str, str]]`: Points `(num_images, 2)`, float64, and the names of the axes.

    Raises:
        [`SiTError`]: If there is no such method, there are too few images, all features are the same, or umap-learn is
            missing.
    """
    if method not in METHODS:
        raise SiTError(f"no method {method!r}, only {', '.join(METHODS)}", argument="method")
    if len(features) < MIN_IMAGES:
        raise SiTError(f"{len(features)} images are too few for a map", remedy=f"give at least {MIN_IMAGES}")
    vectors = unit_vectors(features)
    if np.ptp(vectors, axis=0).max() < 1e-6:
        raise SiTError("the features of all images are the same: the model has collapsed")
    if method == "pca":
        pca = PCA(n_components=2, svd_solver="full")
        points = pca.fit_transform(vectors)
        fractions = pca.explained_variance_ratio_
        return points, tuple(
            f"component {number + 1} ({fraction:.0%} of the variance)" for number, fraction in enumerate(fractions)
        )
    if method == "umap":
        if importlib.util.find_spec("umap") is None:
            raise SiTError(
                "umap-learn is not installed",
                argument="method",
                remedy='pip install umap-learn, or give `method="tsne"`',
            )
        from umap import UMAP

        # One thread: with several, UMAP's seed does not decide the result.
        umap = UMAP(n_neighbors=min(15, len(vectors) - 1), metric="cosine", random_state=seed, n_jobs=1)
        return umap.fit_transform(vectors).astype(np.float64), ("UMAP 1", "UMAP 2")
    components = min(TSNE_COMPONENTS, *vectors.shape)
    reduced = PCA(n_components=components, svd_solver="full").fit_transform(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    return points.astype(np.float64), ("t-SNE 1", "t-SNE 2")


def unit_vectors(features: torch.Tensor) -> np.ndarray:
    """Features `(num_images, width)` of length 1, float64: their Euclidean distances are a function of the cosine."""
    return torch.nn.functional.normalize(features.double(), dim=1).numpy()


def cluster_features(features: torch.Tensor, num_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each image `(num_images,)`, int64, by k-means on unit vectors, the largest cluster first.

    Raises:
        [`SiTError`]: If there are fewer images than clusters.
    """
    if len(features) < num_clusters:
        raise SiTError(
            f"{num_clusters} is more than the {len(features)} images", argument="num_clusters", remedy="lower it"
        )
    found = KMeans(num_clusters, n_init=10, random_state=seed).fit_predict(unit_vectors(features))
    by_size = np.argsort(-np.bincount(found, minlength=num_clusters), kind="stable")
    return np.argsort(by_size)[found].astype(np.int64)


@dataclass
class NeighbourAgreement:
    """
    How often the nearest image is of the same class, measured on the features themselves, because a map distorts.

    Args:
        fraction (`float` in [0, 1]):
            The images with a label whose nearest other image (cosine) shares a class with them, or has none either.
        chance (`float` in [0, 1]): The same for a random other image.
    """

    fraction: float
    chance: float


def neighbour_agreement(features: torch.Tensor, labels: Sequence[tuple[str, ...] | None]) -> NeighbourAgreement | None:
    """How often images whose features are nearest share a class.

    Args:
        features (`torch.Tensor` of shape `(num_images, width)`): Of all images.
        labels (sequence of tuples of `str`, or `None`): The classes of each image; `None` where no label is known.

    Returns:
        [`NeighbourAgreement`], or `None` if fewer than two images have a label.
    """
    labeled = [row for row, names in enumerate(labels) if names is not None]
    if len(labeled) < 2:
        return None
    vectors = unit_vectors(features[labeled])
    # Without a query, an image is not its own neighbor.
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(vectors).kneighbors(return_distance=False)[:, 0]
    classes = [labels[row] or (None,) for row in labeled]  # to have none of the classes is one more class
    column = {name: number for number, name in enumerate(dict.fromkeys(name for names in classes for name in names))}
    has_class = np.zeros((len(classes), len(column)), dtype=np.float32)
    for row, names in enumerate(classes):
        has_class[row, [column[name] for name in names]] = 1
    agrees = (has_class * has_class[nearest]).any(axis=1)
    # An image at a time, because all pairs together may not fit into memory.
    others = [int(np.count_nonzero(has_class @ mine)) - 1 for mine in has_class]
    return NeighbourAgreement(float(agrees.mean()), float(np.mean(others) / (len(classes) - 1)))


def default_num_clusters(num_images: int, num_classes: int | None) -> int:
    """As many clusters as classes, or else 10, but at least five images a cluster on average, and at least 2
    clusters."""
    return max(2, min(num_classes or 10, num_images // 5))


def embedding_figure(
    maps: Sequence[FeatureMap], groups: Sequence[Group], legend_title: str, caption: str | None = None
) -> Figure:
    """The maps in rows of up to three, or about as many rows as columns, with one legend.

    Args:
        maps (sequence of [`FeatureMap`]): Of the same images.
        groups (sequence of [`Group`]): Which points have which color and shape.
        legend_title (`str`): What the colors mean.
        caption (`str`, *optional*): At most two lines below all maps.
    """
    columns = -(-len(groups) // LEGEND_ROWS)
    names = shortened_apart([group.name for group in groups], 28 if columns == 1 else 18)
    legend_width = columns * (0.45 + max(text_width(name, LEGEND_SIZE) for name in names))
    legend_width = max(legend_width, 0.3 + text_width(legend_title, LEGEND_SIZE))
    num_columns = len(maps) if len(maps) <= MAX_PANELS_IN_A_ROW else math.ceil(math.sqrt(len(maps)))
    num_rows = -(-len(maps) // num_columns)
    size = (PANEL_INCHES * num_columns + legend_width, PANEL_INCHES * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    size = float(np.clip(8000 / len(maps[0].points), 5, 28))
    handles = []
    for axes, feature_map in zip(panels, maps, strict=False):
        handles = [
            axes.scatter(
                *feature_map.points[group.members].T,
                s=size,
                c=group.color,
                marker=group.marker,
                alpha=0.8,
                linewidths=0.8 if group.marker == "x" else 0.2,
                **({} if group.marker == "x" else {"edgecolors": "white"}),
            )
            for group in groups
        ]
        lines = [line for line in (feature_map.title, feature_map.note) if line]
        title = "\n".join(fitted(line, TITLE_SIZE, PANEL_INCHES - 0.4) for line in lines)
        axes.set_title(title, fontsize=TITLE_SIZE, parse_math=False)
        lines = [line for line in (feature_map.axes[0], feature_map.result) if line]
        label = "\n".join(fitted(line, TITLE_SIZE, PANEL_INCHES - 0.4) for line in lines)
        axes.set_xlabel(label, fontsize=8, parse_math=False)
        axes.set_ylabel(feature_map.axes[1], fontsize=8)
        # The numbers of such a map have no meaning; PCA's have no unit.
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.margins(0.04)
        axes.spines[["top", "right"]].set_visible(False)
    if caption:
        width = figure.get_size_inches()[0] - 0.4
        figure.supxlabel(wrapped(caption, TITLE_SIZE, width, 2), fontsize=TITLE_SIZE, parse_math=False)
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(groups))],
        title=legend_title,
        loc="outside right upper",
        ncols=columns,
        frameon=False,
        fontsize=LEGEND_SIZE,
        title_fontsize=LEGEND_SIZE,
        alignment="left",
        handletextpad=0.3,
    )
    for handle in legend.legend_handles:
        handle.set_sizes([28])
        handle.set_alpha(1)
    # Set here, where an underscore at the start of a name, or dollars in it, have no special meaning.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure
