"""From what the user asks for to all settings of a run: what a preset chooses, and what a run that goes on has already."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.image_facts import ImageFacts, read_image_facts
from modeling_sit.interop.convert_in import find_format
from modeling_sit.interop.load import read_config
from modeling_sit.pretraining.arguments import ModelArguments, parse_time
from modeling_sit.pretraining.checkpoints import STATE_FILE, list_checkpoints
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.model_setup import parse_config_overrides
from modeling_sit.pretraining.presets import EVERYTHING, PAPER, STEPS, Choice, Facts, choose, look_up
from modeling_sit.pretraining.resume_check import FIRST_INITIALIZATION
from modeling_sit.pretraining.schedules import require_length
from modeling_sit.runtime.accelerator import is_on
from modeling_sit.runtime.errors import SiTError

PRECISION_OF_THE_LAUNCH = "ACCELERATE_MIXED_PRECISION"
# What a checkpoint's weights are made for: of a plain ViT, and of a SiT with its heads.
BACKBONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_channels")
PAIRS = ("image_size", "patch_size")  # of height and width, where these differ
HEADS = ("decoder_hidden_size", "projection_hidden_size", "projection_size", "reconstruction_weight")
# Images of which none can be read: the run will say so.
UNKNOWN_SIZE = 224


@dataclass
class Resolved:
    """
    Arguments without open ends.

    Args:
        flags ([`PretrainingFlags`]): What the user asked for; the rest by preset.
        chosen (`dict`): What the preset chose, by name: arguments, and fields of the configuration.
        choices (sequence of [`Choice`]): Of these the new ones, with their reasons. Those of a checkpoint are not new.
    """

    flags: PretrainingFlags
    chosen: dict[str, Any]
    choices: Sequence[Choice]


def recall_choices(flags: PretrainingFlags) -> tuple[PretrainingFlags, dict[str, Any]]:
    """What the preset chose when the run that goes on was begun.

    Returns:
        `tuple`: The arguments, with preset and time budget of the run, and its choices by name, but for the length and the
        warm-up that are given anew; none for a run from the start.

    Raises:
        [`SiTError`]: If the run was begun with another preset or time budget.
    """
    asked = flags.run.resume_from_checkpoint
    if asked is None:
        return flags, {}
    paths = reversed(list_checkpoints(Path(flags.run.output_dir))) if asked == "auto" else [Path(asked)]
    for path in paths:
        try:
            state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            settings, determined_by = state["settings"], state["determined_by"]
            preset = settings.get("preset")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # another one may be whole; whether any is, is checked later
        if preset is None:  # of before there were presets, and perhaps of before there was a choice of first weights
            chosen = {} if "initialization" in determined_by else {"initialization": FIRST_INITIALIZATION}
            return replace(flags, run=replace(flags.run, preset="paper")), chosen
        if not flags.run.allow_changed_settings:
            _check_same(flags, path, settings)
        if preset != flags.run.preset:
            return flags, {}
        # Runs that began from a model without heads did not choose them, in earlier versions.
        heads = HEADS if settings.get("model_name_or_path") is not None else ()
        chosen = {name: determined_by[name] for name in heads if name in determined_by} | state.get("chosen", {})
        return _still_chosen(flags, settings, chosen)
    return flags, {}


def _still_chosen(
    flags: PretrainingFlags, settings: Mapping[str, Any], chosen: Mapping[str, Any]
) -> tuple[PretrainingFlags, dict[str, Any]]:
    """The arguments with the time budget of the run that goes on, and what the user does not give anew of its choices."""
    run = flags.run
    new = {
        name for name in ("num_train_epochs", "warmup_epochs") if getattr(run, name) not in (None, settings.get(name))
    }
    if not _is_same_time(run.time_budget, settings):
        new.add("time_budget")
    answered = {"warmup_steps"} if "warmup_epochs" in new else set()
    if "time_budget" in new or (run.time_budget is None and "num_train_epochs" in new):
        answered.add("max_steps")
    chosen = {name: value for name, value in chosen.items() if name not in answered}
    if run.time_budget is None and run.max_steps is None and "max_steps" in chosen:
        flags = replace(flags, run=replace(run, time_budget=settings.get("time_budget")))
    return flags, chosen


def _is_same_time(time_budget: str | None, settings: Mapping[str, Any]) -> bool:
    saved = settings.get("time_budget")
    return time_budget is None or (saved is not None and parse_time(saved) == parse_time(time_budget))


def _check_same(flags: PretrainingFlags, path: Path, settings: Mapping[str, Any]) -> None:
    if flags.run.preset != settings["preset"]:
        raise SiTError(
            f"{flags.run.preset}, but {path} is of a run with {settings['preset']}",
            argument="preset",
            remedy=f"set it to {settings['preset']}",
        )
    if not _is_same_time(flags.run.time_budget, settings):
        raise SiTError(
            f"the length of a run is settled at its start, and that of {path} was begun with "
            f"{settings.get('time_budget') or 'a number of steps'}",
            argument="time_budget",
            remedy="leave it out, or give the run another length by `allow_changed_settings`",
        )


def default_precision(flags: PretrainingFlags, chosen: Mapping[str, Any]) -> str | None:
    """The precision to make the accelerator with: the user's, that of the run that goes on, or of a new run with the preset
    `auto` bfloat16 on GPUs that have it. `None` leaves it to the launch."""
    asked = flags.run.mixed_precision or chosen.get("mixed_precision")
    is_new = asked is None and not chosen  # a run that was begun on a CPU has no choice of a precision
    is_open = is_new and flags.run.preset == "auto" and PRECISION_OF_THE_LAUNCH not in os.environ
    if is_open and torch.cuda.is_available() and not is_on(os.environ, "ACCELERATE_USE_CPU"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return asked


def resolve(
    flags: PretrainingFlags, images: ImageDatasets, accelerator: Accelerator, chosen: Mapping[str, Any]
) -> Resolved:
    """Settle what the user leaves open.

    Args:
        flags ([`PretrainingFlags`]): What the user asked for.
        images ([`ImageDatasets`]): To train on.
        accelerator (`Accelerator`): Knows device and processes.
        chosen (mapping): What is chosen already, of [`recall_choices`] or by a measurement.

    Raises:
        [`SiTError`]: If a length is missing that cannot be chosen, or a size of the model is none.
    """
    _check_sizes(flags.model)
    time_budget = flags.run.time_budget
    if time_budget is not None:  # it decides the length, whatever a recipe says
        flags = replace(flags, run=replace(flags.run, max_steps=None))
    flags = with_values(flags, chosen)
    if time_budget is None:
        require_length(flags.run, images.num_train)
    method = METHODS[flags.run.method]
    if flags.run.preset == "paper":
        others = settings_of_others(method)
        paper = {name: value for name, value in {**PAPER, **method.paper}.items() if name not in others}
        values = _open_values(paper, flags)
        if time_budget is not None and images.num_train is None:  # its epochs are no length until steps are measured
            kind = "cpu" if accelerator.device.type == "cpu" else "gpu"
            values["max_steps"] = look_up(STEPS[kind], EVERYTHING)
        return Resolved(with_values(flags, {**_defaults(method, flags.model), **values}), dict(chosen), [])
    facts = Facts(
        images=read_image_facts(images, intensity_range=flags.run.intensity_range)
        or ImageFacts(images.num_train, UNKNOWN_SIZE, UNKNOWN_SIZE, 3),
        device_type=accelerator.device.type,
        num_processes=accelerator.num_processes,
        has_bf16=accelerator.mixed_precision == "bf16" and PRECISION_OF_THE_LAUNCH not in os.environ,
        time_budget=None if time_budget is None else parse_time(time_budget),
        is_streamed=isinstance(images.train, datasets.IterableDataset),
    )
    choices = choose(facts, settled(flags), method, settings_of_others(method))
    values = {choice.name: choice.value for choice in choices}
    values_of_all = {**_defaults(method, flags.model), **values}
    return Resolved(with_values(flags, values_of_all), {**chosen, **values}, choices)


def _defaults(method: type[Method], arguments: ModelArguments) -> dict[str, Any]:
    """The method's own defaults. Where a run starts from a model whose features are the mean of the patches, as those of masked
    image modeling are, and the method trains the token, the features are of the token again."""
    name, defaults = arguments.model_name_or_path, dict(method.defaults)
    is_open = name is not None and "pooling" not in defaults
    if is_open and find_format(name) == SiTConfig.model_type and read_config(name).get("pooling") == "mean":
        defaults["pooling"] = SiTConfig.pooling
    return defaults


def settings_of_others(method: type[Method]) -> frozenset[str]:
    """Names of the settings that other methods have, and this one has not."""
    return frozenset().union(*(other.setting_names() for other in METHODS.values())) - method.setting_names()


def _check_sizes(arguments: ModelArguments) -> None:
    """Raise [`SiTError`] if the choices would have to fit a size that is no size."""
    for name, value in parse_config_overrides(arguments.config_overrides).items():
        if name in BACKBONE and not _is_size(value, can_be_pair=name in PAIRS):
            raise SiTError(f"{name} must be a whole number from 1 on, got {value!r}", argument="config_overrides")
    for name in PAIRS:
        value = getattr(arguments, name)
        if value is not None and not _is_size(value, can_be_pair=False):
            raise SiTError(f"must be a whole number from 1 on, got {value!r}", argument=name)


def _is_size(value: Any, can_be_pair: bool) -> bool:
    if can_be_pair and isinstance(value, list | tuple):
        return len(value) == 2 and all(_is_size(side, can_be_pair=False) for side in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _open_values(values: Mapping[str, Any], flags: PretrainingFlags) -> dict[str, Any]:
    """The paper's values that do not answer what the user has answered otherwise."""
    answered = {"warmup_epochs"} if flags.run.warmup_steps is not None else set()
    return {name: value for name, value in values.items() if name not in answered}


