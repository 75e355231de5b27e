"""The processor inside `datasets.map`: in several processes, and found again in the cache."""

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher

from modeling_sit import SiTImageProcessor, SiTImageProcessorPil


@pytest.fixture
def one_thread():
    """Processes that are forked while a thread computes may wait for it for ever; so one thread before they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def images(save_images, tmp_path):
    folder = save_images(tmp_path / "images", 10)
    paths = sorted(map(str, folder.iterdir()))
    return datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())


def process(batch: dict, processor) -> dict:
    return {"pixel_values": processor(batch["image"], return_tensors="np")["pixel_values"]}


@pytest.mark.parametrize("backend", [SiTImageProcessor, SiTImageProcessorPil])
def test_two_processes_give_what_one_gives(images, one_thread, backend):
    processor = backend(size={"height": 16, "width": 16})
    settings = {"batched": True, "batch_size": 3, "fn_kwargs": {"processor": processor}, "remove_columns": ["image"]}
    one = images.map(process, **settings, keep_in_memory=True)
    two = images.map(process, **settings, num_proc=2)
    expected = processor([row["image"] for row in images], return_tensors="np")["pixel_values"]
    for mapped in (one, two):
        assert np.array_equal(np.array(mapped["pixel_values"][:]), expected)


def test_use_does_not_change_what_the_cache_is_found_by():
    processor = SiTImageProcessor(size={"height": 16, "width": 16})
    before = Hasher.hash(processor)
    processor([np.zeros((20, 20, 3), dtype=np.uint8)], return_tensors="pt")
    assert Hasher.hash(processor) == before
    assert Hasher.hash(SiTImageProcessor(size={"height": 24, "width": 24})) != before
