"""What checkpoints of every form can do on the page, and why they cannot do the rest."""

import pytest
import torch
from foreign import FOREIGN, save_resnet, save_upernet
from pages import captions_of

from modeling_sit import SiTImageProcessor
from modeling_sit.demo.demonstration import Demonstration
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def demonstrate_foreign(demonstrate, tmp_path):
    """The demonstration of a checkpoint that one of [`foreign`]'s functions writes."""

    def demonstrate_foreign(save, **arguments) -> Demonstration:
        torch.manual_seed(0)
        return demonstrate(model_name_or_path=str(save(tmp_path / "foreign")), **arguments)

    return demonstrate_foreign


@pytest.mark.parametrize("save", FOREIGN, ids=lambda save: save.__name__.removeprefix("save_"))
def test_what_each_can_do(demonstrate_foreign, tmp_path, save):
    task, missing = FOREIGN[save]
    demonstration = demonstrate_foreign(save)
    checkpoint = demonstration.checkpoint
    assert checkpoint.task == task and set(checkpoint.missing) == missing
    assert all(len(why) < 200 and str(tmp_path) not in why and "\n" not in why for why in checkpoint.missing.values())
    assert "blue/0.png" in demonstration.look(None, 0)[0]
    answers = {
        "encode": lambda: demonstration.neighbours(None, 0, 3),
        "attend": lambda: demonstration.attend(None, 0, None, None),
        "reconstruct": lambda: demonstration.reconstruct(None, 0, "zeros", 0.5, 0.25, 0),
    }
    for ability, answer in answers.items():
        if ability in missing or (ability == "attend" and "encode" in missing):
            with pytest.raises(SiTError) as error:
                answer()
            assert error.value.problem in checkpoint.missing.values()
        else:
            assert len(captions_of(answer())) >= 3
    if task == "classification":
        assert set(demonstration.classify(None, 0)) == {"red", "blue"}
    elif task is not None:
        assert len(captions_of(demonstration.find(None, 0, 0.0))) == 1


def test_nothing_to_show(demonstrate_foreign):
    with pytest.raises(SiTError) as error:
        demonstrate_foreign(save_resnet)
    assert error.value.argument == "model_name_or_path"


@pytest.mark.parametrize(("fields", "word"), [({"num_channels": 5}, "processor"), ({"image_size": 32}, "16 x 16")])
def test_an_image_processor_of_another_model(demonstrate, save_tiny_sit, tmp_path, fields, word):
    folder = save_tiny_sit(tmp_path / "other", **fields)
    SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8).save_pretrained(folder)
    with pytest.raises(SiTError) as error:
        demonstrate(model_name_or_path=str(folder))
    assert error.value.argument == "model_name_or_path" and word in error.value.problem


def test_no_encoder_to_begin_anew_with(demonstrate_foreign):
    with pytest.raises(SiTError) as error:
        demonstrate_foreign(save_upernet, compare_with="random")
    assert error.value.argument == "compare_with"


def test_a_range_of_intensities_is_for_every_tab(demonstrate_foreign):
    checkpoint = demonstrate_foreign(save_upernet, intensity_range=(0, 1000)).checkpoint
    assert list(checkpoint.pixel_format.intensity_range) == [0, 1000]
    assert checkpoint.predicting.pixel_format == checkpoint.pixel_format
