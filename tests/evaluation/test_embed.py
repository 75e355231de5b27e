"""`embed` from Python: the same rows in memory as in files."""

import hashlib
import json
import pathlib

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState, GradientState

from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.embed import embed
from modeling_sit.evaluation.feature_files import METADATA_KEY
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def own_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model", initializer_range=0.3)


@pytest.fixture
def flowers(save_images, tmp_path):
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 5, seed=number)
    (tmp_path / "flowers" / "train" / "rose" / "01.png").write_bytes(b"broken")
    return tmp_path / "flowers"


@pytest.mark.parametrize("arguments", [{}, {"normalize": True, "pooling": "token_mean"}])
def test_in_memory_as_in_files(model, flowers, tmp_path, monkeypatch, arguments):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = embed(str(model), str(flowers), device="cpu", **arguments)
    assert rows["split"][:] == ["train"] * 9 + ["val"] * 10
    assert rows["row"][:] == [0, *range(2, 10), *range(10)]
    images = load_images(str(flowers))
    for row in rows.select([0, 3, 12]):
        split = images.train if row["split"] == "train" else images.validation
        assert row["path"] == split[row["row"]]["image"]["path"] and row["label"] == split[row["row"]]["label"]
    assert rows.features["label"] == images.train.features["label"]
    assert not (tmp_path / "features").exists()

    in_files = embed(model, flowers, output_dir=tmp_path / "features", shard_size=4, device="cpu", **arguments)
    assert in_files.column_names == rows.column_names and in_files.features == rows.features
    vectors, expected = (each.with_format("numpy")["vector"][:] for each in (in_files, rows))
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert in_files.remove_columns("vector").to_list() == rows.remove_columns("vector").to_list()
    assert vectors.shape == (19, 32 if arguments else 16)


def test_the_pooling_is_the_models(save_tiny_sit, flowers, tmp_path):
    model = save_tiny_sit(tmp_path / "model", initializer_range=0.3, pooling="mean")
    own, mean, token = (
        embed(model, flowers, device="cpu", **asked)["vector"][:]
        for asked in ({}, {"pooling": "mean"}, {"pooling": "token"})
    )
    assert own == mean != token


@pytest.mark.parametrize("change", ["images", "labels", "neither"])
def test_images_without_paths_are_not_taken_for_others(model, flowers, tmp_path, change):
    """As those of a parquet file: two datasets of as many images."""

    def split_of(images, labels) -> datasets.Dataset:
        columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["rose", "tulip"])})
        files = [{"bytes": pathlib.Path(image["image"]["path"]).read_bytes(), "path": None} for image in images]
        return datasets.Dataset.from_dict({"image": files, "label": labels}, features=columns, split="train")

    images = list(load_images(str(flowers)).validation.cast_column("image", datasets.Image(decode=False)))
    labels = [image["label"] for image in images]
    first, output_dir = split_of(images, labels), tmp_path / "features"
    before = embed(model, first, output_dir=output_dir, device="cpu")
    other_images = [*images[:-1], images[0]] if change == "images" else images
    other_labels = [*labels[:-1], 0] if change == "labels" else labels
    second = split_of(other_images, other_labels)
    if change == "neither":
        assert embed(model, second, output_dir=output_dir, device="cpu").to_list() == before.to_list()
        return
    with pytest.raises(SiTError, match="other images or labels"):
        embed(model, second, output_dir=output_dir, device="cpu")
    after = embed(model, second, output_dir=output_dir, device="cpu", overwrite_output_dir=True)
    assert after.to_list()[:-1] == before.to_list()[:-1] and after.to_list()[-1] != before.to_list()[-1]


def test_files_of_an_earlier_version_are_taken(model, flowers, tmp_path):
    """They know their images by a hash of the paths."""
    before = embed(model, flowers, output_dir=tmp_path / "features", device="cpu")
    for path in (tmp_path / "features" / "data").glob("*.parquet"):
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata)
        settings = json.loads(metadata[METADATA_KEY])
        del settings["content"]
        first, count = settings["first_row"], settings["num_rows"]
        split = (
            load_images(str(flowers)).train if path.name.startswith("train") else load_images(str(flowers)).validation
        )
        names = [image["path"] for image in split.select(range(first, first + count))["image"]]
        settings["paths"] = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        metadata[METADATA_KEY] = json.dumps(settings).encode()
        pq.write_table(table.replace_schema_metadata(metadata), path)
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "features").rglob("*.parquet"))]
    assert embed(model, flowers, output_dir=tmp_path / "features", device="cpu").to_list() == before.to_list()
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "features").rglob("*.parquet"))]


def test_a_file_of_an_earlier_version_is_not_taken_for_other_images(model, flowers, tmp_path):
    """Without paths, or with other labels, they were not known."""
    columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    one = (flowers / "val" / "rose" / "00.png").read_bytes()
    for path, other in ((None, [0, 0]), ("one.png", [0, 1])):
        rows = {"image": [{"bytes": one, "path": path}] * 2}
        first, second = (
            datasets.Dataset.from_dict({**rows, "label": labels}, features=columns, split="train")
            for labels in ([0, 0], other)
        )
        output_dir = tmp_path / f"features of {path}"
        embed(model, first, output_dir=output_dir, device="cpu")
        (file,) = (output_dir / "data").glob("*.parquet")
        table = pq.read_table(file)
        settings = json.loads(table.schema.metadata[METADATA_KEY])
        del settings["content"]
        settings["paths"] = hashlib.sha256("\n".join([path or ""] * 2).encode()).hexdigest()[:16]
        pq.write_table(
            table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: json.dumps(settings)}), file
        )
        with pytest.raises(SiTError, match="other images or labels"):
            embed(model, second, output_dir=output_dir, device="cpu")
        with pytest.raises(SiTError, match="other images or labels"):
            embed(model, second.remove_columns("label"), output_dir=output_dir, device="cpu")


def test_a_cache_that_cannot_be_written_is_told_before_any_work(model, flowers, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(SiTError, match="HF_HOME"):
        embed(model, flowers, output_dir=tmp_path / "features", device="cpu")
    assert not (tmp_path / "features").exists()
    assert len(embed(model, flowers, device="cpu")) == 19


def test_mistakes(model, flowers, save_images, tmp_path):
    with pytest.raises(TypeError, match="did you mean normalize"):
        embed(model, flowers, normalise=True)
    with pytest.raises(SiTError) as error:
        embed(model, flowers, layer=9, device="cpu")
    assert error.value.argument == "layer"
    pile = save_images(tmp_path / "pile", 2)
    for path in pile.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(SiTError, match="none of 2 images can be read"):
        embed(model, pile, device="cpu")
