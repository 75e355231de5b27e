"""Checkpoints: complete or not there, known to be undamaged, never lost; and what an output folder is refused for."""

import contextlib
import json
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from modeling_sit.pretraining import checkpoints
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.checkpoints import (
    RunState,
    checkpoint_path,
    delete_checkpoints_after,
    delete_old_checkpoints,
    find_damage,
    list_checkpoints,
    load_checkpoint,
    read_output_state,
    read_run_state,
    read_stream_state,
    save_checkpoint,
    write_run_state,
)
from modeling_sit.pretraining.output_folder import check_output_dir, prepare_output_dir
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.optimizer import create_optimizer, set_hyperparameters
from modeling_sit.runtime.run_folders import mark_run


def state_at(step: int, **fields) -> RunState:
    window = {"losses": [[0.1, 0.2, 0.3]], "num_images": 8, "waited": 0.25, "elapsed": 1.5}
    state = {"settings": {"seed": 0}, "determined_by": {"seed": 0}, "unreadable": ["a.png: cut"], "seconds": 2.5}
    return RunState(**{"step": step, "window": window, **state, **fields})


class Run:
    """A method and an optimizer with a few steps behind them."""

    def __init__(self, method, num_steps: int, batches_per_step: int = 1):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=batches_per_step)
        self.method = method
        optimizer = create_optimizer(method.student, (0.9, 0.999), torch.device("cpu"))
        self.wrapped, self.optimizer = self.accelerator.prepare(method.student, optimizer)
        for _ in range(num_steps):
            self.learn()

    def learn(self) -> bool:
        """Learn from a batch; says whether it ended a step."""
        pixel_values = torch.randn(8, 3, 16, 16)
        set_hyperparameters(self.optimizer, 1e-2, 0.1)
        projections = self.method.teacher.project(pixel_values)
        with self.accelerator.accumulate(self.wrapped):
            output = self.wrapped(pixel_values, target_pixel_values=pixel_values, teacher_projections=projections)
            self.accelerator.backward(output.loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.method.after_step({"teacher_momentum": 0.9})
        return self.accelerator.sync_gradients

    def save(self, output_dir, step: int, **fields):
        return save_checkpoint(self.accelerator, self.method, output_dir, state_at(step, **fields))

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.method.state_dict().items()}


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


@pytest.fixture
def create_run(create_sit, tiny_config):
    """Make a run with a method whose weights come from the seed, and that has a few steps behind it."""

    def create(seed: int = 0, num_steps: int = 1, batches_per_step: int = 1, **fields) -> Run:
        method = create_sit(tiny_config(**{"drop_path_rate": 0.0, **fields}), seed=seed)
        return Run(method, num_steps, batches_per_step)

    return create


@pytest.fixture
def run(create_run):
    return create_run()


@pytest.fixture
def make_checkpoint(run, tmp_path):
    """Put an undamaged checkpoint into a run's folder; the first is saved, the others are it under another name."""

    def make(output_dir, step: int):
        path = checkpoint_path(output_dir, step)
        template = checkpoint_path(tmp_path / "template", 0)
        if not template.exists():
            run.save(tmp_path / "template", 0)
        shutil.copytree(template, path)
        return path

    return make


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "out"


def prepare(output_dir, **settings):
    arguments = PretrainingArguments("some", output_dir=str(output_dir), **settings)
    checkpoint = check_output_dir(output_dir, arguments)
    prepare_output_dir(output_dir, arguments, checkpoint)
    return checkpoint


