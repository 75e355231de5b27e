"""scripts/benchmarks/evaluation_memory.py: it runs, says what it measured, and memory stays within a few chunks of the features."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "scripts" / "benchmarks" / "evaluation_memory.py"


@pytest.mark.parametrize("flags", [["--num_train", "0"], ["--protocols", "knn,knm"], ["--hidden", "3"]])
def test_mistakes_end_with_code_2(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2 and flags[0] in capsys.readouterr().err


def test_features_are_clusters():
    program = runpy.run_path(str(SCRIPT))
    made = program["clustered_features"](90_000, 4, 3, noise=0.5, seed=1)  # more than one chunk
    centres = torch.stack([made.features[made.labels == label].mean(dim=0) for label in range(3)])
    spread = (made.features - centres[made.labels]).std(dim=0)
    torch.testing.assert_close(spread, torch.full((4,), 0.5), atol=0.02, rtol=0)
    other = program["clustered_features"](30, 4, 3, noise=0.0, seed=2)
    torch.testing.assert_close(other.features[:3], centres, atol=0.02, rtol=0)  # the same centres, whatever the seed


def test_a_measurement_says_what_came_out():
    result = runpy.run_path(str(SCRIPT))["measure"]("knn", 200, 50, 8, 4)
    assert 0 < result["start_megabytes"] <= result["peak_megabytes"] and result["seconds"] > 0
    assert result["features_megabytes"] == 250 * 8 * 4 / 1024**2
    assert 0.25 < result["metrics"]["accuracy"] <= 1 and result["settings"]["k"] == 20


@pytest.mark.slow
def test_protocols_make_no_copy_of_the_features(tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--num_train", 150_000, "--num_validation", 500, "--hidden_size", 768, "--num_classes", 10]
    command = [sys.executable, SCRIPT, *map(str, flags), "--protocols", "knn,retrieval", "--output", output]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert [each["protocol"] for each in report["results"]] == ["knn", "retrieval"]
    for each in report["results"]:
        # 440 MB of features. A block of similarities, 128 MB in retrieval, and chunks of the features are all that is added.
        assert each["peak_megabytes"] - each["start_megabytes"] < each["features_megabytes"]
        assert each["protocol"] in result.stdout
