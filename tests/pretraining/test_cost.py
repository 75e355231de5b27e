"""What a run has cost, from its folder."""

import json

import pytest

from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler
from modeling_sit.pretraining.cost import pretraining_cost

SETTINGS = {
    "method": "sit",
    "image_size": 224,
    "patch_size": 16,
    "use_teacher": True,
    "contrastive_weight": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_processes": 4,
    "num_images": 640,
}


@pytest.fixture
def write_state(tmp_path):
    """A folder with the `run_state.json` of a finished run."""

    def write(**settings):
        starts = [{"step": 0, "command": "c", "hardware": "an abacus"}]
        state = {
            "settings": {},
            "determined_by": {**SETTINGS, **settings},
            "step": 30,
            "seconds": 12.5,
            "starts": starts,
        }
        (tmp_path / "run_state.json").write_text(json.dumps(state))
        return pretraining_cost(tmp_path)

    return write


@pytest.mark.parametrize(
    ("settings", "tokens_per_image"),
    [
        ({}, 1576),  # two views of 196 patches and [CLS], the student's three times, the teacher's once
        ({"use_teacher": False}, 1182),
        ({"contrastive_weight": 0.0}, 1182),
        ({"image_size": 32, "patch_size": 4}, 520),
        ({"image_size": [32, 64], "patch_size": [8, 16]}, 2 * 17 * 4),
    ],
)
def test_tokens(write_state, settings, tokens_per_image):
    cost = write_state(**settings)
    assert cost.encoder_tokens == 30 * 64 * tokens_per_image
    assert (cost.steps, cost.epochs, cost.seconds, cost.hardware) == (30, 3.0, 12.5, "an abacus")


def test_images_that_fill_no_batch_do_not_count(write_state):
    """As in the order of the images: an epoch is 20 batches of 8 images in each of 4 processes."""
    loading = LoadingSettings(batch_size=8, seed=0, num_processes=4)
    for num_images in (640, 659, 671):
        batches_per_epoch = ResumableBatchSampler(num_images, loading, 0, 1).batches_per_epoch
        assert write_state(num_images=num_images).epochs == 30 * 2 / batches_per_epoch == 3
    assert write_state(num_images=656, streaming=True).epochs == 30 * 64 / 656


def test_a_stream_has_no_epochs(write_state):
    assert write_state(num_images=None).epochs is None


def test_no_run(tmp_path):
    assert pretraining_cost(tmp_path) is None
    (tmp_path / "run_state.json").write_text('{"settings": {}, "determined_by": {}}')
    assert pretraining_cost(tmp_path) is None
