"""scripts/benchmarks/initialization.py: both initializations under the same conditions, and a table that goes on where it was."""

import json

import pytest

import modeling_sit
from modeling_sit import SiTConfig
from modeling_sit.evaluation.results import read_results
from modeling_sit.pretraining.checkpoints import read_output_state

PROGRAM = "benchmarks/initialization"
TINY = ("--widths", 16, "--num_hidden_layers", 1, "--steps", 2, "--max_images", 200)
RUNS = [f"{start}-{name}" for start in ("sit", "scratch") for name in ("normal", "xavier")]


def test_figures_are_those_of_the_runs(run_program, tmp_path, capsys):
    assert run_program(PROGRAM, "--output_dir", tmp_path, *TINY, "--seeds", 0, 1) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "results.json").read_text())
    assert [(run["start"], run["initialization"], run["seed"]) for run in report["results"]] == [
        (*name.split("-"), seed) for seed in (0, 1) for name in RUNS
    ]
    values = {}
    for run in report["results"]:
        name, seed = f"{run['start']}-{run['initialization']}", run["seed"]
        measured = read_results(tmp_path / f"run-digits-16-{name}-seed{seed}")
        (measured,) = measured.values()
        assert run["value"] == measured["accuracy"] and measured["split"] == "validation"
        # A fifth of each of the classes, of about 200 images.
        assert 35 <= run["num_validation"] == measured["num_validation"] <= 45
        values.setdefault(name, []).append(run["value"])
        if run["start"] == "sit":
            assert run["last_line"]["step"] == 2

    table = (tmp_path / "results.md").read_text()
    assert table in said
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells[:3] == ["digits", f"{measured['num_train']} + {measured['num_validation']}", "16"]
    means = [100 * sum(values[name]) / 2 for name in RUNS]
    assert [cells[place].split(" ")[0] for place in (3, 4, 6, 7)] == [f"{mean:.1f}" for mean in means]
    assert (float(cells[5]), float(cells[8])) == pytest.approx((means[1] - means[0], means[3] - means[2]), abs=0.051)


def test_nothing_differs_but_the_initialization(run_program, tmp_path):
    assert run_program(PROGRAM, "--output_dir", tmp_path, *TINY, "--widths", 64) == 0
    runs = {name: tmp_path / f"run-digits-64-{name}-seed0" for name in RUNS}
    configs = {name: SiTConfig.from_pretrained(folder).to_dict() for name, folder in runs.items()}
    assert {name: config["initialization"] for name, config in configs.items()} == {
        name: name.split("-")[1] for name in RUNS
    }
    for start in ("sit", "scratch"):
        normal, xavier = (configs[f"{start}-{name}"] for name in ("normal", "xavier"))
        assert {name for name in normal if normal[name] != xavier[name]} <= {"initialization"}
        assert (normal["hidden_size"], normal["num_attention_heads"], normal["num_channels"]) == (64, 2, 1)
    settings = [read_output_state(runs[f"sit-{name}"]).settings for name in ("normal", "xavier")]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {
        "config_overrides",
        "output_dir",
    }


def test_it_goes_on_where_it_was_cut_off(run_program, tmp_path, monkeypatch, capsys):
    evaluate, folders = modeling_sit.evaluate, []

    def cut_off(model, *arguments, **keywords):
        folders.append(model)
        if len(folders) == 2:
            raise KeyboardInterrupt
        return evaluate(model, *arguments, **keywords)

    monkeypatch.setattr(modeling_sit, "evaluate", cut_off)
    flags = ("--output_dir", tmp_path, *TINY, "--starts", "sit")
    assert run_program(PROGRAM, *flags) == 130
    first = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [run["initialization"] for run in first] == ["normal"]
    assert (tmp_path / "results.md").read_text().rstrip().endswith("| - | - | - | - | - |")

    capsys.readouterr()
    assert run_program(PROGRAM, *flags) == 0
    # The first run is not run again; the second was trained, and is only measured.
    assert len(folders) == 3 and folders[1] == folders[2]
    assert "done before" in capsys.readouterr().out
    both = json.loads((tmp_path / "results.json").read_text())["results"]
    assert both[0] == first[0] and both[1]["initialization"] == "xavier"
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_color_images_of_a_folder(run_program, save_images, tmp_path):
    for seed, label in enumerate(("daisy", "rose")):
        save_images(tmp_path / "flowers" / "train" / label, 50, seed=seed)
    flags = (*TINY, "--datasets", tmp_path / "flowers", "--starts", "sit", "--output_dir", tmp_path / "new" / "out")
    assert run_program(PROGRAM, *flags) == 0
    config = SiTConfig.from_pretrained(tmp_path / "new" / "out" / "run-flowers-16-sit-xavier-seed0")
    # Of 24 x 20 pixels.
    assert (config.image_shape, config.patch_size, config.num_channels) == ((32, 32), 4, 3)
    assert "flowers | 80 + 20 | 16 |" in (tmp_path / "new" / "out" / "results.md").read_text()


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--widths", "0"], 2, "--widths"),
        (["--widths", "100"], 2, "--widths: 100"),
        (["--seeds", "1", "1"], 2, "--seeds"),
        (["--starts", "sit", "random"], 2, "--starts: random"),
        (["--datasets", "a/flowers", "b/flowers"], 2, "--datasets"),
        (["--datasets", "nowhere/at/all"], 1, "nowhere/at/all"),
    ],
)
def test_mistakes_are_told_in_one_line(one_line_error, tmp_path, flags, code, named):
    assert named in one_line_error(PROGRAM, "--output_dir", tmp_path / "out", *flags, code=code)


def test_runs_of_other_lengths_are_not_mixed(run_program, one_line_error, tmp_path):
    flags = ("--output_dir", tmp_path, *TINY, "--starts", "sit")
    assert run_program(PROGRAM, *flags) == 0
    assert "steps" in one_line_error(PROGRAM, *flags, "--steps", 3)
    assert run_program(PROGRAM, *flags, "--widths", 32) == 0  # more widths only add runs
