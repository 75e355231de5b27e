"""SiT as transformers' ViT, loaded by transformers' own classes."""

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from modeling_sit import SiTConfig, SiTForImageClassification, SiTModel
from modeling_sit.interop.plain_vit import load_plain_vit, training_settings_left_out, write_plain_vit
from modeling_sit.runtime.errors import SiTError

LABELS = {0: "daisy", 1: "rose", 2: "tulip"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 0.1, "intermediate_size": 40},
        {"image_size": (16, 24), "patch_size": (8, 4), "num_channels": 1},
        {"position_embedding_type": "sincos"},
    ],
    ids=["plain", "other_layers", "grey_rectangles", "sincos"],
)
def test_backbone_gives_the_same_tokens(make_model, images, tmp_path, fields):
    model = make_model(SiTModel, **fields)
    write_plain_vit(model, None, tmp_path / "vit")
    vit, info = AutoModel.from_pretrained(tmp_path / "vit", output_loading_info=True)
    assert type(vit) is ViTModel
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        found, expected = vit.eval()(images(model)), model(images(model))
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
    # Its pooler does nothing to the contrastive token.
    assert torch.equal(found.pooler_output, found.last_hidden_state[:, 0])


def test_classifier_gives_the_same_logits_and_labels(make_model, images, tmp_path):
    model = make_model(SiTForImageClassification, id2label=LABELS, label2id={name: i for i, name in LABELS.items()})
    model.config.problem_type = "multi_label_classification"
    write_plain_vit(model, None, tmp_path / "vit")
    vit = AutoModelForImageClassification.from_pretrained(tmp_path / "vit")
    assert type(vit) is ViTForImageClassification
    assert vit.config.id2label == LABELS
    assert vit.config.label2id == {"daisy": 0, "rose": 1, "tulip": 2}
    assert vit.config.problem_type == "multi_label_classification"
    with torch.no_grad():
        torch.testing.assert_close(vit.eval()(images(model)).logits, model(images(model)).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_class", [SiTModel, SiTForImageClassification])
@pytest.mark.parametrize("position_embedding_type", ["learnable", "sincos"])
def test_there_and_back_every_bit_is_the_same(make_model, tmp_path, model_class, position_embedding_type):
    model = make_model(model_class, position_embedding_type=position_embedding_type, num_labels=3)
    write_plain_vit(model, None, tmp_path / "vit")
    # Through transformers' own reading and writing as well.
    vit_class = ViTModel if model_class is SiTModel else ViTForImageClassification
    vit_class.from_pretrained(tmp_path / "vit").save_pretrained(tmp_path / "again")
    for folder in ("vit", "again"):
        back, info = model_class.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert back.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(back.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_images_are_prepared_as_before(make_model, make_processor, tmp_path):
    model = make_model(SiTForImageClassification, id2label=LABELS)
    processor = make_processor(model)
    write_plain_vit(model, processor, tmp_path / "vit")
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    plain = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert isinstance(plain, ViTImageProcessor)
    prepared = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(plain(image, return_tensors="pt")["pixel_values"], prepared)
    # Nothing there asks for this package, nor for code of it.
    assert {path.name for path in (tmp_path / "vit").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in (tmp_path / "vit" / name).read_text()
        assert "sit" not in (tmp_path / "vit" / name).read_text().lower()
    (best, *_) = pipeline("image-classification", model=str(tmp_path / "vit"), device="cpu")(image)
    with torch.no_grad():
        expected = model(prepared).logits.softmax(dim=-1)[0]
    assert best["label"] == LABELS[int(expected.argmax())]
    assert best["score"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_grey_images_stay_grey(make_model, make_processor, tmp_path):
    model = make_model(SiTModel, num_channels=1)
    processor = make_processor(model)
    notes = write_plain_vit(model, processor, tmp_path / "vit")
    assert any("mode L" in note for note in notes)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    plain = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert torch.equal(
        plain(image, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )


@pytest.mark.parametrize("pooling", ["mean", "token_mean"])
def test_another_pooling_is_refused_in_a_classifier_and_named_in_a_backbone(make_model, tmp_path, pooling):
    with pytest.raises(SiTError, match=f"pooling={pooling}"):
        write_plain_vit(make_model(SiTForImageClassification, pooling=pooling), None, tmp_path / "vit")
    assert not (tmp_path / "vit").exists()
    notes = write_plain_vit(make_model(SiTModel, pooling=pooling), None, tmp_path / "vit")
    assert any(f"pooling={pooling}" in note for note in notes)


def test_what_only_training_knows_is_named(make_model, tmp_path):
    notes = write_plain_vit(make_model(SiTModel, drop_path_rate=0.25, hidden_dropout_prob=0.5), None, tmp_path / "vit")
    (named,) = [note for note in notes if "drop_path_rate=0.25" in note]
    assert "hidden_dropout_prob" not in named  # ViT has it too
    assert ViTModel.from_pretrained(tmp_path / "vit").config.hidden_dropout_prob == 0.5


def test_what_is_read_back_lacks_nothing(make_model, tmp_path):
    model = make_model(SiTModel)
    del model.layernorm.bias
    model.layernorm.register_parameter("bias", None)
    write_plain_vit(model, None, tmp_path / "vit")
    with pytest.raises(ValueError, match=r"missing keys: layernorm\.bias"):
        load_plain_vit(tmp_path / "vit")


def test_settings_of_training_are_named_where_they_do_something():
    assert training_settings_left_out(SiTConfig(drop_path_rate=0.0)) == []
    (note,) = training_settings_left_out(
        SiTConfig(drop_path_rate=0.2, hidden_dropout_prob=0.1), kept=("hidden_dropout_prob",)
    )
    assert note.endswith("drop_path_rate=0.2")
