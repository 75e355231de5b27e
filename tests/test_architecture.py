"""The rooms of the package: which may import which, how large files and functions get, and who knows of flags."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each may import those of the lines before it, and itself.
ROOMS = (
    {"root"},
    {"runtime"},
    {"data"},
    {"interop"},
    {"evaluation"},
    {"visualization"},
    {"hub"},
    {"demo"},
    {"pretraining", "finetuning"},
    {"experiments"},
    {"cli"},
)
MAX_LINES, MAX_PARAMETERS, MAX_LINES_OF_THE_LOOP, MAX_LINES_OF_A_METHOD = 400, 8, 250, 200
# The model's layers in one file, as transformers has it.
LARGE = {"modeling_sit.py"}
METHODS = ("sit", "simclr", "moco_v3", "moco", "dino", "ibot", "mae", "simmim", "lejepa")
FLAG = re.compile(r"(?<![\w-])--[a-z]\w*")
# Of the command lines of accelerate, which a card's command is read from, of Docker, and of tar.
OTHERS_FLAGS = {"--module", "--shm", "--sort"}


def check_architecture(package: Path) -> list[str]:
    """What is against the rules, a line each: `ROOM: FILE:LINE: PROBLEM`.

    Args:
        package (`Path`): Folder of the package.
    """
    found, arrows = [], {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        checks = (
            check_imports(tree, package, name, arrows),
            check_size(text, name),
            check_parameters(tree),
            check_names(tree),
            check_path(tree),
            check_home(tree),
            check_encoding(tree),
            check_flags(tree) if room_of(name) != "cli" else (),
            check_methods(tree) if name == "pretraining/loop.py" else (),
        )
        found += [f"{room_of(name)}: {name}:{line}: {problem}" for check in checks for line, problem in check]
    return found + [f"cycle of rooms: {' -> '.join(cycle)}" for cycle in cycles(arrows)]


def room_of(name: str) -> str:
    """The room of a file, by its path in the package. `__main__.py` is a command line."""
    if name == "__main__.py":
        return "cli"
    return name.partition("/")[0] if "/" in name else "root"


def place_of(room: str) -> int:
    return next(place for place, rooms in enumerate(ROOMS) if room in rooms)


def check_imports(tree: ast.AST, package: Path, name: str, arrows: dict[str, set[str]]) -> Iterator[tuple[int, str]]:
    """Imports of rooms that come later, or stand beside. Adds each import to `arrows`."""
    room = room_of(name)
    if room not in set().union(*ROOMS):
        yield 1, f"{room} is no room"
        return
    for line, module in imported_modules(tree, package.name, name):
        parts = module.split(".")[1:]
        other = parts[0] if parts and (package / parts[0]).is_dir() else "root"
        if other == room:
            continue
        arrows.setdefault(room, set()).add(other)
        if other not in set().union(*ROOMS) or place_of(other) >= place_of(room):
            yield line, f"{room} imports {module}"
        elif room == "root":
            yield line, f"a root file imports {module}"


def imported_modules(tree: ast.AST, package: str, name: str) -> Iterator[tuple[int, str]]:
    """Modules of the package that a file imports, anywhere in it, with the line."""
    folder = [package, *name.split("/")[:-1]]
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from package import room` names a module as `import package.room` does.
            modules = [f"{module}.{alias.name}" for alias in node.names] if module == package else [module]
        for module in modules:
            if module.split(".")[0] == package:
                yield node.lineno, module


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Rooms that import one another in a circle, each circle once."""
    found = []

    def walk(room: str, way: list[str]) -> None:
        if room in way:
            cycle = way[way.index(room) :]
            if all(set(cycle) != set(other) for other in found):
                found.append([*cycle, room])
            return
        for other in sorted(arrows.get(room, ())):
            walk(other, [*way, room])

    for room in sorted(arrows):
        walk(room, [])
    return [cycle for number, cycle in enumerate(found) if all(set(cycle) != set(o) for o in found[:number])]


def check_size(text: str, name: str) -> Iterator[tuple[int, str]]:
    limit = MAX_LINES_OF_THE_LOOP if name == "pretraining/loop.py" else MAX_LINES
    if name.startswith("pretraining/methods/"):
        limit = MAX_LINES_OF_A_METHOD
    count = len(text.splitlines())
    if count > limit and name not in LARGE:
        yield count, f"{count} lines, of {limit} at most"


