"""Prototypes: the head, the teacher's assignment and its center, the loss between views, and what the preset chooses."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.presets import Choosing, Facts
from modeling_sit.pretraining.prototypes import (
    CONSTANTS,
    Center,
    PrototypeArguments,
    PrototypeHead,
    choose_prototypes,
    different_views_loss,
)
from modeling_sit.runtime.errors import SiTError

BATCH, PROTOTYPES = 3, 5


def logits_of(num_views: int, seed: int) -> torch.Tensor:
    return torch.randn(num_views * BATCH, PROTOTYPES, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def slow_softmax(logits: np.ndarray) -> np.ndarray:
    values = [math.exp(logit) for logit in logits]
    return np.array([value / sum(values) for value in values])


def slow_loss(student: np.ndarray, teacher: np.ndarray, center: np.ndarray, temperature: float) -> float:
    """Of logits `(views, batch, prototypes)`: the mean over images and pairs of different views."""
    terms = []
    for image in range(BATCH):
        for seen in range(2):
            target = slow_softmax((teacher[seen, image] - center) / temperature)
            for view in range(len(student)):
                if view != seen:
                    terms.append(-(target * np.log(slow_softmax(student[view, image] / 0.1))).sum())
    return float(np.mean(terms))


@pytest.fixture
def accelerator(forget_accelerators):
    forget_accelerators()
    return Accelerator(cpu=True)


@pytest.mark.parametrize("num_views", [2, 3, 6])
def test_loss(accelerator, num_views):
    student, teacher, center = logits_of(num_views, 0), logits_of(2, 1), Center(PROTOTYPES)
    center.mean.copy_(logits_of(1, 2)[0])
    expected = slow_loss(
        student.view(num_views, BATCH, -1).double().numpy(),
        teacher.view(2, BATCH, -1).double().numpy(),
        center.mean.double().numpy(),
        0.05,
    )
    loss = different_views_loss(student / 0.1, center.assign(teacher, 0.05, accelerator))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_views", [2, 5])
def test_loss_and_center_are_lightlys(accelerator, num_views):
    lightly = pytest.importorskip("lightly.loss")
    student, teacher, center = logits_of(num_views, 0), logits_of(2, 1), Center(PROTOTYPES)
    other = lightly.DINOLoss(PROTOTYPES, teacher_temp=0.05, warmup_teacher_temp_epochs=1)
    for mean in (center.mean, other.center):
        mean.copy_(logits_of(1, 2)[0])
    for _ in range(2):
        loss = different_views_loss(student / 0.1, center.assign(teacher, 0.05, accelerator))
        center.update(0.9)
        torch.testing.assert_close(loss, other(teacher.chunk(2), student.chunk(num_views), teacher_temp=0.05))
        torch.testing.assert_close(center.mean, other.center.flatten())


def test_center_follows_all_batches_of_a_step(accelerator):
    """Of batches that differ in size every image counts the same, and none changes the assignments of its own step."""
    center, logits = Center(PROTOTYPES), logits_of(4, 3)
    center.mean.fill_(0.5)
    expected = ((logits - 0.5) / 0.2).softmax(dim=-1)
    parts = [center.assign(part, 0.2, accelerator) for part in logits.split([2, 7, 3])]
    torch.testing.assert_close(torch.cat(parts), expected)
    center.update(0.9)
    torch.testing.assert_close(center.mean, 0.9 * 0.5 + 0.1 * logits.mean(dim=0))
    center.assign(logits, 0.2, accelerator)
    center.update(0.0)
    torch.testing.assert_close(center.mean, logits.mean(dim=0))


def test_center_begins_with_the_first_batch(accelerator):
    center, logits = Center(PROTOTYPES), logits_of(2, 3)
    expected = ((logits - logits.mean(dim=0)) / 0.2).softmax(dim=-1)
    torch.testing.assert_close(center.assign(logits, 0.2, accelerator), expected)
    assert not center.mean.any()
    center.update(0.9)
    torch.testing.assert_close(center.mean, logits.mean(dim=0))


class TestHead:
    def create(self, **arguments) -> PrototypeHead:
        torch.manual_seed(0)
        arguments = {"num_prototypes": PROTOTYPES, **CONSTANTS, **arguments}
        return PrototypeHead(6, 8, 4, PrototypeArguments(**arguments))

    def test_logits_are_cosine_similarities(self):
        head, features = self.create(), torch.randn(BATCH, 6)
        embeddings = head.mlp(features).detach()
        expected = [
            [float(one @ other / one.norm() / other.norm()) for other in head.prototypes.weight.detach()]
            for one in embeddings
        ]
        torch.testing.assert_close(head(features), torch.tensor(expected))
        logits = head(features)
        with torch.no_grad():
            head.prototypes.weight.mul_(7)  # lengths of directions do not matter
        torch.testing.assert_close(head(features), logits)

    def test_lengths(self):
        head, features = self.create(unit_prototypes=False), torch.randn(BATCH, 6)
        assert torch.equal(head(features), self.create()(features))
        with torch.no_grad():
            head.prototypes.length[2] = 3
        torch.testing.assert_close(head(features)[:, 2], 3 * self.create()(features)[:, 2])

    def test_logits_keep_their_bits(self):
        head, features = self.create(), torch.randn(BATCH, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, embeddings = head(features), head.embed(features)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, head.prototypes(embeddings), rtol=0, atol=1e-7)


def test_temperature():
    arguments = PrototypeArguments(
        teacher_temperature=0.07, first_teacher_temperature=0.04, teacher_temperature_warmup=0.3
    )
    found = [arguments.teacher_temperature_at(progress) for progress in (0, 0.1, 0.3, 0.5, 1)]
    assert found == pytest.approx([0.04, 0.05, 0.07, 0.07, 0.07])
    arguments.teacher_temperature_warmup = 0.0
    assert arguments.teacher_temperature_at(0) == 0.07


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_prototypes", 1),
        ("student_temperature", 0.0),
        ("teacher_temperature", 0.0),
        ("teacher_temperature", -0.04),
        ("teacher_temperature", math.nan),
        ("first_teacher_temperature", math.inf),
        ("teacher_temperature_warmup", 1.5),
        ("center_momentum", 1.0),
        ("frozen_prototypes", -0.1),
        ("num_local_crops", -1),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(SiTError, match=f"got {value}") as error:
        PrototypeArguments(**{name: value})
    assert error.value.argument == name


@pytest.mark.parametrize(
    ("count", "prototypes", "temperature"),
    [
        (700, 1_024, 0.04),
        (20_000, 2_048, 0.04),
        (50_000, 4_096, 0.047),
        (150_000, 16_384, 0.055),
        (1_281_167, 65_536, 0.07),
        (None, 65_536, 0.07),
    ],
)
def test_choices(count, prototypes, temperature):
    def chosen(most: int, **given) -> dict:
        facts = Facts(ImageFacts(count, 64, 64, 3), "cuda")
        sizes = {"hidden_size": 192, "max_steps": 19_999, "per_device_train_batch_size": 64}
        choosing = Choosing(facts, {**sizes, **given})
        choose_prototypes(choosing, facts, most)
        assert all(choice.reason for choice in choosing.choices)
        return {choice.name: choice.value for choice in choosing.choices}

    expected = {"num_prototypes": prototypes, "teacher_temperature": temperature}
    expected |= {"first_teacher_temperature": min(temperature, 0.04), "projection_hidden_size": 768}
    expected |= {"head_batch_norm": True, "teacher_momentum": 0.9995}
    assert chosen(65_536) == expected
    assert chosen(8_192)["num_prototypes"] == min(prototypes, 8_192)
    assert not chosen(65_536, per_device_train_batch_size=1)["head_batch_norm"]
    assert chosen(65_536, teacher_temperature=0.03, hidden_size=768, max_steps=20_000) == {
        "head_batch_norm": False,
        "num_prototypes": prototypes,
        "first_teacher_temperature": 0.03,
        "projection_hidden_size": 2_048,
    }


def test_batch_norm_of_the_head():
    """A shift of all features does not pass it, and does pass a head without it."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 8, generator=generator)
    for head_batch_norm in (True, False):
        arguments = PrototypeArguments(num_prototypes=4, unit_prototypes=True, head_batch_norm=head_batch_norm)
        head = PrototypeHead(8, 16, 8, arguments)
        assert torch.allclose(head(features), head(features + 1), atol=1e-4) == head_batch_norm
