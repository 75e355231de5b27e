"""What is chosen of a dataset: its columns, its labels and its splits; and what is wrong with its files."""

import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import (
    IMAGE,
    labels_in,
    labels_of,
    load,
    load_error,
    png,
    saved_splits,
    stream,
    values_of,
    write,
    write_images,
    write_parquet,
    write_tar,
)

from modeling_sit.data.sources import load_images

pytestmark = pytest.mark.usefixtures("isolated_cache")


# Columns.


def save(tmp_path, features=None, **columns):
    folder = tmp_path / "saved"
    features = datasets.Features(features) if features else None
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return folder


IMAGES = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}, {"bytes": png(3), "path": None}]
MORE_IMAGES = [{"bytes": png(4), "path": None}, {"bytes": png(5), "path": None}, {"bytes": png(6), "path": None}]
ABC = datasets.ClassLabel(names=["a", "b", "c"])


def test_several_image_columns(tmp_path):
    folder = save(tmp_path, {"photo": IMAGE, "depth": IMAGE}, photo=IMAGES, depth=MORE_IMAGES)
    assert "photo, depth" in load_error(folder, "image_column")
    assert values_of(load(folder, image_column="depth").train) == [4, 5, 6]


def test_columns_of_masks_are_not_the_images(tmp_path):
    folder = save(tmp_path, {"label": IMAGE, "photo": IMAGE}, photo=IMAGES, label=MORE_IMAGES)
    assert values_of(load(folder).train) == [1, 2, 3]
    assert values_of(load(folder, image_column="label").train) == [4, 5, 6]


def test_no_image_column(tmp_path):
    assert "text, label" in load_error(save(tmp_path, text=["x"], label=[1]), "image_column")


@pytest.mark.parametrize("argument", ["image_column", "label_column"])
def test_wrong_column_names(tmp_path, argument):
    folder = save(tmp_path, {"photo": IMAGE, "kind": ABC}, photo=IMAGES, kind=[0, 1, 2])
    message = load_error(folder, argument, **{argument: "nonsense"})
    assert "nonsense" in message and "photo, kind" in message


def test_wrong_column_types(tmp_path):
    features = {
        "photo": IMAGE,
        "text": datasets.Value("string"),
        "boxes": datasets.List(datasets.List(datasets.Value("int64"))),
        "scores": datasets.List(datasets.Value("float32")),
        "score": datasets.Value("float32"),
    }
    columns = {"text": ["a"] * 3, "boxes": [[[0]]] * 3, "scores": [[0.5]] * 3, "score": [0.5] * 3}
    folder = save(tmp_path, features, photo=IMAGES, **columns)
    assert "column text" in load_error(folder, "image_column", image_column="text")
    for column in ("photo", "boxes"):
        message = load_error(folder, "label_column", label_column=column)
        assert message.startswith(f"column {column} holds not one class for each image") and len(message) < 250
    for column in ("scores", "score"):
        message = load_error(folder, "label_column", label_column=column)
        assert f"column {column}" in message and "0.5" in message


@pytest.mark.parametrize(
    "feature, value",
    [
        (datasets.Value("float64"), 0.5),
        (datasets.List(datasets.Value("float32")), [0.5]),
        (datasets.List(datasets.List(datasets.Value("int64"))), [[1]]),
        ({"left": datasets.Value("int64")}, {"left": 1}),
        (IMAGE, {"bytes": png(1), "path": None}),
    ],
    ids=["float", "floats", "nested lists", "struct", "image"],
)
def test_a_usual_name_for_what_is_no_label(tmp_path, caplog, feature, value):
    folder = save(tmp_path, {"image": IMAGE, "label": feature}, image=IMAGES, label=[value] * 3)
    message = load_error(folder, "label_column", labels="required", image_column="image")
    whole = "column label of split train holds numbers that are not whole"
    assert message.startswith(("column label holds not one class for each image", whole))
    images = load(folder, image_column="image")
    assert images.label_names is None and values_of(images.train) == [1, 2, 3]
    assert "labels are not read: column label" in caplog.text


