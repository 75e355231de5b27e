"""The pretrainings of a plan: each once, whichever of its cells measure it."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.splits import select_label_fraction
from modeling_sit.experiments.ablation_arguments import PROFILES, AblationArguments, PlannedMeasures
from modeling_sit.experiments.compared_images import TEST_SEED, ComparedImages
from modeling_sit.experiments.plan import NEEDED, Cell, Plan, merged
from modeling_sit.experiments.pretraining_runs import (
    DEFAULTS,
    PlannedRun,
    plan_encoder,
    plan_run,
    read_pretraining_recipe,
)
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.outputs import export_path
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.fingerprints import dataset_fingerprint

# Of a part of a run's steps: the largest number of models that are written on the way.
MOST_EXPORTS = 100


@dataclass(frozen=True)
class Pretraining:
    """
    A pretraining, with any seed, and the cells that measure it.

    Args:
        key (`str`): Follows from all that its outcome follows from, but for the seed.
        given (mapping): Arguments of [`pretrain`], without seed and folder.
        num_steps (`int`): Its length.
        export_steps (`int`): Steps between models on the way; 0 for none.
        cells (sequence of [`Cell`]): In the order of the plan.
    """

    key: str
    given: Mapping[str, Any]
    num_steps: int
    export_steps: int
    cells: Sequence[Cell]

    def step_of(self, cell: Cell) -> int:
        """After which step the model of a cell is taken."""
        if cell.measured_after == 1:
            return self.num_steps
        parts = round(cell.measured_after * self.num_steps / self.export_steps)
        return min(max(parts, 1) * self.export_steps, self.num_steps)

    def model_of(self, cell: Cell, run_dir: Path) -> Path:
        """The folder of the model of a cell."""
        step = self.step_of(cell)
        return run_dir if step == self.num_steps else export_path(run_dir, step)


class Pretrainings:
    """
    The pretrainings of a plan.

    Args:
        plan ([`Plan`]): The plan.
        arguments ([`AblationArguments`]): What the user says.
        measures ([`PlannedMeasures`]): What is measured; it has the recipe and the steps.
        images ([`ComparedImages`]): The images.
    """

    def __init__(self, plan: Plan, arguments: AblationArguments, measures: PlannedMeasures, images: ComparedImages):
        self.plan = plan
        self.arguments = arguments
        self.measures = measures
        self.images = images
        self.folder = arguments.runs
        self._profile = PROFILES[arguments.profile]
        self._encoders: dict[str, tuple[dict[str, Any], dict[str, Any]] | None] = {}

    @cached_property
    def _known_images(self) -> dict[str, str]:
        return {"fingerprint": self.images.fingerprint(), "files": self.images.files()}

    @cached_property
    def base(self) -> dict[str, Any]:
        """What the pretraining of all cells has in common."""
        recipe = self.measures.pretraining_recipe
        values = {} if recipe is None else read_pretraining_recipe(recipe)
        monitors = {"monitors": self.plan.monitors} if self.plan.monitors else {}
        base = merged(DEFAULTS, values, monitors, self.plan.shared["pretrain"], self._profile.get("pretrain", {}))
        if self.measures.steps is not None:
            base = merged(base, {"max_steps": self.measures.steps, "num_train_epochs": None})
        if base.get("max_steps") is None or base.get("per_device_train_batch_size") is None:
            planned = self.planned("all cells", base)
            base |= {"max_steps": planned.num_steps, "per_device_train_batch_size": planned.batch_size}
            base.pop("num_train_epochs", None)
        return base

    def planned(
        self, name: str, given: Mapping[str, Any], image_fraction: float = 1.0, measures: bool = False
    ) -> PlannedRun:
        """What a pretraining would be, and if asked for how long a step takes. `name` says which one it is, for errors."""
        try:
            return plan_run({**self._images_of(image_fraction), **given, "output_dir": self.folder}, measures)
        except SiTError as error:
            raise SiTError(f"{name}: {error.problem}", argument=error.argument, remedy=error.remedy) from error

    def planned_encoder(self, pretraining: Pretraining) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What [`plan_encoder`] says of the models of a pretraining; `None` if it could not start."""
        if pretraining.key not in self._encoders:
            try:
                found = plan_encoder({**pretraining.given, "output_dir": self.folder})
            except SiTError:
                found = None  # the run itself says why
            self._encoders[pretraining.key] = found
        return self._encoders[pretraining.key]

    @cached_property
    def all(self) -> list[Pretraining]:
        """Each once, in the order of the plan."""
        shared: dict[str, list[tuple[Cell, dict[str, Any], int]]] = {}
        for cell in self.plan.cells:
            given, num_steps = self._given(cell)
            shared.setdefault(self._key_of(cell, given), []).append((cell, given, num_steps))
        found = []
        for members in shared.values():
            cell, given, num_steps = members[0]
            every = self._export_steps([each.measured_after for each, _, _ in members], num_steps)
            steps = {"export_steps": every} if every else {}
            if given["monitors"] != ["none"]:
                steps["monitor_steps"] = every or num_steps
            given = {**given, **steps}
            key = self._key_of(cell, given)
            given = {**self._images_of(cell.image_fraction), **given}
            found.append(Pretraining(key, given, num_steps, every, [each for each, _, _ in members]))
        return found

    def _key_of(self, cell: Cell, given: Mapping[str, Any]) -> str:
        """The key of a cell's pretraining. What a cell gives as its default is as if it were not given; and arguments that a later
        version of this package adds change no key."""
        classes, needed = PretrainingFlags.classes(), NEEDED["pretrain"]
        groups = build_arguments(classes, {**needed, **given}, function="pretrain")
        defaults = build_arguments(classes, needed, function="pretrain")
        changed = {
            item.name: value
            for group, other in zip(groups, defaults, strict=True)
            for item in fields(group)
            if (value := getattr(group, item.name)) != getattr(other, item.name)
        }
        return self.key({"pretrain": changed, "image_fraction": cell.image_fraction})

    def of(self, cell: Cell) -> Pretraining:
        """The pretraining that a cell measures."""
        return next(each for each in self.all if cell.name in [other.name for other in each.cells])

    def _given(self, cell: Cell) -> tuple[dict[str, Any], int]:
        """Arguments of a cell's pretraining, without the images, and its steps."""
        base_steps, is_full = self.base["max_steps"], not self._profile
        given = merged(self.base, cell.pretrain, self._profile.get("pretrain", {}))
        if not cell.has_own_length:
            given["max_steps"] = max(1, round(base_steps * cell.length))
        elif not is_full:
            given = merged(given, {"max_steps": base_steps, "num_train_epochs": None})
        steps = given.get("max_steps")
        if steps is None:
            return given, self.planned(f"cell {cell.name}", given, cell.image_fraction).num_steps
        return given, int(steps)

    @staticmethod
    def _export_steps(parts: Sequence[float], num_steps: int) -> int:
        """So many steps that each of the parts of a run ends with one of them, or near it."""
        fractions = [Fraction(part).limit_denominator(MOST_EXPORTS) for part in parts if part < 1]
        if not fractions:
            return 0
        return max(1, num_steps // min(math.lcm(*(each.denominator for each in fractions)), MOST_EXPORTS))

    def _images_of(self, fraction: float) -> dict[str, Any]:
        """The arguments by which pretraining finds its images."""
        images = self.images
        if fraction < 1:
            part = select_label_fraction(images.train, fraction, TEST_SEED)
            images = images.in_memory(part, images.test)
            images.arguments["dataset"].pop("test")
        return {**images.arguments, "validation_split": None}

    def key(self, values: Mapping[str, Any]) -> str:
        """A name for all that the outcome of a run follows from: these values, the images, and the kind of device."""
        named = {name: getattr(self.arguments, name) for name in DatasetArguments.__dataclass_fields__}
        named |= {"dataset": dataset_fingerprint(self.arguments.dataset), "part": self._profile.get("images")}
        named |= self._known_images
        values = {"images": named, "device": choose_device(None).type, **values}
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def run_dir(self, pretraining: Pretraining, seed: int) -> Path:
        """The folder of a pretraining with a seed."""
        return self.folder / f"pretrained-{pretraining.key}-seed{seed}"
