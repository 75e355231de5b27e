"""A plan of an ablation: a question, and the cells that answer it, each a few arguments of pretraining.

A plan is a YAML file:

```yaml
question: What fills the corrupted blocks best?
pretrain:            # arguments of `pretrain` that all cells share
  preset: auto
factors:             # each combination of their values is a cell
  corruption:
    noise: {corruption: noise}
    replace: {corruption: replace}
```

`cells` names each cell with its arguments. `factors` gives every combination of the values of several factors; a factor that is
called like an argument of `pretrain` may have a list of that argument's values. `grids` is a list of such factors, where not
every combination is wanted.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.pretraining.flags import PretrainingFlags, check_method
from modeling_sit.runtime.arguments import argument_name, build_arguments, did_you_mean, without_replaced
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import read_shipped

FOLDER = Path(__file__).resolve().parents[1] / "plans"
# What a cell says beside arguments of pretraining, and what it is where the cell does not say it.
OWN_NUMBERS: Mapping[str, float] = {"length": 1.0, "measured_after": 1.0, "image_fraction": 1.0}
# Of each command that a cell runs, the argument dataclasses.
COMMANDS: Mapping[str, tuple[type, ...]] = {
    "pretrain": PretrainingFlags.classes(),
    "evaluate": (EvaluationArguments, DatasetArguments, ProtocolArguments),
    "finetune": (FinetuningArguments, FinetuningTrainingArguments, HubArguments),
}
# What they cannot do without, for checks of the others.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {"dataset": "", "output_dir": ""},
    "evaluate": {"dataset": "", "model_name_or_path": ""},
    "finetune": {"dataset": "", "model_name_or_path": "", "output_dir": "."},
}
# What the ablation itself says: which images, which seed, where, and what is measured.
NOT_OF_CELLS = {
    *(item.name for each in (DatasetArguments, HubArguments) for item in fields(each)),
    *("output_dir", "overwrite_output_dir", "seed", "time_budget", "resume_from_checkpoint", "allow_changed_settings"),
    *(
        "dry_run",
        "export_steps",
        "from_scratch",
        "label_fraction",
        "protocols",
        "test_split",
        "monitors",
        "monitor_steps",
    ),
}
# Arguments of the ablation that a plan may give.
MEASURES = ("seeds", "protocols", "label_fractions", "raw_pixels", "finetuning_recipe", "pretraining_recipe", "steps")
CELLS_OF = ("cells", "factors", "grids")
KEYS = ("question", "claim", "monitors", *COMMANDS, *MEASURES, *CELLS_OF)
NUMBER_OF_LENGTHS = ("max_steps", "num_train_epochs")


@dataclass(frozen=True)
class Cell:
    """
    One variant of the method.

    Args:
        name (`str`): Its name in the plan.
        place (mapping from `str` to `str`): Its value of each factor.
        pretrain, evaluate, finetune (mappings): Arguments of these commands that are its own.
        length (`float`): Steps of pretraining, as a multiple of the plan's.
        measured_after (`float`): Which part of these steps the measured model has seen, in (0, 1].
        image_fraction (`float`): Which part of the training images pretraining reads, in (0, 1].
    """

    name: str
    place: Mapping[str, str]
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)
    length: float = 1.0
    measured_after: float = 1.0
    image_fraction: float = 1.0

    @property
    def has_own_length(self) -> bool:
        """Whether it says how long pretraining takes by an argument of `pretrain`."""
        return any(self.pretrain.get(name) is not None for name in NUMBER_OF_LENGTHS)


@dataclass(frozen=True)
class Plan:
    """
    A question, and what answers it.

    Args:
        name (`str`): Of the file.
        question (`str`): What the plan answers.
        claim (`str`, *optional*): What the paper says.
        shared (mapping from `str` to mapping): By command, the arguments of all cells.
        measures (mapping): Arguments of the ablation that the plan gives, such as seeds.
        monitors (`list[str]`): Monitors whose values at the end of pretraining are reported.
        cells (`list[Cell]`): In the order of the file.
    """

    name: str
    question: str
    claim: str | None
    shared: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Any]
    monitors: list[str]
    cells: list[Cell]

    @property
    def factors(self) -> dict[str, list[str]]:
        """The values of each factor, in the order of the cells."""
        names = dict.fromkeys(name for cell in self.cells for name in cell.place)
        return {name: list(dict.fromkeys(cell.place[name] for cell in self.cells)) for name in names}


def read_plan(name: str | Path) -> Plan:
    """Read and check a plan. Nothing is run.

    Args:
        name (`str` or `Path`): Path of a YAML file, or the name of a plan that the package ships.

    Raises:
        [`SiTError`]: If there is no such plan, or something in it cannot be, with its place there.
    """
    values = read_shipped(name, FOLDER, "plan")
    for key in values:
        if key not in KEYS:
            raise _error(f"has an unknown key {key!r}{did_you_mean(str(key), KEYS)}")
    if not isinstance(values.get("question"), str):
        raise _error("has no `question`", remedy="say in a sentence what the plan answers")
    given = [key for key in CELLS_OF if key in values]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else f"has none of {', '.join(CELLS_OF)}"
        raise _error(f"{found}, and one of them says which cells there are")
    shared = {command: _mapping(values.get(command), command) for command in COMMANDS}
    for command, settings in shared.items():
        shared[command] = _checked_names(command, settings, f"`{command}`")
    measures = {key: values[key] for key in MEASURES if values.get(key) is not None}
    monitors = values.get("monitors") or []
    monitors = monitors if isinstance(monitors, list) else [monitors]
    monitors = [name for names in monitors for name in str(names).split(",")]
    cells = list(_read_cells(given[0], values[given[0]]))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise _error(f"has two cells called {twice!r}", remedy="give each a name of its own")
    if not cells:
        raise _error(f"has no cells in {given[0]}")
    plan = Plan(Path(name).stem, values["question"], values.get("claim"), shared, measures, monitors, cells)
    _check_values(plan)
    return plan


def merged(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, later ones before earlier ones, but for `config_overrides`, to which each group adds its own. A number of epochs
    takes the place of an earlier number of steps, and a size that of earlier overrides, as on top of a recipe."""
    values: dict[str, Any] = {}
    for group in groups:
        values = without_replaced(values, [name for name, value in group.items() if value is not None])
        overrides = [each for each in (values.get("config_overrides"), group.get("config_overrides")) if each]
        values |= group
        if overrides:
            values["config_overrides"] = ",".join(overrides)
    return values


