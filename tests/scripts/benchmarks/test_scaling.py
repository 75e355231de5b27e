"""scripts/benchmarks/scaling.py: docs/scaling.md has its tables, and what it measures is what is there to measure."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.pretraining.teacher import Teacher

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts" / "benchmarks" / "scaling.py"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*flags) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_page_has_the_tables(run):
    def tables(text):
        return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)

    printed = tables(run())
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert len(printed) == 2 and [table for table in tables(page) if "M images" in table] == printed


def test_the_page_says_what_the_tables_rest_on():
    costs = runpy.run_path(str(SCRIPT))["COSTS"]
    page = (ROOT / "docs" / "scaling.md").read_text()
    for value in (
        f"{costs.images_per_second_per_core} images a second",
        f"{costs.encoded_bytes / 1000:.0f} kB; {costs.decoded_bytes / 1000:g} kB",
        f"{costs.worker_bytes / 1e9:.2f} GB",
        f"{costs.crop_bytes / 1000:.0f} kB",
        f"{costs.num_parameters:,} each",
        f"{costs.process_bytes / 1e9:g} GB",
        f"{costs.overhead:.0%}".replace("%", " %"),
    ):
        assert f"| {value} |" in page.replace(" of the time |", " |"), value


def test_parameters_are_those_of_the_model():
    costs = runpy.run_path(str(SCRIPT))["COSTS"]
    with torch.device("meta"):
        student = SiTForPreTraining(SiTConfig())
    assert costs.num_parameters == sum(each.numel() for each in student.parameters() if each.requires_grad)
    assert costs.projection_size == student.config.projection_size
    assert costs.crop_bytes == 2 * student.config.num_channels * student.config.image_size**2
    tiny = SiTForPreTraining(SiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32))
    # The teacher has all of the student's.
    assert sum(each.numel() for each in Teacher(tiny).parameters()) == sum(each.numel() for each in tiny.parameters())
    assert costs.teacher_parameters == costs.num_parameters


def test_costs_given_are_those_of_the_table(run):
    printed = run("--images_per_second_per_device", 1000, "--images_per_second_per_core", 100)
    assert printed.startswith("### 1,000 images a second") and printed.count("GPU hours") == 1
    assert "| CPU cores to decode and crop | 80 | 160 | 640 |" in printed


@pytest.mark.parametrize("resize", [None, (50, 40)])
def test_measuring(run, save_images, tmp_path, resize):
    save_images(tmp_path / "images", 4)
    flags = [] if resize is None else ["--resize", "50x40"]
    output = tmp_path / "measured.json"
    images = ["--dataset", tmp_path / "images", "--num_images", 3, "--image_size", 16]
    printed = run("--measure", *images, *flags, "--output", output)
    measured = json.loads(output.read_text())["measured"]
    files = sorted((tmp_path / "images").rglob("*.png"))[:3]
    if resize is None:
        width, height = Image.open(files[0]).size
        assert measured["encoded_bytes"] == pytest.approx(sum(file.stat().st_size for file in files) / 3)
        assert measured["decoded_bytes"] == 3 * width * height
    else:
        assert measured["decoded_bytes"] == 3 * 50 * 40
    assert measured["images_per_second_per_core"] > 0 and measured["worker_bytes"] > 1e8
    # What is printed goes back in.
    assert "M images" in run(*printed.split())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--measure"], "--dataset"),
        (["--measure", "--dataset", "digits", "--num_images", "0"], "--num_images"),
        (["--resize", "50"], "WIDTHxHEIGHT"),
        (["--images_per_second_per_device", "0"], "must be more than 0"),
    ],
)
def test_mistakes(run, capsys, flags, told):
    with pytest.raises(SystemExit) as end:
        run(*flags)
    assert end.value.code not in (0, None)
    assert told in capsys.readouterr().err + str(end.value.code)
