"""The programs' own files never count as images."""

import contextlib
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from modeling_sit.data import dataset_forms, opening, own_files
from modeling_sit.data.own_files import check_outside_dataset, is_output_folder
from modeling_sit.data.sources import load_images
from modeling_sit.data.split_names import tell_once
from modeling_sit.runtime.errors import SiTError


class HangingFolder(contextlib.nullcontext):
    """Entries of a folder that never come."""

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(1000)


PROGRAMS = {
    "pretrain": ("output_dir", ["--max_steps", "1"]),
    "finetune": ("output_dir", ["--model_name_or_path", "nowhere"]),
    "evaluate": ("output_dir", ["--model_name_or_path", "nowhere"]),
    "compare": ("output_dir", ["--model_name_or_path", "nowhere"]),
    "embed": ("output_dir", ["--model_name_or_path", "nowhere"]),
    "tile": ("output_dir", []),
    "visualize reconstructions": ("output", ["--model_name_or_path", "nowhere"]),
    "visualize attention": ("output", ["--model_name_or_path", "nowhere"]),
    "visualize neighbours": ("output", ["--model_name_or_path", "nowhere"]),
    "visualize embeddings": ("output", ["--model_name_or_path", "nowhere"]),
    "visualize embeddings html": ("html", ["--model_name_or_path", "nowhere", "--output", "elsewhere.png"]),
}


@pytest.fixture(autouse=True)
def nothing_told_yet():
    tell_once.cache_clear()


@pytest.mark.parametrize("program", PROGRAMS)
def test_output_in_the_dataset_is_refused_before_anything_else(tmp_path, save_images, one_line_error, program):
    for name in "ab":
        save_images(tmp_path / "images" / name, 3)
    before = sorted(tmp_path.rglob("*"))
    argument, flags = PROGRAMS[program]
    command, *kind = program.removesuffix(" html").split(" ")
    if argument == "output_dir":
        outputs = ["images", "images/run", "images/a/deeper"]
    else:
        outputs = [f"images/a.{'png' if argument == 'output' else 'html'}"]
    for output in outputs:
        place = ["--dataset", tmp_path / "images", f"--{argument}", tmp_path / output]
        assert one_line_error(command, *kind, *place, *flags).startswith(f"--{argument}: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", ["stat", "scandir", "next", "listdir", "lexists"])
def test_a_disk_that_does_not_answer_is_waited_for_with_a_limit(tmp_path, save_images, monkeypatch, call):
    save_images(tmp_path / "images" / "previews", 1)
    (tmp_path / "images" / "run_state.json").touch()

    def hang(*_):
        time.sleep(1000)

    monkeypatch.setattr(opening, "SECONDS_FOR_A_FILE", 0.2)
    of_paths = SimpleNamespace(**{**vars(os.path), call: hang})
    listing = {"scandir": lambda path: HangingFolder()} if call == "next" else {call: hang}
    system = SimpleNamespace(**{**vars(os), **listing, "path": of_paths})
    for module in (own_files, dataset_forms):
        monkeypatch.setattr(module, "os", system)
    started = time.monotonic()
    with pytest.raises(SiTError) as error:
        load_images(tmp_path / "images")
    assert time.monotonic() - started < 30
    assert error.value.argument == "dataset" and "0.2 s" in error.value.problem and error.value.remedy


@pytest.mark.parametrize("dataset", ["images", "images/", "./images", "link", "link/../images"])
@pytest.mark.parametrize("output", ["images", "images/run", "link/run", "images/../images/run"])
def test_spellings_of_the_same_folder(tmp_path, monkeypatch, dataset, output):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SiTError) as error:
        check_outside_dataset(output, dataset)
    assert error.value.argument == "output_dir" and error.value.remedy


@pytest.mark.parametrize("output", ["run", "images2", "images/.runs/1", "images/old", "images/old/next", None])
def test_places_that_are_not_read(tmp_path, output):
    (tmp_path / "images" / "old").mkdir(parents=True)
    (tmp_path / "images" / "old" / "run_state.json").touch()
    check_outside_dataset(None if output is None else tmp_path / output, tmp_path / "images")


