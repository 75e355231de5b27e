"""The output folder of a run: what a user has in it stays, files may be read by whom the umask says, and locks may be missing."""

import errno
import fcntl
import json
import os
import stat
from pathlib import Path

import pytest
from pretraining_runs import checkpoint

from modeling_sit.pretraining import output_folder
from modeling_sit.pretraining.checkpoints import delete_checkpoint, find_damage, list_checkpoints
from modeling_sit.pretraining.output_folder import holds_results, is_run, lock_output_dir
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.locks import warn_without_lock
from modeling_sit.runtime.run_folders import mark_run

# In every folder that a run cleans or replaces, under names like its own.
OF_A_USER = (
    *("notes.txt", "logs/slurm-1.out", "logs/sit/mine.txt", "logs/events.out.tfevents.1", "previews/mine.png"),
    *(
        "previews/step-5.png",
        "previews/a/step-00000001.png",
        "checkpoints/notes.txt",
        "checkpoints/best/model.safetensors",
    ),
    *(
        "checkpoints/step-00000001/notes.txt",
        "checkpoints/step-00000002/notes/a.txt",
        "checkpoints/step-00000001-good/a",
    ),
    *("checkpoints/step-00000003.tar", "checkpoints/.unfinished-notes/a.txt", "checkpoints/.deleted-notes/a.txt"),
    *("checkpoints/.unfinished-step-00000001/a.txt", ".unfinished-thesis.txt", ".unfinished-files/a.txt"),
    *(".unfinished-files/files/model.safetensors", ".unfinished-push-old/a.txt", "previews/.unfinished-mine.png"),
)


def put(folder: Path, names=OF_A_USER) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def is_untouched(folder: Path, names=OF_A_USER) -> bool:
    return all((folder / name).read_text() == f"mine: {name}" for name in names)


ARGUMENTS = {"checkpointing_steps": 1, "preview_steps": 1, "max_steps": 3, "report_to": ["tensorboard"]}


