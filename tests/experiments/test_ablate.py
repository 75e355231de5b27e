"""Ablations: shared runs, a table that says what the runs say, and what happens to a cell that fails, a kill and a second process."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import PIL.Image
import pytest
import yaml

from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import select_label_fraction
from modeling_sit.experiments import ablation_runs, comparison_runs, pretraining_runs
from modeling_sit.experiments.ablate import AblationResult, ablate
from modeling_sit.experiments.ablation_arguments import AblationArguments, settle_measures
from modeling_sit.experiments.plan import FOLDER, read_plan
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.metric_logger import MetricLogger, NonFiniteLoss
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.recipes import shipped_names

OVERRIDES = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"
PLAN = {
    "question": "Which of these?",
    "claim": "The second.",
    "seeds": [0],
    "protocols": ["knn"],
    "label_fractions": [1.0],
    "raw_pixels": ["knn"],
    "monitors": "rankme,knn",
    "steps": 4,
    "pretrain": {
        "config_overrides": OVERRIDES,
        "image_size": 16,
        "patch_size": 8,
        "per_device_train_batch_size": 16,
        "preview_steps": 0,
        "monitor_images": 16,
        "checkpointing_steps": "1",
    },
    "grids": [
        {
            "training": {"noise": {"corruption": "noise"}},
            "measured": {"half": {"measured_after": 0.5}, "whole": {}, "mean": {"evaluate": {"pooling": "mean"}}},
        },
        {
            "training": {"replace": {"corruption": "replace", "length": 0.5, "image_fraction": 0.5}},
            "measured": {"whole": {}},
        },
    ],
}
NAMES = ["noise/half", "noise/whole", "noise/mean", "replace/whole"]


@pytest.fixture(scope="module")
def digits():
    """64 images of train, 30 of test, one of which is of train, too."""
    images = load_images("digits", labels="required", validation_split="test")
    test = datasets.concatenate_datasets([images.validation.select(range(29)), images.train.select([0])])
    return datasets.DatasetDict(train=images.train.select(range(64)), test=test)


@pytest.fixture
def fine_tuned(monkeypatch):
    """Models that would be fine-tuned: folder and start. They are not, for that takes long; their results follow from the seed."""
    started = []

    def fine_tune(arguments, training, hub, is_told):
        started.append((Path(training.output_dir).name, arguments.model_name_or_path, arguments.from_scratch))
        results = {"finetune": {"accuracy": 0.5 + training.seed / 10, "num_validation": 30}}
        comparison_runs.write_results(Path(training.output_dir), results)

    monkeypatch.setattr(comparison_runs, "run_finetuning", fine_tune)
    return started


@pytest.fixture
def run(digits, fine_tuned, forget_accelerators, tmp_path):
    """Ablate tiny models on a few digits."""

    def run(values=PLAN, folder="out", dataset=digits, **arguments) -> AblationResult:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return ablate(tmp_path / "mine.yaml", dataset, tmp_path / folder, **arguments)

    run.output_dir = tmp_path / "out"
    return run


def lines_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values_in(folder: Path) -> dict[tuple[str, ...], str]:
    return {(line["cell"], line["seed"], line["measure"]): line["value"] for line in lines_in(folder)}


def times_of(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*") if path.suffix in (".json", ".safetensors")
    }


def test_a_killed_ablation_goes_on_and_gives_the_table_of_one_that_was_not(
    run, digits, fine_tuned, tmp_path, monkeypatch, capsys
):
    count_step, steps = MetricLogger.count_step, iter(range(1, 1000))

    def counting(self):
        count_step(self)
        if next(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricLogger, "count_step", counting)
        with pytest.raises(TrainingInterrupted, match="goes on there"):
            run()
    assert not (run.output_dir / "results.md").exists()
    result = run()
    assert "going on from" in capsys.readouterr().out
    assert len(list(run.output_dir.glob("runs/pretrained-*"))) == 2, "three cells measure one pretraining"
    assert not list(run.output_dir.glob("runs/pretrained-*/checkpoints"))

    # What the tables say is what the runs say.
    values, lines = values_in(run.output_dir), lines_in(run.output_dir)
    assert list(dict.fromkeys(line["cell"] for line in lines)) == [*NAMES, "untrained encoder", "raw pixels, kNN"]
    assert {line["measure"] for line in lines if line["cell"] in NAMES} == {
        "knn",
        "fine-tuned 100%",
        "rankme",
        "knn_accuracy",
    }
    for row in result.findings.cells:
        steps_of = {"noise/half": 2, "replace/whole": 2}.get(row.name, 4)
        model = Path(row.models[0])
        assert model.name == "step-00000002" if row.name == "noise/half" else model.name.startswith("pretrained-")
        run_dir = model.parents[1] if row.name == "noise/half" else model
        part = select_label_fraction(digits["train"], 0.5, 0) if row.name == "replace/whole" else digits["train"]
        assert read_output_state(run_dir).determined_by["num_images"] == len(part)
        assert row.costs[0].steps == steps_of
        assert row.costs[0].epochs == pytest.approx(steps_of / (len(part) // 16))
        monitored = [json.loads(line) for line in (run_dir / "monitors.jsonl").open()]
        measured = next(line for line in monitored if line["step"] == steps_of)
        assert [row.values[name][0] for name in ("rankme", "knn_accuracy")] == [
            measured["rankme"],
            measured["knn_accuracy"],
        ]
    frozen = {
        json.loads(path.read_text())["knn"]["pooling"]: json.loads(path.read_text())["knn"]["accuracy"]
        for path in run.output_dir.glob("runs/frozen-*/eval_results.json")
    }
    assert float(values["noise/mean", "0", "knn"]) == frozen["mean"]
    assert [name for name, _, _ in fine_tuned[-5:]] == list(dict.fromkeys(name for name, _, _ in fine_tuned[-5:]))
    assert sum(from_scratch for _, _, from_scratch in fine_tuned[-5:]) == 1
    text = (run.output_dir / "results.md").read_text()
    for part in ("Which of these?", "The second.", "30 images of test", "one seed", "raw pixels, kNN", "from scratch"):
        assert part in text
    assert "- 1 image is in test and in train too, byte for byte, such as " in text
    assert "is best on these test images" in text and text.strip() == "\n\n".join(result.tables)
    assert {path.name for path in run.output_dir.glob("results-*.png")} == {
        "results-training.png",
        "results-measured.png",
    }

    # Nothing is run again, and a run that was not killed says the same. A user's chart stays.
    (run.output_dir / "results-mine.png").touch()
    before = times_of(run.output_dir)
    with monkeypatch.context() as patch:
        for module, name in ((pretraining_runs, "pretrain"), (comparison_runs, "run_evaluation")):
            patch.setattr(module, name, None)
        run()
    assert times_of(run.output_dir) == before
    capsys.readouterr()
    run(folder="other")
    assert values_in(tmp_path / "other") == values
    counts = re.findall(r"^\[(\d+) of (\d+)\]", capsys.readouterr().out, re.MULTILINE)
    assert counts == [(str(number + 1), "13") for number in range(13)], "untrained encoder and raw pixels are counted"
    assert (run.output_dir / "results-mine.png").exists()


SHORT = {
    **PLAN,
    "steps": 1,
    "monitors": [],
    "label_fractions": [],
    "raw_pixels": [],
    "factors": {"corruption": ["noise", "replace"]},
}
del SHORT["grids"]


def test_a_cell_that_diverges_is_named_and_the_others_go_on(run, monkeypatch, capsys):
    pretrain, tried = pretraining_runs.pretrain, []

    def diverging(**given):
        tried.append(given["corruption"])
        if given["corruption"] == "noise":
            raise SiTError("loss not finite at step 3") from NonFiniteLoss(0, ["loss"])
        return pretrain(**given)

    monkeypatch.setattr(pretraining_runs, "pretrain", diverging)
    for _ in range(2):
        result = run(SHORT)
        (name,) = result.failed
        assert name == "noise, seed 0" and "loss not finite at step 3" in result.failed[name]
        values = values_in(run.output_dir)
        assert ("replace", "0", "knn") in values and not any(cell == "noise" for cell, *_ in values)
    assert tried == ["noise", "replace"], "it would diverge again"
    assert "| noise | failed |" in (run.output_dir / "results.md").read_text()
    assert "failed: noise, seed 0: loss not finite" in capsys.readouterr().err

    # Another failure may be gone the next time: in it is no reason to lose the others.
    def broken(start, seed=None):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs.Runs, "frozen", lambda self, start, seed: broken(start))
        failed = run(SHORT, seeds=[1], cells=["replace"]).failed
    assert failed == {f"{name}, seed 1": "RuntimeError: out of memory" for name in ("replace", "untrained encoder")}
    assert "Traceback" in capsys.readouterr().err
    assert run(SHORT, seeds=[1], cells=["replace"]).failed == {}


def test_a_full_disk_stops_all_in_a_line(run, monkeypatch):
    def full(run_dir, given):
        raise SiTError(f"{run_dir} cannot be written: No space left on device") from OSError(
            28, "No space left on device"
        )

    monkeypatch.setattr(ablation_runs, "pretrain_in", full)
    with pytest.raises(SiTError, match="No space left") as error:
        run(SHORT)
    assert error.value.argument == "output_dir" and "goes on" in error.value.remedy
    assert not list(run.output_dir.glob("runs/*/eval_results.json"))


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_what_another_process_is_at_is_left_to_it(run):
    """Cells, and plans with the same folder of runs, are taken one by one."""
    first = run(SHORT, cells=["noise"])
    lock = run.output_dir / "runs" / "locks" / f"{Path(first.findings.cells[0].models[0]).name}.lock"
    assert lock.is_file() and "Not run yet: replace" in (run.output_dir / "results.md").read_text()
    both = {**SHORT, "factors": {"corruption": ["noise", "zeros"]}}
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        result = run(both, folder="second", runs_dir=run.output_dir / "runs")
        other.kill()
    assert "Other processes are at: noise (seed 0)." in (run.output_dir.parent / "second" / "results.md").read_text()
    # Of the other plan's run, which is finished, the results are there all the same.
    assert (
        values_in(run.output_dir.parent / "second")["noise", "0", "knn"]
        == values_in(run.output_dir)["noise", "0", "knn"]
    )
    assert set(result.findings.cells[1].models) == {0}


@pytest.mark.parametrize("changed", ["nothing", "number", "pixels"])
def test_runs_of_the_same_folder_with_other_images_are_no_results(run, digits, tmp_path, capsys, changed):
    """A folder of runs that several plans share: its runs are known by their images too."""
    images, arguments = tmp_path / "images", {"runs_dir": tmp_path / "runs"}
    digits.save_to_disk(images)
    run(SHORT, dataset=images, **arguments)
    if changed != "nothing":
        shutil.rmtree(images)
        train = digits["train"].select([*range(60), *range(4)])
        if changed == "pixels":
            train = digits["train"].map(
                lambda row, number: {"image": PIL.Image.new("L", (8, 8))} if not number else row, with_indices=True
            )
        datasets.DatasetDict(train=train, test=digits["test"]).save_to_disk(images)
    run(SHORT, folder="again", dataset=images, dry_run=True, **arguments)
    assert f"2 pretrainings, {2 if changed == 'nothing' else 0} of them done" in capsys.readouterr().out


def test_a_dry_run_says_what_there_is_to_do(run, capsys):
    result = run({**PLAN, "seeds": [0, 1, 2]}, dry_run=True)
    text = capsys.readouterr().out
    assert result.findings is None and result.tables[0] in text and not run.output_dir.exists()
    assert "4 cells with 3 seeds, 6 pretrainings, 0 of them done" in text
    assert "noise/half, noise/whole, noise/mean: 4 steps of" in text and "replace/whole: 2 steps of" in text
    assert (
        "left: 18 steps of pretraining, about" in text
        and "15 measurements and 15 fine-tunings and the raw pixels" in text
    )


def test_errors_before_anything_runs(run, one_line_error, tmp_path):
    (tmp_path / "mine.yaml").write_text("question: Which?\ncells:\n  a: {corrupton: noise}\n")
    flags = ("--dataset", "digits", "--output_dir", tmp_path / "out")
    line = one_line_error("ablate", tmp_path / "mine.yaml", *flags)
    assert line.startswith("plan: cell a: ") and line.endswith("did you mean corruption?")
    for arguments, argument in (
        ({"pretraining_recipe": "nowhere"}, "pretraining_recipe"),
        ({"finetuning_recipe": "nowhere"}, "finetuning_recipe"),
        ({"cells": ["x"]}, "cells"),
        ({"cells": [""]}, "cells"),
        ({"protocols": ["kn"]}, "protocols"),
        ({"protocols": ["none"]}, "protocols"),
        ({"label_fractions": ["all"]}, "label_fractions"),
        ({"label_fractions": [2]}, "label_fractions"),
        ({"steps": 0}, "steps"),
    ):
        with pytest.raises(SiTError) as error:
            run(SHORT, **arguments)
        assert error.value.argument == argument, arguments
    assert not run.output_dir.exists()


def test_folder_of_the_runs_that_cannot_be(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SiTError) as error:
        run(SHORT, runs_dir=tmp_path / "file" / "runs")
    assert error.value.argument == "runs_dir"


@pytest.mark.parametrize(
    "command",
    [
        ["ablate", "loss", "--dataset", "digits"],
        ["compare-methods", "--dataset", "digits"],
        ["compare", "--dataset", "digits", "--model_name_or_path", "outputs/digits"],
        ["quickstart"],
    ],
    ids=lambda command: command[0],
)
def test_processes_of_a_launcher_are_refused(one_line_error, monkeypatch, tmp_path, command):
    """They would wait for one another in different runs."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = one_line_error(*command, "--output_dir", tmp_path / "out")
    assert line.startswith("2 processes") and "without a launcher" in line and not (tmp_path / "out").exists()


