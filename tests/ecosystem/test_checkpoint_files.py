"""What `from_pretrained` and `save_pretrained` offer beyond one file of the same model."""

import json

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from modeling_sit import SiTForImageClassification, SiTForPreTraining


@pytest.mark.parametrize("model_class", [SiTForImageClassification, SiTForPreTraining])
def test_shards(save_repository, pixel_values, tmp_path, model_class):
    _, model = save_repository(model_class)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    shards = sorted(path.name for path in (tmp_path / "shards").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    assert len(shards) > 2 and sorted(set(index["weight_map"].values())) == shards
    assert index["weight_map"].keys() == model.state_dict().keys()
    auto_class = {
        SiTForImageClassification: AutoModelForImageClassification,
        SiTForPreTraining: AutoModelForPreTraining,
    }[model_class]
    again = auto_class.from_pretrained(tmp_path / "shards").eval()
    with torch.no_grad():
        expected, output = model(pixel_values), again(pixel_values)
    for name in expected:
        assert torch.equal(output[name], expected[name]), name


def test_another_number_of_labels(classifier, pixel_values):
    folder, model = classifier
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageClassification.from_pretrained(folder, num_labels=7)
    other, info = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert other(pixel_values).logits.shape == (4, 7) and len(other.config.id2label) == 7
    expected = model.vit(pixel_values).last_hidden_state
    assert torch.equal(other.eval().vit(pixel_values).last_hidden_state, expected)
    assert other.classifier.weight.std() < 0.1 < model.classifier.weight.std()  # drawn anew, not left uninitialized


def test_labels_for_a_pretrained_model(pretrained, pixel_values):
    folder, model = pretrained
    labels = {0: "cat", 1: "dog", 2: "owl"}
    classifier, info = AutoModelForImageClassification.from_pretrained(
        folder, id2label=labels, label2id={name: i for i, name in labels.items()}, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert classifier.config.num_labels == 3 and classifier.config.id2label == labels
    expected = model.vit(pixel_values).last_hidden_state
    assert torch.equal(classifier.eval().vit(pixel_values).last_hidden_state, expected)
