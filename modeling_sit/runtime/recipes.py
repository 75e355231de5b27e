"""Recipes: YAML files of values for arguments, shipped with the package or a user's own."""

import os
from pathlib import Path
from typing import Any

import yaml

from modeling_sit.runtime.errors import SiTError

FOLDER = Path(__file__).resolve().parents[1] / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that the package ships."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_recipe(name: str | Path) -> dict[str, Any]:
    """The values of a recipe, by the argument's name.

    Args:
        name (`str` or `Path`): Path of a YAML file, or name of a recipe that the package ships, such as `flowers`.

    Returns:
        `dict[str, Any]`: Values as YAML reads them. `no`, `off` and `false` are `False`.

    Raises:
        [`SiTError`]: If there is no such file or name, or it does not hold `key: value` lines.
    """
    path = Path(os.path.expanduser(name))
    if not path.is_file() and str(name) in shipped_recipes():
        path = FOLDER / f"{name}.yaml"
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        reason = problem.strerror or problem
        raise SiTError(
            f"{name}: {reason}", argument="recipe", remedy=f"give a path, or one of {', '.join(shipped_recipes())}"
        ) from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise SiTError(f"{path} is not valid YAML: {' '.join(str(problem).split())}", argument="recipe") from problem
    if not isinstance(recipe, dict):
        raise SiTError(f"{path} must hold `key: value` lines, one for each argument", argument="recipe")
    return recipe
