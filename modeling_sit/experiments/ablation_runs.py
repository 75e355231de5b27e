"""The runs of an ablation: each pretraining once, whichever cells and plans share it, and what is measured of it.

Every run has a folder whose name follows from all that its outcome follows from. So a run that is finished is found again, by the
same plan, a changed one or another one, and by other machines with the same folder.
"""

import gc
import hashlib
import itertools
import json
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.evaluation.results import read_results
from modeling_sit.experiments.ablation_arguments import PROFILES, AblationArguments, PlannedMeasures
from modeling_sit.experiments.ablation_pretrainings import Pretraining, Pretrainings
from modeling_sit.experiments.compared_images import ComparedImages
from modeling_sit.experiments.comparison_runs import Announce, OfPixels, Runs, Start, announce
from modeling_sit.experiments.grid import MAKE_ROOM, going_on, results_of
from modeling_sit.experiments.plan import COMMANDS, NEEDED, Cell, Plan, merged
from modeling_sit.experiments.pretraining_runs import DIVERGED, PRETRAINING, check_diverged, pretrain_in
from modeling_sit.hub.provenance import public_name
from modeling_sit.pretraining.checkpoints import delete_checkpoint, list_checkpoints
from modeling_sit.pretraining.method import BACKBONE
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.atomic_files import is_of_full_disk
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted, argument_names
from modeling_sit.runtime.locks import taken
from modeling_sit.runtime.recipes import read_recipe
from modeling_sit.runtime.run_folders import delete_if_empty

RUN_FOLDERS = ("pretrained-*", "frozen-*", "finetuned-*", "raw-pixels-*")
LOCKS = "locks"
CONSEQUENCE = "two processes that start at once may do the same run twice"
# What an encoder without training, and how it reads images, follow from.
OF_ENCODERS = (
    *sorted(BACKBONE),
    "initialization",
    "initializer_range",
    "hidden_act",
    "layer_norm_eps",
    "drop_path_rate",
)
OF_PROCESSORS = ("size", "image_mean", "image_std", "intensity_range")
# Names of what fails beside cells.
UNTRAINED, PIXELS = "untrained encoder", "raw pixels"


