"""What is read of a SiT repository, and which part of it goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTModel
from modeling_sit.cli.errors import UserError
from modeling_sit.interop.source import choose_model, load_source, training_settings_left_out


@pytest.mark.parametrize("model_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_every_weight_of_every_kind_of_checkpoint_is_read(make_model, make_processor, tmp_path, model_class):
    model = make_model(model_class, rotation_weight=1.0)
    model.save_pretrained(tmp_path)
    assert load_source(str(tmp_path)).processor is None
    make_processor(model, do_corrupt=True).save_pretrained(tmp_path)
    source = load_source(str(tmp_path))
    assert type(source.model) is model_class
    assert not source.model.training
    assert not source.processor.do_corrupt
    assert source.notes == []
    assert source.model.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(source.model.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_lower_precision_is_read_as_float32_and_said(make_model, tmp_path):
    make_model(SiTModel).to(torch.bfloat16).save_pretrained(tmp_path)
    source = load_source(str(tmp_path))
    assert {weight.dtype for weight in source.model.parameters()} == {torch.float32}
    assert any("bfloat16" in note for note in source.notes)


def test_missing_weights_and_other_models_are_refused(make_model, tmp_path):
    make_model(SiTModel).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.layernorm_after.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.layernorm_after\.bias"):
        load_source(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["SiTForDreams"]}))
    with pytest.raises(UserError, match="SiTForDreams"):
        load_source(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        load_source(str(tmp_path))


def test_heads_that_stay_behind_are_named(make_model):
    pretrained = make_model(SiTForPreTraining)
    assert choose_model(pretrained, None, keeps_heads=True) == (pretrained, [])
    for outputs, keeps_heads in ((None, False), ("features", True)):
        chosen, (note,) = choose_model(pretrained, outputs, keeps_heads)
        assert chosen is pretrained.vit
        decoder = sum(weight.numel() for weight in pretrained.decoder.parameters())
        assert f"decoder ({decoder:,} parameters)" in note and "projection_head" in note
        assert "rotation_head" not in note  # it has none
    with pytest.raises(UserError, match="no classifier"):
        choose_model(pretrained, "logits", keeps_heads=False)

    classifier = make_model(SiTForImageClassification)
    for outputs in (None, "logits"):
        assert choose_model(classifier, outputs, keeps_heads=False) == (classifier, [])
    chosen, (note,) = choose_model(classifier, "features", keeps_heads=False)
    assert chosen is classifier.vit and "classifier (34 parameters)" in note


def test_settings_of_training_are_named_where_they_do_something():
    assert training_settings_left_out(SiTConfig(drop_path_rate=0.0)) == []
    (note,) = training_settings_left_out(
        SiTConfig(drop_path_rate=0.2, hidden_dropout_prob=0.1), kept=("hidden_dropout_prob",)
    )
    assert note.endswith("drop_path_rate=0.2")
