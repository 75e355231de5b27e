"""`scripts/embed.py`: the right vector in the right row, whatever happens in between."""

from contextlib import nullcontext

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

from modeling_sit import SiTImageProcessor
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation import embed as embedding
from modeling_sit.evaluation.features import frozen_features


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model", initializer_range=0.3)


@pytest.fixture
def flowers(save_images, tmp_path):
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 5, seed=number)
    return tmp_path / "flowers"


@pytest.fixture
def output_dir(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def flags(model, flowers, output_dir):
    return ["--model_name_or_path", model, "--dataset", flowers, "--output_dir", output_dir, "--device", "cpu"]


def load(output_dir, tmp_path, **settings):
    return datasets.load_dataset("parquet", data_dir=str(output_dir), cache_dir=str(tmp_path / "cache"), **settings)


@torch.no_grad()
def slow_vector(model, path) -> torch.Tensor:
    """One image alone."""
    encoder, processor = AutoModel.from_pretrained(model), SiTImageProcessor.from_pretrained(model)
    return encoder(**processor(decode_image(path), return_tensors="pt")).last_hidden_state[0, 0]


def contents(output_dir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output_dir / "data").iterdir()}


def test_every_image_has_its_own_vector(run_program, flags, model, flowers, output_dir, tmp_path):
    assert run_program("embed", *flags, "--shard_size", 4) == 0
    found = load(output_dir, tmp_path)
    images = load_images(str(flowers))
    assert set(found) == {"train", "val"} or set(found) == {"train", "validation"}
    for rows, split in zip(found.values(), (images.train, images.validation), strict=True):
        assert rows["row"][:] == list(range(10))
        assert rows["path"][:] == [image["path"] for image in split["image"]]
        assert rows.features["label"] == split.features["label"] and rows["label"][:] == split["label"][:]
        vectors = rows.with_format("numpy")["vector"][:]
        assert vectors.dtype == np.float32 and vectors.shape == (10, 16) and vectors.flags["C_CONTIGUOUS"]
        for row in (0, 7):
            np.testing.assert_allclose(vectors[row], slow_vector(model, rows[row]["path"]), atol=1e-5)
    assert sorted(contents(output_dir)) == [
        f"{split}-{number:05}-of-00003.parquet" for split in ("train", "val") for number in range(3)
    ]


def test_a_killed_run_goes_on_to_the_same_files(run_program, flags, output_dir, monkeypatch, capsys):
    run_program("embed", *flags, "--shard_size", 4)
    whole = contents(output_dir)
    run_program("embed", *flags, "--shard_size", 4, "--overwrite_output_dir")
    assert contents(output_dir) == whole

    # Killed while it writes: a part of a file is left beside, under another name.
    for name in ("train-00001-of-00003.parquet", "val-00002-of-00003.parquet"):
        (output_dir / "data" / name).unlink()
    (output_dir / "data" / ".unfinished-train-00001-of-00003.parquet").write_bytes(b"PAR1 and no more")
    read = []
    monkeypatch.setattr(
        embedding,
        "frozen_features",
        lambda model, split, *rest, **more: (
            read.append((str(split.split), more["rows"].start)) or frozen_features(model, split, *rest, **more)
        ),
    )
    capsys.readouterr()
    assert run_program("embed", *flags, "--shard_size", 4) == 0
    assert contents(output_dir) == whole
    assert read == [("train", 4), ("val", 8)]
    assert "4 of 6 files were there already" in capsys.readouterr().out


def test_shards_are_shared_out_and_do_not_depend_on_the_processes(run_program, flags, output_dir, monkeypatch):
    """Each of three processes in its turn, without the others: they have nothing to say to each other on the way."""
    run_program("embed", *flags, "--shard_size", 4)
    whole = contents(output_dir)
    for path in (output_dir / "data").iterdir():
        path.unlink()
    for index in range(3):
        accelerator = type(
            "Accelerator",
            (),
            {"num_processes": 3, "process_index": index, "is_main_process": False, "device": torch.device("cpu")},
        )()
        accelerator.trackers = []
        with monkeypatch.context() as patch:
            patch.setattr(embedding, "Accelerator", lambda accelerator=accelerator, **settings: accelerator)
            patch.setattr(embedding, "main_process_first", lambda _, function: function())
            patch.setattr(embedding, "broadcast_from_main", lambda _, function: list(range(6)))
            patch.setattr(embedding, "sync_errors", lambda _: nullcontext())
            assert run_program("embed", *flags, "--shard_size", 4) == 0
        assert len(contents(output_dir)) == 2 * (index + 1)
    assert contents(output_dir) == whole