@pytest.mark.parametrize("coarse", [ABC, datasets.List(ABC)], ids=["classes", "lists"])
def test_several_label_columns(tmp_path, caplog, coarse):
    features = {"img": IMAGE, "fine_label": ABC, "coarse_label": coarse}
    labels = [2, 2, 0] if coarse is ABC else [[2], [2], [0]]
    folder = save(tmp_path, features, img=IMAGES, fine_label=[0, 1, 2], coarse_label=labels)
    assert "fine_label, coarse_label" in load_error(folder, "label_column", labels="required")
    for needed in ("required", "if clear"):
        images = load(folder, label_column="coarse_label", labels=needed)
        assert images.train["label"][:] == labels and images.multi_label == (coarse is not ABC)
    assert not caplog.text
    for streaming in (False, True):  # pretraining needs none
        images = load_images(str(folder), streaming=streaming)
        assert images.label_names is None and values_of(images.train) == [1, 2, 3]
        assert images.train.column_names == ["image"]
    assert caplog.text.count("several columns of labels: fine_label, coarse_label") == 2


def test_a_class_label_column_goes_before_a_usual_name(tmp_path):
    features = {"image": IMAGE, "label": datasets.Value("int64"), "species": ABC}
    images = load(save(tmp_path, features, image=IMAGES, label=[5, 6, 7], species=[2, 1, 0]))
    assert labels_of(images, images.train) == ["c", "b", "a"]


@pytest.mark.parametrize(
    "type, given, names, expected",
    [
        ("string", ["pine", "oak", "pine"], ["oak", "pine"], ["pine", "oak", "pine"]),
        ("large_string", ["b", None, "a"], ["a", "b"], ["b", None, "a"]),
        ("int64", [0, 1, 2], ["0", "1", "2"], ["0", "1", "2"]),
        ("int32", [10, 9, -1], ["9", "10"], ["10", "9", None]),
        ("uint8", [7, None, 7], ["7"], ["7", None, "7"]),
        ("bool", [True, False, None], ["false", "true"], ["true", "false", None]),
    ],
)
@pytest.mark.parametrize("column", ["label", "Class", "target"])
def test_labels_without_names(tmp_path, column, type, given, names, expected):
    features = {"image": IMAGE, column: datasets.Value(type), "width": datasets.Value("int64")}
    images = load(save(tmp_path, features, image=IMAGES, width=[1, 2, 3], **{column: given}))
    assert images.label_names == names and labels_of(images, images.train) == expected


def test_no_labels(tmp_path):
    features = {"image": IMAGE, "width": datasets.Value("int64"), "caption": datasets.Value("string")}
    folder = save(tmp_path, features, image=IMAGES, width=[1, 2, 3], caption=["x", "y", "z"])
    assert load(folder).label_names is None
    images = load(folder, label_column="caption")
    assert images.label_names == ["x", "y", "z"] and images.train["label"][:] == [0, 1, 2]


def test_a_label_column_that_holds_none(tmp_path):
    features = {"image": IMAGE, "label": datasets.Value("int64")}
    assert load(save(tmp_path, features, image=IMAGES, label=[-1, None, -1])).label_names is None


def test_a_test_split_without_the_label_column(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], label=["x", "y"])
    write_parquet(tmp_path / "test.parquet", [3])
    images = load(tmp_path)
    assert images.label_names == ["x", "y"] and images.train["label"][:] == [0, 1]
    assert values_of(images.validation) == [3] and images.validation["label"][:] == [-1]


def test_splits_that_name_their_classes_differently(tmp_path):
    splits = {}
    for split, names in {"train": ["x", "y"], "test": ["z", "y"]}.items():
        features = datasets.Features({"image": IMAGE, "label": datasets.ClassLabel(names=names)})
        splits[split] = datasets.Dataset.from_dict({"image": IMAGES, "label": [0, 1, -1]}, features=features)
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    images = load(tmp_path)
    assert images.label_names == ["x", "y", "z"]
    assert labels_of(images, images.train) == ["x", "y", None]
    assert labels_of(images, images.validation) == ["z", "y", None]


