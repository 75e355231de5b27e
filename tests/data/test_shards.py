"""Parquet and tar files as people write them: only images and labels are read, the same from disk and as a stream."""

import io
import json
import logging
import tarfile

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from modeling_sit.data import tar_files
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.data.split_names import tell_once
from modeling_sit.data.tar_members import names_have_dots
from modeling_sit.runtime.errors import SiTError

pytestmark = pytest.mark.usefixtures("isolated_cache")


def encoded(value, format="PNG"):
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 3), value).save(buffer, format, **({"quality": 100} if format == "JPEG" else {}))
    return buffer.getvalue()


def write_tar(path, members):
    """Members in this order, of which several may have one name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def images_of(count, ending="png"):
    return [(f"{value:03}.{ending}", encoded(value)) for value in range(count)]


@pytest.fixture(params=["disk", "stream", "hub"])
def load(request, monkeypatch):
    """Load a file or a folder, from the disk and as a stream, and as if its files were of a dataset on the Hub."""
    streaming = "stream" in request.param

    def run(path, **arguments):
        if "hub" not in request.param:
            return load_images(str(path), streaming=streaming, **arguments)
        files = sorted(str(file) for file in path.iterdir()) if path.is_dir() else [str(path)]
        form = Parquet if files[0].endswith("parquet") else WebDataset
        splits = DataFilesDict.from_patterns({"train": files})
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: form(data_files=splits))
        return load_images("someone/images", streaming=streaming, **arguments)

    run.streaming, run.is_hub = streaming, request.param == "hub"
    return run


def values_of(rows):
    return [int(np.asarray(decode_image(row["image"], 1)).mean()) for row in rows]


def labels_of(images):
    labels = [row["label"] for row in images.train]
    return (
        labels
        if images.label_names is None
        else [images.label_names[label] if label >= 0 else None for label in labels]
    )


# Parquet.


def write_parquet(path, columns):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "others",
    [
        [{}, {"note": ["a", "b"]}],
        [{"note": ["a", "b"]}, {}],
        [{"note": ["a", "b"]}, {"note": [1, 2]}],
        [{"note": pa.nulls(2)}, {"note": [[1], [2, 3]]}],
        [{"note": [{"a": 1}, {"a": 2}]}, {"note": [{"b": "x"}, None]}],
        [{"note": pa.array([[1], [2]], pa.list_view(pa.int64()))}, {}],
        [{"note": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64()))}, {"other": [1.5, None]}],
    ],
    ids=["extra", "missing", "type", "null", "struct", "list view", "map"],
)
def test_columns_that_nobody_asks_for_may_be_anything(tmp_path, load, others):
    for number, columns in enumerate(others):
        images = [encoded(10 * number + row) for row in range(2)]
        write_parquet(tmp_path / "set" / f"part-{number}.parquet", {"image": images, "label": [3, 4], **columns})
    images = load(tmp_path / "set")
    assert values_of(images.train) == [0, 1, 10, 11] and labels_of(images) == (
        [3, 4, 3, 4] if images.label_names is None else ["3", "4"] * 2
    )
    assert set(images.train.features) == {"image", "label"}


@pytest.mark.parametrize(
    "type",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
        pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())]),
    ],
    ids=str,
)
@pytest.mark.parametrize("other", [pa.binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])], ids=str)
def test_images_of_any_type_of_arrow(tmp_path, load, type, other):
    """In one file, beside a usual type in another."""
    for number, each in enumerate([type, other]):
        images = [encoded(10 * number + row) for row in range(2)]
        if pa.types.is_struct(each):
            images = [{"bytes": image, "path": None} for image in images]
        column = pa.array(images, pa.binary()).dictionary_encode() if pa.types.is_dictionary(each) else None
        column = pa.array(images, each) if column is None else column
        write_parquet(tmp_path / "set" / f"part-{number}.parquet", {"image": column})
    images = load(tmp_path / "set")
    assert values_of(images.train) == [0, 1, 10, 11]
    assert images.train.features["image"] == datasets.Image(decode=False)


LABELS = ["oak", "pine", None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(LABELS, pa.string_view()),
        pa.array(LABELS, pa.large_string()),
        pa.array(LABELS).dictionary_encode(),
        pa.array(LABELS, pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_labels_of_any_type_of_arrow(tmp_path, column):
    path = write_parquet(tmp_path / "a.parquet", {"image": [encoded(row) for row in range(3)], "label": column})
    assert labels_of(load_images(str(path), labels="required")) == LABELS


@pytest.mark.parametrize(
    "type", [pa.list_(pa.string_view()), pa.list_(pa.dictionary(pa.int32(), pa.string()))], ids=str
)
def test_lists_of_labels_of_any_type_of_arrow(tmp_path, type):
    lists = [["oak", "pine"], [], None]
    path = write_parquet(
        tmp_path / "a.parquet", {"image": [encoded(row) for row in range(3)], "label": pa.array(lists, type)}
    )
    images = load_images(str(path), labels="required")
    assert images.multi_label and images.train["label"][:] == [[0, 1], [], None]


def test_views_in_memory(tmp_path):
    table = pa.table(
        {
            "image": pa.array([encoded(1), encoded(2)], pa.binary_view()),
            "label": pa.array(["a", "b"], pa.string_view()),
        }
    )
    images = load_images(datasets.Dataset(table))
    assert values_of(images.train) == [1, 2] and labels_of(images) == ["a", "b"]


def test_a_label_column_that_a_file_lacks(tmp_path, caplog):
    write_parquet(tmp_path / "set" / "0.parquet", {"image": [encoded(1)], "label": [1]})
    write_parquet(tmp_path / "set" / "1.parquet", {"image": [encoded(2)]})
    with caplog.at_level(logging.WARNING):
        images = load_images(str(tmp_path / "set"))
    assert values_of(images.train) == [1, 2] and images.label_names is None
    assert f"{tmp_path}/set/1.parquet has no column label" in caplog.text
    for arguments in ({"labels": "required"}, {"label_column": "label"}):
        with pytest.raises(SiTError, match=r"1\.parquet has no column label") as caught:
            load_images(str(tmp_path / "set"), **arguments)
        assert caught.value.argument == "label_column"


@pytest.mark.parametrize("streaming", [False, True])
def test_an_image_column_that_a_file_lacks(tmp_path, streaming):
    write_parquet(tmp_path / "set" / "0.parquet", {"image": [encoded(1)]})
    write_parquet(tmp_path / "set" / "1.parquet", {"photo": [1]})
    with pytest.raises(SiTError, match=r"1\.parquet has no column image") as caught:
        load_images(str(tmp_path / "set"), streaming=streaming)
    assert caught.value.argument == "image_column"


def test_columns_that_all_files_have_go_before_others(tmp_path, load):
    """A second column of bytes or with a usual name of labels, in one of the files, makes nothing unclear."""
    write_parquet(tmp_path / "set" / "0.parquet", {"image": [encoded(1)], "label": [1]})
    write_parquet(
        tmp_path / "set" / "1.parquet", {"vector": [b"abc"], "image": [encoded(2)], "label": [2], "class": [5]}
    )
    images = load(tmp_path / "set")
    assert values_of(images.train) == [1, 2] and [int(label) for label in labels_of(images)] == [1, 2]


def test_an_error_names_the_parquet_file(tmp_path, load):
    rng = np.random.default_rng(0)
    for number in range(3):
        write_parquet(tmp_path / "set" / f"{number}.parquet", {"image": [rng.bytes(1000) for _ in range(50)]})
    path = tmp_path / "set" / "1.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:9] + bytes(9000) + content[9009:])
    with pytest.raises(SiTError, match=r"1\.parquet") as caught:
        images = load(tmp_path / "set")
        read_all(images)
    assert "0.parquet" not in str(caught.value) and "\n" not in str(caught.value)


def read_all(images):
    from modeling_sit.data.shard_reading import ProcessStream

    stream = ProcessStream(images.train, images.train_shards, 0, 0, 1)
    return stream.read_block(1000)


def test_splits_that_are_not_used_are_not_copied(tmp_path):
    """Their labels count for the classes' indices, and no image of theirs is read."""
    for split, label in {"train": "b", "validation": "c", "test": "a"}.items():
        write_parquet(tmp_path / "set" / f"{split}.parquet", {"image": [encoded(1)], "label": [label], "note": ["x"]})
    write_parquet(tmp_path / "set" / "test-1.parquet", {"image": [b"no image"], "label": ["d"]})
    images = load_images(str(tmp_path / "set"))
    assert images.label_names == ["a", "b", "c", "d"] and images.splits and labels_of(images) == ["b"]


