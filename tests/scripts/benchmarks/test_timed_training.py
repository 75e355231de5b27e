"""scripts/benchmarks/timed_training.py: a run that fits in its time, and what it measures."""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import psutil
import pytest
from learning import hold_out, look_at

import modeling_sit
from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.data.labeled import labels_of
from modeling_sit.data.sources import load_images
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.presets import Facts, choose

PROGRAM = "benchmarks/timed_training"


@pytest.fixture(autouse=True)
def process_of_its_own(monkeypatch):
    """The program counts from the start of its process, which here runs other tests too."""
    began = time.time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: began)


@pytest.fixture
def program(load_program):
    return load_program(PROGRAM)


@pytest.fixture
def fixed_speed(program, monkeypatch):
    """Have the short run say that a run of so many steps fits in the seconds."""

    def fix(num_steps: int, seconds: float = 60.0):
        speed = program.Speed(step_seconds=seconds / num_steps, start_seconds=0.0, measuring_seconds=0.0)
        monkeypatch.setattr(program, "measure_speed", lambda *_: speed)
        monkeypatch.setattr(program, "MARGIN", 0.0)
        # The seconds until then take nothing of the time.
        fit = program.fit_steps
        monkeypatch.setattr(
            program, "fit_steps", lambda speed, given, *_: fit(speed, given, 1.001 * seconds, num_steps)
        )

    return fix


def test_what_it_measures(run_program, program, tmp_path):
    output = tmp_path / "new" / "digits.json"
    flags = ["--profile", "smoke", "--dataset", "digits", "--seconds", 100, "--output", output]
    # Most of the time would be training.
    program.PILOT_STEPS["smoke"], margin, program.MARGIN = 3, program.MARGIN, 0.97
    try:
        assert run_program(PROGRAM, *flags) == 0
    finally:
        program.PILOT_STEPS["smoke"], program.MARGIN = 6, margin
    report = json.loads(output.read_text())
    assert report["finished"] and report["images"] == {
        "dataset": "digits",
        "num_train": 1150,
        "num_validation": 287,
        "split": "held_out",
        "side": 8,
        "channels": 1,
    }
    speed, training = report["speed"], report["training"]
    assert speed["step_seconds"] > 0 and speed["measuring_seconds"] > 0
    assert training["steps"] == training["planned_steps"] == speed["max_steps"]
    assert training["epochs"] == pytest.approx(training["steps"] * 32 / 1150)
    assert set(report["seconds"]) == {
        "find the images",
        "raw pixels",
        "short run",
        "train",
        "features",
        "knn",
        "linear",
    }
    for name in ("raw_knn", "knn", "linear"):
        assert 0.1 < report[name]["accuracy"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # the model is not kept


def test_the_test_split_only_if_asked_for(run_program, fixed_speed, tmp_path):
    fixed_speed(1)
    flags = ["--profile", "smoke", "--dataset", "digits", "--output", tmp_path / "digits.json"]
    assert run_program(PROGRAM, *flags, "--split", "test", "--model_dir", tmp_path / "model") == 0
    images = json.loads((tmp_path / "digits.json").read_text())["images"]
    assert (images["num_train"], images["num_validation"], images["split"]) == (1437, 360, "test")
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_a_recipe_replaces_settings(run_program, fixed_speed, tmp_path):
    fixed_speed(2)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("per_device_train_batch_size: 8\nteacher_momentum: 0.5\nmax_steps: 1000\ndataset: elsewhere\n")
    flags = ["--profile", "smoke", "--dataset", "digits", "--output", tmp_path / "digits.json"]
    assert run_program(PROGRAM, *flags, "--pretraining_recipe", recipe) == 0
    training = json.loads((tmp_path / "digits.json").read_text())["training"]
    assert training["steps"] == 2  # the time says the length
    assert training["settings"]["per_device_train_batch_size"] == 8
    assert training["settings"]["teacher_momentum"] == 0.5


def test_a_recipe_says_neither_length_nor_folders(program, tmp_path):
    recipe = tmp_path / "mine.yaml"
    lines = ["dataset: elsewhere", "output_dir: there", "overwrite_output_dir: true", "time_budget: 30m"]
    recipe.write_text("\n".join([*lines, "max_steps: 5", "num_train_epochs: 5", "seed: 7"]))
    arguments = program.TimedArguments(dataset="digits", profile="smoke", pretraining_recipe=str(recipe))
    plain = program.settings_of(program.TimedArguments(dataset="digits", profile="smoke"), 8, 1)
    assert program.settings_of(arguments, 8, 1) == {**plain, "seed": 7}


def test_a_run_that_is_slower_than_expected_is_cut_off_and_measured(
    run_program, program, fixed_speed, tmp_path, monkeypatch
):
    fixed_speed(500)
    log = tmp_path / "model" / "metrics.jsonl"

    @contextmanager
    def alarm_after_the_first_line(deadline):
        rang = threading.Event()

        def ring():
            while not (log.exists() and log.read_text()):
                time.sleep(0.05)
            rang.set()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=ring, daemon=True).start()
        yield rang

    monkeypatch.setattr(program, "alarm", alarm_after_the_first_line)
    output = tmp_path / "digits.json"
    flags = ["--profile", "smoke", "--dataset", "digits", "--output", output, "--model_dir", tmp_path / "model"]
    assert run_program(PROGRAM, *flags) == 0
    report = json.loads(output.read_text())
    assert 10 <= report["training"]["steps"] < report["training"]["planned_steps"] == 500
    assert report["training"]["epochs"] == pytest.approx(report["training"]["steps"] * 32 / 1150)
    assert report["finished"] and report["knn"]["accuracy"] > 0.1


