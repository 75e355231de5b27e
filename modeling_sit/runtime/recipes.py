"""Recipes: YAML files of values for arguments, shipped with the package or a user's own."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from modeling_sit.runtime.errors import SiTError

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


class YesOrNo(str):
    """A bare `yes`, `no`, `on` or `off` of a recipe, a boolean in YAML 1.1. It is the word that was written, for arguments
    of words, and a boolean for the others."""

    @property
    def boolean(self) -> bool:
        return self.lower() in ("yes", "on")

    def word(self, choices: Iterable[Any] = ()) -> str:
        """The word that was written, or what it stands for among the choices of an argument: `No` and `off` for `no`, or
        for `none`."""
        choices = list(choices)
        meant = (self.lower(), *(("yes",) if self.boolean else ("no", "none")))
        return str(self) if self in choices else next((word for word in meant if word in choices), str(self))


def plain_no(word: Any) -> Any:
    """`no` for every spelling of it, such as `off` and `No`; anything else stays. For an argument of words or numbers."""
    return "no" if isinstance(word, str) and word.lower() in ("no", "off") else word


class _Loader(yaml.SafeLoader):
    """YAML, with the text of a bare `no`, and an error for a key that is there twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_boolean(loader: _Loader, node: yaml.Node) -> bool | YesOrNo:
    text = loader.construct_scalar(node)
    return text.lower() == "true" if text.lower() in ("true", "false") else YesOrNo(text)


_Loader.add_constructor("tag:yaml.org,2002:bool", _read_boolean)


def _with_booleans(value: Any) -> Any:
    """The value of an argument. Inside a mapping nobody knows of words, so booleans are booleans there."""
    if isinstance(value, dict):
        return {str(key): _with_booleans(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_booleans(inner) for inner in value]
    return value.boolean if isinstance(value, YesOrNo) else value


def shipped_recipes() -> list[str]:
    """Names of the recipes that the package ships."""
    return shipped_names(FOLDER)


def shipped_names(folder: Path) -> list[str]:
    """Names of the YAML files that the package ships in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_recipe(name: str | Path) -> dict[str, Any]:
    """The values of a recipe, by the argument's name.

    Args:
        name (`str` or `Path`): Path of a YAML file, or name of a recipe that the package ships, such as `flowers`.

    Returns:
        `dict[str, Any]`: Values as YAML reads them, but for a bare `yes`, `no`, `on` or `off`, which is a [`YesOrNo`].

    Raises:
        [`SiTError`]: If there is no such file or name, or it does not hold `key: value` lines.
    """
    return read_shipped(name, FOLDER, "recipe")


def read_shipped(name: str | Path, folder: Path, argument: str) -> dict[str, Any]:
    """The values of a YAML file, as [`read_recipe`] reads a recipe.

    Args:
        name (`str` or `Path`): Path of the file, or the name of one that the package ships.
        folder (`Path`): Where the shipped ones are.
        argument (`str`): The argument that names the file, for messages.

    Raises:
        [`SiTError`]: If there is no such file or name, or it does not hold `key: value` lines.
    """
    path = Path(os.path.expanduser(name))
    if not path.is_file() and str(name) in shipped_names(folder):
        path = folder / f"{name}.yaml"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as problem:
        reason = problem.strerror or problem
        raise SiTError(
            f"{name}: {reason}", argument=argument, remedy=f"give a path, or one of {', '.join(shipped_names(folder))}"
        ) from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise SiTError(f"{path} is not valid YAML: {' '.join(str(problem).split())}", argument=argument) from problem
    if not isinstance(values, dict):
        raise SiTError(f"{path} must hold `key: value` lines, one for each argument", argument=argument)
    return {key: _with_booleans(value) if isinstance(value, dict) else value for key, value in values.items()}
