"""The package's face: what `import modeling_sit` brings, and what it finds when it is asked for."""

import os
import platform
import subprocess
import sys

import pytest

import modeling_sit
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted

# The same kinds of classes of transformers as the package's own.
VIT = (
    "from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining, "
    "AutoModelForImageClassification, ViTConfig, ViTModel, ViTForImageClassification, ViTImageProcessor, ViTImageProcessorPil)"
)
FUNCTIONS = ("ablate", "compare", "compare_methods", "embed", "evaluate", "finetune", "pretrain")


def in_a_process(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_importing_brings_no_more_than_the_vit_of_transformers():
    program = (
        "import sys\n"
        f"{VIT}\n"
        "before = set(sys.modules)\n"
        "import modeling_sit\n"
        "print(*sorted(name for name in set(sys.modules) - before))\n"
        "import modeling_sit.cli.pretrain\n"
        "print(*{'matplotlib', 'sklearn'} & set(sys.modules))\n"
    )
    result = in_a_process(program)
    assert result.returncode == 0, result.stderr
    brought, of_pretraining = (line.split() for line in result.stdout.split("\n")[:2])
    assert "modeling_sit.modeling_sit" in brought
    rooms = ("runtime", "data", "interop", "evaluation", "visualization", "hub", "pretraining", "finetuning", "cli")
    assert not [name for name in brought if name.startswith(tuple(f"modeling_sit.{room}" for room in rooms))]
    others = {name.partition(".")[0] for name in brought} - {"modeling_sit"}
    assert not others & {"accelerate", "datasets", "evaluate", "matplotlib", "pyarrow", "sklearn", "tqdm", "yaml"}
    # Its command waits a second less for them, and may never need them.
    assert of_pretraining == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another OpenMP than GCC's")
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "70"}, "70"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_wait_for_each_other_only_shortly(given, spins):
    """What GCC's OpenMP itself says that it read, unless the user gave something."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    result = subprocess.run(
        [sys.executable, "-c", "import modeling_sit"],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE", **given},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in result.stderr


def test_names():
    assert set(FUNCTIONS) <= set(dir(modeling_sit)) and "SiTModel" in dir(modeling_sit)
    assert set(modeling_sit.__all__) <= set(dir(modeling_sit))
    assert modeling_sit.SiTError is SiTError
    assert modeling_sit.TrainingInterrupted is TrainingInterrupted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_found(name):
    function = getattr(modeling_sit, name)
    assert callable(function) and function.__name__ == name
    assert function.__module__.startswith("modeling_sit.") and function.__doc__


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        modeling_sit.pretrian  # noqa: B018


@pytest.mark.parametrize("statement", ["modeling_sit.pretrain", "from modeling_sit import pretrain"])
def test_a_missing_extra_is_one_line(statement, monkeypatch):
    # As in a process that has not asked for it yet. `None` is how Python notes a module that must not be imported.
    monkeypatch.delitem(vars(modeling_sit), "pretrain", raising=False)
    monkeypatch.delitem(sys.modules, "modeling_sit.pretraining.run", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError) as error:
        exec(statement, {"modeling_sit": modeling_sit})
    message = str(error.value)
    assert message.startswith("modeling_sit.pretrain needs the package 'datasets'") and "\n" not in message
    assert "pip install modeling-sit[train]" in message