def test_ctrl_c_is_no_end_of_the_time(run_program, program, fixed_speed, tmp_path, monkeypatch):
    fixed_speed(5)

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(modeling_sit, "pretrain", interrupted)
    output = tmp_path / "digits.json"
    assert run_program(PROGRAM, "--profile", "smoke", "--dataset", "digits", "--output", output) == 130
    report = json.loads(output.read_text())
    assert report["raw_knn"]["accuracy"] > 0.9 and "knn" not in report and "finished" not in report


def test_the_alarm_rings_where_ctrl_c_is_ignored_and_is_off_after_the_block(program):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    others = set(threading.enumerate())
    with program.alarm(time.monotonic() + 1000) as rang:
        (timer,) = set(threading.enumerate()) - others
    timer.join(30)
    assert not timer.is_alive() and not rang.is_set()
    with pytest.raises(KeyboardInterrupt), program.alarm(time.monotonic() + 0.05):
        time.sleep(10)
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


@pytest.mark.parametrize(("seconds", "num_steps"), [(110.0, 950), (10.2, 1), (200.0, 1000)])
def test_steps_that_fit(program, seconds, num_steps):
    speed = program.Speed(step_seconds=0.1, start_seconds=4.0, measuring_seconds=6.0)
    fitted = program.fit_steps(speed, {}, seconds, 1000)
    assert fitted["max_steps"] == num_steps
    # The teacher remembers a fiftieth of the run.
    assert fitted["teacher_momentum"] == pytest.approx(max(0.9, 1 - 1 / (0.02 * num_steps)) if num_steps > 1 else 0.9)


def test_no_time_for_a_step(one_line_error, tmp_path):
    flags = ["--profile", "smoke", "--dataset", "digits", "--seconds", 0.1, "--output", tmp_path / "digits.json"]
    assert "--seconds" in one_line_error(PROGRAM, *flags)
    assert json.loads((tmp_path / "digits.json").read_text())["raw_knn"]["accuracy"] > 0.9


def test_held_out_images_are_the_same_each_time_and_of_all_classes():
    one, other = hold_out("digits", max_images=500), hold_out("digits", max_images=500)
    train = load_images("digits").train
    every = {image["bytes"] for image in train["image"]}
    parts = [[image["bytes"] for image in part["image"]] for part in one.values()]
    assert parts == [[image["bytes"] for image in part["image"]] for part in other.values()]
    assert set(parts[0]) | set(parts[1]) < every and not set(parts[0]) & set(parts[1])
    assert sum(map(len, parts)) == pytest.approx(500, abs=10)
    counts = labels_of(one["validation"]).bincount()
    assert len(counts) == 10 and counts.min() >= 8 and counts.max() <= 12
    assert look_at(one["validation"]) == (8, 1)


@pytest.mark.parametrize(("side", "image_size"), [(32, 32), (224, 96)])
def test_settings_of_a_gpu_train_on_a_cpu_too(program, save_images, tmp_path, forget_accelerators, side, image_size):
    arguments = program.TimedArguments(dataset="flowers", profile="gpu")
    given = program.settings_of(arguments, side, 3)
    assert given["mixed_precision"] == "bf16" and given["image_cache"] == "device"
    preset = choose(Facts(ImageFacts(5_000, side, side, 3), "cuda"), {"max_steps": 5_000}, SiT)
    chosen = {choice.name: choice.value for choice in preset}
    views = ("noise_ratio", "replace_ratio", "color_jitter", "grayscale_probability", "solarize_probability")
    assert all(given[name] == chosen[name] for name in (*views, "export"))
    on_cpu = {"per_device_train_batch_size": 2, "mixed_precision": "no", "image_cache": "none", "max_steps": 1}
    images = save_images(tmp_path / "flowers", 4)
    model = modeling_sit.pretrain(str(images), tmp_path / "out", **{**given, **on_cpu}).model
    assert (model.config.hidden_size, model.config.image_shape) == (192, (image_size, image_size))
    assert (model.config.projection_hidden_size, model.config.num_channels) == (1024, 3)
