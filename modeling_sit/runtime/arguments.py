"""Arguments of the Python API: keyword arguments and a recipe become the dataclasses that also make the flags."""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import read_recipe

# Other names of arguments, in Python, in recipes and on the command line. They stand for the first of these names that
# the function has.
ALIASES = {"max_train_steps": ("max_steps",)}


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
        `TypeError`: If there is no such argument, or a required one is missing.
        [`SiTError`]: If a value is of the wrong type or out of range, or the recipe has an unknown key.
    """
    known = {item.name: hints[item.name] for hints, item in _fields(classes)}
    values = {}
    if recipe is not None:
        for name, value in read_recipe(recipe).items():
            if argument_name(name, known) not in known:
                raise SiTError(f"{recipe} has an unknown key {name!r}{did_you_mean(name, known)}", argument="recipe")
            values[argument_name(name, known)] = value
    for name, value in keywords.items():
        if argument_name(name, known) not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}")
        values[argument_name(name, known)] = value
    required = [item.name for _, item in _fields(classes) if _is_required(item) and item.name not in values]
    if required:
        raise TypeError(f"{function}() misses the required argument {required[0]!r}")
    return tuple(
        each(**{item.name: coerce(item.name, values[item.name], known[item.name]) for item in _own(each, values)})
        for each in classes
    )


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
    """A value in the type of an argument: YAML reads `1e-4` as text, and users write 1 for 1.0 and one item for a list.

    Args:
        name (`str`): The argument, for messages.
        value: What was given.
        hint: The argument's type. Of types other than `bool`, `int`, `float`, `str`, `Literal` and lists of these, any value
            is taken as it is.

    Raises:
        [`SiTError`]: If the value cannot be of this type.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    if len(options) > 1:
        return value
    (kind,) = options
    if get_origin(kind) is list:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return [coerce(name, item, *get_args(kind)) for item in items]
    if get_origin(kind) is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False and "no" in get_args(kind) else value
        if value not in get_args(kind):
            raise SiTError(f"{value!r} is none of {', '.join(map(repr, get_args(kind)))}", argument=name)
        return value
    if kind not in (bool, int, float, str):
        return value
    if kind is str and isinstance(value, (bool, int, float)):
        return "no" if value is False else str(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if kind is str:  # such as a dataset in memory
        return value
    if isinstance(value, bool) == (kind is bool):
        try:
            converted = kind(value)
        except (TypeError, ValueError):
            pass
        else:
            if kind is not int or converted == float(value):
                return converted
    raise SiTError(f"{value!r} is not of type {kind.__name__}", argument=name)


def _fields(classes: Sequence[type]) -> list[tuple[dict[str, Any], dataclasses.Field]]:
    return [(get_type_hints(each), item) for each in classes for item in dataclasses.fields(each) if item.init]


def _own(each: type, values: Mapping[str, Any]) -> list[dataclasses.Field]:
    return [item for item in dataclasses.fields(each) if item.init and item.name in values]


def _is_required(item: dataclasses.Field) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