def test_numbers_in_one_split_and_strings_in_another(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1, 2], label=[3, 4])
    write_parquet(tmp_path / "test.parquet", [3], label=["4"])
    images = load(tmp_path)
    assert labels_of(images, images.train) == ["3", "4"] and labels_of(images, images.validation) == ["4"]


def test_a_split_that_is_not_used_takes_part_in_the_encoding(tmp_path):
    """Otherwise the index of a class would depend on the choice of the validation split."""
    for value, (split, label) in enumerate({"train": "m", "val": "z", "test": "a"}.items()):
        write_parquet(tmp_path / f"{split}.parquet", [value], label=[label])
    assert load(tmp_path).label_names == load(tmp_path, validation_split="test").label_names == ["a", "m", "z"]


def test_splits_that_are_not_used_may_have_other_columns(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1], label=["a"])
    write_parquet(tmp_path / "val.parquet", [2], label=["a"])
    image = {"bytes": png(3), "path": None}
    features = datasets.Features({"photo": IMAGE, "mask": IMAGE, "species": ABC})
    other = datasets.Dataset.from_dict({"photo": [image], "mask": [image], "species": [0]}, features=features)
    other.to_parquet(tmp_path / "test.parquet")
    images = load(tmp_path)
    assert images.splits == ["test", "train", "val"] and images.label_names == ["a"]
    assert values_of(images.train) == [1] and values_of(images.validation) == [2]


def test_columns_that_only_the_validation_split_has(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1])
    write_parquet(tmp_path / "test.parquet", [2], label=["a"])
    images = load(tmp_path)
    assert images.train["label"][:] == [-1] and images.validation["label"][:] == [0]


def test_splits_whose_labels_are_of_different_types(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1], label=[3])
    write_parquet(tmp_path / "test.parquet", [2], label=[3.5])
    assert "column label of split test" in load_error(tmp_path, "label_column", labels="required")
    assert load(tmp_path).label_names is None


def test_a_test_split_with_an_empty_label_column(tmp_path):
    for name, labels in {"train": [1, 0], "test": [None, None]}.items():
        table = pa.table({"image": [png(1), png(2)], "label": pa.array(labels)})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    images = load(tmp_path)
    assert images.train["label"][:] == [1, 0] and images.validation["label"][:] == [-1, -1]


@pytest.mark.parametrize("columns", [{}, {"label": [None] * 3}, {"label": [-1] * 3}, {"label": [[], None, []]}])
def test_labels_that_are_needed(tmp_path, columns):
    table = pa.table({"image": [png(value) for value in (1, 2, 3)], **columns})
    pq.write_table(table, tmp_path / "a.parquet")
    assert load_error(tmp_path / "a.parquet", "label_column", labels="required").startswith("no labels: ")
    assert load(tmp_path / "a.parquet").label_names is None


def test_a_class_without_a_name(tmp_path):
    for labels, column in (([0, 7, 1], ABC), ([[0], [], [1, 7]], datasets.List(ABC))):
        table = pa.table({"image": [png(value) for value in (1, 2, 3)], "label": labels})
        table = table.replace_schema_metadata(
            datasets.Features({"image": IMAGE, "label": column}).arrow_schema.metadata
        )
        pq.write_table(table, tmp_path / "a.parquet")
        message = load_error(tmp_path / "a.parquet", "label_column", label_column="label")
        assert "column label of split train: a label 7, but names for 3 classes" in message


# Several labels an image.


LISTS = [["oak", "fir"], [], ["fir", "ash"], None, ["fir", "fir", "fir"]]
NAMES = ["ash", "fir", "oak"]
SORTED_LISTS = [["fir", "oak"], [], ["ash", "fir"], None, ["fir"]]
INDICES = [None if names is None else [NAMES.index(name) for name in names] for names in LISTS]
MULTI_HOT = [[0, 1, 1], [0, 0, 0], [1, 1, 0], None, [0, 1, 0]]
BOOLEANS = [None if row is None else [value == 1 for value in row] for row in MULTI_HOT]


