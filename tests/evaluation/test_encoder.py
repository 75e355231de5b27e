"""Loading a frozen encoder. The loader itself is tested in tests/interop/test_load.py."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, CLIPConfig, CLIPModel

from modeling_sit import SiTConfig, SiTForPreTraining, SiTImageProcessor, SiTModel
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
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


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_of_images_and_texts_the_encoder_of_images(tmp_path):
    vision, text = {**SIZES, "image_size": 16, "patch_size": 8}, {**SIZES, "vocab_size": 9}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    SiTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    encoder, _ = load_encoder(str(tmp_path))
    pixel_values = torch.randn(2, 3, 16, 16)
    expected = model.vision_model(pixel_values).last_hidden_state
    torch.testing.assert_close(encoder(pixel_values).last_hidden_state, expected)
    assert random_encoder(encoder, str(tmp_path), 0)(pixel_values).last_hidden_state.shape == (2, 5, 16)


def test_encoder_of_texts(tmp_path):
    BertModel(BertConfig(**SIZES, vocab_size=9)).save_pretrained(tmp_path)
    SiTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(SiTError, match="a bert is no encoder of images: it takes input_ids") as error:
        load_encoder(str(tmp_path))
    assert error.value.argument == "model_name_or_path"
