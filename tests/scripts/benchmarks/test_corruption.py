"""scripts/benchmarks/corruption.py: it runs, says what it measured, and its plain loop corrupts as it should."""

import importlib.util
import json
import runpy
import statistics
import sys
from pathlib import Path

import pytest
import torch

from modeling_sit import SiTImageProcessor

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "corruption.py"
CORRUPTIONS = ["noise", "zeros", "replace", "zeros+replace", "noise+replace"]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("corruption_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_and_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "figures.json"
    flags = ["--batch_size", "3", "--image_size", "24", "--runs", "2", "--threads", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()
    assert threads == [1]
    assert "3 images of 24 x 24 pixels" in rows[0]
    assert [row.split()[0] for row in rows[2:]] == CORRUPTIONS
    assert [row.split()[0] for row in rows if "(default)" in row] == ["noise+replace"]

    report = json.loads(output.read_text())
    assert (report["batch_size"], report["image_size"], report["runs"], report["threads"]) == (3, 24, 2, 1)
    assert [result["corruption"] for result in report["results"]] == CORRUPTIONS
    for result, row in zip(report["results"], rows[2:], strict=True):
        medians = [statistics.median(result[f"{name}_seconds"]) for name in ("plain", "corrupt")]
        assert all(len(result[f"{name}_seconds"]) == 2 for name in ("plain", "corrupt"))
        assert [result["plain_median_seconds"], result["corrupt_median_seconds"]] == medians
        assert result["ratio"] == pytest.approx(medians[0] / medians[1])
        assert row.split()[-1] == f"{result['ratio']:.1f}"


def test_figures_are_written_on_request_only(program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--batch_size", "2", "--image_size", "20", "--runs", "1"])
    program.main()
    assert capsys.readouterr().out.count("\n") == 7
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--runs", "0"], ["--batch_size", "-1"], ["--imagesize", "20"]])
def test_mistakes_end_with_code_2(program, monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_plain_loop_does_the_same_work(program, corruption):
    """Its shares are the processor's: a loop that stops early would flatter it, one that goes on us."""
    pixel_values = torch.randn(48, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    processor = SiTImageProcessor(corruption=corruption)
    corrupted, mask = program.plain_corrupt(pixel_values, processor, torch.Generator().manual_seed(1))
    _, expected = processor.corrupt(pixel_values, torch.Generator().manual_seed(1))
    outside = ~mask.expand_as(pixel_values)
    assert torch.equal(corrupted[outside], pixel_values[outside])
    assert (corrupted[~outside] != pixel_values[~outside]).float().mean() > 0.99
    assert mask.float().mean().item() == pytest.approx(expected.float().mean().item(), abs=0.08)
    assert mask.flatten(1).float().mean(1).min() >= (0.3 if "replace" in corruption else 0.5)
