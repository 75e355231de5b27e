"""Comparing: every run is what it is called, tables say what the runs say, and a second call goes on."""

import json
from statistics import mean, stdev

import pytest
import yaml

from modeling_sit.experiments import compare as module
from modeling_sit.experiments.compare import ComparisonArguments, ComparisonResult, compare
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted

RECIPE = {"num_train_epochs": 0.05, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True}


@pytest.fixture
def run(save_tiny_sit, tmp_path):
    """Compare a tiny model on digits."""
    save_tiny_sit(tmp_path / "model", num_channels=1)
    run_recipe = tmp_path / "recipe.yaml"

    def run(**arguments) -> ComparisonResult:
        given = {"finetuning_recipe": run_recipe, "label_fractions": [0.05], "seeds": [0], "protocols": ["none"]}
        return compare(tmp_path / "model", "digits", tmp_path / "out", **{**given, **arguments})

    run.output_dir = tmp_path / "out"
    run.write_recipe = lambda **values: run_recipe.write_text(yaml.safe_dump({**RECIPE, **values}))
    run.write_recipe()
    return run


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def results_in(folder) -> dict:
    return json.loads((folder / "eval_results.json").read_text())


def test_tables_say_what_the_runs_say_and_more_seeds_are_added(run, capsys):
    given = {"num_train_epochs": [0.5], "protocols": ["knn"]}
    run(**given)
    first = {path: path.stat().st_mtime_ns for path in run.output_dir.glob("f*/eval_results.json")}
    assert {path.parent.name for path in first} == {
        "finetuned-scratch-5%-seed0",
        "finetuned-pretrained-5%-seed0",
        "frozen-scratch",
        "frozen-pretrained",
    }
    result = run(**given, seeds=[0, 3])
    out = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())

    saved = json.loads((run.output_dir / "results.json").read_text())
    assert saved["seeds"] == [0, 3] and saved["frozen"] == result.frozen
    assert saved["fine_tuned"] == [vars(cell) for cell in result.fine_tuned]
    text = (run.output_dir / "results.md").read_text()
    assert text.strip() in out and text == "\n\n".join(result.tables) + "\n"
    header, _, row = rows_of(result.tables[0])
    fine_tuned = dict(zip(header, row, strict=True))
    for cell in result.fine_tuned:
        runs = []
        for seed in (0, 3):
            measured = results_in(run.output_dir / f"finetuned-{cell.start}-5%-seed{seed}")["finetune"]
            assert measured["seed"] == seed and measured["label_fraction"] == 0.05
            assert measured["from_scratch"] is (cell.start == "scratch")
            assert (measured["split"], measured["num_train"]) == ("test", pytest.approx(72, abs=6))
            runs.append(measured["accuracy"])
        assert cell.values == runs and cell.metric == "accuracy"
        assert fine_tuned[cell.start] == f"{100 * mean(runs):.1f} ± {100 * stdev(runs):.1f} %"
    rows = rows_of(result.tables[1])
    accuracy = dict(zip(rows[0], next(row for row in rows if row[:2] == ["knn", "accuracy"]), strict=True))
    for start in ("scratch", "pretrained"):
        measured = results_in(run.output_dir / f"frozen-{start}")["knn"]
        assert measured["from_scratch"] is (start == "scratch")
        assert result.frozen[start] == {"knn": measured}
        assert accuracy[start].startswith(f"{100 * measured['accuracy']:.1f} % (")
    assert (run.output_dir / "results.png").stat().st_size > 1000


def test_other_settings_need_another_folder(run):
    run()
    kept = run.output_dir / "finetuned-scratch-5%-seed0" / "eval_results.json"
    before = kept.stat().st_mtime_ns
    run.write_recipe(num_train_epochs=0.1)
    with pytest.raises(SiTError, match=r"another finetuning_recipe.*`overwrite_output_dir=True`") as error:
        run()
    assert error.value.argument == "output_dir"
    assert kept.stat().st_mtime_ns == before
    result = run(overwrite_output_dir=True)
    assert kept.stat().st_mtime_ns > before
    assert result.frozen == {} and len(result.tables) == 1


def test_a_run_that_was_cut_off_goes_on(run):
    run.write_recipe(num_train_epochs=1, save_strategy="steps", save_steps=1)
    run()
    run_dir = run.output_dir / "finetuned-pretrained-5%-seed0"
    whole = (run_dir / "eval_results.json").read_bytes()
    (run_dir / "eval_results.json").unlink()
    checkpoints = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    run()
    assert before and [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (run_dir / "eval_results.json").read_bytes() == whole


def test_signal_ends_the_comparison(run, monkeypatch):
    def interrupted(*arguments):
        raise TrainingInterrupted(15, 'after step 3, and `resume_from_checkpoint="auto"` goes on')

    monkeypatch.setattr(module, "run_finetuning", interrupted)
    with pytest.raises(TrainingInterrupted, match="the same comparison") as interruption:
        run()
    assert interruption.value.signal == 15


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"finetuning_recipe": "none.yaml"}, "finetuning_recipe"),
        ({"validation_split": "holdout"}, "validation_split"),
        ({"dataset_config_name": "x"}, "dataset_config_name"),
    ],
)
def test_mistakes_of_the_runs_name_our_arguments(run, arguments, argument):
    with pytest.raises(SiTError) as error:
        run(**arguments)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("arguments", "argument", "message"),
    [
        ({"label_fractions": [0.1, 1.5]}, "label_fractions", r"\(0, 1\]"),
        ({"seeds": [1, 1]}, "seeds", "twice"),
        ({"num_train_epochs": [1, 2, 3]}, "num_train_epochs", "`label_fractions`"),
    ],
)
def test_values_that_cannot_be(arguments, argument, message):
    with pytest.raises(SiTError, match=message) as error:
        ComparisonArguments(dataset="d", model_name_or_path="m", output_dir="o", **arguments)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [(["knn,linear"], ["knn", "linear"]), (["none"], []), (["knn", "linear"], ["knn", "linear"])],
)
def test_protocols(protocols, expected):
    arguments = ComparisonArguments(dataset="d", model_name_or_path="m", output_dir="o", protocols=protocols)
    assert arguments.protocols == expected


def test_as_a_program(run, run_program, tmp_path):
    flags = ["--label_fractions", 0.05, "--seeds", 0, "--protocols", "none"]
    given = ["--model_name_or_path", tmp_path / "model", "--dataset", "digits", "--output_dir", run.output_dir]
    assert run_program("compare", *given, "--finetuning_recipe", tmp_path / "recipe.yaml", *flags) == 0
    assert (run.output_dir / "results.md").exists()
    assert run().fine_tuned  # the settings are the same