def test_the_command_ends_with_code_1_where_a_cell_failed(one_line_error, monkeypatch, tmp_path):
    failed = {"a, seed 0": "loss not finite", "b, seed 0": "x"}
    result = AblationResult(None, failed, [], {}, tmp_path)
    monkeypatch.setattr("modeling_sit.cli.ablate.run_ablation", lambda arguments: result)
    line = one_line_error("ablate", "loss", "--dataset", "digits", "--output_dir", tmp_path)
    assert "a, seed 0 (loss not finite), and 1 more" in line


def test_the_user_comes_before_the_profile_and_the_profile_before_the_plan():
    plan = read_plan("loss")
    given = {"plan": "loss", "dataset": "d", "output_dir": "o"}
    full, smoke = (settle_measures(AblationArguments(**given, profile=name), plan) for name in ("full", "smoke"))
    assert (full.seeds, full.steps, full.label_fractions, full.protocols) == (
        [0, 1, 2],
        None,
        [0.1],
        ["knn", "linear"],
    )
    assert (smoke.seeds, smoke.steps, smoke.label_fractions, smoke.raw_pixels) == ([0], 8, [0.1], ["knn"])
    own = AblationArguments(**given, profile="smoke", seeds=[5, 6], label_fractions=["none"], steps=3)
    own = settle_measures(own, plan)
    assert (own.seeds, own.steps, own.label_fractions, own.pixel_fractions) == ([5, 6], 3, [], [1.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names(FOLDER))
def test_shipped_plans(name, digits, forget_accelerators, tmp_path):
    """Each runs in small, with every cell."""
    result = ablate(name, digits, tmp_path / "out", profile="smoke")
    assert result.failed == {}
    assert all(set(row.values) >= {"knn", "linear", "rankme"} for row in result.findings.cells)
    assert len(result.charts) == len(read_plan(name).factors)
