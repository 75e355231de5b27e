"""SiT's models: against transformers' ViT and timm's, through files, and head by head."""

import builtins
import math

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_sit import (
    SiTConfig,
    SiTForImageClassification,
    SiTForPreTraining,
    SiTForPreTrainingOutput,
    SiTImageProcessor,
    SiTModel,
)
from modeling_sit.losses import contrastive_loss, nt_xent_loss, reconstruction_loss
from modeling_sit.modeling_sit import SiTDropPath, sincos_position_embeddings

TOLERANCE = 1e-5
BACKBONE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    # Large enough that a wrong epsilon shows.
    "layer_norm_eps": 1e-2,
}
HEADS = {"decoder_hidden_size": 24, "projection_hidden_size": 20, "projection_size": 12}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def small_config(**overrides) -> SiTConfig:
    return SiTConfig(**{**BACKBONE, **HEADS, **overrides})


def randomize(model: nn.Module, seed=0) -> nn.Module:
    """Random weights, biases, norms, tokens, positions and running statistics: one that is not loaded shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            drawn = 0.5 + torch.rand(buffer.shape, generator=generator)
            buffer.copy_(drawn if buffer.is_floating_point() else (100 * drawn).long())
    return model.eval()


def images(batch=2, channels=3, height=32, width=32, seed=1):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def pretraining_inputs(batch=4, total_batch=None, seed=1, **kwargs):
    """`2 * batch` corrupted and clean views, a mask, and a teacher's projections."""
    generator = torch.Generator().manual_seed(seed)
    target = images(2 * batch, seed=seed, **kwargs)
    mask = torch.rand(2 * batch, 1, *target.shape[2:], generator=generator) < 0.5
    return {
        "pixel_values": target.masked_fill(mask, 0),
        "target_pixel_values": target,
        "corruption_mask": mask,
        "teacher_projections": torch.randn(2 * (total_batch or batch), 12, generator=generator),
    }


def assert_equal(one, other, tolerance=TOLERANCE):
    assert one.shape == other.shape
    assert torch.isfinite(one).all()
    assert (one - other).abs().max().item() < tolerance


def difference(one, other) -> float:
    return (one - other).abs().max().item()


