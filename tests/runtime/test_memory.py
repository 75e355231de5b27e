"""What a run says where memory is short."""

import platform
import subprocess
import sys

import pytest
import torch

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.memory import memory_errors


def allocate_on_the_cpu():
    torch.empty(2**50)  # 4 bytes each


def allocate_on_a_gpu():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB"
    )


@pytest.mark.parametrize("allocate, asked", [(allocate_on_the_cpu, "4,194,304.0 GiB"), (allocate_on_a_gpu, "2.5 GiB")])
def test_full_memory_is_one_line_with_a_remedy(allocate, asked):
    with pytest.raises(SiTError) as error, memory_errors("take less"):
        allocate()
    assert asked in error.value.problem and error.value.remedy == "take less"
    assert isinstance(error.value.__cause__, RuntimeError)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("take less"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_model_that_does_not_fit(one_line_error, tmp_path):
    flags = ["--method", "dino", "--num_prototypes", 10**13, "--max_steps", 1, "--output_dir", tmp_path / "out"]
    line = one_line_error("pretrain", "--dataset", "digits", *flags)
    assert "not enough memory" in line and "GiB" in line and not (tmp_path / "out").exists()


LIBRARY, VERSION = platform.libc_ver()


@pytest.mark.skipif(
    LIBRARY != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35),
    reason="needs glibc that keeps blocks of more than 32 MiB",
)
def test_freed_memory_is_kept():
    """The system clears a page at its first use, and counts that as a fault. By itself glibc never keeps blocks of this size."""
    program = """
import resource
import torch
from modeling_sit.runtime.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_freed_memory()
print(usual, faults())
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    usual, kept = map(int, output.split())
    assert usual > 20 * 2**13  # half of the blocks' pages, at least
    assert kept < usual / 5
