"""`modeling-sit COMMAND`: how commands are found, and that every way to start one is the same."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from modeling_sit.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
SCRIPT_NAMES = {
    "compare-methods": "compare_methods",
    "convert": "convert_checkpoint",
    "push": "push_to_hub",
    "tile": "tile_images",
}


def ended(*argv) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in argv])
    return end.value.code


def test_help_lists_the_commands(capsys):
    assert ended("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text and purpose in text for name, purpose in COMMANDS.items())


def test_version_names_what_a_bug_report_needs(capsys):
    assert ended("--version") == 0
    lines = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__.split("+")[0] and lines["transformers"] == transformers.__version__
    assert {"modeling-sit", "accelerate", "datasets", "huggingface_hub", "python"} < set(lines)


def test_the_usage_line_names_what_must_be_there(capsys):
    for argv, usage in (
        (["pretrain"], "[RECIPE] --dataset DATASET --output_dir OUTPUT_DIR [--FLAG VALUE ...]"),
        (["convert"], "FROM TO --format FORMAT [--FLAG VALUE ...]"),
    ):
        assert ended(*argv, "--help") == 0
        assert capsys.readouterr().out.splitlines()[0].endswith(f" {argv[0]} {usage}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_an_example(name, capsys):
    kinds = ("reconstructions", "embeddings", "attention", "neighbours") if name == "visualize" else ("",)
    for kind in kinds:
        assert ended(*filter(None, (name, kind)), "--help") == 0
        text = capsys.readouterr().out
        assert f"    modeling-sit {name} {kind}".rstrip() in text


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [([], "no command"), (["pretrian"], "did you mean pretrain?"), (["--dataset", "digits"], "no command")],
)
def test_unknown_commands(argv, culprit, capsys):
    assert ended(*argv) == 2
    error = capsys.readouterr().err
    assert culprit in error and len(error.splitlines()) == 1


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "modeling_sit.cli.tile", raising=False)
    monkeypatch.delitem(sys.modules, "modeling_sit.data.tile", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = ended("tile")
    assert message.startswith("error: tile needs the package 'datasets'")
    assert message.endswith("pip install modeling-sit[train]") and "\n" not in message


def test_a_missing_module_of_the_package_is_a_bug(monkeypatch):
    monkeypatch.setitem(sys.modules, "modeling_sit.cli.tile", None)
    with pytest.raises(ModuleNotFoundError):
        main(["tile"])


@pytest.mark.parametrize(
    ("start", "command"),
    [
        (lambda: runpy.run_module("modeling_sit", run_name="__main__"), ["tile"]),
        (lambda: runpy.run_path(str(ROOT / "scripts" / "tile_images.py"), run_name="__main__"), []),
        (main, ["tile"]),
    ],
    ids=["module", "script", "entry point"],
)
def test_every_way_to_start_is_the_same(start, command, tmp_path, monkeypatch, capsys):
    flags = ["--dataset", "digits", "--output_dir", str(tmp_path), "--grid", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["program", *command, *flags])
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])  # as Python does for a script
    with pytest.raises(SystemExit) as end:
        start()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --grid: ")


def test_a_script_does_not_hide_the_library_evaluate():
    """In a process that has imported nothing yet; it stops where the command would start."""
    program = (
        "import importlib.util, runpy, sys, types\n"
        "start = types.SimpleNamespace(main=lambda argv: print(importlib.util.find_spec('evaluate').origin))\n"
        "sys.modules.update({'modeling_sit': start, 'modeling_sit.cli': start, 'modeling_sit.cli.main': start})\n"
        "sys.path.insert(0, sys.argv[1])\n"  # as Python does for a program
        "runpy.run_path(sys.argv[1] + '/evaluate.py', run_name='__main__')\n"
    )
    scripts = str(ROOT / "scripts")
    result = subprocess.run([sys.executable, "-c", program, scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "site-packages" in result.stdout and scripts not in result.stdout


def test_scripts_are_thin_and_one_for_each_command():
    for command in COMMANDS:
        lines = (ROOT / "scripts" / f"{SCRIPT_NAMES.get(command, command)}.py").read_text().splitlines()
        assert len(lines) <= 10 and f'main(["{command}", *sys.argv[1:]])' in lines[-1]
