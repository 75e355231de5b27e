"""A SiT as a graph in ONNX, for batches of any size."""

from pathlib import Path

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.interop.graphs import INPUT, export_program, graph_metadata, graph_notes, output_names
from modeling_sit.interop.verification import Predict

# The oldest that PyTorch's exporter writes, and every runtime of the last years reads.
OPSET = 18


def write_onnx(
    model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path, opset: int = OPSET
) -> list[str]:
    """
    Write the graph, from normalized images to features or logits. Resizing and normalizing are not part of it, for
    runtimes differ in them: the file's metadata says how, as `preprocessor_config.json`, with `id2label.json` beside.

    Args:
        opset (`int`, *optional*, defaults to 18): Version of ONNX's operators.

    Returns:
        `list[str]`: How to load it, and what it takes and gives.
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
    """What ONNX Runtime makes of a file of [`write_onnx`], on the CPU."""
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = session.run(names, {INPUT: pixel_values.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return predict
