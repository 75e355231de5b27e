"""SiTForObjectDetection and SiTForInstanceSegmentation: losses, detections, weights from and for other classes."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_sit import (
    SiTConfig,
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForSemanticSegmentation,
    SiTModel,
)
from modeling_sit.detection_heads import MASK_SIZE

CLASSES = (SiTForObjectDetection, SiTForInstanceSegmentation)
HEADS = ("pyramid", "rpn", "roi_heads")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "pyramid_size": 16,
    "box_head_size": 32,
    "mask_head_num_layers": 1,
    "rois_per_image": 16,
    "detections_per_image": 10,
    "num_labels": 3,
    "drop_path_rate": 0.0,
}


def config(**fields) -> SiTConfig:
    return SiTConfig(**{**SMALL, **fields})


def make(model_class=SiTForInstanceSegmentation, **fields):
    torch.manual_seed(0)
    return model_class(config(**fields))


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def some_labels(height: int = 64, width: int = 96) -> list[dict[str, torch.Tensor]]:
    """Two objects in the first image, none in the second."""
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 8:24, 8:40] = masks[1, 32:56, 48:80] = True
    corners = torch.tensor([[8.0, 8, 40, 24], [48, 32, 80, 56]]) / torch.tensor([width, height, width, height])
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    return [
        {"class_labels": torch.tensor([0, 2]), "boxes": boxes, "masks": masks, "image_id": torch.tensor([1])},
        {
            "class_labels": torch.zeros(0, dtype=torch.int64),
            "boxes": torch.zeros(0, 4),
            "masks": torch.zeros(0, height, width, dtype=torch.bool),
            "image_id": torch.tensor([2]),
        },
    ]


@pytest.mark.parametrize("model_class", CLASSES)
def test_outputs_of_the_backbone_are_handed_on(model_class, images):
    model = make(model_class, attn_implementation="eager").eval()
    encoded = model.vit(images, interpolate_pos_encoding=True, output_hidden_states=True, output_attentions=True)
    output = model(images, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert type(output) is tuple
    for given, expected in zip(output[-2:], (encoded.hidden_states, encoded.attentions), strict=True):
        assert len(given) == len(expected) and all(map(torch.equal, given, expected))


PARTS = {
    SiTForObjectDetection: {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"},
    SiTForInstanceSegmentation: {
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
    },
}
DETECTIONS = {
    SiTForObjectDetection: {"scores", "pred_labels", "pred_boxes"},
    SiTForInstanceSegmentation: {"scores", "pred_labels", "pred_boxes", "pred_masks"},
}


@pytest.mark.parametrize("model_class", CLASSES)
def test_training_gives_losses_and_evaluation_detections_too(model_class, images):
    model, labels = make(model_class).train(), some_labels()
    output = model(images, labels=labels)
    assert set(output.keys()) == {"loss"} | PARTS[model_class]
    assert torch.allclose(output.loss, sum(output[name] for name in PARTS[model_class]))
    output.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        output = model(images, labels=labels)
    assert set(output.keys()) == {"loss"} | PARTS[model_class] | DETECTIONS[model_class]
    assert set(model(images).keys()) == DETECTIONS[model_class]
    assert output.pred_boxes.shape == (2, 10, 4) and output.scores.shape == output.pred_labels.shape == (2, 10)
    is_there = output.pred_labels >= 0
    assert ((output.scores > 0.05) == is_there).all() and is_there.any()
    assert (output.scores[:, :-1] >= output.scores[:, 1:]).all()
    if "pred_masks" in output:
        masks = output.pred_masks
        assert masks.shape == (2, 10, MASK_SIZE, MASK_SIZE) and masks.min() >= 0 and masks.max() <= 1
    modes = {module.training for module in model.modules()}
    assert modes == {False}
    assert {module.training for module in model.train().modules()} == {True}


def test_evaluation_draws_no_random_numbers(images):
    model = make(detections_per_image=5, rois_per_image=4).eval()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = model(images, labels=some_labels()).loss
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert model(images, labels=some_labels()).loss == first


def test_images_without_objects(images):
    model = make().train()
    empty = [some_labels()[1]] * 2
    output = model(images, labels=empty)
    assert output.loss.isfinite() and output.loss_box_reg == 0 and output.loss_mask == 0
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_nothing_is_found(images):
    output = make(detection_threshold=1.0).eval()(images, labels=some_labels())
    assert output.loss.isfinite()
    assert (output.pred_labels == -1).all() and not output.scores.any()
    assert not output.pred_boxes.any() and output.pred_masks.shape == (2, 10, MASK_SIZE, MASK_SIZE)


def test_crowds_and_objects_without_area_do_not_count(images):
    torch.manual_seed(0)
    model = make().eval()
    labels = some_labels()
    more = copy.deepcopy(labels)
    more[0]["class_labels"] = torch.tensor([0, 1, 2, 1])
    more[0]["boxes"] = torch.stack(
        [labels[0]["boxes"][0], torch.tensor([0.5, 0.5, 0.0, 0.2]), labels[0]["boxes"][1], torch.full((4,), 0.4)]
    )
    more[0]["masks"] = torch.stack([labels[0]["masks"][0], *[torch.ones(64, 96) > 0] * 3])
    more[0]["masks"][2] = labels[0]["masks"][1]
    more[0]["iscrowd"] = torch.tensor([0, 0, 0, 1])
    assert model(images, labels=more).loss == model(images, labels=labels).loss


def test_boxes_are_relative_to_the_image_without_its_padding(images):
    model = make().eval()
    mask = torch.zeros(2, 64, 96, dtype=torch.int64)
    mask[0, :40, :50] = 1
    mask[1] = 1
    with torch.no_grad():
        padded, whole = model(images, pixel_mask=mask), model(images)
    corners = torch.cat(
        [
            padded.pred_boxes[..., :2] - padded.pred_boxes[..., 2:] / 2,
            padded.pred_boxes[..., :2] + padded.pred_boxes[..., 2:] / 2,
        ],
        dim=-1,
    )[padded.pred_labels >= 0]
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    assert torch.equal(padded.pred_boxes[1], whole.pred_boxes[1])
    assert not torch.equal(padded.pred_boxes[0], whole.pred_boxes[0])


def test_labels_that_do_not_fit(images):
    model = make()
    with pytest.raises(ValueError, match="labels of 1 images, but 2 images"):
        model(images, labels=some_labels()[:1])
    labels = some_labels()
    del labels[0]["masks"]
    with pytest.raises(ValueError, match="no masks, which instance segmentation needs"):
        model(images, labels=labels)
    assert make(SiTForObjectDetection)(images, labels=labels).loss.isfinite()


def test_sizes_beside_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"72 x 88 pixels.*multiples of 32; pad"):
        make()(torch.randn(1, 3, 72, 88))


# Weights.


@pytest.mark.parametrize("model_class", CLASSES)
def test_round_trip_to_the_bit(model_class, images, tmp_path):
    model = make(model_class, anchor_sizes=[8, 16, 32, 64, 128]).eval()
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    with torch.no_grad():
        expected, found = model(images, labels=some_labels()), again(images, labels=some_labels())
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def expected_std(name: str, weight: torch.Tensor) -> float:
    """What torchvision and PyTorch mean, and for the pyramid Glorot's variance."""
    fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(weight)
    if name.startswith("rpn"):
        return 0.01
    if ".mask_" in name:
        return (2 / fan_out) ** 0.5
    if name.startswith("roi_heads"):
        return (1 / 3 / fan_in) ** 0.5
    # Transposed convolutions have inputs and outputs the other way round; the sum is the same.
    return (2 / (weight.shape[0] + weight[0].numel())) ** 0.5


