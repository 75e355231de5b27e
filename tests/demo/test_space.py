"""The folder that is a Space: it holds all that it needs, and nothing of this machine."""

import configparser
import json
import os
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import datasets
import pytest
import yaml
from foreign import save_classifier_file, save_detr
from packaging.requirements import Requirement
from serving import free_port
from transformers import TimmBackboneConfig

from modeling_sit import SiTImageProcessor
from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.demo.space import GRADIO, requirement_lines, write_space
from modeling_sit.runtime.errors import SiTError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def export(save_tiny_sit, flat_images, tmp_path):
    """Write the Space of a tiny SiT and the flat images, with other arguments on request; gives its folder."""

    def export(**arguments) -> Path:
        given = {
            "model_name_or_path": str(save_tiny_sit(tmp_path / "model")),
            "dataset": str(flat_images),
            "export_space": str(tmp_path / "space"),
        }
        return write_space(DemoArguments(**{**given, **arguments}))

    return export


def test_what_is_in_it(export, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "metrics.jsonl").write_text("{}\n")
    folder = export(compare_with="random")
    assert {path.name for path in folder.iterdir()} == {
        *("app.py", "requirements.txt", "README.md", "modeling_sit", "model", "images")
    }
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(os.listdir(folder / "model"))
    assert "metrics.jsonl" not in os.listdir(folder / "model") and not list(folder.rglob("__pycache__"))
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py"
    assert Requirement(f"gradio=={head['sdk_version']}").specifier
    for path in ("app.py", "README.md", "requirements.txt", "model/config.json"):
        assert str(tmp_path) not in (folder / path).read_text()


def test_images_are_the_same_without_their_paths(export, flat_images):
    (file,) = (export() / "images").iterdir()
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(file.parent)).cast_column(
        "image", datasets.Image(decode=False)
    )
    assert len(rows) == 8 and rows.features["label"].names == ["blue", "red"]
    for row in rows:
        name = rows.features["label"].names[row["label"]]
        assert row["image"]["bytes"] == (flat_images / name / row["image"]["path"]).read_bytes()


def test_limits_of_uploads_are_the_pages(export):
    page = (export(max_upload_megabytes=5, max_upload_pixels=10**6) / "app.py").read_text()
    assert "max_upload_megabytes=5," in page and "max_upload_pixels=1000000," in page


def test_a_title_that_yaml_reads_otherwise(export, save_tiny_sit, tmp_path):
    folder = export(model_name_or_path=str(save_tiny_sit(tmp_path / "cells: 2024 #1")))
    assert yaml.safe_load((folder / "README.md").read_text().split("---")[1])["title"] == "cells: 2024 #1"


def test_a_mistake_leaves_no_folder(export, tmp_path):
    with pytest.raises(SiTError) as error:
        export(dataset=str(tmp_path / "nowhere"))
    assert error.value.argument == "dataset" and not (tmp_path / "space").exists()


def test_a_folder_that_holds_something(export, tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "mine.txt").touch()
    with pytest.raises(SiTError) as error:
        export()
    assert error.value.argument == "export_space" and os.listdir(tmp_path / "space") == ["mine.txt"]


def test_a_folder_in_the_dataset(export, flat_images):
    with pytest.raises(SiTError) as error:
        export(export_space=str(flat_images / "space"))
    assert error.value.argument == "export_space"


def test_requirements_are_the_packages():
    """Of `setup.cfg`: what the package needs everywhere, to train, and for the demo. All are installed here, but gradio."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = [setup["options"]["install_requires"], setup["options.extras_require"]["train"]]
    wanted = {
        Requirement(line).name for text in options for line in text.split("\n") if line and not line.startswith("#")
    }
    lines = requirement_lines()
    names = {Requirement(line).name for line in lines}
    # What the environment was installed from may be a day older than the file.
    assert {"torch", "transformers", "accelerate", "datasets", "scikit-learn"} < names <= {*wanted, "gradio"}
    assert setup["options.extras_require"]["demo"].strip() == GRADIO
    for each in map(Requirement, lines):
        if each.name != "gradio":
            assert each.specifier.contains(version(each.name)), each


def test_requirements_are_the_checkpoints(export, save_tiny_sit, tmp_path):
    """A backbone of timm needs timm, images of many channels the readers of such."""
    pytest.importorskip("timm", reason="timm is not installed: pip install modeling-sit[timm]")
    detr = save_detr(tmp_path / "detr", TimmBackboneConfig(backbone="test_resnet", out_indices=[-1]))
    many = save_tiny_sit(tmp_path / "many", num_channels=5)
    SiTImageProcessor(
        size={"height": 16, "width": 16}, patch_size=8, image_mean=[0.5] * 5, image_std=[0.5] * 5
    ).save_pretrained(many)
    for name, needed, other in ((detr, "timm", "tifffile"), (many, "tifffile", "timm")):
        folder = export(model_name_or_path=str(name), dataset=None, export_space=str(tmp_path / f"space_{needed}"))
        names = [Requirement(line).name for line in (folder / "requirements.txt").read_text().splitlines()]
        assert needed in names and other not in names


def test_it_starts_by_itself(export, tmp_path):
    """A classifier, and beside it a detector of another library, where all that the list asks for is installed."""
    gradio_client = pytest.importorskip(
        "gradio_client", reason="gradio is not installed: pip install modeling-sit[demo]"
    )
    classifier, detector = save_classifier_file(tmp_path / "classifier"), save_detr(tmp_path / "detr")
    folder, port = export(model_name_or_path=str(classifier), compare_with=str(detector)), free_port()
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PIP_")
    }
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    install = ("-m", "pip", "--isolated", "install", "--quiet", "--no-index", "--dry-run", "-r", "requirements.txt")
    subprocess.run([sys.executable, *install], cwd=folder, env=environment, check=True)
    with subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment) as process:
        try:
            for _ in range(3000):
                assert process.poll() is None
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5) as answer:
                        config = json.load(answer)
                    break
                except OSError:
                    time.sleep(0.1)
            assert config["title"] == "What the model sees"
            client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False)
            found = client.predict(None, 0, api_name="/classify")["confidences"]
            assert {each["label"] for each in found} == {"red", "blue"}
            assert "objects in" in client.predict(None, 0, "zeros", 0.5, 0, api_name="/compare")
        finally:
            process.terminate()
