"""Loading a frozen encoder. The loader itself is tested in tests/interop/test_load.py."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def pretrained(tmp_path):
    config = SiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4, decoder_hidden_size=8
    )
    model = SiTForPreTraining(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    SiTImageProcessor(size={"height": 16, "width": 16}, do_corrupt=True).save_pretrained(tmp_path)
    return model, str(tmp_path)


def test_encoder_of_a_pretraining_checkpoint_in_float32(pretrained):
    model, folder = pretrained
    encoder, _ = load_encoder(folder)
    assert isinstance(encoder, SiTModel) and not encoder.training
    expected = {name: tensor.float() for name, tensor in model.vit.state_dict().items()}
    torch.testing.assert_close(encoder.state_dict(), expected, rtol=0, atol=0)
    assert type(AutoModel.from_pretrained(folder)) is type(encoder)


def test_images_are_not_corrupted_though_the_processor_was_saved_so(pretrained):
    _, processor = load_encoder(pretrained[1])
    images = [np.full((16, 16, 3), 255, dtype=np.uint8)] * 3
    inputs = processor(images, return_tensors="pt")
    assert list(inputs) == ["pixel_values"]
    clean = SiTImageProcessor(size={"height": 16, "width": 16})(images, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], clean["pixel_values"])


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "../model", "outputs/my/model", "~/model"])
def test_what_looks_like_a_path_is_not_sought_on_the_hub(path):
    with pytest.raises(SiTError) as error:
        load_encoder(path)
    assert (error.value.argument, error.value.problem) == ("model_name_or_path", f"{path}: no such folder")


def test_a_file_of_a_folder_is_not_the_model(pretrained):
    with pytest.raises(SiTError, match="give the folder"):
        load_encoder(f"{pretrained[1]}/model.safetensors")
