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


NAMES = ["Coverall", "Face_Shield", "Mask"]
LABEL, INTEGER, BOX = datasets.ClassLabel(names=NAMES), datasets.Value("int64"), datasets.Value("float32")


def of_objects(category, id="id", as_structs=False):
    """Features of a column of objects as a dataset of the Hub has it, and the objects of two images."""
    fields = {id: INTEGER, "area": INTEGER, "bbox": datasets.List(BOX, length=4), "category": category}
    lists = {id: [114, 115], "area": [300, 48], "bbox": [[3, 2, 20, 15], [1, 5, 6, 8]], "category": [2, 0]}
    if not isinstance(category, datasets.ClassLabel):
        lists["category"] = [NAMES[index] for index in lists["category"]]
    if as_structs:
        return datasets.List(fields), [[{name: values[n] for name, values in lists.items()} for n in range(2)], []]
    return {name: datasets.List(field) for name, field in fields.items()}, [lists, {name: [] for name in lists}]


@pytest.mark.parametrize(
    "form",
    [
        of_objects(LABEL),  # cppe-5
        of_objects(LABEL, as_structs=True),  # as older versions of the library wrote it
        of_objects(LABEL, id="bbox_id"),  # fashionpedia
        of_objects(datasets.Value("string")),
    ],
    ids=["lists", "structs", "bbox_id", "texts"],
)
def test_forms_of_the_hub(tmp_path, form):
    feature, objects = form
    features = datasets.Features(
        {
            "image_id": INTEGER,
            "image": datasets.Image(),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "objects": feature,
        }
    )
    rows = dataset(objects, features, image_id=[15, 16], width=[WIDTH] * 2, height=[HEIGHT] * 2)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "files" / "data" / "train-00000-of-00001.parquet")
    for place in ("saved", "files"):
        opened, found = read(tmp_path / place)
        assert [opened.label_names[index] for index in found[0]["objects"]["category"]] == ["Mask", "Coverall"]
        assert found[0]["objects"]["bbox"] == [[3, 2, 20, 15], [1, 5, 6, 8]]
        assert found[0]["objects"]["area"] == [300, 48] and found[1]["objects"]["id"] == []
        assert list(found["image_id"]) == [15, 16] and opened.notes == []


def test_few_images_of_another_size_are_left_out():
    """Who reads a dataset of the Hub cannot mend it."""
    objects = [{"bbox": [[n, 1, 2, 2]], "category": ["a"]} for n in range(12)]
    rows = dataset(objects, width=[WIDTH] * 12, height=[*[HEIGHT] * 3, 9, *[HEIGHT] * 8], image_id=list(range(12)))
    opened, found = read(rows)
    assert list(found["image_id"]) == [0, 1, 2, *range(4, 12)]
    assert [each["bbox"][0][0] for each in found["objects"]] == list(found["image_id"])
    (note,) = (note for note in opened.notes if "another size" in note)
    assert (
        note.startswith("train: 1 images of")
        and "row 3 of train is of 24 x 20 pixels, and its row says 24 x 9" in note
    )


INSIDE = [[n, n, 6, 5] for n in range(8)]


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        ([[n, n, n + 9, n + 8] for n in range(10)] * 2 + [[10, 8, 27, 18]], "the boxes are two corners"),
        ([[18 + n % 4, 15, 8, 9] for n in range(12)] + INSIDE, "12 of 20 reach beyond the right or lower border"),
        ([[18 + n % 4, 15, 8, 9] for n in range(12)] + INSIDE + [[-4, 3, 9, 9]], None),
        ([[20, 15, 8, 9]] * 4 + INSIDE, None),
    ],
    ids=["corners, one beyond the image", "centers", "objects at all borders", "few"],
)
def test_boxes_in_another_format(boxes, problem):
    rows = dataset([{"bbox": boxes, "category": ["a"] * len(boxes)}])
    if problem is None:
        assert any("cut at its border" in note for note in read(rows)[0].notes)
        return
    with pytest.raises(SiTError, match=problem) as error:
        read(rows)
    assert error.value.argument == "dataset" and error.value.remedy and "\n" not in str(error.value)


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


def test_masks_of_several_splits_without_names():
    """The largest value is in another split than the one that is read."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {
        name: datasets.Dataset.from_dict(
            {"image": [encoded()], "label": [encoded(values=np.full((HEIGHT, WIDTH), value, np.uint8))]},
            features=features,
            split=name,
        )
        for name, value in (("train", 1), ("validation", 3))
    }
    assert read(datasets.DatasetDict(rows), "pixels")[0].label_names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("split", ["cells-train", "my train"])
def test_splits_of_any_name(split):
    opened, rows = read(datasets.DatasetDict({split: dataset(OBJECTS)}), split=split)
    assert opened.splits == [split] and len(rows) == 2


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
