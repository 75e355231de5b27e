"""Arguments of the Python API: keyword arguments and a recipe become the dataclasses that also make the flags."""

import argparse
import dataclasses
import datetime
import difflib
import os
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers.hf_argparser import string_to_bool

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import YesOrNo, read_recipe

# Other names of arguments, in Python, in recipes and on the command line. They stand for the first of these names that
# the function has.
ALIASES = {"max_train_steps": ("max_steps",)}

# Of arguments that say the same, the others would win over the first. Where the first is given on top of a recipe, the
# recipe's others do not count.
REPLACED_IN_RECIPES = {
    "num_train_epochs": ("max_steps", "time_budget"),
    "max_steps": ("time_budget",),
    "warmup_epochs": ("warmup_steps",),
}
# Arguments that stand for fields of the model's configuration. Where one is given on top of a recipe, these fields do not count
# in the recipe's `config_overrides`.
FIELDS_OF = {
    "model_size": ("hidden_size", "num_hidden_layers", "num_attention_heads"),
    "image_size": ("image_size",),
    "patch_size": ("patch_size",),
}
# Arguments that name a place to write to or to read a model from.
PLACES = (
    *("output_dir", "output", "html", "destination", "runs_dir", "resume_from_checkpoint"),
    *("model_name_or_path", "compare_with", "source"),
)