def damage(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestOutputFolder:
    def test_is_made(self, tmp_path):
        assert prepare(tmp_path / "a" / "b") is None
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_one_that_holds_something_else_is_left_as_it_is(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        assert prepare(tmp_path) is None
        assert prepare(tmp_path, overwrite_output_dir=True) is None
        assert prepare(tmp_path, resume_from_checkpoint="auto") is None
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize(
        "name", ["metrics.jsonl", "monitors.jsonl", "previews/step-00000001.png", "logs/sit/events.out.tfevents.1"]
    )
    @pytest.mark.parametrize("is_marked", [True, False])
    def test_one_that_holds_a_run_is_refused(self, tmp_path, name, is_marked):
        """Runs of before there were marks are known by their logs and states."""
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"step": 1}\n')
        mark_run(tmp_path, "pretrain") if is_marked else write_run_state(tmp_path, state_at(1))
        with pytest.raises(SiTError, match=r'`resume_from_checkpoint="auto"`.*`overwrite_output_dir`') as error:
            prepare(tmp_path)
        assert error.value.argument == "output_dir"
        assert (tmp_path / name).exists()

    def test_one_that_holds_a_model_is_refused(self, tmp_path, save_tiny_sit):
        """A user's model, made elsewhere, would be replaced."""
        save_tiny_sit(tmp_path / "model")
        with pytest.raises(SiTError, match="`overwrite_output_dir`"):
            prepare(tmp_path / "model")

    def test_overwriting_starts_again(self, output_dir, make_checkpoint):
        make_checkpoint(output_dir, 5)
        (output_dir / "metrics.jsonl").write_text("{}\n")
        (output_dir / "previews").mkdir()
        (output_dir / "notes.txt").write_text("mine")
        assert prepare(output_dir, overwrite_output_dir=True) is None
        assert [path.name for path in output_dir.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize("below", [False, True])
    def test_that_cannot_be_written(self, tmp_path, below):
        (tmp_path / "file").write_text("in the way")
        output_dir = tmp_path / "file" / "out" if below else tmp_path / "file"
        with pytest.raises(SiTError, match=f"{output_dir} cannot be written") as error:
            prepare(output_dir)
        assert error.value.argument == "output_dir"
        assert (tmp_path / "file").read_text() == "in the way"

    def test_without_permission(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(SiTError, match=f"{tmp_path} cannot be written: Permission denied"):
            prepare(tmp_path)

    def test_with_something_in_it_that_cannot_be_deleted(self, output_dir, make_checkpoint, monkeypatch):
        make_checkpoint(output_dir, 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            with pytest.raises(SiTError, match=f"{output_dir} cannot be written: Permission denied"):
                prepare(output_dir, overwrite_output_dir=True)
        assert find_damage(checkpoint_path(output_dir, 5)) is None


def refuse(*arguments, **settings):
    raise PermissionError(13, "Permission denied")


class TestResuming:
    def test_auto_takes_the_newest(self, output_dir, make_checkpoint):
        for step in (9, 100, 20):
            make_checkpoint(output_dir, step)
        assert prepare(output_dir, resume_from_checkpoint="auto") == checkpoint_path(output_dir, 100)
        assert len(list_checkpoints(output_dir)) == 3

    def test_auto_without_a_checkpoint_starts(self, tmp_path):
        assert prepare(tmp_path, resume_from_checkpoint="auto") is None
        assert prepare(tmp_path / "new", resume_from_checkpoint="auto") is None

    def test_auto_goes_back_over_damaged_ones_and_says_so(self, output_dir, make_checkpoint, capsys):
        for step in (10, 20, 30, 40):
            make_checkpoint(output_dir, step)
        damage(checkpoint_path(output_dir, 40) / "optimizer.bin")
        (checkpoint_path(output_dir, 30) / "run_state.json").unlink()
        assert prepare(output_dir, resume_from_checkpoint="auto") == checkpoint_path(output_dir, 20)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            f"passed over {checkpoint_path(output_dir, 40)}: optimizer.bin is not what was written",
            f"passed over {checkpoint_path(output_dir, 30)}: it has no run_state.json",
        ]

    def test_auto_clears_what_was_not_finished_and_says_so(self, output_dir, make_checkpoint, capsys):
        make_checkpoint(output_dir, 10)
        unfinished = make_checkpoint(output_dir, 20)
        unfinished = unfinished.rename(unfinished.with_name(f".unfinished-{unfinished.name}"))
        deleted = make_checkpoint(output_dir, 5)
        deleted.rename(deleted.with_name(f".deleted-{deleted.name}"))
        (output_dir / "previews").mkdir()
        for path in (".unfinished-metrics.jsonl", "previews/.unfinished-step-00000010.png"):
            (output_dir / path).write_text("cut sho")
        mark_run(output_dir / ".unfinished-files", "unfinished")
        (output_dir / ".unfinished-files" / "model.safetensors").write_text("cut sho")
        assert prepare(output_dir, resume_from_checkpoint="auto") == checkpoint_path(output_dir, 10)
        assert f"passed over {unfinished}: it was not finished" in capsys.readouterr().err
        assert [path.name for path in (output_dir / "checkpoints").iterdir()] == ["step-00000010"]
        assert sorted(path.name for path in output_dir.iterdir()) == ["checkpoints", "previews"]
        assert list((output_dir / "previews").iterdir()) == []

    @pytest.mark.parametrize("size", [0, 1000])
    def test_auto_clears_what_safetensors_did_not_finish(self, output_dir, make_checkpoint, size):
        """It writes under a name like `.tmpFDBfPt`, which it changes at the end."""
        make_checkpoint(output_dir, 10)
        unfinished = output_dir / "checkpoints" / ".unfinished-step-00000020"
        unfinished.mkdir()
        (unfinished / ".tmpFDBfPt").write_bytes(bytes(size))
        prepare(output_dir, resume_from_checkpoint="auto")
        assert [path.name for path in (output_dir / "checkpoints").iterdir()] == ["step-00000010"]

    def test_auto_with_damaged_ones_only(self, output_dir, make_checkpoint):
        """With a model there is something to lose; without one the run had not come far."""
        damage(make_checkpoint(output_dir, 10) / "model.safetensors")
        assert prepare(output_dir, resume_from_checkpoint="auto") is None
        (output_dir / "model.safetensors").write_text("trained for days")
        with pytest.raises(SiTError, match=r"without an undamaged checkpoint.*`overwrite_output_dir`"):
            prepare(output_dir, resume_from_checkpoint="auto")
        assert (output_dir / "model.safetensors").read_text() == "trained for days"
        assert len(list_checkpoints(output_dir)) == 1
        assert prepare(output_dir, resume_from_checkpoint="auto", overwrite_output_dir=True) is None
        assert list(output_dir.iterdir()) == []

    def test_a_path(self, tmp_path, make_checkpoint):
        path = make_checkpoint(tmp_path / "old", 10)
        make_checkpoint(tmp_path / "old", 20)
        for output_dir in (tmp_path / "new", tmp_path / "old"):
            for overwrites in (False, True):
                settings = {"resume_from_checkpoint": str(path), "overwrite_output_dir": overwrites}
                assert prepare(output_dir, **settings) == path
        assert len(list_checkpoints(tmp_path / "old")) == 2

    def test_a_path_into_the_folder_of_another_run(self, tmp_path, make_checkpoint):
        """Going on would delete that run's checkpoints of later steps."""
        path, others = make_checkpoint(tmp_path / "old", 10), make_checkpoint(tmp_path / "other", 20)
        with pytest.raises(SiTError, match=rf"holds a run already.*{path}.*auto.*`overwrite_output_dir`"):
            prepare(tmp_path / "other", resume_from_checkpoint=str(path))
        assert find_damage(others) is None
        assert prepare(tmp_path / "other", resume_from_checkpoint=str(path), overwrite_output_dir=True) == path
        assert not others.exists() and find_damage(path) is None

    def test_a_path_again_after_a_crash_before_the_first_checkpoint(self, tmp_path, make_checkpoint):
        path = make_checkpoint(tmp_path / "old", 10)
        (tmp_path / "new" / "previews").mkdir(parents=True)
        (tmp_path / "new" / "metrics.jsonl").write_text('{"step": 11}\n')
        assert prepare(tmp_path / "new", resume_from_checkpoint=str(path)) == path

    def test_a_path_without_a_checkpoint(self, tmp_path, make_checkpoint):
        (tmp_path / "empty").mkdir()
        damaged = make_checkpoint(tmp_path / "old", 10)
        damage(damaged / "teacher.safetensors")
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file", damaged):
            with pytest.raises(SiTError, match=f"{path} is no checkpoint, or a damaged one") as error:
                prepare(tmp_path / "out", resume_from_checkpoint=str(path))
            assert error.value.argument == "resume_from_checkpoint"


class TestDeleting:
    def test_the_newest_stay(self, run, output_dir, make_checkpoint):
        for step in (9, 100, 20, 1000):
            make_checkpoint(output_dir, step)
        delete_old_checkpoints(run.accelerator, output_dir, 2)
        assert list_checkpoints(output_dir) == [checkpoint_path(output_dir, step) for step in (100, 1000)]
        delete_old_checkpoints(run.accelerator, output_dir, 5)
        assert len(list_checkpoints(output_dir)) == 2
        assert len(list((output_dir / "checkpoints").iterdir())) == 2

    def test_0_keeps_all(self, run, output_dir, make_checkpoint):
        for step in (1, 2, 3):
            make_checkpoint(output_dir, step)
        delete_old_checkpoints(run.accelerator, output_dir, 0)
        assert len(list_checkpoints(output_dir)) == 3

    def test_what_a_user_set_aside_is_the_users(self, run, output_dir, make_checkpoint):
        for step in (1, 2, 3):
            make_checkpoint(output_dir, step)
        aside = checkpoint_path(output_dir, 1).rename(output_dir / "checkpoints" / "step-00000001-good")
        (output_dir / "checkpoints" / "step-00000002.tar").write_text("packed")
        delete_checkpoints_after(run.accelerator, output_dir, 2)
        delete_old_checkpoints(run.accelerator, output_dir, 1)
        assert list_checkpoints(output_dir) == [checkpoint_path(output_dir, 2)]
        assert find_damage(aside) is None
        assert (output_dir / "checkpoints" / "step-00000002.tar").exists()

    def test_those_of_later_steps(self, run, output_dir, make_checkpoint):
        for step in (9, 10, 11, 100):
            make_checkpoint(output_dir, step)
        delete_checkpoints_after(run.accelerator, output_dir, 10)
        assert list_checkpoints(output_dir) == [checkpoint_path(output_dir, step) for step in (9, 10)]

    def test_only_the_main_process_deletes(self, run, output_dir, make_checkpoint, monkeypatch):
        for step in (1, 2):
            make_checkpoint(output_dir, step)
        monkeypatch.setattr(type(run.accelerator), "is_main_process", property(lambda self: False))
        delete_old_checkpoints(run.accelerator, output_dir, 1)
        delete_checkpoints_after(run.accelerator, output_dir, 0)
        assert len(list_checkpoints(output_dir)) == 2

    @pytest.mark.parametrize("delete", [delete_old_checkpoints, delete_checkpoints_after])
    def test_that_fails_is_an_error_in_one_line(self, run, output_dir, make_checkpoint, monkeypatch, delete):
        for step in (1, 2, 3):
            make_checkpoint(output_dir, step)
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(SiTError, match=f"{output_dir} cannot be written: Permission denied"):
            delete(run.accelerator, output_dir, 1)


class TestSavingAndLoading:
    def test_everything_comes_back(self, create_run, output_dir):
        run = create_run(num_steps=3)
        path = run.save(output_dir, 3)
        assert path == checkpoint_path(output_dir, 3)
        saved = run.weights()
        torch.manual_seed(5)
        for _ in range(2):
            run.learn()
        continued = run.weights()

        other = create_run(seed=1)
        load_checkpoint(other.accelerator, other.method, path)
        assert_equal(other.weights(), saved)
        torch.manual_seed(5)
        for _ in range(2):
            other.learn()
        assert_equal(other.weights(), continued)  # the optimizer's moments too

    def test_run_state_comes_back(self, run, output_dir):
        state = state_at(3, window={"losses": [[1 / 3, 1e-8, 3e38]], "num_images": 1, "waited": 0.1, "elapsed": 2.0})
        path = save_checkpoint(run.accelerator, run.method, output_dir, state)
        assert read_run_state(path) == state

    def test_stream_comes_back(self, run, output_dir):
        path = save_checkpoint(
            run.accelerator, run.method, output_dir, state_at(1), stream_state={"shard": 3, "rows": [1, 2]}
        )
        assert read_stream_state(path, 0) == {"shard": 3, "rows": [1, 2]}
        assert read_stream_state(run.save(output_dir, 2), 0) is None
        damage(path / "stream-0.json")
        assert find_damage(path) == "stream-0.json is not what was written"

    def test_networks_are_in_safetensors(self, run, output_dir):
        path = run.save(output_dir, 1)
        assert_equal(load_file(path / "teacher.safetensors"), dict(run.method.teacher.model.state_dict()))
        assert_equal(load_file(path / "model.safetensors"), dict(run.method.student.state_dict()))

    def test_without_a_teacher(self, run, output_dir):
        run.method.teacher = None
        path = save_checkpoint(run.accelerator, run.method, output_dir, state_at(1))
        assert not (path / "teacher.safetensors").exists() and find_damage(path) is None
        load_checkpoint(run.accelerator, run.method, path)

    def test_the_methods_own_state_comes_back(self, create_run, output_dir):
        """Its own buffers, such as a center: neither the student's nor the teacher's."""
        run, other = create_run(), create_run(seed=1)
        for number, each in enumerate((run, other)):
            each.method.register_buffer("center", torch.full((3,), float(number)))
            each.method.register_buffer("count", torch.tensor(number))
        path = run.save(output_dir, 1)
        saved = load_file(path / "method.safetensors")
        assert_equal(saved, {"center": torch.zeros(3), "count": torch.tensor(0)})
        load_checkpoint(other.accelerator, other.method, path)
        assert torch.equal(other.method.center, torch.zeros(3)) and other.method.count == 0
        damage(path / "method.safetensors")
        assert find_damage(path) == "method.safetensors is not what was written"

    def test_a_method_without_a_state_of_its_own_has_no_file(self, run, output_dir):
        assert not (run.save(output_dir, 1) / "method.safetensors").exists()

    @pytest.mark.parametrize(("saved", "needed"), [(None, 3), (3, None), (3, 4)])
    def test_another_state_of_the_method_is_an_error(self, create_run, output_dir, saved, needed):
        run, other = create_run(), create_run()
        for each, size in ((run, saved), (other, needed)):
            if size is not None:
                each.method.register_buffer("center", torch.zeros(size))
        path = run.save(output_dir, 1)
        with pytest.raises(SiTError, match=str(path)) as error:
            load_checkpoint(other.accelerator, other.method, path)
        assert error.value.argument == "resume_from_checkpoint" and "center" in str(error.value)

    def test_of_the_same_step_is_replaced(self, run, output_dir):
        path = run.save(output_dir, 1, settings={"number": 1})
        (path / "notes.txt").write_text("mine")
        run.save(output_dir, 1, settings={"number": 2})
        assert read_run_state(path).settings == {"number": 2}
        assert find_damage(path) is None
        assert (path / "notes.txt").read_text() == "mine"
        assert [path.name for path in (output_dir / "checkpoints").iterdir()] == ["step-00000001"]

    def test_of_another_model_is_an_error_in_one_line(self, run, create_run, output_dir):
        path = run.save(output_dir, 1)
        other = create_run(num_steps=0, hidden_size=32)
        with pytest.raises(SiTError, match=str(path)):
            load_checkpoint(other.accelerator, other.method, path)

    def test_with_another_number_of_batches_a_step(self, run, create_run, output_dir):
        """A checkpoint lies between steps, though 1 batch is no whole number of steps of 2."""
        path = run.save(output_dir, 1)
        other = create_run(num_steps=0, batches_per_step=2)
        load_checkpoint(other.accelerator, other.method, path)
        assert [other.learn() for _ in range(4)] == [False, True, False, True]


class TestDamage:
    def test_of_every_file_is_found_and_named(self, make_checkpoint, tmp_path):
        path = make_checkpoint(tmp_path, 1)
        assert find_damage(path) is None
        files = [file for file in path.rglob("*") if file.is_file()]
        assert {"model.safetensors", "teacher.safetensors", "run_state.json"} <= {file.name for file in files}
        assert len(files) >= 5  # the optimizer's, and the random generators'
        for file in files:
            content = file.read_bytes()
            for number in (0, len(content) // 2, len(content) - 1):
                changed = bytearray(content)
                changed[number] ^= 1
                file.write_bytes(changed)
                assert file.name in find_damage(path), number
            for length in (0, len(content) // 2, len(content) - 1):
                file.write_bytes(content[:length])
                assert file.name in find_damage(path), length
            file.unlink()
            assert file.name in find_damage(path)
            file.write_bytes(content)
            assert find_damage(path) is None

    def test_of_every_byte_of_the_run_state_is_found(self, run, output_dir):
        """Nothing else holds its checksum; a digit of it may change and leave it readable."""
        path = run.save(output_dir, 1, settings={}, determined_by={}, unreadable=["ä"])
        content = (path / "run_state.json").read_bytes()
        for number in range(len(content)):
            changed = bytearray(content)
            changed[number] ^= 1
            (path / "run_state.json").write_bytes(changed)
            assert "run_state.json" in find_damage(path), number

    @pytest.mark.parametrize("text", ["[]", "{}", "3", "null", '{"files": {}}', '{"step": 3, "settings": {}}', "\xff"])
    def test_another_run_state(self, tmp_path, text):
        (tmp_path / "run_state.json").write_text(text, encoding="latin-1")
        assert find_damage(tmp_path) == "run_state.json is damaged"

    @pytest.mark.parametrize("name", ["model.safetensors", "teacher.safetensors", "optimizer.bin"])
    def test_that_comes_after_the_check_is_an_error_in_one_line(self, run, output_dir, name):
        path = run.save(output_dir, 1)
        (path / name).write_bytes(b"damaged")
        with pytest.raises(SiTError, match=str(path)) as error:
            load_checkpoint(run.accelerator, run.method, path)
        assert "\n" not in str(error.value)


class Killed(BaseException):
    """From where this is raised on, the process does nothing any more to a file."""


def fail_at(patch, number: int, error: BaseException, stays: bool) -> list:
    """Have call `number` of all that changes files raise `error`, and, if it `stays`, every later one."""
    calls = []

    def failing(name, function):
        def call(*arguments, **settings):
            calls.append(name)
            if len(calls) == number or (stays and len(calls) > number):
                if not (isinstance(error, OSError) and settings.get("ignore_errors")):
                    raise error
                return None
            return function(*arguments, **settings)

        return call

    for module, names in (
        (os, ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")),
        (shutil, ("rmtree",)),
        (torch, ("save",)),
        (checkpoints, ("save_file",)),
        (Path, ("write_text",)),
    ):
        for name in names:
            patch.setattr(module, name, failing(name, getattr(module, name)))
    return calls


class TestCrash:
    """At whatever operation it comes: the newest undamaged checkpoint is the one before, or the one just written."""

    @pytest.mark.parametrize("is_killed", [False, True])
    def test_at_every_operation(self, run, output_dir, make_checkpoint, monkeypatch, is_killed):
        error = Killed() if is_killed else OSError(28, "No space left on device")
        outcomes = []
        for number in range(1, 100):
            shutil.rmtree(output_dir, ignore_errors=True)
            before = [make_checkpoint(output_dir, step) for step in (1, 2)]
            with monkeypatch.context() as patch:
                calls = fail_at(patch, number, error, stays=is_killed)
                try:
                    path = run.save(output_dir, 3)
                    delete_old_checkpoints(run.accelerator, output_dir, 1)
                    outcomes.append("done")
                except (SiTError, Killed) as problem:
                    outcomes.append(calls[number - 1])
                    assert is_killed or ("cannot be written: No space left on device" in str(problem))
            path = checkpoint_path(output_dir, 3)
            newest = prepare(output_dir, resume_from_checkpoint="auto")
            assert newest in (before[-1], path), number
            assert find_damage(newest) is None
            if newest != path:
                assert all(find_damage(path) is None for path in before), number
            assert not list((output_dir / "checkpoints").glob(".*")), number
            if len(calls) < number:
                break
        assert outcomes[-1] == "done" and {"rename", "fsync", "save", "save_file", "write_text"} <= set(outcomes)

    def test_on_the_way_does_not_stand_in_the_way(self, run, output_dir, monkeypatch):
        first = run.save(output_dir, 1)
        with monkeypatch.context() as patch:
            fail_at(patch, 5, Killed(), stays=True)
            with pytest.raises(Killed):
                run.save(output_dir, 2)
        assert list_checkpoints(output_dir) == [first]
        assert (output_dir / "checkpoints" / ".unfinished-step-00000002").exists()
        second = run.save(output_dir, 2)
        assert list_checkpoints(output_dir) == [first, second]
        assert find_damage(second) is None

    def test_full_disk(self, run, output_dir, tmp_path):
        """A file can grow to a limit only, wherever that lies: in what Python, PyTorch and safetensors write."""
        first = run.save(output_dir, 1)
        sizes = sorted(file.stat().st_size for file in first.iterdir())
        limits = (10, sizes[1] // 2, sizes[-2] - 10, sizes[-1] - 10)
        child = os.fork()  # a process of its own, for the limit's sake, without the seconds that a new one takes
        if child == 0:
            with contextlib.suppress(BaseException):
                torch.set_num_threads(1)  # other threads did not come along
                messages = [str(full_disk(limit, lambda: run.save(output_dir, 2))) for limit in limits]
                (tmp_path / "messages.json").write_text(json.dumps(messages))
            os._exit(0)
        os.waitpid(child, 0)
        messages = json.loads((tmp_path / "messages.json").read_text())
        assert len(messages) == 4
        for message in messages:
            assert message.startswith(f"{checkpoint_path(output_dir, 2)} cannot be written: ")
            assert '`resume_from_checkpoint="auto"`' in message and "\n" not in message
        assert list((output_dir / "checkpoints").iterdir()) == [first]
        assert find_damage(first) is None


def full_disk(limit: int, function) -> SiTError | None:
    """What `function` raises where no file can have more than `limit` bytes."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard_limit))
    try:
        function()
    except SiTError as problem:
        return problem
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard_limit, hard_limit))


def test_is_on_the_disk_before_it_has_its_name(run, output_dir, monkeypatch):
    """Else a loss of power leaves a checkpoint of empty files; and after it the name has to be on the disk too."""
    flushed, seen, fsync, rename = [], [], os.fsync, Path.rename

    def flushing(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        fsync(descriptor)

    def renaming(path, target):
        seen.append(find_damage(path))
        for file in (path, *path.iterdir()):
            assert (file.stat().st_ino, file.stat().st_size) in flushed, file.name
        flushed.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "rename", renaming)
    path = run.save(output_dir, 1)
    assert seen == [None]
    assert [inode for inode, _ in flushed] == [path.parent.stat().st_ino]


def test_run_state_is_json_for_people(run, output_dir):
    text = (run.save(output_dir, 7) / "run_state.json").read_text()
    assert json.loads(text)["step"] == 7 and "\n" in text


class TestOutputState:
    """`run_state.json` of the output folder: whose weights the model in it has."""

    def test_comes_back(self, tmp_path):
        state = state_at(7, exported="teacher")
        write_run_state(tmp_path, state)
        assert read_output_state(tmp_path) == state
        assert [path.name for path in tmp_path.iterdir()] == ["run_state.json"]
        assert "\n" in (tmp_path / "run_state.json").read_text()

    @pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"step": 3, "mine": 1}', "\xff"])
    def test_none_or_damaged_is_none(self, tmp_path, text):
        if text is not None:
            (tmp_path / "run_state.json").write_text(text, encoding="latin-1")
        assert read_output_state(tmp_path) is None

    def test_that_cannot_be_written_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(SiTError, match="cannot be written"):
            write_run_state(tmp_path / "file", state_at(7))