def save_pretraining(folder, save_tiny_sit):
    save_tiny_sit(folder, hidden_size=32, image_size=64)


def save_encoder(folder, save_tiny_sit):
    """As the peer methods' runs do."""
    SiTModel(config()).save_pretrained(folder)


def save_classifier(folder, save_tiny_sit):
    SiTForImageClassification(config(num_labels=7)).save_pretrained(folder)


def save_segmenter(folder, save_tiny_sit):
    SiTForSemanticSegmentation(config(num_labels=7, segmentation_head="linear")).save_pretrained(folder)


def save_vit(folder, save_tiny_sit):
    fields = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size")}
    ViTForImageClassification(ViTConfig(**fields, intermediate_size=64, patch_size=8)).save_pretrained(folder)


@pytest.mark.parametrize("save", [None, save_pretraining, save_encoder, save_classifier, save_segmenter, save_vit])
def test_new_weights_are_as_torchvision_means(save, save_tiny_sit, tmp_path):
    """What a checkpoint lacks is memory as it was found, unless it is filled; and transformers fills everything alike."""
    fields = {"pyramid_size": 48, "box_head_size": 64, "mask_head_num_layers": 2, "num_labels": 5}
    if save is None:
        model = make(**fields)
    else:
        save(tmp_path, save_tiny_sit)
        model, info = SiTForInstanceSegmentation.from_pretrained(
            tmp_path, **fields, ignore_mismatched_sizes=True, output_loading_info=True
        )
        assert {name.partition(".")[0] for name in info["missing_keys"]} == set(HEADS)
        assert not info["unexpected_keys"]
        original = SiTModel.from_pretrained(tmp_path)
        for name, weight in original.state_dict().items():
            assert torch.equal(model.vit.state_dict()[name], weight), name
    for name, weight in model.state_dict().items():
        assert weight.isfinite().all(), name
        if name.startswith("vit"):
            continue
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(expected_std(name, weight), rel=0.25), name
        elif name.endswith("bias"):
            assert not weight.any(), name
        else:
            assert (weight == 1).all(), name  # layer norms


