"""A cache of Hugging Face that cannot be used is told by its folder and reason, and nothing else is."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

import datasets
import pytest

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.hugging_face_cache import CacheError, cache_error, check_datasets_cache, check_place


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home" / "datasets"


def refuse(error: OSError):
    def fail(*arguments, **options):
        raise error

    return fail


def test_a_usable_cache_is_left_empty(cache):
    check_datasets_cache()
    assert cache.is_dir() and not list(cache.iterdir())


def assert_told(cache: Path, code: int) -> None:
    with pytest.raises(CacheError) as error:
        check_datasets_cache()
    assert isinstance(error.value, SiTError) and error.value.argument is None
    assert str(cache) in error.value.problem and os.strerror(code) in error.value.problem
    assert "HF_HOME" in error.value.remedy and "\n" not in str(error.value)


def test_the_home_of_the_cache_is_a_file(cache):
    cache.parent.write_text("a file")
    assert_told(cache, errno.ENOTDIR)


def test_no_place_for_the_folder(cache, monkeypatch):
    nowhere = Path("/proc/nowhere/datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", nowhere)
    assert_told(nowhere, errno.ENOENT)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_not_writable(cache, monkeypatch, code):
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse(OSError(code, os.strerror(code))))
    assert_told(cache, code)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full(cache, monkeypatch, code):
    """A full file system takes a new file, and refuses what is written to it."""
    monkeypatch.setattr(os, "fsync", refuse(OSError(code, os.strerror(code))))
    assert_told(cache, code)


def test_no_locks(cache, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))))
    assert_told(cache, errno.ENOSYS)


def test_no_home_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("~/.cache/huggingface/datasets"))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without a home
    with pytest.raises(CacheError, match="no home folder") as error:
        check_datasets_cache()
    assert "HF_HOME" in error.value.remedy and not list(tmp_path.iterdir())
    check_place(tmp_path)


def test_a_narrower_variable_is_named(cache, monkeypatch):
    cache.parent.write_text("a file")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    with pytest.raises(CacheError) as error:
        check_datasets_cache()
    assert "HF_DATASETS_CACHE" not in error.value.remedy
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    with pytest.raises(CacheError) as error:
        check_datasets_cache()
    assert "HF_DATASETS_CACHE" in error.value.remedy and "HF_HOME" in error.value.remedy


def caused_by(error: Exception) -> Exception:
    """As `datasets` wraps what happens while it makes its cache."""
    try:
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset") from error
    except datasets.exceptions.DatasetGenerationError as wrapped:
        return wrapped


@pytest.mark.parametrize("wrap", [lambda error: error, caused_by])
def test_what_comes_from_the_cache(cache, wrap):
    for error in (
        OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
        OSError(errno.EROFS, "Read-only file system", str(cache / "parquet")),
        PermissionError(errno.EACCES, "Permission denied", str(cache.parent / "hub" / "models--a--b")),
        PermissionError(errno.EACCES, f"Failed to open local file '{cache}/x.arrow'. Detail: Permission denied"),
    ):
        found = cache_error(wrap(error))
        assert found is not None and str(cache.parent) in found.problem and os.strerror(error.errno) in found.problem


@pytest.mark.parametrize("wrap", [lambda error: error, caused_by])
def test_what_does_not(cache, wrap):
    for error in (
        PermissionError(errno.EACCES, "Permission denied", "/data/train.parquet"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/train.parquet"),
        OSError("Parquet magic bytes not found in footer"),
        ValueError("no such column"),
    ):
        assert cache_error(wrap(error)) is None
