"""The teacher follows the student as a loop over parameters would, and nothing else of it."""

import copy

import pytest
import torch

from modeling_sit import SiTForPreTraining
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime import batch_norm


@pytest.fixture
def student(tiny_config) -> SiTForPreTraining:
    torch.manual_seed(0)
    return SiTForPreTraining(tiny_config(drop_path_rate=0.0)).train()


def teacher_of(student: SiTForPreTraining) -> Teacher:
    return Teacher(copy.deepcopy(student))


def disturb(student: SiTForPreTraining, seed: int = 1) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_follows_as_a_loop_would(student):
    teacher = teacher_of(student)
    expected = {name: parameter.double().clone() for name, parameter in teacher.model.named_parameters()}
    for number, momentum in enumerate((0.9, 0.996, 0.5)):
        disturb(student, number)
        teacher.update(student, momentum)
        for name, parameter in student.named_parameters():
            expected[name] = momentum * expected[name] + (1 - momentum) * parameter.double()
    for name, parameter in teacher.model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name].detach(), rtol=1e-5, atol=1e-6)


def test_follows_in_one_call_in_place(student, monkeypatch):
    teacher = teacher_of(student)
    addresses = [parameter.data_ptr() for parameter in teacher.model.parameters()]
    calls = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(
        torch, "_foreach_lerp_", lambda *arguments: calls.append(len(arguments[0])) or lerp(*arguments)
    )
    for _ in range(2):
        teacher.update(student, 0.9)
    assert calls == [len(addresses)] * 2
    assert [parameter.data_ptr() for parameter in teacher.model.parameters()] == addresses


def test_follows_the_student_that_it_is_given(student, tiny_config):
    teacher, other = teacher_of(student), SiTForPreTraining(tiny_config())
    teacher.update(student, 0.5)
    teacher.update(other, 0.0)
    state = other.state_dict()
    assert all(torch.equal(parameter, state[name]) for name, parameter in teacher.model.named_parameters())
    # The student is no part of it, whose weights would be saved.
    assert list(teacher.children()) == [teacher.model]


def test_follows_a_student_whose_checkpoint_was_loaded(student, tiny_config):
    teacher, other = teacher_of(student), SiTForPreTraining(tiny_config())
    teacher.update(student, 0.5)
    student.load_state_dict(other.state_dict())
    teacher.update(student, 0.0)
    state = other.state_dict()
    assert all(torch.equal(parameter, state[name]) for name, parameter in teacher.model.named_parameters())


def test_momentum_1_stays_and_momentum_0_copies(student):
    teacher = teacher_of(student)
    before = {name: parameter.clone() for name, parameter in teacher.model.named_parameters()}
    disturb(student)
    teacher.update(student, 1.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.model.named_parameters())
    teacher.update(student, 0.0)
    students = dict(student.named_parameters())
    for name, parameter in teacher.model.named_parameters():
        assert torch.equal(parameter, students[name])
        assert not torch.equal(parameter, before[name])


def test_student_is_not_changed(student):
    teacher = teacher_of(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    disturb(teacher.model)
    teacher.update(student, 0.5)
    teacher.project(images())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_no_gradients(student):
    teacher = teacher_of(student)
    projections = teacher.project(images())
    assert not projections.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student(images(), teacher_projections=projections).loss.backward()
    teacher.update(student, 0.9)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_batch_norm_statistics_are_its_own(student):
    teacher = teacher_of(student)
    norm, norm_of_student = teacher.model.projection_head.mlp[1], student.projection_head.mlp[1]
    student(images())
    teacher.update(student, 0.5)
    assert norm_of_student.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    teacher.project(images(1))
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, norm_of_student.running_mean)


def test_projects_with_the_statistics_of_the_batch(student):
    """In training mode, as in the authors' code: what an image projects to depends on its batch."""
    teacher = teacher_of(student)
    projections = teacher.project(images())
    assert projections.shape == (8, 16)
    # The last batch norm has no affine parameters, so that its output is that of a standardized batch.
    torch.testing.assert_close(projections.mean(dim=0), torch.zeros(16), rtol=0, atol=1e-4)
    token = student.eval().vit(images()).last_hidden_state[:, 0]
    torch.testing.assert_close(projections, student.projection_head.train()(token).detach(), rtol=1e-4, atol=1e-4)


def test_fixed_positions_stay(tiny_config):
    student = SiTForPreTraining(tiny_config(position_embedding_type="sincos"))
    teacher = teacher_of(student)
    before = teacher.model.vit.embeddings.position_embeddings.clone()
    teacher.update(student, 0.3)
    assert torch.equal(teacher.model.vit.embeddings.position_embeddings, before)


def test_prepared_alone_it_stays_as_it_is(student):
    teacher = teacher_of(student)
    parameters, modules = list(teacher.model.parameters()), list(teacher.model.modules())
    assert teacher.prepare(student) is teacher
    assert all(one is other for one, other in zip(teacher.model.parameters(), parameters, strict=True))
    assert list(teacher.model.modules()) == modules


def test_batch_norm_of_all_processes_is_the_teachers_too(student, monkeypatch):
    monkeypatch.setattr(batch_norm, "has_several_processes", lambda: True)
    teacher = teacher_of(student)
    teacher.prepare(student)
    norms = [module for module in teacher.model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert len(norms) == 3
    assert all(isinstance(module, batch_norm.SynchronizedBatchNorm1d) for module in norms)