# Tar files.


def test_members_that_nobody_asks_for_may_be_anything(tmp_path, load):
    """Null, of other types, damaged, missing, twice, or beside no image at all."""
    members = [("README.md", b"text"), ("index.json", b"{}")]
    for value in range(12):
        members += [(f"{value:03}.png", encoded(value)), (f"{value:03}.cls", b"%d\n" % (value % 3))]
        note = None if value < 6 else "good" if value < 9 else 7
        members += [(f"{value:03}.json", json.dumps({"note": note, f"only {value}": [value]}).encode())]
        members += [(f"{value:03}.txt", b"\xff not UTF-8")] if value % 2 else []
        members += [(f"{value:03}.npy", b"damaged")] if value == 3 else []
    images = load(write_tar(tmp_path / "a.tar", members[:1] + members[2:]))
    assert values_of(images.train) == list(range(12))
    expected = [value % 3 for value in range(12)]
    assert labels_of(images) == (expected if images.label_names is None else [str(label) for label in expected])
    assert set(images.train.features) == {"image", "label"}


def write_labeled(path, number, lack):
    """Images of the values from 0, each with its value modulo 3 as the label, but for some."""
    members = []
    for value in range(number):
        members += [(f"{value:03}.png", encoded(value))]
        members += [] if value in lack else [(f"{value:03}.cls", b"%d" % (value % 3))]
    return write_tar(path, members)


