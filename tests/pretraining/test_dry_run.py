"""The dry run: its figures by hand, nothing is written, and what it says of the real run is true of the real run."""

import itertools
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from pretraining_runs import arguments_of, lines_of, weights_in

from modeling_sit.pretraining import dry_run
from modeling_sit.pretraining.dry_run import DryRun, describe_plan, measure_steps, num_dry_run_steps
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.run import pretrain as pretrain_images
from modeling_sit.pretraining.schedules import Schedules
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import MARK


def schedules_of(num_steps: int, batches_per_step: int = 1) -> Schedules:
    return Schedules(num_steps, 0, 100, batches_per_step, 1e-3, 1e-6, (0.05, 0.05))


class TestMeasure:
    @pytest.mark.parametrize(("num_steps", "measured"), [(1, 1), (2, 2), (7, 7), (8, 7), (10**6, 7)])
    def test_a_few_steps(self, num_steps, measured):
        assert num_dry_run_steps(schedules_of(num_steps)) == measured

    @pytest.mark.parametrize(("num_steps", "batches_per_step"), [(100, 1), (100, 3), (1, 2), (3, 1)])
    def test_trains_on_the_first_batches_in_their_order(self, num_steps, batches_per_step):
        schedules, seen = schedules_of(num_steps, batches_per_step), []
        batches = ({"crops": torch.tensor(number)} for number in itertools.count())
        measure_steps(
            batches, lambda crops, number: seen.append((int(crops), number)), schedules, Accelerator(cpu=True)
        )
        assert seen == [(number, number) for number in range(num_dry_run_steps(schedules) * batches_per_step)]
        assert int(next(batches)["crops"]) == len(seen)  # none was read for nothing

    def run_with_clock(self, monkeypatch, waits, works, batches_per_step=1) -> DryRun:
        """Measure steps with batches that take so many seconds to come, and to train on."""
        now = 100.0
        monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now)

        def batches():
            nonlocal now
            for wait in waits:
                now += wait
                yield {"crops": torch.zeros(1)}

        def train_on(crops, number):
            nonlocal now
            now += works[number]

        schedules = schedules_of(len(waits) // batches_per_step, batches_per_step)
        return measure_steps(batches(), train_on, schedules, Accelerator(cpu=True))

    def test_median_after_the_warmup(self, monkeypatch):
        done = self.run_with_clock(monkeypatch, [50, 50, 1, 2, 3, 4, 30], [90, 90, 10, 10, 10, 10, 500])
        assert (done.seconds_per_step, done.waited) == (pytest.approx(13), pytest.approx(3))

    def test_batches_of_a_step_add_up(self, monkeypatch):
        done = self.run_with_clock(monkeypatch, [1] * 14, [3, 5] * 7, batches_per_step=2)
        assert (done.seconds_per_step, done.waited) == (pytest.approx(10), pytest.approx(2))

    @pytest.mark.parametrize("num_steps", [1, 2])
    def test_a_run_as_short_as_the_warmup(self, monkeypatch, num_steps):
        done = self.run_with_clock(monkeypatch, [1] * num_steps, [3] * num_steps)
        assert (done.seconds_per_step, done.waited) == (pytest.approx(4), pytest.approx(1))

    def test_memory_is_in_bytes(self):
        done = measure_steps(
            iter([{"crops": torch.zeros(1)}]), lambda crops, number: None, schedules_of(1), Accelerator(cpu=True)
        )
        assert 50e6 < done.peak_memory < 50e9  # of a process that has imported PyTorch


class TestPlan:
    @pytest.fixture
    def plan(self, tiny_config, create_sit, flags_of, tmp_path):
        """The plan's lines, of a run of 1,000 steps of 8 images that take 2 seconds, half a second of it waiting."""

        def plan(num_steps=1000, has_teacher=True, config=None, frozen=False, **arguments):
            method = create_sit(tiny_config(use_teacher=has_teacher, **(config or {})))
            if frozen:
                method.student.requires_grad_(False)
            settings = {"output_dir": tmp_path / "out", "per_device_train_batch_size": 8, **arguments}
            flags = flags_of(**settings)
            run = SimpleNamespace(
                method=method,
                schedules=schedules_of(num_steps, batches_per_step=3),
                flags=flags,
                accelerator=Accelerator(cpu=True),
                monitors=SimpleNamespace(chosen=["rankme"]),
                data=SimpleNamespace(is_streamed=False),
                output_dir=Path(flags.run.output_dir),
            )
            return describe_plan(DryRun(2.0, 0.5, 300_000_000), run).splitlines(), method.student

        return plan

    def test_says_that_the_run_keeps_decoded_images(self, plan):
        """Where it has three epochs or more."""
        speeds = [
            next(line for line in plan(num_steps=num_steps, **arguments)[0] if "in all about" in line)
            for num_steps, arguments in ((1000, {}), (1000, {"image_cache": "none"}), (1, {}))
        ]
        assert ["decodes it once" in line for line in speeds] == [True, False, False]

    def test_parts_are_all_there_is(self, plan):
        lines, student = plan(config={"rotation_weight": 1.0, "hidden_size": 320, "decoder_hidden_size": 2048})
        whole, parts = re.fullmatch(r"parameters: ([\d.]+) M \((.*)\); the teacher has as many", lines[0]).groups()
        assert float(whole) == pytest.approx(sum(p.numel() for p in student.parameters()) / 1e6, abs=0.005)
        figures = [float(figure) for figure in re.findall(r"([\d.]+) M", parts)]
        assert len(figures) == 4 and sum(figures) == pytest.approx(float(whole), abs=0.03)

    def test_a_method_may_export_the_backbone_alone(self, plan, monkeypatch):
        monkeypatch.setattr(SiT, "exported", lambda self, export: self.student.vit)
        lines, student = plan()
        num_bytes = 4 * sum(parameter.numel() for parameter in student.vit.parameters())
        assert size("\n".join(lines), r"model\.safetensors \(SIZE\)") == pytest.approx(num_bytes, rel=0.005)

    def test_speed_and_time(self, plan):
        lines, _ = plan()
        (speed,) = (line for line in lines if line.startswith("speed"))
        assert speed.startswith("speed: 2 s a step, 12.0 images/s, data wait 25%")
        (steps,) = (line for line in lines if line.startswith("steps"))
        assert steps.startswith("steps: 1,000, in all about 33.3 minutes")

    @pytest.mark.parametrize(
        ("num_steps", "duration"), [(20, "40 seconds"), (29, "58 seconds"), (60, "2.0 minutes"), (10**5, "55.6 hours")]
    )
    def test_time_in_its_unit(self, plan, num_steps, duration):
        assert any(f"in all about {duration}," in line for line in plan(num_steps)[0])

    def test_memory(self, plan):
        lines, student = plan(config={"projection_hidden_size": 300})
        weights = sum(parameter.numel() for parameter in student.parameters())
        (memory,) = (line for line in lines if line.startswith("memory"))
        kilobytes = 4 * weights / 1000
        assert 100 < kilobytes < 1000
        assert "peak of this process 300MB" in memory
        expected = f"networks {2 * kilobytes:.0f}kB, gradients {kilobytes:.0f}kB, optimizer {2 * kilobytes:.0f}kB"
        assert expected in memory

    def test_what_is_frozen_has_neither_gradients_nor_moments(self, plan):
        lines, _ = plan(has_teacher=False, frozen=True)
        assert any("gradients 0.00B, optimizer 0.00B" in line for line in lines)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"checkpointing_steps": "no"}, "checkpoints/: none"),
            ({"checkpointing_steps": "epoch"}, "checkpoints/: every epoch and at the end"),
            ({"checkpointing_steps": "2000"}, "checkpoints/: every 2,000 steps and at the end"),
            ({"checkpoints_total_limit": 0}, "each, all of them kept"),
            ({"checkpoints_total_limit": 3}, "each, the newest 3 kept"),
            ({"logging_steps": 300}, "metrics.jsonl: 4 lines"),
            ({"logging_steps": 250}, "metrics.jsonl: 4 lines"),
            ({"preview_steps": 0}, "previews/: none"),
            ({"preview_steps": 300}, "previews/: 4 images"),
            ({}, "previews/: 10 images"),
            ({"report_to": ["tensorboard"]}, "logs/"),
            ({"export_steps": 300}, "exports/: 3 models"),
            ({}, "monitors.jsonl: 10 lines"),
            ({"monitor_steps": 300}, "monitors.jsonl: 4 lines"),
        ],
    )
    def test_what_would_be_written(self, plan, arguments, said):
        assert any(said in line for line in plan(**arguments)[0])

    def test_no_previews_without_a_reconstruction(self, plan):
        assert any("previews/: none" in line for line in plan(config={"reconstruction_weight": 0.0})[0])

    def test_where(self, plan, tmp_path):
        def where(folder):
            lines, _ = plan(output_dir=str(folder))
            (line,) = (line for line in lines if line.startswith("would write to"))
            return line.removeprefix(f"would write to {folder}").removesuffix(":")

        assert where(tmp_path / "a" / "b") == "" == where(tmp_path)
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        assert where(tmp_path) == " (which holds a run already)"

    @pytest.mark.parametrize(
        ("num_bytes", "text"), [(0, "0.00B"), (999, "999B"), (1500, "1.50kB"), (86_900_000, "86.9MB"), (5e9, "5.00GB")]
    )
    def test_sizes(self, num_bytes, text):
        assert dry_run._size(num_bytes) == text


