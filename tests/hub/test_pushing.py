"""Pushing beside a training: it takes the newest, never stops the run, and says what did not get there."""

import shlex
import threading
from pathlib import Path

import pytest
from loopback_hub import TOKEN, wait_for_pushes

from modeling_sit.hub import repository
from modeling_sit.hub.arguments import HubArguments
from modeling_sit.hub.pushing import HubPusher, push_command
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.run_folders import mark_run

SECONDS = 20  # more than anything here takes


@pytest.fixture
def folder(save_tiny_sit, tmp_path) -> Path:
    folder = save_tiny_sit(tmp_path / "run")
    write_checkpoint(folder, 2)
    return folder


def write_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run_state.json").write_text(str(step))


@pytest.fixture
def pusher(logged_in, folder) -> HubPusher:
    return create_pusher(folder)


def create_pusher(folder: Path, **flags) -> HubPusher:
    pusher = HubPusher(HubArguments(push_to_hub=True, **{"hub_strategy": "checkpoint", **flags}), folder)
    pusher.check_login()
    pusher.create_repository()
    return pusher


def newest_pushed(hub) -> bytes:
    return hub.repositories["ada/run"].files["last-checkpoint/run_state.json"]


class TestInTheBackground:
    def test_loop_does_not_wait_and_the_newest_comes_next(self, logged_in, pusher, folder, capfd):
        on_its_way, answers = threading.Event(), threading.Event()
        logged_in.fail("/preupload/", 503, times=1, before=lambda: (on_its_way.set(), answers.wait(SECONDS)))
        pusher.push_checkpoint(2, with_model=True)  # returns while the Hub does not answer
        assert on_its_way.wait(SECONDS)
        for step in (4, 6):
            write_checkpoint(folder, step)
            pusher.push_checkpoint(step, with_model=True)
        answers.set()
        pusher.close(SECONDS)
        assert newest_pushed(logged_in) == b"6"
        commits = [commit["summary"] for commit in logged_in.repositories["ada/run"].commits]
        assert commits == ["Step 2", "Step 6"]
        assert "pushed to" in capfd.readouterr().err
        assert not list(folder.glob(".unfinished-*"))

    def test_what_is_on_its_way_stays_as_it_was(self, logged_in, pusher, folder):
        on_its_way, answers = threading.Event(), threading.Event()
        logged_in.fail("/preupload/", 503, times=1, before=lambda: (on_its_way.set(), answers.wait(SECONDS)))
        weights = (folder / "model.safetensors").read_bytes()
        pusher.push_checkpoint(2, with_model=True)
        assert on_its_way.wait(SECONDS)
        (folder / "new").write_bytes(b"later")
        (folder / "new").replace(folder / "model.safetensors")
        (folder / "checkpoints" / "step-00000002").rename(folder / "checkpoints" / "gone")
        answers.set()
        pusher.close(SECONDS)
        assert logged_in.repositories["ada/run"].files["model.safetensors"] == weights
        assert newest_pushed(logged_in) == b"2"

    def test_nothing_before_the_end_unless_asked_for(self, logged_in, folder):
        pusher = create_pusher(folder, hub_strategy="end")
        pusher.push_checkpoint(2, with_model=True)
        pusher.close(SECONDS)
        assert not logged_in.repositories["ada/run"].commits
        pusher.push_finished()
        assert "model.safetensors" in logged_in.repositories["ada/run"].files
        assert "last-checkpoint/run_state.json" not in logged_in.repositories["ada/run"].files

    def test_who_has_to_leave_does_not_wait_long(self, logged_in, pusher, folder, capfd):
        answers = threading.Event()
        logged_in.fail("/preupload/", 503, times=1, before=lambda: answers.wait(SECONDS))
        pusher.push_checkpoint(2, with_model=True)
        pusher.close(0.1)
        assert not list(folder.glob(".unfinished-*"))
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1
        assert f"modeling-sit push {folder} --hub_model_id ada/run --hub_strategy checkpoint" in said[0]
        pusher.close(SECONDS)
        answers.set()
        wait_for_pushes()
        assert capfd.readouterr().err == ""


class TestHubThatIsDown:
    @pytest.mark.parametrize(
        ("status", "reason"), [(500, "the Hub fails: error 500"), (None, "no answer from the Hub")]
    )
    def test_at_the_start_and_back_later(self, logged_in, folder, capfd, status, reason):
        logged_in.fail("whoami", status, times=1)
        pusher = create_pusher(folder)
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1 and reason in said[0] and "the run goes on" in said[0]
        assert not logged_in.repositories
        pusher.push_finished()
        assert newest_pushed(logged_in) == b"2"

    def test_that_does_not_answer(self, logged_in, folder, monkeypatch, capfd):
        monkeypatch.setattr(repository, "SECONDS_TO_ANSWER", 0.1)
        answers = threading.Event()
        logged_in.fail("whoami", 500, before=lambda: answers.wait(SECONDS))
        create_pusher(folder)
        answers.set()
        assert "no answer from the Hub" in capfd.readouterr().err

    def test_at_the_end(self, logged_in, pusher, folder, capfd):
        logged_in.fail("/commit/", 500)
        pusher.push_finished()
        said = capfd.readouterr().err.splitlines()
        assert len(said) == 1
        assert "the model and its card not pushed to ada/run: the Hub fails: error 500" in said[0]
        assert f"modeling-sit push {folder} --hub_model_id ada/run --hub_strategy checkpoint" in said[0]
        assert TOKEN not in said[0]
        assert not list(folder.glob(".unfinished-*"))

    def test_full_disk(self, logged_in, pusher, folder, monkeypatch, capfd):
        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("modeling_sit.hub.repository_files.shutil.copyfile", fail)
        pusher.push_checkpoint(2, with_model=True)
        pusher.close(SECONDS)
        assert "No space left on device" in capfd.readouterr().err
        assert not list(folder.glob(".unfinished-*"))

    @pytest.mark.parametrize("path", ["whoami", "repos/create", "auth-check"])
    def test_certain_mistakes_are_errors_before_the_training(self, logged_in, folder, path):
        logged_in.fail(path, 401 if path == "whoami" else 403)
        with pytest.raises(SiTError, match=r"your token|may not write"):
            create_pusher(folder)

    def test_what_a_killed_run_left_is_cleared(self, logged_in, folder):
        (folder / ".unfinished-push-x").mkdir()
        mark_run(folder / ".unfinished-push-y", "unfinished")
        (folder / ".unfinished-push-y" / "model.safetensors").write_text("")
        create_pusher(folder)
        assert not list(folder.glob(".unfinished-*"))

    def test_what_a_user_has_there_stays(self, logged_in, folder):
        names = (".unfinished-push-old/notes.txt", ".unfinished-push-later.txt", "notes.txt")
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("mine")
        pusher = create_pusher(folder)
        pusher.push_checkpoint(2, with_model=True)
        pusher.close(SECONDS)
        assert all((folder / name).read_text() == "mine" for name in names)
        assert len(list(folder.glob(".unfinished-*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, []),
        ({"hub_model_id": "ada/vit", "hub_private_repo": True}, ["--hub_model_id", "ada/vit", "--hub_private_repo"]),
        ({"hub_strategy": "checkpoint"}, ["--hub_strategy", "checkpoint"]),
    ],
)
def test_command_that_pushes_later(arguments, words):
    command = push_command(Path("my run"), HubArguments(push_to_hub=True, **arguments))
    assert shlex.split(command) == ["modeling-sit", "push", "my run", *words]
