"""The folder of an experiment: claimed once, and nothing is run twice."""

import errno
from pathlib import Path

import pytest

from modeling_sit.evaluation.results import write_results
from modeling_sit.experiments.grid import claim_folder, results_of
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import mark_run


def put(folder, names) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def write_run(folder) -> None:
    """What runs of pretraining, fine-tuning and evaluation leave."""
    put(folder, ("model.safetensors", "config.json", "modeling_sit.py", "README.md", "loss_curve.png", "tuning.json"))
    put(folder, ("examples.png",))
    put(folder, ("metrics.jsonl", "previews/step-00000001.png", "logs/sit/events.out.tfevents.1", "training_args.bin"))
    put(folder, ("checkpoint-3/model.safetensors", "checkpoint-3/optimizer.pt", "runs/a/events.out.tfevents.1"))
    for name in ("checkpoint-3/trainer_state.json", "checkpoints/step-00000001/run_state.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    put(folder, ("checkpoints/step-00000001/teacher.safetensors",))
    write_results(folder, {"knn": {"accuracy": 1}})


class TestClaimFolder:
    def test_other_settings(self, tmp_path):
        claim_folder(tmp_path, {"recipe": {"a": 1}, "dataset": "d"}, ["run-*"])
        claim_folder(tmp_path, {"recipe": {"a": 2}, "dataset": "d"}, ["run-*"])  # no run yet
        (tmp_path / "run-0").mkdir()
        claim_folder(tmp_path, {"recipe": {"a": 2}, "dataset": "d"}, ["run-*"])
        with pytest.raises(SiTError, match="another recipe, another dataset") as error:
            claim_folder(tmp_path, {"recipe": {"a": 1}, "dataset": "e"}, ["run-*"])
        assert error.value.argument == "output_dir"

    def test_a_full_disk_costs_no_settings(self, tmp_path, monkeypatch):
        """Where the same command starts again before there is room."""
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        (tmp_path / "run-0").mkdir()

        def full(path, text, **arguments):
            path.write_bytes(b"")
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            with pytest.raises(SiTError, match="No space left"):
                claim_folder(tmp_path, {"a": 1}, ["run-*"])
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        with pytest.raises(SiTError, match="another a"):
            claim_folder(tmp_path, {"a": 2}, ["run-*"])

    def test_other_images_and_folders_of_before_they_were_noted(self, tmp_path):
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        (tmp_path / "run-0").mkdir()
        claim_folder(tmp_path, {"a": 1, "images": "x", "device": "cpu"}, ["run-*"])
        with pytest.raises(SiTError, match="another images"):
            claim_folder(tmp_path, {"a": 1, "images": "y", "device": "cpu"}, ["run-*"])

    def test_overwrites_runs_and_nothing_else(self, tmp_path):
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        for name in ("run-0", "pretrained"):
            (tmp_path / name).mkdir()
        claim_folder(tmp_path, {"a": 2}, ["run-*"], overwrite=True)
        assert not (tmp_path / "run-0").exists() and (tmp_path / "pretrained").exists()

    def test_overwriting_deletes_what_runs_wrote_and_nothing_else(self, tmp_path):
        claim_folder(tmp_path, {"a": 1}, ["run-*", "raw"])
        results_of(tmp_path / "run-0", ["knn"], lambda missing: write_run(tmp_path / "run-0"))
        results_of(tmp_path / "raw", ["knn"], lambda missing: write_run(tmp_path / "raw"))
        mine = (
            "run-mine/model.safetensors",
            "run-0/notes.txt",
            "run-0/checkpoint-3/notes.txt",
            "run-0/runs/notes.txt",
        )
        mine += ("run-0/checkpoint-best/model.safetensors", "run-0/logs/a.out", "run-0/previews/mine.png", "raw.txt")
        put(tmp_path, mine)
        claim_folder(tmp_path, {"a": 2}, ["run-*", "raw"], overwrite=True)
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert left == {*mine, "settings.json", ".modeling_sit_run"}
        assert all((tmp_path / name).read_text() == f"mine: {name}" for name in mine)
        results_of(tmp_path / "run-0", ["knn"], lambda missing: write_run(tmp_path / "run-0"))
        assert (tmp_path / "run-0" / "notes.txt").exists()

    def test_a_users_folder_of_such_a_name_is_no_run(self, tmp_path):
        put(tmp_path, ["run-mine/notes.txt", "run-file"])
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        claim_folder(tmp_path, {"a": 2}, ["run-*"])
        assert (tmp_path / "run-mine" / "notes.txt").exists() and (tmp_path / "run-file").exists()

    @pytest.mark.parametrize("program", ["pretrain", "finetune"])
    def test_a_users_own_model_of_such_a_name_is_no_run(self, tmp_path, program):
        claim_folder(tmp_path, {"a": 1}, ["run-*"])
        own = tmp_path / "run-own"
        mark_run(own, program)
        write_run(own)
        before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
        claim_folder(tmp_path, {"a": 2}, ["run-*"], overwrite=True)
        assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}

    @pytest.mark.parametrize("name", ["settings.json", "results.json", "results.md", "results.png"])
    def test_a_users_files_in_its_place(self, tmp_path, name):
        put(tmp_path, [name])
        with pytest.raises(SiTError, match=name) as error:
            claim_folder(tmp_path, {"a": 1}, ["run-*"])
        assert error.value.argument == "output_dir"
        claim_folder(tmp_path, {"a": 1}, ["run-*"], overwrite=True)
        stem, ending = name.split(".")
        assert (tmp_path / f"{stem}.old.{ending}").read_text() == f"mine: {name}"

    def test_runs_without_settings_belong_to_another(self, tmp_path):
        (tmp_path / "run-0").mkdir()
        with pytest.raises(SiTError, match="another a"):
            claim_folder(tmp_path, {"a": 1}, ["run-*"])

    @pytest.mark.parametrize("damaged", [True, False])
    def test_folder_that_cannot_be_used(self, tmp_path, damaged):
        if damaged:
            (tmp_path / "run-0").mkdir()
            (tmp_path / "settings.json").write_text("{")
            folder = tmp_path
        else:
            (tmp_path / "file").write_text("in the way")
            folder = tmp_path / "file" / "out"
        with pytest.raises(SiTError, match=str(folder)) as error:
            claim_folder(folder, {"a": 1}, ["run-*"])
        assert error.value.argument == "output_dir"


def test_what_is_there_is_not_run_again(tmp_path):
    asked = []

    def run(missing):
        asked.append(missing)
        write_results(tmp_path, {name: {"accuracy": len(asked)} for name in missing})

    assert results_of(tmp_path, ["knn"], run) == {"knn": {"accuracy": 1}}
    assert results_of(tmp_path, ["knn", "linear"], run) == {"knn": {"accuracy": 1}, "linear": {"accuracy": 2}}
    assert results_of(tmp_path, ["linear"], run) == {"linear": {"accuracy": 2}}
    assert asked == [["knn"], ["linear"]]


def test_results_that_a_run_drops_are_measured_again(tmp_path):
    """Those of other weights."""

    def run(missing):
        write_results(tmp_path, {name: {"of": missing} for name in missing}, keep_others="linear" not in missing)

    results_of(tmp_path, ["knn"], run)
    assert results_of(tmp_path, ["knn", "linear"], run) == {"knn": {"of": ["knn"]}, "linear": {"of": ["linear"]}}
