"""The quickstart: the table, the images, and the lines that it prints to load the model."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

import joblib
import PIL.Image
import pytest

import modeling_sit
from modeling_sit.experiments import quickstart as module
from modeling_sit.experiments.comparison_runs import Choice
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs of a few steps, with two seeds."""
    monkeypatch.setattr(module, "SEEDS", (0, 1))
    choices = {
        cell: Choice(1e-4 if cell[0] == "scratch" else 1e-3, 2 if cell[1] < 1 else 1) for cell in module.CHOICES
    }
    monkeypatch.setattr(module, "CHOICES", choices)


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request, monkeypatch):
    """How many cores there are: with two a second process takes a part of the runs."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: request.param)
    return request.param


def test_everything(cores, tmp_path, monkeypatch, capsys):
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
            choice = module.CHOICES[start, fraction]
            assert (results["learning_rate"], results["steps"]) == (choice.learning_rate, choice.max_steps)

    table = (output_dir / "results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    main = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:8]}
    assert list(main) == [
        "raw pixels, kNN",
        "raw pixels, logistic regression",
        "raw pixels, RBF SVM",
        "untrained encoder",
        "from scratch",
        "pretrained",
    ]
    for name, start in (("from scratch", "scratch"), ("pretrained", "pretrained")):
        for column, fraction in (("10 % of the labels", 0.1), ("all labels", 1.0)):
            values = [100 * value for value in accuracies[fraction, start]]
            assert main[name][column] == f"{mean(values):.1f} ± {stdev(values):.1f} %"
    # What pretraining for a step cannot beat.
    assert float(main["raw pixels, RBF SVM"]["10 % of the labels"].split()[0]) > 85
    assert len(figures["verdict"]) == 2 and all(text in out for text in figures["verdict"])
    assert table.strip() in out

    log = output_dir / module.SECOND_LOG
    assert log.exists() == (cores == 2)
    if cores == 2:
        in_second = set(re.findall(r"finetuned-\S+seed\d", log.read_text()))
        assert in_second == {
            *(f"finetuned-scratch-{share}%-seed{seed}" for share in (10, 100) for seed in (0, 1)),
            *(f"finetuned-pretrained-{share}%-seed0" for share in (10,)),
        }

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


def test_a_wrong_length_deletes_nothing(tmp_path):
    run = tmp_path / "finetuned-scratch-10%-seed0"
    run.mkdir()
    with pytest.raises(SiTError) as raised:
        module.run_quickstart(module.QuickstartArguments(str(tmp_path), max_steps=0))
    assert raised.value.argument == "max_steps"
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_unknown_flag(one_line_error):
    assert "--max_steps" in one_line_error("quickstart", "--max_stepz=3", code=2)
