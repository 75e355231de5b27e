"""Logs: which trackers there are, and that numbers and images reach each of them in its form; `metrics.jsonl`: what is kept
when a run resumes, what a crash leaves, and a full disk."""

import json
import os
import sys
from types import SimpleNamespace

import accelerate
import numpy as np
import PIL.Image
import pytest
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from modeling_sit.runtime import trackers
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.trackers import MetricsLog, choose_trackers, log_image, read_metrics, start_trackers


@pytest.fixture
def image(tmp_path):
    """An image's file and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "preview.png")
    return tmp_path / "preview.png", pixels


class TestChoosing:
    @pytest.fixture(autouse=True)
    def available(self, monkeypatch):
        installed = [SimpleNamespace(value="tensorboard"), SimpleNamespace(value="wandb")]
        monkeypatch.setattr(trackers, "get_available_trackers", lambda: installed)

    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            ([], []),
            (["none"], []),
            (["tensorboard"], ["tensorboard"]),
            (["tensorboard", "wandb"], ["tensorboard", "wandb"]),
            (["tensorboard,wandb"], ["tensorboard", "wandb"]),
            (["tensorboard,", "none"], ["tensorboard"]),
            (["no"], []),
            (["Off"], []),
            (["all"], ["all"]),
        ],
    )
    def test_by_name(self, names, chosen):
        assert choose_trackers(names) == chosen

    @pytest.mark.parametrize("names", [["trackio"], ["tensorboard,trackio"], ["tensorboard", "trackio"]])
    def test_one_that_is_not_installed(self, names):
        with pytest.raises(SiTError, match=r"'trackio'.*tensorboard, wandb") as error:
            choose_trackers(names)
        assert error.value.argument == "report_to"

    def test_none_is_installed(self, monkeypatch):
        monkeypatch.setattr(trackers, "get_available_trackers", list)
        with pytest.raises(SiTError, match="installed are none"):
            choose_trackers(["wandb"])


class TestTensorBoard:
    @pytest.fixture
    def start(self, tmp_path):
        pytest.importorskip("tensorboard")

        def start(first_step: int) -> Accelerator:
            project = ProjectConfiguration(project_dir=tmp_path, logging_dir=tmp_path / "logs")
            accelerator = Accelerator(cpu=True, log_with="tensorboard", project_config=project)
            start_trackers(accelerator, tmp_path, {"seed": 0, "crop_scale": [0.2, 1.0], "export": None}, first_step)
            return accelerator

        return start

    @pytest.fixture
    def events(self, tmp_path):
        """What TensorBoard would show of the run."""

        def read():
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            return EventAccumulator(str(tmp_path / "logs" / "sit"), size_guidance={"images": 0}).Reload()

        return read

    def test_numbers(self, start, events):
        accelerator = start(0)
        for step in (10, 20):
            accelerator.log({"loss": 1 / step, "step": step}, step=step)
        accelerator.end_training()
        assert [(event.step, event.value) for event in events().Scalars("loss")] == [
            (step, pytest.approx(1 / step)) for step in (10, 20)
        ]

    def test_images(self, start, events, image):
        path, pixels = image
        accelerator = start(0)
        log_image(accelerator, "preview", path, 10)
        accelerator.end_training()
        (event,) = events().Images("preview")
        path.write_bytes(event.encoded_image_string)
        assert event.step == 10
        assert np.array_equal(np.asarray(PIL.Image.open(path)), pixels)

    def test_a_run_that_goes_on_takes_back_what_came_after_its_checkpoint(self, start, events, image):
        path, _ = image
        accelerator = start(0)
        for step in (10, 20, 30):
            accelerator.log({"loss": 1.0}, step=step)
            log_image(accelerator, "preview", path, step)
        accelerator.end_training()
        accelerator = start(20)
        accelerator.log({"loss": 2.0}, step=30)
        log_image(accelerator, "preview", path, 30)
        accelerator.end_training()
        shown = events()
        assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(10, 1.0), (20, 1.0), (30, 2.0)]
        assert [event.step for event in shown.Images("preview")] == [10, 20, 30]


class FakeTracker:
    """Takes what it is given."""

    def __init__(self, name: str):
        self.name, self.given = name, []

    def log(self, values, step=None):
        self.given.append((values, step))


class FakeImageTracker(FakeTracker):
    def log_images(self, values, step=None, **settings):
        self.given.append((values, step, settings))


class TestImages:
    """Each tracker wants another form of the same image."""

    @pytest.mark.parametrize("name", ["wandb", "swanlab"])
    def test_a_list_of_them(self, image, name):
        path, pixels = image
        tracker = FakeImageTracker(name)
        log_image(SimpleNamespace(trackers=[tracker]), "preview", path, 7)
        ((values, step, settings),) = tracker.given
        assert (list(values), len(values["preview"]), step, settings) == (["preview"], 1, 7, {})
        assert np.array_equal(values["preview"][0], pixels)

    @pytest.mark.parametrize("name", ["aim", "clearml"])
    def test_the_image_itself(self, image, name):
        path, pixels = image
        tracker = FakeImageTracker(name)
        log_image(SimpleNamespace(trackers=[tracker]), "preview", path, 7)
        ((values, step, settings),) = tracker.given
        assert (step, settings) == (7, {}) and np.array_equal(values["preview"], pixels)

    def test_trackios_own_class(self, image, monkeypatch):
        path, pixels = image
        monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda image: ("trackio", image)))
        tracker = FakeTracker("trackio")
        log_image(SimpleNamespace(trackers=[tracker]), "preview", path, 7)
        ((values, step),) = tracker.given
        kind, given = values["preview"]
        assert (kind, step) == ("trackio", 7) and np.array_equal(given, pixels)

    def test_one_that_takes_none_is_left_in_peace(self, image):
        trackers = [FakeTracker("dvclive"), FakeImageTracker("wandb")]
        log_image(SimpleNamespace(trackers=trackers), "preview", image[0], 7)
        assert [len(tracker.given) for tracker in trackers] == [0, 1]

    def test_grey_ones_become_rgb(self, tmp_path):
        PIL.Image.new("L", (4, 3), 7).save(tmp_path / "grey.png")
        tracker = FakeImageTracker("wandb")
        log_image(SimpleNamespace(trackers=[tracker]), "preview", tmp_path / "grey.png", 1)
        assert tracker.given[0][0]["preview"][0].shape == (3, 4, 3)

    def test_without_trackers_the_file_is_not_read(self, tmp_path):
        log_image(SimpleNamespace(trackers=[]), "preview", tmp_path / "nothing.png", 7)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_runs_are_called_as_their_folder(tmp_path, monkeypatch, name):
    """Of another tracker's constructor by a fake: the project, the run's name, its settings as text."""
    started = []

    class Tracker(FakeImageTracker):
        requires_logging_directory = False

        def __init__(self, project, **settings):
            super().__init__(name)
            started.append((project, settings))

        def start(self):
            pass

        def store_init_configuration(self, values):
            started.append(values)

    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, name, Tracker)
    accelerator = Accelerator(cpu=True)
    accelerator.log_with = [name]
    start_trackers(accelerator, tmp_path / "my run", {"seed": 0, "crop_scale": [0.2, 1.0]}, first_step=5)
    (project, settings), values = started
    assert project == "sit" and settings["name"] == "my run"
    assert values == {"seed": "0", "crop_scale": "[0.2, 1.0]"}


def write_lines(path, steps) -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in steps))


def steps_in(path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def refuse(*arguments, **settings):
    raise OSError(28, "No space left on device")


def test_one_object_a_line_at_once(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    log = MetricsLog(path)
    assert path.read_text() == ""
    log.write({"step": 1, "loss": 0.5})
    assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}
    log.write({"step": 2, "loss": 0.25})
    assert path.read_text().count("\n") == 2
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_run_that_goes_on_drops_what_it_writes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20, 30, 40])
    MetricsLog(path, resume_step=25).write({"step": 30, "loss": 7})
    assert steps_in(path) == [10, 20, 30]
    assert read_metrics(path)[-1]["loss"] == 7


def test_the_step_of_the_checkpoint_itself_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20, 30])
    MetricsLog(path, resume_step=20)
    assert steps_in(path) == [10, 20]


def test_what_is_kept_is_kept_to_the_last_digit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 1e-300}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = path.read_text()
    MetricsLog(path, resume_step=2)
    assert path.read_text() == before


def test_a_run_from_the_start_drops_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    MetricsLog(path)
    assert read_metrics(path) == []


def test_last_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    whole = path.read_text()
    for length in range(len(whole) // 2 + 1, len(whole) - 1):
        path.write_text(whole[:length])
        assert steps_in(path) == [10]
    MetricsLog(path, resume_step=20).write({"step": 20})
    assert steps_in(path) == [10, 20]


def test_last_line_without_its_newline(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    path.write_text(path.read_text().rstrip("\n"))
    MetricsLog(path, resume_step=20).write({"step": 30})
    assert steps_in(path) == [10, 20, 30]


@pytest.mark.parametrize("rest", [b"\0" * 50, b"\xff\xfe\x80", b'{"step": 30, "lo\xc3'])
def test_what_a_loss_of_power_leaves_at_the_end(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [10, 20])
    path.write_bytes(path.read_bytes() + rest)
    assert steps_in(path) == [10, 20]
    MetricsLog(path, resume_step=20).write({"step": 30})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 30]


class TestMetricsLogErrors:
    @pytest.fixture
    def log(self, tmp_path):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.write({"step": 1})
        return log

    def test_starting_leaves_what_was_there(self, log, monkeypatch):
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device; .*make room"):
            MetricsLog(log.path, resume_step=0)
        assert steps_in(log.path) == [1]

    def test_writing(self, log, monkeypatch):
        monkeypatch.setattr(type(log.path), "open", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device"):
            log.write({"step": 2})

    def test_flushing(self, log, monkeypatch):
        """Some file systems find only now that there is no room."""
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(SiTError, match=f"{log.path} cannot be written: No space left on device"):
            log.sync()


def test_sync_flushes_the_file(tmp_path, monkeypatch):
    log, flushed = MetricsLog(tmp_path / "metrics.jsonl"), []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    log.sync()
    assert flushed == [log.path.stat().st_ino]
