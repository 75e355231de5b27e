"""Maps of the features, from arguments to files."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import datasets
import torch

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.description import tell
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.label_encoding import join
from modeling_sit.data.labeled import is_labeled, labeled_splits, labels_of
from modeling_sit.data.sources import load_images
from modeling_sit.data.without_labels import give_labels
from modeling_sit.evaluation.classifiers import load_classifier, measure_classifier
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.metric_results import primary_metric
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError, argument_names
from modeling_sit.visualization.arguments import (
    MAX_IMAGES_OF_A_MAP,
    EmbeddingsArguments,
    FigureArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.embeddings import errors_of
from modeling_sit.visualization.model_maps import ImagesByModels, MappedModel
from modeling_sit.visualization.models import RANDOM, titles_of
from modeling_sit.visualization.saving import Visualization, check_writable, finish, save
from modeling_sit.visualization.selection import choose_rows, choose_split, label_sets, warn_shortage


def run_embeddings(
    figure: FigureArguments,
    resolution: ResolutionArguments,
    arguments: EmbeddingsArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> Visualization:
    """Draw the figure, and write the page, of the [`ModelMaps`].

    Raises:
        [`SiTError`]: If an argument is wrong, a model or the images cannot be used, or a file cannot be written.
    """
    for argument, path in (("output", figure.output), ("html", arguments.html)):
        check_writable(path, dataset_arguments.dataset, argument)
    device = choose_device(figure.device)
    models = list(load_models(figure, arguments, feature_arguments, dataset_arguments))
    images = load_images(**dataset_arguments.for_loading)
    tell(images, intensity_range=models[-1].pixel_format.intensity_range)
    gallery, split = choose_splits(arguments, dataset_arguments, images)
    color_by, notes = choose_colors(arguments, images)
    warn_shortage("max_images", arguments.max_images, MAX_IMAGES_OF_A_MAP, len(split))
    split = split.select(choose_rows(len(split), arguments.max_images, figure.seed))

    by_models = ImagesByModels.of(models, split, device)
    asked = [name for name in ("color_by", "color_label") if getattr(arguments, name) is not None]
    if color_by == "label" and asked and all(each is None for each in label_sets(by_models.shown, images.label_names)):
        raise SiTError(f"none of the images of split {split.split} has a label", argument=asked[0])
    accuracy_notes, num_voters = measure(models, by_models, gallery, images, device)
    notes += accuracy_notes
    maps = by_models.mapped(
        images.name,
        images.label_names,
        color_by=color_by,
        color_label=arguments.color_label,
        num_clusters=arguments.num_clusters,
        method=arguments.method,
        seed=figure.seed,
    )
    for each in maps.embedded.maps:
        if facts := "; ".join(filter(None, (each.note, each.result))):
            notes.append(f"{each.title}: {facts}")
    if num_voters:
        maps.note = f"kNN: votes of the {num_neighbors(num_voters)} nearest of {num_voters:,} labeled images of split {gallery.split}"
    drawn = finish(maps.figure(), figure.output, resolution, notes)
    if arguments.html is not None:
        drawn.paths.append(save(arguments.html, lambda path: path.write_text(maps.page(), encoding="utf-8")))
    return drawn


def load_models(
    figure: FigureArguments,
    arguments: EmbeddingsArguments,
    feature_arguments: FeatureArguments,
    dataset_arguments: DatasetArguments,
) -> Iterator[MappedModel]:
    """The models in the order of their maps, that of `model_name_or_path` last.

    Raises:
        [`SiTError`]: If one of them is given twice, cannot be loaded, or does not have the features.
    """
    main, compared = figure.model_name_or_path, arguments.compare_with or []
    names = [*compared, main]
    paths = [Path(name) for name in names]
    for name, path in zip(compared, paths, strict=False):
        if paths.count(path) > 1:
            raise SiTError(f"{name} is given twice", argument="compare_with")
    encoder, processor = load_encoder(main, figure.network, figure.num_attention_heads)
    for name, title in zip(names, arguments.titles or titles_of(names), strict=True):
        if name == main:
            argument, own, own_processor, classifier = "model_name_or_path", encoder, processor, load_classifier(main)
        else:
            argument, own, own_processor, classifier = "compare_with", None, copy.deepcopy(processor), None
            with argument_names(model_name_or_path=argument):
                if name == RANDOM:
                    own = random_encoder(encoder, main, figure.seed)
                else:
                    own, own_processor = load_encoder(name)
                    classifier = load_classifier(name)
        with errors_of(title if compared else None):
            settled = settle_features(feature_arguments, own.config)  # each model has its own pooling
            dataset_arguments.set_intensity_range(own_processor, own.config)
        yield MappedModel(title, own, own_processor, settled, classifier, argument)


def choose_splits(
    arguments: EmbeddingsArguments, dataset_arguments: DatasetArguments, images: ImageDatasets
) -> tuple[datasets.Dataset | None, datasets.Dataset]:
    """The labeled images for kNN, if it is measured, and the split to show.

    Raises:
        [`SiTError`]: If there is no such split, or no label.
    """
    if arguments.knn:
        gallery, _ = labeled_splits(images)
        return gallery, images.validation
    return None, choose_split(images, dataset_arguments.train_split, dataset_arguments.validation_split)


def num_neighbors(num_voters: int) -> int:
    """How many neighbors vote: as many as `evaluate` takes, if so many images have a vote."""
    return min(ProtocolArguments().knn_k, num_voters)


def measure(
    models: list[MappedModel],
    by_models: ImagesByModels,
    gallery: datasets.Dataset | None,
    images: ImageDatasets,
    device: torch.device,
) -> tuple[list[str], int]:
    """Write below each map how well the model classifies the images that are shown: by kNN of its features, if there is
    a gallery, and by its own classifier, if it has one.

    Returns:
        `tuple[list[str], int]`: Notes for the user: which classifiers do not fit; and how many images of the gallery
        the last model can read, 0 if kNN is not measured.
    """
    if images.label_names is None:
        return [], 0
    notes, num_voters = [], 0
    labels = labels_of(by_models.shown)
    labeled = is_labeled(labels)
    if not labeled.any() or (images.multi_label and not labels[labeled].any()):  # no average precision of no class
        return [], 0
    metric = "mean average precision" if images.multi_label else "accuracy"
    for number, (model, panel) in enumerate(zip(models, by_models.panels, strict=True)):
        values = {}
        if gallery is not None:
            with errors_of(model.title):
                found = model.features_of(gallery, device)
            num_voters = len(found.features)
            scores = knn_predict(
                found.features,
                labels_of(gallery)[found.rows],
                panel.features[labeled].to(device),
                len(images.label_names),
                num_neighbors(num_voters),
                ProtocolArguments().knn_temperature,
            )
            values["kNN"] = primary_metric(scores, labels[labeled])
        if model.classifier is not None:
            try:
                values["classifier"] = measure_classifier(
                    model.classifier, model.processor, by_models.shown, images.label_names, device
                )
            except SiTError as problem:
                notes.append(f"{model.title}: {problem.problem}, so its accuracy is left out")
        if values:
            result = f"{metric}: " + ", ".join(f"{name} {value:.1%}" for name, value in values.items())
            by_models.panels[number] = panel._replace(result=result)
    return notes, num_voters


def choose_colors(
    arguments: EmbeddingsArguments, images: ImageDatasets
) -> tuple[Literal["label", "cluster"], list[str]]:
    """What the colors of a map mean, and notes for the user.

    Raises:
        [`SiTError`]: If it is the label, and there is none, or there are several and none is chosen.
    """
    names = images.label_names
    if arguments.color_by is None and arguments.color_label is None:
        note = (
            "images may have several labels, so colors mean clusters; `color_label` shows which images have one label"
        )
        notes = [note] if images.multi_label else []
        return ("cluster" if names is None or images.multi_label else "label"), notes
    if arguments.color_by == "cluster":
        return "cluster", []
    argument = "color_by" if arguments.color_label is None else "color_label"
    if names is None:
        remedy = give_labels(images.name, images.train, "name their column with `label_column`")
        raise SiTError(f"{images.name} has no labels", argument=argument, remedy=remedy)
    known = join(names if len(names) <= 20 else [*names[:20], "..."])
    if arguments.color_label is None and images.multi_label:
        raise SiTError(
            f"images of {images.name} may have several labels",
            argument=argument,
            remedy=f"name one with `color_label`: {known}",
        )
    if arguments.color_label not in (None, *names):
        raise SiTError(f"no label {arguments.color_label!r}, only {known}", argument=argument)
    return "label", []