def test_heads_go_to_the_other_class_and_the_backbone_to_all(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    detector, info = SiTForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, weight in detector.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    for model_class in (SiTModel, SiTForImageClassification, SiTForSemanticSegmentation):
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"] and not [name for name in info["missing_keys"] if name.startswith("vit")]
        assert torch.equal(loaded.base_model.embeddings.cls_token, model.vit.embeddings.cls_token)


def test_auto_classes_take_the_class_that_was_saved(tmp_path):
    """The pipeline `image-segmentation` asks one Auto class for models of two kinds."""
    make().save_pretrained(tmp_path / "instance")
    make(SiTForSemanticSegmentation).save_pretrained(tmp_path / "semantic")
    make(SiTForObjectDetection).save_pretrained(tmp_path / "detection")
    load = AutoModelForImageSegmentation.from_pretrained
    assert type(load(tmp_path / "instance")) is SiTForInstanceSegmentation
    assert type(load(tmp_path / "semantic")) is SiTForSemanticSegmentation
    assert type(AutoModelForInstanceSegmentation.from_pretrained(tmp_path / "instance")) is SiTForInstanceSegmentation
    assert type(AutoModelForObjectDetection.from_pretrained(tmp_path / "detection")) is SiTForObjectDetection


# Precision.


@pytest.mark.parametrize("how", ["from_pretrained", "auto", "from_config", "to", "half"])
def test_heads_stay_in_float32(how, images, tmp_path):
    model = make().eval()
    expected = model(images, labels=some_labels())
    model.to(torch.bfloat16).save_pretrained(tmp_path) if how == "auto" else model.save_pretrained(tmp_path)
    dtype = torch.float16 if how == "half" else torch.bfloat16
    if how == "from_pretrained":
        model = SiTForInstanceSegmentation.from_pretrained(tmp_path, dtype=dtype)
    elif how == "auto":
        model = AutoModelForInstanceSegmentation.from_pretrained(tmp_path, dtype="auto")
    elif how == "from_config":
        model = AutoModelForInstanceSegmentation.from_config(model.config, dtype=dtype).eval()
    else:
        model = model.half() if how == "half" else model.to(dtype)
    assert {weight.dtype for weight in model.vit.parameters()} == {dtype}
    for head in HEADS:
        assert {weight.dtype for weight in getattr(model, head).parameters()} == {torch.float32}, head
    output = model(images, labels=some_labels())
    assert {value.dtype for name, value in output.items() if name != "pred_labels"} == {torch.float32}
    if how != "from_config":
        assert (output.loss - expected.loss).abs() < 0.1
        assert (output.scores - expected.scores).abs().max() < 0.1


def test_autocast_is_for_the_backbone(images):
    model = make().eval()
    expected = model(images, labels=some_labels())
    seen = []
    model.pyramid.register_forward_hook(lambda module, args, levels: seen.extend(level.dtype for level in levels))
    model.vit.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, labels=some_labels())
    assert seen == [torch.bfloat16, *[torch.float32] * 4]
    assert {value.dtype for name, value in output.items() if name != "pred_labels"} == {torch.float32}
    assert (output.loss - expected.loss).abs() < 0.1


def test_gradient_checkpointing_and_attention_implementations(images):
    gradients = []
    for implementation, is_checkpointed in (("sdpa", False), ("sdpa", True), ("eager", False)):
        model = make(SiTForObjectDetection).train()
        model.set_attn_implementation(implementation)
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model(images, labels=some_labels()).loss.backward()
        gradients.append(model.vit.embeddings.cls_token.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(gradients[1], gradients[0], atol=1e-7) and torch.allclose(
        gradients[2], gradients[0], atol=1e-5
    )
