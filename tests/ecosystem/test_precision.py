"""Models loaded in bfloat16, whose numbers are rounded to 8 binary digits: half a unit of the last is 2 ** -9."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from modeling_sit import SiTForPreTraining, SiTImageProcessor

HALF_A_UNIT = 2**-9
# Roundings that a token lives through in the tiny model: embedding and positions, per block two norms, queries, context,
# MLP's hidden layer, and both branches with their sums, then the last norm. Each adds at most half a unit, relative to
# what it rounds; added up, not as a random walk, they bound the error.
ROUNDINGS = 2 + 2 * 9 + 1


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.float() - expected).norm() / expected.norm()).item()


@pytest.fixture
def corrupted(pretrained, pixel_values):
    """Clean views, their corruption in bfloat16, and the mask."""
    processor = SiTImageProcessor.from_pretrained(pretrained[0])
    clean = pixel_values.to(torch.bfloat16)
    return clean, *processor.corrupt(clean, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification, AutoModelForPreTraining])
def test_every_weight_is_loaded_in_bfloat16(pretrained, auto_class):
    model = auto_class.from_pretrained(pretrained[0], dtype=torch.bfloat16)
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.bfloat16}


def test_logits_and_features(classifier, pixel_values):
    folder, model = classifier
    half = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logits, expected = half(pixel_values).logits, model(pixel_values).logits
        features = half.vit(pixel_values).last_hidden_state
        expected_features = model.vit(pixel_values).last_hidden_state
    assert logits.dtype == features.dtype == torch.bfloat16
    assert 0 < relative_error(logits, expected) < ROUNDINGS * HALF_A_UNIT
    assert 0 < relative_error(features, expected_features) < ROUNDINGS * HALF_A_UNIT


@pytest.mark.parametrize("use_teacher", [True, False])
def test_corruption_and_losses(save_repository, corrupted, use_teacher):
    clean, views, mask = corrupted
    assert views.dtype == torch.bfloat16 and mask.any()
    assert torch.equal(torch.where(mask, clean, views), clean)
    folder, model = save_repository(SiTForPreTraining, use_teacher=use_teacher)
    half = AutoModelForPreTraining.from_pretrained(folder, dtype=torch.bfloat16).eval()
    teacher_projections = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    inputs = {"target_pixel_values": clean, "corruption_mask": mask, "teacher_projections": teacher_projections}
    output, expected = half(views, **inputs), model(views, **inputs)
    for name in ("loss", "reconstruction_loss", "contrastive_loss"):
        assert output[name].dtype == torch.float32, name
        assert relative_error(output[name], expected[name]) < ROUNDINGS * HALF_A_UNIT, name
    output.loss.backward()
    gradient = half.vit.embeddings.patch_embeddings.projection.weight.grad
    assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all() and gradient.abs().max() > 0
