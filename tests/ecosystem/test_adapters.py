"""peft: low-rank adapters on models from `from_pretrained`, as anybody would put them there."""

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from modeling_sit import SiTForImageClassification, SiTForPreTraining

peft = pytest.importorskip("peft")


@pytest.fixture
def trained(classifier, pixel_values, tmp_path):
    """Folder of adapters after one step on the classifier, and the logits that they give."""
    folder, _ = classifier
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(SiTForImageClassification.from_pretrained(folder), settings)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves only the half of an adapter that starts at 0
        model(pixel_values=pixel_values, labels=torch.arange(4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters", model.eval()(pixel_values=pixel_values).logits.detach()


def test_adapters_alone_are_trained_and_saved(classifier, trained, pixel_values):
    _, before = classifier
    adapters, logits = trained
    assert (logits - before(pixel_values).logits).abs().max() > 0.01
    saved = load_file(adapters / "adapter_model.safetensors")
    assert len(saved) == 2 + 2 * 2 * 2  # the classifier's, and two of each of two layers of two blocks
    assert all("lora_" in name or "classifier" in name for name in saved)


def test_saved_adapters_load_and_merge(classifier, trained, pixel_values, tmp_path):
    folder, plain = classifier
    adapters, logits = trained
    model = peft.PeftModel.from_pretrained(SiTForImageClassification.from_pretrained(folder), adapters).eval()
    assert torch.equal(model(pixel_values=pixel_values).logits, logits)
    merged = model.merge_and_unload()
    assert type(merged) is SiTForImageClassification
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert again.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(again(pixel_values).logits, logits)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="the Auto classes of transformers 5.17 leave out what modules_to_save names, for its own ViT too",
)
def test_auto_class_loads_the_adapters_folder(trained, pixel_values):
    adapters, logits = trained
    model = AutoModelForImageClassification.from_pretrained(adapters).eval()
    torch.testing.assert_close(model(pixel_values).logits, logits)


def test_adapters_of_every_linear_layer_but_not_of_the_labels(classifier):
    folder, _ = classifier
    settings = peft.LoraConfig(r=2, target_modules="all-linear", exclude_modules="classifier")
    model = peft.get_peft_model(SiTForImageClassification.from_pretrained(folder), settings)
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 2 * 6


def test_pretraining_goes_on_with_adapters(pretrained, pixel_values):
    folder, _ = pretrained
    settings = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    model = peft.get_peft_model(SiTForPreTraining.from_pretrained(folder), settings)
    views = {"pixel_values": pixel_values, "target_pixel_values": pixel_values.flip(0)}
    loss = model(**views, teacher_projections=torch.randn(4, 16)).loss
    loss.backward()
    moving = [weight for weight in model.parameters() if weight.grad is not None]
    assert len(moving) == 2 * 2 * 2 and torch.isfinite(loss)
