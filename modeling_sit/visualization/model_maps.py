"""Maps of the same images by one or several models: their features, and what the figure and the page say of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import datasets
import torch
from matplotlib.figure import Figure
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.evaluation.features import Features
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import argument_names
from modeling_sit.visualization.embeddings import EmbeddingMaps, Panel, errors_of, map_embeddings
from modeling_sit.visualization.hover_page import hover_page
from modeling_sit.visualization.models import features_of
from modeling_sit.visualization.selection import (
    data_uri,
    dataset_title,
    label_sets,
    label_text,
    short_name,
    thumbnail,
)

THUMBNAIL_SIZE = 96


@dataclass(frozen=True)
class MappedModel:
    """
    A model to map images by.

    Args:
        title (`str`): What the figure calls it.
        encoder (`PreTrainedModel`): Without heads.
        processor (`BaseImageProcessor`): Its image processor.
        features ([`FeatureArguments`], *optional*): Which features. Default: the encoder's own.
        classifier (`PreTrainedModel`, *optional*): The same model with the head of a classifier, if it has one.
        argument (`str`, *optional*, defaults to `"model_name_or_path"`): The argument that names it.
    """

    title: str
    encoder: PreTrainedModel
    processor: BaseImageProcessor
    features: FeatureArguments = field(default_factory=FeatureArguments)
    classifier: PreTrainedModel | None = None
    argument: str = "model_name_or_path"

    @property
    def pixel_format(self) -> PixelFormat:
        """What images are decoded to."""
        return PixelFormat.of_model(self.encoder.config, self.processor)

    def features_of(self, split: datasets.Dataset, device: torch.device) -> Features:
        """Its [`features_of`] the images of a split."""
        with argument_names(model_name_or_path=self.argument):
            return features_of(self.encoder, split, self.processor, self.features, device)


@dataclass
class ImagesByModels:
    """
    Features of the same images by one or several models.

    Args:
        shown (`datasets.Dataset`): The images that every model can read.
        panels (list of [`Panel`]): Of each model its title and the features of these images.
        pixel_format ([`PixelFormat`]): What the last model's images are decoded to.
    """

    shown: datasets.Dataset
    panels: list[Panel]
    pixel_format: PixelFormat

    @classmethod
    def of(cls, models: Iterable[MappedModel], split: datasets.Dataset, device: torch.device) -> "ImagesByModels":
        """The features by each model in turn, so that an iterator need not hold all models in memory.

        Raises:
            [`SiTError`]: If one of them cannot read any of the images, or its features are not finite.
        """
        panels, pixel_format = [], PixelFormat(3)
        for model in models:
            with errors_of(model.title):
                found = model.features_of(split, device)
            if len(found.rows) < len(split):
                panels = [panel._replace(features=panel.features[found.rows]) for panel in panels]
                split = split.select(found.rows.tolist())
            panels.append(Panel(model.title, found.features))
            pixel_format = model.pixel_format
        return cls(split, panels, pixel_format)

    def mapped(self, dataset: str, label_names: Sequence[str] | None = None, **settings) -> "ModelMaps":
        """Map the images by each model.

        Args:
            dataset (`str`): The dataset that they are of.
            label_names, settings: As of [`map_embeddings`].

        Raises:
            [`SiTError`]: As [`map_embeddings`].
        """
        labels = label_sets(self.shown, label_names)
        return ModelMaps(self, dataset, labels, map_embeddings(self.panels, labels, label_names, **settings))


@dataclass
class ModelMaps:
    """
    Maps of the same images by one or several models.

    Args:
        images ([`ImagesByModels`]): The images.
        dataset (`str`): The dataset that they are of.
        labels (list): The classes of each, as of [`label_sets`].
        embedded ([`EmbeddingMaps`]): The maps.
        note (`str`, *optional*): More to say of the images.
    """

    images: ImagesByModels
    dataset: str
    labels: list[tuple[str, ...] | None]
    embedded: EmbeddingMaps
    note: str | None = None

    def figure(self) -> Figure:
        """The maps side by side, and below them which images they show."""
        shown = self.images.shown
        caption = f"{len(shown):,} images of {dataset_title(self.dataset)}, split {shown.split}"
        return self.embedded.figure("; ".join(filter(None, (caption, self.note))))

    def page(self) -> str:
        """The [`page_of`] the maps."""
        titles = ", ".join(each.title for each in self.embedded.maps)
        model = titles if self.note is None else f"{titles}; {self.note}"
        return page_of(self.embedded, self.images.shown, self.labels, self.dataset, model, self.images.pixel_format)


def page_of(
    embedded: EmbeddingMaps,
    shown: datasets.Dataset,
    labels: list[tuple[str, ...] | None],
    dataset: str,
    model: str,
    pixel_format: PixelFormat,
) -> str:
    """The [`hover_page`] of some maps of the images `shown`, with their thumbnails."""

    def caption(row: int) -> str:
        """The image's file or row, and its labels where the colors mean something else."""
        name, text = short_name(shown, row, dataset), label_text(labels[row])
        return name if text is None or text == embedded.classes[row] else f"{text} ({name})"

    return hover_page(
        embedded.maps,
        embedded.groups,
        embedded.legend_title,
        names=[caption(row) for row in range(len(shown))],
        images=[data_uri(thumbnail(shown, row, THUMBNAIL_SIZE, pixel_format)) for row in range(len(shown))],
        title=f"{len(shown):,} images of {dataset_title(dataset)}",
        subtitle=f"Split {shown.split}, features of {model}.",
    )
