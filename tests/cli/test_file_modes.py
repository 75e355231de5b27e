"""Whatever a command writes may be read by whom the umask says, and what may not be read is told so."""

import os
import stat
from contextlib import contextmanager

import pytest

from modeling_sit.interop.formats import FORMATS
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.runtime.errors import SiTError


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(folder, mask: int) -> dict:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    return {path: f"{mode:o}" for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~mask}


@pytest.fixture
def flowers(save_images, tmp_path):
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 6, seed=number)
    return tmp_path / "flowers"


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model")


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "onnx"])
def test_conversions(run_program, model, tmp_path, name):
    with umask(0o027):
        destination = tmp_path / "written" / f"model{FORMATS[name].suffix or ''}"
        assert run_program("convert", model, destination, "--format", name) == 0
    assert not wrong_modes(tmp_path / "written", 0o027)


@pytest.mark.parametrize("command", ["evaluate", "embed", "reconstructions", "embeddings", "tile"])
def test_what_measures_and_draws(run_program, model, flowers, tmp_path, command):
    out = tmp_path / "out"
    given = ["--model_name_or_path", model, "--dataset", flowers, "--device", "cpu"]
    with umask(0o027):
        if command == "evaluate":
            code = run_program("evaluate", *given, "--output_dir", out, "--protocols", "knn", "--knn_k", 3)
        elif command == "embed":
            code = run_program("embed", *given, "--output_dir", out)
        elif command == "tile":
            code = run_program("tile", "--dataset", flowers, "--output_dir", out, "--image_size", 32)
        else:
            code = run_program("visualize", command, *given, "--output", out / "figure.png")
    assert code == 0
    assert [path for path in out.rglob("*") if path.is_file()]
    assert not wrong_modes(out, 0o027)


@contextmanager
def another_user():
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
class TestNotReadable:
    """The libraries say of such a file that there is none."""

    @pytest.fixture
    def shared(self, save_tiny_sit, tmp_path):
        """A folder that anybody reaches."""
        folder = save_tiny_sit(tmp_path / "shared" / "model")
        for path in (tmp_path, *tmp_path.parents):
            if path.stat().st_uid == os.getuid() and len(path.parts) > 2:
                path.chmod(path.stat().st_mode | 0o055)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_file_of_a_folder(self, shared, name):
        (shared / name).chmod(0o600)
        with another_user(), pytest.raises(SiTError, match=f"{name} cannot be read: permission denied") as error:
            load_checkpoint(str(shared))
        assert error.value.argument == "model_name_or_path" and "No such file" not in str(error.value)

    def test_file_of_weights(self, shared):
        path = (shared / "model.safetensors").rename(shared / "weights.safetensors")
        path.chmod(0o600)
        with another_user(), pytest.raises(SiTError, match=f"{path} cannot be read: permission denied"):
            load_checkpoint(str(path))

    def test_folder(self, shared):
        shared.chmod(0o700)
        with another_user(), pytest.raises(SiTError, match="cannot be read: permission denied"):
            load_checkpoint(str(shared))
