"""Where PyTorch's compiler cannot work: its cache is told from a compiler that is not there."""

import errno
import os

import pytest
import torch

from modeling_sit.runtime.compiler import check_compiler
from modeling_sit.runtime.errors import SiTError

CPU = torch.device("cpu")


def failing(monkeypatch, problem: Exception) -> SiTError:
    def compile(*arguments, **options):
        def call(*inputs):
            raise problem

        return call

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(SiTError) as error:
        check_compiler(CPU)
    assert error.value.argument == "torch_compile"
    return error.value


def wrapped(inner: Exception) -> RuntimeError:
    """As inductor wraps what is raised in it."""
    problem = RuntimeError(f"{type(inner).__name__}: {inner}\n\nSet TORCHDYNAMO_VERBOSE=1 for ...")
    problem.inner_exception = inner
    return problem


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("wrap", [wrapped, lambda inner: inner])
def test_a_cache_that_cannot_be_written(monkeypatch, code, wrap):
    error = failing(monkeypatch, wrap(OSError(code, os.strerror(code), "/the/cache")))
    assert "/the/cache" in error.problem and os.strerror(code) in error.problem
    assert "TORCHINDUCTOR_CACHE_DIR" in error.remedy


@pytest.mark.parametrize(
    "inner", [RuntimeError("No working C++ compiler found"), FileNotFoundError(2, "No such file", "g++")]
)
def test_no_compiler(monkeypatch, inner):
    error = failing(monkeypatch, wrapped(inner))
    assert "g++" in error.remedy and "TORCHINDUCTOR_CACHE_DIR" not in error.remedy
