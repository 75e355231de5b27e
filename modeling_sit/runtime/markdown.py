"""Markdown that shows any text as it is."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


def escaped(text: Any) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*\[\]<>~&$])", r"\\\1", " ".join(str(text).split()))
    # An underscore inside a word does not emphasize.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def code(text: Any) -> str:
    """Text as code within a line."""
    text = re.sub(r"\s*\n\s*", " ", str(text))
    ticks = "`" * (_longest_run_of_ticks(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def code_block(lines: Iterable[str], language: str = "") -> str:
    """Lines of code."""
    text = "\n".join(lines)
    ticks = "`" * max(3, _longest_run_of_ticks(text) + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    # A bar ends a cell, even in code.
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _longest_run_of_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
