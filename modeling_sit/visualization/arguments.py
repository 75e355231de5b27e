"""The arguments of the figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.gmml import CORRUPTIONS
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.errors import SiTError

NUM_IMAGES = 8
MAX_IMAGES_OF_A_MAP = 2000
MAX_IMAGES_OF_A_GALLERY = 20000
NUM_QUERIES = 6
# Beside each stands the truth and what a model finds.
NUM_DENSE_IMAGES = 4
MAX_MODELS_OF_A_MAP = 12


@dataclass
class FigureArguments(WeightsFileArguments):
    """The model, and the figure's file, if it gets one.

    Raises:
        [`SiTError`]: If the file is of another kind.
    """

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    output: str | None = field(
        default=None, metadata={"help": "File for the figure, .png or .pdf. An existing file is replaced."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of images, and of all other random numbers."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda or a device such as cuda:1. Default: cuda, if there is a GPU."}
    )

    def __post_init__(self):
        if self.output is not None and Path(self.output).suffix.lower() not in (".png", ".pdf"):
            raise SiTError(f"{self.output} does not end in .png or .pdf", argument="output")


@dataclass
class ResolutionArguments:
    """The resolution of a PNG."""

    dots_per_inch: int = field(default=150, metadata={"help": "Pixels per inch of the PNG. Use 300 for print."})

    def __post_init__(self):
        if not 20 <= self.dots_per_inch <= 1200:
            raise SiTError(f"must be from 20 to 1200, got {self.dots_per_inch}", argument="dots_per_inch")


@dataclass
class ChosenImagesArguments(DatasetArguments):
    """A few images: of a dataset, or files from anywhere."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images: a folder, a parquet or webdataset tar file or a folder of them, a `save_to_disk` folder, a "
            "Hub id, or the built-in `digits`. This or `images` is required."
        },
    )
    images: list[str] | None = field(default=None, metadata={"help": "Image files to show instead of a dataset."})
    num_images: int = field(default=NUM_IMAGES, metadata={"help": "Number of images of the dataset to show."})

    def __post_init__(self):
        if (self.dataset is None) == (not self.images):
            raise SiTError("give either this or `images`", argument="dataset")
        if self.num_images < 1:
            raise SiTError(f"must be at least 1, got {self.num_images}", argument="num_images")


