"""The notebooks: written without outputs, and each runs from its first cell to its last, on small settings.

The cells run in this process, in IPython: a kernel for each notebook would spend more time on imports than on its cells.
"""

import ast
import base64
import io
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import PIL.Image
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from modeling_sit.data import dataset_forms

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Settings in place of a notebook's own, and how many figures it shows at least.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "01_pretrain_on_your_images": ({"STEPS": 2}, 6),
    "02_fine_tune_and_compare": ({"PRETRAINING_STEPS": 2, "STEPS": 2, "SEEDS": [0]}, 3),
    "03_detect_and_segment": ({"NUM_SCENES": 32, "PRETRAINING_STEPS": 2, "STEPS": 2}, 4),
    "04_which_method": ({"METHODS": ["mae"], "STEPS": 2, "FINETUNING_STEPS": 2}, 3),
}

NUM_DIGITS = {"train": 250, "test": 50}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged_cells(notebook: nbformat.NotebookNode) -> list[int]:
    """Numbers of the cells of settings, by the tag that papermill has for them."""
    return [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


@pytest.fixture
def shell(ipython, tmp_path, monkeypatch, forget_accelerators) -> InteractiveShell:
    """IPython in an empty folder, with fewer digits."""
    monkeypatch.chdir(tmp_path)
    fewer = {name: split.select(range(NUM_DIGITS[name])) for name, split in dataset_forms._load_digits().items()}
    monkeypatch.setattr(dataset_forms, "_load_digits", lambda: dict(fewer))
    return ipython


def run_cell(shell: InteractiveShell, source: str) -> list[Any]:
    """What a cell shows. Raises what it raises."""
    with capture_output() as captured:
        outcome = shell.run_cell(source)
    outcome.raise_error()
    return [shown.data for shown in captured.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_figures(path, shell):
    settings, num_figures = SMALL[path.stem]
    notebook, shown = read(path), []
    (place,) = tagged_cells(notebook)
    injected = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in settings.items()))
    for cell in [*notebook.cells[: place + 1], injected, *notebook.cells[place + 1 :]]:
        if cell.cell_type == "code":
            shown += run_cell(shell, cell.source)
    figures = [data["image/png"] for data in shown if "image/png" in data]
    assert len(figures) >= num_figures
    for figure in figures:
        png = base64.b64decode(figure) if isinstance(figure, str) else figure
        assert np.asarray(PIL.Image.open(io.BytesIO(png)).convert("L")).std() > 5  # something is drawn
    assert any("text/markdown" in data for data in shown)


def test_error_of_a_cell_is_an_error_here(shell):
    with pytest.raises(ZeroDivisionError):
        run_cell(shell, "1 / 0")
    with pytest.raises(SyntaxError):
        run_cell(shell, "settings = (")


def test_every_notebook_has_small_settings():
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.cells[0].source.startswith("# ")
    # One cell of settings, and small settings replace what is set there.
    (place,) = tagged_cells(notebook)
    names = {node.targets[0].id for node in ast.parse(notebook.cells[place].source).body}
    assert set(SMALL[path.stem][0]) <= names
    # Before the settings, nothing but the installation.
    assert [cell.cell_type for cell in notebook.cells[:place]].count("code") == 1
