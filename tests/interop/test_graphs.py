"""Graphs of torch.export and ONNX: any batch, both kinds of outputs, and what they say of themselves."""

import json

import onnx
import onnxruntime
import pytest
import torch

from modeling_sit import SiTForImageClassification, SiTForSemanticSegmentation, SiTModel
from modeling_sit.interop.graphs import write_exported, write_onnx
from modeling_sit.interop.verification import random_images

CASES = {
    "features": (SiTModel, {"pooling": "token_mean", "image_size": (16, 24), "num_channels": 1}),
    "logits": (SiTForImageClassification, {"pooling": "mean", "id2label": {0: "daisy", 1: "rose"}}),
}


def expected_outputs(model, pixel_values):
    with torch.no_grad():
        output = model(pixel_values)
    if isinstance(model, SiTForImageClassification):
        return {"logits": output.logits}
    return {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}


def assert_described(files, model, processor):
    described = json.loads(files["preprocessor_config.json"])
    assert described["image_mean"] == list(processor.image_mean)
    assert (described["size"]["height"], described["size"]["width"]) == model.config.image_shape
    assert "corruption" not in described
    if isinstance(model, SiTForImageClassification):
        assert json.loads(files["id2label.json"]) == {"0": "daisy", "1": "rose"}


@pytest.mark.parametrize("case", CASES)
def test_exported_program(make_model, make_processor, images, tmp_path, case):
    model_class, fields = CASES[case]
    model = make_model(model_class, **fields)
    processor = make_processor(model)
    write_exported(model, processor, tmp_path / "model.pt2")
    files = (
        {"preprocessor_config.json": "", "id2label.json": ""} if case == "logits" else {"preprocessor_config.json": ""}
    )
    graph = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert_described(files, model, processor)
    for batch_size in (1, 3):
        found = graph(pixel_values=images(model, batch_size))
        expected = expected_outputs(model, images(model, batch_size))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_semantic_segmentation(make_model, tmp_path):
    """The graph takes the next larger image that the pyramid takes; its logits are of stride 4."""
    fields = {"num_hidden_layers": 1, "image_size": 24, "pyramid_size": 8}
    model = make_model(SiTForSemanticSegmentation, id2label={0: "sky", 1: "road", 2: "car"}, **fields)
    assert "pixel_values (batch, 3, 32, 32)" in " ".join(write_exported(model, None, tmp_path / "model.pt2"))
    files = {"id2label.json": ""}
    graph = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files["id2label.json"]) == {"0": "sky", "1": "road", "2": "car"}
    write_onnx(model, None, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch_size in (1, 3):
        pixel_values = random_images(model, batch_size, seed=0)
        with torch.no_grad():
            expected = model(pixel_values).logits
        assert expected.shape == (batch_size, 3, 8, 8)
        torch.testing.assert_close(graph(pixel_values=pixel_values)["logits"], expected, rtol=0, atol=1e-5)
        (found,) = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case, opset", [("features", 18), ("logits", 20)])
def test_onnx(make_model, make_processor, images, tmp_path, case, opset):
    model_class, fields = CASES[case]
    model = make_model(model_class, num_hidden_layers=1, **fields)
    processor = make_processor(model)
    notes = write_onnx(model, processor, tmp_path / "model.onnx", **({} if opset == 18 else {"opset": opset}))
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written)
    assert {(entry.domain, entry.version) for entry in written.opset_import} == {("", opset)}
    assert f"opset {opset}" in notes
    assert_described({entry.key: entry.value for entry in written.metadata_props}, model, processor)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.shape[1:]) == ("pixel_values", [model.config.num_channels, *model.config.image_shape])
    for batch_size in (1, 3):
        expected = expected_outputs(model, images(model, batch_size))
        assert [output.name for output in session.get_outputs()] == list(expected)
        found = session.run(None, {"pixel_values": images(model, batch_size).numpy()})
        for name, output in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.from_numpy(output), expected[name], rtol=0, atol=1e-4)
