"""SiTConfig: what the contract promises, what it refuses, and that a file gives it back."""

import copy
import json

import pytest
from transformers import AutoConfig, PreTrainedConfig, ViTConfig

from modeling_sit import SiTConfig

PROMISED_DEFAULTS = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
    "decoder_hidden_size": 2048,
    "decoder_num_hidden_layers": 2,
    "projection_hidden_size": 4096,
    "projection_first_act": "gelu",
    "projection_size": 256,
    "temperature": 0.2,
    "reconstruction_weight": 1.0,
    "pooling": "token",
}
OTHER_VALUES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 100,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "drop_path_rate": 0.3,
    "initialization": "normal",
    "initializer_range": 0.01,
    "layer_norm_eps": 1e-5,
    "image_size": 48,
    "patch_size": 8,
    "num_channels": 1,
    "qkv_bias": False,
    "position_embedding_type": "sincos",
    "pooling": "token_mean",
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 3,
    "projection_hidden_size": 40,
    "projection_first_act": "relu",
    "projection_size": 24,
    "projection_output_norm": False,
    "temperature": 0.5,
    "reconstruction_weight": 5.0,
    "contrastive_weight": 0.5,
    "rotation_weight": 0.3,
    "reconstruction_norm": "l2",
    "reconstruction_region": "all",
    "use_teacher": False,
    "out_features": ["stage1", "stage3"],
    "out_indices": [1, 3],
    "pyramid_size": 64,
    "anchor_sizes": [8, 16, 32, 64.5, 128],
    "box_head_size": 128,
    "mask_head_num_layers": 2,
    "rois_per_image": 64,
    "detections_per_image": 50,
    "detection_threshold": 0.1,
    "nms_threshold": 0.6,
    "segmentation_head": "linear",
    "semantic_loss_ignore_index": -100,
}
DENSE = list(OTHER_VALUES)[list(OTHER_VALUES).index("out_features") :]


def test_defaults_are_those_promised():
    config = SiTConfig()
    assert {name: getattr(config, name) for name in PROMISED_DEFAULTS} == PROMISED_DEFAULTS


def test_losses_are_the_papers_by_default():
    config = SiTConfig()
    assert config.reconstruction_norm == "l1"
    assert config.reconstruction_region == "corrupted"
    assert config.contrastive_weight == 1
    assert config.rotation_weight == 0
    assert config.use_teacher is True
    assert config.position_embedding_type == "learnable"


def test_model_type_is_distinctive():
    assert SiTConfig.model_type == "sit_gmml"
    assert SiTConfig().to_dict()["model_type"] == "sit_gmml"
    assert isinstance(SiTConfig(), PreTrainedConfig)


def test_tiny_and_base_follow_from_their_widths():
    assert SiTConfig(hidden_size=192, num_attention_heads=3).intermediate_size == 768
    assert SiTConfig(hidden_size=768, num_attention_heads=12).intermediate_size == 3072
    assert SiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=100).intermediate_size == 100


def test_every_field_survives_a_file(tmp_path):
    labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    written = SiTConfig(**OTHER_VALUES, **labels, problem_type="regression")
    written.save_pretrained(tmp_path)
    read = SiTConfig.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in OTHER_VALUES} == OTHER_VALUES
    assert read.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert read.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert read.num_labels == 3
    assert read.problem_type == "regression"
    assert read.to_dict() == SiTConfig.from_dict(json.loads((tmp_path / "config.json").read_text())).to_dict()


def test_other_values_cover_every_field():
    fields = {name for name in SiTConfig().to_dict() if name not in PreTrainedConfig().to_dict()}
    assert fields - {"auto_map", "model_type"} == set(OTHER_VALUES)
    defaults = SiTConfig().to_dict()
    assert not [name for name, value in OTHER_VALUES.items() if defaults[name] == value]


def test_file_spells_out_the_architecture(tmp_path):
    """Plain ViT classes read it too, and their defaults are others."""
    SiTConfig().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    shared = {name: value for name, value in PROMISED_DEFAULTS.items() if hasattr(ViTConfig(), name)}
    assert len(shared) >= 8
    assert {name: written.get(name) for name in shared} == shared


@pytest.mark.parametrize(
    ("settings", "initialization", "initializer_range"),
    [
        ({}, "xavier", 0.02),
        ({"initializer_range": 0.02}, "normal", 0.02),  # checkpoints of plain ViTs, and older ones of SiT
        ({"initializer_range": 0.1}, "normal", 0.1),
        ({"initialization": "normal"}, "normal", 0.02),
        ({"initialization": "xavier", "initializer_range": 0.05}, "xavier", 0.05),
    ],
)
def test_a_range_alone_means_a_normal(tmp_path, settings, initialization, initializer_range):
    config = SiTConfig(**settings)
    assert (config.initialization, config.initializer_range) == (initialization, initializer_range)
    config.save_pretrained(tmp_path)
    read = SiTConfig.from_pretrained(tmp_path)
    assert (read.initialization, read.initializer_range) == (initialization, initializer_range)


@pytest.mark.parametrize(("size", "pair"), [(32, (32, 32)), ((32, 48), (32, 48)), ([32, 48], (32, 48))])
def test_sizes_are_numbers_or_pairs(tmp_path, size, pair):
    config = SiTConfig(image_size=size, patch_size=size)
    assert config.image_shape == config.patch_shape == pair
    config.save_pretrained(tmp_path)
    read = SiTConfig.from_pretrained(tmp_path)
    assert read.image_shape == read.patch_shape == pair


