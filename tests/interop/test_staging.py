"""What is written is there as a whole, or not at all, and never in the place of something else by mistake."""

import pytest

from modeling_sit.interop.staging import check_destination, staged
from modeling_sit.runtime.errors import SiTError


def test_a_file_and_what_lies_beside_it_appear_at_the_end(tmp_path):
    destination = tmp_path / "new" / "model.onnx"
    with staged(destination) as unfinished:
        assert unfinished.name == "model.onnx"
        unfinished.write_text("graph")
        (unfinished.parent / "model.onnx.data").write_text("weights")
        assert not destination.exists()
    assert {path.name: path.read_text() for path in destination.parent.iterdir()} == {
        "model.onnx": "graph",
        "model.onnx.data": "weights",
    }


def test_a_folder_takes_its_place_beside_what_is_there(tmp_path):
    destination = tmp_path / "vit"
    for turn in ("first", "second"):
        with staged(destination) as unfinished:
            unfinished.mkdir()
            (unfinished / "config.json").write_text(turn)
        (destination / "notes.txt").touch()
    assert (destination / "config.json").read_text() == "second"
    assert sorted(path.name for path in destination.iterdir()) == ["config.json", "notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


@pytest.mark.parametrize("was_there", [True, False])
def test_after_an_error_all_is_as_before(tmp_path, was_there):
    destination = tmp_path / "weights.safetensors"
    if was_there:
        destination.write_text("old")
    with pytest.raises(ZeroDivisionError), staged(destination) as unfinished:
        unfinished.write_text("new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == (["weights.safetensors"] if was_there else [])
    assert not was_there or destination.read_text() == "old"


def test_nothing_is_overwritten_unasked(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    file, folder, empty = tmp_path / "model.onnx", tmp_path / "folder", tmp_path / "empty"
    file.touch()
    folder.mkdir()
    (folder / "config.json").touch()
    empty.mkdir()
    for destination, suffix in ((file, ".onnx"), (folder, None)):
        with pytest.raises(SiTError, match="--overwrite_output_dir"):
            check_destination(str(source), destination, suffix, overwrite=False)
        check_destination(str(source), destination, suffix, overwrite=True)
    check_destination(str(source), empty, None, overwrite=False)
    check_destination("a/repository", tmp_path / "new.onnx", ".onnx", overwrite=False)
    for overwrite in (False, True):
        with pytest.raises(SiTError, match="is FROM"):
            check_destination(str(source), tmp_path / "empty" / ".." / "source", None, overwrite)
        with pytest.raises(SiTError, match=r"ends in \.onnx"):
            check_destination(str(source), tmp_path / "model", ".onnx", overwrite)
        with pytest.raises(SiTError, match="is a file"):
            check_destination(str(source), file, None, overwrite)
    (tmp_path / "odd.onnx").mkdir()
    with pytest.raises(SiTError, match="is a folder"):
        check_destination(str(source), tmp_path / "odd.onnx", ".onnx", overwrite=True)
