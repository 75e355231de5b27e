"""Docstrings in transformers' style for mkdocstrings, which reads Google's: an extension of griffe.

griffe reads the sources; only argument dataclasses are imported, for their help texts.
"""

import ast
import importlib
import re
import textwrap
from dataclasses import fields
from typing import Any

from griffe import Alias, Class, Extension, Function, Module, Object

SECTION = re.compile(r"^(?P<indent> *)(?P<name>Args|Attributes|Returns|Raises|Yields):$")
# `name (`int`, *optional*, defaults to 2): what it is`
ARGUMENT = re.compile(r"^(?P<name>[*\w, ]+?)(?: \((?P<kind>.*?)\))?:(?P<text>(?:\s.*)?)$")
# `[`SiTError`]: what it is`, `dict[str, int]: what it is`
RESULT = re.compile(r"^(?P<kind>[^:]+?):(?P<text>\s.*)?$")
REFERENCE = re.compile(r"\[`(?P<short>~?)(?P<name>[\w.]+)`\]")
# `str`, `Path` or `datasets.Dataset`
UNION = re.compile(r"\[?`[\w.]+`\]?(?:(?:, | or )\[?`[\w.]+`\]?)+")
OPTIONAL = re.compile(r",? \*optional\*(?:, defaults to (?P<default>.*))?$")


class TransformersDocstrings(Extension):
    """Turns docstrings into Google's style before they are parsed. Adds what stands elsewhere in the sources: the functions that
    the package imports when they are asked for, and the help texts of argument dataclasses."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """See `griffe.Extension`."""
        add_lazy_names(pkg)
        objects = list(walk(pkg))
        names = References(pkg, objects)
        for each in objects:
            if isinstance(each, Class):
                add_help_texts(each)
            if each.docstring is not None:
                each.docstring.value = google_style(each.docstring.value, parameter_names(each), names)


class References:
    """Objects of the package by the names that docstrings have for them."""

    def __init__(self, pkg: Module, objects: list[Object]):
        self.public = {name: f"{pkg.path}.{name}" for name in public_names(pkg)}
        self.paths = {}
        for each in objects:
            self.paths.setdefault(each.name, []).append(each.path)

    def path_of(self, name: str) -> str | None:
        """The full path of an object, by its name or the end of its path."""
        if name in self.public:
            return self.public[name]
        owner, _, member = name.rpartition(".")
        if owner in self.public:
            return f"{self.public[owner]}.{member}"
        found = [path for path in self.paths.get(member, ()) if f".{path}".endswith(f".{name}")]
        return found[0] if len(found) == 1 else None

    def link(self, found: re.Match) -> str:
        """A cross reference as mkdocs-autorefs knows it; plain code where the site has no such object."""
        text = found["name"].rpartition(".")[2] if found["short"] else found["name"]
        path = self.path_of(found["name"])
        if path is None:
            return f"`{text}`"
        return f'<autoref identifier="{path}" optional><code>{text}</code></autoref>'


def walk(owner: Object):
    """The object and everything that is defined in it."""
    yield owner
    for member in owner.members.values():
        if not isinstance(member, Alias):
            yield from walk(member)


def public_names(pkg: Module) -> list[str]:
    return ast.literal_eval(str(pkg["__all__"].value))


def add_lazy_names(pkg: Module) -> None:
    """The functions that `__getattr__` of the package imports: no line of the sources does."""
    for name, module in ast.literal_eval(str(pkg["_LAZY"].value)).items():
        pkg.set_member(name, Alias(name, f"{pkg.path}{module}.{name}", parent=pkg))


def parameter_names(each: Object) -> set[str]:
    """Names whose defaults griffe shows by itself."""
    function = each.members.get("__init__") if isinstance(each, Class) else each
    return {parameter.name for parameter in function.parameters} if isinstance(function, Function) else set()


def add_help_texts(each: Class) -> None:
    """Describe the fields of an argument dataclass by their help texts. The class is imported, because some texts are put
    together when it is made."""
    if each.docstring is None or not any("metadata=" in str(member.value) for member in attributes(each)):
        return
    arguments = getattr(importlib.import_module(each.module.path), each.name)
    own = {member.name for member in attributes(each)}
    texts = {item.name: item.metadata.get("help") for item in fields(arguments) if item.name in own}
    lines = "".join(f"\n    {name}: {text}" for name, text in texts.items() if text)
    each.docstring.value = f"{each.docstring.value}\n\nArgs:{lines}"


def attributes(each: Class) -> list[Object]:
    return [member for member in each.members.values() if member.is_attribute]


def google_style(text: str, parameters: set[str], names: References) -> str:
    """A docstring in transformers' style as Google's.

    Args:
        text (`str`): The docstring.
        parameters (`set` of `str`): Parameters whose types and defaults are known from the signature.
        names ([`References`]): What the docstring may refer to.
    """
    first = ARGUMENT.match(text.partition("\n")[0])
    if first and first["kind"]:  # a dictionary's keys, which transformers describes without a heading
        text = "Args:\n" + textwrap.indent(text, "    ")
    lines, section, indent = [], None, 0
    for line in text.splitlines():
        found = SECTION.match(line)
        own = len(line) - len(line.lstrip())
        if found:
            section, indent = found["name"], len(found["indent"])
        elif line.strip() and own <= indent:
            section = None
        elif line.strip() and section and own == indent + 4:
            line = " " * own + entry(line.strip(), section, parameters)
        lines.append(REFERENCE.sub(names.link, line))
    return "\n".join(lines)


def entry(line: str, section: str, parameters: set[str]) -> str:
    """The first line of an entry of a section."""
    if section not in ("Args", "Attributes"):
        found = RESULT.match(line)
        return f"{plain(found['kind'])}:{found['text'] or ''}" if found else line
    found = ARGUMENT.match(line)
    if not found or found["kind"] is None:
        return line
    kind, default = plain(OPTIONAL.sub("", found["kind"])), OPTIONAL.search(found["kind"])
    if default and default["default"] and found["name"] not in parameters:
        kind += f", default {plain(default['default'])}"
    return f"{found['name']} ({kind}):{found['text']}"


def plain(kind: str) -> str:
    """A type without the marks of Markdown, in Python's syntax if it is one of several types."""
    if UNION.fullmatch(kind):
        kind = re.sub(", | or ", " | ", kind)
    return REFERENCE.sub(lambda found: found["name"].rpartition(".")[2], kind).replace("`", "")
