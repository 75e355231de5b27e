"""Maps of the test images' features by every method, side by side: a figure, and a page that shows each image."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.experiments.compared_images import ComparedImages
from modeling_sit.experiments.comparison_runs import Start
from modeling_sit.experiments.methods_arguments import MethodsComparisonArguments
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.arguments import MAX_IMAGES_OF_A_MAP, ResolutionArguments
from modeling_sit.visualization.embeddings import MIN_IMAGES
from modeling_sit.visualization.model_maps import ImagesByModels, MappedModel
from modeling_sit.visualization.saving import save, save_figure
from modeling_sit.visualization.selection import choose_rows, label_sets

FIGURE, PAGE = "embeddings.png", "embeddings.html"


def write_maps(
    output_dir: Path, images: ComparedImages, starts: Mapping[str, Start], arguments: MethodsComparisonArguments
) -> None:
    """Write t-SNE maps of test images, a panel for each start that has a model of the first seed. They choose nothing.

    Args:
        output_dir (`Path`): The folder of the experiment.
        images ([`ComparedImages`]): Their images.
        starts (mapping from `str` to [`Start`]): What is shown, by name.
        arguments ([`MethodsComparisonArguments`]): What is compared.
    """
    seed = arguments.seeds[0]
    split = images.test.select(choose_rows(len(images.test), MAX_IMAGES_OF_A_MAP, seed))

    def models() -> Iterator[MappedModel]:
        for name, start in starts.items():
            if seed not in start.models:
                continue
            encoder, processor = load_encoder(start.models[seed])
            arguments.set_intensity_range(processor, encoder.config)
            title = name
            if start.from_scratch:
                encoder, title = random_encoder(encoder, start.models[seed], seed), "untrained"
            yield MappedModel(title, encoder, processor, FeatureArguments(pooling=start.pooling))

    by_models = ImagesByModels.of(models(), split, choose_device(None))
    if len(by_models.shown) < MIN_IMAGES:
        print(f"{len(by_models.shown)} test images are too few for a map", flush=True)
        return
    labels = label_sets(by_models.shown, images.label_names)
    try:
        maps = by_models.mapped(
            dataset_name(arguments.dataset), images.label_names, seed=seed, color_by=color_by(labels)
        )
    except SiTError as problem:  # features that are all the same
        print(f"no map of the features: {problem}", flush=True)
        return
    save_figure(output_dir / FIGURE, ResolutionArguments(), maps.figure())
    save(output_dir / PAGE, lambda path: path.write_text(maps.page(), encoding="utf-8"))
    print(f"maps of the features: {output_dir / FIGURE} and {output_dir / PAGE}", flush=True)


def color_by(labels: list[tuple[str, ...] | None]) -> str | None:
    """Clusters, where an image may have several labels."""
    return "cluster" if any(names is not None and len(names) != 1 for names in labels) else None
