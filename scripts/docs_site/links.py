"""Links of the docs that leave `docs/`: the site has a page for each file of the repository that a page links to.

On GitHub such links (`../README.md`, `../modeling_sit/recipes/flowers.yaml`) lead to the file. The repository has no address
yet that the site could link to, so the site takes these files along: Markdown as a page, code as a page with a code block, a
folder as a list of its files, everything else as it is. What such a page of Markdown links to comes along, too.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

# Folder of the site for what lies outside of docs/.
FOLDER = "repository"
LINK = re.compile(r"(\]\()([^)#\s]+)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"<code>[^<]*</code>")
FLAG = re.compile(r"--[a-z][\w-]*")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cfg": "ini", "": "text"}
# The search finds what is written for readers, not each line of code, and not the README, whose pages say the same.
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to, and what these link to."""
    docs, root = Path(config.docs_dir), Path(config.config_file_path).parent
    waiting = [docs / file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for target in linked_files(waiting.pop()):
            if target in seen or target.is_relative_to(docs) or not target.is_relative_to(root):
                continue
            seen.add(target)
            files.append(file_of_site(target, root, config))
            if target.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have the links of a page lead to the pages of the site."""
    docs, root = Path(config.docs_dir), Path(config.config_file_path).parent
    own = page.file.src_uri
    source = docs / own if not own.startswith(f"{FOLDER}/") else root / own.removeprefix(f"{FOLDER}/")
    if source.suffix == ".md" and source.is_file():
        markdown = with_links(markdown, source, own, docs, root)
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Keep the two hyphens of a flag with its name, where a line is broken."""
    return INLINE_CODE.sub(lambda found: FLAG.sub(r'<span class="flag">\g<0></span>', found[0]), html)


def linked_files(page: Path) -> list[Path]:
    """Files and folders that a page links to, outside its code."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    targets = (found[2] for found in LINK.finditer(text) if "://" not in found[2])
    return [path for target in targets if (path := Path(os.path.normpath(page.parent / target))).exists()]


def with_links(markdown: str, source: Path, own: str, docs: Path, root: Path) -> str:
    """The text of a page whose links lead to the pages of the site.

    Args:
        markdown (`str`): The page.
        source (`Path`): The page's file.
        own (`str`): The page's path in the site's sources.
        docs (`Path`): The folder of the docs.
        root (`Path`): The folder of the repository.
    """

    def changed(found: re.Match) -> str:
        target = Path(os.path.normpath(source.parent / found[2]))
        if "://" in found[2] or not target.exists() or not target.is_relative_to(root):
            return found[0]
        place = target.relative_to(docs).as_posix() if target.is_relative_to(docs) else place_of(target, root)
        return found[1] + os.path.relpath(place, PurePosixPath(own).parent)

    parts, end = [], 0
    for fence in FENCED.finditer(markdown):
        parts += [LINK.sub(changed, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(changed, markdown[end:])])


def place_of(path: Path, root: Path) -> str:
    """Where the site's sources have a file or a folder of the repository."""
    place = f"{FOLDER}/{path.relative_to(root).as_posix()}"
    if path.is_dir():
        return f"{place}/index.md"
    return f"{place}.md" if path.suffix in LANGUAGES else place


def file_of_site(path: Path, root: Path, config: MkDocsConfig) -> File:
    """A file or a folder of the repository as a file of the site."""
    place, name = place_of(path, root), path.relative_to(root).as_posix()
    if not place.endswith(".md"):
        return File.generated(config, place, abs_src_path=str(path))
    if path.is_dir():
        content = f"{UNSEARCHED}# {name}/\n\n" + "".join(
            f"* `{each.name}`\n" for each in sorted(path.iterdir()) if not each.name.startswith(("_", "."))
        )
    elif path.suffix in LANGUAGES:
        text = path.read_text(encoding="utf-8").rstrip()
        content = f"{UNSEARCHED}# {name}\n\n````{LANGUAGES[path.suffix]}\n{text}\n````\n"
    elif path.parent == root:
        content = UNSEARCHED + path.read_text(encoding="utf-8")
    else:
        content = path.read_text(encoding="utf-8")
    return File.generated(config, place, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
