"""The file of a model card: its metadata, the sections that programs write, and the rest, which keeps every byte."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from tqdm.auto import tqdm

from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import set_aside

CARD_FILE = "README.md"
# As the Hub reads it.
METADATA = re.compile(r"\A(\s*---\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
BYTE_ORDER_MARK = "\ufeff"


class DamagedCard(ValueError):
    """A card that cannot be updated in place. The message says what is wrong, in a few words."""


@dataclass
class Card:
    """
    A model card whose parts can be changed one by one.

    `huggingface_hub.metadata_save` is not used: it writes the whole metadata anew, without the comments and with other
    quotes and line breaks than its author's.

    Args:
        metadata_yaml (`str`): The text between the lines `---`; empty if there are none.
        body (`str`): The text below.
        opening, closing (`str`, *optional*): The lines `---`, with the blank lines around them.
        byte_order_mark (`str`, *optional*): What some editors put in front of a file.

    Raises:
        [`DamagedCard`]: If the metadata is not YAML, or not that of a model card.
    """

    metadata_yaml: str
    body: str
    opening: str = "---\n"
    closing: str = "---\n"
    byte_order_mark: str = ""

    def __post_init__(self):
        try:
            # Made for the errors that it raises: the Hub's client would not read the card.
            ModelCardData(**self.metadata)
        except yaml.YAMLError as problem:
            raise DamagedCard(f"its metadata is not YAML: {' '.join(str(problem).split())}") from problem
        except (TypeError, ValueError, KeyError, AttributeError) as problem:
            raise DamagedCard(f"its metadata is not that of a model card: {problem}") from problem

    @classmethod
    def parse(cls, text: str) -> "Card":
        """
        Raises:
            [`DamagedCard`]: If the metadata has no end, is not YAML, or not that of a model card.
        """
        byte_order_mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
        text = text.removeprefix(BYTE_ORDER_MARK)
        found = METADATA.match(text)
        if found is not None:
            return cls(found[2], text[found.end() :], found[1], found[3], byte_order_mark)
        if re.match(r"\s*---[ \t]*\r?\n", text):
            raise DamagedCard("its metadata begins with --- and does not end")
        line_break = _line_break(text)
        return cls("", text, f"---{line_break}", f"---{line_break}{line_break}", byte_order_mark)

    def __str__(self) -> str:
        if not self.metadata_yaml:
            return self.byte_order_mark + self.body
        return f"{self.byte_order_mark}{self.opening}{self.metadata_yaml}{self.closing}{self.body}"

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata; a copy."""
        metadata = yaml.safe_load(self.metadata_yaml)
        if not isinstance(metadata, dict | None):
            raise TypeError("it has no `key: value` lines")
        return metadata or {}

    def set_metadata(self, key: str, value: Any) -> None:
        """Replace the entry of a key, or add it at the end. `None` removes it.

        Raises:
            [`DamagedCard`]: If an entry of this YAML cannot be replaced alone.
        """
        expected = {name: known for name, known in self.metadata.items() if name != key}
        line_break = _line_break(self.opening)
        entry = ""
        if value is not None:
            expected[key] = value
            entry = yaml.safe_dump({key: value}, allow_unicode=True, sort_keys=False).replace("\n", line_break)
        root = yaml.compose(self.metadata_yaml, Loader=yaml.SafeLoader)
        places = [
            (name.start_mark.index, _end(content))
            for name, content in (root.value if root is not None else [])
            if name.value == key
        ]
        if places:
            start, end = places[0]
            before, after = self.metadata_yaml[:start], self.metadata_yaml[end:]
            changed = before + (entry.removesuffix(line_break) + after if entry else after.lstrip("\r\n"))
        else:
            changed = self.metadata_yaml
            if changed and not changed.endswith("\n"):
                changed += line_break
            changed += entry
        try:
            is_as_expected = (yaml.safe_load(changed) or {}) == expected
        except yaml.YAMLError:
            is_as_expected = False
        if not is_as_expected:
            raise DamagedCard(f"in its metadata, {key} cannot be replaced alone; write each key on its own lines")
        self.metadata_yaml = changed

    @property
    def sections(self) -> list[str]:
        """Names of the sections that programs write."""
        return re.findall(r"<!-- sit:begin (\w+) -->", self.body)

    def section(self, name: str) -> str:
        """The text of a section."""
        start, end = self._place(name)
        return self.body[start:end].strip()

    def put_section(self, name: str, content: str) -> None:
        """Replace the text of a section, or add the section at the end of the card.

        Raises:
            [`DamagedCard`]: If one of the section's two marks is missing, or is there twice.
        """
        line_break = _line_break(self.body or self.opening)
        content = f"\n\n{content.strip()}\n\n".replace("\n", line_break)
        begin, end = _marks(name)
        if begin not in self.body and end not in self.body:
            gap = "" if not self.body else line_break if self.body.endswith("\n") else 2 * line_break
            self.body += f"{gap}{begin}{content}{end}{line_break}"
            return
        start, stop = self._place(name)
        self.body = self.body[:start] + content + self.body[stop:]

    def _place(self, name: str) -> tuple[int, int]:
        begin, end = _marks(name)
        start, stop = self.body.find(begin) + len(begin), self.body.find(end)
        if self.body.count(begin) != 1 or self.body.count(end) != 1 or stop < start:
            raise DamagedCard(f"there must be one line {begin} and one line {end} below it; add or remove lines")
        return start, stop

    def save(self, folder: Path) -> Path:
        """Write the card into a folder.

        Raises:
            [`SiTError`]: If it cannot be written. An earlier card is left unchanged.
        """
        path = folder / CARD_FILE
        remedy = "free some space there, or check who may write to it"
        with write_errors(path, remedy), replace_file(path) as unfinished:
            # A name of a file that Python could not decode keeps its bytes, if they are UTF-8.
            text = str(self).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            unfinished.write_bytes(text.encode())
        return path