class TestUsersFiles:
    def test_stay_in_every_folder_that_a_run_cleans(self, pretrain, refused, tmp_path):
        """From the first run to one that goes on, and to one that starts again; none of them is taken for a run's."""
        put(tmp_path / "out")
        folder = pretrain(**ARGUMENTS, checkpoints_total_limit=1)
        assert is_untouched(folder)
        assert list_checkpoints(folder) == [checkpoint(folder, 3)]
        assert [path.name for path in checkpoint(folder, 1).iterdir()] == ["notes.txt"]
        put(folder, ["checkpoints/step-00000003/notes.txt"])
        first = {path.name for path in folder.glob("logs/sit/events*")}
        assert first
        assert refused("out", **ARGUMENTS).argument == "output_dir"

        (folder / "README.md").unlink()
        pretrain(**ARGUMENTS, resume_from_checkpoint="auto")
        assert is_untouched(folder)
        pretrain(**{**ARGUMENTS, "max_steps": 2}, overwrite_output_dir=True)
        assert is_untouched(folder, (*OF_A_USER, "checkpoints/step-00000003/notes.txt"))
        assert list_checkpoints(folder) == [checkpoint(folder, 1), checkpoint(folder, 2)]
        assert all(find_damage(path) is None for path in list_checkpoints(folder))
        assert not (folder / "previews" / "step-00000003.png").exists()
        assert not first & {path.name for path in folder.glob("logs/sit/events*")}

    @pytest.mark.parametrize(
        "name",
        [
            *("model.safetensors", "config.json", "metrics.jsonl", "run_state.json", "losses.py", "README.md"),
            "loss_curve.png",
        ],
    )
    def test_in_the_place_of_a_runs_are_refused_or_kept_under_another_name(self, pretrain, refused, tmp_path, name):
        put(tmp_path / "out", [name])
        if name != "README.md":
            for asked in (None, "auto"):
                error = refused("out", max_steps=1, resume_from_checkpoint=asked)
                assert error.argument == "output_dir" and "`overwrite_output_dir`" in error.remedy
            assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        folder = pretrain(max_steps=1, overwrite_output_dir=True)
        stem, ending = name.split(".")
        assert (folder / f"{stem}.old.{ending}").read_text() == f"mine: {name}"

    def test_of_a_checkpoint_that_is_damaged(self, pretrain):
        folder = pretrain(checkpointing_steps=1, max_steps=1)
        put(checkpoint(folder, 1), ["notes.txt"])
        (checkpoint(folder, 1) / "run_state.json").write_text("cut sho")
        pretrain(checkpointing_steps="no", max_steps=1, overwrite_output_dir=True)
        assert [path.name for path in checkpoint(folder, 1).iterdir()] == ["notes.txt"]

    def test_a_list_that_leads_out_of_a_checkpoint_deletes_nothing_there(self, tmp_path):
        put(tmp_path, ["precious.txt"])
        for name in ("../../precious.txt", "a/../../../precious.txt", str(tmp_path / "precious.txt")):
            put(checkpoint(tmp_path, 1), ["a.bin"])
            listed = {"files": {name: "", "a.bin": ""}}
            (checkpoint(tmp_path, 1) / "run_state.json").write_text(json.dumps(listed))
            delete_checkpoint(checkpoint(tmp_path, 1))
            assert is_untouched(tmp_path, ["precious.txt"])
            assert not checkpoint(tmp_path, 1).exists()

    def test_folders_of_a_runs_names_are_no_run(self, tmp_path):
        for name in ("logs", "previews", "checkpoints", "checkpoints/step-00000001"):
            (tmp_path / name).mkdir()
        assert not is_run(tmp_path) and not holds_results(tmp_path)
        mark_run(tmp_path, "pretrain")
        assert is_run(tmp_path) and not holds_results(tmp_path)
        (tmp_path / "metrics.jsonl").write_text("")
        assert holds_results(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_and_folders_have_the_modes_of_the_umask(pretrain, umask):
    before = os.umask(umask)
    try:
        folder = pretrain(checkpointing_steps=1, preview_steps=1, max_steps=2, report_to=["tensorboard"])
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    wrong = {path: f"{mode:o}" for path, mode in modes.items() if mode != (0o777 if path.is_dir() else 0o666) & ~umask}
    assert not wrong
    assert {"model.safetensors", "optimizer.bin", "teacher.safetensors", "run_state.json"} <= {
        each.name for each in modes
    }


class TestLock:
    @pytest.fixture(autouse=True)
    def forget_warnings(self):
        warn_without_lock.cache_clear()
        yield
        warn_without_lock.cache_clear()

    def refusing(self, number: int):
        def refuse(*arguments):
            raise OSError(number, os.strerror(number))

        return refuse

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
    def test_that_another_process_holds(self, tmp_path, monkeypatch, number):
        monkeypatch.setattr(fcntl, "lockf", self.refusing(number))
        with pytest.raises(SiTError, match="another process is running") as error:
            lock_output_dir(tmp_path)
        assert error.value.argument == "output_dir"

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_that_cannot_be_had(self, tmp_path, monkeypatch, capsys, number):
        monkeypatch.setattr(fcntl, "lockf", self.refusing(number))
        for _ in range(2):
            lock_output_dir(tmp_path).close()
        assert capsys.readouterr().err.count("would not be noticed") == 1

    def test_run_goes_on_without_one(self, pretrain, tmp_path, monkeypatch, capsys):
        for name in ("lockf", "flock"):
            monkeypatch.setattr(fcntl, name, self.refusing(errno.ENOSYS))
        folder = pretrain(max_steps=1, image_cache="disk", image_cache_dir=str(tmp_path / "cache"))
        assert (folder / "model.safetensors").exists()
        assert "would not be noticed" in capsys.readouterr().err

    def test_whose_file_cannot_be_made(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(output_folder.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
        lock_output_dir(tmp_path).close()
        assert "would not be noticed" in capsys.readouterr().err


def test_a_batch_of_one_has_no_contrast_and_a_warning_says_so(pretrain, capsys):
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "corruption": "noise",
    }
    pretrain("one", **settings)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "teaches nothing" in line]
    assert "per_device_train_batch_size" in line
    pretrain("without", **settings, contrastive_weight=0)
    pretrain("two", **{**settings, "per_device_train_batch_size": 2})
    assert "teaches nothing" not in capsys.readouterr().err
