"""The runs of a comparison, each in a folder of its own. What is finished there is read, not run again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.labeled import labels_of
from modeling_sit.data.splits import NothingToHoldOut
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.predictions import PREDICTIONS_FILE, hits_of
from modeling_sit.evaluation.raw_pixels import (
    CLASSIFIERS,
    classify_pixels,
    largest_number,
    pixel_sizes,
    read_pixels,
)
from modeling_sit.evaluation.results import write_results
from modeling_sit.evaluation.run import run_evaluation
from modeling_sit.evaluation.subsets import draw_fraction
from modeling_sit.experiments.compared_images import ComparedImages, protocol_class
from modeling_sit.experiments.comparison_arguments import MeasuringArguments
from modeling_sit.experiments.grid import PIXEL_PREDICTIONS, going_on, results_of
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.run import run_finetuning
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.finetuning.tuning import tune
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.image_modes import PixelFormat
from modeling_sit.interop.resize import image_shape
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import argument_names

STARTS = ("scratch", "pretrained")
RUN_FOLDERS = ("finetuned-*", "frozen-*", "tuned-*", "raw-pixels")


@dataclass(frozen=True)
class Start:
    """
    What fine-tuning and frozen features start from.

    Args:
        models (mapping from `int` to `str`): Folder or Hub id of the pretrained model by seed.
        from_scratch (`bool`, *optional*, defaults to `False`): Whether only its architecture counts, with new weights.
        pooling (`str`, *optional*): Of the frozen features. Default: the model's own.
        finetuning (mapping, *optional*): Arguments of fine-tuning that this start has of its own.
        evaluation (mapping, *optional*): The same of the protocols.
        key (`str`, *optional*): Its name in those of folders. Default: its name.
    """

    models: Mapping[int, str]
    from_scratch: bool = False
    pooling: str | None = None
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True)
class Choice:
    """
    How fine-tuning goes about a fraction of the labels.

    Args:
        learning_rate (`float`, *optional*): Peak learning rate. `None` for that of the recipe.
        max_steps (`int`): Steps.
        chosen_on (`str`, *optional*): The images that chose them. `None` if that was before the comparison.
        metric (`str`, *optional*): Name of what was measured on them.
        value (`float`, *optional*): Its value, in [0, 1].
        is_length_searched (`bool`, *optional*, defaults to `False`): Whether the number of steps was searched, too.
        still_rises (`bool`, *optional*, defaults to `False`): Whether the metric still rose at the largest number of steps
            that was allowed.
    """

    learning_rate: float | None
    max_steps: int
    chosen_on: str | None = None
    metric: str | None = None
    value: float | None = None
    is_length_searched: bool = False
    still_rises: bool = False


@dataclass(frozen=True)
class FineTuned:
    """
    Results of the models that were fine-tuned alike but for the seed.

    Args:
        label_fraction (`float`): Fraction of the labels, in (0, 1].
        start (`str`): `"scratch"`, `"pretrained"` or a method.
        metric (`str`): What was measured.
        values (`list[float]`): The metric in [0, 1], in the order of the seeds.
        num_images (`int`): Test images that it was measured on.
        seeds (`list[int]`, *optional*): The seeds of the values.
        num_train (`int`, *optional*): Labeled images that each model got.
    """

    label_fraction: float
    start: str
    metric: str
    values: list[float]
    num_images: int
    seeds: list[int] = field(default_factory=list)
    num_train: int | None = None


@dataclass(frozen=True)
class OfPixels:
    """
    Results of a classifier of raw pixels.

    Args:
        label_fraction (`float`): Fraction of the labels, in (0, 1].
        classifier (`str`): Key of [`CLASSIFIERS`].
        values (`list[float]`): Accuracy or mean average precision in [0, 1], in the order of the seeds. One value with all
            labels, where a seed draws nothing.
        settings (`list[dict]`): For each value, what was chosen on how many training images, and how many of them it was
            fitted to.
    """

    label_fraction: float
    classifier: str
    values: list[float]
    settings: list[dict[str, Any]]


# Called with the kind of a run and its description, just before the run; it is left after it.
Announce = Callable[[str, str], AbstractContextManager]


@contextmanager
def announce(kind: str, description: str) -> Iterator[None]:
    """Print what is about to run."""
    print(f"\n{description}", flush=True)
    yield


class Runs:
    """
    The runs of one comparison.

    Args:
        arguments ([`MeasuringArguments`]): How they are measured.
        images ([`ComparedImages`]): Their images.
        starts (mapping from `str` to [`Start`]): What is compared, by name.
        announce (callable, *optional*): Says which run begins. Default: it is printed.
        chosen (mapping from (start, fraction) to [`Choice`], *optional*): Rates and lengths that are known before.
            Default: [`Runs.choose`] finds them, if the arguments say so.
    """

    def __init__(
        self,
        arguments: MeasuringArguments,
        images: ComparedImages,
        starts: Mapping[str, Start],
        chosen: Mapping[tuple[str, float], Choice] | None = None,
        announce: Announce = announce,
    ):
        self.arguments = arguments
        self.images = images
        self.starts = starts
        self.announce = announce
        self.chosen: dict[tuple[str, float], Choice | None] = dict(chosen or {})
        self.told: set[tuple[str, float]] = set()  # what was chosen for these is printed
        self.output_dir = Path(arguments.output_dir)

    def choose(self, start: str, fraction: float) -> Choice | None:
        """Learning rate and steps, chosen on held-out training images with the first model. `None` for those of the recipe: if
        the arguments say so, or no image can be held out, as each is the only one of a class."""
        if (start, fraction) in self.chosen:
            return self.chosen[start, fraction]
        if not self.arguments.tunes(start):
            return None
        run_dir = self.output_dir / f"tuned-{start}-{percent(fraction)}"
        length = self.arguments.length_of(fraction) or {"max_steps": "auto"}
        seed = next(iter(self.starts[start].models))
        given = self._finetuning(start, fraction, seed, run_dir) | length | {"learning_rate": "auto"}

        def run(missing: list[str]) -> None:
            run_dir.mkdir(parents=True, exist_ok=True)
            text = f"Choosing rate and steps with {percent(fraction)} of the labels, {start}"
            with self.announce("search", text), self._renamed_errors():
                *groups, _ = self._build(given)
                found = tune(*groups)
            best, searched = (found.learning_rate, found.max_steps), len({each.max_steps for each in found.trials}) > 1
            value = next(each.metric for each in found.trials if (each.learning_rate, each.max_steps) == best)
            choice = Choice(*best, found.chosen_on, found.metric, value, searched, found.still_rises)
            write_results(run_dir, {"chosen": asdict(choice)})

        try:
            with going_on(run_dir):
                self.chosen[start, fraction] = Choice(**results_of(run_dir, ["chosen"], run)["chosen"])
        except NothingToHoldOut as error:
            print(f"{error.problem}: rate and steps are those of the recipe", flush=True)
            self.chosen[start, fraction] = None
        return self.chosen[start, fraction]

    def fine_tune(self, start: str, fraction: float) -> FineTuned:
        """Fine-tune with each seed that there is a model of."""
        choice = self.choose(start, fraction)
        results = [self.fine_tune_once(start, fraction, seed, choice) for seed in self.starts[start].models]
        metric, first = metric_of(results[0]), results[0]
        values, seeds = [result[metric] for result in results], list(self.starts[start].models)
        return FineTuned(fraction, start, metric, values, first["num_validation"], seeds, first.get("num_train"))

    def hits(self, cell: FineTuned) -> np.ndarray | None:
        """Whether each model of a cell is right on each test image, `(num_seeds, num_images)`, if the runs have written it."""
        folders = [self.finetuned_dir(cell.start, cell.label_fraction, seed) for seed in cell.seeds]
        return hits_of([folder / PREDICTIONS_FILE for folder in folders])

    def finetuned_dir(self, start: str, fraction: float, seed: int) -> Path:
        """The folder of a fine-tuned model."""
        return self.output_dir / f"finetuned-{self._key(start)}-{percent(fraction)}-seed{seed}"

    def frozen_dir(self, start: str, seed: int | None = None) -> Path:
        """The folder of the results of frozen features."""
        return self.output_dir / (f"frozen-{self._key(start)}" + ("" if seed is None else f"-seed{seed}"))

    def _key(self, start: str) -> str:
        return self.starts[start].key or start

    def fine_tune_once(self, start: str, fraction: float, seed: int, choice: Choice | None = None) -> dict[str, Any]:
        """Results of the model that is fine-tuned with a seed."""
        run_dir = self.finetuned_dir(start, fraction, seed)
        given = self._finetuning(start, fraction, seed, run_dir) | self.arguments.length_of(fraction)
        if choice is not None:
            given |= {} if choice.learning_rate is None else {"learning_rate": choice.learning_rate}
            # All labels of the fraction are learned: no image is left to choose a checkpoint by.
            given |= {
                "max_steps": choice.max_steps,
                "num_train_epochs": None,
                "eval_strategy": "no",
                "load_best_model_at_end": False,
                "early_stopping_patience": None,
            }

        def run(missing: list[str]) -> None:
            text = f"Fine-tuning with {percent(fraction)} of the labels, {start}, seed {seed}"
            with self.announce("fine-tuning", text), self._renamed_errors():
                *groups, _ = self._build(given)
                # None of many runs is the one to share.
                run_finetuning(*groups, HubArguments(), is_told=(start, fraction) in self.told)
                self.told.add((start, fraction))

        with going_on(run_dir):
            return results_of(run_dir, ["finetune"], run)["finetune"]

    def _finetuning(self, start: str, fraction: float, seed: int, run_dir: Path) -> dict[str, Any]:
        return {
            "model_name_or_path": self.starts[start].models[seed],
            **self.images.for_finetuning,
            **self.starts[start].finetuning,
            "validation_split": None,
            "test_split": self.images.arguments["validation_split"],
            "output_dir": str(run_dir),
            "from_scratch": self.starts[start].from_scratch,
            "label_fraction": fraction,
            "seed": seed,
            "resume_from_checkpoint": "auto",
        }

    def _build(self, given: dict[str, Any]) -> tuple[Any, ...]:
        classes = (FinetuningArguments, FinetuningTrainingArguments, HubArguments)
        return build_arguments(classes, given, self.arguments.finetuning_recipe, "finetune")

    @contextmanager
    def _renamed_errors(self) -> Iterator[None]:
        with argument_names(test_split="validation_split", recipe="finetuning_recipe"):
            yield

    def frozen(self, start: str, seed: int | None = None) -> dict[str, dict[str, Any]]:
        """Results of the frozen features, by protocol: of the pretrained encoder, or of the same before any training.

        Args:
            start (`str`): What starts.
            seed (`int`, *optional*): Of several models. Default: there is one.
        """
        run_dir = self.frozen_dir(start, seed)
        of_seed = {} if seed is None else {"seed": seed}

        def run(missing: list[str]) -> None:
            given = {
                **self.images.arguments,
                "model_name_or_path": self._model(start, seed),
                "output_dir": run_dir,
                "from_scratch": self.starts[start].from_scratch,
                "pooling": self.starts[start].pooling,
                "protocols": missing,
                **self.images.protocol_arguments(),
                **self.starts[start].evaluation,
                **of_seed,
            }
            classes = (EvaluationArguments, DatasetArguments, protocol_class(given))
            text = "".join([f"Measuring frozen features, {start}", *(f", {name} {seed}" for name in of_seed)])
            with self.announce("frozen features", text):
                run_evaluation(*build_arguments(classes, given, function="evaluate"))

        with going_on(run_dir):
            return results_of(run_dir, self.arguments.protocols, run)

    def _model(self, start: str, seed: int | None = None) -> str:
        return self.starts[start].models[self.arguments.seeds[0] if seed is None else seed]

    def raw_pixels(self) -> list[OfPixels]:
        """Results of the classifiers of raw pixels, with the labels that the fine-tuned models of the same fraction and seed
        get."""
        run_dir = self.pixels_dir()
        names = {
            (classifier, fraction): self.pixel_runs(classifier, fraction)
            for classifier in self.arguments.raw_pixels
            for fraction in self.arguments.pixel_fractions
        }

        def run(missing: list[str]) -> None:
            with self.announce("raw pixels", "Classifying raw pixels"):
                self._classify_pixels(run_dir, missing)

        with going_on(run_dir):
            results = results_of(run_dir, [name for group in names.values() for name in group], run)
        found = []
        for (classifier, fraction), group in names.items():
            values = [results[name]["value"] for name in group]
            settings = [{key: value for key, value in results[name].items() if key != "value"} for name in group]
            found.append(OfPixels(fraction, classifier, values, settings))
        return found

    def pixel_hits(self, cell: OfPixels) -> np.ndarray | None:
        """The same as [`Runs.hits`] for a classifier of raw pixels, a row for each of its values."""
        names = self.pixel_runs(cell.classifier, cell.label_fraction)
        return hits_of([self.pixels_dir() / _predictions_of(name) for name in names])

    def pixels_dir(self) -> Path:
        key = self.starts[next(iter(self.starts))].key
        return self.output_dir / ("raw-pixels" if key is None else f"raw-pixels-{key}")

    def pixel_runs(self, classifier: str, fraction: float) -> list[str]:
        return [_pixel_run(classifier, fraction, seed) for seed in self._drawing_seeds(fraction)]

    def _drawing_seeds(self, fraction: float) -> list[int | None]:
        return self.arguments.seeds if fraction < 1 else [None]

    def _classify_pixels(self, run_dir: Path, missing: list[str]) -> None:
        images, labels = self.images, labels_of(self.images.train)
        encoder, processor = load_encoder(self._model(next(iter(self.starts))))
        self.arguments.set_intensity_range(processor, encoder.config)
        pixel_format = PixelFormat.of_model(encoder.config, processor)
        sizes = pixel_sizes(images.train, pixel_format, min(image_shape(processor)))
        limit, drawn, num_labeled = largest_number(sizes, pixel_format.num_channels), {}, {}
        for fraction in self.arguments.pixel_fractions:
            for seed in self._drawing_seeds(fraction):
                rows = torch.arange(len(labels))
                if fraction < 1:
                    rows = draw_fraction(labels, images.label_names, fraction, seed)
                num_labeled[fraction, seed] = len(rows)
                if len(rows) > limit:
                    rows = rows[draw_fraction(labels[rows], images.label_names, limit / len(rows), seed or 0)]
                drawn[fraction, seed] = rows
        train = read_pixels(images.train, pixel_format, sizes, torch.cat(list(drawn.values())))
        test = read_pixels(images.test, pixel_format, sizes)
        for (fraction, seed), rows in drawn.items():
            labeled = train.of_rows(rows)
            for classifier in self.arguments.raw_pixels:
                name = _pixel_run(classifier, fraction, seed)
                if name in missing:
                    found = classify_pixels(classifier, labeled, test, images.label_names, seed or 0)
                    if found.predictions is not None:
                        found.predictions.write(run_dir / _predictions_of(name), images.label_names)
                    result = {"value": found.value, **found.settings, "num_labeled": num_labeled[fraction, seed]}
                    write_results(run_dir, {name: result})
                    of_seed = f", seed {seed}" if seed is not None else ""
                    print(f"{CLASSIFIERS[classifier]}, {percent(fraction)} of the labels{of_seed}: {found.value:.4f}")


def _pixel_run(classifier: str, fraction: float, seed: int | None) -> str:
    """Name of a result in the folder of raw pixels; no seed where it draws no labels."""
    return f"{classifier}-{percent(fraction)}" + (f"-seed{seed}" if seed is not None else "")


def _predictions_of(pixel_run: str) -> str:
    return PIXEL_PREDICTIONS.replace("*", pixel_run)


def metric_of(result: Mapping[str, Any]) -> str:
    """The metric that tells models of an image's labels apart, of those in a result."""
    return "accuracy" if "accuracy" in result else "mean_average_precision"


def percent(fraction: float) -> str:
    """A fraction in the names of folders and in messages, such as `10%`."""
    return f"{100 * fraction:g}%"
