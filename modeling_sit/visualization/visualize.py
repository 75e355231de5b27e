"""The kinds of figures, and the function that draws any of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.description import told
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.runtime.arguments import build_arguments, did_you_mean
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.progress import quiet_transformers
from modeling_sit.visualization.arguments import (
    AttentionArguments,
    ChosenImagesArguments,
    DenseImagesArguments,
    DetectionsArguments,
    EmbeddingsArguments,
    FigureArguments,
    NeighboursArguments,
    ReconstructionArguments,
    ResolutionArguments,
)
from modeling_sit.visualization.dense_run import run_detections, run_segmentation
from modeling_sit.visualization.embeddings_run import run_embeddings
from modeling_sit.visualization.run import run_attention, run_neighbours, run_reconstructions
from modeling_sit.visualization.saving import Visualization

# The function that draws each kind, and the dataclasses of its arguments in their order. The first has the model and the file.
KINDS: Mapping[str, tuple[Callable[..., Visualization], tuple[type, ...]]] = MappingProxyType(
    {
        "reconstructions": (run_reconstructions, (FigureArguments, ReconstructionArguments, ChosenImagesArguments)),
        "embeddings": (
            run_embeddings,
            (FigureArguments, ResolutionArguments, EmbeddingsArguments, FeatureArguments, DatasetArguments),
        ),
        "attention": (
            run_attention,
            (FigureArguments, ResolutionArguments, AttentionArguments, ChosenImagesArguments),
        ),
        "neighbours": (
            run_neighbours,
            (FigureArguments, ResolutionArguments, NeighboursArguments, FeatureArguments, DatasetArguments),
        ),
        "detections": (
            run_detections,
            (FigureArguments, ResolutionArguments, DetectionsArguments, DenseImagesArguments),
        ),
        "segmentation": (run_segmentation, (FigureArguments, ResolutionArguments, DenseImagesArguments)),
    }
)


@quiet_transformers()
def visualize(kind: str, model_name_or_path: str | Path, dataset: Any = None, **arguments: Any) -> Visualization:
    """
    Draw what a model sees. A notebook shows the figure below the cell.

    Args:
        kind (`str`): `"reconstructions"`, `"attention"`, `"embeddings"` (a map), `"neighbours"`, `"detections"` (boxes or masks) or
            `"segmentation"`.
        model_name_or_path (`str` or `Path`): Folder, Hub id or file of weights.
        dataset (`str` or `datasets.Dataset`, *optional*): The images. Some kinds take `images`, a list of files, in its place.
        arguments: As the flags of `modeling-sit visualize KIND`, such as `num_images=8`, or `output="figure.png"` to write the figure
            to a file, too.

    Returns:
        [`Visualization`]: `.figure`, an image of Pillow or a figure of matplotlib; `.paths`, the files
        that were written; `.notes`, lines for the user.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If an argument is wrong, or the model or the images cannot be used.
    """
    if kind not in KINDS:
        raise SiTError(f"no kind {kind!r}, only {', '.join(KINDS)}{did_you_mean(kind, KINDS)}", argument="kind")
    draw, classes = KINDS[kind]
    given = {"model_name_or_path": model_name_or_path, **arguments}
    given |= {} if dataset is None else {"dataset": dataset}
    with told():  # printing is the command's part
        return draw(*build_arguments(classes, given, function="visualize"))
