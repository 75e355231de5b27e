"""The model repository: whose weights it holds, and what was there when it cannot be written."""

import json
import os

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.pretraining.export import export_model
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def networks(tiny_config):
    """A student and a teacher that differ."""
    torch.manual_seed(0)
    student = SiTForPreTraining(tiny_config(drop_path_rate=0.5)).train()
    teacher = Teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    return student, teacher


@pytest.fixture
def processor():
    return SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8, noise_ratio=(0.1, 0.2))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("export", ["student", "teacher"])
@pytest.mark.parametrize("has_teacher", [False, True])
def test_weights(networks, processor, tmp_path, export, has_teacher):
    student, teacher = networks
    export_model(Accelerator(cpu=True), student, teacher if has_teacher else None, processor, tmp_path, export)
    expected = (teacher.model if has_teacher and export == "teacher" else student).state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


def test_configuration_is_the_students_and_the_processor_comes_along(networks, processor, tmp_path):
    """The teacher has no stochastic depth; who goes on from the model wants the student's."""
    student, teacher = networks
    export_model(Accelerator(cpu=True), student, teacher, processor, tmp_path, "teacher")
    assert json.loads((tmp_path / "config.json").read_text())["drop_path_rate"] == 0.5
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["noise_ratio"] == [0.1, 0.2]
    assert {"modeling_sit.py", "configuration_sit.py"} <= {path.name for path in tmp_path.iterdir()}


def test_leaves_the_networks_as_they_were(networks, processor, tmp_path):
    student, teacher = networks
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    export_model(Accelerator(cpu=True), student, teacher, processor, tmp_path, "teacher")
    assert student.training and teacher.model.training and student.config.drop_path_rate == 0.5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_replaces_its_own_files_only(networks, processor, tmp_path):
    student, teacher = networks
    (tmp_path / "metrics.jsonl").write_text("a line\n")
    (tmp_path / "model.safetensors").write_text("old")
    export_model(Accelerator(cpu=True), student, teacher, processor, tmp_path, "student")
    assert (tmp_path / "metrics.jsonl").read_text() == "a line\n"
    assert (tmp_path / "model.safetensors").stat().st_size > 1000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_full_disk_leaves_the_old_model(networks, processor, tmp_path, monkeypatch):
    student, teacher = networks
    export_model(Accelerator(cpu=True), student, teacher, processor, tmp_path, "student")
    before = contents(tmp_path)

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SiTError, match=f"{tmp_path} cannot be written: No space left on device"):
        export_model(Accelerator(cpu=True), student, teacher, processor, tmp_path, "teacher")
    assert contents(tmp_path) == before


def test_only_the_main_process_writes(networks, processor, tmp_path, monkeypatch):
    student, teacher = networks
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "is_main_process", property(lambda self: False))
    export_model(accelerator, student, teacher, processor, tmp_path, "student")
    assert list(tmp_path.iterdir()) == []
