"""A SiT as a graph for batches of any size: a .pt2 file of `torch.export`, which PyTorch loads alone, or ONNX."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTForImageClassification, SiTForSemanticSegmentation
from modeling_sit.interop.plain_vit import plain_processor, range_notes
from modeling_sit.interop.verification import Predict, input_shape, random_images

INPUT = "pixel_values"
FEATURES = ("last_hidden_state", "pooler_output")
LOGITS = ("logits",)
WITH_LOGITS = (SiTForImageClassification, SiTForSemanticSegmentation)
# Why there is no graph of a detector.
NO_DETECTOR = (
    "what a detector computes depends on what it finds in an image (proposals, non-maximum suppression, a mask for each "
    "object), but a graph does the same for every image"
)
# More than one: a graph that is traced with one image may work for one image only.
TRACED_BATCH_SIZE = 2
# The oldest version of ONNX's operators that PyTorch's exporter writes. Every runtime of the last years reads it.
OPSET = 18


class NamedOutputs(nn.Module):
    """A SiT that returns a plain dictionary, which loads where transformers' output classes are unknown."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.names = output_names(model)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(pixel_values, return_dict=True)
        return {name: output[name] for name in self.names}


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of a graph's outputs: `logits` of a classifier or of semantic segmentation, else `last_hidden_state` and
    `pooler_output`."""
    return LOGITS if isinstance(model, WITH_LOGITS) else FEATURES


def export_program(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The graph of a [`SiTModel`], a [`SiTForImageClassification`] or a [`SiTForSemanticSegmentation`] in evaluation mode. It
    takes normalized `pixel_values` `(batch, channels, height, width)` of any batch size."""
    images = random_images(model, TRACED_BATCH_SIZE, seed=0)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            NamedOutputs(model).eval(), (), kwargs={INPUT: images}, dynamic_shapes={INPUT: {0: batch}}
        )


def graph_metadata(model: PreTrainedModel, processor: BaseImageProcessor | None) -> dict[str, str]:
    """What a graph does not hold: how images are prepared for it, and which labels its logits stand for."""
    metadata = {}
    if processor is not None:
        metadata["preprocessor_config.json"] = plain_processor(processor).to_json_string()
    if isinstance(model, WITH_LOGITS):
        metadata["id2label.json"] = json.dumps(model.config.id2label)
    return metadata


def graph_notes(model: PreTrainedModel, processor: BaseImageProcessor | None) -> list[str]:
    (height, width), channels = input_shape(model), model.config.num_channels
    prepared = f"; its {', '.join(graph_metadata(model, processor))} says how to prepare images" if processor else ""
    return [
        f"{INPUT} (batch, {channels}, {height}, {width}), float32, normalized outside the graph{prepared}",
        f"outputs: {', '.join(output_names(model))}",
        *range_notes(processor),
    ]


def write_exported(model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path) -> list[str]:
    """Write the graph, in evaluation mode, with its metadata as extra files.

    Returns:
        `list[str]`: How to load it, and its inputs and outputs.
    """
    torch.export.save(export_program(model), path, extra_files=graph_metadata(model, processor))
    return [
        f"load it with PyTorch: torch.export.load({str(path)!r}).module()(pixel_values=...)",
        *graph_notes(model, processor),
        f"written by PyTorch {torch.__version__}, whose other releases may not read it",
    ]


def load_exported(path: Path) -> Predict:
    """The outputs that PyTorch gives for a file of [`write_exported`]."""
    graph = torch.export.load(path).module()
    return lambda pixel_values: graph(pixel_values=pixel_values)


def write_onnx(
    model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path, opset: int = OPSET
) -> list[str]:
    """
    Write the graph from normalized images to features or logits. Resizing and normalizing are not part of it, because
    runtimes differ in them. The file's metadata says how to do them, in `preprocessor_config.json`; `id2label.json`
    has the labels.

    Args:
        opset (`int`, *optional*, defaults to 18): Version of ONNX's operators.

    Returns:
        `list[str]`: How to load it, and its inputs and outputs.
    """
    names = output_names(model)
    program = torch.onnx.export(
        export_program(model),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(names),
        opset_version=opset,
        verbose=False,
    )
    program.model.metadata_props.update(graph_metadata(model, processor))
    program.save(path)
    return [
        f"load it with ONNX Runtime: onnxruntime.InferenceSession({str(path)!r})",
        f"opset {written_opset(path)}",
        *graph_notes(model, processor),
    ]


def written_opset(path: Path) -> int:
    """The version of ONNX's operators that a file asks for."""
    import onnx  # an extra

    imported = onnx.load(path, load_external_data=False).opset_import
    return next(entry.version for entry in imported if entry.domain in ("", "ai.onnx"))


def load_onnx(path: Path) -> Predict:
    """The outputs that ONNX Runtime gives for a file of [`write_onnx`], on the CPU."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = session.run(names, {INPUT: pixel_values.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return predict
