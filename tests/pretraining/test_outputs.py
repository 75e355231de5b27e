"""What a run leaves beside logs and checkpoints: whose weights, and what was there when it cannot be written."""

import json
import os

import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from pretraining_runs import assert_equal, checkpoint, weights_in
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_sit.pretraining.outputs import export_model, preview_path, save_preview
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def method(create_sit, tiny_config):
    """A student and a teacher that differ."""
    method = create_sit(tiny_config(drop_path_rate=0.5), noise_ratio=[0.1, 0.2])
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    return method


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("export", ["student", "teacher"])
@pytest.mark.parametrize("has_teacher", [False, True])
def test_weights(method, tmp_path, export, has_teacher):
    teacher = method.teacher
    method.teacher = teacher if has_teacher else None
    export_model(Accelerator(cpu=True), method, tmp_path, export)
    expected = (teacher.model if has_teacher and export == "teacher" else method.student).state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


def test_configuration_is_the_students_and_the_processor_comes_along(method, tmp_path):
    """The teacher has no stochastic depth; who goes on from the model wants the student's."""
    export_model(Accelerator(cpu=True), method, tmp_path, "teacher")
    assert json.loads((tmp_path / "config.json").read_text())["drop_path_rate"] == 0.5
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["noise_ratio"] == [0.1, 0.2]
    assert {"modeling_sit.py", "configuration_sit.py"} <= {path.name for path in tmp_path.iterdir()}


def test_leaves_the_networks_as_they_were(method, tmp_path):
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    state = torch.get_rng_state()
    export_model(Accelerator(cpu=True), method, tmp_path, "teacher")
    assert method.student.training and method.teacher.model.training and method.student.config.drop_path_rate == 0.5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in method.student.state_dict().items())


def test_replaces_its_own_files_only(method, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("a line\n")
    (tmp_path / "model.safetensors").write_text("old")
    export_model(Accelerator(cpu=True), method, tmp_path, "student")
    assert (tmp_path / "metrics.jsonl").read_text() == "a line\n"
    assert (tmp_path / "model.safetensors").stat().st_size > 1000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_full_disk_leaves_the_old_model(method, tmp_path, monkeypatch):
    export_model(Accelerator(cpu=True), method, tmp_path, "student")
    before = contents(tmp_path)

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SiTError, match=f"{tmp_path} cannot be written: No space left on device"):
        export_model(Accelerator(cpu=True), method, tmp_path, "teacher")
    assert contents(tmp_path) == before


def test_only_the_main_process_writes(method, tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    export_model(accelerator, method, tmp_path, "student")
    assert list(tmp_path.iterdir()) == []


class Sheets:
    """A method whose preview is a sheet of one color, or none at all."""

    def __init__(self, sheet):
        self.sheet = sheet
        self.asked = []

    def preview(self, crops, seed):
        self.asked.append((crops, seed))
        return self.sheet


class TestPreview:
    crops = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    def test_is_the_methods(self, tmp_path):
        method = Sheets(PIL.Image.new("RGB", (3, 2), "red"))
        path = preview_path(tmp_path, 12)
        assert path == tmp_path / "previews" / "step-00000012.png"
        save_preview(Accelerator(cpu=True), method, self.crops, path, seed=7)
        assert method.asked == [(self.crops, 7)]
        assert PIL.Image.open(path).convert("RGB").getcolors() == [(6, (255, 0, 0))]
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_nothing_to_see_leaves_nothing(self, tmp_path):
        save_preview(Accelerator(cpu=True), Sheets(None), self.crops, preview_path(tmp_path, 1), seed=7)
        assert list(tmp_path.iterdir()) == []

    def test_of_sit_leaves_the_networks_as_they_were(self, method, tmp_path):
        before = {name: value.clone() for name, value in method.state_dict().items()}
        crops = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        state = torch.get_rng_state()
        for number in (1, 2):
            save_preview(Accelerator(cpu=True), method, crops, preview_path(tmp_path, number), seed=7)
        assert torch.equal(torch.get_rng_state(), state) and method.student.training
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
        # The same seed corrupts alike.
        one, two = (preview_path(tmp_path, number).read_bytes() for number in (1, 2))
        assert one == two

    def test_that_cannot_be_written_is_an_error(self, tmp_path):
        (tmp_path / "previews").write_text("in the way")
        path = preview_path(tmp_path, 1)
        with pytest.raises(SiTError, match=f"{path} cannot be written"):
            save_preview(Accelerator(cpu=True), Sheets(PIL.Image.new("L", (1, 1))), self.crops, path, seed=7)


def test_models_on_the_way(pretrain):
    """Each is the model of its step, loads like any other, and goes when the run starts again."""
    arguments = {"checkpointing_steps": 1, "checkpoints_total_limit": 0, "base_learning_rate": 0.05}
    folder = pretrain(**arguments, export_steps=2, max_steps=4, export="student")
    exports = sorted((folder / "exports").iterdir())
    assert [path.name for path in exports] == ["step-00000002", "step-00000004"]
    for step, path in zip((2, 4), exports, strict=True):
        assert_equal(weights_in(path), weights_in(checkpoint(folder, step)))
    assert_equal(weights_in(exports[1]), weights_in(folder))
    assert AutoModel.from_pretrained(exports[0]).config.hidden_size == 16
    (exports[0] / "notes.txt").write_text("mine")
    pretrain(max_steps=1, overwrite_output_dir=True)
    assert [path.name for path in folder.glob("exports/*/*")] == ["notes.txt"]
