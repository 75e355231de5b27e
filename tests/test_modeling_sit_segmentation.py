"""SiTForSemanticSegmentation: its logits, its loss, and what it shares with the other classes."""

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate
from transformers import AutoModelForImageSegmentation, AutoModelForSemanticSegmentation

from modeling_sit import SiTConfig, SiTForSemanticSegmentation, SiTModel

HEADS = ("fpn", "linear")


def config(head: str = "fpn", **fields) -> SiTConfig:
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "pyramid_size": 8,
        "num_labels": 3,
        "drop_path_rate": 0.0,
    }
    return SiTConfig(segmentation_head=head, **{**settings, **fields})


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_cross_entropy_of_the_pixels_with_a_class(head, images):
    torch.manual_seed(0)
    model = SiTForSemanticSegmentation(config(head))
    labels = torch.randint(0, 3, (2, 64, 96))
    labels[0, :30] = 255
    labels[1, :, 90:] = 255
    output = model(images, labels=labels)
    assert output.logits.shape == (2, 3, 16, 24)
    scores = interpolate(output.logits, size=(64, 96), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    has_class = labels != 255
    assert torch.allclose(output.loss, cross_entropy(scores[has_class], labels[has_class]), atol=1e-6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_of_one_trains_and_images_do_not_mix(head, images):
    model = SiTForSemanticSegmentation(config(head)).train()
    together = model(images).logits
    assert torch.allclose(model(images[:1]).logits, together[:1], atol=1e-5)


def test_outputs_of_the_backbone_are_handed_on(images):
    model = SiTForSemanticSegmentation(config(attn_implementation="eager")).eval()
    encoded = model.vit(images, interpolate_pos_encoding=True, output_hidden_states=True, output_attentions=True)
    logits, hidden_states, attentions = model(
        images, output_hidden_states=True, output_attentions=True, return_dict=False
    )
    assert torch.equal(logits, model(images).logits)
    for given, expected in ((hidden_states, encoded.hidden_states), (attentions, encoded.attentions)):
        assert len(given) == len(expected) and all(map(torch.equal, given, expected))


def test_no_pixel_with_a_class_is_no_loss(images):
    model = SiTForSemanticSegmentation(config(semantic_loss_ignore_index=0))
    loss = model(images, labels=torch.zeros(2, 64, 96, dtype=torch.int64)).loss
    assert loss == 0
    loss.backward()


def test_labels_are_at_their_places(images):
    """Half an image of one class, half of the other: the logits learn which half."""
    torch.manual_seed(0)
    model = SiTForSemanticSegmentation(config(num_labels=2))
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    labels[:, :, 64:] = 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    predicted = model(images).logits.argmax(dim=1)
    expected = labels[:, ::4, ::4]
    assert (predicted == expected).float().mean() > 0.97


def test_linear_head_reads_the_normed_patches(images):
    model = SiTForSemanticSegmentation(config("linear", patch_size=4, image_size=16)).eval()
    tokens = model.vit(images, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    weight, bias = model.segmentation_head.weight[:, :, 0, 0], model.segmentation_head.bias
    expected = (tokens @ weight.T + bias).transpose(1, 2).unflatten(2, (16, 24))
    assert torch.allclose(model(images).logits, expected, atol=1e-5)
    assert model.pyramid is None and set(dict(model.named_children())) == {"vit", "segmentation_head"}


def test_sizes():
    with pytest.raises(ValueError, match=r"72 x 64 pixels.*multiples of 32; pad"):
        SiTForSemanticSegmentation(config())(torch.randn(1, 3, 72, 64))
    linear = SiTForSemanticSegmentation(config("linear"))
    assert linear(torch.randn(1, 3, 72, 64)).logits.shape == (1, 3, 18, 16)
    with pytest.raises(ValueError, match=r"68 x 64 pixels.*patch_size=8"):
        linear(torch.randn(1, 3, 68, 64))
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        linear(torch.randn(1, 3, 72, 64), interpolate_pos_encoding=False)


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_to_the_bit(head, images, tmp_path):
    model = SiTForSemanticSegmentation(config(head)).eval()
    model.save_pretrained(tmp_path)
    for auto_class in (AutoModelForSemanticSegmentation, AutoModelForImageSegmentation):
        again = auto_class.from_pretrained(tmp_path)
        assert type(again) is SiTForSemanticSegmentation
        with torch.no_grad():
            assert torch.equal(again(images).logits, model(images).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, images):
    torch.manual_seed(0)
    model = SiTForSemanticSegmentation(config()).eval()
    expected = model(images).logits
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    with torch.autocast("cpu", dtype=dtype):
        assert (model(images).logits - expected).abs().max() < 0.1
    output = model.to(dtype)(images, labels=labels)
    assert output.logits.dtype == dtype and output.loss.dtype == torch.float32
    assert (output.logits - expected).abs().max() < 0.1


def test_gradient_checkpointing_changes_nothing(images):
    torch.manual_seed(0)
    model = SiTForSemanticSegmentation(config()).train()
    gradients = []
    for is_on in (False, True):
        if is_on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(images, labels=torch.zeros(2, 64, 96, dtype=torch.int64)).loss.backward()
        gradients.append(model.vit.embeddings.cls_token.grad.clone())
    assert torch.allclose(*gradients, atol=1e-7) and gradients[0].abs().sum() > 0


def test_backbone_comes_from_and_goes_to_the_others(save_tiny_sit, tmp_path):
    folder = save_tiny_sit(tmp_path / "pretrained")
    model, info = SiTForSemanticSegmentation.from_pretrained(folder, num_labels=5, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"pyramid", "segmentation_head"}
    assert not info["unexpected_keys"]
    head = model.segmentation_head
    assert 0.015 < head.weight.std() < 0.025 and not head.bias.any()
    model.save_pretrained(tmp_path / "segmentation")
    backbone, info = SiTModel.from_pretrained(tmp_path / "segmentation", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weight in SiTModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(backbone.state_dict()[name], weight), name