def padded(lists, size, padding):
    return [None if values is None else [*values, *[padding] * (size - len(values))] for values in lists]


LISTS_OF_CLASSES = {
    "names": (pa.list_(pa.string()), LISTS),
    "large names": (pa.large_list(pa.large_string()), LISTS),
    "names of fixed size": (pa.list_(pa.string(), 3), padded(LISTS, 3, None)),
    "indices": (pa.list_(pa.int64()), INDICES),
    "unsigned indices": (pa.large_list(pa.uint8()), INDICES),
    "indices of fixed size": (pa.list_(pa.int32(), 4), padded(INDICES, 4, -1)),
    "booleans": (pa.list_(pa.bool_()), BOOLEANS),
    "booleans of fixed size": (pa.list_(pa.bool_(), 3), BOOLEANS),
    "zeros and ones": (pa.list_(pa.int64()), MULTI_HOT),
    "zeros and ones of fixed size": (pa.list_(pa.uint8(), 3), MULTI_HOT),
}


def write_lists(path, form, rows=None, names=None):
    """The labels in that form in a parquet file, as others write it or, with names, as `datasets` does."""
    type_, labels = LISTS_OF_CLASSES[form]
    rows = list(range(len(labels)) if rows is None else rows)
    table = pa.table({"image": [png(row) for row in rows], "labels": pa.array([labels[row] for row in rows], type_)})
    if names is not None:
        wrap = datasets.LargeList if "large" in form or "unsigned" in form else datasets.List
        fixed = {"length": type_.list_size} if "fixed" in form else {}
        features = datasets.Features(
            {"image": datasets.Value("binary"), "labels": wrap(datasets.ClassLabel(names=names), **fixed)}
        )
        table = table.cast(features.arrow_schema)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("form", LISTS_OF_CLASSES)
def test_lists_of_classes(tmp_path, form):
    images = load(write_lists(tmp_path / "a.parquet", form), labels="required")
    has_names = "names" in form
    assert images.multi_label and images.label_names == (NAMES if has_names else ["0", "1", "2"])
    expected = [None if names is None else [NAMES.index(name) for name in names] for names in SORTED_LISTS]
    assert images.train["label"][:] == expected
    assert values_of(images.train) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("form", ["indices", "unsigned indices", "indices of fixed size"])
def test_lists_of_class_labels(tmp_path, form):
    """Names in the order that the dataset gives them, with a class that no image has."""
    images = load(write_lists(tmp_path / "a.parquet", form, names=[*"xaz", "none"]))
    assert images.label_names == ["x", "a", "z", "none"]
    assert labels_of(images, images.train) == [["a", "z"], [], ["x", "a"], None, ["a"]]


@pytest.mark.parametrize("rows", [[0, 4], [0, 2], [1, 3], [3]])
def test_a_selection_of_lists(tmp_path, rows):
    """Which has another start in its Arrow buffers."""
    path = write_lists(tmp_path / "all.parquet", "names of fixed size")
    datasets.Dataset.from_parquet(str(path)).select(rows).save_to_disk(tmp_path / "saved")
    images = load(tmp_path / "saved")
    if images.label_names is None:
        assert rows in ([1, 3], [3])
    else:
        assert labels_of(images, images.train) == [SORTED_LISTS[row] for row in rows]


def test_lists_have_one_encoding_in_all_splits(tmp_path):
    write_lists(tmp_path / "train.parquet", "names", [0, 1])
    write_lists(tmp_path / "val.parquet", "large names", [4, 3])
    write_lists(tmp_path / "test.parquet", "names", [2])
    images = load(tmp_path)
    assert images.label_names == NAMES
    assert labels_of(images, images.train) == [["fir", "oak"], []]
    assert labels_of(images, images.validation) == [["fir"], None]
    assert load(tmp_path, validation_split="test").train["label"][:] == images.train["label"][:]


