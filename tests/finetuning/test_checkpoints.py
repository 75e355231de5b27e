"""Checkpoints of fine-tuning: every weight comes back, and none but whole ones count."""

import pytest
import torch
from torch import nn

from modeling_sit.finetuning.checkpoints import (
    WEIGHTS,
    complete_checkpoints,
    delete_old_checkpoints,
    find_checkpoint,
    load_weights,
    save_weights,
)
from modeling_sit.runtime.errors import SiTError


def network(seed: int, width: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))


class TestWeights:
    def test_all_come_back(self, tmp_path):
        saved, restored = network(0), network(1)
        saved[1].running_mean.normal_()
        average = {"0.weight": torch.randn(4, 3)}
        save_weights(tmp_path, saved, average)
        into = {"0.weight": torch.zeros(4, 3)}
        load_weights(tmp_path, restored, into)
        assert into["0.weight"].equal(average["0.weight"])
        for name, value in restored.state_dict().items():
            assert value.equal(saved.state_dict()[name]), name

    def test_names_that_do_not_fit(self, tmp_path):
        save_weights(tmp_path, network(0), None)
        with pytest.raises(SiTError, match=r"lacks average\.0\.weight.*`ema_decay`"):
            load_weights(tmp_path, network(0), {"0.weight": torch.zeros(4, 3)})
        with pytest.raises(SiTError, match=r"has model\.1\.bias"):
            load_weights(tmp_path, network(0)[:1], None)

    def test_shapes_that_do_not_fit(self, tmp_path):
        save_weights(tmp_path, network(0), None)
        with pytest.raises(SiTError, match=r"shape \(4, 3\), not \(5, 3\)"):
            load_weights(tmp_path, network(0, width=5), None)

    @pytest.mark.parametrize("content", [None, b"broken"])
    def test_no_weights(self, tmp_path, content):
        if content is not None:
            (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(SiTError, match=f"{tmp_path}/{WEIGHTS}") as error:
            load_weights(tmp_path, network(0), None)
        assert error.value.argument == "resume_from_checkpoint"


class TestFindCheckpoint:
    def checkpoint(self, folder, step, state="{}"):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        return str(folder / f"checkpoint-{step}")

    def test_auto_is_the_newest_that_is_whole(self, tmp_path):
        self.checkpoint(tmp_path, 9)
        newest = self.checkpoint(tmp_path, 10)
        self.checkpoint(tmp_path, 11, '{"cut sho')
        (tmp_path / "checkpoint-12").mkdir()
        self.checkpoint(tmp_path, "of-mine", "[]")
        assert find_checkpoint(tmp_path, "auto") == newest
        assert find_checkpoint(tmp_path, newest) == newest

    def test_auto_in_a_new_folder(self, tmp_path):
        assert find_checkpoint(tmp_path, "auto") is None
        assert find_checkpoint(tmp_path, None) is None

    def test_runs_are_not_mixed_up(self, tmp_path):
        self.checkpoint(tmp_path, 9)
        with pytest.raises(SiTError, match='`resume_from_checkpoint="auto"`') as error:
            find_checkpoint(tmp_path, None)
        assert error.value.argument == "output_dir"

    def test_none(self, tmp_path):
        with pytest.raises(SiTError, match=str(tmp_path)) as error:
            find_checkpoint(tmp_path, str(tmp_path))
        assert error.value.argument == "resume_from_checkpoint"


class TestDeleting:
    @pytest.fixture
    def folder(self, tmp_path):
        """Four checkpoints, with a user's files in and beside them."""
        for step in (9, 10, 11, 100):
            path = tmp_path / f"checkpoint-{step}"
            path.mkdir()
            for name in ("model.safetensors", WEIGHTS, "optimizer.pt", "rng_state_0.pth", "config.json", "losses.py"):
                (path / name).write_text("")
            (path / "trainer_state.json").write_text("{}")
        for name in self.MINE:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("{}")
        return tmp_path

    MINE = (
        *("checkpoint-9/notes.txt", "checkpoint-10/figures/a.png", "checkpoint-9-good/trainer_state.json"),
        *("checkpoint-best/trainer_state.json", "checkpoint-7/notes.txt", "checkpoint-8.tar"),
    )

    @pytest.mark.parametrize(
        ("limit", "best", "keeps_newest", "kept"),
        [
            (2, None, True, [11, 100]),
            (1, None, True, [100]),
            (1, 10, True, [10, 100]),
            (3, 9, True, [9, 11, 100]),
            (1, 10, False, [10]),
            (9, 10, True, [9, 10, 11, 100]),
        ],
    )
    def test_the_newest_the_best_and_all_that_is_a_users_stay(self, folder, limit, best, keeps_newest, kept):
        """As `Trainer` counts them."""
        delete_old_checkpoints(folder, limit, best and str(folder / f"checkpoint-{best}"), keeps_newest)
        assert complete_checkpoints(folder) == [folder / f"checkpoint-{step}" for step in kept]
        assert all((folder / name).read_text() == "{}" for name in self.MINE)
        emptied = {f"checkpoint-{step}" for step in (9, 10, 11, 100) if step not in kept}
        left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert {name for name in left if name.split("/")[0] in emptied} == {
            name for name in self.MINE if name.split("/")[0] in emptied
        }

    def test_what_a_user_set_aside_is_no_checkpoint(self, tmp_path):
        (tmp_path / "checkpoint-9-good").mkdir()
        (tmp_path / "checkpoint-9-good" / "trainer_state.json").write_text("{}")
        assert complete_checkpoints(tmp_path) == []
        assert find_checkpoint(tmp_path, None) is None
