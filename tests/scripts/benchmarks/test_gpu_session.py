"""scripts/benchmarks/gpu_session.py: parts with a time of their own, whatever becomes of the others, and a report in any case."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from session.packages import install_wheels, missing_packages, requirements_of
from session.parts import Part, limit_of, run_part
from session.report import describe_session

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "benchmarks" / "gpu_session.py"
FOREVER = "import time; time.sleep(100)"


@pytest.fixture
def session(load_program):
    return load_program("benchmarks/gpu_session")


def python(code: str, *, weight: float = 1, max_seconds: float = float("inf"), name: str = "part", read=None) -> Part:
    """A part that runs some code."""
    return Part(name, lambda seconds: [sys.executable, "-c", code], weight, max_seconds, read or (lambda: ({}, None)))


def run(part: Part, limit: float, tmp_path: Path):
    return run_part(part, limit, tmp_path / "part.log", {"cwd": tmp_path, "env": dict(os.environ)})


@pytest.fixture
def out_of_time(monkeypatch, tmp_path):
    """The time of a part is over as soon as it has said that it has begun, however long its process takes to start."""

    class Process(subprocess.Popen):
        is_over = False

        def wait(self, timeout=None):
            if self.is_over:
                return super().wait(timeout)
            self.is_over, log = True, tmp_path / "part.log"
            while "begun" not in log.read_text():
                assert self.poll() is None, log.read_text()
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Process)


def test_a_part_that_ends_well(tmp_path):
    part = python("print('hello')", read=lambda: ({"answer": 42}, None))
    result = run(part, 30, tmp_path)
    assert (result.status, result.reason, result.results, result.tail) == ("done", None, {"answer": 42}, [])
    assert (tmp_path / "part.log").read_text() == "hello\n" and 0 <= result.seconds < 30


@pytest.mark.parametrize(
    ("code", "read", "reason"),
    [
        ("print('because'); raise SystemExit(3)", lambda: ({}, None), "exit code 3"),
        ("print('because')", lambda: ({}, "nothing was measured"), "nothing was measured"),
        ("print('because')", lambda: json.loads("{"), "cannot be read: JSONDecodeError"),
        ("print('because')", lambda: Path("nowhere").read_text(), "cannot be read: FileNotFoundError"),
    ],
)
def test_a_part_that_fails_says_why(tmp_path, code, read, reason):
    result = run(python(code, read=read), 30, tmp_path)
    assert result.status == "failed" and reason in result.reason and result.tail == ["because"]


@pytest.mark.parametrize("of_session", [signal.default_int_handler, signal.SIG_IGN])
def test_a_part_that_is_too_slow_may_still_write_what_it_knows(tmp_path, out_of_time, of_session):
    """Also where the session ignores SIGINT, as in a shell's background."""
    code = """
import pathlib, time
try:
    print('begun', flush=True)
    time.sleep(100)
except KeyboardInterrupt:
    pathlib.Path('known').write_text('42')
"""
    part = python(code, read=lambda: ({"known": (tmp_path / "known").read_text()}, None))
    before = signal.signal(signal.SIGINT, of_session)
    try:
        result = run(part, 60, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.status == "out of time" and result.results == {"known": "42"} and result.tail == ["begun"]


def test_a_part_that_has_all_its_results_and_only_does_not_end_is_done(tmp_path):
    assert run(python(FOREVER, read=lambda: ({"finished": True}, None)), 0.5, tmp_path).status == "done"


def test_a_part_that_does_not_listen_is_killed_with_its_children(tmp_path, out_of_time):
    code = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path('child').write_text(str(subprocess.Popen([sys.executable, '-c', {FOREVER!r}]).pid))
print('begun', flush=True)
time.sleep(100)
"""
    started = time.monotonic()
    assert run(python(code), 1, tmp_path).status == "out of time"
    assert time.monotonic() - started < 60
    child = Path("/proc") / (tmp_path / "child").read_text()
    for _ in range(50):  # until the system has noticed
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_time_that_a_part_does_not_take_is_for_those_behind_it():
    tests, throughput, model = parts = [
        python("", weight=25, max_seconds=90),
        python("", weight=30),
        python("", weight=45),
    ]
    assert limit_of(tests, parts, 600) == 90  # a quarter would be 150
    assert limit_of(throughput, parts, 600 - 10) == pytest.approx(590 * 30 / 75)
    assert limit_of(model, parts, 300) == 300


def arguments_for(tmp_path: Path, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{"output_dir": tmp_path / "out", "profile": "smoke", "minutes": 0.5, **changes})


def test_one_failure_does_not_stop_the_others(session, tmp_path, monkeypatch, capsys):
    parts = [
        python("print('broken'); 1 / 0", name="tests"),
        python(FOREVER, name="throughput", max_seconds=2),
        Part("flowers12", list, 1, 10, dict, "no folder of images"),
        python("", name="cifar10", read=lambda: ({}, None)),
    ]
    monkeypatch.setattr(
        session, "look_at_machine", lambda *_: {"device": "CPU", "cores": 2, "versions": {"torch": "2"}}
    )
    code = session.run_session(arguments_for(tmp_path), parts, dict(os.environ), time.monotonic())
    assert code == 1
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    statuses = {part["name"]: part["status"] for part in report["parts"]}
    assert statuses == {"tests": "failed", "throughput": "out of time", "flowers12": "left out", "cifar10": "done"}
    text = (tmp_path / "out" / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert "| tests | failed: exit code 1" in text and "ZeroDivisionError: division by zero" in text
    assert "| flowers12 | left out: no folder of images | - | - |" in text
    assert {path.name for path in (tmp_path / "out" / "logs").iterdir()} == {f"{name}.log" for name in statuses} - {
        "flowers12.log"
    }


def test_the_whole_time_holds(session, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "look_at_machine", lambda *_: {"error": "nobody knows"})
    started = time.monotonic()
    parts = [python(FOREVER, name=name) for name in ("tests", "throughput", "flowers12", "cifar10")]
    assert session.run_session(arguments_for(tmp_path, minutes=0.03), parts, dict(os.environ), started) == 1
    assert time.monotonic() - started < 1.8 + 1
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {part["status"] for part in report["parts"]} <= {"out of time", "left out"} and len(report["parts"]) == 4


def test_a_session_that_is_stopped_reports_what_it_knows(session, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "look_at_machine", lambda *_: {"error": "nobody knows"})
    handler = signal.getsignal(signal.SIGTERM)
    stop = f"import os, signal, time; os.kill({os.getpid()}, signal.SIGTERM); time.sleep(100)"
    parts = [python("", name="tests"), python(stop, name="throughput"), python("", name="cifar10")]
    try:
        code = session.run_session(arguments_for(tmp_path), parts, dict(os.environ), time.monotonic())
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert code == 128 + signal.SIGTERM
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [part["status"] for part in report["parts"]] == ["done", "left out", "left out"]


def test_counts_of_tests(session, tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_skipped(): pass\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_broken(broken): pass\n"
    )
    path = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={path}", "-c", os.devnull]
    subprocess.run([*command, "test_three.py"], cwd=tmp_path, check=False, stdout=subprocess.DEVNULL)
    results, problem = session.read_tests(path, "gpu")
    assert problem is None
    assert (results["passed"], results["failed"], results["skipped"]) == (1, 2, 1)
    assert results["failures"] == ["test_three::test_bad", "test_three::test_broken"]
    path.write_text('<testsuites><testsuite tests="2" skipped="2" /></testsuites>')
    # All skipped is no success where there should be a GPU.
    assert session.read_tests(path, "gpu")[1] is not None and session.read_tests(path, "smoke")[1] is None


def test_requirements_of_the_package_are_met_here():
    requirements = requirements_of(ROOT / "setup.cfg", ["train"])
    assert "datasets>=5.2" in requirements and "torch>=2.11" in requirements
    assert missing_packages(requirements) == []


def test_all_that_is_missing_is_named_at_once():
    asked = ["torch", "no-such-package>=2", "numpy>=1000", "numpy<2000; python_version < '3'"]
    assert missing_packages(asked) == ["no-such-package>=2", "numpy>=1000"]


def test_needs_of_needs_are_looked_at(monkeypatch):
    def found(name):
        if name in ("dill", "datasets"):
            from importlib.metadata import PackageNotFoundError

            raise PackageNotFoundError(name)
        return distribution(name)

    monkeypatch.setattr("session.packages.distribution", found)
    missing = missing_packages(["evaluate", "torch"])
    assert [each.partition("<")[0].partition(">")[0] for each in missing] == ["datasets", "dill"]


def test_wheels_are_for_this_session_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    assert "no wheels" in install_wheels(wheels, tmp_path / "packages")
    write_wheel(wheels)
    assert missing_packages(["a-made-up-package>=1"])
    assert install_wheels(wheels, tmp_path / "packages") is None
    assert version("a-made-up-package") == "1.0" and missing_packages(["a-made-up-package>=1"]) == []
    (wheels / "b-1.0-py3-none-any.whl").write_text("no wheel")
    assert install_wheels(wheels, tmp_path / "packages")


def write_wheel(folder: Path) -> None:
    import zipfile

    info = "a_made_up_package-1.0.dist-info"
    with zipfile.ZipFile(folder / "a_made_up_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a_made_up_package.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: a-made-up-package\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_the_command_says_what_is_missing(session, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--output_dir", str(tmp_path), "--profile", "smoke"])
    monkeypatch.setattr(session, "missing_packages", lambda _: ["dill<1", "evaluate"])
    with pytest.raises(SystemExit) as end:
        session.main()
    assert "dill<1, evaluate" in end.value.code and "--wheels" in end.value.code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--minutes", "0"], "--minutes"),
        (["--flowers12", "nowhere/at/all"], "--flowers12 nowhere/at/all"),
        (["--wheels", "nowhere/at/all"], "--wheels nowhere/at/all"),
        (["--parts", "test"], "--parts"),
        (["--minute", "3"], "--minute"),
    ],
)
def test_mistakes(session, monkeypatch, tmp_path, capsys, flags, named):
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", "--output_dir", str(tmp_path), *flags])
    with pytest.raises(SystemExit) as end:
        session.main()
    assert end.value.code == 2 and named in capsys.readouterr().err


def test_the_plan_fits_the_time(session, monkeypatch, tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path / "out"), "--flowers12", str(tmp_path), "--dry_run"]
    monkeypatch.setattr(sys, "argv", ["gpu_session.py", *flags])
    session.main()
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].partition(",")[0] for line in said] == list(session.PARTS)
    assert "left out" in said[3] and "--cifar10" in said[3]
    limits = [int(line.split("at most ")[1].split(" ")[0]) for line in said[:3]]
    assert sum(limits) <= 600 and limits[0] <= 180 and limits[1] <= 240
    assert "test_gpu.py" in said[0] and "--profile gpu" in said[1] and f"--dataset {tmp_path}" in said[2]
    assert not (tmp_path / "out").exists()


def test_the_goal_of_throughput_is_looked_at():
    part = {"name": "throughput", "status": "done", "reason": None, "seconds": 1, "limit": 2, "tail": []}
    report = {"command": "c", "machine": {"error": "x"}, "seconds": 1, "minutes": 10, "parts": [part]}
    for images, told in ((4100.0, "reached"), (3900.0, "missed")):
        part["results"] = {"profile": "gpu", "scenarios": {}, "fastest": {"images_per_second": images}}
        assert f"{images:,.0f} images/s end to end: the goal of 4,000 is {told}" in describe_session(report)


@pytest.mark.slow
def test_the_smoke_profile(tmp_path):
    """All four parts in processes of their own, on digits."""
    flags = ["--profile", "smoke", "--output_dir", tmp_path / "out"]
    result = subprocess.run([sys.executable, SCRIPT, *map(str, flags)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    parts = {part["name"]: part for part in report["parts"]}
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(
        ("tests", "throughput", "flowers12", "cifar10"), "done"
    )
    assert (
        parts["tests"]["results"]["failed"] == 0
        and parts["tests"]["results"]["passed"] + parts["tests"]["results"]["skipped"] > 20
    )
    speeds = [each["images_per_second"] for each in parts["throughput"]["results"]["scenarios"]["smoke"]]
    assert len(speeds) == 4 and min(speeds) > 0
    for name in ("flowers12", "cifar10"):
        results = parts[name]["results"]
        assert results["training"]["steps"] == results["speed"]["max_steps"] > 5
        assert 0.2 < results["knn"]["accuracy"] <= 1 and 0.2 < results["linear"]["accuracy"] <= 1
        assert results["raw_knn"]["accuracy"] > 0.9
        assert parts[name]["seconds"] <= parts[name]["limit"]
    assert (tmp_path / "out" / "results.md").read_text() in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "results.md", "logs"}
