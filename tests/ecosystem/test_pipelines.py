"""transformers' pipelines: what comes out of a repository, for images of any size."""

import pytest
import torch
from transformers import pipeline

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor, SiTModel


def outputs(model, folder, images):
    """The model's outputs for the images, one by one, without a pipeline."""
    processor = SiTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return [model(**processor(image, return_tensors="pt")) for image in images]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_classification_of_batches(classifier, images, batch_size):
    folder, model = classifier
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    results = classify(images, batch_size=batch_size, top_k=5)
    assert len(results) == len(images)
    for result, output in zip(results, outputs(model, folder, images), strict=True):
        scores = {entry["label"]: entry["score"] for entry in result}
        expected = {f"LABEL_{i}": chance for i, chance in enumerate(output.logits.softmax(-1)[0].tolist())}
        assert scores == pytest.approx(expected, abs=1e-5)


def test_several_labels_each_have_a_chance_of_their_own(save_repository, images):
    problem = "multi_label_classification"
    folder, model = save_repository(SiTForImageClassification, num_labels=3, problem_type=problem)
    result = pipeline("image-classification", model=str(folder), device="cpu")(images[0])
    expected = outputs(model, folder, images[:1])[0].logits.sigmoid()[0].tolist()
    assert sorted(entry["score"] for entry in result) == pytest.approx(sorted(expected), abs=1e-5)
    assert abs(sum(expected) - 1) > 0.1


@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
@pytest.mark.parametrize("model_class", [SiTForPreTraining, SiTForImageClassification])
def test_features(save_repository, images, model_class, pooling):
    folder, model = save_repository(model_class, pooling=pooling)
    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    assert type(extract.model) is SiTModel
    tokens = extract(images)
    pooled = extract(images, pool=True)
    for of_tokens, of_image, output in zip(tokens, pooled, outputs(model.vit, folder, images), strict=True):
        torch.testing.assert_close(torch.tensor(of_tokens), output.last_hidden_state)
        assert output.last_hidden_state.shape == (1, 5, 16)
        token, mean = output.last_hidden_state[:, 0], output.last_hidden_state[:, 1:].mean(dim=1)
        expected = {"token": token, "mean": mean, "token_mean": torch.cat([token, mean], dim=1)}[pooling]
        torch.testing.assert_close(torch.tensor(of_image), expected)


def test_features_as_tensors_in_batches(pretrained, images):
    folder, model = pretrained
    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")
    features = extract(images, pool=True, return_tensors=True, batch_size=2)
    expected = [output.pooler_output for output in outputs(model.vit, folder, images)]
    torch.testing.assert_close(torch.cat(features), torch.cat(expected))


@pytest.mark.parametrize("task", ["image-classification", "image-feature-extraction"])
def test_pipelines_in_bfloat16(classifier, images, task):
    folder, _ = classifier
    run = pipeline(task, model=str(folder), device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.bfloat16}
    assert len(run(images)) == len(images)