def test_class_labels_of_other_names_in_lists(tmp_path):
    for split, names in {"train": ["a", "b", "c"], "test": ["b", "c", "d"]}.items():
        write_lists(tmp_path / f"{split}.parquet", "indices", names=names)
    images = load(tmp_path)
    assert images.label_names == ["a", "b", "c", "d"]
    assert labels_of(images, images.train) == [["b", "c"], [], ["a", "b"], None, ["b"]]
    assert labels_of(images, images.validation) == [["c", "d"], [], ["b", "c"], None, ["c"]]


@pytest.mark.parametrize("names", [None, ["x", "a", "z", "none"]])
@pytest.mark.parametrize("test", ["absent", "null", "empty lists"])
def test_a_test_split_without_lists(tmp_path, test, names):
    write_lists(tmp_path / "train.parquet", "indices" if names else "names", names=names)
    columns = {"absent": {}, "null": {"labels": [None]}, "empty lists": {"labels": [[]]}}[test]
    pq.write_table(pa.table({"image": [png(9)], **columns}), tmp_path / "test.parquet")
    images = load(tmp_path)
    assert images.multi_label and images.label_names == (names or NAMES)
    expected = [["a", "z"], [], ["x", "a"], None, ["a"]] if names else SORTED_LISTS
    assert labels_of(images, images.train) == expected
    assert images.validation["label"][:] == ([[]] if test == "empty lists" else [None])


def test_lists_in_one_split_only(tmp_path):
    write_lists(tmp_path / "train.parquet", "names")
    pq.write_table(pa.table({"image": [png(9)], "labels": ["oak"]}), tmp_path / "test.parquet")
    message = load_error(tmp_path, "label_column", labels="required")
    assert "column labels: lists of classes in some splits, and one class an image in" in message


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([[0, 1], [1, 0]], [["1"], ["0"]]),  # two classes, and each image has one: all would have both otherwise
        ([[0, 1], [1, 0], [0]], [["0", "1"], ["0", "1"], ["0"]]),
        ([[0, 1], [1, 2]], [["0", "1"], ["1", "2"]]),
        ([[0], [1]], [["0"], ["1"]]),
        ([[0, 1, 0], None, [1, 1, 1]], [["1"], None, ["0", "1", "2"]]),
    ],
)
def test_which_integers_are_multi_hot(tmp_path, rows, expected):
    pq.write_table(pa.table({"image": [png(0)] * len(rows), "labels": rows}), tmp_path / "a.parquet")
    images = load(tmp_path / "a.parquet")
    assert labels_of(images, images.train) == expected


def test_multi_hot_in_all_splits_or_none(tmp_path):
    for split, rows in {"train": [[0, 1, 1], [1, 0, 0]], "test": [[0, 1, 2]]}.items():
        pq.write_table(pa.table({"image": [png(0)] * len(rows), "labels": rows}), tmp_path / f"{split}.parquet")
    images = load(tmp_path)
    assert labels_of(images, images.train) == [["0", "1"], ["0", "1"]]


