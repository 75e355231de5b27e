"""Flags and recipes: dataclasses give the flags, a YAML recipe gives defaults, flags override it."""

import argparse
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from modeling_sit.cli.errors import is_reporting_rank, with_flags
from modeling_sit.runtime.errors import SiTError


class RecipeArgumentParser(HfArgumentParser):
    """transformers' dataclass parser with an optional YAML recipe in front, and errors of one line."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self.add_argument(
            "recipe", nargs="?", metavar="RECIPE.yaml", help="YAML file of defaults for the flags; flags override it."
        )

    @property
    def flags(self) -> set[str]:
        """Names of all flags, without dashes."""
        return {option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")}

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n" if is_reporting_rank() else None)

    def parse(self, argv: list[str] | None = None) -> tuple[Any, ...]:
        """Parse `[RECIPE.yaml] --flag value ...` into the dataclasses, one instance each, in their order.

        Args:
            argv (`list[str]`, *optional*): The command line without the program's name. Default: `sys.argv[1:]`.

        Raises:
            `SystemExit`: With code 2 and one line on stderr, for an unknown flag or key or a value of the wrong type.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        if argv and not argv[0].startswith("-"):
            argv = self._recipe_as_flags(Path(argv[0])) + argv[1:]
        try:
            *parsed, rest, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except SiTError as problem:
            self.error(" ".join(with_flags(problem, self.flags).split()))
        except ValueError as problem:
            self.error(" ".join(str(problem).split()))
        if unknown:
            self.error(f"unknown flag {unknown[0]}{self._did_you_mean(unknown[0])}")
        if rest.recipe is not None:
            self.error(f"unexpected argument {rest.recipe!r}: a recipe comes first, and every flag starts with --")
        return tuple(parsed)

    def _recipe_as_flags(self, path: Path) -> list[str]:
        try:
            recipe = yaml.safe_load(path.read_text())
        except OSError as problem:
            self.error(f"recipe {path}: {problem.strerror or problem}")
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            self.error(f"recipe {path} is not valid YAML: {' '.join(str(problem).split())}")
        if not isinstance(recipe, dict):
            self.error(f"recipe {path} must hold `key: value` lines, one for each flag")
        flags: list[str] = []
        for key, value in recipe.items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None or action.dest == "help":
                self.error(f"recipe {path}: unknown key {key!r}{self._did_you_mean(f'--{key}')}")
            if isinstance(value, dict) or (isinstance(value, list) and action.nargs != "+"):
                self.error(f"recipe {path}: {key} takes one value, got {value}")
            if value is None:
                if action.default is not None:
                    self.error(f"recipe {path}: {key} has no value; leave it out for its default, {action.default}")
            elif isinstance(value, list):
                flags += [f"--{key}", *(str(item) for item in value)]
            else:
                flags.append(f"--{key}={value}")
        return flags

    def _did_you_mean(self, flag: str) -> str:
        close = difflib.get_close_matches(flag.split("=")[0], self._option_string_actions, n=1)
        return f"; did you mean {close[0]}?" if close else ""


def choose_command(
    commands: Mapping[str, str], description: str, argv: list[str] | None = None
) -> tuple[str, list[str]]:
    """The command that a program's first argument names, and the arguments behind it.

    Args:
        commands (`Mapping[str, str]`): What each command does, by its name.
        description (`str`): What the program does.
        argv (`list[str]`, *optional*): The command line without the program's name. Default: `sys.argv[1:]`.

    Raises:
        `SystemExit`: With code 0 after `--help`, and with code 2 and one line on stderr for no or an unknown command.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in commands:
        return argv[0], argv[1:]
    width = max(map(len, commands))
    parser = argparse.ArgumentParser(
        description=description,
        usage="%(prog)s COMMAND [RECIPE.yaml] [flags]",
        epilog="commands (each has a --help of its own):\n"
        + "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        parser.exit()
    found = f"unknown command {argv[0]!r}; " if argv and not argv[0].startswith("-") else "no command; "
    close = difflib.get_close_matches(argv[0], commands, n=1) if argv else []
    remedy = f"did you mean {close[0]}?" if close else f"the first argument is one of {', '.join(commands)}"
    parser.exit(2, f"error: {found}{remedy} (see {parser.prog} --help)\n" if is_reporting_rank() else None)
