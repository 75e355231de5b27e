"""Defaults of detection and segmentation: a table of inputs and outputs."""

import pytest

from modeling_sit.finetuning.dense_presets import DensePreset
from modeling_sit.finetuning.presets import RunFacts


def preset(num_train: int, given: dict | None = None, **facts) -> DensePreset:
    return DensePreset(RunFacts(num_train=num_train, **facts), given or {})


@pytest.mark.parametrize(
    ("num_train", "facts", "steps", "batch_size", "rate", "jitter"),
    [
        # nuclei on a CPU: no more than it can do
        (498, {"hidden_size": 128, "image_size": 160, "on_cpu": True}, 2000, 4, 1e-3, [0.8, 1.25]),
        (367, {"hidden_size": 128, "image_size": 256, "on_cpu": True}, 780, 4, 1e-3, [0.8, 1.25]),
        # on a GPU 50 epochs, half as many again from scratch
        (498, {"hidden_size": 384, "image_size": 640}, 1600, 16, 1e-4, [0.5, 2.0]),
        (498, {"hidden_size": 384, "image_size": 640, "from_scratch": True}, 2400, 16, 1e-4, [0.5, 2.0]),
        (498, {"hidden_size": 384, "image_size": 640, "trains_backbone": False}, 1600, 16, 1e-3, [0.5, 2.0]),
        # many images: fewer epochs, 12 at least
        (8_000, {"hidden_size": 384, "image_size": 640}, 6250, 16, 1e-4, [0.8, 1.25]),
        (118_000, {"hidden_size": 384, "image_size": 640}, 88500, 16, 1e-4, [0.8, 1.25]),
        # few images: 500 steps at least
        (20, {"hidden_size": 384, "image_size": 640}, 500, 16, 1e-4, [0.5, 2.0]),
    ],
)
def test_table(num_train, facts, steps, batch_size, rate, jitter):
    chosen = preset(num_train, **facts)
    assert (chosen["max_steps"], chosen["per_device_train_batch_size"]) == (steps, batch_size)
    assert (chosen["learning_rate"], chosen["scale_jitter"], chosen["ema_decay"]) == (rate, jitter, 0.0)


def test_the_usual_run_on_a_few_hundred_images_is_long():
    """Whatever the rounding of its steps."""
    assert all(preset(number)["scale_jitter"] == [0.5, 2.0] for number in range(160, 501))


def test_what_is_given_stays_and_several_processes_share_a_batch():
    chosen = preset(498, {"learning_rate": 0.1, "scale_jitter": [1.0, 1.0]}, num_batches=4)
    assert chosen["learning_rate"] == 0.1 and chosen["scale_jitter"] == [1.0, 1.0]
    assert chosen["per_device_train_batch_size"] == 4 and chosen.batch_size == 16


def test_has_no_augmentation_of_a_classifier():
    assert not {"mixup_alpha", "cutmix_alpha", "crop_scale", "label_smoothing_factor"} & set(preset(498).choices)