def read_card(folder: Path) -> Card:
    """The model card of a folder.

    Raises:
        `FileNotFoundError`: If there is none.
        [`DamagedCard`]: If it is not text, or its metadata cannot be read.
    """
    try:
        # `read_text` would change the line breaks of Windows.
        text = (folder / CARD_FILE).read_bytes().decode()
    except UnicodeDecodeError as problem:
        raise DamagedCard(f"it is not text in UTF-8: {problem}") from problem
    return Card.parse(text)


def read_written_card(folder: Path) -> Card | None:
    """The card of a folder, if a run has written it and can write into it again; otherwise `None`.

    A damaged card, or one by somebody else, is renamed, with a line on stderr that says so.
    """
    try:
        card = read_card(folder)
        for name in card.sections:
            card.section(name)
        if card.sections:
            return card
        reason = "it has no sections of a run"
    except FileNotFoundError:
        return None
    except DamagedCard as problem:
        reason = str(problem)
    path = folder / CARD_FILE
    with write_errors(path, "check who may write there"):
        kept = set_aside(path)
    tqdm.write(f"{path} is written anew, because {reason}; the earlier card is {kept}", file=sys.stderr)
    return None


def card_to_update(folder: Path) -> Card:
    """The card of a folder, to be updated with results.

    Raises:
        [`SiTError`]: If there is none, or it cannot be read.
    """
    path = folder / CARD_FILE
    try:
        return read_card(folder)
    except FileNotFoundError as problem:
        raise SiTError(
            f"there is no {path} to update",
            argument="update_model_card",
            remedy="give a model's folder that has a card",
        ) from problem
    except OSError as problem:
        raise SiTError(f"{path} cannot be read: {problem.strerror}", argument="update_model_card") from problem
    except DamagedCard as problem:
        raise SiTError(f"{path} cannot be updated: {problem}", argument="update_model_card") from problem


def _marks(section: str) -> tuple[str, str]:
    return f"<!-- sit:begin {section} -->", f"<!-- sit:end {section} -->"


def _line_break(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _end(node: yaml.Node) -> int:
    """Where a value ends. The end mark of a block is behind the comments and blank lines that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
