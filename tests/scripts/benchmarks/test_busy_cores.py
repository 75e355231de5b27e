"""scripts/benchmarks/busy_cores.py: it trains in processes that wait as asked, beside programs that end with it."""

import json
import statistics
import subprocess
from types import SimpleNamespace

import psutil
import pytest

PROGRAM = "benchmarks/busy_cores"


def busy_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "while True: pass" in child.cmdline()]


def test_it_prints_and_writes_what_it_measured(run_program, load_program, tmp_path, monkeypatch, capsys):
    seen = []

    def run(command, *, env, **settings):
        # Its words to itself, and the wait that it asked for; the time of a real process would say nothing here.
        seen.append((env["GOMP_SPINCOUNT"], "OMP_WAIT_POLICY" in env, len(busy_children())))
        assert command[-1] == "--here"
        return subprocess.CompletedProcess(command, 0, stdout=f"made up\n{len(seen)}\n")

    module = load_program(PROGRAM)
    replaced = SimpleNamespace(run=run, Popen=subprocess.Popen, PIPE=subprocess.PIPE)
    monkeypatch.setattr(module, "subprocess", replaced)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    output = tmp_path / "new" / "figures.json"
    assert run_program(PROGRAM, "--runs", 3, "--busy", 2, "--output", output) == 0
    assert seen == [(spins, False, busy) for busy in (0, 2) for _ in range(3) for spins in ("300000", "1000")]
    assert busy_children() == []
    idle, busy = json.loads(output.read_text())["results"]
    assert (idle["busy"], busy["busy"]) == (0, 2)
    assert [list(each.values()) for each in busy["images_per_second"]] == [[7, 8], [9, 10], [11, 12]]
    assert busy["ratio"] == pytest.approx(statistics.median([8 / 7, 10 / 9, 12 / 11]))
    assert capsys.readouterr().out.splitlines()[-1].split() == ["busy", "programs:", "2", "9.0", "10.0", "1.11"]


def test_a_run_of_one_process(run_program, capsys):
    assert run_program(PROGRAM, "--batch_size", 4, "--seconds", 1, "--here") == 0
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0


@pytest.mark.parametrize("flags", [["--seconds", 0], ["--batch_size", 257], ["--recipe", "imagenet1k"]])
def test_mistakes_end_with_code_2(run_program, capsys, flags):
    assert run_program(PROGRAM, *flags) == 2
    assert flags[0] in capsys.readouterr().err