class AblationRuns:
    """
    All runs of a plan.

    Args:
        plan ([`Plan`]): The plan.
        arguments ([`AblationArguments`]): What the user says.
        measures ([`PlannedMeasures`]): What is measured.
        images ([`ComparedImages`]): Their images.

    Attributes:
        dataset (`str`): What a report calls the images.
        failed (`dict`): Why a cell has failed with a seed, by the cell's name and the seed; of cells that were run here.
        elsewhere (`list` of pairs): Cells' names and seeds that other processes are at.
        announce: Says which run begins. Default: it is printed.
    """

    def __init__(self, plan: Plan, arguments: AblationArguments, measures: PlannedMeasures, images: ComparedImages):
        self.plan = plan
        self.measures = measures
        self.images = images
        self.folder = arguments.runs
        self.dataset = public_name(dataset_name(arguments.dataset))
        self.pretrainings = Pretrainings(plan, arguments, measures, images)
        self.failed: dict[tuple[str, int], str] = {}
        self.elsewhere: list[tuple[str, int]] = []
        self.announce: Announce = announce
        self._profile = PROFILES[arguments.profile]

    @cached_property
    def runs(self) -> Runs:
        """What is measured of the cells, which are its starts. The untrained ones come in addition."""
        starts = {}
        for pretraining in self.pretrainings.all:
            for cell in pretraining.cells:
                models = {
                    seed: str(pretraining.model_of(cell, self.pretrainings.run_dir(pretraining, seed)))
                    for seed in self.measures.seeds
                }
                step = pretraining.step_of(cell)
                starts[cell.name] = self._start(models, [pretraining.key, step], cell.evaluate, cell.finetune)
        return Runs(self.measures, self.images, starts, announce=lambda *run: self.announce(*run))

    def _start(
        self,
        models: Mapping[int, str],
        of_model: Any,
        evaluate: Mapping[str, Any] | None = None,
        finetune: Mapping[str, Any] | None = None,
        from_scratch: bool = False,
    ) -> Start:
        evaluation = merged(self.plan.shared["evaluate"], evaluate or {})
        finetuning = merged(self.plan.shared["finetune"], finetune or {}, self._profile.get("finetune", {}))
        values = {"model": of_model, "evaluate": evaluation, "finetune": finetuning, "from_scratch": from_scratch}
        key = self.pretrainings.key({**values, "recipe": self._finetuning_recipe})
        pooling = evaluation.pop("pooling", None)
        return Start(models, from_scratch, pooling, finetuning, evaluation, key)

    @cached_property
    def _finetuning_recipe(self) -> dict[str, Any] | None:
        """What the recipe says; its keys are checked."""
        recipe = self.measures.finetuning_recipe
        if recipe is None:
            return None
        with argument_names(recipe="finetuning_recipe"):
            build_arguments(COMMANDS["finetune"], NEEDED["finetune"], recipe, "finetune")
            return read_recipe(recipe)

    def untrained(self, model: Path, seed: int) -> str:
        """The start that is an encoder like a model's before any training: its name in [`runs`], where it is added."""
        encoder = encoder_key(model)
        name = f"{UNTRAINED} {encoder}"
        start = self.runs.starts.get(name)
        models = {} if start is None else start.models
        self.runs.starts[name] = self._start({**models, seed: str(model)}, encoder, from_scratch=True)
        return name

    def run(self, cells: Sequence[Cell]) -> list[OfPixels]:
        """Run what is missing of these cells; the results of raw pixels, empty if another process is at them.

        Raises:
            [`TrainingInterrupted`]: If a signal ended a run.
            [`SiTError`]: If a disk is full.
        """
        names = {cell.name for cell in cells}
        jobs = [
            (pretraining, seed, wanted)
            for seed in self.measures.seeds
            for pretraining in self.pretrainings.all
            if (wanted := [cell for cell in pretraining.cells if cell.name in names])
        ]
        left = jobs
        while left:
            held = [job for job in left if not self._take(*job)]
            if len(held) == len(left):
                break
            left = held  # whoever holds them may be done, or gone
        self.elsewhere = [(cell.name, seed) for _, seed, wanted in left for cell in wanted]
        return self._raw_pixels() if self.measures.raw_pixels else []

    def _lock(self, name: str) -> Any:
        return taken(self.folder / LOCKS / f"{name}.lock", CONSEQUENCE)

    def _take(self, pretraining: Pretraining, seed: int, cells: Sequence[Cell]) -> bool:
        """Do what is missing of a pretraining, unless another process is at it; whether none is."""
        with self._lock(self.pretrainings.run_dir(pretraining, seed).name) as is_ours:
            if is_ours:
                names = [cell.name for cell in cells]
                with self._surviving(names, seed):
                    self._pretrain(pretraining, seed)
                    for name in names:
                        with self._surviving([name], seed):
                            self._measure(name, seed)
                    with self._surviving([UNTRAINED], seed):
                        self._measure_untrained(self.pretrainings.run_dir(pretraining, seed), seed)
        return is_ours

    def _pretrain(self, pretraining: Pretraining, seed: int) -> None:
        run_dir = self.pretrainings.run_dir(pretraining, seed)
        check_diverged(run_dir)

        def run(missing: list[str]) -> None:
            names = ", ".join(cell.name for cell in pretraining.cells)
            with self.announce(PRETRAINING, f"Pretraining {names}, seed {seed}"):
                pretrain_in(run_dir, {**pretraining.given, "seed": seed})

        with going_on(run_dir):
            results_of(run_dir, [PRETRAINING], run)
        for checkpoint in list_checkpoints(run_dir):  # nothing goes on from a run that is done
            delete_checkpoint(checkpoint)
        delete_if_empty(run_dir / "checkpoints")

    def _measure(self, start: str, seed: int) -> None:
        if self.measures.protocols:
            self.runs.frozen(start, seed)
        for fraction in self.measures.label_fractions:
            self.runs.fine_tune_once(start, fraction, seed)

    def _measure_untrained(self, model: Path, seed: int) -> None:
        name = self.untrained(model, seed)
        with self._lock(f"untrained-{self.runs.starts[name].key}-seed{seed}") as is_ours:
            if is_ours:
                self._measure(name, seed)

    def _raw_pixels(self) -> list[OfPixels]:
        model = next(iter(self.models()), None)
        if model is None:
            return []
        runs = self._runs_of_pixels(encoder_key(model), str(model))
        found: list[OfPixels] = []
        with self._lock(f"raw-pixels-{runs.starts[PIXELS].key}") as is_ours:
            if is_ours:
                with self._surviving([PIXELS], self.measures.seeds[0]):
                    found = runs.raw_pixels()
        return found

    def _runs_of_pixels(self, encoder: str, model: str) -> Runs:
        start = Start(dict.fromkeys(self.measures.seeds, model), key=self.pretrainings.key({"encoder": encoder}))
        return Runs(self.measures, self.images, {PIXELS: start}, announce=self.announce)

    def models(self) -> Iterator[Path]:
        """Folders of the pretrained models that are there, in the order of the plan."""
        for pretraining in self.pretrainings.all:
            for seed in self.measures.seeds:
                if PRETRAINING in read_results(self.pretrainings.run_dir(pretraining, seed)):
                    yield self.pretrainings.run_dir(pretraining, seed)

    @contextmanager
    def _surviving(self, names: Sequence[str], seed: int) -> Iterator[None]:
        """Note that these have failed with a seed, and go on with others; but not where the disk is full, or a signal came."""
        try:
            yield
        except TrainingInterrupted:
            raise
        except Exception as error:
            if is_of_full_disk(error):
                problem = error.problem if isinstance(error, SiTError) else str(error)
                raise SiTError(problem, argument="output_dir", remedy=MAKE_ROOM) from error
            if not isinstance(error, SiTError):  # not a user's mistake, and no reason to lose a night
                traceback.print_exc()
            text = " ".join(str(error).split()) if isinstance(error, SiTError) else f"{type(error).__name__}: {error}"
            for name in names:
                self.failed.setdefault((name, seed), text)
            print(f"failed: {', '.join(names)}, seed {seed}: {text}; the others go on", file=sys.stderr, flush=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def missing(self, cells: Sequence[Cell]) -> Counter[str]:
        """How many runs are still to do, by kind: of the cells, of encoders without training, and of raw pixels."""
        found: Counter[str] = Counter()
        names = {cell.name for cell in cells}
        encoders: dict[tuple[str, int], None] = {}
        for seed in self.measures.seeds:
            for pretraining in self.pretrainings.all:
                wanted = [cell for cell in pretraining.cells if cell.name in names]
                results = read_results(self.pretrainings.run_dir(pretraining, seed))
                if not wanted or DIVERGED in results:
                    continue
                found[PRETRAINING] += PRETRAINING not in results
                for cell in wanted:
                    found += self._unmeasured(self.runs, cell.name, seed)
                encoder = self._encoder_of(pretraining, seed)
                if encoder is not None:
                    encoders[encoder, seed] = None
        for encoder, seed in encoders:
            start = self._start({}, encoder, from_scratch=True)
            found += self._unmeasured(Runs(self.measures, self.images, {UNTRAINED: start}), UNTRAINED, seed)
        if self.measures.raw_pixels and encoders:
            found["raw pixels"] += self._lacks_pixels(next(iter(encoders))[0])
        return found

    def _unmeasured(self, runs: Runs, start: str, seed: int) -> Counter[str]:
        """How many runs measure a model, and are still to do, by kind."""
        results = read_results(runs.frozen_dir(start, seed))
        found = Counter({"frozen features": any(name not in results for name in self.measures.protocols)})
        for fraction in self.measures.label_fractions:
            found["fine-tuning"] += "finetune" not in read_results(runs.finetuned_dir(start, fraction, seed))
        return found

    def _lacks_pixels(self, encoder: str) -> bool:
        """Whether a result of raw pixels is missing that the first of the models reads as its encoder does."""
        encoder = next((encoder_key(model) for model in self.models()), encoder)
        runs = self._runs_of_pixels(encoder, "")
        results = read_results(runs.pixels_dir())
        pairs = itertools.product(self.measures.raw_pixels, self.measures.pixel_fractions)
        return any(name not in results for pair in pairs for name in runs.pixel_runs(*pair))

    def _encoder_of(self, pretraining: Pretraining, seed: int) -> str | None:
        """The [`encoder_key`] of the model that a pretraining gives, or will give; `None` if it could not start."""
        run_dir = self.pretrainings.run_dir(pretraining, seed)
        if PRETRAINING in read_results(run_dir):
            return encoder_key(run_dir)
        planned = self.pretrainings.planned_encoder(pretraining)
        return None if planned is None else _key_of_encoder(*planned)


def encoder_key(model: Path) -> str:
    """A name for what an encoder is before any training, and how it reads images."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    processor = json.loads((model / "preprocessor_config.json").read_text(encoding="utf-8"))
    return _key_of_encoder(config, processor)


def _key_of_encoder(config: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
    values = [[config.get(name) for name in OF_ENCODERS], [processor.get(name) for name in OF_PROCESSORS]]
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=6).hexdigest()
