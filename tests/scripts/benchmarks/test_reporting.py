"""scripts/benchmarks/reporting.py: what every benchmark writes, and the numbers that it takes."""

import json
import platform
import subprocess

import pytest
import torch

PROGRAM = "benchmarks/reporting"


def test_a_report_names_its_machine(load_program, tmp_path):
    path = tmp_path / "new" / "figures.json"
    load_program(PROGRAM).write_report(path, batch_size=3, results=[1.5])
    report = json.loads(path.read_text())
    assert (report["batch_size"], report["results"]) == (3, [1.5])
    assert (report["threads"], report["torch"]) == (torch.get_num_threads(), torch.__version__)
    assert report["processor"] == load_program(PROGRAM).processor_name()


@pytest.mark.skipif(platform.system() != "Linux", reason="lscpu is a program of Linux")
def test_the_processor_has_the_name_that_lscpu_gives(load_program):
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        pytest.skip("lscpu is not installed")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model name")]
    if not names:
        pytest.skip("lscpu has no name for this processor")
    assert load_program(PROGRAM).processor_name() in names


def test_nothing_is_written_without_a_path(load_program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_program(PROGRAM).write_report(None, results=[])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_a_number_below_one_is_refused(load_program, text):
    with pytest.raises((ValueError, load_program(PROGRAM).argparse.ArgumentTypeError)):
        load_program(PROGRAM).positive(text)
    assert load_program(PROGRAM).positive("1") == 1
