"""The doctor: a page on the machine, a dataset, and the run that pretraining would make of them, for whoever reports trouble."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import datasets

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.dense.coco_folders import find_coco_files
from modeling_sit.data.dense.mask_folders import find_pairs
from modeling_sit.data.description import Description, describe, told
from modeling_sit.data.image_datasets import ImageDatasets, dataset_name
from modeling_sit.data.image_sample import read_sample
from modeling_sit.data.sources import load_images
from modeling_sit.hub.machine import describe_machine, describe_size, machine_lines
from modeling_sit.hub.provenance import describe_duration, without_tokens
from modeling_sit.pretraining.dry_run import NUM_MEASURED_STEPS
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.prepare import prepare
from modeling_sit.pretraining.resolve import default_precision
from modeling_sit.pretraining.run import measure_run
from modeling_sit.runtime.accelerator import create_accelerator, end_training, forget_settings
from modeling_sit.runtime.arguments import build_arguments, did_you_mean
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.private_paths import without_private_paths

MAX_PROBLEMS = 5  # unreadable images that are named
MAX_WIDTH = 119
PRIVACY = "Of paths, the page has the dataset's and those of its files, with ~ for the home folder. It has no tokens."


@dataclass
class DoctorArguments(DatasetArguments):
    """What to look at.

    Raises:
        [`SiTError`]: If there is no such method.
    """

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images to look at: a folder, parquet or webdataset tar files, a `save_to_disk` folder, a Hub id, or "
            "`digits`. Default: none; the page is of the machine alone."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Whether to read the dataset as a stream."})
    method: str = field(
        default="sit", metadata={"help": f"Pretraining method of the run to plan: {', '.join(METHODS)}."}
    )
    measure: bool = field(
        default=True,
        metadata={
            "help": "Whether to train a few steps that are thrown away, to say how long a run would take. Without it, the "
            "page has the settings alone."
        },
    )

    def __post_init__(self):
        if self.method not in METHODS:
            problem = f"no method {self.method!r}, only {', '.join(METHODS)}{did_you_mean(self.method, METHODS)}"
            raise SiTError(problem, argument="method")


@dataclass(frozen=True)
class Diagnosis:
    """
    What the doctor found. `str()` of it is the page.

    Args:
        machine (`dict`): As [`describe_machine`] gives it.
        dataset (`dict`, *optional*): Numbers of images, labels, columns, sizes, modes, unreadable images, duplicates.
        run (`dict`, *optional*): What a pretraining run would choose, and take.
        problems (`list[str]`): What went wrong, a line each, with arguments in backticks.
        lines (`list[str]`): The page.
    """

    machine: dict[str, Any]
    dataset: dict[str, Any] | None
    run: dict[str, Any] | None
    problems: list[str]
    lines: list[str]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def as_json(self) -> dict[str, Any]:
        """The facts, as JSON knows them."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "lines"}


def doctor(
    dataset: str | datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | None = None, **arguments: Any
) -> Diagnosis:
    """
    Look at this machine and at a dataset, and plan a run: what to paste into a report of trouble.

    Args:
        dataset (`str` or `datasets.Dataset`, *optional*): The images. Default: the machine alone.
        arguments: Fields of [`DoctorArguments`], such as `measure=False`.

    Returns:
        [`Diagnosis`]: Print it, or take its `machine`, `dataset`, `run` and `problems`. Trouble with the dataset is no
        exception, it is in `problems`.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If an argument has no such value.
    """
    given = {**({} if dataset is None else {"dataset": dataset}), **arguments}
    return run_doctor(*build_arguments((DoctorArguments,), given, function="doctor"))