def test_booleans_of_unequal_length(tmp_path):
    rows = {"image": [png(0)] * 2, "labels": [[True, False], [True]]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert "vectors of booleans" in load_error(tmp_path, "label_column", labels="required")


@pytest.mark.parametrize("form", ["labels.json", "json"])
def test_lists_in_a_webdataset(tmp_path, form):
    members = {}
    for row, names in enumerate([["oak", "fir"], [], ["fir", "ash"]]):
        content = names if form == "labels.json" else {"labels": names, "width": 7}
        members |= {f"{row}.png": png(row), f"{row}.{form}": json.dumps(content).encode()}
    write_tar(tmp_path / "a.tar", members)
    for arguments in ({}, {"label_column": {"json": "json.labels"}.get(form, form)}):
        images = load(tmp_path / "a.tar", labels="required", **arguments)
        assert labels_of(images, images.train) == [["fir", "oak"], [], ["ash", "fir"]]
    assert values_of(stream(tmp_path / "a.tar").train) == [0, 1, 2]


def test_fields_of_a_struct_are_for_those_who_ask(tmp_path):
    """Classes of boxes stand so in a dataset for detection."""
    features = {
        "image": IMAGE,
        "objects": {"category": datasets.List(ABC), "area": datasets.List(datasets.Value("int64"))},
    }
    objects = [{"category": [0, 2, 0], "area": [5, 6, 7]}, {"category": [], "area": []}, None]
    folder = save(tmp_path, features, image=IMAGES, objects=objects)
    assert load(folder).label_names is None
    images = load(folder, label_column="objects.category")
    assert labels_of(images, images.train)[:2] == [["a", "c"], []]
    assert "no column objects.no" in load_error(folder, "label_column", label_column="objects.no")
    assert "column objects holds" in load_error(folder, "label_column", label_column="objects")


@pytest.mark.parametrize("label_column", [None, "labels"])
def test_lists_of_class_labels_are_streamed(tmp_path, no_decoding, label_column):
    for split in ("train", "test"):
        write_lists(tmp_path / f"{split}.parquet", "indices", names=["x", "y", "z"])
    images = stream(tmp_path, label_column=label_column)
    label = datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))
    assert images.multi_label and images.label_names == ["x", "y", "z"]
    assert images.train.features["label"] == label and labels_in(images.train) == INDICES


@pytest.mark.parametrize("form", LISTS_OF_CLASSES)
def test_lists_of_any_kind_do_not_stop_a_stream(tmp_path, form):
    write_lists(tmp_path / "a.parquet", form)
    images = load_images(str(tmp_path / "a.parquet"), streaming=True)
    assert images.label_names is None and not images.multi_label
    assert values_of(images.train) == [0, 1, 2, 3, 4] and images.train.column_names == ["image"]
    load_error(tmp_path / "a.parquet", "label_column", streaming=True, label_column="labels")


def test_a_table_with_lists_is_streamed(tmp_path):
    datasets.Dataset.from_parquet(str(write_lists(tmp_path / "a.parquet", "names"))).save_to_disk(tmp_path / "saved")
    images = load_images(str(tmp_path / "saved"), streaming=True)
    assert images.multi_label and images.label_names == NAMES
    assert [row["label"] for row in images.train] == load(tmp_path / "saved").train["label"][:]


# Splits.


@pytest.fixture
def four_splits(tmp_path):
    folder = tmp_path / "four"
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"image": [{"bytes": png(value), "path": None}]}).cast_column(
                "image", IMAGE
            )
            for value, split in enumerate(["train", "val", "test", "unlabeled"])
        }
    ).save_to_disk(folder)
    return folder


def test_choice_of_splits(four_splits):
    images = load(four_splits)
    assert values_of(images.train) == [0] and values_of(images.validation) == [1]
    assert images.splits == ["train", "val", "test", "unlabeled"]
    images = load(four_splits, train_split="unlabeled", validation_split="test")
    assert values_of(images.train) == [3] and values_of(images.validation) == [2]
    images = load(four_splits, train_split="val")  # is not measured on as well
    assert values_of(images.train) == [1] and values_of(images.validation) == [2]
    images = load(four_splits, train_split="test", validation_split="test")  # unless asked to
    assert values_of(images.train) == values_of(images.validation) == [2]


@pytest.mark.parametrize("argument", ["train_split", "validation_split"])
def test_wrong_split_names(four_splits, argument):
    message = load_error(four_splits, argument, **{argument: "nonsense"})
    assert "nonsense" in message and "train, val, test, unlabeled" in message


def test_the_only_split_is_train(tmp_path):
    images = load(write_images(tmp_path, {"test/a/1.png": 1}))
    assert values_of(images.train) == [1] and images.validation is None


def test_several_splits_and_none_is_train(tmp_path):
    images = load(write_images(tmp_path, {"val/1.png": 1, "test/2.png": 2}))
    assert images.train is None and values_of(images.validation) == [1]


def test_several_splits_and_none_with_a_usual_name(tmp_path):
    splits = {"north": saved_splits(), "south": saved_splits()}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert "north, south" in load_error(tmp_path, "train_split")
    images = load(tmp_path, train_split="south")
    assert len(images.train) == 6 and images.validation is None