def check_parameters(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "forward":
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS:
                yield node.lineno, f"{node.name} has {count} parameters, of {MAX_PARAMETERS} at most"


def check_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Identifiers that say picture: here they are images."""
    for node in ast.walk(tree):
        for attribute in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, attribute, None)
            if isinstance(name, str) and "picture" in name.lower():
                yield getattr(node, "lineno", 1), f"{name} says picture"


def check_path(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "path" and getattr(node.value, "id", None) == "sys":
            yield node.lineno, "sys.path"


def check_home(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What raises where there is no home folder or no name of the user. `os.path.expanduser` does not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            is_of_os = isinstance(node.value, ast.Attribute) and node.value.attr == "path"
            if node.attr in ("home", "getuser") or (node.attr == "expanduser" and not is_of_os):
                yield node.lineno, f"{node.attr} raises where there is none"


def check_encoding(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Text that is read or written in the encoding of the terminal."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        if isinstance(node.func, ast.Name):
            is_text = node.func.id == "open" and _is_mode_of_text(node.args[1:2], node.keywords)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            is_text = True
        else:
            # `path.open("a")`, and not `os.open(path, flags)` or `PIL.Image.open(path)`.
            is_text = (
                isinstance(node.func, ast.Attribute)
                and node.func.attr == "open"
                and bool(
                    node.args and isinstance(node.args[0], ast.Constant) and set(node.args[0].value) <= set("rwxat+")
                )
            )
        if is_text:
            yield node.lineno, "text without an encoding"


def _is_mode_of_text(positional: list[ast.expr], keywords: list[ast.keyword]) -> bool:
    modes = [*positional, *(keyword.value for keyword in keywords if keyword.arg == "mode")]
    return not any(isinstance(mode, ast.Constant) and "b" in mode.value for mode in modes)


def check_flags(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Flags in strings: only the command line knows of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for flag in set(FLAG.findall(node.value)) - OTHERS_FLAGS:
                yield node.lineno, f"a string contains {flag}"


def check_methods(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names of methods in the loop, as a name, an attribute, a string, or a word of these."""
    for node in ast.walk(tree):
        names = [getattr(node, attribute, None) for attribute in ("id", "attr", "arg", "name", "module")]
        names += [node.value] if isinstance(node, ast.Constant) else []
        for name in names:
            if isinstance(name, str):
                # The package's own name, and its error, are no method.
                text = re.sub(r"modeling_sit|SiTError", "", name)
                words = {word.lower() for word in re.findall(r"[A-Za-z][A-Za-z0-9]*(?:_v3)?", text)}
                words |= {word.lower() for word in re.findall(r"SiT(?=[A-Z])", text)}
                words |= {part for word in words for part in word.split("_")}
                for method in METHODS:
                    if method in words:
                        yield getattr(node, "lineno", 1), f"the loop names the method {method}: {name.strip()[:60]!r}"


def test_the_package():
    assert check_architecture(ROOT / "modeling_sit") == []


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.name)
def test_the_scripts_name_their_encodings(path):
    assert not list(check_encoding(ast.parse(path.read_text(encoding="utf-8"))))


# That each check can fail.


@pytest.fixture
def problems(tmp_path):
    """Write files of a made-up package; gives what is against the rules."""

    def check(**files: str) -> list[str]:
        package = tmp_path / "modeling_sit"
        for room in ("runtime", "data", "interop", "pretraining/methods", "finetuning", "cli"):
            (package / room).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (package / f"{name.replace('__', '/')}.py").write_text(text, encoding="utf-8")
        return check_architecture(package)

    return check


def test_a_good_package(problems):
    assert not problems(
        losses="import torch\nfrom .gmml import corrupt\n",
        runtime__errors="class SiTError(Exception): ...\n",
        data__sources='"""Reads `image_column`; a -- dash."""\nfrom modeling_sit.runtime.errors import SiTError\n',
        pretraining__loop="from modeling_sit.runtime.errors import SiTError\nfrom modeling_sit.data.sources import load\nvisit = 'transit'\n",
        cli__main="'--dataset'\nfrom modeling_sit.pretraining import loop\nimport modeling_sit.data.sources\n",
    )


@pytest.mark.parametrize(
    "statement",
    [
        "from modeling_sit.data.sources import load",
        "import modeling_sit.data.sources",
        "from modeling_sit import data",
        "from ..data import sources",
        "from ..data.sources import load",
        "def f():\n    from modeling_sit.data import sources",
    ],
)
def test_an_import_that_runs_back(problems, statement):
    (problem,) = problems(runtime__files=statement)
    assert problem.startswith("runtime: runtime/files.py:") and "runtime imports modeling_sit.data" in problem


