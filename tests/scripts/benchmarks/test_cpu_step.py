"""scripts/benchmarks/cpu_step.py: it runs, says what it measured, and both take the same steps to rounding."""

import json
import statistics

import pytest
import torch

from modeling_sit.runtime import products

PROGRAM = "benchmarks/cpu_step"


def test_it_prints_and_writes_what_it_measured(run_program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(products, "onednn_pays", lambda: torch.backends.mkldnn.is_available())
    output = tmp_path / "new" / "figures.json"
    flags = ["--recipes", "digits", "--batch_size", 4, "--steps", 2, "--output", output]
    assert run_program(PROGRAM, *flags) == 0
    (result,) = json.loads(output.read_text())["results"]
    assert (result["recipe"], result["batch_size"]) == ("digits", 4)
    seconds, losses = result["seconds"], result["losses"]
    assert [len(seconds[name]) for name in ("fast", "plain")] == [2, 2]
    ratios = [plain / fast for fast, plain in zip(seconds["fast"], seconds["plain"], strict=True)]
    assert result["ratio"] == pytest.approx(statistics.median(ratios))
    assert losses["fast"] == pytest.approx(losses["plain"], rel=1e-4)
    if torch.backends.mkldnn.is_available():
        assert losses["fast"] != losses["plain"]  # by other kernels
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1].startswith("digits") and rows[-1].endswith(f"{result['ratio']:.2f}")


@pytest.mark.parametrize("flags", [["--steps", 0], ["--recipes", "imagenet1k"]])
def test_mistakes_end_with_code_2(run_program, capsys, flags):
    assert run_program(PROGRAM, *flags) == 2
    assert flags[0] in capsys.readouterr().err
