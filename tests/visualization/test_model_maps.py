"""The same images by several models."""

from types import SimpleNamespace

import datasets
import pytest
import torch

from modeling_sit.evaluation.features import Features
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.model_maps import ImagesByModels

SPLIT = datasets.Dataset.from_dict({"number": range(10)}, split=datasets.NamedSplit("test"))


def model(title: str, unreadable: set[int], factor: int):
    """Its feature of an image is the image's number times a factor."""

    def features_of(split, device):
        numbers = split["number"][:]
        rows = [row for row, number in enumerate(numbers) if number not in unreadable]
        features = torch.tensor([[float(numbers[row] * factor)] for row in rows])
        return Features(features, None, [], torch.tensor(rows))

    return SimpleNamespace(title=title, features_of=features_of, pixel_format=PixelFormat(factor))


def test_all_panels_have_the_images_that_every_model_can_read():
    models = (model(*each) for each in (("a", {1, 5}, 1), ("b", {0, 5}, 2), ("c", set(), 3), ("d", {9}, 4)))
    found = ImagesByModels.of(models, SPLIT, torch.device("cpu"))
    kept = [2, 3, 4, 6, 7, 8]
    assert found.shown["number"][:] == kept and str(found.shown.split) == "test"
    assert [panel.title for panel in found.panels] == ["a", "b", "c", "d"]
    for factor, panel in enumerate(found.panels, 1):
        assert panel.features[:, 0].tolist() == [number * factor for number in kept]
    assert found.pixel_format == PixelFormat(4)


def test_a_mistake_names_the_model():
    def fail(split, device):
        raise SiTError("the features are not finite", argument="compare_with", remedy="choose another")

    models = [model("a", set(), 1), SimpleNamespace(title="b", features_of=fail)]
    with pytest.raises(SiTError, match="b: the features") as error:
        ImagesByModels.of(models, SPLIT, torch.device("cpu"))
    assert (error.value.argument, error.value.remedy) == ("compare_with", "choose another")
