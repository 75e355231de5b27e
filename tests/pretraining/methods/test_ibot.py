"""iBOT: what its student does not see, its loss of patches, and what is refused."""

import numpy as np
import pytest
import torch
from pretraining_runs import checkpoint, lines_of, weights_in
from prototype_methods import BATCH, SCHEDULE, SETTINGS, create_method, views_of

from modeling_sit.pretraining.methods.ibot import IBOT, IBOTArguments
from modeling_sit.runtime.errors import SiTError

SETTINGS = {**SETTINGS, "method": "ibot"}


@pytest.fixture
def create(flags_of, tiny_config, forget_accelerators):
    """[`create_method`]: iBOT with a mask token that is not 0, and an accelerator."""

    def create(**arguments):
        method, accelerator = create_method(flags_of, tiny_config, forget_accelerators, **{**SETTINGS, **arguments})
        if arguments.get("method") != "dino":
            torch.nn.init.normal_(method.student.mask_token)
        return method, accelerator

    return create


def inputs_of(method, accelerator, views) -> dict:
    torch.manual_seed(0)
    return method.inputs(views, accelerator, SCHEDULE)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max())
    return values / values.sum()


def patch_logits(network, clean, **masked) -> np.ndarray:
    tokens = network.vit(clean, **masked).last_hidden_state
    return network.head(tokens[:, 1:]).detach().double().numpy()


@pytest.mark.parametrize("settings", [{}, {"masked_views": 1.0}, {"patch_mask_shape": "random"}])
def test_loss_of_patches(create, settings):
    """Of each view the mean over its masked patches, in the same view; views without a mask count as 0."""
    method, accelerator = create(**settings)
    views = views_of()
    inputs = inputs_of(method, accelerator, views)
    masks = inputs["masks"]
    assert masks.any(dim=1).sum() == (6 if "masked_views" in settings else 3)
    mask_token = method.student.mask_token[None, None]
    student = patch_logits(method.student, views[0], bool_masked_pos=masks, mask_token=mask_token)
    teacher = patch_logits(method.teacher.model, views[0])
    center = method.patch_center.mean.double().numpy()
    of_views = []
    for view in range(2 * BATCH):
        terms = [
            -(softmax((teacher[view, patch] - center) / 0.05) * np.log(softmax(student[view, patch] / 0.1))).sum()
            for patch in range(16)
            if masks[view, patch]
        ]
        of_views.append(np.mean(terms) if terms else 0.0)
    output = method.student(**inputs)
    assert output.patch_loss.item() == pytest.approx(np.mean(of_views), rel=1e-4)
    torch.testing.assert_close(output.loss, output.token_loss + output.patch_loss)

    output.loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in method.student.parameters())


def test_loss_of_patches_is_lightlys(create):
    lightly = pytest.importorskip("lightly.loss")
    method, accelerator = create()
    views = views_of()
    inputs = inputs_of(method, accelerator, views)
    masks, mask_token = inputs["masks"], method.student.mask_token[None, None]
    other = lightly.IBOTPatchLoss(12, teacher_temp=0.05)
    other.center.center.copy_(method.patch_center.mean)
    student, teacher = (
        torch.from_numpy(patch_logits(network, views[0], **masked)).float()[masks]
        for network, masked in (
            (method.student, {"bool_masked_pos": masks, "mask_token": mask_token}),
            (method.teacher.model, {}),
        )
    )
    expected = other(teacher, student, masks.view(-1, 4, 4))
    torch.testing.assert_close(method.student(**inputs).patch_loss, expected, rtol=1e-4, atol=1e-5)
    method.after_step(SCHEDULE)
    torch.testing.assert_close(method.patch_center.mean, other.center.value.flatten(), rtol=1e-4, atol=1e-5)
    assert method.own_state_dict().keys() == {"center.mean", "patch_center.mean"}


def test_token_loss_is_dinos_of_masked_views(create):
    method, accelerator = create()
    inputs = inputs_of(method, accelerator, views_of())
    dino, _ = create(method="dino")
    dino.student.load_state_dict(method.student.state_dict(), strict=False)
    names = ("pixel_values", "targets", "temperature", "local_pixel_values")
    expected = dino.student(**{name: inputs[name] for name in names}).token_loss
    whole = {**inputs, "masks": torch.zeros_like(inputs["masks"])}
    torch.testing.assert_close(method.student(**whole).token_loss, expected)
    assert not torch.isclose(method.student(**inputs).token_loss, expected, rtol=1e-4)


def test_student_does_not_see_masked_patches_and_the_teacher_does(create):
    method, accelerator = create()
    views = views_of()
    inputs = inputs_of(method, accelerator, views)
    hidden = inputs["masks"].view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = [torch.where(hidden, 0.0, views[0]), views[1]]
    assert torch.equal(method.student(**inputs).loss, method.student(**{**inputs, "pixel_values": changed[0]}).loss)
    others = inputs_of(method, accelerator, changed)
    assert torch.equal(others["masks"], inputs["masks"])
    assert not torch.allclose(others["patch_targets"], inputs["patch_targets"], atol=1e-3)


def test_batch_norm_of_the_head_keeps_tokens_and_patches_apart(create):
    method, _ = create(head_batch_norm=True)
    (views, _) = views_of()
    tokens, _ = method.student.project_patches(views, torch.arange(8))
    torch.testing.assert_close(tokens, method.student.project(views))


def test_encoder_tokens():
    settings = {"image_size": 224, "patch_size": 16, "num_local_crops": 10, "local_crop_size": 96}
    assert IBOT.encoder_tokens(settings) == 2686


def test_a_run(pretrain):
    settings = {**SETTINGS, "patch_size": 4, "base_learning_rate": 0.05, "frozen_prototypes": 0.0}
    folder = pretrain(**settings, max_steps=2)
    for line in lines_of(folder):
        assert line["loss"] == pytest.approx(line["token_loss"] + line["patch_loss"], rel=1e-5)
    assert weights_in(checkpoint(folder, 2) / "method.safetensors").keys() == {"center.mean", "patch_center.mean"}
    assert "mask_token" in weights_in(checkpoint(folder, 2)) and "mask_token" not in weights_in(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_mask_ratio", [0.5]),
        ("patch_mask_ratio", [0.0, 0.5]),
        ("patch_mask_ratio", [0.5, 0.1]),
        ("patch_mask_ratio", [0.5, 1.0]),
        ("masked_views", 0.0),
        ("masked_views", 1.5),
        ("teacher_temperature", 0.0),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(SiTError) as error:
        IBOTArguments(**{name: value})
    assert error.value.argument == name


def test_other_features_than_the_token_are_refused(refused):
    error = refused(**SETTINGS, patch_size=4, overrides={"pooling": "mean"})
    assert error.argument == "config_overrides" and "pooling=mean" in str(error)


def test_batch_norm_of_a_single_masked_patch_is_refused(refused):
    settings = {**SETTINGS, "masked_views": 0.01, "patch_mask_ratio": [0.05, 0.5], "head_batch_norm": True}
    error = refused(**settings, patch_size=4)
    assert error.argument == "head_batch_norm" and "per_device_train_batch_size" in error.remedy