def saved_keys(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def count_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The backbone's size and keys.


def test_default_backbone_is_vit_small():
    with torch.device("meta"):
        model = SiTModel(SiTConfig())
    assert count_parameters(model) == 21_665_664


@pytest.mark.parametrize(
    ("width", "heads", "timm_name"), [(192, 3, "vit_tiny_patch16_224"), (768, 12, "vit_base_patch16_224")]
)
def test_tiny_and_base_have_their_vits_parameters(width, heads, timm_name):
    with torch.device("meta"):
        model = SiTModel(SiTConfig(hidden_size=width, num_attention_heads=heads))
        expected = timm.create_model(timm_name, num_classes=0)
    assert count_parameters(model) == count_parameters(expected)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_saved_keys_are_vits(tmp_path, qkv_bias):
    SiTModel(small_config(qkv_bias=qkv_bias)).save_pretrained(tmp_path / "sit")
    ViTModel(ViTConfig(**BACKBONE, qkv_bias=qkv_bias), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    assert saved_keys(tmp_path / "sit") == saved_keys(tmp_path / "vit")


def test_classic_key_names():
    keys = set(SiTModel(small_config()).state_dict())
    assert {
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.attention.attention.query.weight",
        "encoder.layer.2.attention.output.dense.bias",
        "encoder.layer.1.intermediate.dense.weight",
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.0.layernorm_before.weight",
        "layernorm.bias",
    } <= keys


def test_heads_hold_the_backbone_as_vit(tmp_path):
    backbone = set(SiTModel(small_config()).state_dict())
    for model_class, heads in (
        (SiTForPreTraining, ("decoder.", "projection_head.")),
        (SiTForImageClassification, ("classifier.",)),
    ):
        folder = tmp_path / model_class.__name__
        model = model_class(small_config())
        assert model.base_model_prefix == "vit"
        assert isinstance(model.vit, SiTModel)
        model.save_pretrained(folder)
        keys = saved_keys(folder)
        assert {key for key in keys if not key.startswith(heads)} == {f"vit.{key}" for key in backbone}
        assert all(any(key.startswith(head) for key in keys) for head in heads)


def test_classifier_by_the_token_has_vits_keys(tmp_path):
    SiTForImageClassification(small_config(**LABELS)).save_pretrained(tmp_path / "sit")
    ViTForImageClassification(ViTConfig(**BACKBONE, **LABELS)).save_pretrained(tmp_path / "vit")
    assert saved_keys(tmp_path / "sit") == saved_keys(tmp_path / "vit")


# To and from transformers' ViT.


def is_head(key: str) -> bool:
    return key.startswith(("decoder.", "projection_head.", "rotation_head.", "classifier.", "pooler."))


def load(model_class, folder, heads_may_be_missing=False, **kwargs):
    """The model, after a look that no weight of the backbone went missing or was left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    missing = {key for key in info["missing_keys"] if not (heads_may_be_missing and is_head(key))}
    unexpected = {key for key in info["unexpected_keys"] if not (heads_may_be_missing and is_head(key))}
    assert not missing
    assert not unexpected
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_vit_model_loads_sit(tmp_path, qkv_bias):
    sit = randomize(SiTModel(small_config(qkv_bias=qkv_bias)))
    sit.save_pretrained(tmp_path)
    vit = load(ViTModel, tmp_path, add_pooling_layer=False)
    assert vit.config.layer_norm_eps == 1e-2
    assert_equal(vit(images()).last_hidden_state, sit(images()).last_hidden_state)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("pooler", [True, False])
def test_sit_model_loads_vit(tmp_path, pooler, qkv_bias):
    vit = randomize(ViTModel(ViTConfig(**BACKBONE, qkv_bias=qkv_bias), add_pooling_layer=pooler))
    vit.save_pretrained(tmp_path)
    sit = load(SiTModel, tmp_path)
    assert sit.config.layer_norm_eps == 1e-2
    assert_equal(sit(images()).last_hidden_state, vit(images()).last_hidden_state)


def test_randomized_weights_would_show():
    """The two tests above can fail: other weights give other outputs."""
    one, other = (randomize(SiTModel(small_config()), seed)(images()).last_hidden_state for seed in (0, 1))
    assert difference(one, other) > 0.1


@pytest.mark.parametrize("weight", sorted(SiTModel(small_config(num_hidden_layers=1)).state_dict()))
def test_every_weight_reaches_the_output(weight):
    """So that equal outputs mean equal weights. A key's bias alone cancels out in the softmax."""
    model = randomize(SiTModel(small_config(num_hidden_layers=1)))
    before = model(images()).last_hidden_state
    with torch.no_grad():
        parameter = model.get_parameter(weight)
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    change = difference(model(images()).last_hidden_state, before)
    assert change > 1e-2 if not weight.endswith("key.bias") else change < 1e-3


def test_classifiers_load_each_other(tmp_path):
    sit = randomize(SiTForImageClassification(small_config(**LABELS)))
    sit.save_pretrained(tmp_path / "sit")
    vit = load(ViTForImageClassification, tmp_path / "sit")
    assert vit.config.id2label == LABELS["id2label"]
    assert_equal(vit(images()).logits, sit(images()).logits)

    vit = randomize(vit, seed=7)
    vit.save_pretrained(tmp_path / "vit")
    again = load(SiTForImageClassification, tmp_path / "vit")
    assert again.config.id2label == LABELS["id2label"]
    assert_equal(again(images()).logits, vit(images()).logits)


@pytest.mark.parametrize("vit_class", [ViTModel, ViTForImageClassification])
@pytest.mark.parametrize("sit_class", [SiTForPreTraining, SiTForImageClassification])
def test_vit_loads_the_backbone_of_any_sit(tmp_path, sit_class, vit_class):
    sit = randomize(sit_class(small_config()))
    sit.save_pretrained(tmp_path)
    vit = load(vit_class, tmp_path, heads_may_be_missing=True)
    backbone = vit if vit_class is ViTModel else vit.vit
    assert_equal(backbone(images()).last_hidden_state, sit.vit(images()).last_hidden_state)


@pytest.mark.parametrize("vit_class", [ViTModel, ViTForImageClassification])
@pytest.mark.parametrize("sit_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_any_sit_loads_the_backbone_of_vit(tmp_path, sit_class, vit_class):
    vit = randomize(vit_class(ViTConfig(**BACKBONE)))
    vit.save_pretrained(tmp_path)
    sit = load(sit_class, tmp_path, heads_may_be_missing=True)
    backbones = [model if model.__class__ in (SiTModel, ViTModel) else model.vit for model in (sit, vit)]
    one, other = (backbone(images()).last_hidden_state for backbone in backbones)
    assert_equal(one, other)


@pytest.mark.parametrize("from_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
@pytest.mark.parametrize("to_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_any_sit_loads_the_backbone_of_any_sit(tmp_path, from_class, to_class):
    model = randomize(from_class(small_config()))
    model.save_pretrained(tmp_path)
    loaded = load(to_class, tmp_path, heads_may_be_missing=True)
    one, other = (getattr(each, "vit", each)(images()).last_hidden_state for each in (model, loaded))
    assert_equal(one, other)


def test_hidden_states_and_attentions_are_vits(tmp_path):
    sit = randomize(SiTModel(small_config()))
    sit.save_pretrained(tmp_path)
    vit = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, attn_implementation="eager").eval()
    ours, theirs = (model(images(), output_hidden_states=True, output_attentions=True) for model in (sit, vit))
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    assert len(ours.attentions) == len(theirs.attentions)
    pairs = zip(ours.hidden_states + ours.attentions, theirs.hidden_states + theirs.attentions, strict=True)
    for one, other in pairs:
        assert_equal(one, other)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16), (32, 64), (24, 56)])
def test_interpolated_positions_are_vits(tmp_path, height, width):
    sit = randomize(SiTModel(small_config()))
    sit.save_pretrained(tmp_path)
    vit = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    x = images(height=height, width=width)
    ours, theirs = (model(x, interpolate_pos_encoding=True).last_hidden_state for model in (sit, vit))
    assert ours.shape[1] == 1 + (height // 8) * (width // 8)
    assert_equal(ours, theirs)


# Against timm.


def key_in_timm(key: str) -> str:
    for ours, theirs in (
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer", "blocks"),
        ("attention.output.dense", "attn.proj"),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
        ("layernorm", "norm"),
    ):
        key = key.replace(ours, theirs)
    return key


def test_equals_timms_vit_small():
    torch.manual_seed(0)
    vit = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=0).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = vit.state_dict()
    sit = SiTModel(SiTConfig()).eval()
    ours = {}
    for key in sit.state_dict():
        for part, name in enumerate(("query", "key", "value")):
            if f"attention.attention.{name}." in key:
                fused = key_in_timm(key.replace(f"attention.attention.{name}", "attn.qkv"))
                ours[key] = theirs[fused].chunk(3)[part]
        if key not in ours:
            ours[key] = theirs[key_in_timm(key)]
    sit.load_state_dict(ours, strict=True)
    x = images(1, height=224, width=224)
    with torch.no_grad():
        assert_equal(sit(x).last_hidden_state, vit.forward_features(x))


# Attention, hidden states, checkpointing, compilation.


def slow_attention(layer, hidden_states):
    """One head, one image, one query at a time."""
    attention = layer.attention.attention
    heads, size = attention.config.num_attention_heads, attention.head_size
    query, key, value = (part(hidden_states) for part in (attention.query, attention.key, attention.value))
    context = torch.zeros_like(query)
    for image in range(len(query)):
        for head in range(heads):
            channels = slice(head * size, (head + 1) * size)
            for token in range(query.shape[1]):
                scores = key[image, :, channels] @ query[image, token, channels] / math.sqrt(size)
                weights = scores.exp() / scores.exp().sum()
                context[image, token, channels] = weights @ value[image, :, channels]
    return layer.attention.output.dense(context)


def test_attention_equals_a_slow_version():
    layer = randomize(SiTModel(small_config())).encoder.layer[0]
    hidden_states = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    context, _ = layer.attention(hidden_states)
    assert_equal(context, slow_attention(layer, hidden_states))


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_implementations_agree(tmp_path, implementation, monkeypatch):
    model = randomize(SiTModel(small_config()))
    expected = model(images(), output_attentions=True).last_hidden_state
    model.save_pretrained(tmp_path)
    calls = []
    if implementation != "eager":
        original = ALL_ATTENTION_FUNCTIONS[implementation]
        monkeypatch.setitem(
            ALL_ATTENTION_FUNCTIONS, implementation, lambda *args, **kw: calls.append(1) or original(*args, **kw)
        )
    loaded = SiTModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
    # Compiling flex attention for a CPU takes a minute the first time.
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        assert_equal(loaded(images()).last_hidden_state, expected)
    assert len(calls) == (0 if implementation == "eager" else 3)


def test_attention_implementation_can_be_set_later(monkeypatch):
    model = randomize(SiTModel(small_config()))
    calls = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, **kw: calls.append(1) or sdpa(*args, **kw))
    for implementation, expected_calls in (("eager", 0), ("sdpa", 3)):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        model(images())
        assert len(calls) == expected_calls


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_dropout_acts_in_training_only(implementation):
    model = randomize(SiTModel._from_config(small_config(), attn_implementation=implementation))
    dropped = randomize(
        SiTModel._from_config(
            small_config(attention_probs_dropout_prob=0.5, drop_path_rate=0.0), attn_implementation=implementation
        )
    )
    expected = model(images()).last_hidden_state
    assert_equal(dropped(images()).last_hidden_state, expected)
    assert difference(dropped.train()(images()).last_hidden_state, expected) > 1e-2


@pytest.mark.parametrize("model_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_hidden_states_and_attentions_have_their_counts_and_shapes(model_class):
    model = randomize(model_class(small_config()))
    output = model(images(), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 17, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, 17, 17)] * 3
    for weights in output.attentions:
        assert (weights >= 0).all()
        assert_equal(weights.sum(-1), torch.ones(2, 4, 17))
    backbone = getattr(model, "vit", model)
    assert_equal(output.hidden_states[0], backbone.embeddings(images()))
    assert_equal(backbone.layernorm(output.hidden_states[-1]), backbone(images()).last_hidden_state)
    assert model(images()).hidden_states is None
    assert model(images()).attentions is None


