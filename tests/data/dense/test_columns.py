import io

import datasets
import numpy as np
import PIL.Image
import pytest
from coco_sets import HEIGHT, SQUARE, WIDTH, annotation, content, write_set

from modeling_sit.data.dense.loading import open_dense
from modeling_sit.data.dense.mask_values import read_mask
from modeling_sit.data.dense.rows import object_features
from modeling_sit.runtime.errors import SiTError


def encoded(size=(WIDTH, HEIGHT), values=None):
    buffer = io.BytesIO()
    image = PIL.Image.new("RGB", size) if values is None else PIL.Image.fromarray(values)
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(objects, features=None, **columns):
    rows = {"image": [encoded() for _ in objects], "objects": objects, **columns}
    built = datasets.Dataset.from_dict(rows, features=features)
    return built if features is not None else built.cast_column("image", datasets.Image(decode=False))


OBJECTS = [
    {"bbox": [[4, 4, 8, 8], [1, 2, 3, 4]], "category": ["b", "a"], "area": [64, 12]},
    {"bbox": [], "category": [], "area": []},
]


def read(rows, kind="boxes", split="train", **arguments):
    opened = open_dense(rows, kind, **arguments)
    return opened, opened.read(split)


def test_struct_of_lists_and_list_of_structs():
    as_structs = [[{"bbox": [4, 4, 8, 8], "category": "b"}, {"bbox": [1, 2, 3, 4], "category": "a"}], []]
    for objects in (OBJECTS, as_structs):
        opened, rows = read(dataset(objects))
        assert opened.splits == ["train"] and opened.label_names == ["a", "b"]
        assert rows.features == object_features(["a", "b"])
        assert rows[0]["objects"]["bbox"] == [[4, 4, 8, 8], [1, 2, 3, 4]]
        assert rows[0]["objects"]["category"] == [1, 0] and rows[0]["objects"]["iscrowd"] == [0, 0]
        assert rows[0]["objects"]["area"] == [64, 12]
        assert (rows[0]["width"], rows[0]["height"]) == (WIDTH, HEIGHT)
        assert rows[1]["objects"]["id"] == [] and list(rows["image_id"]) == [0, 1]


def test_class_labels_and_ids_of_the_dataset():
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "image_id": datasets.Value("int32"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=["x", "y", "z"])),
                "is_crowd": datasets.List(datasets.Value("bool")),
                "segmentation": datasets.List(datasets.List(datasets.List(datasets.Value("float32")))),
            },
        }
    )
    objects = {"id": [8], "bbox": [[4, 4, 8, 8]], "category": [2], "is_crowd": [True], "segmentation": [[SQUARE]]}
    rows = dataset([objects], features, image_id=[77], width=[WIDTH], height=[HEIGHT])
    opened, rows = read(datasets.DatasetDict({"train": rows}), "masks")
    assert opened.label_names == ["x", "y", "z"] and list(rows["image_id"]) == [77]
    assert rows[0]["objects"]["category"] == [2] and rows[0]["objects"]["iscrowd"] == [1]
    assert rows[0]["objects"]["segmentation"][0]["size"] == [HEIGHT, WIDTH] and rows[0]["objects"]["area"] == [64]
    _, rows = read(rows, label_names=["z", "x"])
    assert rows[0]["objects"]["category"] == [0]
    with pytest.raises(SiTError, match="row 0 has an object of category z, and the classes are x"):
        read(rows, label_names=["x"])


def test_what_is_read_from_coco_is_read_again(tmp_path):
    annotations = [annotation(3, segmentation=[SQUARE]), annotation(4, segmentation=[SQUARE], iscrowd=1)]
    _, rows = read(write_set(tmp_path / "coco", content(2, annotations)), "masks")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    for again in (tmp_path / "saved", tmp_path / "parquet"):
        opened, found = read(again, "masks")
        assert opened.label_names == ["early", "late"] and found.features == rows.features
        for column in ("image_id", "width", "height"):
            assert list(found[column]) == list(rows[column])
        for one, other in zip(found["objects"], rows["objects"], strict=True):
            assert {**one, "id": 0} == {**other, "id": 0}


def test_selected_rows():
    rows = dataset(OBJECTS * 3).select([4, 1, 0])
    assert [len(objects["id"]) for objects in read(rows)[1]["objects"]] == [2, 0, 2]


@pytest.mark.parametrize(
    ("objects", "columns", "problem"),
    [
        ([{"bbox": [[1, 1, 2, 2]], "area": [3]}], {}, "column objects has the fields bbox and area|bbox, area"),
        ([{"bbox": [[1, 1, 2]], "category": ["a"]}], {}, "annotation 1 of row 0: `bbox` is .*, not four numbers"),
        (
            [{"bbox": [[1, 1, 2, 2]], "category": ["a"]}],
            {"width": [9], "height": [9]},
            "row 0 .* is of 24 x 20 pixels",
        ),
    ],
)
def test_bad_columns(objects, columns, problem):
    with pytest.raises(SiTError, match=problem):
        read(dataset(objects, **columns))


def test_no_objects_and_no_masks():
    rows = datasets.Dataset.from_dict({"image": [encoded()], "label": [0]}).cast_column("image", datasets.Image())
    with pytest.raises(SiTError, match="no column of objects among image"):
        open_dense(rows, "boxes")
    with pytest.raises(SiTError, match="no column of masks among image"):
        open_dense(rows, "pixels")
    with pytest.raises(SiTError, match=r"column label holds .*, and no objects"):
        open_dense(rows, "boxes", label_column="label")


def test_several_columns_of_objects():
    others = [{"bbox": [[4, 4, 8, 8]], "category": ["c"]}, {"bbox": [], "category": []}]
    rows = dataset(OBJECTS, Annotations=others)
    with pytest.raises(SiTError, match="several columns of objects: objects, Annotations") as error:
        open_dense(rows, "boxes")
    assert error.value.argument == "label_column"
    assert read(rows, label_column="Annotations")[0].label_names == ["c"]


@pytest.mark.parametrize("column", ["label", "annotation", "mask"])
def test_columns_of_masks(column):
    masks = [np.full((HEIGHT, WIDTH), value, np.uint8) for value in (0, 2)]
    features = datasets.Features({"image": datasets.Image(decode=False), column: datasets.Image()})
    rows = datasets.Dataset.from_dict(
        {"image": [encoded(), encoded()], column: [encoded(values=mask) for mask in masks]}, features=features
    )
    opened, found = read(rows, "pixels")
    assert found.column_names == ["image", "label"] and opened.label_names == ["0", "1", "2"]
    np.testing.assert_array_equal(read_mask(found[1]["label"], ""), masks[1])
    with pytest.raises(SiTError, match="mask in row 1 of train has the values 2, and there are 2 classes"):
        read(rows, "pixels", label_names=["a", "b"])
