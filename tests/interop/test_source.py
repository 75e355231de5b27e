"""What is read of a SiT repository, and which part of it goes on."""

import json

import pytest
import torch
from authors_network import random_network, save_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTModel
from modeling_sit.interop.plain_vit import write_plain_vit
from modeling_sit.interop.sit import write_safetensors
from modeling_sit.interop.source import choose_model, load_source, training_settings_left_out
from modeling_sit.interop.timm_folder import write_timm_folder
from modeling_sit.runtime.errors import SiTError


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
    with pytest.raises(SiTError, match=r"encoder\.layer\.1\.layernorm_after\.bias"):
        load_source(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["SiTForDreams"]}))
    with pytest.raises(SiTError, match="SiTForDreams"):
        load_source(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(SiTError, match=r"no config\.json"):
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
    with pytest.raises(SiTError, match="no classifier"):
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


def test_a_classifier_of_vit_keeps_its_classifier(make_model, make_processor, tmp_path):
    model = make_model(SiTForImageClassification, id2label={0: "daisy", 1: "rose"})
    write_plain_vit(model, make_processor(model), tmp_path / "vit")
    source = load_source(str(tmp_path / "vit"))
    assert type(source.model) is SiTForImageClassification
    assert source.model.config.id2label == {0: "daisy", 1: "rose"}
    assert list(source.processor.image_mean) == [0.3, 0.4, 0.5]
    assert all(torch.equal(source.model.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_what_was_written_for_timm_or_in_one_file_is_read_again(make_model, make_processor, tmp_path):
    model = make_model(SiTModel)
    write_timm_folder(model, make_processor(model), tmp_path / "timm")
    source = load_source(str(tmp_path / "timm"))
    assert list(source.processor.image_mean) == [0.3, 0.4, 0.5]
    assert all(torch.equal(source.model.state_dict()[name], weight) for name, weight in model.state_dict().items())
    model = make_model(SiTForPreTraining)
    path = tmp_path / "weights.safetensors"
    write_safetensors(model, make_processor(model, corruption="zeros"), path)
    source = load_source(str(path))
    assert type(source.model) is SiTForPreTraining and source.processor.corruption == "zeros"
    assert all(torch.equal(source.model.state_dict()[name], weight) for name, weight in model.state_dict().items())
    # One that has lost a weight since is not filled up.
    weights = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del weights["decoder.projection.bias"]
    save_file(weights, path, metadata=metadata)
    with pytest.raises(SiTError, match=r"decoder\.projection\.bias"):
        load_source(str(path))


def test_the_authors_checkpoints_are_read_with_their_heads(make_model, tmp_path):
    student, teacher = random_network(0), random_network(1)
    checkpoint = str(save_checkpoint(tmp_path / "checkpoint.pth", student, teacher))
    source = load_source(checkpoint, network="student", num_attention_heads=student.heads)
    assert type(source.model) is SiTForPreTraining
    assert torch.equal(source.model.vit.embeddings.position_embeddings, student.backbone.pos_embed)
    assert torch.equal(source.model.decoder.projection.weight, student.head_recons.convTrans.weight)
    assert any("student" in note for note in source.notes)
    make_model(SiTModel).save_pretrained(tmp_path / "sit")
    with pytest.raises(SiTError, match="--network student is for a file of weights"):
        load_source(str(tmp_path / "sit"), network="student")