def choose_cells(plan: Plan, names: Sequence[str] | None) -> list[Cell]:
    """The cells of these names, in the order of the plan; all of them for `None`.

    Raises:
        [`SiTError`]: If there is none of a name.
    """
    known = [cell.name for cell in plan.cells]
    for name in names or ():
        if name not in known:
            raise SiTError(
                f"{plan.name} has no cell {name!r}, only {', '.join(known)}{did_you_mean(name, known)}",
                argument="cells",
            )
    return [cell for cell in plan.cells if names is None or cell.name in names]


def _read_cells(kind: str, value: Any) -> Iterator[Cell]:
    if kind == "cells":
        grids = [{"cell": _mapping(value, kind)}]
    else:
        grids = value if kind == "grids" else [value]
        if not isinstance(grids, list):
            raise _error(f"{kind} must be a list of factors, got {grids!r}")
    for grid in grids:
        factors = {str(name): _read_values(str(name), values) for name, values in _mapping(grid, kind).items()}
        for choice in itertools.product(*factors.values()):
            place = {name: label for name, (label, _, _) in zip(factors, choice, strict=True)}
            yield _read_cell("/".join(part for _, part, _ in choice), place, [settings for _, _, settings in choice])


def _read_values(factor: str, values: Any) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Of each value of a factor its label, its part of the cells' names, and its arguments."""
    if isinstance(values, Mapping):
        return [
            (str(label), str(label), _mapping(settings, f"{factor}: {label}")) for label, settings in values.items()
        ]
    known = {*OWN_NUMBERS, *_argument_names("pretrain")}
    if not isinstance(values, list):
        raise _error(f"{factor} must be a list of values, or give arguments for each of its values, got {values!r}")
    if argument_name(factor, known) not in known:
        raise _error(
            f"{factor} has a list of values, and is no argument of `pretrain`{did_you_mean(factor, known)}",
            remedy="give arguments for each value",
        )
    return [
        (_label(value), value if isinstance(value, str) else f"{factor}={_label(value)}", {factor: value})
        for value in values
    ]


