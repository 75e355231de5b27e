"""`torch.compile` of whole models, for batches of any size. That the numbers are equal: tests/test_modeling_sit.py."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from modeling_sit import SiTForImageClassification, SiTForPreTraining


def compile_counts(model, backend, batches) -> list[int]:
    """How many graphs there are after each batch."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    counts = []
    for batch in batches:
        assert torch.isfinite(compiled(**batch).loss)
        counts.append(backend.frame_count)
    return counts


def test_classifier_is_not_compiled_anew_for_every_batch_size(tiny_config):
    model = SiTForImageClassification(tiny_config(num_labels=3, num_hidden_layers=1)).train()
    batches = [
        {"pixel_values": torch.randn(size, 3, 16, 16), "labels": torch.arange(size) % 3} for size in (2, 3, 5, 8)
    ]
    counts = compile_counts(model, CompileCounter(), batches)
    assert counts[1] == counts[-1]


def test_pretraining_is_not_compiled_anew_for_every_batch_size(tiny_config):
    model = SiTForPreTraining(tiny_config(num_hidden_layers=1)).train()
    batches = [
        {
            "pixel_values": torch.randn(size, 3, 16, 16),
            "target_pixel_values": torch.randn(size, 3, 16, 16),
            "corruption_mask": torch.ones(size, 1, 16, 16, dtype=torch.bool),
            "teacher_projections": torch.randn(size, 16),
        }
        for size in (4, 6, 10, 16)
    ]
    counts = compile_counts(model, CompileCounter(), batches)
    assert counts[1] == counts[-1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU with a C++ compiler")
def test_compiled_for_a_cpu(classifier):
    _, model = classifier
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in (2, 5):
            pixel_values = torch.randn(size, 3, 16, 16)
            torch.testing.assert_close(compiled(pixel_values).logits, model(pixel_values).logits)