# Trouble with files.


def test_empty_folder(tmp_path):
    assert "empty" in load_error(tmp_path)


def test_folder_without_images(tmp_path):
    write(tmp_path / "a" / "notes.txt", b"x")
    assert "no image" in load_error(tmp_path)


def test_folder_of_several_kinds(tmp_path):
    write_images(tmp_path, {"a/1.png": 1, "a/2.png": 2})
    write_parquet(tmp_path / "features.parquet", [1])
    message = load_error(tmp_path)
    assert "images (2)" in message and "parquet files (1)" in message


def test_one_image(tmp_path):
    write_images(tmp_path, {"1.png": 1})
    assert "folder" in load_error(tmp_path / "1.png")


@pytest.mark.parametrize("name", ["train.zip", "a/b.tar.bz2", "a.tar.xz", "x.7z", "images.gz"])
def test_packed_files(tmp_path, name):
    path = write(tmp_path / "set" / name, b"content")
    write(tmp_path / "set" / "notes.txt", b"content")
    for dataset in (path, tmp_path / "set"):
        message = load_error(dataset)
        assert path.name in message and "unpack" in message


@pytest.mark.parametrize("name", ["labels.csv", "images"])
def test_file_of_an_unknown_kind(tmp_path, name):
    assert "unknown kind" in load_error(write(tmp_path / name, b"content"))


def test_link_to_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "nowhere" in load_error(tmp_path / "link")


@pytest.mark.parametrize("damage", ["empty", "junk", "cut"])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_damaged_shards(tmp_path, kind, damage):
    if kind == "parquet":
        content = write_parquet(tmp_path / "train-0.parquet", [1]).read_bytes()
    else:
        content = write_tar(tmp_path / "train-0.tar", {f"{value}.png": png(value) for value in range(20)}).read_bytes()
    middle = content.index(b"PNG") + 10
    damaged = {"empty": b"", "junk": b"neither a table nor an archive " * 100, "cut": content[:middle]}[damage]
    write(tmp_path / f"test-0.{kind}", damaged)
    assert f"test-0.{kind}" in load_error(tmp_path)


def test_damage_in_the_middle_of_a_parquet_file(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", range(50))
    content = bytearray(path.read_bytes())
    content[8:2000] = bytes(1992)
    path.write_bytes(content)
    message = load_error(path)
    assert (
        "cannot be read as parquet" in message and "An error occurred" not in message
    )  # which is all that `datasets` says


def test_damaged_saved_folder(tmp_path):
    saved_splits().save_to_disk(tmp_path)
    write(tmp_path / "state.json", b"{")
    assert "save_to_disk" in load_error(tmp_path)


def test_empty_split(tmp_path):
    write_parquet(tmp_path / "train.parquet", [])
    write_parquet(tmp_path / "test.parquet", [1])
    assert "split train is empty" in load_error(tmp_path, "train_split")
    assert values_of(load(tmp_path, train_split="test").train) == [1]


def test_empty_shard(tmp_path):
    for number, values in enumerate([[], [1], [], [2]]):
        write_parquet(tmp_path / f"train-{number}.parquet", values)
    assert values_of(load(tmp_path).train) == [1, 2]


def test_a_split_without_the_image_column(tmp_path):
    write_parquet(tmp_path / "train.parquet", [1])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "test.parquet")
    message = load_error(tmp_path, "image_column")
    assert "split test" in message and "other" in message


def test_folder_without_permission(tmp_path, monkeypatch):
    write_images(tmp_path, {"a/1.png": 1, "secret/2.png": 2})
    scandir = os.scandir  # root, as whom tests may run, may read everything

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = load_error(tmp_path)
    assert str(tmp_path / "secret") in message and "Permission denied" in message


def test_file_name_that_is_not_utf_8(tmp_path):
    try:
        write(tmp_path / os.fsdecode(b"caf\xe9.png"), png(1))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert "caf\\udce9.png" in load_error(tmp_path)
