"""scripts/benchmarks/method_steps.py: it runs, and says what it measured."""

import json
import statistics

import pytest
import torch

PROGRAM = "benchmarks/method_steps"


def test_it_prints_and_writes_what_it_measured(run_program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    output = tmp_path / "new" / "figures.json"
    flags = ["--methods", "mae", "--batch_size", 4, "--image_size", 32, "--steps", 2, "--output", output]
    assert run_program(PROGRAM, *flags) == 0
    base, mae = json.loads(output.read_text())["results"]
    assert (base["method"], mae["method"]) == ("sit", "mae") and base["ratio"] == 1
    ratios = [own / other for own, other in zip(mae["seconds"], base["seconds"], strict=True)]
    assert mae["ratio"] == pytest.approx(statistics.median(ratios))
    assert 0 < mae["kept_megabytes"] < base["kept_megabytes"]
    assert base["encoder_tokens"] == 2 * (1 + (32 // 4) ** 2) * 4
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1].startswith("| mae |") and f"| {mae['ratio']:.2f} |" in rows[-1]
