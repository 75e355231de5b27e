"""Files from strangers: what they hold is read, what they would run is not."""

import argparse
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from authors_network import random_network, save_checkpoint

from modeling_sit.interop.convert_in import read_checkpoint
from modeling_sit.interop.weights_files import Discarded, load_weights_file
from modeling_sit.runtime.errors import SiTError

RUN = []


def was_run(*args):
    RUN.append(args)
    return {}


class Malicious:
    """Runs something where it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def touched(tmp_path):
    """A file that only a pickle which runs code makes."""
    RUN.clear()
    path = tmp_path / "touched"
    yield path
    assert not path.exists() and not RUN


ATTACKS = {
    "system": lambda path: Malicious(os.system, f"touch {path}"),
    "eval": lambda path: Malicious(eval, f"open({str(path)!r}, 'w')"),
    "touch": lambda path: Malicious(pathlib.Path.touch, path),
    "own_function": lambda path: Malicious(was_run, 1),
    "namespace": lambda path: argparse.Namespace(lr=Malicious(os.system, f"touch {path}")),
    "numpy": lambda path: np.array([Malicious(os.system, f"touch {path}")], dtype=object),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_runs_nothing(tmp_path, touched, attack, zipped):
    """In the flags of an otherwise good checkpoint, in the formats of PyTorch of today and of before."""
    path = tmp_path / "checkpoint.pth"
    network = random_network(0)
    contents = {"teacher": network.state_dict(), "args": ATTACKS[attack](touched)}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SiTError) as refusal:
        read_checkpoint(str(path), num_attention_heads=3)
    message = str(refusal.value)
    assert refusal.value.argument == "model_name_or_path" and refusal.value.problem.startswith(f"{path}: ")
    assert "pickle" in message and "torch.save(model.state_dict(), FILE)" in message, message


def test_a_plain_pickle_runs_nothing(tmp_path, touched):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(pickle.dumps(ATTACKS["system"](touched)))
    with pytest.raises(SiTError, match=r"checkpoint\.pth"):
        read_checkpoint(str(path))


def test_the_attacks_are_attacks(tmp_path):
    """They run, where a pickle is believed."""
    path = tmp_path / "touched"
    for attack in ("system", "eval", "touch", "namespace", "numpy"):
        pickle.loads(pickle.dumps(ATTACKS[attack](path)))
        assert path.exists(), attack
        path.unlink()


@pytest.mark.parametrize("name", ["numpy.core.multiarray.scalar", "numpy.dtype", "argparse.Namespace"])
def test_nothing_of_what_is_discarded_is_called(tmp_path, name):
    """Not even argparse and NumPy see what a file says: a class that keeps nothing stands for their names."""
    module, _, attribute = name.rpartition(".")
    # name("bad", 1), and then its state, {"__class__": 1}.
    called = b"X\x03\x00\x00\x00badK\x01\x86R" + b"}X\x09\x00\x00\x00__class__K\x01sb."
    path = tmp_path / "crafted.pth"
    torch.save({}, path)
    with zipfile.ZipFile(path) as whole:
        members = {info.filename: whole.read(info) for info in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as changed:
        for member, data in members.items():
            is_pickle = member.endswith("data.pkl")
            changed.writestr(
                member, b"\x80\x02" + f"c{module}\n{attribute}\n".encode() + called if is_pickle else data
            )
    loaded = load_weights_file(path)
    assert type(loaded) is Discarded and not vars(loaded)


def test_flags_and_numpys_numbers_do_no_harm(tmp_path):
    """Learning rates that NumPy computed lie in every optimizer's state of the authors' code."""
    path = save_checkpoint(tmp_path / "c.pth", random_network(0), random_network(1))
    contents = load_weights_file(path)
    assert contents["epoch"] == 7 and type(contents["args"]) is Discarded
    assert type(contents["optimizer"]["param_groups"][0]["lr"]) is Discarded
    assert read_checkpoint(str(path), num_attention_heads=3).config.hidden_size == 24


def test_allowing_names_ends_with_the_file(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    load_weights_file(save_checkpoint(tmp_path / "c.pth", random_network(0)))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no pickle at all", os.urandom(50)], ids=range(4))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_a_file_that_is_none(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(SiTError, match=f"weights{suffix}: "):
        read_checkpoint(str(path))


def test_a_file_that_is_cut_off(tmp_path):
    path = save_checkpoint(tmp_path / "c.pth", random_network(0))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SiTError, match=r"c\.pth: "):
        read_checkpoint(str(path), num_attention_heads=3)


@pytest.mark.parametrize("contents", [3, [torch.zeros(1)], {}, {"model": 3}, {"a": torch.zeros(1), "b": "text"}])
def test_no_dict_of_weights(tmp_path, contents):
    path = tmp_path / "w.pth"
    torch.save(contents, path)
    with pytest.raises(SiTError, match=r"w\.pth: .*no dict of weights"):
        read_checkpoint(str(path))


def test_weights_of_something_else_are_named(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({f"layer1.{number}.conv1.weight": torch.zeros(1) for number in range(3)}, path)
    with pytest.raises(SiTError, match=r"patch_embed\.proj\.weight.*layer1\.0-2\.conv1\.weight"):
        read_checkpoint(str(path))