def test_a_vits_file_makes_a_sit(tmp_path):
    ViTConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, layer_norm_eps=1e-3).save_pretrained(
        tmp_path
    )
    config = SiTConfig.from_pretrained(tmp_path)
    assert config.model_type == config.to_dict()["model_type"] == "sit_gmml"
    assert (config.hidden_size, config.intermediate_size, config.layer_norm_eps) == (64, 96, 1e-3)


def test_auto_config_gives_a_sit(tmp_path):
    SiTConfig(hidden_size=192, num_attention_heads=3).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SiTConfig
    assert type(AutoConfig.for_model("sit_gmml")) is SiTConfig


def test_file_names_the_classes_that_load_it_elsewhere(tmp_path):
    SiTConfig().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_sit.SiTConfig",
        "AutoModel": "modeling_sit.SiTModel",
        "AutoModelForPreTraining": "modeling_sit.SiTForPreTraining",
        "AutoModelForImageClassification": "modeling_sit.SiTForImageClassification",
        "AutoBackbone": "modeling_sit_backbone.SiTBackbone",
        "AutoModelForSemanticSegmentation": "modeling_sit_segmentation.SiTForSemanticSegmentation",
        "AutoModelForObjectDetection": "modeling_sit_detection.SiTForObjectDetection",
        "AutoModelForInstanceSegmentation": "modeling_sit_detection.SiTForInstanceSegmentation",
    }
    # The files that it names are beside it.
    modules = {reference.partition(".")[0] for reference in auto_map.values()}
    assert modules <= {path.stem for path in tmp_path.glob("*.py")}


def test_fields_of_dense_tasks_are_written_where_they_differ(tmp_path):
    """Older releases of the package, and readers, see nothing new in a checkpoint of another task."""
    SiTConfig().save_pretrained(tmp_path)
    assert not set(DENSE) & set(json.loads((tmp_path / "config.json").read_text()))
    SiTConfig(pyramid_size=64, anchor_sizes=(8, 16, 32, 64, 128)).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in DENSE if name in written} == {
        "pyramid_size": 64,
        "anchor_sizes": [8, 16, 32, 64, 128],
    }


def test_maps_follow_the_depth(tmp_path):
    """`from_pretrained` replaces fields one after the other: names of maps that are stored would go stale."""
    SiTConfig(num_hidden_layers=4).save_pretrained(tmp_path)
    config = SiTConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert (config.out_features, config.out_indices) == (["stage2"], [2])
    config.num_hidden_layers = 3
    assert (config.out_features, config.out_indices) == (["stage3"], [3])
    config.out_indices = (1, 3)
    assert config.out_features == ["stage1", "stage3"]
    assert SiTConfig.from_pretrained(tmp_path, out_indices=[0, 2]).out_features == ["stem", "stage2"]
    assert SiTConfig(num_hidden_layers=3, stage_names=["stem", "stage1"]).stage_names[-1] == "stage3"
    with pytest.raises(ValueError, match="out_indices must be valid indices"):
        SiTConfig(num_hidden_layers=3, out_indices=[4])


def test_copies_are_equal_and_apart():
    config = SiTConfig(**OTHER_VALUES)
    twin = copy.deepcopy(config)
    assert twin.to_dict() == config.to_dict()
    twin.hidden_size = 1
    assert config.hidden_size == OTHER_VALUES["hidden_size"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type"),
        ({"reconstruction_norm": "l3"}, "reconstruction_norm"),
        ({"reconstruction_region": "visible"}, "reconstruction_region"),
        ({"hidden_size": 100, "num_attention_heads": 6}, "hidden_size"),
        ({"position_embedding_type": "sincos", "hidden_size": 6, "num_attention_heads": 1}, "hidden_size"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight"),
        ({"contrastive_weight": -0.5}, "contrastive_weight"),
        ({"rotation_weight": -0.5}, "rotation_weight"),
        ({"reconstruction_weight": float("nan")}, "reconstruction_weight"),
        ({"rotation_weight": 1.0, "image_size": (32, 48)}, "square.*32, 48"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -0.2}, "temperature"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"drop_path_rate": -0.1}, "drop_path_rate"),
        ({"hidden_dropout_prob": 2}, "hidden_dropout_prob"),
        ({"attention_probs_dropout_prob": "some"}, "attention_probs_dropout_prob"),
        ({"layer_norm_eps": "abc"}, "layer_norm_eps"),
        ({"initializer_range": -1}, "initializer_range"),
        ({"pyramid_size": 0}, "pyramid_size"),
        ({"box_head_size": 1.5}, "box_head_size"),
        ({"mask_head_num_layers": 0}, "mask_head_num_layers"),
        ({"rois_per_image": 0}, "rois_per_image"),
        ({"detections_per_image": -1}, "detections_per_image"),
        ({"detection_threshold": 1.5}, "detection_threshold"),
        ({"detection_threshold": float("nan")}, "detection_threshold"),
        ({"nms_threshold": -0.1}, "nms_threshold"),
        ({"segmentation_head": "upernet"}, "segmentation_head.*fpn, linear"),
        ({"semantic_loss_ignore_index": None}, "semantic_loss_ignore_index"),
        ({"anchor_sizes": [16, 32, 64, 128]}, "anchor_sizes must be 5 numbers"),
        ({"anchor_sizes": [16, 32, 64, 128, 0]}, "anchor_sizes must be 5 numbers"),
        ({"anchor_sizes": 16}, "anchor_sizes must be 5 numbers"),
        ({"out_indices": [13]}, "out_indices"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        SiTConfig(**settings)


def test_images_that_are_not_square_are_refused_with_rotation_only():
    assert SiTConfig(image_size=(32, 48)).rotation_weight == 0
    assert SiTConfig(image_size=(32, 32), rotation_weight=1.0).image_shape == (32, 32)
