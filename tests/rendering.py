"""Cards as their readers see them: rendered."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt

from modeling_sit.hub.card_file import read_card


@dataclass
class Page(HTMLParser):
    """What a browser shows of a Markdown page: headings, tables as rows of cells, links, images, blocks of code, text."""

    headings: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self):
        super().__init__()
        self.open: list[str] = []

    @classmethod
    def of(cls, markdown: str) -> "Page":
        page = cls()
        page.feed(MarkdownIt("commonmark").enable("table").render(markdown))
        return page

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.open.append(tag)
        if tag == "img":
            self.open.pop()
            self.images[attributes["src"]] = attributes["alt"]
        elif tag == "a":
            self.links.append(attributes["href"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "pre":
            self.blocks.append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        elif "pre" in self.open:
            self.blocks[-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data

    @property
    def facts(self) -> dict[str, str]:
        """The rows of the tables of two columns."""
        return {row[0]: row[1] for table in self.tables for row in table if len(row) == 2}


def render(source: str | Path) -> Page:
    """Render Markdown, or the card of a folder; checks that its images and links to files are there."""
    if isinstance(source, str):
        return Page.of(source)
    page = Page.of(read_card(source).body)
    for target in [*page.images, *page.links]:
        if "://" not in target:
            assert (source / target).is_file(), target
    return page
