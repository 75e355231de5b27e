"""The life of a model of 12 bands of 12 bits in 16-bit files: every program, one after the other, on a few small files."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
from pretraining_runs import arguments_of, weights_in

import modeling_sit
from modeling_sit.data.tile import tile
from modeling_sit.pretraining.run import pretrain
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.arguments import ChosenImagesArguments, FigureArguments, ReconstructionArguments
from modeling_sit.visualization.run import run_reconstructions

BANDS, TOP = 12, 4095


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> Path:
    """Two classes, of vertical and of horizontal stripes, in bands of several brightnesses."""
    folder = tmp_path_factory.mktemp("bands")
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:20, :24]
    for split, count in (("train", 8), ("validation", 4)):
        for name, stripes in (("across", rows), ("along", columns)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                wave = 0.5 + 0.5 * np.sin(stripes + generator.uniform(0, 6))
                values = wave[..., None] * np.linspace(0.2, 1, BANDS) * TOP
                tifffile.imwrite(
                    folder / split / name / f"{number}.tif",
                    np.rint(values).astype(np.uint16),
                    photometric="minisblack",
                    planarconfig="contig",
                )
    return folder


def run(bands: Path, output_dir: Path, **arguments) -> Path:
    settings = {"dataset": str(bands), "intensity_range": [0, TOP], "channels": BANDS, **arguments}
    return pretrain(**arguments_of(output_dir, **settings)).output_dir


@pytest.fixture(scope="module")
def model(bands, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "out"
    return run(bands, folder, preset="auto", max_steps=2, checkpointing_steps="1", preview_steps=2)


def test_what_is_saved(model):
    processor = json.loads((model / "preprocessor_config.json").read_text())
    assert processor["intensity_range"] == [0, TOP]
    # Measured on the images: a wave has the mean 1/2, and the bands have a fifth to all of the range.
    np.testing.assert_allclose(processor["image_mean"], np.linspace(0.2, 1, BANDS) / 2, atol=0.05)
    assert json.loads((model / "config.json").read_text())["num_channels"] == BANDS


def test_preview_shows_the_images(model):
    sheet = np.asarray(PIL.Image.open(model / "previews" / "step-00000002.png"))
    clean = sheet[8:60, 100:]
    shown = clean[(clean < 255).all(axis=-1)]  # not the margins
    assert shown.max() < 150 and shown.std() > 10  # bands 1 to 3 are the darkest, a fifth to a third of the range


def test_resumes_to_the_same_weights(bands, model, tmp_path, forget_accelerators):
    forget_accelerators()
    arguments = {"preset": "auto", "max_steps": 2, "checkpointing_steps": "1", "preview_steps": 2}
    checkpoint = model / "checkpoints" / "step-00000001"
    resumed = run(bands, tmp_path / "out", **arguments, resume_from_checkpoint=str(checkpoint))
    expected = weights_in(model)
    assert all((value == expected[name]).all() for name, value in weights_in(resumed).items())


def test_another_range_is_another_run(bands, model, tmp_path, forget_accelerators):
    forget_accelerators()
    with pytest.raises(SiTError) as error:
        run(
            bands,
            tmp_path / "out",
            preset="auto",
            intensity_range=[0, 1000],
            resume_from_checkpoint=str(model / "checkpoints" / "step-00000001"),
        )
    assert error.value.argument == "resume_from_checkpoint" and "intensity_range" in error.value.problem


def test_fine_tuning_evaluation_and_embeddings(bands, model, tmp_path, forget_accelerators, capsys):
    forget_accelerators()
    settings = {"augmentation": "3-augment", "num_train_epochs": 1, "per_device_train_batch_size": 8}
    modeling_sit.finetune(model, bands, tmp_path / "classifier", report_to="none", **settings)
    # The range is the model's own, so no values are lost.
    said = capsys.readouterr().out
    assert "12 channels of 16 bits" in said and "warning: the largest value" not in said
    saved = json.loads((tmp_path / "classifier" / "preprocessor_config.json").read_text())
    assert saved["intensity_range"] == [0, TOP]
    forget_accelerators()
    # Untrained or not, it tells stripes apart by their pixels, if the pixels are there.
    assert modeling_sit.evaluate(model, bands, protocols=["knn"], knn_k=3)["knn"]["accuracy"] == 1
    forget_accelerators()
    embedded = modeling_sit.embed(model, bands)
    assert len(embedded) == 24 and np.isfinite(embedded["vector"]).all()


def test_figures(bands, model, tmp_path):
    for name, range_ in (("own", None), ("dark", [0, 65535])):
        figure = FigureArguments(model_name_or_path=str(model), output=str(tmp_path / f"{name}.png"))
        chosen = ChosenImagesArguments(dataset=str(bands), num_images=2, intensity_range=range_)
        run_reconstructions(figure, ReconstructionArguments(corruption="noise"), chosen)
    own, dark = (np.asarray(PIL.Image.open(tmp_path / f"{name}.png"))[10:80, 150:].mean() for name in ("own", "dark"))
    assert dark < own  # the range of an argument goes before that of the model


def test_tiles_are_images_again(bands, tmp_path, forget_accelerators):
    forget_accelerators()
    tiles = tile(str(bands), tmp_path / "tiles", image_size=32, intensity_range=[0, TOP])
    run(tiles, tmp_path / "out", preset="auto", max_steps=1, intensity_range=None)


@pytest.mark.parametrize(("channels", "argument"), [(3, "dataset"), (17, "config_overrides")])
def test_other_channels(bands, tmp_path, forget_accelerators, channels, argument):
    forget_accelerators()
    with pytest.raises(SiTError) as error:
        run(bands, tmp_path / "out", channels=channels)
    assert error.value.argument == argument and "damaged" not in str(error.value)
    if channels == 3:
        assert "`num_channels` 12" in error.value.problem


def test_percentiles_of_each_image(bands, tmp_path, forget_accelerators):
    forget_accelerators()
    run(bands, tmp_path / "out", preset="auto", max_steps=1, intensity_range=["1%", "99%"])
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["intensity_range"] == ["1%", "99%"]


@pytest.mark.parametrize("values", [[4095, 0], [0], [0, 1, 0, 1], ["99%", "1%"], ["1%", "all"]])
def test_ranges_that_are_none(bands, model, tmp_path, forget_accelerators, values):
    forget_accelerators()
    with pytest.raises(SiTError) as error:
        run(bands, tmp_path / "out", intensity_range=values)
    assert error.value.argument == "intensity_range"
    forget_accelerators()
    with pytest.raises(SiTError) as error:
        modeling_sit.embed(model, bands, intensity_range=values)
    assert error.value.argument == "intensity_range"