@pytest.mark.parametrize("dataset", ["digits", "someone/images", "images.parquet", None, np.zeros(3)])
def test_other_datasets_have_no_inside(tmp_path, monkeypatch, dataset):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.parquet").touch()
    check_outside_dataset("digits/run", dataset)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (2, 3), 7).save(path)


RUNS = {
    "pretraining": ["run_state.json", "config.json", "loss_curve.png", "previews/step-00000002.png"],
    "pretraining that was cut off": ["metrics.jsonl", "previews/step-00000002.png"],
    "finetuning": ["config.json", "model.safetensors", "loss_curve.png", "examples.png"],
    "evaluation": ["eval_results.json", "figure.png"],
    "run with a mark": [".modeling_sit_run", "figure.png"],
    "comparison": ["settings.json", "results.json", "results.png"],
}


@pytest.mark.parametrize("where", ["run", "a/run", "deep/er/run"])
@pytest.mark.parametrize("run", RUNS)
def test_runs_in_a_dataset_are_not_read(tmp_path, caplog, run, where):
    for name in "ab":
        for number in range(3):
            save(tmp_path / name / f"{number}.png")
    expected = load_images(str(tmp_path))
    assert len(expected.train) == 6 and not caplog.messages
    for file in RUNS[run]:
        if file.endswith(".png"):
            save(tmp_path / where / file)
        else:
            (tmp_path / where).mkdir(parents=True, exist_ok=True)
            (tmp_path / where / file).write_text(json.dumps({}))
    for _ in range(2):
        images = load_images(str(tmp_path))
        assert images.train.to_dict() == expected.train.to_dict() and images.label_names == ["a", "b"]
    (told,) = caplog.messages
    assert told.endswith(f": {where}")


def test_a_run_in_the_folder_itself(tmp_path, caplog):
    """Of a run whose output folder was the dataset's; a folder of the user's that is called like a run's is read."""
    save(tmp_path / "0.png")
    (tmp_path / "run_state.json").touch()
    for name in ("previews/step-00000002.png", "previews/step-00000004.png", "loss_curve.png", "examples.png"):
        save(tmp_path / name)
    assert len(load_images(str(tmp_path)).train) == 1
    assert any(told.endswith(": examples.png, loss_curve.png, previews") for told in caplog.messages)
    save(tmp_path / "previews" / "mine.png")
    assert len(load_images(str(tmp_path)).train) == 4


@pytest.mark.parametrize("names", [["previews"], ["checkpoints", "logs"], ["config.json"], ["settings.json"], []])
def test_names_that_anybody_uses_are_no_mark(names):
    assert not is_output_folder([*names, "0.png"])


def test_what_the_programs_leave_is_marked_and_a_run_goes_on(tmp_path, save_images, run_program, caplog):
    """A run that lies in its dataset since before that was refused: the same images, so it can be resumed."""
    save_images(tmp_path / "images", 8)
    small = ["--dataset", tmp_path / "images", "--per_device_train_batch_size", 4, "--monitors", "none"]
    small += ["--image_size", 16, "--patch_size", 8, "--checkpointing_steps", 1, "--preview_steps", 1]
    small += ["--config_overrides", "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,decoder_hidden_size=8"]
    assert run_program("pretrain", *small, "--output_dir", tmp_path / "run", "--max_steps", 2) == 0
    run = tmp_path / "images" / "run"
    os.rename(tmp_path / "run", run)
    assert is_output_folder(os.listdir(run)) and list(run.glob("previews/*.png"))
    os.rename(run / "checkpoints" / "step-00000002", tmp_path / "moved")  # cut off after step 1
    again = ["--output_dir", run, "--max_steps", 2, "--resume_from_checkpoint", "auto"]
    assert run_program("pretrain", *small, *again) == 0
    assert (run / "checkpoints" / "step-00000002").is_dir()
    assert len(load_images(str(tmp_path / "images")).train) == 8