def test_unreadable_images_leave_no_row(run_program, flags, flowers, output_dir, tmp_path, capsys, caplog):
    """Not even where they are a shard's only ones."""
    broken = [flowers / "train" / folder for folder in ("rose/00.png", "tulip/03.png", "tulip/04.png")]
    for path in broken:
        path.write_bytes(b"broken")
    assert run_program("embed", *flags, "--shard_size", 4) == 0
    found = load(output_dir, tmp_path, split="train")
    assert found["row"][:] == [1, 2, 3, 4, 5, 6, 7] and found["label"][:] == [0, 0, 0, 0, 1, 1, 1]
    captured = capsys.readouterr()
    for path in broken:
        assert sum(message.startswith(f"skipped {path}: it is no image") for message in caplog.messages) == 1
    assert "train: 7 vectors of 16 numbers in 3 files, 3 images skipped" in captured.out
    last = pq.read_table(output_dir / "data" / "train-00002-of-00003.parquet")
    assert last.num_rows == 0 and last.schema.field("vector").type.list_size == 16


def test_settings_reach_the_features(run_program, flags, output_dir, tmp_path):
    run_program("embed", *flags)
    plain = load(output_dir, tmp_path, split="train").with_format("numpy")["vector"][:]
    run_program("embed", *flags, "--overwrite_output_dir", "--normalize")
    unit = load(output_dir, tmp_path, split="train").with_format("numpy")["vector"][:]
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), rtol=1e-5)
    more = ["--pooling", "token_mean", "--layer", 1, "--dataloader_num_workers", 1, "--per_device_eval_batch_size", 3]
    run_program("embed", *flags, "--overwrite_output_dir", *more)
    wide = load(output_dir, tmp_path, split="train").with_format("numpy")["vector"][:]
    assert wide.shape == (10, 32) and not np.allclose(wide[:, :16], plain)


def test_several_labels_a_image_and_none(run_program, model, flowers, output_dir, tmp_path, save_images):
    rows = load_images(str(flowers)).train.remove_columns("label")
    feature = datasets.List(datasets.ClassLabel(names=["red", "thorny"]))
    labels = [[0], [0, 1], [], None, [1]] * 2
    rows.add_column("label", labels, feature=feature).save_to_disk(tmp_path / "several")
    run_program("embed", "--model_name_or_path", model, "--dataset", tmp_path / "several", "--output_dir", output_dir)
    found = load(output_dir, tmp_path, split="train")
    assert found["label"][:] == labels and found.features["label"] == feature
    pile = save_images(tmp_path / "pile", 3)
    other = tmp_path / "other"
    run_program("embed", "--model_name_or_path", model, "--dataset", pile, "--output_dir", other)
    assert load(other, tmp_path, split="train").column_names == ["row", "path", "vector"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--normalize"], "normalize (False, now True)"),
        (["--pooling", "mean"], "pooling (token, now mean)"),
        (["--layer", "1"], "layer (-1, now 1)"),
        (["--shard_size", "3"], "another --shard_size"),
        ("weights", "was made with another model"),
        ("images", "is of other images or labels"),
        ("names", "is of other images or labels"),
    ],
)
def test_features_of_other_settings_are_not_mixed(
    run_program, one_line_error, save_tiny_sit, flags, flowers, model, output_dir, change, message
):
    run_program("embed", *flags)
    before = contents(output_dir)
    more = change if isinstance(change, list) else []
    if change == "weights":
        save_tiny_sit(model, seed=1)
    elif change == "images":
        (flowers / "val" / "rose" / "00.png").unlink()
    elif change == "names":
        (flowers / "val" / "rose" / "00.png").rename(flowers / "val" / "rose" / "0.png")
    error = one_line_error("embed", *flags, *more)
    assert message in error and "--overwrite_output_dir" in error
    assert contents(output_dir) == before
    assert run_program("embed", *flags, *more, "--overwrite_output_dir") == 0
    assert contents(output_dir) != before


def test_files_of_others_are_not_touched(one_line_error, flags, output_dir):
    (output_dir / "data").mkdir(parents=True)
    theirs = output_dir / "data" / "train-00000-of-00001.parquet"
    pq.write_table(datasets.Dataset.from_dict({"a": [1]}).data.table, theirs)
    before = theirs.read_bytes()
    for more in ([], ["--overwrite_output_dir"]):
        assert "holds no features" in one_line_error("embed", *flags, *more)
    assert theirs.read_bytes() == before
    theirs.write_bytes(before[:50])
    assert "remove it" in one_line_error("embed", *flags)


def test_mistakes(one_line_error, flags, model, tmp_path, save_tiny_sit):
    assert "--shard_size: " in one_line_error("embed", *flags, "--shard_size", 0, code=2)
    assert "--layer: no layer 9" in one_line_error("embed", *flags, "--layer", 9)
    (tmp_path / "file").write_text("")
    error = one_line_error("embed", *flags, "--output_dir", tmp_path / "file")
    assert "cannot be written" in error and "--output_dir" in error
    encoder = AutoModel.from_pretrained(model)
    encoder.layernorm.bias.data[0] = float("inf")
    encoder.save_pretrained(model)
    assert "not finite" in one_line_error("embed", *flags)


def test_help_tells_what_is_written_and_how_to_search_it(run_program, capsys):
    assert run_program("embed", "--help") == 0
    out = capsys.readouterr().out
    for part in ("`row`", "`path`", "`vector`", "`label`", "killed", "faiss.IndexFlatIP", 'add_faiss_index("vector"'):
        assert part in out
