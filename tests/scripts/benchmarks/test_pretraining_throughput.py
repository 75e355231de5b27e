"""scripts/benchmarks/pretraining_throughput.py: it runs, and what it tells and writes is what it measured."""

import json
import statistics

import PIL.Image
import pytest
import torch
from throughput import measuring, ours
from throughput.arguments import ThroughputArguments
from throughput.scenarios import create_scenarios, create_sweeps

PROGRAM = "benchmarks/pretraining_throughput"


def test_the_smoke_profile_measures_all(run_program, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_program(PROGRAM, "--profile", "smoke", "--steps", 1, "--output", "new/figures.json") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # runs leave nothing behind
    report = json.loads((tmp_path / "new" / "figures.json").read_text())
    said = capsys.readouterr().out

    assert report["stopped"] is None and report["flags"]["profile"] == "smoke"
    assert PROGRAM in report["command"] and report["seconds"] > 0
    machine = report["machine"]
    assert machine["device"] == "cpu" and machine["threads"] > 0 and machine["cores"] > 0
    assert {"torch", "transformers", "torchvision"} <= set(machine["versions"])
    assert report["matrix_rates"]["no"] > 1e8
    (scenario,) = report["scenarios"]
    check_figures(scenario["contenders"], report["matrix_rates"]["no"])
    check_stages([contender for contender in scenario["contenders"] if contender["kind"] == "files"])
    check_table(scenario["contenders"], said)
    for reading in scenario["reading"]:
        assert reading["images"] == 16 and len(reading["epoch_seconds"]) == 2
        assert min(reading["epoch_seconds"]) > 0 and reading["prepare_seconds"] > 0
    assert "| none |" in said


def check_figures(contenders: list[dict], matrix_rate: float) -> None:
    by_kind = {contender["kind"]: contender for contender in contenders}
    assert set(by_kind) == {"files", "synthetic", "bare", "plain", "mae", "mim"}
    for contender in contenders:
        assert contender["views"] == (1 if contender["kind"] in ("mae", "mim") else 2)
        runs = contender["runs"]
        assert [run["images"] for run in runs] == [4, 4]
        speeds = [run["images"] / run["seconds"] for run in runs]
        assert contender["images_per_second"] == pytest.approx(statistics.median(speeds))
        assert all(0 <= run["waited"] < run["seconds"] for run in runs)
        rate = contender["images_per_second"] * contender["flops_per_image"] / matrix_rate
        assert 0 < contender["utilization"] == pytest.approx(rate)
        for name, kind in (("times_plain", "plain"), ("times_bare", "bare")):
            ratio = contender["images_per_second"] / by_kind[kind]["images_per_second"]
            assert contender[name] == pytest.approx(ratio)
    # What reads from files waits for it, what does not does not.
    assert by_kind["plain"]["data_wait"] > 0.05
    assert max(by_kind[kind]["data_wait"] for kind in ("synthetic", "bare")) < 0.05
    # Contenders that share their networks with the first do not tell what they take.
    assert {kind for kind in by_kind if by_kind[kind]["peak_memory_bytes"] is None} <= {"synthetic", "bare"}


def check_stages(contenders: list[dict]) -> None:
    """They are all there, and add up to the step."""
    assert contenders
    for contender in contenders:
        for step in contender["stage_steps"]:
            assert 0 < sum(seconds for name, seconds in step.items() if name != "total") <= step["total"]
        stages = contender["stages"]
        total = stages.pop("total")
        assert set(stages) == {
            "decode and crop",
            "copy",
            "views",
            "corruption",
            "teacher forward",
            "student forward",
            "backward",
            "clip and optimizer",
            "teacher update",
            "other",
        }
        assert min(stages.values()) > 0
        assert sum(stages.values()) == pytest.approx(total, rel=0.05)
        assert stages["other"] < 0.5 * total


def check_table(contenders: list[dict], said: str) -> None:
    lines = said.splitlines()
    for contender in contenders:
        row = next(line for line in lines if line.startswith(f"| {contender['name']} | {contender['views']} |"))
        assert f"| {contender['images_per_second']:,.4g} (" in row
        assert f"| {contender['times_plain']:.2f} | {contender['times_bare']:.2f} |" in row
        assert row.count("|") == 10


def test_a_sweep_draws_curves(run_program, tmp_path, capsys):
    flags = ["--profile", "smoke", "--sweep", "image_size", "--runs", 1, "--steps", 1, "--num_images", 4]
    assert run_program(PROGRAM, *flags, "--output", tmp_path / "figures.json") == 0
    (sweep,) = json.loads((tmp_path / "figures.json").read_text())["sweeps"]
    small, large = sweep["points"]
    assert (small["x"], large["x"]) == (1, 4)  # patches of 16 x 16 in views of 16 and 32
    for point, contender in zip(sweep["points"], sweep["contenders"], strict=True):
        assert point["y"] == pytest.approx(1 / contender["images_per_second"])
    assert large["flops_per_image"] > 1.5 * small["flops_per_image"]
    assert small["arithmetic"] == pytest.approx(small["y"])
    assert sweep["growth"] in capsys.readouterr().out and "from 1 to 4" in sweep["growth"]
    with PIL.Image.open(tmp_path / "figures.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(100_000)) > 50


def test_ctrl_c_tells_what_there_is(run_program, tmp_path, monkeypatch, capsys):
    time_run, runs = measuring.time_run, []

    def interrupted(contender, device, length):
        if length.steps == 1 and runs:
            raise KeyboardInterrupt
        runs.append(contender.name)
        return time_run(contender, device, length)

    monkeypatch.setattr(measuring, "time_run", interrupted)
    flags = ["--profile", "smoke", "--contenders", "synthetic", "bare", "--steps", 1, "--num_images", 4]
    assert run_program(PROGRAM, *flags, "--output", tmp_path / "figures.json") == 130
    told = capsys.readouterr()
    report = json.loads((tmp_path / "figures.json").read_text())
    synthetic, bare = report["scenarios"][0]["contenders"]
    assert len(synthetic["runs"]) == 1 and "runs" not in bare
    assert report["stopped"] == "interrupted"
    assert "bare arithmetic | 2 | not measured |" in told.out and "not all was measured" in told.out
    assert "Traceback" not in told.err


def test_time_is_up(run_program, tmp_path, capsys):
    output = tmp_path / "figures.json"
    flags = ["--profile", "smoke", "--contenders", "bare", "--num_images", 4, "--time_limit", 1e-6]
    assert run_program(PROGRAM, *flags, "--output", output) == 0
    assert "time limit" in json.loads(output.read_text())["stopped"]
    assert "not all was measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, code, named",
    [
        (["--runs", 0], 2, "--runs"),
        (["--contenders", "files,theirs"], 2, "--contenders theirs"),
        (["--profil", "cpu"], 2, "--profil"),
        (["--sweep", "depth"], 2, "--sweep depth"),
        (["--sweep", "batch"], 1, "--figure"),
        (["--figure", "curves.png"], 1, "--sweep"),
        (["--scenarios", "none"], 1, "--scenarios none: --profile smoke has smoke"),
        (["--dataset", "nowhere/at/all"], 1, "nowhere/at/all"),
    ],
)
def test_mistakes_are_told_in_one_line(one_line_error, flags, code, named):
    assert named in one_line_error(PROGRAM, "--profile", "smoke", "--num_images", 4, *flags, code=code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_profile_asks_for_a_gpu(one_line_error):
    assert "CUDA" in one_line_error(PROGRAM, "--profile", "gpu")


@pytest.mark.parametrize("profile", ["cpu", "gpu", "smoke"])
def test_all_flags_of_the_profiles_are_those_of_the_program(profile, capsys):
    """What a profile asks of `modeling-sit pretrain` is understood there, also where this machine cannot run it."""
    arguments = ThroughputArguments(profile=profile, sweep=["all"])
    sweeps = create_sweeps(arguments)
    for scenario in [*create_scenarios(arguments), *(sweep.scenario for sweep in sweeps)]:
        assert len({entry.name for entry in scenario.entries}) == len(scenario.entries)
        for entry in scenario.entries:
            flags = ours.parse_flags(dataset="digits", output_dir="runs", **{**scenario.flags, **entry.flags})
            assert flags.run.per_device_train_batch_size > 1
    for sweep in sweeps:
        assert len(sweep.sizes) == len(sweep.scenario.entries) > 1


@pytest.mark.parametrize(
    "profile, rates, precision",
    [
        ("cpu", {torch.float32: 1.0, torch.bfloat16: 2.0}, "bf16"),
        ("cpu", {torch.float32: 1.0, torch.bfloat16: 1.1}, "no"),
        ("smoke", {torch.float32: 1.0, torch.bfloat16: 2.0}, "no"),
        ("gpu", {}, "bf16"),
    ],
)
def test_precision_is_the_one_that_pays(load_program, monkeypatch, profile, rates, precision):
    program = load_program(PROGRAM)
    monkeypatch.setattr(program, "matrix_rate", lambda device, dtype: rates[dtype])
    assert program.choose_precision(ThroughputArguments(profile=profile)) == precision


def test_flags_that_the_program_does_not_have_are_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        ours.parse_flags(dataset="digits", output_dir="runs", image_cash="none")
    assert end.value.code == 2 and "--image_cash" in capsys.readouterr().err


def test_help_names_every_flag(run_program, capsys):
    assert run_program(PROGRAM, "--help") == 0
    said = capsys.readouterr().out
    for name in ThroughputArguments.__dataclass_fields__:
        assert f"--{name}" in said
    assert "one view" in said
