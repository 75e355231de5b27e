"""Models whose every weight matters to the outputs, and images to measure them on."""

import pytest
import torch

from modeling_sit import SiTImageProcessor


@pytest.fixture
def make_model(tiny_config):
    """A tiny model of a class in evaluation mode; its weights are large and nowhere zero, so that none can be lost."""

    def make(model_class, seed=3, **fields):
        model = model_class(tiny_config(**fields))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (*model.parameters(), *model.buffers()):
                if weight.is_floating_point():
                    weight.copy_(torch.rand(weight.shape, generator=generator) - 0.4)
        return model.eval()

    return make


@pytest.fixture
def images():
    """Random normalized images for a model."""

    def make(model, count=3):
        config = model.config
        generator = torch.Generator().manual_seed(5)
        return torch.randn(count, config.num_channels, *config.image_shape, generator=generator)

    return make


@pytest.fixture
def make_processor():
    """The image processor of a model, with a normalization of its own."""

    def make(model, **settings):
        size = {"height": model.config.image_shape[0], "width": model.config.image_shape[1]}
        usual = {"image_mean": [0.3, 0.4, 0.5], "image_std": [0.2, 0.25, 0.3]}
        if model.config.num_channels == 1:
            usual = {"image_mean": [0.3], "image_std": [0.2]}
        return SiTImageProcessor(size=size, patch_size=model.config.patch_size, **{**usual, **settings})

    return make