def test_labels_that_the_first_samples_lack(tmp_path, load, caplog, monkeypatch):
    images = load(write_labeled(tmp_path / "a.tar", 130, set(range(110))))
    assert values_of(images.train) == list(range(130))
    expected = [None] * 110 + [value % 3 for value in range(110, 130)]
    assert [label if label is None else int(label) for label in labels_of(images)] == expected
    assert not caplog.messages
    # Where nobody looks that far, it is told.
    monkeypatch.setattr(tar_files, "NUM_NAMES", 105)
    tell_once.cache_clear()
    late = load(write_labeled(tmp_path / "b.tar", 130, set(range(110))))
    assert values_of(late.train) == list(range(130)) and "label" not in late.train.features
    (message,) = caplog.messages
    assert "110.cls" in message


@pytest.mark.parametrize("missing", ["first", "some", "many"])
def test_labels_missing_in_some_samples(tmp_path, load, missing):
    lack = {"first": {0, 1, 2, 3, 4, 5}, "some": {4}, "many": set(range(1, 12))}[missing]
    images = load(write_labeled(tmp_path / "a.tar", 12, lack))
    assert values_of(images.train) == list(range(12))
    labels = [None if value in lack else value % 3 for value in range(12)]
    assert labels_of(images) == (
        labels if images.label_names is None else [None if label is None else str(label) for label in labels]
    )


@pytest.mark.parametrize("label", ["cls", "label.txt", "json"])
@pytest.mark.parametrize("first", ["images", "labels"])
def test_images_and_labels_that_are_not_side_by_side(tmp_path, load, first, label):
    """As `tar -cf a.tar *.png *.cls` puts them: refused, with what to do, before anything is read."""
    labels = [(f"{value:03}.{label}", b"{}" if label == "json" else b"1") for value in range(8)]
    members = images_of(8) + labels if first == "images" else labels + images_of(8)
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SiTError, match="tar --sort=name") as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.argument == "dataset"


