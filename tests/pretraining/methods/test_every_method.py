"""What holds for every pretraining method: it goes on bit for bit, its backbone loads, and it has its own settings only."""

import math

import pytest
import torch
from huggingface_hub import ModelCard
from pretraining_runs import assert_equal, checkpoint, lines_of, weights_in
from transformers import AutoModel, ViTModel

from modeling_sit.pretraining.method import BACKBONE
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.resolve import settings_of_others

STEPS = 4


@pytest.mark.parametrize("method", METHODS)
def test_a_run(pretrain, method):
    """Half of it again from the checkpoint in its middle: the same bits. What it leaves loads as SiT and as a plain ViT."""
    settings = {"method": method, "preset": "auto", "max_steps": STEPS, "checkpointing_steps": 2}
    settings |= {"checkpoints_total_limit": 0, "preview_steps": STEPS, "monitor_steps": STEPS, "monitor_images": 16}
    whole = pretrain("whole", **settings)
    half = pretrain("half", **settings, resume_from_checkpoint=str(checkpoint(whole, 2)))
    names = {path.name for path in checkpoint(whole, STEPS).glob("*.safetensors")}
    assert "model.safetensors" in names
    for name in names:
        assert_equal(weights_in(checkpoint(half, STEPS) / name), weights_in(checkpoint(whole, STEPS) / name))
    assert_equal(weights_in(half), weights_in(whole))

    losses = METHODS[method].losses if method != "sit" else ("loss", "reconstruction_loss", "contrastive_loss")
    lines = lines_of(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line[name]) for line in lines for name in losses)
    assert len(lines_of(whole, "monitors.jsonl")) == 1
    card = ModelCard.load(whole / "README.md")
    assert METHODS[method].title in card.text and METHODS[method].citation in card.text
    assert set(METHODS[method].tags) <= set(card.data.tags)

    model, trouble = AutoModel.from_pretrained(whole, output_loading_info=True)
    assert not trouble["missing_keys"] and not trouble["unexpected_keys"]
    pixel_values = torch.randn(2, 1, *model.config.image_shape, generator=torch.Generator().manual_seed(0))
    plain = ViTModel.from_pretrained(whole, add_pooling_layer=False).eval()
    torch.testing.assert_close(
        model.eval()(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", ["simclr", "moco_v3", "lejepa"])
def test_heads_read_token_and_mean(pretrain, method):
    folder = pretrain(method=method, preset="auto", max_steps=1, overrides={"pooling": "token_mean"})
    assert all(math.isfinite(line["loss"]) for line in lines_of(folder))


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_other_methods_are_refused(refused, method):
    """One of each other method: an argument or a field of the configuration that this method does not have."""
    other = sorted(settings_of_others(METHODS[method]) & VALUES.keys())
    for name in other:
        error = refused(method=method, **{name: VALUES[name]})
        assert error.argument == name


# Of arguments that not all methods have, a value that is not the default.
VALUES = {"teacher_momentum": 0.5, "corruption": "zeros", "reconstruction_weight": 2.0, "temperature": 0.3}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_says_what_its_weights_are_made_for(method):
    assert method.fixed >= BACKBONE
    assert method.citation.startswith("@") and "](https://arxiv.org/abs/" in method.title
