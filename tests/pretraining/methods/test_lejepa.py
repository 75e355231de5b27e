"""LeJEPA: its views, its losses, computed again, slowly, and its settings."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from slow_sigreg import slow_sigreg

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.methods.lejepa import LeJEPA, LeJEPAArguments
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.runtime.errors import SiTError

SIZES = {"image_size": 16, "patch_size": 4, "projection_hidden_size": 16, "projection_size": 5, "drop_path_rate": 0.0}


@pytest.fixture
def create(tiny_config, flags_of, forget_accelerators):
    def create(**arguments) -> LeJEPA:
        config, flags = tiny_config(**SIZES), flags_of(method="lejepa", **arguments)
        method = LeJEPA(config, create_processor(config, flags.model, flags.corruption), flags)
        method.groups = method.view_groups(flags.views)
        return method.train()

    return create


def views_of(method: LeJEPA, batch: int = 4) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(group.crops.number * batch, 3, *group.crops.image_shape, dtype=torch.float32)
        for group in method.groups
    ]


def inputs_of(method: LeJEPA, views: list[torch.Tensor]) -> dict:
    torch.manual_seed(3)
    return method.inputs(views, Accelerator(cpu=True), {})


def test_views(create):
    large, local = (group.crops for group in create(num_local_crops=3).groups)
    assert (large.number, large.image_shape, large.scale) == (2, (16, 16), (0.3, 1.0))
    assert (local.number, local.image_shape, local.scale) == (3, (8, 8), (0.05, 0.3))
    chances = [group.augment.chances[4:, :, 0].tolist() for group in create(num_local_crops=3).groups]
    assert chances == [[pytest.approx([0.5] * number), pytest.approx([0.2] * number)] for number in (2, 3)]
    assert len(create(num_local_crops=0).groups) == 1


@pytest.mark.parametrize("num_local_crops", [0, 3])
def test_losses(create, num_local_crops):
    """Of the student's own projections, view by view and image by image."""
    method = create(num_local_crops=num_local_crops, sigreg_weight=0.3, num_slices=6)
    views = views_of(method)
    inputs = inputs_of(method, views)
    seen = []
    method.student.head.register_forward_hook(lambda head, arguments, output: seen.append(output))
    output = method.student(**inputs)
    projections = seen[0].detach().double().numpy().reshape(2 + num_local_crops, 4, 5)
    distances = []
    for image in range(4):
        center = (projections[0, image] + projections[1, image]) / 2
        for view in projections[:, image]:
            distances += list((view - center) ** 2)
    sigreg = slow_sigreg(torch.from_numpy(projections), inputs["directions"])
    assert output.invariance_loss.item() == pytest.approx(np.mean(distances), rel=1e-4)
    assert output.sigreg_loss.item() == pytest.approx(sigreg, rel=1e-4)
    assert output.loss.item() == pytest.approx(0.7 * np.mean(distances) + 0.3 * sigreg, rel=1e-4)
    assert method.describe_losses() == "0.7 x invariance + 0.3 x SIGReg"


def test_every_view_is_read_and_positions_learn_from_all(create):
    method = create(num_local_crops=2)
    views = [view.requires_grad_() for view in views_of(method)]
    method.student(**inputs_of(method, views)).loss.backward()
    assert all((view.grad.flatten(1).norm(dim=1) > 0).all() for view in views)
    assert all((parameter.grad != 0).any() for parameter in method.student.head.parameters() if parameter.ndim > 1)


def test_has_no_teacher_and_embeds_by_the_student(create):
    method = create()
    images = torch.randn(4, 3, 16, 16)
    assert method.teacher is None and method.exported("teacher") is method.student.vit
    embeddings = method.eval().embed(images)
    torch.testing.assert_close(embeddings["features"], method.student.vit(images).last_hidden_state[:, 0])
    torch.testing.assert_close(embeddings["projection"], method.student.head(embeddings["features"]))


def test_tokens():
    """As published, ViT-S/16: 2 views of 197 tokens, 6 of 37."""
    settings = {"image_size": 224, "patch_size": 16, "num_local_crops": 6, "local_crop_size": None}
    assert LeJEPA.encoder_tokens(settings) == 1848
    assert LeJEPA.encoder_tokens({**settings, "num_local_crops": 0}) == 2 * 197 * 3


@pytest.mark.parametrize("arguments", [{"sigreg_weight": 0.0}, {"sigreg_weight": 1.0}, {"num_slices": 0}])
def test_values_out_of_range(arguments):
    with pytest.raises(SiTError) as error:
        LeJEPAArguments(**arguments)
    assert [error.value.argument] == list(arguments)


def test_local_crops_larger_than_the_views(create):
    with pytest.raises(SiTError, match="24 pixels are more than the 16 of the views") as error:
        create(local_crop_size=24)
    assert error.value.argument == "local_crop_size"


def test_choices():
    def chosen(device: str, side: int) -> dict:
        choices = choose(Facts(ImageFacts(2000, side, side, 3), device), {}, LeJEPA)
        return {choice.name: choice.value for choice in choices}

    cpu, gpu = chosen("cpu", 32), chosen("cuda", 300)
    assert (cpu["num_local_crops"], cpu["num_slices"], cpu["crop_scale"]) == (3, 256, [0.5, 1.0])
    assert (gpu["num_local_crops"], gpu["num_slices"], gpu["crop_scale"]) == (6, 1024, [0.3, 1.0])
