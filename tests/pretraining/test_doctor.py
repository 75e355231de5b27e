"""The doctor: what it says is what the readers, the presets and the measured steps say, and trouble is a line, not the end."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

import modeling_sit
from modeling_sit.data.image_facts import read_image_facts
from modeling_sit.data.sources import load_images
from modeling_sit.pretraining import doctor as doctor_module
from modeling_sit.pretraining.dry_run import DryRun
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def diagnose(forget_accelerators):
    """Ask the doctor; gives the diagnosis, which JSON can hold."""

    def diagnose(dataset=None, **arguments):
        forget_accelerators()
        found = modeling_sit.doctor(dataset, **arguments)
        assert json.loads(json.dumps(found.as_json())) == found.as_json()
        return found

    return diagnose


@pytest.fixture
def labeled(save_images, tmp_path):
    """A folder of two classes in two splits: four training images, one of them twice, and one that is a test image, too."""
    folder = tmp_path / "set"
    for seed, name in enumerate(("daisy", "rose")):
        save_images(folder / "train" / name, 2, seed=seed)
        save_images(folder / "test" / name, 1, seed=10 + seed)
    shutil.copy(folder / "train" / "daisy" / "00.png", folder / "train" / "daisy" / "twin.png")
    shutil.copy(folder / "train" / "rose" / "01.png", folder / "test" / "rose" / "leak.png")
    return folder


class TestTheMachine:
    def test_versions_memory_and_disk(self, diagnose):
        machine = diagnose().machine
        assert machine["versions"]["torch"] == torch.__version__.split("+")[0]
        assert machine["optional_packages"].keys() >= {"timm", "pycocotools"}
        assert 0 < machine["memory"]["free"] <= machine["memory"]["total"]
        assert machine["disk"]["current_folder"] == pytest.approx(shutil.disk_usage(".").free, rel=0.1)
        assert len(machine["gpus"]) == torch.cuda.device_count()

    def test_without_a_dataset_there_is_nothing_else(self, diagnose):
        found = diagnose()
        assert (found.dataset, found.run, found.problems) == (None, None, [])
        assert len(str(found).splitlines()) < 15

    def test_paths_and_secrets_of_the_environment_are_not_told(self, diagnose, monkeypatch, tmp_path):
        monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(tmp_path / "config.yaml"))
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
        found = diagnose()
        assert found.machine["environment"]["ACCELERATE_MIXED_PRECISION"] == "no"
        text = json.dumps(found.as_json()) + str(found)
        assert str(tmp_path) not in text and "hf_abc" not in text

    def test_a_cache_that_cannot_be_written(self, diagnose, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file"))
        found = diagnose()
        assert "cannot be written" in found.machine["cache"] and str(tmp_path) not in found.machine["cache"]


class TestTheDataset:
    def test_what_a_folder_is(self, diagnose, labeled):
        found = diagnose(str(labeled), measure=False)
        facts = found.dataset
        assert {name: split["num_images"] for name, split in facts["splits"].items()} == {"train": 5, "test": 3}
        assert facts["splits"]["train"]["labels"] == {"daisy": 3, "rose": 2}
        assert facts["splits"]["train"]["origin"] == "train/"
        assert (facts["heights"], facts["modes"], facts["bits"]) == (
            {"min": 20, "median": 20, "max": 20},
            {"RGB": 5},
            [8],
        )
        assert (facts["image_column"], facts["label_column"]) == ("image", "label")
        assert facts["unreadable"] == []

    def test_duplicates_within_and_across_splits(self, diagnose, labeled):
        found = diagnose(str(labeled), measure=False)
        duplicates = {(each["split"], each["other"]): each["number"] for each in found.dataset["duplicates"]}
        assert duplicates == {("train", "train"): 1, ("test", "train"): 1}
        assert any("leak.png" in problem for problem in found.problems)

    def test_unreadable_images_of_every_split(self, diagnose, labeled):
        (labeled / "train" / "rose" / "text.png").write_text("no image")
        damaged = (labeled / "train" / "daisy" / "01.png").read_bytes()
        (labeled / "test" / "rose" / "cut.png").write_bytes(damaged[: len(damaged) // 2])
        found = diagnose(str(labeled), measure=False)
        assert len(found.dataset["unreadable"]) == 2
        told = "\n".join(found.problems)
        assert "text.png" in told and "cut.png" in told

    def test_sizes_and_modes_are_those_of_the_files(self, diagnose, tmp_path):
        for number, (mode, size) in enumerate((("L", (30, 10)), ("RGB", (40, 20)), ("CMYK", (50, 30)))):
            PIL.Image.new(mode, size).save(tmp_path / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
        facts = diagnose(str(tmp_path), measure=False).dataset
        assert facts["modes"] == {"CMYK": 1, "L": 1, "RGB": 1}
        assert facts["widths"] == {"min": 30, "median": 40, "max": 50}

    def test_columns_are_the_chosen_ones(self, diagnose, labeled):
        rows = load_images(str(labeled)).train.rename_columns({"image": "photo", "label": "kind"})
        facts = diagnose(rows, measure=False, label_column="kind").dataset
        assert (facts["image_column"], facts["label_column"]) == ("photo", "kind")

    def test_masks_and_boxes(self, diagnose, labeled, tmp_path):
        for kind in ("images", "masks"):
            (tmp_path / "dense" / "train" / kind).mkdir(parents=True)
            PIL.Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "dense" / "train" / kind / "a.png")
        assert diagnose(str(tmp_path / "dense"), measure=False).dataset["annotations"]["masks of pixels"] == ["train"]
        assert diagnose(str(labeled), measure=False).dataset["annotations"]["masks of pixels"] == []


class TestTheRun:
    def test_settings_are_those_of_the_preset(self, diagnose, labeled):
        run = diagnose(str(labeled), measure=False).run
        images = load_images(str(labeled))
        expected = choose(Facts(read_image_facts(images), run["device"]), {}, SiT)
        chosen = {name: choice["value"] for name, choice in run["choices"].items()}
        for choice in expected:
            if choice.name in ("image_size", "patch_size", "model_size", "max_steps", "base_learning_rate"):
                assert chosen[choice.name] == choice.value, choice.name
        assert "seconds" not in run

    def test_time_is_that_of_the_steps(self, diagnose, labeled, monkeypatch):
        monkeypatch.setattr(doctor_module, "measure_run", lambda run: DryRun(2.0, 0.5, 10**9))
        found = diagnose(str(labeled))
        assert found.run["seconds"] == 2.0 * found.run["steps"] and found.run["data_wait"] == 0.25


class TestTrouble:
    """The page is there, and a line says what is wrong."""

    def told(self, found, *words) -> None:
        assert found.machine["versions"]["python"]
        (problem,) = [problem for problem in found.problems if all(word in problem for word in words)]
        assert f"problem: {problem}" in found.lines
        assert "Traceback" not in str(found)

    def test_no_folder(self, diagnose, tmp_path):
        self.told(diagnose(str(tmp_path / "none")), "`dataset`: ", "none")

    def test_no_images(self, diagnose, tmp_path):
        (tmp_path / "notes.txt").write_text("nothing")
        self.told(diagnose(str(tmp_path)), "`dataset`: ")

    def test_no_image_can_be_read(self, diagnose, tmp_path):
        for number in range(3):
            (tmp_path / f"{number}.png").write_text("no image")
        found = diagnose(str(tmp_path))
        assert len(found.dataset["unreadable"]) == 3 and len(found.problems) >= 3

    def test_what_nobody_foresaw(self, diagnose, labeled, monkeypatch):
        def broken(*_, **__):
            raise ZeroDivisionError("division by zero\nsecond line")

        monkeypatch.setattr(doctor_module, "describe", broken)
        self.told(diagnose(str(labeled)), "ZeroDivisionError", "division by zero")

    def test_no_training_split(self, diagnose, labeled):
        (labeled / "train").rename(labeled / "validation")
        found = diagnose(str(labeled), measure=False)
        self.told(found, "train")
        assert found.run is None and found.dataset["splits"]

    @pytest.mark.parametrize(("arguments", "error"), [({"method": "dine"}, SiTError), ({"measur": 1}, TypeError)])
    def test_arguments(self, arguments, error):
        with pytest.raises(error, match=r"dino|measure"):
            modeling_sit.doctor("digits", **arguments)


def test_the_command(run_program, labeled, capsys):
    assert run_program("doctor", "--dataset", labeled, "--measure", "no", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts.keys() == {"machine", "dataset", "run", "problems"}
    assert run_program("doctor", "--dataset", labeled / "none") == 0
    assert "problem: --dataset: " in capsys.readouterr().out