MODEL = {"hidden_size": 16, "decoder_hidden_size": 64, "projection_hidden_size": 256, "projection_size": 32}


def dry_arguments(folder: Path, **arguments) -> dict:
    arguments = {"logging_steps": 2, "preview_steps": 2, "checkpointing_steps": 2, "monitor_steps": None, **arguments}
    arguments = {"monitor_images": 100, **arguments}
    return arguments_of(folder, overrides=MODEL, max_steps=5, **arguments)


@pytest.fixture
def run_for_real(forget_accelerators):
    def run(folder: Path, **arguments) -> Path:
        forget_accelerators()
        return pretrain_images(**dry_arguments(folder, **arguments)).output_dir

    return run


@pytest.fixture
def run_dry(run_for_real, tmp_path, capsys):
    """A dry run; gives what it says."""

    def run(**arguments) -> str:
        capsys.readouterr()
        run_for_real(tmp_path / "out", dry_run=True, **arguments)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def place_of_finished(tmp_path_factory):
    """Where the first test that needs it makes a run."""
    return tmp_path_factory.mktemp("finished") / "out"


@pytest.fixture
def finished(place_of_finished, run_for_real) -> Path:
    """The folder of a run that is done. It stays as it is: tests work on copies."""
    return place_of_finished if place_of_finished.exists() else run_for_real(place_of_finished)


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size(text: str, pattern: str) -> float:
    """A size such as `1.50kB` where the pattern's `SIZE` is, in bytes."""
    number, unit = re.search(pattern.replace("SIZE", r"([\d.]+)(B|kB|MB|GB)"), text).groups()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