def test_images_and_labels_in_folders_of_their_own(tmp_path, load):
    members = [(f"images/{name}", image) for name, image in images_of(8)]
    members = sorted(members + [(f"labels/{value:03}.cls", b"1") for value in range(8)])
    with pytest.raises(SiTError, match="in one folder"):
        load(write_tar(tmp_path / "a.tar", members))


def test_images_and_labels_that_are_not_side_by_side_in_a_later_file(tmp_path, load):
    """Where nobody has looked before: it is noticed when it is read."""
    (tmp_path / "set").mkdir()
    for number in (0, 2):
        write_tar(tmp_path / "set" / f"{number}.tar", [*images_of(3), ("9.png", encoded(9)), ("9.cls", b"1")])
    write_tar(tmp_path / "set" / "1.tar", images_of(3) + [(f"{value:03}.cls", b"1") for value in range(3)])
    with pytest.raises(SiTError, match=r"1\.tar.*tar --sort=name"):
        read_all(load(tmp_path / "set"))


def test_members_that_nobody_asks_for_may_stand_anywhere(tmp_path, load):
    captions = [(f"{value:03}.txt", b"a caption") for value in range(8)]
    assert values_of(load(write_tar(tmp_path / "a.tar", images_of(8) + captions)).train) == list(range(8))


def test_a_sample_without_an_image(tmp_path, load):
    """It is named when it is read."""
    images = load(
        write_tar(
            tmp_path / "a.tar",
            [*images_of(2), ("7.cls", b"1"), ("8.txt", b"x"), ("9.png", encoded(9)), ("9.cls", b"1")],
        )
    )
    rows = list(images.train)
    assert [row["image"] is None for row in rows] == [False, False, True, False]


@pytest.mark.parametrize(("later", "other"), [(2, "jpg"), (7, "JPEG"), (150, "tif")])
def test_each_samples_image_is_taken_whichever_ending_it_has(tmp_path, load, later, other):
    members = []
    for value in range(later + 3):
        name = f"{value:03}.{'png' if value < later else other}"
        members += [(name, encoded(value)), (f"{value:03}.cls", b"%d" % (value % 2))]
    images = load(write_tar(tmp_path / "a.tar", members))
    assert values_of(images.train) == list(range(later + 3)) and set(images.train.features) == {"image", "label"}


@pytest.mark.parametrize("asked", [None, "png", "jpg"])
def test_endings_that_alternate(tmp_path, load, asked):
    members = [(f"{value:03}.{'jpg' if value % 2 else 'png'}", encoded(value)) for value in range(8)]
    assert values_of(load(write_tar(tmp_path / "a.tar", members), image_column=asked).train) == list(range(8))


def test_endings_that_differ_between_splits(tmp_path):
    for split, ending in {"test": "jpg", "train": "png"}.items():
        write_tar(tmp_path / f"{split}.tar", images_of(3, ending))
    for asked in (None, "png", "jpg"):
        images = load_images(str(tmp_path), image_column=asked)
        assert values_of(images.train) == values_of(images.validation) == [0, 1, 2]


def test_two_images_in_a_sample_are_two_columns(tmp_path, load):
    members = []
    for value in range(4):
        members += [
            (f"{value}.png", encoded(value)),
            (f"{value}.jpg", encoded(100 + value)),
            (f"{value}.seg.png", b"s"),
        ]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SiTError) as caught:
        load(path)
    assert caught.value.argument == "image_column"
    assert values_of(load(path, image_column="jpg").train) == [100, 101, 102, 103]


DOTTED = {
    "dates": [f"photo.2020.{value:02}" for value in range(8)],
    "kaggle": [f"{'cat' if value % 2 else 'dog'}.{value // 2}" for value in range(8)],
    "versions": [f"a/{value}.v1" for value in range(8)],
    "some": [f"{value}" if value % 3 else f"{value}.edited" for value in range(8)],
    "one": [f"{value}" if value != 6 else "6.new" for value in range(8)],
}


