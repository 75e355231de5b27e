"""Which packages are missing, before anything is run, and how to bring them to a machine without a network."""

import configparser
import importlib
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

# What these packages need in turn, which is not known while they are missing themselves.
NEEDED_BY = {
    "datasets": ("dill<0.4.2", "multiprocess<0.70.20", "xxhash", "pandas", "pyarrow"),
    "evaluate": ("dill<0.4.2", "multiprocess<0.70.20", "xxhash", "pandas"),
}


def requirements_of(setup_cfg: Path, extras: Iterable[str]) -> list[str]:
    """What the package needs, by its `setup.cfg`, with these extras. Each as there, such as `datasets>=5.2`."""
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(setup_cfg)
    texts = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def missing_packages(requirements: Iterable[str]) -> list[str]:
    """Requirements that are not met here, and those of the packages that are installed, and so on; each as pip takes it.

    Of the packages that others need, only those that are not there at all count: an environment may have other versions and
    work.
    """
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return ["packaging"]
    missing: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [(text, True) for text in requirements]
    while waiting:
        text, is_own = waiting.pop(0)
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        if name in seen or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            missing[name] = f"{requirement.name}{requirement.specifier}"
            waiting += [(needed, False) for needed in NEEDED_BY.get(name, ())]
            continue
        if is_own and not requirement.specifier.contains(installed.version, prereleases=True):
            missing[name] = f"{requirement.name}{requirement.specifier}"
        waiting += [(needed, False) for needed in installed.requires or ()]
    return sorted(missing.values())


def how_to_bring(missing: Iterable[str]) -> str:
    """Commands that bring packages to a machine without a network."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    names = " ".join(f"'{requirement}'" for requirement in missing)
    return (
        f"with a network: pip install {names}\n"
        "without one, on a machine that has one, and then here:\n"
        f"  python -m pip download --no-deps --only-binary=:all: --python-version {python} -d WHEELS {names}\n"
        f"  python {sys.argv[0]} --wheels WHEELS ..."
    )


def install_wheels(wheels: Path, target: Path) -> str | None:
    """Install every wheel of a folder into another folder, without a network, and have this process find them.

    The packages that are installed already stay as they are.

    Returns:
        `str`, *optional*: What went wrong.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        return f"{wheels} holds no wheels"
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, files)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        return lines[-1] if lines else f"pip ended with code {result.returncode}"
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    return None
