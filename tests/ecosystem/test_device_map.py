"""Models spread over devices by `device_map`: accelerate keeps weights where there is room, and moves what meets."""

import pytest
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageClassification, AutoModelForPreTraining

from modeling_sit import (
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
)


def num_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def test_auto_puts_a_small_model_in_one_place(classifier, pixel_values):
    folder, model = classifier
    placed = AutoModelForImageClassification.from_pretrained(folder, device_map="auto").eval()
    assert {parameter.device for parameter in placed.parameters()} <= {torch.device("cpu"), torch.device("cuda", 0)}
    torch.testing.assert_close(placed(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("position_embedding_type", ["learnable", "sincos"])
@pytest.mark.parametrize("model_class", [SiTForImageClassification, SiTForPreTraining])
def test_what_memory_does_not_hold_stays_on_disk(
    save_repository, pixel_values, tmp_path, model_class, position_embedding_type
):
    fields = {"num_hidden_layers": 4, "position_embedding_type": position_embedding_type}
    folder, model = save_repository(model_class, **fields)
    block = num_bytes(model.vit.encoder.layer[0])
    # Room for the embeddings, one block and a half, and as much again as the largest part takes when it is computed.
    room = num_bytes(model.vit.embeddings) + block + block // 2 + max(block, num_bytes(model.vit.embeddings))
    auto_class = {
        SiTForImageClassification: AutoModelForImageClassification,
        SiTForPreTraining: AutoModelForPreTraining,
    }[model_class]
    placed = auto_class.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path / "offloaded"
    ).eval()
    devices = placed.hf_device_map
    assert devices["vit.embeddings"] == devices["vit.encoder.layer.0"] == "cpu"
    assert devices["vit.encoder.layer.1"] == devices["vit.encoder.layer.3"] == "disk"
    assert placed.vit.encoder.layer[3].output.dense.weight.device == torch.device("meta")
    expected, output = model(pixel_values), placed(pixel_values)
    for name in expected:
        torch.testing.assert_close(output[name], expected[name])


@pytest.mark.parametrize("model_class", [SiTForInstanceSegmentation, SiTForSemanticSegmentation])
def test_heads_of_dense_tasks_stay_on_disk(tiny_config, tmp_path, model_class):
    fields = {"pyramid_size": 8, "box_head_size": 8, "mask_head_num_layers": 1, "detections_per_image": 5}
    model = model_class(tiny_config(**fields)).eval()
    model.save_pretrained(tmp_path / "model")
    places = {name: "cpu" if name == "vit" else "disk" for name, _ in model.named_children()}
    placed = model_class.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded")
    assert placed.pyramid.levels[0][0].weight.device == torch.device("meta")
    pixel_values = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        expected, output = model(pixel_values), placed(pixel_values)
    assert output.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(output[name], expected[name])


@pytest.mark.parametrize("where", ["decoder", "projection_head", "rotation_head", "vit.encoder.layer.1"])
@pytest.mark.parametrize("use_teacher", [True, False])
def test_losses_of_heads_on_several_gpus(tiny_config, where, use_teacher):
    """PyTorch's fake tensors know of shapes and devices only, and refuse operations across devices: no GPU is needed."""
    model = SiTForPreTraining(tiny_config(rotation_weight=1.0, use_teacher=use_teacher)).eval()
    with FakeTensorMode():
        put(model, "cuda:0")
        put(model.get_submodule(where), "cuda:1")
        for name, device in {"": "cuda:0", where: "cuda:1", "vit.layernorm": "cuda:0"}.items():
            move_inputs(model.get_submodule(name), device)
        views = torch.randn(4, 3, 16, 16)
        output = model(
            views,
            target_pixel_values=views,
            corruption_mask=torch.ones(4, 1, 16, 16, dtype=torch.bool),
            teacher_projections=torch.randn(4, 16),
            rotation_labels=torch.zeros(4, dtype=torch.long),
        )
        assert output.loss.device == torch.device("cuda:0")


def put(module: nn.Module, device: str) -> None:
    """Parameters and buffers of these shapes on this device, in place of the module's."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def move_inputs(module: nn.Module, device: str) -> None:
    """What accelerate's hook on a module of the device map does before its forward pass."""
    module.register_forward_pre_hook(
        lambda _, args, kwargs: (send_to_device(args, device), send_to_device(kwargs, device)), with_kwargs=True
    )
