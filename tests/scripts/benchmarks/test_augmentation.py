"""scripts/benchmarks/augmentation.py: it runs, says what it measured, and all contestants do the same to an image."""

import json
import statistics

import pytest
import torch

from modeling_sit import SiTImageProcessor
from modeling_sit.data.augmentation import ViewAugmentation
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments

PROGRAM = "benchmarks/augmentation"


def test_it_prints_and_writes_what_it_measured(run_program, tmp_path, monkeypatch, capsys):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    output = tmp_path / "new" / "figures.json"
    flags = ["--batch_size", 2, "--image_size", 32, "--runs", 3, "--threads", 1, "--output", output]
    assert run_program(PROGRAM, *flags) == 0
    rows = capsys.readouterr().out.splitlines()
    assert threads == [1] and "2 images, two views of 32 x 32 pixels, cpu" in rows[0]
    report = json.loads(output.read_text())
    assert (report["batch_size"], report["image_size"], report["runs"], report["device"]) == (2, 32, 3, "cpu")
    ours, theirs, *_ = report["results"]
    assert (ours["name"], theirs["name"]) == ("ours, in batch", "torchvision, image by image")
    for result, row in zip(report["results"], rows[2:], strict=True):
        assert len(result["seconds"]) == 3 and min(result["seconds"]) > 0
        medians = [statistics.median(each["seconds"]) for each in (result, ours)]
        assert result["times_ours"] == pytest.approx(medians[0] / medians[1])
        assert row.startswith(result["name"]) and row.endswith(f"{result['times_ours']:.2f}")


# What can be done to every image alike: a contestant that leaves it out, or does it to the other view, is found.
@pytest.mark.parametrize(
    "done",
    [
        {"horizontal_flip_probability": 1.0},
        {"grayscale_probability": 1.0},
        {"blur_probability": [1.0, 0.0], "blur_sigma": [7.0, 7.0]},
        {"solarize_probability": [0.0, 1.0]},
        {"color_jitter_probability": 1.0, "color_jitter": [0.0, 0.0, 0.0, 0.0]},
    ],
)
def test_all_do_the_same(load_program, done):
    program = load_program(PROGRAM)
    nothing = {
        "horizontal_flip_probability": 0.0,
        "color_jitter_probability": 0.0,
        "grayscale_probability": 0.0,
        "blur_probability": [0.0, 0.0],
        "solarize_probability": [0.0, 0.0],
    }
    processor = SiTImageProcessor()
    settings = (
        ViewArguments(**{**PAPER_VIEWS, **nothing, **done}),
        (32, 32),
        processor.image_mean,
        processor.image_std,
    )
    crops = torch.randint(256, (2, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = ViewAugmentation(*settings)(crops)
    contestants = [program.by_torchvision]
    if program.importlib.util.find_spec("kornia"):
        contestants.append(program.by_kornia)
    for contestant in contestants:
        theirs = contestant(*settings)(crops)
        assert theirs.shape == ours.shape
        # torchvision rounds to 8 bits after each operation: 1 of 255, divided by the deviation.
        torch.testing.assert_close(theirs, ours, atol=1.01 / 255 / min(processor.image_std), rtol=0)


@pytest.mark.parametrize("flags", [["--runs", 0], ["--batchsize", 3]])
def test_mistakes_end_with_code_2(run_program, capsys, flags):
    assert run_program(PROGRAM, *flags) == 2
    assert flags[0] in capsys.readouterr().err
