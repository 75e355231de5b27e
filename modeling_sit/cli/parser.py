"""Flags and recipes: dataclasses give the flags, a YAML recipe gives defaults, flags override it."""

import argparse
import copy
import dataclasses
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from modeling_sit.cli.errors import as_flags, is_reporting_rank, with_flags
from modeling_sit.runtime.arguments import ALIASES, did_you_mean, expand_home, without_replaced
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import YesOrNo, read_recipe

# What of a field's metadata argparse knows. `TrainingArguments` has more than `help`.
OF_FLAGS = ("help", "aliases", "metavar", "choices")


class ExampleHelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, with its example commands, and shows the flags' defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help or "" if action.default is None else super()._get_help_string(action)


class RecipeArgumentParser(HfArgumentParser):
    """
    transformers' dataclass parser with a YAML recipe in front, positional arguments, and errors of one line.

    Help texts name other arguments in backticks, as Python writes them. The parser shows these as flags.

    Args:
        dataclass_types (sequence of dataclasses): Their fields are the flags.
        command (`str`, *optional*): The command's name, for the usage line and for errors. Default: none, the
            program's file is all of it.
        positionals (mapping from `str` to `str`, *optional*): Fields that are positional arguments rather than flags,
            and what the help calls them, such as `{"folder": "FOLDER"}`. A command that has some takes no recipe.
        kwargs: For `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        *,
        command: str | None = None,
        positionals: Mapping[str, str] | None = None,
        **kwargs,
    ):
        self._positional_fields = dict(positionals or {})
        if command is not None:
            kwargs.setdefault("prog", program_name(command))
        kwargs.setdefault("formatter_class", ExampleHelpFormatter)
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)
        self._add_aliases()
        for action in self._actions:
            if action.help:
                # argparse fills in what follows a percent sign.
                action.help = as_flags(action.help, self.flags).replace("%%", "%").replace("%", "%%")
        if not self._positional_fields:
            self.add_argument(
                "recipe",
                nargs="?",
                metavar="RECIPE",
                help="Defaults for the flags: a YAML file (RECIPE.yaml), or the name of a recipe of the package. "
                "Flags override them.",
            )
        self.usage = self._usage()

    def _usage(self) -> str:
        """The arguments that must be there. argparse would name all the others too, which the list below does."""
        needed = ["[RECIPE]"] if not self._positional_fields else list(self._positional_fields.values())
        needed += [
            f"{each.option_strings[0]} {each.dest.upper()}"
            for each in self._actions
            if each.required and each.option_strings
        ]
        return " ".join(["%(prog)s", *needed, "[--FLAG VALUE ...]"])

    @property
    def flags(self) -> set[str]:
        """Names of all flags, without dashes."""
        return {option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")}

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n" if is_reporting_rank() else None)

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse `[RECIPE] --flag value ...` into the dataclasses, one instance each, in their order.

        Args:
            argv (sequence of `str`, *optional*): The command line without the program's name. Default: `sys.argv[1:]`.

        Raises:
            `SystemExit`: With code 2 and one line on stderr, for an unknown flag or key or a value of the wrong type.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        if argv and not argv[0].startswith("-") and not self._positional_fields:
            argv = self._recipe_as_flags(argv[0], argv[1:]) + argv[1:]
        try:
            parsed = self.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
        except SiTError as problem:
            self.error(" ".join(with_flags(problem, self.flags).split()))
        except ValueError as problem:
            self.error(" ".join(str(problem).split()))
        unknown = parsed[-1]
        if unknown and unknown[0].startswith("-"):
            self.error(f"unknown flag {unknown[0]}{self._did_you_mean(unknown[0])}")
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}: every flag starts with --")
        if not self._positional_fields and parsed[-2].recipe is not None:
            recipe = parsed[-2].recipe
            self.error(f"unexpected argument {recipe!r}: a recipe comes first, and every flag starts with --")
        return expand_home(parsed[: len(self.dataclass_types)])

    def _parse_dataclass_field(self, parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
        if field.name in self._positional_fields:
            parser.add_argument(field.name, metavar=self._positional_fields[field.name], help=field.metadata["help"])
        else:
            # transformers gives argparse all of the metadata, and some of it is not for flags.
            field = copy.copy(field)
            field.metadata = {name: value for name, value in field.metadata.items() if name in OF_FLAGS}
            super()._parse_dataclass_field(parser, field)

    def _add_aliases(self) -> None:
        """Take other names of flags too. `--help` does not show them."""
        for alias, names in ALIASES.items():
            actions = [self._option_string_actions[f"--{name}"] for name in names if name in self.flags]
            if actions and alias not in self.flags:
                self._option_string_actions[f"--{alias}"] = actions[0]
                self._option_string_actions[f"--{alias.replace('_', '-')}"] = actions[0]

    def _recipe_as_flags(self, name: str, typed: Sequence[str]) -> list[str]:
        try:
            recipe = read_recipe(name)
        except SiTError as problem:
            self.error(" ".join(with_flags(problem, self.flags).split()))
        actions = [self._option_string_actions.get(word.partition("=")[0]) for word in typed]
        given = {action.dest for action in actions if action is not None}
        flags: list[str] = []
        keys: dict[str, str] = {}
        for key, value in recipe.items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None or action.dest == "help":
                self.error(f"recipe {name}: unknown key {key!r}{self._did_you_mean(f'--{key}')}")
            if keys.setdefault(action.dest, key) != key:
                self.error(f"recipe {name}: {key} and {keys[action.dest]} are the same; leave one out")
            if isinstance(value, dict) or (isinstance(value, list) and action.nargs != "+"):
                takes, due = ("a list", "[FIRST, SECOND]") if action.nargs == "+" else ("one value", "VALUE")
                self.error(f"recipe {name}: {key} takes {takes}, got {value}; write {key}: {due}, in one line")
            if value is None:
                if action.default is not None:
                    self.error(f"recipe {name}: {key} has no value; leave it out for its default, {action.default}")
                continue
            value = without_replaced({action.dest: value}, given).get(action.dest)
            if value is None:
                continue
            if isinstance(value, list):
                flags += [f"--{key}", *(_as_text(item, action) for item in value)]
            else:
                flags.append(f"--{key}={_as_text(value, action)}")
        return flags

    def _did_you_mean(self, flag: str) -> str:
        return did_you_mean(flag.split("=")[0], self._option_string_actions)


def _as_text(value: Any, action: argparse.Action) -> str:
    """A value of a recipe as the command line has it."""
    if isinstance(value, YesOrNo):
        return str(value.boolean) if action.type is string_to_bool else value.word(action.choices or ())
    if action.type is int and isinstance(value, float) and value.is_integer():
        return str(int(value))
    takes_text = action.type is str or (action.choices is not None and all(isinstance(x, str) for x in action.choices))
    return YesOrNo("no").word(action.choices or ()) if value is False and takes_text else str(value)


def versions() -> list[str]:
    """This package, what it stands on, and Python, with their versions, a line each."""
    packages = ("modeling-sit", "torch", "transformers", "accelerate", "datasets", "huggingface_hub")
    lines = [
        f"{name} {version(name) if find_spec(name.replace('-', '_')) else 'is not installed'}" for name in packages
    ]
    return [*lines, f"python {platform.python_version()}"]


def program_name(command: str | None = None) -> str:
    """What a user types to run a command: as this program was started.

    Args:
        command (`str`, *optional*): The command's name. Default: the program without a command.

    Returns:
        `str`: Such as `modeling-sit pretrain`, `python -m modeling_sit pretrain` or `pretrain.py`.
    """
    file = Path(sys.argv[0]).name
    if file.endswith(".py") and file != "__main__.py":
        return file
    program = "python -m modeling_sit" if file == "__main__.py" else "modeling-sit"
    return program if command is None else f"{program} {command}"


def choose_command(
    commands: Mapping[str, str], description: str, argv: Sequence[str] | None = None, prog: str | None = None
) -> tuple[str, list[str]]:
    """The command that a program's first argument names, and the arguments behind it.

    Args:
        commands (`Mapping[str, str]`): What each command does, by its name.
        description (`str`): What the program does.
        argv (sequence of `str`, *optional*): The command line without the program's name. Default: `sys.argv[1:]`.
        prog (`str`, *optional*): What a user types in front of the command. Default: as [`program_name`] has it.

    Raises:
        `SystemExit`: With code 0 after `--help` and `--version`, and with code 2 and one line on stderr for no or an unknown
            command.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in commands:
        return argv[0], argv[1:]
    width = max(map(len, commands))
    parser = argparse.ArgumentParser(
        prog=prog or program_name(),
        description=description,
        usage="%(prog)s COMMAND [RECIPE] [flags]",
        epilog="commands (each has a --help of its own):\n"
        + "\n".join(f"  {name:<{width}}  {purpose}" for name, purpose in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help()
        parser.exit()
    if argv and argv[0] == "--version":
        print("\n".join(versions()))
        parser.exit()
    found = f"unknown command {argv[0]!r}" if argv and not argv[0].startswith("-") else "no command"
    close = did_you_mean(argv[0], commands) if argv else ""
    remedy = close or f"; the first argument is one of {', '.join(commands)}"
    parser.exit(2, f"error: {found}{remedy} (see {parser.prog} --help)\n" if is_reporting_rank() else None)
