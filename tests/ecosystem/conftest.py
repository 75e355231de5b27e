"""What the tests with other libraries share: tiny repositories whose weights are far from their start, and images."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor


@pytest.fixture
def save_repository(tmp_path, tiny_config):
    """Write the repository of a model with random weights, and its processor; gives the folder and the model."""

    def save(model_class, name: str = "repository", seed: int = 0, **fields) -> tuple[Path, torch.nn.Module]:
        model = model_class(tiny_config(**fields)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        size = {"height": 16, "width": 16}
        SiTImageProcessor(size=size, patch_size=8).save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return save


@pytest.fixture
def classifier(save_repository):
    """Folder and model of a fine-tuned classifier of five labels."""
    return save_repository(SiTForImageClassification, "classifier", num_labels=5)


@pytest.fixture
def pretrained(save_repository):
    """Folder and model of a pretrained SiT, with the heads of pretraining."""
    return save_repository(SiTForPreTraining, "pretrained")


@pytest.fixture
def images():
    """Images of different sizes, the last one grey. (Pipelines make all images RGB before the processor sees them.)"""
    generator = np.random.default_rng(0)
    shapes = [(24, 20, 3), (16, 16, 3), (18, 30)]
    return [PIL.Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@pytest.fixture
def pixel_values():
    """A batch of four normalized images."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