@pytest.mark.parametrize("names", DOTTED.values(), ids=DOTTED)
@pytest.mark.parametrize("with_labels", [False, True])
def test_dots_in_names(tmp_path, load, names, with_labels):
    members = []
    for value, name in enumerate(names):
        members += [(f"{name}.png", encoded(value))]
        members += [(f"{name}.cls", b"%d" % (value % 2))] if with_labels else []
    images = load(write_tar(tmp_path / "a.tar", members))
    assert values_of(images.train) == list(range(8))
    if with_labels:
        assert [int(label) for label in labels_of(images)] == [value % 2 for value in range(8)]


def test_a_dot_where_nobody_has_looked_is_refused(tmp_path, load):
    members = [member for value in range(120) for member in ((f"{value}.png", encoded(value)), (f"{value}.cls", b"1"))]
    (tmp_path / "set").mkdir()
    for number in range(3):
        write_tar(tmp_path / "set" / f"{number}.tar", members + ([("x.y.png", encoded(1))] if number == 1 else []))
    with pytest.raises(SiTError, match=r"1\.tar.*x\.y\.png.*no dot"):
        read_all(load(tmp_path / "set"))


@pytest.mark.parametrize(
    "names, expected",
    [
        (["0.png", "0.seg.png", "1.png", "1.seg.png"], False),
        (["0.cls", "0.v1.png", "0.v2.png", "1.cls", "1.v1.png", "1.v2.png"], False),
        ([f"{value}.v{number}.png" for value in range(9) for number in (1, 2)], False),
        (["0.png", "0.label.txt"], False),
        (["a.1.png", "a.2.png", "b.1.png"], True),
        (["0.seg.png"], True),
        ([], False),
    ],
)
def test_whether_names_have_dots(names, expected):
    assert names_have_dots(names) == expected


@pytest.mark.parametrize("contents", [[b"cat", b"dog"], [b"1", b"dog"], ["α\n".encode(), b"b\n"]])
def test_texts_in_place_of_integers(tmp_path, contents):
    members = [
        (f"{value}.{end}", part)
        for value, text in enumerate(contents)
        for end, part in (("png", encoded(value)), ("cls", text))
    ]
    images = load_images(str(write_tar(tmp_path / "a.tar", members)), labels="required")
    assert labels_of(images) == [content.decode().strip() for content in contents]


@pytest.mark.parametrize("label_column", ["json.species", None])
def test_one_field_of_json_files_of_which_others_differ(tmp_path, load, label_column):
    if load.streaming:
        pytest.skip("texts are no labels of a stream")
    name = "species" if label_column else "label"
    members = []
    for value in range(6):
        row = {name: None if value == 2 else "ab"[value % 2], "size": value if value % 2 else "big", "box": None}
        members += [(f"{value}.png", encoded(value)), (f"{value}.json", json.dumps(row).encode())]
    images = load(write_tar(tmp_path / "a.tar", members), label_column=label_column, labels="required")
    assert labels_of(images) == ["a", "b", None, "b", "a", "b"]


def test_a_label_of_another_type(tmp_path, load, caplog):
    """It is named; where labels are not needed, the images are read."""
    (tmp_path / "set").mkdir()
    for number, label in enumerate([b"1", b"cat", b"1"]):
        write_tar(tmp_path / "set" / f"{number}.tar", [("7.png", encoded(7)), ("7.cls", label)])
    with pytest.raises(SiTError, match=r"1\.tar.*7\.cls"):
        read_all(load(tmp_path / "set", label_column="cls"))
    tell_once.cache_clear()
    images = load(tmp_path / "set")
    assert [label is None or int(label) for label in labels_of(images)] == [1, True, 1]
    assert "7.cls" in caplog.text


