"""Files are whole or not there, whatever fails on the way."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from modeling_sit.runtime.atomic_files import (
    check_writable,
    finish_files,
    fsync,
    is_of_full_disk,
    replace_file,
    replace_files,
    write_errors,
)
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import mark_run


@pytest.fixture
def operations(monkeypatch) -> list[tuple]:
    """Which files are synced and renamed, in order."""
    done, names = [], {}
    replace, fsync, open_ = os.replace, os.fsync, os.open

    def opening(path, *arguments, **settings):
        descriptor = open_(path, *arguments, **settings)
        names[descriptor] = Path(path).name
        return descriptor

    def syncing(descriptor):
        done.append(("fsync", names[descriptor]))
        fsync(descriptor)

    def replacing(path, target, **settings):
        done.append(("rename", Path(path).name, Path(target).name))
        replace(path, target, **settings)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    return done


class TestReplaceFile:
    def test_takes_the_place_of_the_old_one_at_the_end(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with replace_file(path) as unfinished:
            unfinished.write_text("new")
            assert path.read_text() == "old"
            assert unfinished.parent == tmp_path  # renaming is atomic within one file system only
            assert unfinished.suffix == ".txt"  # by which some writers know the format
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]

    def test_is_on_the_disk_before_it_is_renamed(self, tmp_path, operations):
        with replace_file(tmp_path / "a") as unfinished:
            unfinished.write_text("new")
        assert operations == [("fsync", ".unfinished-a"), ("rename", ".unfinished-a", "a"), ("fsync", tmp_path.name)]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
    def test_error_leaves_the_old_one_alone(self, tmp_path, error):
        path = tmp_path / "a"
        path.write_text("old")
        with pytest.raises(error), replace_file(path) as unfinished:
            unfinished.write_text("ne")
            raise error
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_what_a_killed_process_left_does_not_stand_in_the_way(self, tmp_path):
        (tmp_path / ".unfinished-a").write_text("a long rest of an old one")
        with replace_file(tmp_path / "a") as unfinished:
            unfinished.write_text("new")
        assert (tmp_path / "a").read_text() == "new"
        assert not unfinished.exists()

    def test_nothing_written_is_an_error(self, tmp_path):
        (tmp_path / "a").write_text("old")
        with pytest.raises(FileNotFoundError), replace_file(tmp_path / "a"):
            pass
        assert (tmp_path / "a").read_text() == "old"


class TestReplaceFiles:
    def test_each_takes_its_place_and_others_stay(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).write_text("old")
        with replace_files(tmp_path) as unfinished:
            for name in ("b", "c"):
                (unfinished / name).write_text("new")
            assert (tmp_path / "b").read_text() == "old" and not (tmp_path / "c").exists()
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "new", "c": "new"}

    def test_all_are_on_the_disk_before_the_first_is_renamed(self, tmp_path, operations):
        with replace_files(tmp_path) as unfinished:
            for name in ("a", "b"):
                (unfinished / name).write_text("new")
        synced = operations[:3]
        assert set(synced) == {("fsync", "a"), ("fsync", "b"), ("fsync", "files")}
        assert operations[3:] == [("rename", "a", "a"), ("rename", "b", "b"), ("fsync", tmp_path.name)]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_error_leaves_all_old_ones_alone(self, tmp_path, error):
        (tmp_path / "a").write_text("old")
        with pytest.raises(error), replace_files(tmp_path) as unfinished:
            (unfinished / "a").write_text("new")
            raise error
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}

    def test_what_a_killed_process_left_does_not_come_along(self, tmp_path):
        mark_run(tmp_path / ".unfinished-files", "unfinished")
        (tmp_path / ".unfinished-files" / "files").mkdir()
        (tmp_path / ".unfinished-files" / "files" / "half").write_text("cut sho")
        with replace_files(tmp_path) as unfinished:
            (unfinished / "a").write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize("name", [".unfinished-files/notes.txt", ".unfinished-files/files/model.safetensors"])
    def test_a_folder_of_a_users_with_such_a_name_stays(self, tmp_path, name):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
        with replace_files(tmp_path) as unfinished:
            (unfinished / "a").write_text("new")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-files", "a"]
        assert (tmp_path / name).read_text() == "mine"

    def test_makes_the_folder(self, tmp_path):
        with replace_files(tmp_path / "x" / "y") as unfinished:
            (unfinished / "a").write_text("new")
        assert (tmp_path / "x" / "y" / "a").read_text() == "new"


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


class TestModes:
    """Those of new files, by the umask; safetensors 0.8 makes files that only their owner may read."""

    def test_of_one_file(self, tmp_path, umask):
        with replace_file(tmp_path / "a.safetensors") as unfinished:
            save_file({"a": torch.zeros(1)}, unfinished)
        assert mode(tmp_path / "a.safetensors") == 0o666 & ~umask

    def test_of_all_in_a_folder(self, tmp_path, umask):
        with replace_files(tmp_path) as unfinished:
            (unfinished / "sub").mkdir(mode=0o700)
            for name in ("a", "sub/b"):
                save_file({"a": torch.zeros(1)}, unfinished / name)
                (unfinished / f"{name}.json").write_text("")
            (unfinished / "program.py").touch(mode=0o755)
        assert {mode(path) for path in tmp_path.rglob("*") if path.is_file()} == {0o666 & ~umask}
        assert mode(tmp_path / "sub") == 0o777 & ~umask
        assert not list(tmp_path.rglob(".unfinished-*"))

    def test_of_other_files_stay(self, tmp_path):
        (tmp_path / "secret").touch(mode=0o600)
        with replace_files(tmp_path) as unfinished:
            (unfinished / "a").write_text("new")
        assert mode(tmp_path / "secret") == 0o600

    def test_where_there_are_none(self, tmp_path, monkeypatch):
        def refuse(*arguments, **settings):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "chmod", refuse)
        with replace_file(tmp_path / "a") as unfinished:
            unfinished.touch(mode=0o600)
        assert (tmp_path / "a").exists()


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_finishing_reaches_every_file_and_folder(tmp_path, operations):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("a", "b/d", "b/c/e"):
        (tmp_path / name).write_text("")
    finish_files(tmp_path)
    assert sorted(operations) == sorted(("fsync", name) for name in ("a", "b", "c", "d", "e", tmp_path.name))


def test_fsync_closes_what_it_opened(tmp_path):
    before = os.open(tmp_path, os.O_RDONLY)
    os.close(before)
    for _ in range(3):
        fsync(tmp_path)
    after = os.open(tmp_path, os.O_RDONLY)
    os.close(after)
    assert after == before
    with pytest.raises(FileNotFoundError):
        fsync(tmp_path / "nothing")


class TestWriteErrors:
    @pytest.mark.parametrize(
        ("problem", "reason"),
        [
            (OSError(28, "No space left on device"), "No space left on device"),
            (PermissionError(13, "Permission denied", "a file inside"), "Permission denied"),
            (
                RuntimeError("unexpected pos 64 vs 0\nand where in PyTorch"),
                "a file is written in part only (unexpected pos 64 vs 0), perhaps the disk is full",
            ),
            (SafetensorError("I/O error: File too large (os error 27)"), "I/O error: File too large (os error 27)"),
            (RuntimeError(), "RuntimeError"),
            (OSError(), "OSError"),
        ],
    )
    def test_path_reason_and_remedy_in_one_line(self, problem, reason):
        with pytest.raises(SiTError) as error, write_errors(Path("/runs/a"), "make room"):
            raise problem
        assert str(error.value) == f"/runs/a cannot be written: {reason}; make room"
        assert error.value.__cause__ is problem

    @pytest.mark.parametrize(
        "problem",
        [KeyboardInterrupt(), ValueError("a bug"), SiTError("another line"), torch.OutOfMemoryError("no memory")],
    )
    def test_others_pass_as_they_are(self, problem):
        with pytest.raises(type(problem)) as error, write_errors(Path("a"), "make room"):
            raise problem
        assert error.value is problem


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9024 vs 8916"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive"), False),
        (_raised(ValueError("x"), OSError(errno.ENOSPC, "full")), True),
        (_raised(ValueError("x"), KeyError("y")), False),
    ],
)
def test_errors_of_a_full_disk(error, is_full):
    assert is_of_full_disk(error) == is_full


def test_a_file_that_can_be_written_and_some_that_cannot(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "a.json", "move on")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.json"):
        with pytest.raises(SiTError, match=f"{path} cannot be written: .*; move on"):
            check_writable(path, "move on")