@pytest.mark.parametrize("model_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_configuration_asks_for_hidden_states_and_attentions(model_class):
    model = randomize(model_class(small_config(output_hidden_states=True)))
    assert len(model(images()).hidden_states) == 4
    assert model(images(), output_hidden_states=False).hidden_states is None
    model = model_class._from_config(small_config(output_attentions=True), attn_implementation="eager").eval()
    assert len(model(images()).attentions) == 3


def gradients_of_pretraining(model):
    model.zero_grad()
    torch.manual_seed(0)  # stochastic depth draws the same in both
    model(**pretraining_inputs()).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradient_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    model = SiTForPreTraining(small_config(drop_path_rate=0.5)).train()
    calls = []
    model.vit.encoder.layer[1].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = gradients_of_pretraining(model)
    assert len(calls) == 1
    # BatchNorm's statistics move in training but do not act on it.
    model.gradient_checkpointing_enable()
    actual = gradients_of_pretraining(model)
    assert len(calls) == 3, "the block ran once more for the backward pass"
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        assert_equal(actual[name], gradient)


def test_every_weight_gets_a_gradient():
    # The last batch norm takes away the mean, so the bias before it and before the other ones has a gradient of zero.
    gradients = gradients_of_pretraining(SiTForPreTraining(small_config()).train())
    flat = [name for name, gradient in gradients.items() if not gradient.abs().max() > 1e-8]
    assert all(name.startswith("projection_head.mlp") or name.endswith("key.bias") for name in flat)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_compiles_into_one_graph():
    torch.manual_seed(0)
    model = SiTForPreTraining(small_config(num_hidden_layers=1)).eval()
    inputs = pretraining_inputs(total_batch=8)
    expected = model(**inputs, teacher_projections_offset=2)
    expected.loss.backward()
    gradient = model.vit.embeddings.cls_token.grad.clone()
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(**inputs, teacher_projections_offset=2)
    output.loss.backward()
    for name in ("loss", "reconstruction_loss", "contrastive_loss", "reconstruction", "projection"):
        assert_equal(output[name], expected[name])
    assert_equal(model.vit.embeddings.cls_token.grad, gradient)


def test_compiles_into_one_graph_in_training():
    model = SiTForPreTraining(small_config(use_teacher=False, num_hidden_layers=2)).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.isfinite(compiled(**pretraining_inputs()).loss)


# Positions.


@pytest.mark.parametrize(("height", "width"), [(48, 64), (32, 48), (16, 24), (64, 16), (24, 64)])
def test_positions_of_a_image_that_is_not_square(height, width):
    model = randomize(SiTModel(small_config(image_size=(32, 48), patch_size=(8, 4))))
    embeddings = model.embeddings
    positions = embeddings.position_embeddings
    grid = positions[0, 1:].reshape(1, 4, 12, 32).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(height // 8, width // 4), mode="bicubic", align_corners=False)
    expected = torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
    x = images(height=height, width=width)
    without = torch.cat([embeddings.cls_token.expand(2, -1, -1), embeddings.patch_embeddings(x)], dim=1)
    assert_equal(embeddings(x, interpolate_pos_encoding=True), without + expected)


def test_interpolation_to_the_models_own_size_changes_nothing():
    model = randomize(SiTModel(small_config(image_size=(32, 48))))
    x = images(height=32, width=48)
    assert torch.equal(model(x).last_hidden_state, model(x, interpolate_pos_encoding=True).last_hidden_state)


@pytest.mark.parametrize("model_class", [SiTModel, SiTForPreTraining, SiTForImageClassification])
def test_wrong_sizes_and_channels_are_refused(model_class):
    model = model_class(small_config()).eval()
    for height, width in ((48, 48), (32, 48), (48, 32), (16, 64)):
        with pytest.raises(ValueError, match="interpolate_pos_encoding"):
            model(images(height=height, width=width))
    for channels in (1, 4):
        with pytest.raises(ValueError, match="channels"):
            model(images(channels=channels))
    for channels in (1, 4):
        with pytest.raises(ValueError, match="channels"):
            model(images(channels=channels), interpolate_pos_encoding=True)


def test_pretraining_reconstructs_other_sizes():
    model = randomize(SiTForPreTraining(small_config()))
    inputs = pretraining_inputs(height=48, width=24)
    output = model(**inputs, interpolate_pos_encoding=True)
    assert output.reconstruction.shape == (8, 3, 48, 24)
    expected = reconstruction_loss(output.reconstruction, inputs["target_pixel_values"], inputs["corruption_mask"])
    assert_equal(output.reconstruction_loss, expected)


def slow_sincos(hidden_size, grid_height, grid_width):
    quarter = hidden_size // 4
    table = [[0.0] * hidden_size]
    for row in range(grid_height):
        for column in range(grid_width):
            vector = []
            for position in (column, row):
                for wave in (math.sin, math.cos):
                    vector += [wave(position / 10000 ** (channel / quarter)) for channel in range(quarter)]
            table.append(vector)
    return torch.tensor([table])


@pytest.mark.parametrize(("hidden_size", "height", "width"), [(32, 4, 4), (24, 3, 5), (384, 14, 14)])
def test_sincos_positions_equal_the_closed_form(hidden_size, height, width):
    positions = sincos_position_embeddings(hidden_size, height, width)
    assert positions.dtype == torch.float32
    assert_equal(positions, slow_sincos(hidden_size, height, width))


def test_sincos_positions_are_in_the_model_whatever_the_seed():
    expected = slow_sincos(32, 4, 6)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = SiTModel(small_config(position_embedding_type="sincos", image_size=(32, 48)))
        assert_equal(model.embeddings.position_embeddings, expected)


def test_init_weights_restores_sincos_positions():
    model = SiTModel(small_config(position_embedding_type="sincos"))
    with torch.no_grad():
        model.embeddings.position_embeddings.zero_()
    model._init_weights(model.embeddings)
    assert_equal(model.embeddings.position_embeddings, slow_sincos(32, 4, 4))


def test_sincos_positions_are_not_trained():
    model = SiTForPreTraining(small_config(position_embedding_type="sincos")).train()
    positions = model.vit.embeddings.position_embeddings
    before = positions.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**pretraining_inputs()).loss.backward()
    optimizer.step()
    assert positions.grad is None
    assert torch.equal(positions, before)


def test_sincos_positions_are_saved_and_loaded(tmp_path):
    model = randomize(SiTModel(small_config(position_embedding_type="sincos")))
    model.save_pretrained(tmp_path / "randomized")
    assert "embeddings.position_embeddings" in saved_keys(tmp_path / "randomized")
    loaded = load(SiTModel, tmp_path / "randomized")
    assert torch.equal(loaded.embeddings.position_embeddings, model.embeddings.position_embeddings)
    assert not loaded.embeddings.position_embeddings.requires_grad
    assert_equal(loaded(images()).last_hidden_state, model(images()).last_hidden_state)
    vit = load(ViTModel, tmp_path / "randomized", add_pooling_layer=False)
    assert_equal(vit(images()).last_hidden_state, model(images()).last_hidden_state)


def test_learnable_positions_are_trained():
    assert SiTModel(small_config()).embeddings.position_embeddings.requires_grad


# Initial weights and files.


def xavier_std(weight: torch.Tensor) -> float:
    """Of PyTorch's own initialization, for the layer as a matrix: a convolution of patches is a product of matrices."""
    return nn.init.xavier_uniform_(torch.empty_like(weight.flatten(1))).std().item()


@pytest.mark.parametrize("settings", [{}, {"initialization": "normal"}, {"initializer_range": 0.1}])
def test_initial_weights(settings):
    torch.manual_seed(0)
    config = SiTConfig(num_hidden_layers=1, projection_hidden_size=256, decoder_hidden_size=256, **settings)
    model = SiTForPreTraining(config)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            std = settings.get("initializer_range", 0.02) if settings else xavier_std(module.weight)
            assert module.weight.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(module.weight.mean().item()) < std / 20, name
            assert not module.bias.any(), name
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)) and module.weight is not None:
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    embeddings = model.vit.embeddings
    std = settings.get("initializer_range", 0.02)
    positions_std = std if settings else sincos_position_embeddings(384, 14, 14).square().mean().sqrt().item()
    assert embeddings.position_embeddings.std().item() == pytest.approx(positions_std, rel=0.06)
    assert embeddings.cls_token.std().item() == pytest.approx(std, rel=0.2)