def run_doctor(arguments: DoctorArguments) -> Diagnosis:
    """As [`doctor`], for arguments that are built."""
    problems: list[str] = []
    machine = describe_machine()
    facts = run = None
    lines = list(machine_lines(machine))
    with told():
        if arguments.dataset is not None:
            facts = _dataset_facts(arguments, problems, lines)
        if facts is not None and "splits" in facts:
            with _noted(problems, "the run"):
                run = _plan(arguments)
                lines += _run_lines(run)
    lines += [f"problem: {problem}" for problem in problems]
    lines += ["problems: none"] if not problems and arguments.dataset is not None else []
    return Diagnosis(machine, facts, run, problems, [*(_public(line) for line in lines), PRIVACY])


@contextmanager
def _noted(problems: list[str], place: str) -> Iterator[None]:
    """Write an error down as a line. Every other exception than ours is a bug, and the page of its reporter is needed most."""
    try:
        yield
    except SiTError as error:
        name = f"`{error.argument}`: " if error.argument is not None else ""
        problems.append(_public(f"{name}{error.problem}{f'; {error.remedy}' if error.remedy else ''}"))
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        problems.append(_public(f"{place}: {type(error).__name__}: {reason} (not foreseen: please report it)"))


def _public(line: str) -> str:
    return without_private_paths(without_tokens(line))


# ---- The dataset


def _dataset_facts(arguments: DoctorArguments, problems: list[str], lines: list[str]) -> dict[str, Any]:
    """What the readers understand of the dataset. Adds to the problems and to the page."""
    facts: dict[str, Any] = {"name": _public(dataset_name(arguments.dataset))}
    with _noted(problems, "the dataset"):
        images = load_images(arguments.dataset, streaming=arguments.streaming, **_for_loading(arguments))
        arguments.check_intensity_range()
        description = describe(images, intensity_range=arguments.intensity_range, is_thorough=True)
        lines += ["", *description.lines(), *_more_lines(images, description)]
        facts |= _facts_of(images, description)
        unreadable = list(description.sample.problems)
        if images.train is not None and isinstance(images.validation, datasets.Dataset):
            unreadable += read_sample(replace(images, train=None), is_thorough=True).problems
        facts["unreadable"] = [_public(problem) for problem in unreadable]
        problems += [_public(f"an image cannot be read: {problem}") for problem in unreadable[:MAX_PROBLEMS]]
        if len(unreadable) > MAX_PROBLEMS:
            problems.append(f"{len(unreadable) - MAX_PROBLEMS:,} more images cannot be read")
        problems += [line.strip().removeprefix("warning: ") for line in description.lines() if "warning: " in line]
    with _noted(problems, "boxes and masks"):
        facts["annotations"] = _annotations(arguments)
        lines += [f"  {name}: {', '.join(splits)}" for name, splits in facts["annotations"].items() if splits]
    return facts


def _for_loading(arguments: DoctorArguments) -> dict[str, Any]:
    return {name: value for name, value in arguments.for_loading.items() if name != "dataset"}


def _more_lines(images: ImageDatasets, description: Description) -> Iterator[str]:
    yield f"  columns: images in {images.image_column}, " + (
        f"labels in {images.label_column}" if images.label_column is not None else "no labels"
    )
    modes = sorted({image.mode for image in description.sample.images})
    if modes:
        yield f"  modes: {', '.join(modes)}; {len(description.sample.images):,} images were read"
    if description.duplicates is None:
        yield "  duplicates: not searched, the dataset is a stream or too large"
    elif not description.duplicates:
        yield "  duplicates: none, byte for byte"


def _facts_of(images: ImageDatasets, description: Description) -> dict[str, Any]:
    sample = description.sample.images
    names = images.label_names
    splits = {}
    for split in description.splits:
        counts = split.counts.tolist() if split.has_labels else None
        splits[split.name] = {
            "num_images": split.num_images,
            "num_unlabeled": split.num_unlabeled,
            "origin": split.origin,
            "labels": None if counts is None or names is None else dict(zip(names, counts, strict=True)),
        }
    duplicates = description.duplicates
    return {
        "splits": splits,
        "unused_splits": description.unused,
        "is_streamed": description.is_streamed,
        "multi_label": images.multi_label,
        "image_column": images.image_column,
        "label_column": images.label_column,
        "num_sampled": len(sample) + len(description.sample.problems),
        "heights": _range(image.height for image in sample),
        "widths": _range(image.width for image in sample),
        "modes": {mode: sum(image.mode == mode for image in sample) for mode in sorted({i.mode for i in sample})},
        "bits": sorted({image.bits for image in sample}),
        "num_with_more_frames": sum(image.has_more for image in sample),
        "duplicates": None
        if duplicates is None
        else [
            {"number": each.number, "split": each.split, "other": each.other, "names": list(map(_public, each.names))}
            for each in duplicates
        ],
        "notes": list(map(_public, description.notes)),
    }


