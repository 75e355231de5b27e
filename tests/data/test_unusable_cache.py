"""Which forms of datasets go through the cache of Hugging Face, and what is told where that cannot be written."""

import errno
import os

import datasets
import pytest
import torch
from source_files import png, values_of, write_images, write_parquet, write_tar

from modeling_sit.data.caching import CacheBuilder, _folder
from modeling_sit.data.crops import DecodedImages
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import CacheError


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """Its folder lies in a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "file" / name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file"))
    return tmp_path / "file" / "HF_DATASETS_CACHE"


def make(form: str, folder):
    if form == "parquet":
        return write_parquet(folder / "train.parquet", [3, 4])
    if form == "tar":
        return write_tar(folder / "train.tar", {"0.png": png(3), "1.png": png(4)})
    if form == "saved":
        images = [{"bytes": png(value), "path": None} for value in (3, 4)]
        datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image()).save_to_disk(folder)
        return folder
    return write_images(folder, {"0.png": 3, "1.png": 4})


@pytest.mark.parametrize(
    ("form", "streaming"),
    [("images", False), ("images", True), ("saved", False), ("saved", True), ("parquet", True), ("tar", True)],
)
def test_forms_that_need_no_cache(tmp_path, form, streaming):
    images = load_images(str(make(form, tmp_path / "data")), streaming=streaming)
    assert values_of(images.train) == [3, 4]


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_forms_that_do(tmp_path, no_cache, form):
    path = make(form, tmp_path / "data")
    for dataset in (path, path.parent):
        with pytest.raises(CacheError) as error:
            load_images(str(dataset))
        assert str(no_cache) in str(error.value) and "HF_HOME" in str(error.value)
        # The data is in order, and so is the argument.
        assert error.value.argument is None and str(path) not in str(error.value)


def test_the_hub(no_cache):
    with pytest.raises(CacheError) as error:
        load_images("somebody/flowers")
    assert str(no_cache) in str(error.value) and error.value.argument is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_cache_that_fills_up(tmp_path, monkeypatch, code):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def fill_up(*arguments, **options):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError(code, os.strerror(code))

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", fill_up)
    with pytest.raises(CacheError) as error:
        load_images(str(make("parquet", tmp_path / "data")))
    assert str(tmp_path / "cache") in error.value.problem and os.strerror(code) in error.value.problem


def test_a_damaged_file_is_still_told_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = make("parquet", tmp_path / "data")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SiTError) as error:
        load_images(str(path))
    assert not isinstance(error.value, CacheError)
    assert error.value.argument == "dataset" and str(path) in error.value.problem


def cache_builder(kind: str, tmp_path) -> CacheBuilder:
    images = DecodedImages(load_images(str(make("images", tmp_path / "data"))).train, pixel_format=3, draft_scale=1.0)
    return CacheBuilder(kind, _folder("data", None), images, torch.device("cpu"), None)


def test_decoded_images_name_the_cache_too(tmp_path, no_cache):
    with pytest.raises(SiTError) as error:
        cache_builder("disk", tmp_path).build()
    assert error.value.argument == "image_cache_dir"
    assert str(no_cache) in error.value.problem and "HF_HOME" in error.value.remedy


def test_decoded_images_without_a_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "~/.cache/huggingface/datasets")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without a home
    with pytest.raises(CacheError, match="no home folder"):
        cache_builder("disk", tmp_path).build()
    assert not (tmp_path / "~").exists()
    kind, *_ = cache_builder("auto", tmp_path).build()
    assert kind == "memory"