@dataclass
class DenseImagesArguments(ChosenImagesArguments):
    """A few images of a dataset for a dense task, or files from anywhere."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images, with objects or label maps or without: a COCO folder, a folder of images and masks, a column "
            "of objects or masks, or any images. This or `images` is required."
        },
    )
    num_images: int = field(
        default=NUM_DENSE_IMAGES, metadata={"help": "Number of images of the dataset to show, chosen at random."}
    )


@dataclass
class DetectionsArguments:
    """Which of the objects that a model finds are drawn."""

    threshold: float = field(
        default=0.5, metadata={"help": "Lowest score of the objects that are drawn, from 0 to 1."}
    )

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise SiTError(f"must be from 0 to 1, got {self.threshold}", argument="threshold")


@dataclass
class ReconstructionArguments:
    """How the images are corrupted, and drawn, and which other images are drawn below them."""

    corruption: Literal[CORRUPTIONS] | None = field(
        default=None, metadata={"help": "How to corrupt the images. Default: as in pretraining."}
    )
    image_size: int = field(
        default=96,
        metadata={"help": "Smallest size of the longer side of an image, in pixels. Smaller images are enlarged."},
    )
    splits: list[str] | None = field(
        default=None,
        metadata={"help": "Splits of the dataset to show below each other, such as `train test`. Default: one split."},
    )
    other_datasets: list[str] | None = field(
        default=None,
        metadata={"help": "Other datasets, whose images are shown below, such as images foreign to the model."},
    )
    titles: list[str] | None = field(
        default=None,
        metadata={
            "help": "Titles of what stands below each other: the splits, and then the other datasets. Default: names of "
            "dataset and split, if there are several."
        },
    )

    def __post_init__(self):
        if not 1 <= self.image_size <= 1024:
            raise SiTError(f"must be from 1 to 1024, got {self.image_size}", argument="image_size")
        if self.titles is not None and len(self.titles) != self.num_groups:
            raise SiTError(
                f"{len(self.titles)} for {self.num_groups} groups of images",
                argument="titles",
                remedy="give one for each",
            )

    @property
    def num_groups(self) -> int:
        """How many groups of images stand below each other."""
        return len(self.splits or [None]) + len(self.other_datasets or ())


@dataclass
class AttentionArguments:
    """The layer whose attention is shown."""

    layer: int | None = field(default=None, metadata={"help": "Number of the layer, from 1. Default: the last layer."})


@dataclass
class EmbeddingsArguments:
    """How the features are mapped and colored."""

    method: Literal["tsne", "umap", "pca"] = field(
        default="tsne", metadata={"help": "How to reduce features to two dimensions; umap needs umap-learn."}
    )
    compare_with: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other models, whose maps come before that of `model_name_or_path`, in this order: folders, Hub ids, or "
            "`random` for the same model before any training."
        },
    )
    titles: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the figure calls the models: those of `compare_with`, and then `model_name_or_path`. Default: the "
            "names of their folders."
        },
    )
    knn: bool = field(
        default=False,
        metadata={
            "help": "Write the accuracy of kNN below each map, as the command `evaluate` measures it. This reads the training "
            "split too. The accuracy of a classifier is always there, if it knows the classes."
        },
    )
    color_by: Literal["label", "cluster"] | None = field(
        default=None,
        metadata={"help": "What the colors show. Default: the label, if each image has one; else the cluster."},
    )
    color_label: str | None = field(
        default=None,
        metadata={"help": "Name of one label. The colors show which images have it, alone or with other labels."},
    )
    num_clusters: int | None = field(
        default=None,
        metadata={
            "help": 'Number of k-means clusters for `color_by="cluster"`. Default: the number of classes, or else '
            "10, but at most one for each five images."
        },
    )
    max_images: int = field(
        default=MAX_IMAGES_OF_A_MAP,
        metadata={"help": "Largest number of images on the map. If there are more, they are chosen at random."},
    )
    html: str | None = field(
        default=None, metadata={"help": "File for a web page, .html, that shows each image under the mouse."}
    )

    def __post_init__(self):
        if isinstance(self.compare_with, str):  # in Python, where there is one
            self.compare_with = [self.compare_with]
        num_models = 1 + len(self.compare_with or ())
        if num_models > MAX_MODELS_OF_A_MAP:
            raise SiTError(f"{num_models} models are more than {MAX_MODELS_OF_A_MAP}", argument="compare_with")
        if self.titles is not None and len(self.titles) != num_models:
            raise SiTError(
                f"{len(self.titles)} for {num_models} models", argument="titles", remedy="give one for each"
            )
        if self.titles is not None and len(set(self.titles)) < num_models:
            raise SiTError("two are the same", argument="titles", remedy="give each model its own")
        if self.max_images < 4:
            raise SiTError(f"must be at least 4, got {self.max_images}", argument="max_images")
        if self.num_clusters is not None and self.num_clusters < 2:
            raise SiTError(f"must be at least 2, got {self.num_clusters}", argument="num_clusters")
        if self.num_clusters is not None and (self.color_by == "label" or self.color_label is not None):
            raise SiTError('goes only with `color_by="cluster"`', argument="num_clusters")
        if self.color_label is not None and self.color_by == "cluster":
            raise SiTError('goes only with `color_by="label"`', argument="color_label")
        if self.html is not None and Path(self.html).suffix.lower() not in (".html", ".htm"):
            raise SiTError(f"{self.html} does not end in .html", argument="html")


@dataclass
class NeighboursArguments:
    """The queries whose neighbors are shown. Neighbors are of the training split, and so are queries if it is the only
    one."""

    num_neighbours: int = field(default=6, metadata={"help": "Number of neighbors of each query."})
    num_queries: int = field(
        default=NUM_QUERIES, metadata={"help": "Number of queries, which are images of the validation split."}
    )
    images: list[str] | None = field(
        default=None, metadata={"help": "Image files to use as queries instead of images of the dataset."}
    )
    max_images: int = field(
        default=MAX_IMAGES_OF_A_GALLERY,
        metadata={"help": "Largest number of images to search. If there are more, they are chosen at random."},
    )

    def __post_init__(self):
        for name in ("num_neighbours", "num_queries", "max_images"):
            if getattr(self, name) < 1:
                raise SiTError(f"must be at least 1, got {getattr(self, name)}", argument=name)
