"""The comparison that everything written has to pass: it has to find each way of being wrong."""

import pytest
import torch

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTForSemanticSegmentation, SiTModel
from modeling_sit.interop.verification import (
    input_shape,
    largest_differences,
    one_and_the_rest,
    outputs_of,
    random_images,
)


def test_gives_the_largest_difference_of_each_output_over_all_batches(make_model, images):
    model = make_model(SiTModel)
    offsets = iter([0.25, 0.5, 0.125])

    def predict(pixel_values):
        outputs = outputs_of(model, pixel_values)
        outputs["pooler_output"][-1, -1] -= next(offsets)
        return outputs

    differences = largest_differences(model, predict, [images(model)] * 3)
    assert differences == {
        "last_hidden_state": 0,
        "pooler_output": pytest.approx(0.5, abs=1e-6),
        "contrastive_token": pytest.approx(0.5, abs=1e-6),
    } or differences["pooler_output"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    "predict, complaint",
    [
        (lambda found: {}, "nothing to compare"),
        (lambda found: {"answer": found["logits"]}, "answer is no output"),
        (lambda found: {"logits": found["logits"][:1]}, r"shape \(1, 2\), not \(3, 2\)"),
        (lambda found: {"logits": found["logits"] * torch.nan}, "of the written model is not finite"),
    ],
)
def test_outputs_that_cannot_be_compared_are_no_success(make_model, images, predict, complaint):
    model = make_model(SiTForImageClassification)
    with pytest.raises(ValueError, match=complaint):
        largest_differences(model, lambda pixel_values: predict(outputs_of(model, pixel_values)), [images(model)])


def test_a_source_that_is_not_finite_is_no_success(make_model, images):
    model = make_model(SiTForImageClassification)
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="of the source is not finite"):
        largest_differences(model, lambda pixel_values: outputs_of(model, pixel_values), [images(model)])


@pytest.mark.parametrize("use_teacher", [True, False])
def test_a_pretrained_model_is_compared_with_its_heads(make_model, images, use_teacher):
    model = make_model(SiTForPreTraining, use_teacher=use_teacher)
    outputs = outputs_of(model, images(model, 4))
    assert {"last_hidden_state", "pooler_output", "reconstruction", "projection"} <= outputs.keys()
    # Heads that the configuration switches off give nothing.
    model = make_model(SiTForPreTraining, reconstruction_weight=0.0)
    assert "reconstruction" not in outputs_of(model, images(model))


def test_random_images_are_a_function_of_the_seed(make_model):
    model = make_model(SiTModel, image_size=(16, 24), num_channels=4)
    torch.manual_seed(1)
    first = random_images(model, 5, seed=0)
    torch.manual_seed(2)
    assert torch.equal(random_images(model, 5, seed=0), first)
    assert not torch.equal(random_images(model, 5, seed=1), first)
    assert first.shape == (5, 4, 16, 24)


def test_images_are_of_a_size_that_the_model_takes(make_model):
    model = make_model(SiTForSemanticSegmentation, image_size=(16, 40), pyramid_size=4)
    assert input_shape(model) == (32, 64)
    assert outputs_of(model, random_images(model, 1, seed=0))["logits"].shape == (1, 2, 8, 16)


@pytest.mark.parametrize("count, sizes", [(1, [1]), (2, [1, 1]), (4, [1, 3])])
def test_images_come_one_at_a_time_and_several(count, sizes):
    images = torch.arange(count)
    batches = one_and_the_rest(images)
    assert [len(batch) for batch in batches] == sizes
    assert torch.equal(torch.cat(batches), images)