def settled(flags: PretrainingFlags) -> dict[str, Any]:
    """Arguments and fields of the configuration that have a value, by name: the user's, and those of the checkpoint that
    the run starts from."""
    values = {**_of_the_checkpoint(flags.model)}
    groups = (getattr(flags, group.name) for group in fields(flags))
    given = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    values |= {name: value for name, value in given.items() if value is not None}
    return {**values, **parse_config_overrides(flags.model.config_overrides)}


def _of_the_checkpoint(arguments: ModelArguments) -> dict[str, Any]:
    name = arguments.model_name_or_path
    if name is None:
        return {}
    saved = read_config(name, network=arguments.network, num_attention_heads=arguments.num_attention_heads)
    try:
        config = SiTConfig.from_dict(saved)
    except (ValueError, TypeError) as problem:
        raise SiTError(f"the model's configuration: {problem}") from problem
    # Weights of the authors' code have heads, and those of other networks and of the other methods have none.
    if find_format(name) == SiTConfig.model_type:
        has_heads = SiTForPreTraining.__name__ in (saved.get("architectures") or [SiTForPreTraining.__name__])
        names = BACKBONE + (HEADS if has_heads else ())
    else:
        names = BACKBONE + tuple(head for head in HEADS if head in saved)
    return {field: getattr(config, field) for field in names}


def with_values(flags: PretrainingFlags, values: Mapping[str, Any]) -> PretrainingFlags:
    """The arguments with these values where they have none, and with fields of the configuration before the user's own
    `config_overrides`."""
    groups, arguments = {}, set()
    for item in fields(flags):
        group = getattr(flags, item.name)
        own = {field.name for field in fields(group)} - {"num_attention_heads"}  # that one is of a file of weights
        arguments |= own
        groups[item.name] = replace(
            group, **{name: values[name] for name in own & values.keys() if getattr(group, name) is None}
        )
    overrides = flags.model.config_overrides
    given = parse_config_overrides(overrides)
    chosen = [f"{name}={value}" for name, value in values.items() if name not in arguments and name not in given]
    if chosen:
        text = ",".join([*chosen, *([overrides] if overrides else [])])
        groups["model"] = replace(groups["model"], config_overrides=text)
    return PretrainingFlags(**groups)


def describe_choices(choices: Sequence[Choice], preset: str) -> str:
    """A line for each choice of a preset with its reason, to print."""
    if not choices:
        return ""
    lines = [f"  {choice.name} {_text(choice.value)}: {choice.reason}" for choice in choices]
    return "\n".join([f"preset {preset}, for what you left open:", *lines])


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
