"""MoCo-v3: its heads, its loss, computed again, slowly, its teacher, and its settings."""

import math

import pytest
import torch
from accelerate import Accelerator
from pretraining_runs import assert_equal, checkpoint, lines_of, weights_in
from torch import nn

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.arguments import PretrainingArguments
from modeling_sit.pretraining.dry_run import describe_teacher
from modeling_sit.pretraining.methods.moco_v3 import MoCoV3
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.pretraining.schedules import plan_schedules
from modeling_sit.runtime.errors import SiTError

HEADS = {"projection_hidden_size": 16, "projection_size": 6}


@pytest.fixture
def create(tiny_config, flags_of, forget_accelerators):
    def create(fields: dict | None = None, **arguments) -> MoCoV3:
        config = tiny_config(**{"drop_path_rate": 0.0, **HEADS, **(fields or {})})
        flags = flags_of(method="moco_v3", **arguments)
        return MoCoV3(config, create_processor(config, flags.model, flags.corruption), flags).train()

    return create


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def disturb(method: MoCoV3, seed: int) -> None:
    """A step of the student."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def test_heads(create):
    student, teacher = create().student, create().teacher.model
    linear = [
        [module for module in head if isinstance(module, nn.Linear)] for head in (student.head, student.predictor)
    ]
    shapes = [[(layer.in_features, layer.out_features) for layer in layers] for layers in linear]
    width = student.config.hidden_size
    assert shapes == [[(width, 16), (16, 16), (16, 6)], [(6, 16), (16, 6)]]
    for head, layers in zip((student.head, student.predictor), linear, strict=True):
        assert all(layer.bias is None for layer in layers)
        norms = [module for module in head if isinstance(module, nn.BatchNorm1d)]
        assert [norm.affine for norm in norms] == [True] * (len(layers) - 1) + [False] and head[-1] is norms[-1]
        # Xavier's, like the backbone's.
        for layer in layers:
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.7 * bound < layer.weight.abs().max() <= bound
    assert not list(teacher.predictor.parameters())
    state = student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


def test_says_that_the_teacher_has_fewer_weights(create):
    method = create()
    count = sum(value.numel() for name, value in method.student.named_parameters() if not name.startswith("predictor"))
    assert describe_teacher(method) == f"; the teacher has {count / 1e6:.3g} M"
    assert describe_teacher(create(use_predictor=False)) == "; the teacher has as many"


def slow_loss(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> float:
    """View 1 of each image against view 2 of all, and the reverse."""
    loss = 0.0
    for own, others in ((slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))):
        for number, query in enumerate(queries[own].double()):
            cosines = [float(query @ key / query.norm() / key.norm()) / temperature for key in keys[others].double()]
            loss += (math.log(sum(map(math.exp, cosines))) - cosines[number]) / 4
    return 2 * temperature * loss


@pytest.mark.parametrize("use_predictor", [True, False])
def test_loss(create, use_predictor):
    method = create({"temperature": 0.3}, use_predictor=use_predictor)
    disturb(method, 1)
    inputs = method.inputs([images()], Accelerator(cpu=True), {})
    teacher, student = method.teacher.model, method.student
    one, two = images()[:4], images()[4:]  # a network reads one view after the other, as the authors' code does
    keys = torch.cat([teacher.head(teacher.vit(view).last_hidden_state[:, 0]) for view in (one, two)])
    torch.testing.assert_close(inputs["teacher_projections"], keys, rtol=1e-4, atol=1e-5)
    queries = [student.head(student.vit(view).last_hidden_state[:, 0]) for view in (one, two)]
    if use_predictor:
        queries = [student.predictor(each) for each in queries]
    else:
        assert not list(student.predictor.parameters())
    queries = torch.cat(queries)
    output = method.student(**inputs)
    assert output.loss.item() == output.contrastive_loss.item()
    assert output.loss.item() == pytest.approx(slow_loss(queries.detach(), keys.detach(), 0.3), rel=1e-4)


def test_a_batch_of_one_image_has_no_batch_norm(create):
    with pytest.raises(SiTError) as error:
        create(per_device_train_batch_size=1)
    assert error.value.argument == "per_device_train_batch_size"


def test_teachers_are_the_authors(create):
    """They have `teacher = m * teacher + (1 - m) * student` before the keys are computed; here it comes after the step."""
    method = create()
    authors = {name: value.clone() for name, value in method.teacher.model.named_parameters()}
    momenta = [0.9, 0.95, 0.99]
    for step, momentum in enumerate(momenta):
        student = dict(method.student.named_parameters())
        before = momenta[max(step - 1, 0)]  # theirs would be of this step
        for name, value in authors.items():
            authors[name] = before * value + (1 - before) * student[name].detach()
        for name, value in method.teacher.model.named_parameters():  # what projects at this step
            torch.testing.assert_close(value, authors[name], rtol=1e-5, atol=1e-6)
        disturb(method, step)
        method.after_step({"teacher_momentum": momentum})


def test_frozen_patch_embedding(pretrain):
    """It stays as it begins, in student and teacher; all else of the student moves."""
    settings = {
        "method": "moco_v3",
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 0,
        "base_learning_rate": 0.05,
    }
    frozen = "vit.embeddings.patch_embeddings."
    folder = pretrain(**settings, export="teacher", teacher_momentum=0.5)
    one, two = (weights_in(checkpoint(folder, step)) for step in (1, 2))
    assert [name for name in one if name.endswith(".weight") and torch.equal(one[name], two[name])] == [
        f"{frozen}projection.weight"
    ]
    teacher = weights_in(checkpoint(folder, 2) / "teacher.safetensors")
    assert torch.equal(teacher[f"{frozen}projection.weight"], one[f"{frozen}projection.weight"])
    # As `export` says, without the heads.
    backbone = {name.removeprefix("vit."): value for name, value in teacher.items() if name.startswith("vit.")}
    assert_equal(weights_in(folder), backbone)
    assert [line["teacher_momentum"] for line in lines_of(folder)] == [0.5, 1.0]


def test_switches(create):
    def trained(method: MoCoV3) -> bool:
        return method.student.vit.embeddings.patch_embeddings.projection.weight.requires_grad

    assert not trained(create()) and trained(create(freeze_patch_embedding=False))
    assert MoCoV3.fixed >= {"use_predictor", "freeze_patch_embedding"}
    assert create(use_predictor=False).fingerprint()["use_predictor"] is False


def test_published_values(create):
    method = create()
    assert method.arguments.use_predictor and method.arguments.freeze_patch_embedding
    values = {**MoCoV3.defaults, **MoCoV3.paper}
    published = {"base_learning_rate": 1.5e-4, "weight_decay": 0.1, "warmup_epochs": 40, "max_grad_norm": 0}
    published |= {"crop_scale": [0.08, 1.0], "export": "student", "teacher_momentum": 0.99}
    assert {name: values[name] for name in published} == published
    lengths = {name: values[name] for name in ("num_train_epochs", "warmup_epochs", "base_learning_rate")}
    run = PretrainingArguments(dataset="some", output_dir="out", per_device_train_batch_size=64, **lengths)
    plan = plan_schedules(run, 6400, 1, most_warmup=method.most_warmup)
    assert (plan.num_steps, plan.num_warmup_steps) == (300 * 100, 40 * 100)


@pytest.mark.parametrize(("size", "frozen"), [("micro", False), ("tiny", False), ("small", True)])
def test_small_models_learn_their_patches(size, frozen):
    choices = choose(Facts(ImageFacts(2000, 32, 32, 3), "cpu"), {"model_size": size}, MoCoV3)
    chosen = {choice.name: choice for choice in choices}
    assert chosen["freeze_patch_embedding"].value is frozen and "384" in chosen["freeze_patch_embedding"].reason
    assert chosen["use_predictor"].value is True
