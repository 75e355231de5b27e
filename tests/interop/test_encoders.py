"""Encoders of transformers and timm: a SiT gives what the source model gives, or says why it cannot."""

import json
import math

import pytest
import safetensors.torch
import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from modeling_sit import SiTForPreTraining, SiTModel
from modeling_sit.interop.convert_in import CROPPING_NOTE, IMAGENET_NOTE, find_format, read_checkpoint
from modeling_sit.interop.encoders import conventional_num_attention_heads, name_weights, names_of_heads
from modeling_sit.runtime.errors import SiTError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 16,
    "patch_size": 8,
}
MAE_DECODER = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def randomize(model, seed=3):
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model.eval()


def fixed_position(row, column):
    """16 channels of MAE's positions: waves of the column, then of the row, each sines and then cosines."""
    frequencies = [1.0, 0.1, 0.01, 0.001]
    return [wave(place * rate) for place in (column, row) for wave in (math.sin, math.cos) for rate in frequencies]


def images(size=16, channels=3):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(5))


def assert_gives(read, expected, images):
    with torch.no_grad():
        features = read.create_model(SiTModel)[0](images).last_hidden_state
        again = read.create_model(SiTForPreTraining)[0].vit(images).last_hidden_state
    for ours in (features, again):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "settings", "left_out"),
        [
            ("ViTModel", {}, "pooler.dense.weight"),
            ("ViTForImageClassification", {"qkv_bias": False, "layer_norm_eps": 1e-3}, "classifier.weight"),
            ("ViTForMaskedImageModeling", {"num_channels": 1, "encoder_stride": 8}, "decoder.0.weight"),
            ("ViTMSNModel", {"hidden_act": "relu"}, None),
            ("ViTMSNForImageClassification", {}, "classifier.weight"),
        ],
    )
    def test_of_vits_own_layout(self, tmp_path, name, settings, left_out):
        model_class = getattr(transformers, name)
        model = randomize(model_class(model_class.config_class(**{**SIZES, **settings})))
        model.save_pretrained(tmp_path)
        pixels = images(channels=model.config.num_channels)
        with torch.no_grad():
            expected = model.base_model(pixels).last_hidden_state
        read = read_checkpoint(str(tmp_path))
        assert_gives(read, expected, pixels)
        assert left_out is None or any(left_out in note for note in read.notes)

    @pytest.mark.parametrize("name", ["ViTMAEModel", "ViTMAEForPreTraining"])
    @pytest.mark.parametrize("learnt", [False, True])
    def test_of_mae_without_its_masking(self, tmp_path, name, learnt):
        """transformers' own drops patches by chance; with `mask_ratio` 0 it only mixes them up."""
        model = getattr(transformers, name)(transformers.ViTMAEConfig(**SIZES, **MAE_DECODER, mask_ratio=0.0))
        randomize(model)
        if not learnt:
            positions = torch.tensor(
                [[0.0] * 16, *(fixed_position(row, column) for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)))]
            )
            model.base_model.embeddings.position_embeddings.data = positions[None]
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            # Noise that rises leaves the patches in their order.
            expected = model.base_model(images(), noise=torch.arange(4.0).repeat(3, 1)).last_hidden_state
        read = read_checkpoint(str(tmp_path))
        assert_gives(read, expected, images())
        assert read.config.position_embedding_type == ("learnable" if learnt else "sincos")
        assert read.config.decoder_hidden_size == 2048  # SiT's own: that of MAE is another

    @pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2ForImageClassification"])
    def test_of_dinov2_with_its_layer_scale_folded(self, tmp_path, name):
        settings = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
        model = randomize(getattr(transformers, name)(transformers.Dinov2Config(**settings, mlp_ratio=3)))
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            expected = model.base_model(images()).last_hidden_state
        read = read_checkpoint(str(tmp_path))
        assert_gives(read, expected, images())
        assert any("mask_token" in note for note in read.notes)

    @pytest.mark.parametrize("name", ["DeiTModel", "DeiTForImageClassificationWithTeacher"])
    def test_of_deit_without_its_distillation_token(self, tmp_path, name):
        """What a ViT gives with the weights that are left."""
        model = randomize(getattr(transformers, name)(transformers.DeiTConfig(**SIZES)))
        model.save_pretrained(tmp_path)
        vit = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False).eval()
        weights = {key: value for key, value in model.base_model.state_dict().items() if "pooler" not in key}
        del weights["embeddings.distillation_token"]
        positions = weights["embeddings.position_embeddings"]
        weights["embeddings.position_embeddings"] = torch.stack([positions[0, i] for i in (0, 2, 3, 4, 5)])[None]
        vit.load_state_dict(weights)
        with torch.no_grad():
            expected = vit(images()).last_hidden_state
        read = read_checkpoint(str(tmp_path))
        assert_gives(read, expected, images())
        assert any("distillation token is left out" in note for note in read.notes)
        assert any("embeddings.distillation_token" in note for note in read.notes)

    def test_of_shards_and_halves(self, tmp_path):
        model = randomize(transformers.ViTModel(transformers.ViTConfig(**SIZES))).half()
        model.save_pretrained(tmp_path, max_shard_size="5KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
        read = read_checkpoint(str(tmp_path))
        assert {value.dtype for value in read.state_dict.values()} == {torch.float32}
        with torch.no_grad():
            assert_gives(read, model.float()(images()).last_hidden_state, images())

    def test_of_an_old_folder_with_a_pickle(self, tmp_path):
        model = randomize(transformers.ViTModel(transformers.ViTConfig(**SIZES)))
        model.save_pretrained(tmp_path)
        weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
        with torch.no_grad():
            assert_gives(read_checkpoint(str(tmp_path)), model(images()).last_hidden_state, images())
        (tmp_path / "pytorch_model.bin").unlink()
        with pytest.raises(SiTError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
            read_checkpoint(str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "settings", "reason"),
        [
            ("IJepa", {}, "ijepa: it has no token in front of the patches"),
            ("Dinov2WithRegisters", {}, "register tokens"),
            ("Dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn"),
            ("Beit", {}, "relative positions"),
            ("ResNet", None, "a SiT cannot be a resnet; it can be a vit, deit, vit_mae, vit_msn, dinov2, or timm"),
        ],
    )
    def test_of_what_a_sit_cannot_be(self, tmp_path, name, settings, reason):
        config_class = getattr(transformers, f"{name}Config")
        config_class(**({} if settings is None else {**SIZES, **settings})).save_pretrained(tmp_path)
        with pytest.raises(SiTError, match=reason):
            read_checkpoint(str(tmp_path))

    def test_weights_that_are_missing_or_too_many_are_named(self, tmp_path):
        transformers.ViTModel(transformers.ViTConfig(**SIZES)).save_pretrained(tmp_path)
        weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
        del weights["encoder.layer.1.output.dense.bias"], weights["layernorm.weight"]
        weights["encoder.layer.0.gate.weight"] = torch.zeros(2)
        weights["embeddings.cls_token"] = torch.zeros(1, 1, 12)
        safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(SiTError) as refusal:
            read_checkpoint(str(tmp_path))
        message = str(refusal.value)
        assert "lacks encoder.layer.1.output.dense.bias, layernorm.weight and also has encoder.layer.0.gate" in message
        assert "in other shapes embeddings.cls_token" in message


TIMM_SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.5}