@pytest.mark.parametrize(("one", "other"), [("pretraining", "finetuning"), ("finetuning", "pretraining")])
def test_trainings_do_not_import_each_other(problems, one, other):
    assert problems(**{f"{one}__run": f"from modeling_sit.{other} import run"})


@pytest.mark.parametrize(
    "statement", ["from .runtime import errors", "from modeling_sit.runtime.errors import SiTError"]
)
def test_a_root_file_imports_no_room(problems, statement):
    (problem,) = problems(losses=statement)
    assert problem.startswith("root: losses.py:1:")


def test_a_cycle(problems):
    found = problems(
        runtime__a="import modeling_sit.data.b",
        data__b="import modeling_sit.interop.c",
        interop__c="from ..runtime import a",
    )
    assert [problem for problem in found if problem.startswith("cycle of rooms: ")] == [
        "cycle of rooms: data -> interop -> runtime -> data"
    ]


def test_a_folder_that_is_no_room(problems, tmp_path):
    (tmp_path / "modeling_sit" / "utils").mkdir(parents=True)
    assert "utils is no room" in problems(utils__misc="x = 1")[0]


def test_a_long_file(problems):
    assert problems(data__sources="x = 1\n" * 401) == ["data: data/sources.py:401: 401 lines, of 400 at most"]
    assert not problems(data__sources="x = 1\n" * 400, modeling_sit="x = 1\n" * 900)


def test_a_long_loop(problems):
    assert problems(pretraining__loop="x = 1\n" * 251)
    assert not problems(pretraining__loop="x = 1\n" * 250)


def test_a_long_method(problems):
    (problem,) = problems(pretraining__methods__new="x = 1\n" * 201)
    assert problem.endswith("201 lines, of 200 at most")
    assert not problems(pretraining__methods__new="x = 1\n" * 200)


@pytest.mark.parametrize("parameters", ["a, b, c, d, e, f, g, h, i", "a, b, c, d, /, e, f, g, *, h, i=1"])
def test_many_parameters(problems, parameters):
    assert "f has 9 parameters" in problems(data__sources=f"def f({parameters}): ...")[0]
    assert not problems(data__sources=f"class A:\n    def forward(self, {parameters}): ...")


def test_eight_parameters_and_self_are_not_many(problems):
    assert not problems(data__sources="class A:\n    def f(self, a, b, c, d, e, f, g, h, **rest): ...")


@pytest.mark.parametrize(
    "text", ["num_pictures = 1", "def read_picture(): ...", "def f(picture): ...", "class Pictures: ...", "x.picture"]
)
def test_an_identifier_with_picture(problems, text):
    assert "says picture" in problems(data__sources=text)[0]


@pytest.mark.parametrize("text", ['"give --image_column"', '"""Doc of --dataset."""', 'f"--{x} --dataset {x}"'])
def test_a_flag_in_a_string(problems, text):
    assert "a string contains --" in problems(data__sources=text)[0]


def test_the_path(problems):
    assert "sys.path" in problems(data__sources="import sys\nsys.path.insert(0, 'x')")[0]


@pytest.mark.parametrize(
    "text",
    [
        "path.read_text()",
        "path.write_text(x)",
        "open(path)",
        "open(path, 'w')",
        "open(path, mode='a')",
        "path.open('a')",
    ],
)
def test_text_without_an_encoding(problems, text):
    assert "text without an encoding" in problems(data__sources=text)[0]
    assert not problems(data__sources=text.replace(")", ", encoding='utf-8')").replace("(, ", "("))


@pytest.mark.parametrize("text", ["open(path, 'rb')", "path.open('wb')", "Image.open(path)", "os.open(path, flags)"])
def test_what_is_no_text(problems, text):
    assert not problems(data__sources=text)


@pytest.mark.parametrize("text", ["Path.home()", "Path(x).expanduser()", "getpass.getuser()"])
def test_the_home_folder(problems, text):
    assert "raises where there is none" in problems(data__sources=text)[0]
    assert not problems(data__sources="os.path.expanduser(x)")


@pytest.mark.parametrize(
    "text", ["x = 'dino'", "self.sit", "def mae_loss(): ...", "x = SiTForPreTraining", "moco_v3 = 1"]
)
def test_a_method_in_the_loop(problems, text):
    assert "names the method" in problems(pretraining__loop=text)[0]
    assert not problems(pretraining__loop="x = 1", pretraining__student=text)
