"""scripts/benchmarks/streaming_memory.py: it runs, says what it measured, and memory does not grow with the data."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "streaming_memory.py"


@pytest.mark.parametrize("flags", [["--images", "0"], ["--form", "zip"], ["--image", "3"]])
def test_mistakes_end_with_code_2(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2 and flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_a_pass_over_what_it_writes(tmp_path, form):
    program = runpy.run_path(str(SCRIPT))
    program["write_shards"](tmp_path, form, 20, 8, program["encoded_image"](4))
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.stat().st_size > 4 * 1024 * 4 for path in tmp_path.iterdir())
    result = program["stream_once"](tmp_path, 20, batch_size=4, shuffle_buffer_size=8, num_workers=0)
    assert result["images"] == 20 and 0 < result["start_megabytes"] <= result["peak_megabytes"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_memory_stays_flat(tmp_path, form):
    output = tmp_path / "figures.json"
    flags = ["--images", 2048, "--factor", 10, "--form", form, "--images_per_shard", 256, "--folder", tmp_path]
    command = [sys.executable, SCRIPT, *map(str, flags), "--output", output]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    small, large = report["results"]
    assert (small["images"], large["images"]) == (2048, 20480)
    assert report["ratio"] == large["peak_megabytes"] / small["peak_megabytes"]
    # 600 MB of images, of which two blocks of 30 MB and a little of eight shards are in memory at a time.
    assert large["peak_megabytes"] - small["peak_megabytes"] < 60
    assert large["peak_megabytes"] - large["start_megabytes"] < 450
    assert result.stdout.splitlines()[-1].endswith(f"{report['ratio']:.3f}")
    assert list(tmp_path.iterdir()) == [output]  # the sets are deleted
