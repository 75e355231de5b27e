"""What of a folder goes to the Hub, and what never does."""

import json
import os
from pathlib import Path

import pytest

from modeling_sit.hub.repository_files import find_checkpoint_files, find_model_files, stage_files
from modeling_sit.runtime.errors import SiTError

CODE = {
    "configuration_sit.py",
    "dense_outputs.py",
    "dense_processing.py",
    "detection_heads.py",
    "feature_pyramid.py",
    "gmml.py",
    "image_processing_pil_sit.py",
    "image_processing_sit.py",
    "losses.py",
    "run_length_encoding.py",
    "modeling_sit.py",
    "modeling_sit_backbone.py",
    "modeling_sit_detection.py",
    "modeling_sit_segmentation.py",
    "image_modes.py",
}
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json"}


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def folder(save_tiny_sit, tmp_path) -> Path:
    """A model, and what a run and its user leave beside it."""
    folder = save_tiny_sit(tmp_path / "run")
    write(
        folder / "README.md", '![loss](loss.png) ![](<previews/step 2.png>) <img alt="x" src="a%20b.jpg"> [x](note.md)'
    )
    for name in ("loss.png", "previews/step 2.png", "a b.jpg", "eval_results.json", "metrics.jsonl", "monitors.jsonl"):
        write(folder / name)
    for name in (
        *(
            "previews/step 1.png",
            "logs/events.out",
            "training_args.bin",
            "optimizer.pt",
            "note.md",
            "secrets.py",
            ".env",
        ),
        *(
            "checkpoints/step-00000002/optimizer.bin",
            ".cache/huggingface/x.lock",
            "x.lock",
            ".unfinished-files/config.json",
        ),
    ):
        write(folder / name)
    return folder


class TestFindModelFiles:
    def test_the_model_its_code_and_its_card_and_nothing_else(self, folder):
        files = find_model_files(folder)
        assert set(files) == MODEL | CODE | {
            *("README.md", "loss.png", "previews/step 2.png", "a b.jpg"),
            *("eval_results.json", "metrics.jsonl", "monitors.jsonl"),
        }
        assert all(path == folder / name for name, path in files.items())

    def test_without_the_card_while_the_run_goes_on(self, folder):
        assert set(find_model_files(folder, is_finished=False)) == MODEL | CODE | {"metrics.jsonl", "monitors.jsonl"}

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_no_model(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(SiTError, match=f"holds no model: it has no {name}"):
            find_model_files(folder)

    @pytest.mark.parametrize("name", ["modeling_sit.py", "losses.py"])
    def test_code_that_is_missing_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(SiTError, match=f"{name} is missing"):
            find_model_files(folder)

    def test_weights_in_several_files(self, folder):
        (folder / "model.safetensors").unlink()
        shards = {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        }
        for name in shards:
            write(folder / name)
        assert shards < set(find_model_files(folder))

    def test_code_that_lies_in_another_repository(self, folder):
        write(folder / "config.json", json.dumps({"auto_map": {"AutoModel": "ada/vit--modeling_vit.ViT"}}))
        assert "image_processing_sit.py" in find_model_files(folder)

    def test_figures_outside_of_the_folder_stay_there(self, folder):
        write(folder.parent / "other.png")
        write(
            folder / "README.md",
            f"![](../other.png) ![]({folder.parent}/other.png) ![](https://x.org/a.png) ![](no.png)",
        )
        assert not [name for name in find_model_files(folder) if name.endswith(".png")]


class TestFindCheckpointFiles:
    def test_newest_of_pretraining_with_all_its_files(self, tmp_path):
        for step in (2, 10):
            for name in ("run_state.json", "optimizer.bin", "model/shard.bin"):
                write(tmp_path / f"checkpoints/step-{step:08d}" / name, str(step))
        files = find_checkpoint_files(tmp_path)
        assert set(files) == {
            f"last-checkpoint/{name}" for name in ("run_state.json", "optimizer.bin", "model/shard.bin")
        }
        assert {path.read_text() for path in files.values()} == {"10"}

    def write_finetuning(self, folder: Path, step: int, best: str) -> None:
        state = json.dumps({"best_model_checkpoint": best})
        write(folder / f"checkpoint-{step}/trainer_state.json", state)
        for name in ("training_weights.safetensors", "optimizer.pt", "training_args.bin"):
            write(folder / f"checkpoint-{step}" / name, str(step))

    def test_newest_of_finetuning_and_the_best_ones_weights(self, tmp_path):
        for step in (9, 10):
            self.write_finetuning(tmp_path, step, best="/elsewhere/checkpoint-9")
        # Not complete, or not the run's.
        for name in (
            "checkpoint-11/optimizer.pt",
            "checkpoint-12/trainer_state.json",
            "checkpoint-mine/x",
            "checkpoints/step-1-good/x",
        ):
            write(tmp_path / name)
        files = find_checkpoint_files(tmp_path)
        names = {"trainer_state.json", "training_weights.safetensors", "optimizer.pt"}
        best = "best-checkpoint/training_weights.safetensors"
        assert set(files) == {f"last-checkpoint/{name}" for name in names} | {best}
        assert files[best].read_text() == "9"
        assert files["last-checkpoint/optimizer.pt"].read_text() == "10"

    def test_best_is_the_newest(self, tmp_path):
        self.write_finetuning(tmp_path, 9, best=str(tmp_path / "checkpoint-9"))
        assert {name.partition("/")[0] for name in find_checkpoint_files(tmp_path)} == {"last-checkpoint"}

    def test_none(self, tmp_path):
        assert find_checkpoint_files(tmp_path) == {}


class TestStageFiles:
    """Files are kept as they were, however a run goes on to write, replace and delete them."""

    @pytest.mark.parametrize("size", [10, 2 << 20])
    @pytest.mark.parametrize("has_links", [True, False])
    def test_kept(self, tmp_path, monkeypatch, size, has_links):
        if not has_links:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        names = ("weights.safetensors", "folder/gone.bin", "metrics.jsonl")
        files = {name: write(tmp_path / "run" / name, "a" * size) for name in names}
        staged = stage_files(files, tmp_path / "staged")
        write(tmp_path / "run/new", "b").replace(files["weights.safetensors"])
        files["folder/gone.bin"].unlink()
        with files["metrics.jsonl"].open("a") as log:
            log.write("b")
        assert set(staged) == set(names)
        assert all(path.read_text() == "a" * size for path in staged.values())

    def test_of_the_best_checkpoint_only_the_name_is_shared(self, tmp_path):
        state = {
            "best_model_checkpoint": "/home/ada/runs/checkpoint-9",
            "best_metric": 0.5,
            "log_history": [{"loss": 1.5}],
        }
        file = write(tmp_path / "checkpoint-10/trainer_state.json", json.dumps(state))
        staged = stage_files({"last-checkpoint/trainer_state.json": file}, tmp_path / "staged")
        shared = json.loads(staged["last-checkpoint/trainer_state.json"].read_text())
        assert shared == {**state, "best_model_checkpoint": "checkpoint-9"}

    def test_large_files_take_no_room(self, tmp_path):
        file = write(tmp_path / "model.safetensors", "a" * (2 << 20))
        staged = stage_files({"model.safetensors": file}, tmp_path / "staged")
        assert staged["model.safetensors"].samefile(file)
