"""Images in files of each form, of one value by which they are recognised, and what is loaded of them."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from modeling_sit.data.decoding import decode_image
from modeling_sit.data.image_datasets import dataset_name
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

SHARED = Path(__file__).parents[3] / "shared" / "data"
OBJECTS = (datasets.Dataset, datasets.IterableDataset, dict)
AWKWARD = "da[t]a s*t {1}"  # characters that mean something in a glob
IMAGE = datasets.Image()


def png(value):
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 3), value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_images(folder, values):
    """One gray image for each `{path: value}`, by which it is recognised later."""
    for path, value in values.items():
        write(folder / path, png(value))
    return str(folder)


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path, values, **columns):
    """As `datasets` writes it: an `Image` column named so in the schema's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(value), "path": None} for value in values]
    datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image()).to_parquet(path)
    return path


def values_of(dataset):
    """The pixels of every row, each image being of one value."""
    values = []
    for row in dataset:
        array = np.asarray(decode_image(row["image"], 1))
        assert array.shape == (3, 2) and array.min() == array.max()
        values.append(int(array[0, 0]))
    return values


def labels_of(images, dataset):
    """Names of the classes; `None` for no label."""
    names = images.label_names
    if images.multi_label:
        return [None if labels is None else [names[label] for label in labels] for labels in dataset["label"]]
    return [names[label] if label >= 0 else None for label in dataset["label"]]


def assert_form(images):
    """What every form promises."""
    for dataset in (images.train, images.validation):
        if dataset is None:
            continue
        expected = {"image": datasets.Image(decode=False)}
        if images.label_names is not None:
            expected["label"] = datasets.ClassLabel(names=images.label_names)
            if images.multi_label:
                expected["label"] = datasets.List(expected["label"])
        assert dict(dataset.features) == expected


def load(dataset, **arguments):
    images = load_images(str(dataset), **arguments)
    assert images.name == str(dataset)
    assert_form(images)
    return images


def load_error(dataset, argument="dataset", **arguments):
    """What is wrong and what to do, in a line; the error is of `argument`, and names the dataset."""
    with pytest.raises(SiTError) as caught:
        load_images(dataset if isinstance(dataset, OBJECTS) else str(dataset), **arguments)
    assert caught.value.argument == argument
    message = str(caught.value)
    start = f"{argument}: {dataset_name(dataset)}: "
    assert "\n" not in message and message.startswith(start)
    return message.removeprefix(start)


def saved_splits():
    features = datasets.Features({"photo": datasets.Image(), "species": datasets.ClassLabel(names=["b", "a"])})
    rows = {"photo": [{"bytes": png(value), "path": None} for value in range(6)], "species": [0, 1, 1, 0, -1, None]}
    return datasets.Dataset.from_dict(rows, features=features)


def pil_images(values):
    return [PIL.Image.new("L", (2, 3), value) for value in values]


def labels_in(rows):
    return [row["label"] for row in rows]


def stream(dataset, **arguments):
    """Load a stream, and check it against the set as it is without streaming."""
    images, plain = load_images(str(dataset), streaming=True, **arguments), load(dataset, **arguments)
    for split in ("train", "validation"):
        rows, table = getattr(images, split), getattr(plain, split)
        assert (rows is None) == (table is None)
        if rows is not None:
            assert isinstance(rows, datasets.IterableDataset) and rows.features["image"] == datasets.Image(
                decode=False
            )
            assert [row["image"] for row in rows] == table["image"][:]
            assert values_of(rows) == values_of(table)
    assert (images.name, images.splits) == (plain.name, plain.splits)
    if plain.train is not None:
        assert images.num_train in (None, plain.num_train) and plain.num_train == len(plain.train)
        assert len(images.train_shards) == images.train.num_shards and plain.train_shards is None
    return images