def _range(values: Iterator[int]) -> dict[str, int] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}


def _annotations(arguments: DoctorArguments) -> dict[str, list[str]]:
    """Splits of a folder that have boxes in COCO's form, and those that have masks."""
    name = arguments.dataset
    folder = os.path.abspath(os.path.expanduser(name)) if isinstance(name, str) and name != "digits" else ""
    if not os.path.isdir(folder):
        return {}
    return {
        "boxes in COCO's form": list(find_coco_files(folder)),
        "masks of pixels": list(find_pairs(folder)),
    }


# ---- The run


def _plan(arguments: DoctorArguments) -> dict[str, Any]:
    """What a pretraining run with nothing but a dataset would choose, and how long it would take here."""
    given = {
        "dataset": arguments.dataset,
        "output_dir": "outputs",  # nothing is written
        "method": arguments.method,
        "streaming": arguments.streaming,
        "intensity_range": arguments.intensity_range,
        **_for_loading(arguments),
        "monitors": "none",
        "preview_steps": 0,
    }
    flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, function="doctor"))
    accelerator = create_accelerator(mixed_precision=default_precision(flags, {}))
    try:
        run = prepare(flags, accelerator)
        plan = {
            "method": arguments.method,
            "preset": run.flags.run.preset,
            "choices": {each.name: {"value": each.value, "reason": each.reason} for each in run.preset.choices},
            "device": accelerator.device.type,
            "precision": str(accelerator.mixed_precision),
            "parameters": sum(parameter.numel() for parameter in run.method.student.parameters()),
            "backbone_parameters": sum(parameter.numel() for parameter in run.method.student.vit.parameters()),
            "steps": run.schedules.num_steps,
        }
        if arguments.measure:
            measured = measure_run(run)
            plan |= {
                "seconds_per_step": measured.seconds_per_step,
                "data_wait": measured.waited / measured.seconds_per_step,
                "seconds": measured.seconds_per_step * run.schedules.num_steps,
                "peak_memory": measured.peak_memory,
            }
    finally:
        end_training(accelerator)
        forget_settings()
    return plan


def _run_lines(run: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"pretraining by {run['method']} on {run['device']}, precision {run['precision']}, preset {run['preset']} chooses:"
    yield from _wrapped([f"{name} {_text(choice['value'])}" for name, choice in run["choices"].items()])
    yield (
        f"model: {run['parameters'] / 1e6:.2f} M parameters in training, {run['backbone_parameters'] / 1e6:.2f} M of them in "
        "the backbone"
    )
    if "seconds" in run:
        yield (
            f"time: {run['steps']:,} steps of {run['seconds_per_step']:.3g} s are about {describe_duration(run['seconds'])}, "
            f"data wait {run['data_wait']:.0%} (median of {NUM_MEASURED_STEPS} steps at most; checkpoints, previews and "
            "monitors not counted)"
        )
        yield f"peak memory: {describe_size(run['peak_memory'])}"


def _wrapped(items: list[str]) -> Iterator[str]:
    """The items in lines of a width that a terminal and an issue show."""
    line = " "
    for number, item in enumerate(items):
        item += "," if number + 1 < len(items) else ""
        if len(line) + 1 + len(item) > MAX_WIDTH:
            yield line
            line = " "
        line += f" {item}"
    yield line


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
