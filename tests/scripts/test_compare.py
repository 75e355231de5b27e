"""scripts/compare.py: every run is what it is called, tables say what the runs say, and a second call goes on."""

import importlib.util
import json
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def compare(load_program, run_program, save_tiny_sit, tmp_path, monkeypatch):
    """Run the program with a tiny model on digits, with the measuring of frozen features in this process too."""
    program = load_program("compare")
    save_tiny_sit(tmp_path / "model", num_channels=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("num_train_epochs: 0.05\neval_strategy: 'no'\nsave_strategy: 'no'\n")
    # By another name than its own, which is that of a package.
    spec = importlib.util.spec_from_file_location("evaluate_program", SCRIPTS / "evaluate.py")
    monkeypatch.setitem(sys.modules, "evaluate_program", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["evaluate_program"])

    def evaluate(command):
        assert command[:2] == [sys.executable, str(SCRIPTS / "evaluate.py")]
        return program.subprocess.CompletedProcess(command, run_program("evaluate_program", *command[2:]))

    monkeypatch.setattr(program.subprocess, "run", evaluate)

    def run(*flags) -> int:
        given = ["--model_name_or_path", tmp_path / "model", "--dataset", "digits", "--output_dir", tmp_path / "out"]
        return run_program("compare", *given, "--finetuning_recipe", recipe, *flags)

    run.output_dir, run.recipe = tmp_path / "out", recipe
    return run


def results_of(compare) -> dict:
    return json.loads((compare.output_dir / "results.json").read_text())


def test_tables_say_what_the_runs_say_and_more_seeds_are_added(compare, capsys):
    flags = ["--label_fractions", 0.05, "--num_train_epochs", 0.5, "--protocols", "knn"]
    assert compare(*flags, "--seeds", 0) == 0
    first = {path: path.stat().st_mtime_ns for path in compare.output_dir.glob("f*/eval_results.json")}
    assert {path.parent.name for path in first} == {
        "finetuned-scratch-5%-seed0",
        "finetuned-pretrained-5%-seed0",
        "frozen-scratch",
        "frozen-pretrained",
    }
    assert compare(*flags, "--seeds", 0, 3) == 0
    out = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())

    results = results_of(compare)
    assert results["seeds"] == [0, 3]
    table = (compare.output_dir / "results.md").read_text()
    assert table.strip() in out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    fine_tuned = dict(zip(rows[0], rows[2], strict=True))
    for entry in results["fine_tuned"]:
        runs = []
        for seed in (0, 3):
            folder = compare.output_dir / f"finetuned-{entry['start']}-5%-seed{seed}"
            run = json.loads((folder / "eval_results.json").read_text())["finetune"]
            assert (run["seed"], run["from_scratch"], run["label_fraction"]) == (
                seed,
                entry["start"] == "scratch",
                0.05,
            )
            assert (run["split"], run["num_train"]) == ("test", pytest.approx(72, abs=6))
            runs.append(run["accuracy"])
        assert entry["values"] == runs
        assert fine_tuned[entry["start"]] == f"{100 * mean(runs):.1f} ± {100 * stdev(runs):.1f} %"
    accuracy = dict(zip(rows[3], next(row for row in rows[3:] if row[:2] == ["knn", "accuracy"]), strict=True))
    for start in ("scratch", "pretrained"):
        measured = json.loads((compare.output_dir / f"frozen-{start}" / "eval_results.json").read_text())["knn"]
        assert measured["from_scratch"] is (start == "scratch")
        assert results["frozen"][start] == {"knn": measured}
        assert accuracy[start].startswith(f"{100 * measured['accuracy']:.1f} % (")
    assert (compare.output_dir / "results.png").stat().st_size > 1000


def test_other_settings_need_another_folder(compare, one_line_error, tmp_path):
    flags = ["--label_fractions", 0.05, "--protocols", "none", "--seeds", 0]
    assert compare(*flags) == 0
    kept = compare.output_dir / "finetuned-scratch-5%-seed0" / "eval_results.json"
    before = kept.stat().st_mtime_ns
    compare.recipe.write_text("num_train_epochs: 0.1\neval_strategy: 'no'\nsave_strategy: 'no'\n")
    line = one_line_error(
        *("compare", "--model_name_or_path", tmp_path / "model", "--dataset", "digits"),
        *("--finetuning_recipe", compare.recipe, "--output_dir", compare.output_dir, *flags),
    )
    assert "another finetuning_recipe" in line and "--overwrite_output_dir" in line
    assert kept.stat().st_mtime_ns == before
    assert compare(*flags, "--overwrite_output_dir", True) == 0
    assert kept.stat().st_mtime_ns > before
    assert results_of(compare)["frozen"] == {}


def test_a_run_that_was_cut_off_goes_on(compare):
    compare.recipe.write_text("num_train_epochs: 1\neval_strategy: 'no'\nsave_strategy: steps\nsave_steps: 1\n")
    flags = ["--label_fractions", 0.05, "--protocols", "none", "--seeds", 0]
    assert compare(*flags) == 0
    run_dir = compare.output_dir / "finetuned-pretrained-5%-seed0"
    whole = (run_dir / "eval_results.json").read_bytes()
    (run_dir / "eval_results.json").unlink()
    checkpoints = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    assert before and compare(*flags) == 0
    assert [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (run_dir / "eval_results.json").read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "code", "messages"),
    [
        (["--label_fractions", 0.1, 1.5], 2, ["--label_fractions", "(0, 1]"]),
        (["--seeds", 1, 1], 2, ["--seeds", "twice"]),
        (["--num_train_epochs", 1, 2, 3], 2, ["--num_train_epochs", "--label_fractions"]),
        (["--finetuning_recipe", "none.yaml"], 1, ["none.yaml"]),
        (["--validation_split", "holdout"], 1, ["--validation_split holdout"]),
        (["--protocols", "knn", "--dataset_config_name", "x", "--seeds", 0, "--label_fractions", 0.05], 1, ["digits"]),
    ],
)
def test_flag_that_cannot_be(one_line_error, compare, tmp_path, flags, code, messages):
    given = ["--model_name_or_path", tmp_path / "model", "--dataset", "digits", "--output_dir", tmp_path / "out"]
    line = one_line_error("compare", *given, *flags, code=code)
    assert all(message in line for message in messages), line
