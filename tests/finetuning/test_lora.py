"""Low-rank adapters: what learns, and what is left when they are merged."""

import importlib.util

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from modeling_sit import SiTForImageClassification
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.lora import Adapters, layers_to_adapt
from modeling_sit.runtime.errors import SiTError


def arguments(**settings) -> FinetuningArguments:
    return FinetuningArguments(dataset="some", model_name_or_path="some", **{"lora_rank": 2, **settings})


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return SiTForImageClassification(tiny_config(num_labels=3)).eval()


class TestAdapted:
    @pytest.fixture(autouse=True)
    def needs_peft(self):
        pytest.importorskip("peft")

    def test_only_adapters_and_classifier_learn(self, model):
        Adapters(model, arguments())
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {"classifier.weight", "classifier.bias"} <= learning
        assert all("lora_" in name for name in learning if not name.startswith("classifier."))
        assert len(learning) == 2 + 2 * 2 * 6  # two of each of the six linear layers of two blocks

    def test_merged_gives_the_same_and_is_plain(self, model):
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        before = model(pixels).logits
        names = set(model.state_dict())
        adapters = Adapters(model, arguments(lora_alpha=6.0))
        torch.testing.assert_close(model(pixels).logits, before)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        adapted = model(pixels).logits
        assert (adapted - before).abs().max() > 0.01
        live = {name: value.clone() for name, value in model.state_dict().items()}
        merged = adapters.merged()
        assert isinstance(merged, SiTForImageClassification) and set(merged.state_dict()) == names
        torch.testing.assert_close(merged(pixels).logits, adapted)
        assert all(live[name].equal(value) for name, value in model.state_dict().items())

    def test_scale_is_2_unasked(self, model):
        Adapters(model, arguments(lora_rank=4))
        assert model.vit.encoder.layer[0].attention.attention.query.scaling["default"] == 2

    def test_scale_is_alpha_over_rank(self, model):
        Adapters(model, arguments(lora_rank=4, lora_alpha=6.0))
        layer = model.vit.encoder.layer[0].attention.attention.query
        with torch.no_grad():
            layer.lora_A["default"].weight.fill_(1)
            layer.lora_B["default"].weight.fill_(1)
        torch.testing.assert_close(layer.get_delta_weight("default"), torch.full((16, 16), 4 * 6 / 4))


def test_places(model):
    assert len(layers_to_adapt(model, None)) == 12
    some = layers_to_adapt(model, ["query", "intermediate.dense"])
    assert len(some) == 4 and all(name.endswith(("query", "intermediate.dense")) for name in some)
    with pytest.raises(SiTError, match=r"'uery'.*dense, key, query, value") as error:
        layers_to_adapt(model, ["uery"])
    assert error.value.argument == "lora_target_modules"


def test_no_places():
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(SiTError, match="resnet") as error:
        layers_to_adapt(resnet, None)
    assert error.value.argument == "lora_rank"


def test_without_peft(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SiTError, match="pip install") as error:
        Adapters(model, arguments())
    assert error.value.argument == "lora_rank"
