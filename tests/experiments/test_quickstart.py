"""The quickstart: the table, the images, and the lines that it prints to load the model."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import PIL.Image
import pytest

import modeling_sit
from modeling_sit.experiments import quickstart as module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs of a few steps, with two seeds."""
    monkeypatch.setattr(module, "SEEDS", (0, 1))
    monkeypatch.setattr(module, "LABEL_FRACTIONS", {0.1: 0.4, 1.0: 0.04})


def test_everything(tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "quick start"
    monkeypatch.chdir(tmp_path)
    result = module.run_quickstart(module.QuickstartArguments("quick start", max_steps=1))
    assert result.output_dir == Path("quick start")
    out = capsys.readouterr().out

    figures = json.loads((output_dir / "results.json").read_text())
    accuracies = {(entry["label_fraction"], entry["start"]): entry["values"] for entry in figures["fine_tuned"]}
    assert set(accuracies) == {(0.1, "scratch"), (0.1, "pretrained"), (1.0, "scratch"), (1.0, "pretrained")}
    for (fraction, start), values in accuracies.items():
        assert len(values) == 2
        for seed, value in zip((0, 1), values, strict=True):
            folder = output_dir / f"finetuned-{start}-{fraction:.0%}-seed{seed}"
            results = json.loads((folder / "eval_results.json").read_text())["finetune"]
            assert (results["accuracy"], results["seed"]) == (value, seed)
            assert (results["label_fraction"], results["from_scratch"]) == (fraction, start == "scratch")
            assert results["num_train"] == pytest.approx(1437 * fraction, abs=6)
            assert results["num_validation"] == 360

    table = (output_dir / "results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert rows[0] == ["labels", "scratch", "pretrained"]
    assert [row[0] for row in rows[2:]] == ["10 %", "100 %"]
    for row, fraction in zip(rows[2:], (0.1, 1.0), strict=True):
        for cell, start in zip(row[1:], ("scratch", "pretrained"), strict=True):
            values = [100 * value for value in accuracies[fraction, start]]
            assert cell == f"{mean(values):.1f} ± {stdev(values):.1f} %"
    assert table.strip() in out

    previews = sorted((output_dir / "pretrained" / "previews").iterdir())
    assert (output_dir / "reconstructions.png").read_bytes() == previews[-1].read_bytes()
    for name in ("results.png", "reconstructions.png"):
        with PIL.Image.open(output_dir / name) as image:
            image.load()
            assert min(image.size) > 200
        assert name in out

    *_, first, second, third = out.strip().splitlines()
    lines = "\n".join([first, second, third])
    assert first == "import modeling_sit"
    namespace = {}
    exec(lines, namespace)
    assert isinstance(namespace["model"], modeling_sit.SiTModel)
    assert namespace["model"].config.hidden_size == 64
    assert re.search(r"took [\d.]+ minutes", out)


def test_unknown_flag(one_line_error):
    assert "--max_steps" in one_line_error("quickstart", "--max_stepz=3", code=2)
