"""What the tests of data share: the `datasets` library by itself."""

import datasets
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