class TestTimm:
    @staticmethod
    def create(name="vit_tiny_patch16_224", **settings):
        return randomize(timm.create_model(name, **{**TIMM_SIZES, "num_classes": 3, **settings}))

    @pytest.mark.parametrize(
        ("name", "settings", "left_out"),
        [
            ("vit_tiny_patch16_224", {}, "head.weight"),
            ("vit_tiny_patch16_224", {"in_chans": 1, "patch_size": 4, "qkv_bias": False}, "head.weight"),
            ("vit_tiny_patch16_224", {"init_values": 0.5}, "head.weight"),  # layer scale, folded
            ("vit_tiny_patch16_224", {"no_embed_class": True}, "head.weight"),
            ("deit3_small_patch16_224", {}, "head.weight"),  # both
            ("vit_small_patch14_dinov2", {"num_classes": 0}, None),
        ],
    )
    def test_of_a_file(self, tmp_path, name, settings, left_out):
        model = self.create(name, **settings)
        pixels = images(channels=settings.get("in_chans", 3))
        with torch.no_grad():
            expected = model.forward_features(pixels)
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(model.state_dict(), path)
        read = read_checkpoint(str(path), num_attention_heads=2)
        assert_gives(read, expected, pixels)
        assert left_out is None or any(left_out in note for note in read.notes)

    @pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
    def test_of_the_codes_of_deit_and_mae(self, tmp_path, wrapper):
        """Weights under `model`, beside an optimizer and flags; MAE's with its decoder."""
        model = self.create(num_classes=0)
        weights = {**model.state_dict(), "mask_token": torch.zeros(1, 1, 4), "decoder_embed.weight": torch.zeros(4, 4)}
        path = tmp_path / "weights.pth"
        torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, path)
        with torch.no_grad():
            expected = model.forward_features(images())
        read = read_checkpoint(str(path), num_attention_heads=2)
        assert_gives(read, expected, images())
        assert any("mask_token, decoder_embed.weight" in note for note in read.notes)

    def test_of_a_distilled_deit(self, tmp_path):
        model = randomize(timm.create_model("deit_tiny_distilled_patch16_224", **TIMM_SIZES))
        torch.save(model.state_dict(), tmp_path / "d.pth")
        read = read_checkpoint(str(tmp_path / "d.pth"), num_attention_heads=2)
        plain = self.create(num_classes=0)
        weights = {name: value for name, value in model.state_dict().items() if "head" not in name}
        del weights["dist_token"]
        weights["pos_embed"] = torch.stack([weights["pos_embed"][0, i] for i in (0, 2, 3, 4, 5)])[None]
        plain.load_state_dict(weights)
        with torch.no_grad():
            assert_gives(read, plain.forward_features(images()), images())
        assert any("distillation" in note for note in read.notes)
        assert any("head_dist.weight" in note and "dist_token" in note for note in read.notes)

    @pytest.mark.parametrize("pickled", [False, "both"])
    def test_of_a_folder(self, tmp_path, pickled):
        """Its config says what the weights do not: heads, and images that are not square."""
        model = self.create(img_size=(16, 24))
        model_args = {**TIMM_SIZES, "img_size": (16, 24)}
        save_for_hf(model, tmp_path, model_args=model_args, safe_serialization=pickled)
        assert find_format(str(tmp_path)) == "timm"
        read = read_checkpoint(str(tmp_path))
        images = torch.randn(2, 3, 16, 24)
        with torch.no_grad():
            assert_gives(read, model.forward_features(images), images)
        assert read.config.image_shape == (16, 24)
        described = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
        processor = read.create_processor()
        assert described["mean"] == list(processor.image_mean) == [0.5] * 3
        assert described["std"] == list(processor.image_std) == [0.5] * 3
        assert (processor.size.height, processor.size.width) == (16, 24)

    @pytest.mark.parametrize(
        ("crop_pct", "crop_mode", "is_cut"),
        [
            (0.9, "center", True),
            (0.9, "squash", True),
            (1.0, None, True),
            (1.0, "squash", False),
            (1.0, "border", False),
        ],
    )
    def test_of_a_folder_whose_images_are_cut(self, tmp_path, crop_pct, crop_mode, is_cut):
        """As timm has it: by `squash` and `border` no part of an image is lost if `crop_pct` is 1."""
        save_for_hf(self.create(), tmp_path, model_args=TIMM_SIZES)
        config = json.loads((tmp_path / "config.json").read_text())
        config["pretrained_cfg"] |= {"crop_pct": crop_pct, "crop_mode": crop_mode}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert (CROPPING_NOTE in read_checkpoint(str(tmp_path)).notes) is is_cut

    @pytest.mark.parametrize(
        ("name", "settings", "named"),
        [
            ("vit_tiny_patch16_224", {"reg_tokens": 2}, "reg_token"),
            ("vit_tiny_patch16_224", {"pre_norm": True}, "norm_pre"),
            ("vit_tiny_patch16_224", {"qk_norm": True}, r"blocks\.0\.attn\.q_norm"),
            ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no cls_token"),
            ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": True}, r"lacks norm\.weight"),
            ("vit_tiny_patch16_224", {"img_size": (8, 24), "patch_size": 4}, "13 positions"),
        ],
        ids=["registers", "norm_before", "normed_queries", "no_token", "norm_after_the_mean", "not_square"],
    )
    def test_of_what_a_sit_cannot_be(self, tmp_path, name, settings, named):
        torch.save(self.create(name, **settings).state_dict(), tmp_path / "w.pth")
        with pytest.raises(SiTError, match=named):
            read_checkpoint(str(tmp_path / "w.pth"), num_attention_heads=2)

    def test_of_another_activation(self, tmp_path):
        """It leaves no trace in the weights."""
        save_for_hf(self.create(), tmp_path, model_args={**TIMM_SIZES, "act_layer": "quick_gelu"})
        with pytest.raises(SiTError, match="act_layer=quick_gelu"):
            read_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
        *("vit_huge_patch14_224", "vit_giant_patch14_224", "vit_gigantic_patch14_224"),
        *("deit_small_patch16_224", "vit_little_patch16_reg4_gap_256", "vit_medium_patch16_gap_256"),
        "vit_so400m_patch14_siglip_gap_224",
    ],
)
def test_number_of_heads_by_the_width_is_that_of_the_family(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert conventional_num_attention_heads(model.embed_dim) == model.blocks[0].attn.num_heads


def test_assumed_heads_are_told(tmp_path):
    model = randomize(timm.create_model("vit_tiny_patch16_224", **{**TIMM_SIZES, "embed_dim": 128, "num_classes": 0}))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with torch.no_grad():
        assert_gives(read_checkpoint(str(tmp_path / "w.pth")), model.forward_features(images()), images())
    assert any(note.startswith("2 attention heads") for note in read_checkpoint(str(tmp_path / "w.pth")).notes)
    assert not any("heads" in note for note in read_checkpoint(str(tmp_path / "w.pth"), num_attention_heads=2).notes)


def test_names_in_one_line():
    names = [f"blocks.{number}.norm1.{kind}" for number in range(12) for kind in ("weight", "bias")]
    assert name_weights([*names, "norm.bias", "a.3.b"]) == (
        "blocks.0-11.norm1.weight, blocks.0-11.norm1.bias, norm.bias, a.3.b"
    )
    assert name_weights(["a.0.b", "a.4.b"]) == "a.0-4.b"


def test_names_of_heads(tiny_config):
    """Also where transformers calls the whole a backbone."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    clip = CLIPForImageClassification(CLIPConfig(vision_config=vision, text_config={**sizes, "vocab_size": 9}))
    assert names_of_heads(clip) == {"classifier.weight", "classifier.bias"}
    wrapped = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_vit", num_labels=5))
    assert names_of_heads(wrapped) == {"timm_model.head.weight", "timm_model.head.bias"}
    assert names_of_heads(SiTModel(tiny_config())) == set()


@pytest.mark.parametrize(
    ("processor", "normalization", "note"),
    [
        (None, {}, IMAGENET_NOTE),
        (BitImageProcessor(), {"image_mean": list(BitImageProcessor().image_mean)}, CROPPING_NOTE),
        (ViTImageProcessor(do_normalize=False), {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}, None),
    ],
)
def test_what_a_folder_says_of_its_images(tmp_path, processor, normalization, note):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    if processor is not None:
        processor.save_pretrained(tmp_path)
    read = read_checkpoint(str(tmp_path))
    assert {name: read.normalization[name] for name in normalization} == normalization
    assert [each for each in read.notes if each in (IMAGENET_NOTE, CROPPING_NOTE)] == ([note] if note else [])