@pytest.mark.parametrize("types", ["int64 string", "string int64", "bool int64", "string float64", "int64 list"])
def test_labels_of_different_kinds(tmp_path, load, caplog, types):
    columns = {"int64": [1, 2], "string": ["a", "b"], "bool": [True, False], "float64": [1.0, 2.0], "list": [[1], [2]]}
    for number, type in enumerate(types.split(" ")):
        columns_of_file = {"image": [encoded(number), encoded(number)], "label": columns[type]}
        write_parquet(tmp_path / "set" / f"{number}.parquet", columns_of_file)
    if load.is_hub:  # only one of the files is looked at
        with pytest.raises(SiTError, match=r"1\.parquet.*label"):
            read_all(load(tmp_path / "set"))
        assert not caplog.messages
        return
    images = load(tmp_path / "set")
    assert values_of(images.train) == [0, 0, 1, 1] and images.label_names is None
    (message,) = caplog.messages
    assert "0.parquet" in message and "1.parquet" in message
    with pytest.raises(SiTError) as error:
        load(tmp_path / "set", labels="required")
    assert error.value.argument == "label_column" and error.value.remedy


def test_a_file_in_the_current_folder_does_not_take_the_place_of_a_member(tmp_path, load, monkeypatch):
    (tmp_path / "000.png").write_bytes(encoded(99))
    monkeypatch.chdir(tmp_path)
    assert values_of(load(write_tar(tmp_path / "a.tar", images_of(2))).train) == [0, 1]


def test_a_member_that_is_twice_in_a_sample(tmp_path, load):
    path = write_tar(tmp_path / "a.tar", [("0.png", encoded(1)), ("0.PNG", encoded(2))])
    with pytest.raises(SiTError, match=r"a\.tar.*twice"):
        load(path)


def test_a_tar_without_images(tmp_path, load):
    path = write_tar(tmp_path / "a.tar", [("0.txt", b"text"), ("1.txt", b"text")])
    with pytest.raises(SiTError, match="no column of images") as caught:
        load(path)
    assert caught.value.argument == "image_column"


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_a_stream_goes_on_where_it_stood(tmp_path, form):
    from modeling_sit.data.shard_reading import ProcessStream

    (tmp_path / "set").mkdir()
    for number in range(3):
        if form == "tar":
            write_tar(tmp_path / "set" / f"{number}.tar", [(f"{v}.png", encoded(10 * number + v)) for v in range(5)])
        else:
            images = [encoded(10 * number + row) for row in range(5)]
            write_parquet(tmp_path / "set" / f"{number}.parquet", {"image": images, f"only {number}": [1] * 5})
    images = load_images(str(tmp_path / "set"), streaming=True)
    whole = ProcessStream(images.train, images.train_shards, 0, 0, 1).read_block(15)
    stream = ProcessStream(images.train, images.train_shards, 0, 0, 1)
    first, state = stream.read_block(7), json.loads(json.dumps(stream.state_dict()))
    images = load_images(str(tmp_path / "set"), streaming=True)
    rest = ProcessStream(images.train, images.train_shards, 0, 0, 1, state).read_block(15)
    assert [image.name for image in first + rest] == [image.name for image in whole]


def test_files_of_a_split_that_name_their_classes_differently(load, tmp_path):
    """An index means another class there."""
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        rows = {"image": [{"bytes": encoded(value), "path": None} for value in range(3)], "label": [0, 1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"train-{number}.parquet")
    with pytest.raises(SiTError) as error:
        list(load(tmp_path, labels="required").train)
    assert "train-1.parquet" in str(error.value) and "the classes dog, cat" in str(error.value)
    if not load.is_hub:  # which is read whole
        assert load(tmp_path).label_names is None  # pretraining needs no labels


def test_images_of_one_name_behind_the_first_ones_are_not_lost(tmp_path):
    for number in range(3):
        more = [("7.jpg", encoded(7, "JPEG")), ("7.png", encoded(8))] if number == 1 else []
        write_tar(tmp_path / f"train-{number}.tar", [*images_of(3, "jpg"), *more])
    with pytest.raises(SiTError, match=r"7\.jpg and 7\.png have one name"):
        load_images(str(tmp_path))


def test_lines_that_name_a_class(tmp_path):
    members = []
    for value, text in enumerate((b"dog\n", b"cat\n", b"dog", b"cat")):
        members += [(f"{value}.png", encoded(value)), (f"{value}.label.txt", text)]
    images = load_images(str(write_tar(tmp_path / "images.tar", members)), labels="required")
    assert labels_of(images) == ["dog", "cat", "dog", "cat"]
