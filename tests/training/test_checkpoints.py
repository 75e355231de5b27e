"""Checkpoints: complete or not there, and what an output folder is refused for."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from modeling_sit import SiTForPreTraining
from modeling_sit.cli.errors import UserError
from modeling_sit.training import checkpoints
from modeling_sit.training.arguments import PretrainingArguments
from modeling_sit.training.checkpoints import (
    checkpoint_path,
    delete_old_checkpoints,
    list_checkpoints,
    load_checkpoint,
    prepare_output_dir,
    save_checkpoint,
)
from modeling_sit.training.optimization import create_optimizer, set_hyperparameters
from modeling_sit.training.teacher import Teacher


def prepare(output_dir, is_main_process=True, **settings):
    arguments = PretrainingArguments(dataset="some", output_dir=str(output_dir), **settings)
    return prepare_output_dir(output_dir, arguments, is_main_process)


def make_checkpoint(output_dir, step: int) -> None:
    path = checkpoint_path(output_dir, step)
    path.mkdir(parents=True)
    (path / "run_state.json").write_text(json.dumps({"step": step}))


class TestOutputFolder:
    def test_is_made(self, tmp_path):
        assert prepare(tmp_path / "a" / "b") is None
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_one_that_holds_something_else_is_left_as_it_is(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        assert prepare(tmp_path) is None
        assert prepare(tmp_path, overwrite_output_dir=True) is None
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "previews"])
    def test_one_that_holds_a_run_is_refused(self, tmp_path, name):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("{}\n")
        with pytest.raises(UserError, match=r"--resume_from_checkpoint auto.*--overwrite_output_dir"):
            prepare(tmp_path)
        assert (tmp_path / name).exists()

    def test_one_that_holds_a_model_is_refused(self, tmp_path, save_tiny_sit):
        """A user's model, made elsewhere, would be replaced."""
        save_tiny_sit(tmp_path / "model")
        with pytest.raises(UserError, match="--overwrite_output_dir"):
            prepare(tmp_path / "model")

    def test_overwriting_starts_anew(self, tmp_path):
        make_checkpoint(tmp_path, 5)
        (tmp_path / "metrics.jsonl").write_text("{}\n")
        (tmp_path / "previews").mkdir()
        (tmp_path / "notes.txt").write_text("mine")
        assert prepare(tmp_path, overwrite_output_dir=True) is None
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_only_the_main_process_refuses_and_deletes(self, tmp_path):
        make_checkpoint(tmp_path, 5)
        assert prepare(tmp_path, is_main_process=False) is None
        assert prepare(tmp_path, is_main_process=False, overwrite_output_dir=True) is None
        assert len(list_checkpoints(tmp_path)) == 1

    @pytest.mark.parametrize("below", [False, True])
    def test_that_cannot_be_written(self, tmp_path, below):
        (tmp_path / "file").write_text("in the way")
        output_dir = tmp_path / "file" / "out" if below else tmp_path / "file"
        with pytest.raises(UserError, match=f"--output_dir {output_dir} cannot be written"):
            prepare(output_dir)
        assert (tmp_path / "file").read_text() == "in the way"

    def test_without_permission(self, tmp_path, monkeypatch):
        def refuse(*arguments, **settings):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(checkpoints.tempfile, "TemporaryFile", refuse)
        with pytest.raises(UserError, match=f"--output_dir {tmp_path} cannot be written: Permission denied"):
            prepare(tmp_path)


class TestResuming:
    def test_auto_takes_the_newest(self, tmp_path):
        for step in (9, 100, 20):
            make_checkpoint(tmp_path, step)
        assert prepare(tmp_path, resume_from_checkpoint="auto") == checkpoint_path(tmp_path, 100)
        assert len(list_checkpoints(tmp_path)) == 3

    def test_auto_without_a_checkpoint_starts(self, tmp_path):
        assert prepare(tmp_path, resume_from_checkpoint="auto") is None
        assert prepare(tmp_path / "new", resume_from_checkpoint="auto") is None

    def test_auto_does_not_take_an_unfinished_one(self, tmp_path):
        make_checkpoint(tmp_path, 10)
        checkpoint_path(tmp_path, 15).mkdir()  # no state in it
        unfinished = checkpoint_path(tmp_path, 20).with_suffix(".unfinished")
        unfinished.mkdir()
        (unfinished / "run_state.json").write_text("{}")
        assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 10)]
        assert prepare(tmp_path, resume_from_checkpoint="auto") == checkpoint_path(tmp_path, 10)

    def test_a_path(self, tmp_path):
        make_checkpoint(tmp_path / "old", 10)
        path = checkpoint_path(tmp_path / "old", 10)
        assert prepare(tmp_path / "new", resume_from_checkpoint=str(path)) == path

    def test_a_path_without_a_checkpoint(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for path in (tmp_path / "empty", tmp_path / "nowhere"):
            with pytest.raises(UserError, match=f"--resume_from_checkpoint {path}"):
                prepare(tmp_path / "out", resume_from_checkpoint=str(path))


class TestDeleting:
    def test_the_newest_stay(self, tmp_path):
        for step in (9, 100, 20, 1000):
            make_checkpoint(tmp_path, step)
        delete_old_checkpoints(Accelerator(cpu=True), tmp_path, 2)
        assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 100), checkpoint_path(tmp_path, 1000)]
        delete_old_checkpoints(Accelerator(cpu=True), tmp_path, 5)
        assert len(list_checkpoints(tmp_path)) == 2

    def test_0_keeps_all(self, tmp_path):
        for step in (1, 2, 3):
            make_checkpoint(tmp_path, step)
        delete_old_checkpoints(Accelerator(cpu=True), tmp_path, 0)
        assert len(list_checkpoints(tmp_path)) == 3


