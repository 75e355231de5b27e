"""SiT as SiT: nothing is lost."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from modeling_sit import SiTConfig, SiTForImageClassification, SiTForPreTraining, SiTImageProcessor
from modeling_sit.interop.convert_in import read_checkpoint, read_normalization
from modeling_sit.interop.formats import load_sit_folder, write_sit_folder
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.interop.safetensors import load_safetensors, write_safetensors


def test_a_folder_keeps_heads_settings_and_corruption(make_model, make_processor, images, tmp_path):
    model = make_model(SiTForPreTraining, temperature=0.3, rotation_weight=0.5)
    write_sit_folder(model, make_processor(model, corruption="zeros"), tmp_path / "sit")
    back = load_checkpoint(str(tmp_path / "sit"))
    assert back.model.config.temperature == 0.3
    assert back.processor.corruption == "zeros"
    assert all(torch.equal(back.model.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert {"last_hidden_state", "reconstruction", "projection"} <= load_sit_folder(tmp_path / "sit")(
        images(model)
    ).keys()


def test_a_file_reads_images_as_the_folder_does(make_model, make_processor, tmp_path):
    """Also where another class loads it, and where it starts a pretraining."""
    model = make_model(SiTForPreTraining, num_channels=1)
    path = tmp_path / "weights.safetensors"
    write_safetensors(model, make_processor(model, intensity_range=[0, 4095]), path)
    write_sit_folder(model, make_processor(model, intensity_range=[0, 4095]), tmp_path / "sit")
    expected = {"image_mean": [0.3], "image_std": [0.2], "intensity_range": [0, 4095]}
    assert read_normalization(str(path)) == read_normalization(str(tmp_path / "sit")) == expected
    assert read_checkpoint(str(path)).normalization == expected
    plain = tmp_path / "plain.safetensors"
    write_safetensors(model, None, plain)
    assert read_normalization(str(plain)) == {}


@pytest.mark.parametrize("model_class", [SiTForPreTraining, SiTForImageClassification])
def test_one_file_describes_itself(make_model, make_processor, images, tmp_path, model_class):
    model = make_model(model_class, image_size=(16, 24), num_labels=3, temperature=0.3)
    path = tmp_path / "weights.safetensors"
    before = torch.random.get_rng_state()
    write_safetensors(model, make_processor(model, corruption="zeros"), path)
    predict = load_safetensors(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = load_file(path)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert SiTConfig.from_dict(json.loads(metadata["config.json"])).to_diff_dict() == model.config.to_diff_dict()
    assert SiTImageProcessor(**json.loads(metadata["preprocessor_config.json"])).corruption == "zeros"
    found = predict(images(model))
    with torch.no_grad():
        if model_class is SiTForPreTraining:
            assert torch.equal(found["reconstruction"], model(images(model)).reconstruction)
        else:
            assert torch.equal(found["logits"], model(images(model)).logits)