class TestWholeRun:
    @pytest.mark.parametrize("arguments", [{}, {"resume_from_checkpoint": "auto"}, {"overwrite_output_dir": True}])
    def test_nothing_is_written(self, run_dry, tmp_path, monkeypatch, arguments):
        monkeypatch.chdir(tmp_path)
        assert "dry run: nothing was written" in run_dry(dataloader_num_workers=1, **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_a_run_that_is_there_stays_as_it_is(self, run_dry, finished, tmp_path):
        shutil.copytree(finished, tmp_path / "out")
        before = all_files(tmp_path)
        for arguments in ({"overwrite_output_dir": True}, {"resume_from_checkpoint": "auto"}):
            assert "(which holds a run already)" in run_dry(**arguments)
        assert all_files(tmp_path) == before

    @pytest.mark.parametrize(
        ("arguments", "argument", "fact"),
        [
            ({}, "output_dir", "holds a run already"),
            ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint", "nowhere"),
            ({"resume_from_checkpoint": "auto", "seed": 7}, "resume_from_checkpoint", "seed: 7"),
        ],
    )
    def test_what_the_folder_forbids_is_said(self, run_for_real, finished, tmp_path, arguments, argument, fact):
        """As the real run would, and with nothing touched."""
        shutil.copytree(finished, tmp_path / "out")
        before = all_files(tmp_path)
        with pytest.raises(SiTError, match=fact) as error:
            run_for_real(tmp_path / "out", dry_run=True, **arguments)
        assert error.value.argument == argument
        assert all_files(tmp_path) == before

    def test_folder_that_cannot_be_written(self, run_for_real, tmp_path):
        (tmp_path / "file").write_text("")
        for folder in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(SiTError, match="cannot be written"):
                run_for_real(folder, dry_run=True)

    def test_trackers_are_not_started(self, run_dry, tmp_path):
        pytest.importorskip("tensorboard")
        run_dry(report_to="tensorboard")
        assert list(tmp_path.iterdir()) == []

    def test_figures_are_those_of_the_real_run(self, run_dry, finished):
        plan, folder = run_dry(), finished

        # Parameters, counted in the file: all but the running statistics of batch norm.
        counts = {}
        for name, value in weights_in(folder).items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                part = name.partition(".")[0].replace("_", " ")
                counts[part] = counts.get(part, 0) + value.numel()
        total = sum(counts.values())
        assert f"parameters: {total / 1e6:.2f} M" in plan
        for part, count in counts.items():
            assert f"{part} {count / 1e6:.2f} M" in plan

        # Sizes: what the file formats add to the numbers is a few kilobytes.
        model_bytes = (folder / "model.safetensors").stat().st_size
        assert size(plan, r"model\.safetensors \(SIZE\)") == pytest.approx(4 * total, rel=0.005)
        assert model_bytes == pytest.approx(4 * total, abs=12_000)
        checkpoint = folder / "checkpoints" / "step-00000005"
        checkpoint_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
        assert size(plan, r"and at the end, SIZE each") == pytest.approx(16 * total, rel=0.005)
        assert checkpoint_bytes == pytest.approx(16 * total, abs=100_000)
        moments = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].values()
        moments_bytes = sum(4 * state[name].numel() for state in moments for name in ("exp_avg", "exp_avg_sq"))
        assert size(plan, r"optimizer SIZE") == pytest.approx(moments_bytes, rel=0.005)

        # Files: as many lines, images and steps as it said, and nothing that it did not name.
        assert "steps: 5," in plan and len(list((folder / "checkpoints").iterdir())) == 2
        assert "the newest 2 kept" in plan
        lines = lines_of(folder)
        assert f"metrics.jsonl: {len(lines)} lines" in plan and [line["step"] for line in lines] == [2, 4, 5]
        assert f"previews/: {len(list((folder / 'previews').iterdir()))} images" in plan
        assert f"monitors.jsonl: {len(lines_of(folder, 'monitors.jsonl'))} lines" in plan
        named = plan.partition("would write to")[2]
        assert all(path.name in named or path.suffix == ".py" or path.name == MARK for path in folder.iterdir())

    def test_without_a_teacher(self, run_dry):
        plan = run_dry(contrastive_weight=0)
        assert "the teacher has as many" not in plan
        assert size(plan, r"networks SIZE") == pytest.approx(size(plan, r"model\.safetensors \(SIZE\)"))

    def test_speed_is_shown(self, run_dry):
        plan = run_dry(gradient_accumulation_steps=2)
        seconds, images = map(float, re.search(r"speed: (\S+) s a step, ([\d.]+) images/s", plan).groups())
        assert 0 < seconds < 60 and images == pytest.approx(2 * 8 / seconds, rel=0.02)
        assert 1e8 < size(plan, r"peak of this process SIZE") < 1e11

    def test_mistakes_are_found(self, run_for_real, tmp_path):
        """What the real run would refuse before its first step, the dry run refuses."""
        with pytest.raises(SiTError, match="`per_device_train_batch_size`"):
            run_for_real(tmp_path / "out", dry_run=True, per_device_train_batch_size=2000)
        assert list(tmp_path.iterdir()) == []
