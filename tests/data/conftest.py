"""What the tests of data share: the `datasets` library by itself, and images to cache."""

import datasets
import numpy as np
import PIL.Image
import pytest


@pytest.fixture
def isolated_cache(monkeypatch, tmp_path_factory):
    """The `datasets` library has a cache of the test's own, and no Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def no_decoding(monkeypatch):
    """No image may be decoded."""
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded an image"))


@pytest.fixture
def folder(tmp_path, save_images):
    """Images of several sizes, one of which shrinks where it is decoded, two of which cannot be read."""
    folder = save_images(tmp_path / "pile", 5)
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(folder / "05.png")
    PIL.Image.effect_noise((400, 300), 50).save(folder / "06.jpg")
    (folder / "01.png").write_bytes(b"")
    (folder / "07.png").write_bytes(b"broken")
    return folder