def test_xavier_is_uniform_and_the_classifier_begins_small():
    torch.manual_seed(0)
    model = SiTForImageClassification(SiTConfig(num_hidden_layers=1, num_labels=50))
    weight = model.vit.encoder.layer[0].intermediate.dense.weight
    assert weight.abs().max().item() == pytest.approx((6 / (384 + 1536)) ** 0.5, rel=1e-3)
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"projection_output_norm": False}, {"position_embedding_type": "sincos"}])
def test_every_weight_of_pretraining_survives_a_file(tmp_path, settings):
    model = randomize(SiTForPreTraining(small_config(**settings)))
    model.save_pretrained(tmp_path)
    loaded = load(SiTForPreTraining, tmp_path)
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys() == saved_keys(tmp_path)
    assert any("running_var" in key for key in expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        assert torch.equal(actual[key], value), key
    inputs = pretraining_inputs()
    assert torch.equal(loaded(**inputs).loss, model(**inputs).loss)


def test_missing_heads_are_drawn_as_new_ones(tmp_path):
    randomize(SiTModel(small_config())).save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = SiTForPreTraining.from_pretrained(tmp_path)
    for name, module in [*model.decoder.named_modules(), *model.projection_head.named_modules()]:
        if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
            assert module.weight.std().item() == pytest.approx(xavier_std(module.weight), rel=0.2), name
            assert not module.bias.any(), name
        if isinstance(module, nn.BatchNorm1d):
            assert (module.running_var == 1).all(), name
            assert not module.running_mean.any(), name
            assert module.num_batches_tracked == 0, name


# Stochastic depth.


def test_stochastic_depth_rises_linearly():
    model = SiTModel(small_config(num_hidden_layers=5, drop_path_rate=0.4))
    rates = [layer.drop_path.drop_probability for layer in model.encoder.layer]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    branch = torch.randn(20_000, 2, 3)
    dropped = SiTDropPath(0.3).train()(branch)
    kept = dropped.abs().sum((1, 2)) > 0
    assert_equal(dropped[kept], branch[kept] / 0.7)
    assert not dropped[~kept].any()
    assert abs(kept.float().mean().item() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 20_000)
    ones = SiTDropPath(0.3).train()(torch.ones(20_000, 1))
    assert ones.mean().item() == pytest.approx(1, abs=0.03)


def test_stochastic_depth_is_off_in_evaluation():
    branch = torch.randn(8, 2, 3)
    assert torch.equal(SiTDropPath(0.9).eval()(branch), branch)
    with_depth, without = (randomize(SiTModel(small_config(drop_path_rate=rate))) for rate in (0.9, 0.0))
    assert torch.equal(with_depth(images()).last_hidden_state, without(images()).last_hidden_state)


def test_stochastic_depth_acts_in_training():
    model = randomize(SiTModel(small_config(drop_path_rate=0.9)))
    expected = model(images()).last_hidden_state
    torch.manual_seed(0)
    assert difference(model.train()(images()).last_hidden_state, expected) > 1e-2


def test_a_dropped_branch_leaves_the_residual():
    model = randomize(SiTModel(small_config(drop_path_rate=0.5))).train()
    layer = model.encoder.layer[-1]
    hidden_states = torch.randn(64, 5, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    output, _ = layer(hidden_states)
    untouched = (output == hidden_states).flatten(1).all(1)
    # Both branches dropped in a quarter of the images.
    assert 4 <= untouched.sum().item() <= 30


# Pretraining.


def test_pretraining_gives_every_output():
    model = randomize(SiTForPreTraining(small_config()))
    output = model(**pretraining_inputs())
    assert isinstance(output, SiTForPreTrainingOutput)
    assert output.reconstruction.shape == (8, 3, 32, 32)
    assert output.projection.shape == (8, 12)
    for loss in (output.loss, output.reconstruction_loss, output.contrastive_loss):
        assert loss.shape == ()
        assert loss.dtype == torch.float32


@pytest.mark.parametrize("region", ["corrupted", "all"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_reconstruction_loss_is_that_of_the_losses(norm, region):
    model = randomize(SiTForPreTraining(small_config(reconstruction_norm=norm, reconstruction_region=region)))
    inputs = pretraining_inputs()
    output = model(**inputs)
    error = output.reconstruction - inputs["target_pixel_values"]
    distance = error.abs() if norm == "l1" else error**2
    mask = inputs["corruption_mask"].expand_as(distance)
    expected = distance[mask].mean() if region == "corrupted" else distance.mean()
    assert_equal(output.reconstruction_loss, expected)
    assert difference(distance[mask].mean(), distance.mean()) > 1e-4


@pytest.mark.parametrize("offset", [0, 3])
def test_contrastive_loss_is_that_of_the_losses(offset):
    model = randomize(SiTForPreTraining(small_config(temperature=0.3)))
    inputs = pretraining_inputs(total_batch=7)
    output = model(**inputs, teacher_projections_offset=offset)
    expected = contrastive_loss(output.projection, inputs["teacher_projections"], 0.3, offset)
    assert_equal(output.contrastive_loss, expected)
    for temperature, other_offset in ((0.2, offset), (0.3, 3 - offset)):
        other = contrastive_loss(output.projection, inputs["teacher_projections"], temperature, other_offset)
        assert difference(output.contrastive_loss, other) > 1e-3


def test_without_a_teacher_the_views_contrast_with_each_other():
    # In training, where batch norm spreads the projections out.
    model = randomize(SiTForPreTraining(small_config(use_teacher=False, temperature=0.3, drop_path_rate=0.0))).train()
    inputs = pretraining_inputs()
    inputs.pop("teacher_projections")
    output = model(**inputs)
    assert_equal(output.contrastive_loss, nt_xent_loss(output.projection, 0.3))
    assert difference(output.contrastive_loss, nt_xent_loss(output.projection, 0.2)) > 1e-3
    assert_equal(output.loss, output.reconstruction_loss + output.contrastive_loss)


def test_loss_is_the_weighted_sum():
    model = randomize(SiTForPreTraining(small_config(reconstruction_weight=5.0, contrastive_weight=0.5)))
    output = model(**pretraining_inputs())
    assert_equal(output.loss, 5 * output.reconstruction_loss + 0.5 * output.contrastive_loss)


def test_what_is_not_given_is_not_computed():
    model = randomize(SiTForPreTraining(small_config()))
    inputs = pretraining_inputs()
    nothing = model(inputs["pixel_values"])
    assert nothing.loss is nothing.reconstruction_loss is nothing.contrastive_loss is None
    assert nothing.reconstruction.shape == (8, 3, 32, 32)
    assert nothing.projection.shape == (8, 12)

    target = model(inputs["pixel_values"], target_pixel_values=inputs["target_pixel_values"])
    assert target.contrastive_loss is None
    assert_equal(target.reconstruction_loss, (target.reconstruction - inputs["target_pixel_values"]).abs().mean())
    assert_equal(target.loss, target.reconstruction_loss)

    teacher = model(inputs["pixel_values"], teacher_projections=inputs["teacher_projections"])
    assert teacher.reconstruction_loss is None
    assert_equal(teacher.loss, teacher.contrastive_loss)

    mask = model(inputs["pixel_values"], corruption_mask=inputs["corruption_mask"])
    assert mask.loss is None


@pytest.mark.parametrize(
    ("weight", "head", "loss", "output_name"),
    [
        ("reconstruction_weight", "decoder", "reconstruction_loss", "reconstruction"),
        ("contrastive_weight", "projection_head", "contrastive_loss", "projection"),
    ],
)
def test_weight_of_zero_leaves_out_the_term_and_its_head(weight, head, loss, output_name):
    model = randomize(SiTForPreTraining(small_config(**{weight: 0.0}))).train()
    calls = []
    getattr(model, head).register_forward_hook(lambda *_: calls.append(head))
    output = model(**pretraining_inputs())
    assert output[loss] is None if loss in output else getattr(output, loss) is None
    assert getattr(output, output_name) is None
    other = "contrastive_loss" if loss == "reconstruction_loss" else "reconstruction_loss"
    assert_equal(output.loss, getattr(output, other))
    output.loss.backward()
    assert not calls
    assert all(parameter.grad is None for parameter in getattr(model, head).parameters())
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.abs().max() > 0


def test_weights_of_zero_leave_out_the_loss():
    model = randomize(SiTForPreTraining(small_config(reconstruction_weight=0.0, contrastive_weight=0.0)))
    assert model(**pretraining_inputs()).loss is None


def test_teacher_gets_no_gradient():
    model = SiTForPreTraining(small_config()).train()
    inputs = pretraining_inputs()
    inputs["teacher_projections"].requires_grad_()
    model(**inputs).loss.backward()
    assert inputs["teacher_projections"].grad is None


def test_project_gives_the_projection_and_runs_no_decoder():
    model = randomize(SiTForPreTraining(small_config()))
    x = images(6)
    expected = model(x).projection
    model.decoder.register_forward_hook(lambda *_: pytest.fail("the teacher decoded"))
    torch.testing.assert_close(model.project(x), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_token_alone_is_the_token_among_all(attention):
    model = randomize(SiTModel(small_config(attn_implementation=attention))).eval()
    x = images(6)
    alone = model(x, token_only=True, output_hidden_states=True, output_attentions=True)
    among_all = model(x, output_hidden_states=True, output_attentions=True)
    assert alone.last_hidden_state.shape[1] == 1
    torch.testing.assert_close(alone.last_hidden_state, among_all.last_hidden_state[:, :1])
    torch.testing.assert_close(alone.pooler_output, among_all.pooler_output)
    torch.testing.assert_close(alone.attentions[-1], among_all.attentions[-1][:, :, :1])
    for first, other in zip(alone.hidden_states[:-1], among_all.hidden_states[:-1], strict=True):
        assert_equal(first, other)
    gradients = []
    for token_only in (True, False):
        model.zero_grad()
        model(x, token_only=token_only).last_hidden_state[:, 0].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, other in zip(*gradients, strict=True):
        torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("setting", [{"pooling": "mean"}, {"pooling": "token_mean"}])
def test_poolings_of_patches_need_all_tokens(setting):
    model = randomize(SiTModel(small_config(**setting))).eval()
    x = images(6)
    assert_equal(model(x, token_only=True).pooler_output, model(x).pooler_output)


def test_encode_gives_the_contrastive_token_and_its_projection():
    model = randomize(SiTForPreTraining(small_config())).eval()
    x = images(6)
    token, projection = model.encode(x)
    torch.testing.assert_close(token, model.vit(x).last_hidden_state[:, 0])
    torch.testing.assert_close(projection, model(x).projection)


# Rotation.


def rotation_model(seed=0, **overrides) -> SiTForPreTraining:
    return randomize(SiTForPreTraining(small_config(rotation_weight=0.5, **overrides)), seed)


def rotation_labels(views=8) -> torch.Tensor:
    return torch.tensor([0, 3, 1, 2, 2, 0, 1, 1])[:views]


def test_without_rotation_there_is_no_head_and_labels_change_nothing(tmp_path):
    torch.manual_seed(0)
    model = SiTForPreTraining(small_config()).eval()
    assert not [key for key in model.state_dict() if "rotation" in key]
    inputs = pretraining_inputs()
    with_labels, without = model(**inputs, rotation_labels=rotation_labels()), model(**inputs)
    assert with_labels.rotation_loss is without.rotation_loss is None
    assert torch.equal(with_labels.loss, without.loss)


def test_rotation_reads_the_mean_of_the_patch_tokens():
    model = rotation_model()
    inputs = pretraining_inputs()
    output = model(**inputs, rotation_labels=rotation_labels())
    with torch.no_grad():
        tokens = model.vit(inputs["pixel_values"]).last_hidden_state
        losses = []
        for image, label in zip(tokens, rotation_labels().tolist(), strict=True):
            mean = sum(image[position] for position in range(1, 17)) / 16
            logits = [
                sum((row * mean).tolist()) + bias.item()
                for row, bias in zip(model.rotation_head.weight, model.rotation_head.bias, strict=True)
            ]
            losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[label])
    assert output.rotation_loss.item() == pytest.approx(sum(losses) / 8, abs=TOLERANCE)
    assert_equal(output.loss, output.reconstruction_loss + output.contrastive_loss + 0.5 * output.rotation_loss)


def test_rotation_at_zero_logits_is_a_guess_among_4():
    model = rotation_model()
    nn.init.zeros_(model.rotation_head.weight)
    nn.init.zeros_(model.rotation_head.bias)
    loss = model(images(8), rotation_labels=rotation_labels()).rotation_loss
    assert loss.item() == pytest.approx(math.log(4), abs=1e-6)


def test_rotation_alone_trains_the_backbone_and_its_head():
    model = rotation_model(reconstruction_weight=0.0, contrastive_weight=0.0).train()
    output = model(images(8), rotation_labels=rotation_labels())
    assert_equal(output.loss, 0.5 * output.rotation_loss)
    output.loss.backward()
    for parameter in (
        model.rotation_head.weight,
        model.rotation_head.bias,
        model.vit.embeddings.patch_embeddings.projection.weight,
    ):
        assert parameter.grad.abs().max() > 1e-6
    assert all(parameter.grad is None for parameter in model.projection_head.parameters())


def test_rotation_leaves_the_contrastive_token_of_the_last_block_alone():
    """Only through attention can it ask something of that token: its own output stays free for the contrast."""
    model = rotation_model(num_hidden_layers=1)
    encoded = model.vit(images(8)).last_hidden_state.detach().requires_grad_()
    model.vit.forward = lambda *_, **__: BaseModelOutputWithPooling(last_hidden_state=encoded)
    model(images(8), rotation_labels=rotation_labels()).rotation_loss.backward()
    assert not encoded.grad[:, 0].any()
    assert (encoded.grad[:, 1:].abs().amax(dim=-1) > 0).all()


def test_without_rotation_labels_there_is_no_rotation_loss():
    output = rotation_model()(**pretraining_inputs())
    assert output.rotation_loss is None
    assert_equal(output.loss, output.reconstruction_loss + output.contrastive_loss)


def test_rotation_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rotation_labels"):
        rotation_model()(images(8), rotation_labels=rotation_labels(4))


def test_rotation_head_survives_a_file(tmp_path):
    model = rotation_model()
    model.save_pretrained(tmp_path)
    assert saved_keys(tmp_path) == saved_keys_of_pretraining(tmp_path / "plain") | {
        "rotation_head.weight",
        "rotation_head.bias",
    }
    loaded = load(SiTForPreTraining, tmp_path)
    inputs = {**pretraining_inputs(), "rotation_labels": rotation_labels()}
    assert torch.equal(loaded(**inputs).rotation_loss, model(**inputs).rotation_loss)


def saved_keys_of_pretraining(folder) -> set[str]:
    SiTForPreTraining(small_config()).save_pretrained(folder)
    return saved_keys(folder)


def test_a_checkpoint_without_rotation_goes_on_with_it_and_back(tmp_path):
    plain = randomize(SiTForPreTraining(small_config()))
    plain.save_pretrained(tmp_path / "plain")
    torch.manual_seed(0)
    with_rotation, info = SiTForPreTraining.from_pretrained(
        tmp_path / "plain", rotation_weight=0.5, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"rotation_head.weight", "rotation_head.bias"}
    assert 0.01 < with_rotation.rotation_head.weight.std().item() < 0.03
    assert not with_rotation.rotation_head.bias.any()
    with_rotation.save_pretrained(tmp_path / "rotation")
    back = load(SiTForPreTraining, tmp_path / "rotation", rotation_weight=0.0)
    assert back.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key


@pytest.mark.parametrize("model_class", [SiTModel, SiTForImageClassification])
def test_other_models_leave_the_rotation_head_out_without_a_word(tmp_path, model_class):
    model = rotation_model()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not [key for key in info["unexpected_keys"] if "rotation" in key]
    assert_equal(getattr(loaded.eval(), "vit", loaded)(images()).last_hidden_state, model.vit(images())[0])


def test_rotation_compiles_into_one_graph():
    model = rotation_model(num_hidden_layers=1)
    inputs = {**pretraining_inputs(), "rotation_labels": rotation_labels()}
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_equal(compiled(**inputs).rotation_loss, model(**inputs).rotation_loss)


# A batch that several processes share.


def shards_of(inputs: dict[str, torch.Tensor], processes: int) -> list[dict[str, torch.Tensor]]:
    """What each process gets of a batch: view 1 of its images, then their view 2."""
    by_view = {name: value.unflatten(0, (2, processes, -1)) for name, value in inputs.items()}
    return [{name: value[:, i].flatten(0, 1) for name, value in by_view.items()} for i in range(processes)]


@pytest.mark.parametrize("use_teacher", [True, False])
def test_gradients_of_two_processes_average_to_those_of_the_whole_batch(use_teacher):
    """With all three losses. In evaluation mode, for batch norm sees one process's images, or all by SyncBatchNorm."""
    model = rotation_model(use_teacher=use_teacher).requires_grad_()
    whole = {**pretraining_inputs(), "rotation_labels": rotation_labels()}
    whole["corruption_mask"][[0, 5]] = False  # so that the processes' numbers of corrupted pixels differ
    teacher_projections = whole["teacher_projections"]
    expected = model(**whole)
    expected.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    shards = shards_of(whole, 2)
    counts = [shard["corruption_mask"].sum() for shard in shards]
    assert counts[0] != counts[1]
    projections = model(whole["pixel_values"]).projection
    losses = []
    for process, shard in enumerate(shards):
        shard["teacher_projections"] = teacher_projections
        offset = 2 * process
        output = model(
            **shard,
            teacher_projections_offset=offset,
            num_corrupted_pixels=sum(counts) / 2,
            gather_projections=lambda own, offset=offset: (check_rows(own, projections, offset), offset),
        )
        losses.append(output.loss)
    (sum(losses) / 2).backward()
    assert (sum(losses) / 2).item() == pytest.approx(expected.loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)


def check_rows(own, projections, offset):
    assert_equal(own, projections.unflatten(0, (2, 4))[:, offset : offset + 2].flatten(0, 1))
    return projections


def test_a_teacher_leaves_the_gathering_of_projections_out():
    model = randomize(SiTForPreTraining(small_config()))
    model(**pretraining_inputs(), gather_projections=lambda _: pytest.fail("gathered for nothing"))


def test_number_of_corrupted_pixels_counts_where_corrupted_pixels_do():
    inputs = pretraining_inputs()
    count = inputs["corruption_mask"].sum()
    for region, factor in (("corrupted", 2), ("all", 1)):
        model = randomize(SiTForPreTraining(small_config(reconstruction_region=region)))
        own, halved = model(**inputs), model(**inputs, num_corrupted_pixels=count / 2)
        assert halved.reconstruction_loss.item() == pytest.approx(factor * own.reconstruction_loss.item(), rel=1e-6)


# Mistakes.


def test_target_and_mask_of_other_shapes_are_refused():
    model = randomize(SiTForPreTraining(small_config()))
    inputs = pretraining_inputs()
    for name in ("target_pixel_values", "corruption_mask"):
        with pytest.raises(ValueError, match=name):
            model(**{**inputs, name: inputs[name][:1]})


def test_odd_number_of_views_is_refused():
    model = randomize(SiTForPreTraining(small_config()))
    with pytest.raises(ValueError, match="odd number of rows: 7"):
        model(images(7), teacher_projections=torch.randn(8, 12))
    model = randomize(SiTForPreTraining(small_config(use_teacher=False)))
    with pytest.raises(ValueError, match="odd number of rows: 7"):
        model.train()(images(7))


def test_without_a_teacher_any_number_of_images_is_reconstructed():
    model = randomize(SiTForPreTraining(small_config(use_teacher=False)))
    output = model(images(3))
    assert output.contrastive_loss is output.loss is None
    assert output.reconstruction.shape == (3, 3, 32, 32)


@pytest.mark.parametrize("misspelt", ["target_pixels", "corruption_masks", "teacher_projection", "num_items_in_batch"])
def test_misspelt_arguments_are_refused(misspelt):
    model = randomize(SiTForPreTraining(small_config()))
    with pytest.raises(TypeError, match=misspelt):
        model(images(), **{misspelt: torch.zeros(1)})


def test_arguments_of_wrappers_do_no_harm():
    """Labels of a labeled dataset, from transformers' Trainer; peft's wrappers hand on what is `None`."""
    model = randomize(SiTForPreTraining(small_config()))
    inputs = pretraining_inputs()
    other = model(**inputs, labels=torch.arange(8), input_ids=None, inputs_embeds=None)
    assert torch.equal(other.loss, model(**inputs).loss)


class PairsOfViews(torch.utils.data.Dataset):
    """Two views of each image an item, with the label of a labeled dataset."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": images(2, seed=index), "labels": index % 2}


def collate_views(items: list[dict]) -> dict[str, torch.Tensor]:
    views = torch.stack([item["pixel_values"] for item in items], dim=1).flatten(0, 1)
    return {
        "pixel_values": views,
        "target_pixel_values": views,
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def gradient_norms(tmp_path, create_model, train_dataset, **others) -> list[float]:
    """Of a step of transformers' `Trainer`: one batch of eight items, and four accumulated batches of two."""
    norms = []
    for batch_size, accumulated in ((8, 1), (2, 4)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            max_grad_norm=1e9,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(create_model(), arguments, train_dataset=train_dataset, **others)
        trainer.train()
        norms.append(next(line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line))
    return norms


def test_transformers_trainer_trains_it_and_averages_accumulated_batches(tmp_path):
    """The same gradient, where no loss compares images."""

    def create() -> SiTForPreTraining:
        return randomize(SiTForPreTraining(small_config(contrastive_weight=0.0, drop_path_rate=0.0)))

    whole, accumulated = gradient_norms(tmp_path, create, PairsOfViews(), data_collator=collate_views)
    assert accumulated == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_transformers_trainer_averages_accumulated_batches_of_a_classifier(tmp_path, problem):
    def create() -> SiTForImageClassification:
        return randomize(
            SiTForImageClassification(small_config(num_labels=2, problem_type=problem, drop_path_rate=0.0))
        )

    def label(index: int) -> int | torch.Tensor:
        return index % 2 if problem.startswith("single") else torch.tensor([index % 2, 1.0 - index % 2])

    items = [{"pixel_values": images(1, seed=index)[0], "labels": label(index)} for index in range(8)]
    whole, accumulated = gradient_norms(tmp_path, create, items)
    assert accumulated == pytest.approx(whole, rel=1e-4)


def slow_batch_norm(module, x):
    mean, variance = module.running_mean, module.running_var
    normed = (x - mean) / torch.sqrt(variance + module.eps)
    return normed if module.weight is None else normed * module.weight + module.bias


@pytest.mark.parametrize(
    ("fields", "output_norm", "first_act"),
    [
        ({}, True, F.gelu),
        ({"projection_output_norm": False}, False, F.gelu),
        ({"projection_first_act": "relu"}, True, F.relu),
    ],
)
def test_projection_head_is_that_of_the_paper(fields, output_norm, first_act):
    """Two layers with batch norm and GELU (or ReLU after the first, as in the authors' code), a linear layer, and on request
    a batch norm without parameters."""
    model = randomize(SiTForPreTraining(small_config(**fields)))
    linear = [module for module in model.projection_head.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in model.projection_head.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(20, 32), (20, 20), (12, 20)]
    assert len(norms) == (3 if output_norm else 2)
    x = model.vit(images()).last_hidden_state[:, 0]
    x = first_act(slow_batch_norm(norms[0], F.linear(x, linear[0].weight, linear[0].bias)))
    x = F.gelu(slow_batch_norm(norms[1], F.linear(x, linear[1].weight, linear[1].bias)))
    x = F.linear(x, linear[2].weight, linear[2].bias)
    if output_norm:
        assert norms[2].weight is None
        x = slow_batch_norm(norms[2], x)
    assert_equal(model(images()).projection, x)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "num_layers"), [(32, 8, 2), ((32, 48), 8, 3), ((24, 48), (12, 8), 1)]
)
def test_decoder_puts_each_patch_in_its_place(image_size, patch_size, num_layers):
    config = small_config(image_size=image_size, patch_size=patch_size, decoder_num_hidden_layers=num_layers)
    model = randomize(SiTForPreTraining(config))
    (height, width), (patch_height, patch_width) = model.config.image_shape, model.config.patch_shape
    x = images(height=height, width=width)
    tokens = model.vit(x).last_hidden_state[:, 1:]
    layers = [module for module in model.decoder.mlp if isinstance(module, nn.Linear)]
    assert len(layers) == num_layers
    features = tokens
    for layer in layers:
        features = F.gelu(layer(features))
    expected = torch.zeros_like(x)
    projection = model.decoder.projection
    for number in range(tokens.shape[1]):
        top, left = number // (width // patch_width) * patch_height, number % (width // patch_width) * patch_width
        patch = torch.einsum("bd,dchw->bchw", features[:, number], projection.weight) + projection.bias[:, None, None]
        expected[:, :, top : top + patch_height, left : left + patch_width] = patch
    assert_equal(model(x).reconstruction, expected, 1e-4)


@pytest.mark.parametrize(("image_size", "patch_size"), [(30, 8), ((32, 36), 8), (32, (8, 12))])
def test_images_of_part_patches_are_refused(image_size, patch_size):
    with pytest.raises(ValueError, match="patch_size"):
        SiTForPreTraining(small_config(image_size=image_size, patch_size=patch_size))


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(tmp_path, channels):
    model = randomize(SiTForPreTraining(small_config(num_channels=channels)))
    inputs = pretraining_inputs(channels=channels)
    output = model(**inputs)
    assert output.reconstruction.shape == (8, channels, 32, 32)
    assert torch.isfinite(output.loss)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(SiTForPreTraining, tmp_path)(**inputs).loss, output.loss)


def test_the_model_draws_no_random_numbers_but_for_depth_and_dropout():
    model = SiTForPreTraining(small_config(drop_path_rate=0.0)).train()
    before = torch.get_rng_state()
    model(**pretraining_inputs())
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_are_left_unchanged():
    model = SiTForPreTraining(small_config()).train()
    inputs = pretraining_inputs()
    copies = {name: value.clone() for name, value in inputs.items()}
    model(**inputs).loss.backward()
    assert all(torch.equal(inputs[name], copy) for name, copy in copies.items())


def test_tuples_hold_what_the_output_declares_in_its_order():
    model = randomize(SiTForPreTraining(small_config(rotation_weight=0.5)))
    inputs = {**pretraining_inputs(), "rotation_labels": torch.arange(8) % 4}
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    declared = [
        "loss",
        "reconstruction_loss",
        "contrastive_loss",
        "reconstruction",
        "projection",
        "hidden_states",
        "attentions",
        "rotation_loss",
    ]
    assert list(SiTForPreTrainingOutput.__dataclass_fields__) == declared
    assert list(output.keys()) == declared
    as_tuple = model(**inputs, return_dict=False)
    assert type(as_tuple) is tuple
    for value, name in zip(as_tuple, [*declared[:5], "rotation_loss"], strict=True):
        assert_equal(value, output[name])
    assert_equal(output[0], output.loss)


# Half precision.


@pytest.mark.parametrize("use_teacher", [True, False])
def test_bfloat16(use_teacher):
    config = small_config(use_teacher=use_teacher)
    inputs = pretraining_inputs()
    torch.manual_seed(0)
    model = SiTForPreTraining(config).eval()
    expected = model(**inputs)
    output = model.to(torch.bfloat16)(**inputs)
    assert output.reconstruction.dtype == output.projection.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert_equal(output.reconstruction_loss, expected.reconstruction_loss, 0.02)
    assert_equal(output.reconstruction.float(), expected.reconstruction, 0.02)
    assert torch.isfinite(output.contrastive_loss)


def test_autocast():
    torch.manual_seed(0)
    model = SiTForPreTraining(small_config()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**pretraining_inputs()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.abs().max() > 0


# Classification.


@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
def test_poolings(pooling):
    model = randomize(SiTForImageClassification(small_config(pooling=pooling, **LABELS)))
    encoded = model.vit(images())
    tokens = encoded.last_hidden_state
    mean = sum(tokens[:, number] for number in range(1, 17)) / 16
    expected = {"token": tokens[:, 0], "mean": mean, "token_mean": torch.cat([tokens[:, 0], mean], 1)}[pooling]
    assert_equal(encoded.pooler_output, expected)
    assert model.classifier.in_features == (64 if pooling == "token_mean" else 32)
    logits = expected @ model.classifier.weight.T + model.classifier.bias
    assert_equal(model(images()).logits, logits)


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_single_label(problem_type):
    model = randomize(SiTForImageClassification(small_config(problem_type=problem_type, **LABELS)))
    labels = torch.tensor([2, 0])
    output = model(images(), labels=labels)
    expected = -output.logits.log_softmax(1)[torch.arange(2), labels].mean()
    assert_equal(output.loss, expected)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_multi_label(problem_type):
    model = randomize(SiTForImageClassification(small_config(problem_type=problem_type, **LABELS)))
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = model(images(), labels=labels)
    chances = output.logits.double().sigmoid()
    expected = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    assert_equal(output.loss, expected.float())


@pytest.mark.parametrize(("problem_type", "num_labels"), [("regression", 1), (None, 1), ("regression", 2)])
def test_regression(problem_type, num_labels):
    model = randomize(SiTForImageClassification(small_config(problem_type=problem_type, num_labels=num_labels)))
    labels = torch.randn(2, num_labels, generator=torch.Generator().manual_seed(0))
    if num_labels == 1:
        labels = labels[:, 0]
    output = model(images(), labels=labels)
    assert_equal(output.loss, ((output.logits.squeeze(-1) - labels) ** 2).mean())


def test_no_labels_no_loss():
    assert SiTForImageClassification(small_config()).eval()(images()).loss is None


@pytest.mark.parametrize("model_class", [SiTModel, SiTForImageClassification])
@pytest.mark.parametrize("by", ["argument", "configuration"])
def test_return_dict_false(model_class, by):
    model = randomize(model_class(small_config(**LABELS)))
    expected = model(images())
    if by == "configuration":
        model.config.return_dict = False
    output = model(images()) if by == "configuration" else model(images(), return_dict=False)
    assert type(output) is tuple
    names = ["last_hidden_state", "pooler_output"] if model_class is SiTModel else ["logits"]
    assert len(output) == len(names)
    for value, name in zip(output, names, strict=True):
        assert_equal(value, expected[name])


# Auto classes and pipelines.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    randomize(SiTForImageClassification(small_config(**LABELS))).save_pretrained(folder)
    SiTImageProcessor(size={"height": 32, "width": 32}, corruption="zeros").save_pretrained(folder)
    return folder


@pytest.fixture
def no_prompt(monkeypatch):
    """Whoever asks the user something fails."""

    def ask(*_):
        raise AssertionError("the user was asked for leave to run code that is installed")

    monkeypatch.setattr(builtins, "input", ask)


def test_auto_classes_load_a_folder(checkpoint, no_prompt):
    assert type(AutoConfig.from_pretrained(checkpoint)) is SiTConfig
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    assert type(processor) is SiTImageProcessor
    assert processor.corruption == "zeros"
    for auto_class, model_class in (
        (AutoModel, SiTModel),
        (AutoModelForPreTraining, SiTForPreTraining),
        (AutoModelForImageClassification, SiTForImageClassification),
    ):
        model = auto_class.from_pretrained(checkpoint).eval()
        assert type(model) is model_class
        expected = model_class.from_pretrained(checkpoint).eval()
        one, other = (getattr(each, "vit", each)(images()).last_hidden_state for each in (model, expected))
        assert_equal(one, other)


def test_auto_classes_make_a_model_from_a_configuration():
    assert type(AutoModel.from_config(small_config())) is SiTModel
    assert type(AutoModelForPreTraining.from_config(small_config())) is SiTForPreTraining
    assert type(AutoModelForImageClassification.from_config(small_config())) is SiTForImageClassification


def test_pipeline_classifies_without_asking(checkpoint, no_prompt):
    values = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(values)
    classify = pipeline("image-classification", model=str(checkpoint), device="cpu")
    result = classify(image, top_k=3)
    model = SiTForImageClassification.from_pretrained(checkpoint).eval()
    processor = SiTImageProcessor.from_pretrained(checkpoint)
    with torch.no_grad():
        chances = model(**processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    assert [entry["label"] for entry in result] == [LABELS["id2label"][i] for i in chances.argsort().tolist()[::-1]]
    assert [entry["score"] for entry in result] == pytest.approx(sorted(chances.tolist())[::-1], abs=TOLERANCE)


@pytest.mark.parametrize("settings", [{}, {"num_channels": 1}, {"image_size": (16, 24), "patch_size": (8, 4)}])
def test_pixels_of_patches_are_a_transposed_convolutions(tiny_config, settings):
    """The product of matrices in its place gives the same, and the same gradients."""
    config = tiny_config(**settings)
    torch.manual_seed(0)
    projection = SiTForPreTraining(config).decoder.projection
    nn.init.normal_(projection.bias)
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    grid = (height // patch_height, width // patch_width)
    patches = torch.randn(3, grid[0] * grid[1], config.decoder_hidden_size, requires_grad=True)
    inputs = (patches, projection.weight, projection.bias)

    pixels = projection(patches, grid)
    expected = nn.functional.conv_transpose2d(
        patches.transpose(1, 2).unflatten(2, grid), projection.weight, projection.bias, stride=config.patch_shape
    )
    assert pixels.shape == (3, config.num_channels, height, width)
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(pixels)
    found = torch.autograd.grad((pixels * direction).sum(), inputs)
    for gradient, other in zip(found, torch.autograd.grad((expected * direction).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4)