def build_arguments(
    classes: Sequence[type], keywords: Mapping[str, Any], recipe: str | Path | None = None, function: str = ""
) -> tuple[Any, ...]:
    """One instance of each dataclass, from keyword arguments on top of a recipe's values.

    Args:
        classes (sequence of dataclasses): Their fields are the arguments.
        keywords (mapping from `str`): Values by the argument's name.
        recipe (`str` or `Path`, *optional*): As of [`~runtime.recipes.read_recipe`]: defaults for the keywords.
        function (`str`, *optional*): Name of the function that was called, for messages.

    Returns:
        `tuple`: In the order of `classes`.

    Raises:
        `TypeError`: If there is no such argument, it is given twice, or a required one is missing.
        [`SiTError`]: If a value is of the wrong type or out of range, or the recipe has an unknown key.
    """
    fields = [[item for item in dataclasses.fields(each) if item.init] for each in classes]
    known = {item.name: item for own in fields for item in own}
    values = {}
    if recipe is not None:
        for key, value in read_recipe(recipe).items():
            name = argument_name(str(key), known)
            if name not in known:
                raise SiTError(f"{recipe} has an unknown key {key!r}{did_you_mean(name, known)}", argument="recipe")
            if name in values:
                raise SiTError(f"{recipe} gives {name} twice, as {key} too", argument="recipe")
            values[name] = value
    given = {}
    for keyword, value in keywords.items():
        name = argument_name(keyword, known)
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")
        if name in given:
            raise TypeError(f"{function}() got multiple values for argument {name!r}, as {keyword!r} too")
        given[name] = value
    values = without_replaced(values, [name for name, value in given.items() if value is not None]) | given
    missing = [repr(name) for name, item in known.items() if name not in values and _is_required(item)]
    if missing:
        raise TypeError(
            f"{function}() is missing the required argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        )
    instances = []
    for each, own in zip(classes, fields, strict=True):
        hints = get_type_hints(each)
        own_names = [item.name for item in own if item.name in values]
        instances.append(each(**{name: coerce(name, values[name], hints[name]) for name in own_names}))
    return expand_home(instances)


def without_replaced(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A recipe's values that count beside what is given on top of it.

    Args:
        values (mapping from `str`): By the argument's name.
        given (collection of `str`): Names of the arguments on top.

    Returns:
        `dict[str, Any]`: The values without those of [`REPLACED_IN_RECIPES`], and with the `config_overrides` that are left by
        [`FIELDS_OF`].
    """
    replaced = {other for name in given for other in REPLACED_IN_RECIPES.get(name, ())}
    values = {name: value for name, value in values.items() if name not in replaced}
    fields = {field for name in given for field in FIELDS_OF.get(name, ())}
    overrides = values.get("config_overrides")
    if fields and isinstance(overrides, str):
        kept = [each for each in split_assignments(overrides) if each.partition("=")[0].strip() not in fields]
        values["config_overrides"] = ",".join(kept) or None
    return values


def split_assignments(text: str) -> list[str]:
    """The parts of `"hidden_size=64,image_size=[32,64]"`. A comma in brackets separates none."""
    return re.split(r",(?![^\[]*\])", text)


def expand_home(groups: Iterable[Any]) -> tuple[Any, ...]:
    """The same arguments, with the home folder in place of a `~` at the beginning of [`PLACES`]."""
    groups = tuple(groups)
    for group in groups:
        for name in PLACES:
            value = getattr(group, name, None)
            if isinstance(value, str):
                setattr(group, name, os.path.expanduser(value))
            elif isinstance(value, list):
                setattr(group, name, [os.path.expanduser(each) for each in value])
    return groups


def argument_name(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """The name of the argument that `name` stands for: itself, or what it is an alias of."""
    if name in known:
        return name
    return next((other for other in ALIASES.get(name, ()) if other in known), name)


def did_you_mean(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """`; did you mean NAME?` with the closest of the known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def coerce(name: str, value: Any, hint: Any) -> Any:
    """A value in the type of an argument. YAML reads `1e-4` as text; users write 1 for 1.0, and one item for a list.

    Args:
        name (`str`): The argument, for messages.
        value: What was given.
        hint: The argument's type. A type with `takes_text` is called with the value, as argparse does with text. Of types
            other than these, `bool`, `int`, `float`, `str`, `Literal` and lists of them, any value is taken as it is. An
            object in memory is taken for a `str`, such as a dataset for its name.

    Raises:
        [`SiTError`]: If the value cannot be of this type.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    if isinstance(value, YesOrNo):
        choices = [choice for option in options for choice in _choices(option)]
        value = value.boolean if bool in options else value if _is_list(options) else value.word(choices)
    if value is False and bool not in options and any(_takes_no(option) for option in options):
        value = YesOrNo("no").word(choice for option in options for choice in _choices(option))
    if len(options) > 1:
        return value
    (kind,) = options
    if get_origin(kind) is list:
        items = list(value) if isinstance(value, list | tuple) else [value]
        return [coerce(name, item, *get_args(kind)) for item in items]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices):
            raise SiTError(f"{value!r} is none of {', '.join(map(repr, choices))}", argument=name)
        return value
    try:
        if getattr(kind, "takes_text", False):
            return kind(value)
        if kind is bool:
            return string_to_bool(value if isinstance(value, bool) else str(value))
        if kind in (int, float) and not isinstance(value, bool):
            converted = kind(value)
            if kind is float or isinstance(value, str) or converted == value:
                return converted
        # A date is text that YAML took for one.
        if kind is str and isinstance(value, int | float | Path | datetime.date) and not isinstance(value, bool):
            return str(value)
    except (TypeError, ValueError, OverflowError, argparse.ArgumentTypeError):
        pass
    is_simple = value is None or type(value) in (bool, list, tuple, dict)  # a `datasets.DatasetDict` is a dict, too
    if kind in (bool, int, float) or getattr(kind, "takes_text", False) or (kind is str and is_simple):
        remedy = f"for a word, write '{str(value).lower()}' in quotes" if kind is str and value is True else None
        if isinstance(value, dict):
            remedy = "give one value, and no others below it"
        raise SiTError(f"{value!r} is not of type {kind.__name__}", argument=name, remedy=remedy)
    return value


def _choices(option: Any) -> list[Any]:
    if isinstance(option, type) and issubclass(option, Enum):
        return [each.value for each in option]
    return list(get_args(option)) if get_origin(option) is Literal else []


def _is_list(options: Sequence[Any]) -> bool:
    return any(get_origin(option) is list for option in options)


def _takes_no(option: Any) -> bool:
    return option is str or (get_origin(option) is Literal and not {"no", "none"}.isdisjoint(get_args(option)))


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
