"""The docs as a site: every page can be found, the strict build passes, and each link leads somewhere."""

import ast
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import modeling_sit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Where a tag names what a browser loads with the page.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


class ConfigLoader(yaml.SafeLoader):
    """Reads `mkdocs.yml` without the functions that it names."""


ConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def pages_of(navigation: list | dict | str) -> list[str]:
    """The files of a navigation, in its order."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def test_navigation_has_every_page_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=ConfigLoader)
    assert sorted(pages_of(config["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_task_begins_with_the_command():
    pages = sorted((DOCS / "tasks").glob("*.md"))
    assert pages and all(re.match(r"# .+\n\n(<!-- .+ -->\n)?```bash\n", page.read_text()) for page in pages)


def test_pages_with_the_table_of_results_have_the_same_figures():
    home, *others = (
        {re.sub(r"\]\([^)]*\)", "]", line) for line in path.read_text().splitlines() if "%" in line and line[0] == "|"}
        for path in (DOCS / "index.md", ROOT / "README.md", DOCS / "transfer.md")
    )
    assert home and all(home <= other for other in others)


class Built(HTMLParser):
    """What a page of the site links to, what it loads, and the places in it that have a name."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loaded, self.names = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.names.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(LOADED.get(tag)):
            self.loaded.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site, built as by `make docs`: a warning is an error."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name, reason="the site needs mkdocs: pip install modeling-sit[docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


@pytest.fixture(scope="module")
def built(site) -> dict[Path, Built]:
    return {path: Built(path) for path in site.rglob("*.html")}


def test_every_link_of_the_site_leads_somewhere(built, site):
    count = 0
    for page, content in built.items():
        for link in [*content.links, *content.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto") or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page.relative_to(site), link)
            if target in built:
                assert unquote(parts.fragment) in built[target].names, (page.relative_to(site), link)
            count += 1
    assert count > 1000


def test_site_loads_nothing_from_elsewhere(built, site):
    assert not [(page.name, each) for page, content in built.items() for each in content.loaded if "//" in each]
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


def test_reference_has_every_argument():
    """Every dataclass whose fields have help texts, but for those of the command line alone."""
    package = ROOT / "modeling_sit"
    arguments = {
        ".".join(("modeling_sit", *path.relative_to(package).with_suffix("").parts, node.name))
        for path in package.rglob("*.py")
        if path.parent.name != "cli" and "metadata" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and any("metadata=" in ast.unparse(each) for each in node.body[1:])
    }
    named = set(re.findall(r"^::: ([\w.]+)$", (DOCS / "reference" / "arguments.md").read_text(), re.MULTILINE))
    assert len(arguments) > 30 and named == arguments


def test_reference_has_every_public_name(site, built):
    names = set().union(*(built[page].names for page in (site / "reference").glob("*.html")))
    assert {f"modeling_sit.{name}" for name in modeling_sit.__all__} <= names


def test_reference_is_rendered(site):
    functions, arguments = ((site / f"reference/{name}.html").read_text() for name in ("functions", "arguments"))
    for text in (functions, arguments):
        assert "*optional*" not in text and "[`" not in text
    assert re.search(r'<a [^>]*href="#modeling_sit.SiTError"', functions)
    assert "doubles the number until the metric on images" in arguments  # the help text of `max_steps`


def test_search_knows_pages_and_leaves_code_out(site):
    found = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]
    }
    assert {"tasks/few_labels.html", "pretraining.html", "repository/model_cards/flowers.html"} <= found
    assert not {place for place in found if place.startswith(("repository/modeling_sit", "repository/index"))}


@pytest.fixture(scope="module")
def docstrings():
    pytest.importorskip("griffe", reason="it comes with mkdocstrings: pip install modeling-sit[docs]")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "scripts" / "docs_site" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_are_read_as_they_are_meant(docstrings, tmp_path):
    """By griffe itself, of a small package."""
    import griffe

    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").write_text('__all__ = ["later", "Odd"]\n_LAZY = {"later": ".work"}\n')
    (tmp_path / "small" / "work.py").write_text('''
class Odd(Exception):
    """Something odd.

    Args:
        side (`int` or pair of `int`, *optional*, defaults to 8): Side: in pixels.
    """


class Keys(dict):
    """
    width (`float` or `int`, *optional*):
        How wide.
    """


def later(size: int = 3, **rest):
    """Work.

    Args:
        size (`int`, *optional*, defaults to 3): How much,
            in [`Odd`] units, not in [`Nothing`] of [`~work.Odd`].
        place (`str`, `Path` or `small.Odd`): Where.

    Returns:
        [`Odd`]: What is left.

    Raises:
        [`Odd`]: Always.
    """
''')
    package = griffe.load(
        "small",
        search_paths=[tmp_path],
        extensions=griffe.load_extensions(docstrings.TransformersDocstrings()),
        docstring_parser="google",
        docstring_options={"returns_named_value": False, "warnings": False},
    )
    later = package["later"].final_target
    _, arguments, returns, raises = later.docstring.parsed
    size, place = arguments.value
    assert (str(size.annotation), size.default, str(place.annotation)) == ("int", "3", "str | Path | small.Odd")
    assert '<autoref identifier="small.Odd" optional><code>Odd</code></autoref> units' in size.description
    assert "`Nothing`" in size.description and "[`" not in size.description
    assert [str(each.annotation) for section in (returns, raises) for each in section.value] == ["Odd", "Odd"]
    (side,), (width,) = (package[f"work.{name}"].docstring.parsed[-1].value for name in ("Odd", "Keys"))
    assert (str(side.annotation), side.description) == ("int or pair of int, default 8", "Side: in pixels.")
    assert (width.name, str(width.annotation), width.description.strip()) == ("width", "float | int", "How wide.")
