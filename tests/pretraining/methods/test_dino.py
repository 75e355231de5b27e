"""DINO: what its student is given, its loss, its frozen prototypes, and what is refused."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from pretraining_runs import checkpoint, is_equal, lines_of, weights_in
from prototype_methods import BATCH, SCHEDULE, SETTINGS, create_method, views_of

from modeling_sit.pretraining.methods.dino import DINO


@pytest.fixture
def create(flags_of, tiny_config, forget_accelerators):
    """[`create_method`]: DINO, and an accelerator."""
    return partial(create_method, flags_of, tiny_config, forget_accelerators, **SETTINGS)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return values / values.sum()


@pytest.mark.parametrize("num_local", [2, 0])
def test_loss_is_that_of_all_pairs_of_different_views(create, num_local):
    method, accelerator = create(num_local_crops=num_local)
    views = views_of(num_local)
    output = method.student(**method.inputs(views, accelerator, SCHEDULE))

    def logits(network, group: int) -> np.ndarray:
        tokens = network.vit(views[group], interpolate_pos_encoding=True).last_hidden_state
        return network.head(tokens[:, 0]).detach().double().view(-1, BATCH, 12).numpy()

    student = [view for group in range(len(views)) for view in logits(method.student, group)]
    teacher = logits(method.teacher.model, 0)
    terms = [
        -(softmax((teacher[seen][image] - method.center.mean.double().numpy()) / 0.05)
        * np.log(softmax(student[view][image] / 0.1))).sum()
        for image in range(BATCH)
        for seen in range(2)
        for view in range(2 + num_local)
        if view != seen
    ]  # fmt: skip
    assert output.loss.item() == output.token_loss.item() == pytest.approx(np.mean(terms), rel=1e-4)


def test_every_parameter_learns_and_the_teacher_does_not(create):
    method, accelerator = create()
    method.student(**method.inputs(views_of(), accelerator, SCHEDULE)).loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in method.student.parameters())
    assert all(value.grad is None for value in method.teacher.parameters())


def test_center_is_the_teachers_mean_of_both_views_and_moves_after_the_step(create):
    method, accelerator = create()
    views, before = views_of(), method.center.mean.clone()
    logits = method.teacher.project(views[0])
    method.inputs(views, accelerator, SCHEDULE)
    assert torch.equal(method.center.mean, before)
    method.after_step(SCHEDULE)
    torch.testing.assert_close(method.center.mean, 0.9 * before + 0.1 * logits.mean(dim=0))
    assert method.own_state_dict().keys() == {"center.mean"}


def test_a_frozen_step_leaves_prototypes_as_they_were(create):
    method, accelerator = create(unit_prototypes=False)
    with torch.no_grad():
        for parameter, copied in zip(method.teacher.parameters(), method.student.parameters(), strict=True):
            parameter.copy_(copied)
    before = {name: value.clone() for name, value in method.student.named_parameters()}
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    for frozen in (1.0, 0.0):
        method.student(**method.inputs(views_of(), accelerator, SCHEDULE)).loss.backward()
        optimizer.step()
        method.after_step({**SCHEDULE, "frozen_prototypes": frozen})
        same = {name for name, value in method.student.named_parameters() if torch.equal(value, before[name])}
        assert same == ({"head.prototypes.weight", "head.prototypes.length"} if frozen else set())


def test_schedules(create):
    method, _ = create(
        teacher_momentum=0.9, teacher_temperature=0.07, teacher_temperature_warmup=0.5, frozen_prototypes=0.1
    )
    assert method.schedules(0) == {"teacher_momentum": 0.9, "teacher_temperature": 0.04, "frozen_prototypes": 1.0}
    assert method.schedules(0.1)["frozen_prototypes"] == 0
    assert method.schedules(1) == {"teacher_momentum": 1, "teacher_temperature": 0.07, "frozen_prototypes": 0.0}


def test_embeddings_are_compared_with_prototypes(create):
    method, _ = create()
    (clean,) = views_of(0)
    embeddings = method.embed(clean)
    assert embeddings["features"].shape == (6, 16) and embeddings["projection"].shape == (6, 16)
    for network, name in ((method.student, "projection"), (method.teacher.model, "teacher_projection")):
        torch.testing.assert_close(embeddings[name].norm(dim=1), torch.ones(6))
        torch.testing.assert_close(network.head.prototypes(embeddings[name]), network.project(clean))


@pytest.mark.parametrize(("crops", "tokens"), [(0, 1576), (8, 2464)])
def test_encoder_tokens(crops, tokens):
    settings = {"image_size": 224, "patch_size": 16, "num_local_crops": crops, "local_crop_size": 96}
    assert DINO.encoder_tokens(settings) == tokens


def test_a_run(pretrain):
    settings = {**SETTINGS, "patch_size": 4, "base_learning_rate": 0.05, "max_steps": 4, "frozen_prototypes": 0.5}
    folder = pretrain(**settings, checkpointing_steps=1, checkpoints_total_limit=0, export="teacher")
    lines = lines_of(folder)
    assert [line["frozen_prototypes"] for line in lines] == [1, 1, 0, 0]
    assert [lines[place]["weight_decay"] for place in (0, -1)] == pytest.approx([0.04, 0.4])
    states = [weights_in(checkpoint(folder, step)) for step in (1, 2, 3, 4)]
    same = [is_equal(one, other, "head.prototypes.") for one, other in pairwise(states)]
    assert same == [True, False, False]
    assert not any(is_equal(states[0], other, "head.mlp.") for other in states[1:])
    teacher = weights_in(checkpoint(folder, 4) / "teacher.safetensors")
    exported = {f"vit.{name}": value for name, value in weights_in(folder).items()}
    assert exported.keys() == {name for name in teacher if name.startswith("vit.")}
    assert is_equal(exported, teacher)


@pytest.mark.parametrize(
    ("arguments", "name", "problem"),
    [
        ({"teacher_temperature": 0.0}, "teacher_temperature", "must be above 0, got 0.0"),
        ({"local_crop_size": 32}, "local_crop_size", "32 pixels are more than the 16 of the views"),
        ({"local_crop_size": 6}, "local_crop_size", "6 is not made of whole patches"),
        ({"contrastive_weight": 0.5}, "contrastive_weight", "is a setting of sit, and dino has none"),
        ({"method": "simclr"}, "num_prototypes", "is a setting of dino"),
    ],
)
def test_what_is_refused(refused, arguments, name, problem):
    arguments = {**SETTINGS, "local_crop_size": None, "num_local_crops": None, "patch_size": 4, **arguments}
    error = refused(**{key: value for key, value in arguments.items() if value is not None})
    assert error.argument == name and problem in str(error)


def test_a_batch_of_one_is_warned_of(pretrain, capsys):
    (line,) = lines_of(pretrain(**SETTINGS, patch_size=4, per_device_train_batch_size=1, max_steps=1))
    assert "warning: a batch of one image says little of the mean" in capsys.readouterr().err
    assert line["loss"] > 0
