"""The classifier's linear layers in 8 bits, by the libraries that transformers calls for it. No GPU is needed."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, BitsAndBytesConfig, TorchAoConfig, pipeline

from modeling_sit import SiTForImageClassification


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm()).item()


@pytest.fixture
def wide_classifier(save_repository):
    """Wide enough for files to show how many bytes a weight takes."""
    return save_repository(SiTForImageClassification, "wide", hidden_size=64, num_labels=5)


# Rounding moves a weight by at most half a step, a step being the row's largest weight over 127. For normal weights,
# whose largest of 64 is 2.4 standard deviations on average, that is an error of 2.4 / 127 / sqrt(12) = 0.5 % of a layer's
# output. Twelve layers' errors, independent of each other, give sqrt(12) times that: 2 %. The bound is twice that.
WEIGHTS_ONLY = 0.04
# Where inputs are rounded too, they bring as much error as the weights, and a layer norm's largest of 64 is as far out.
WEIGHTS_AND_INPUTS = WEIGHTS_ONLY * 2**0.5


class TestTorchao:
    @pytest.fixture(autouse=True)
    def torchao(self):
        return pytest.importorskip("torchao.quantization")

    def test_weights_in_8_bits(self, torchao, wide_classifier, pixel_values, tmp_path):
        folder, model = wide_classifier
        config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
        quantized = AutoModelForImageClassification.from_pretrained(folder, quantization_config=config).eval()
        with torch.no_grad():
            logits, expected = quantized(pixel_values).logits, model(pixel_values).logits
        assert 0 < relative_error(logits, expected) < WEIGHTS_ONLY
        assert torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))

        # Every linear layer's weights are those of the file to half a step, and the logits are those of these weights.
        dequantized = copy.deepcopy(model)
        layers = zip(linear_layers(quantized), linear_layers(dequantized), strict=True)
        with torch.no_grad():
            for eight_bits, layer in layers:
                weight = eight_bits.weight.dequantize()
                step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
                assert ((weight - layer.weight).abs() <= 0.51 * step).all()
                layer.weight.copy_(weight)
            torch.testing.assert_close(logits, dequantized(pixel_values).logits, atol=1e-4, rtol=1e-4)

        quantized.save_pretrained(tmp_path / "quantized")
        weights, all_weights = (path / "model.safetensors" for path in (tmp_path / "quantized", folder))
        assert weights.stat().st_size < 0.5 * all_weights.stat().st_size
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "quantized").eval()
        with torch.no_grad():
            assert torch.equal(again(pixel_values).logits, logits)

    def test_weights_and_inputs_in_8_bits(self, torchao, wide_classifier, pixel_values):
        folder, model = wide_classifier
        config = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
        quantized = AutoModelForImageClassification.from_pretrained(folder, quantization_config=config).eval()
        with torch.no_grad():
            error = relative_error(quantized(pixel_values).logits, model(pixel_values).logits)
        assert 0 < error < WEIGHTS_AND_INPUTS

    def test_pipeline(self, torchao, wide_classifier, images):
        folder, _ = wide_classifier
        quantization = {"quantization_config": TorchAoConfig(torchao.Int8WeightOnlyConfig())}
        classify = pipeline("image-classification", model=str(folder), device="cpu", model_kwargs=quantization)
        expected = pipeline("image-classification", model=str(folder), device="cpu")(images, top_k=1)
        for result, best in zip(classify(images, top_k=1), expected, strict=True):
            assert result[0]["label"] == best[0]["label"]
            assert result[0]["score"] == pytest.approx(best[0]["score"], abs=0.1)


def test_bitsandbytes(wide_classifier, pixel_values):
    pytest.importorskip("bitsandbytes")
    folder, model = wide_classifier
    quantized = AutoModelForImageClassification.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    ).eval()
    assert quantized.vit.encoder.layer[0].output.dense.weight.dtype == torch.int8
    with torch.no_grad():
        error = relative_error(quantized(pixel_values).logits.float(), model(pixel_values).logits)
    assert 0 < error < WEIGHTS_AND_INPUTS