class Run:
    """A student, a teacher and an optimiser with a few steps behind them."""

    def __init__(self, config, seed: int, num_steps: int):
        torch.manual_seed(seed)
        self.accelerator = Accelerator(cpu=True)
        self.student = SiTForPreTraining(config).train()
        self.teacher = Teacher(self.student)
        optimizer = create_optimizer(self.student, (0.9, 0.999), torch.device("cpu"))
        self.wrapped, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        pixel_values = torch.randn(8, 3, 16, 16)
        set_hyperparameters(self.optimizer, 1e-2, 0.1)
        projections = self.teacher.project(pixel_values)
        output = self.wrapped(pixel_values, target_pixel_values=pixel_values, teacher_projections=projections)
        self.accelerator.backward(output.loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.teacher.update(self.student, 0.9)

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            **{f"student.{name}": value.clone() for name, value in self.student.state_dict().items()},
            **{f"teacher.{name}": value.clone() for name, value in self.teacher.model.state_dict().items()},
        }


@pytest.fixture
def config(tiny_config):
    return tiny_config(drop_path_rate=0.0)


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


class TestSavingAndLoading:
    def test_everything_comes_back(self, config, tmp_path):
        run = Run(config, seed=0, num_steps=3)
        path = save_checkpoint(run.accelerator, run.teacher, tmp_path, 3, {"seed": 0})
        assert path == checkpoint_path(tmp_path, 3)
        saved = run.weights()
        torch.manual_seed(5)
        for _ in range(2):
            run.step()
        continued = run.weights()

        other = Run(config, seed=1, num_steps=1)
        assert load_checkpoint(other.accelerator, other.teacher, path) == 3
        assert_equal(other.weights(), saved)
        torch.manual_seed(5)
        for _ in range(2):
            other.step()
        assert_equal(other.weights(), continued)  # the optimiser's moments too

    def test_files(self, config, tmp_path):
        run = Run(config, seed=0, num_steps=1)
        path = save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {"seed": 0, "dataset": "some"})
        assert_equal(load_file(path / "teacher.safetensors"), dict(run.teacher.model.state_dict()))
        assert_equal(load_file(path / "model.safetensors"), dict(run.student.state_dict()))
        state = json.loads((path / "run_state.json").read_text())
        assert state == {"step": 1, "settings": {"seed": 0, "dataset": "some"}}

    def test_without_a_teacher(self, config, tmp_path):
        run = Run(config, seed=0, num_steps=1)
        path = save_checkpoint(run.accelerator, None, tmp_path, 1, {})
        assert not (path / "teacher.safetensors").exists()
        assert load_checkpoint(run.accelerator, None, path) == 1

    def test_of_the_same_step_is_replaced(self, config, tmp_path):
        run = Run(config, seed=0, num_steps=1)
        path = save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {"number": 1})
        (path / "left over").write_text("")
        save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {"number": 2})
        assert json.loads((path / "run_state.json").read_text())["settings"] == {"number": 2}
        assert not (path / "left over").exists()
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]

    def test_a_crash_on_the_way_leaves_none_and_does_not_stand_in_the_way(self, config, tmp_path, monkeypatch):
        run = Run(config, seed=0, num_steps=1)
        first = save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {})

        def crash(*arguments, **settings):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", crash)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(run.accelerator, run.teacher, tmp_path, 2, {})
        assert list_checkpoints(tmp_path) == [first]
        second = save_checkpoint(run.accelerator, run.teacher, tmp_path, 2, {})
        assert list_checkpoints(tmp_path) == [first, second]

    def test_of_another_model_is_an_error_in_one_line(self, config, tiny_config, tmp_path):
        run = Run(config, seed=0, num_steps=1)
        path = save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {})
        other = Run(tiny_config(hidden_size=32), seed=0, num_steps=0)
        with pytest.raises(UserError, match=str(path)):
            load_checkpoint(other.accelerator, other.teacher, path)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("model.safetensors", b"damaged"),
            ("teacher.safetensors", None),
            ("run_state.json", b"{"),
            ("optimizer.bin", b""),
        ],
    )
    def test_damaged_is_an_error_in_one_line(self, config, tmp_path, name, content):
        run = Run(config, seed=0, num_steps=1)
        path = save_checkpoint(run.accelerator, run.teacher, tmp_path, 1, {})
        (path / name).unlink() if content is None else (path / name).write_bytes(content)
        with pytest.raises(UserError, match=str(path)):
            load_checkpoint(run.accelerator, run.teacher, path)