def _label(value: Any) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_cell(name: str, place: Mapping[str, str], groups: Sequence[Mapping[str, Any]]) -> Cell:
    if "," in name:
        raise _error(f"calls a cell {name!r}: a comma is between names", remedy="give it a name without one")
    numbers, settings = dict(OWN_NUMBERS), {command: {} for command in COMMANDS}
    for group in groups:
        own: dict[str, Any] = {}
        for key, value in group.items():
            if key in OWN_NUMBERS:
                numbers[key] = _number(name, key, value)
            elif key in COMMANDS:
                part = _checked_names(key, _mapping(value, f"{name}: {key}"), f"cell {name}")
                settings[key] = merged(settings[key], part)
            else:
                own[key] = value
        settings["pretrain"] = merged(settings["pretrain"], _checked_names("pretrain", own, f"cell {name}"))
    cell = Cell(name, place, **settings, **numbers)
    if cell.has_own_length and cell.length != 1:
        raise _error(
            f"cell {name}: `length` and a number of steps or epochs of its own say the same", remedy="leave one out"
        )
    return cell


def _number(cell: str, key: str, value: Any) -> float:
    most = math.inf if key == "length" else 1
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most or math.isinf(value):
        allowed = "a number above 0" if key == "length" else "in (0, 1]"
        raise _error(f"cell {cell}: {key} must be {allowed}, got {value!r}")
    return float(value)


def _checked_names(command: str, settings: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The arguments under their own names.

    Raises:
        [`SiTError`]: If there is no such argument, or it is not for cells.
    """
    known, found = _argument_names(command), {}
    for key, value in settings.items():
        name = argument_name(str(key), known)
        if name not in known:
            allowed = [*(each for each in known if each not in NOT_OF_CELLS), *OWN_NUMBERS]
            raise _error(f"{place}: {command} has no argument {key!r}{did_you_mean(str(key), allowed)}")
        if name in NOT_OF_CELLS or (name == "model_name_or_path" and command != "pretrain"):
            raise _error(f"{place}: {key} is the same for all cells, and the ablation sets it", remedy="leave it out")
        found[name] = value
    return found


def _argument_names(command: str) -> list[str]:
    return [item.name for each in COMMANDS[command] for item in fields(each) if item.init]


def _check_values(plan: Plan) -> None:
    """Raise [`SiTError`] if an argument has a value that cannot be."""
    for command, classes in COMMANDS.items():
        for cell in plan.cells:
            own = getattr(cell, command)
            if not own and cell is not plan.cells[0]:  # nothing but what is shared, which the first cell has too
                continue
            try:
                given = {**NEEDED[command], **merged(plan.shared[command], own)}
                groups = build_arguments(classes, given, function=command)
                if command == "pretrain":
                    check_method(PretrainingFlags(*groups))
            except SiTError as error:
                raise _error(f"cell {cell.name}: {error}") from error


def _mapping(value: Any, place: str) -> dict[str, Any]:
    """A mapping, empty where the file has nothing.

    Raises:
        [`SiTError`]: If it is none.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _error(f"{place} must hold `key: value` lines, got {value!r}")
    return dict(value)


def _error(problem: str, remedy: str | None = None) -> SiTError:
    return SiTError(problem, argument="plan", remedy=remedy)
