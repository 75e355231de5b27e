"""A SiT as a graph by `torch.export`: a .pt2 file that PyTorch loads alone, for batches of any size."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTForImageClassification
from modeling_sit.interop.plain_processor import plain_processor
from modeling_sit.interop.verification import Predict, random_images

INPUT = "pixel_values"
FEATURES = ("last_hidden_state", "pooler_output")
LOGITS = ("logits",)
# Traced with more than one image, for a graph that is traced with one may be good for one alone.
TRACED_BATCH_SIZE = 2


class NamedOutputs(nn.Module):
    """A SiT that gives a plain dictionary, which loads where transformers' output classes are not known."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.names = output_names(model)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.model(pixel_values, return_dict=True)
        return {name: output[name] for name in self.names}


def output_names(model: PreTrainedModel) -> tuple[str, ...]:
    """What a graph of this model gives: `logits` of a classifier, else `last_hidden_state` and `pooler_output`."""
    return LOGITS if isinstance(model, SiTForImageClassification) else FEATURES


def export_program(model: PreTrainedModel) -> torch.export.ExportedProgram:
    """The graph of a [`SiTModel`] or a [`SiTForImageClassification`] in evaluation mode, from normalized `pixel_values`
    `(batch, channels, height, width)` of any batch."""
    images = random_images(model.config, TRACED_BATCH_SIZE, seed=0)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            NamedOutputs(model).eval(), (), kwargs={INPUT: images}, dynamic_shapes={INPUT: {0: batch}}
        )


def graph_metadata(model: PreTrainedModel, processor: BaseImageProcessor | None) -> dict[str, str]:
    """What a graph cannot say: how images are prepared for it, and what its logits stand for."""
    metadata = {}
    if processor is not None:
        metadata["preprocessor_config.json"] = plain_processor(processor).to_json_string()
    if isinstance(model, SiTForImageClassification):
        metadata["id2label.json"] = json.dumps(model.config.id2label)
    return metadata


def graph_notes(model: PreTrainedModel, processor: BaseImageProcessor | None) -> list[str]:
    (height, width), channels = model.config.image_shape, model.config.num_channels
    prepared = f"; how to prepare images is in its {', '.join(graph_metadata(model, processor))}" if processor else ""
    return [
        f"{INPUT} (batch, {channels}, {height}, {width}), float32, normalized: that is not part of the graph{prepared}",
        f"outputs: {', '.join(output_names(model))}",
    ]


def write_exported(model: PreTrainedModel, processor: BaseImageProcessor | None, path: Path) -> list[str]:
    """Write the graph, in evaluation mode, with its metadata as extra files.

    Returns:
        `list[str]`: How to load it, and what it takes and gives.
    """
    torch.export.save(export_program(model), path, extra_files=graph_metadata(model, processor))
    return [
        f"load it with PyTorch: torch.export.load({str(path)!r}).module()(pixel_values=...)",
        *graph_notes(model, processor),
        f"written by PyTorch {torch.__version__}, whose other releases may not read it",
    ]


def load_exported(path: Path) -> Predict:
    """What PyTorch makes of a file of [`write_exported`]."""
    graph = torch.export.load(path).module()
    return lambda pixel_values: graph(pixel_values=pixel_values)
