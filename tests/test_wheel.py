"""The wheel by itself, outside the checkout: its files, its console script, and pretraining from it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT / "modeling_sit", folder / "source" / "modeling_sit", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "source")
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that has the wheel, and nothing else, installed."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Run a program with the installed package in an empty folder; gives what it prints."""

    def run(*command) -> str:
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [str(word) for word in command]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files(wheel):
    """All of the package, its plans, its recipes and its templates; neither tests nor scripts."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("*.py", "plans/*.yaml", "recipes/*.yaml", "templates/*.md"):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling_sit").rglob(pattern)}
        assert sources and sources <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"modeling_sit"}


PROGRAM = f"""
import contextlib, runpy, sys

script, *flags = sys.argv[1:]
sys.argv = [script, *flags]
with contextlib.suppress(SystemExit):  # of a failure, the files that it does not write tell
    runpy.run_path(script, run_name="__main__")

import modeling_sit

print(modeling_sit.__file__)
run = modeling_sit.pretrain(
    "digits", "p", recipe="digits", max_train_steps=2, config_overrides={TINY!r}, per_device_train_batch_size=8, monitors="none"
)
print(type(run.model).__name__, run.output_dir)

sys.argv = [str(modeling_sit.__file__).replace("__init__", "__main__"), "--help"]
runpy.run_module("modeling_sit", run_name="__main__")
"""


def test_its_console_script_its_function_and_its_module(run, installed, tmp_path):
    """All in one process, for it takes seconds to start one: the script and the function pretrain by the name of a recipe."""
    flags = ["pretrain", "digits", "--output_dir", "o", "--max_steps", "20", "--config_overrides", TINY]
    flags += ["--per_device_train_batch_size", "8", "--monitors", "none"]
    said = run(sys.executable, "-c", PROGRAM, installed / "bin" / "modeling-sit", *flags)
    assert (tmp_path / "o" / "model.safetensors").is_file()
    assert (tmp_path / "o" / "README.md").read_text().startswith("---")
    lines = said.splitlines()
    end = lines.index("SiTForPreTraining p")
    assert str(installed / "modeling_sit" / "__init__.py") in lines[:end]
    help_text = "\n".join(lines[end + 1 :])
    assert "python -m modeling_sit COMMAND" in help_text and "pretrain" in help_text
