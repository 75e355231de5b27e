import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from coco_sets import HEIGHT, SQUARE, TRIANGLE, WIDTH, annotation, content, write_images, write_set

from modeling_sit.data.dense.loading import open_dense
from modeling_sit.data.dense.rows import annotations_of
from modeling_sit.data.dense.run_lengths import decode_masks
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

SHARED = Path(__file__).parents[4] / "shared" / "data"
RUNS = {"size": [HEIGHT, WIDTH], "counts": [100, 20, WIDTH * HEIGHT - 120]}


def read(folder, kind="boxes", split="train", **arguments):
    opened = open_dense(str(folder), kind, **arguments)
    return opened, opened.read(split)


def test_objects_of_all_forms(tmp_path):
    annotations = [
        annotation(11, segmentation=[SQUARE], area=64, iscrowd=0),
        annotation(12, segmentation=TRIANGLE, category_id=7, bbox=[2, 2, 16.5, 13.25]),
        annotation(13, segmentation=RUNS, iscrowd=1),
    ]
    opened, rows = read(write_set(tmp_path, content(3, annotations)))
    assert opened.splits == ["train"]
    assert opened.label_names == ["early", "late"] and opened.category_ids == [3, 7]
    assert len(rows) == 3 and str(rows.split) == "train"
    assert list(rows["image_id"]) == [1, 2, 3]
    first = rows[0]
    assert first["image"]["path"] == str(tmp_path / "images" / "0.png")
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    objects = first["objects"]
    assert objects["id"] == [11, 12, 13]
    assert objects["bbox"] == [[4, 4, 8, 8], [2, 2, 16.5, 13.25], [4, 4, 8, 8]]
    assert objects["category"] == [0, 1, 0] and objects["iscrowd"] == [0, 0, 1]
    masks = decode_masks(objects["segmentation"], HEIGHT, WIDTH)
    assert objects["area"] == [64, masks[1].sum(), 20]
    assert masks[0].sum() == 64 and masks[0][4:12, 4:12].all()
    assert masks[2].T.reshape(-1).nonzero()[0].tolist() == list(range(100, 120))
    # Images without objects are kept.
    assert rows[1]["objects"]["id"] == [] and rows[2]["objects"]["segmentation"] == []
    assert opened.notes == []
    assert annotations_of(first)[1]["category_id"] == 1 and "segmentation" in annotations_of(first)[1]


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("train.json", "images"),
        ("train.json", ""),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations.json", "images"),
        ("coco_train.json", "train/images"),
    ],
)
def test_layouts(tmp_path, name, images):
    write_set(tmp_path, content(2, [annotation()]), name, images)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    if images == "images/default":
        written = json.loads((tmp_path / name).read_text())
        for image in written["images"]:
            image["file_name"] = f"default/{image['file_name']}"
        (tmp_path / name).write_text(json.dumps(written))
    opened, rows = read(tmp_path)
    assert opened.splits == ["train"]
    assert [image["path"] for image in rows["image"]] == [str(tmp_path / images / f"{n}.png") for n in range(2)]


def test_names_with_folders_of_another_machine(tmp_path):
    written = content(1, [annotation()])
    written["images"][0]["file_name"] = "C:\\data\\cells\\0.png"
    _, rows = read(write_set(tmp_path, written))
    assert rows[0]["image"]["path"] == str(tmp_path / "images" / "0.png")


def test_splits_share_the_classes_of_the_first_that_is_read(tmp_path):
    write_set(tmp_path, content(2, [annotation()]), "train/_annotations.coco.json", "train")
    other = content(1, [annotation(category_id=0)], categories=[{"id": 0, "name": "late"}])
    write_set(tmp_path, other, "valid/_annotations.coco.json", "valid")
    opened = open_dense(tmp_path, "boxes")
    assert sorted(opened.splits) == ["train", "valid"]
    opened.read("train")
    rows = opened.read("valid")
    assert opened.label_names == ["early", "late"] and rows[0]["objects"]["category"] == [1]
    known, rows = read(tmp_path, split="valid", label_names=["x", "late"])
    assert known.label_names == ["x", "late"] and rows[0]["objects"]["category"] == [1]
    with pytest.raises(SiTError, match="not among the classes: late"):
        read(tmp_path, split="valid", label_names=["x"])


def test_roboflow_writes_the_name_of_the_set_as_a_category(tmp_path):
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "early", "supercategory": "cells"},
        {"id": 2, "name": "late", "supercategory": "cells"},
    ]
    opened, rows = read(write_set(tmp_path, content(1, [annotation(category_id=2)], categories=categories)))
    assert opened.label_names == ["early", "late"] and opened.category_ids == [1, 2]
    assert rows[0]["objects"]["category"] == [1]


def test_coco_itself_has_a_person_of_persons(tmp_path):
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 3, "name": "car"}]
    opened, _ = read(write_set(tmp_path, content(1, [annotation()], categories=categories)))
    assert opened.label_names == ["person", "car"]


def test_ids_from_0_and_texts(tmp_path):
    written = content(2, categories=[{"id": "b", "name": "late"}, {"id": 0, "name": "early"}])
    written["images"][0]["id"], written["images"][1]["id"] = "cell_1", "0007"
    written["annotations"] = [
        {**annotation(0), "image_id": "cell_1", "category_id": "b"},
        {**annotation(0), "image_id": 7, "category_id": 0},
    ]
    opened, rows = read(write_set(tmp_path, written))
    assert opened.label_names == ["early", "late"]
    assert list(rows["image_id"]) == [1, 2]
    # pycocotools takes an annotation of id 0 for none.
    assert [objects["id"] for objects in rows["objects"]] == [[1], [2]]
    assert [objects["category"] for objects in rows["objects"]] == [[1], [0]]


def test_box_of_a_mask(tmp_path):
    only_mask = {key: value for key, value in annotation(segmentation=[SQUARE]).items() if key != "bbox"}
    _, rows = read(write_set(tmp_path, content(1, [only_mask])))
    assert rows[0]["objects"]["bbox"] == [[4, 4, 8, 8]]


def test_what_is_left_out_is_counted(tmp_path):
    annotations = [
        annotation(1, bbox=[4, 4, 0, 8]),
        annotation(2, bbox=[4, 4, 8, -1]),
        annotation(3, bbox=[30, 4, 8, 8]),
        annotation(4, bbox=[20, 10, 8, 20]),
        annotation(5, bbox=[16, 10, 8.5, 10]),
        annotation(6, segmentation=[[1, 1, 5, 5], SQUARE]),
        annotation(7, segmentation=[[1, 1, 5, 5]]),
    ]
    folder = write_set(tmp_path, content(1, annotations))
    opened, rows = read(folder)
    objects = rows[0]["objects"]
    assert objects["id"] == [4, 5, 6, 7]
    # By less than a pixel it is rounding.
    assert objects["bbox"][:2] == [[20, 10, 4, 10], [16, 10, 8, 10]]
    file = str(folder / "train.json")
    assert opened.notes == [
        f"{file}: 2 boxes of zero size are left out, such as that of annotation 1 of 0.png",
        f"{file}: 1 boxes outside of their image are left out, such as that of annotation 3 of 0.png",
        f"{file}: 1 boxes that reach beyond their image are cut at its border, such as that of annotation 4 of 0.png",
        f"{file}: 2 polygons of fewer than three points are left out, such as that of annotation 6 of 0.png",
    ]
    opened, rows = read(folder, "masks")
    assert rows[0]["objects"]["id"] == [6]
    assert any("6 objects without a mask are left out" in note for note in opened.notes)


def change(**fields):
    return lambda written: written["annotations"][0].update(fields)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change(image_id=99), "annotation 1 is of image 99, which is not among its images"),
        (change(category_id=5), "annotation 1 of 0.png is of category 5, and the categories are 3, 7"),
        (change(category_id=None), "annotation 1 has no `category_id`"),
        (change(bbox=[1, 2, 3]), "annotation 1 of 0.png: `bbox` is .1, 2, 3., not four numbers"),
        (change(bbox=[1, 2, 3, None]), "not four numbers"),
        (change(bbox=None), "neither `bbox` nor a mask"),
        (change(iscrowd="no"), "`iscrowd` is 'no'"),
        (
            change(segmentation={"size": [5, 5], "counts": [25]}),
            "its mask is of 5 x 5 pixels, and the image of 24 x 20",
        ),
        (change(bbox=[0.1, 0.2, 0.5, 0.5]), "the boxes are fractions of the image"),
        (change(bbox=[10, 12, 20, 19]), "the boxes are two corners"),
        (lambda written: written.pop("annotations"), "no COCO file: it has no list `annotations`"),
        (lambda written: written.update(categories={}), "no COCO file: it holds dict, and no list, as `categories`"),
        (lambda written: written["images"].append(3), "among `images` is 3, which has no fields"),
        (lambda written: written["images"][0].pop("id"), "image 0 has no `id`"),
        (lambda written: written["images"][0].pop("file_name"), "image 1 has no `file_name`"),
        (lambda written: written["images"][1].update(id="1"), "two images have the id 1"),
        (
            lambda written: written["images"][1].update(file_name="9.png"),
            "1 of its 2 images are not in .*, such as 9.png",
        ),
        (lambda written: written["images"][0].update(width=48), "0.png is of 24 x 20 pixels, and .* says 48 x 20"),
        (lambda written: written["categories"][0].update(name="early"), "several categories are called early"),
        (lambda written: written["categories"][0].update(id=3), "two categories have the id 3"),
        (lambda written: written["images"].clear(), "its list `images` is empty"),
    ],
)
def test_damaged_files(tmp_path, damage, problem):
    written = content(2, [annotation()])
    folder = write_set(tmp_path, written)
    damage(written)
    (folder / "train.json").write_text(json.dumps(written))
    with pytest.raises(SiTError, match=problem) as raised:
        read(folder)
    assert "train.json" in raised.value.problem
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"images": [', "is no JSON file"),
        ("[1, 2]", "is a list, as COCO's results are"),
        ("3", "is no COCO file: it holds int"),
        ("{}", "is no COCO file: it has no list `images`"),
    ],
)
def test_files_that_are_none(tmp_path, text, problem):
    write_images(tmp_path / "images", 1)
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(SiTError, match=f"train.json {problem}"):
        open_dense(tmp_path, "boxes").read("train")


@pytest.mark.parametrize("text", ["{}", "[1]", "nothing"])
def test_a_damaged_file_beside_others_is_no_other_file(tmp_path, text):
    """Without it, the images of the test would be trained on."""
    folder = write_set(tmp_path, content(1, [annotation()]), "test.json")
    (folder / "train.json").write_text(text)
    (folder / "train_colors.json").write_text("{}")
    opened = open_dense(folder, "boxes")
    assert sorted(opened.splits) == ["test", "train"]
    with pytest.raises(SiTError, match=r"train.json is"):
        opened.read("train")


def test_no_image_is_there(tmp_path):
    folder = write_set(tmp_path, content(2, [annotation()]))
    shutil.rmtree(folder / "images")
    with pytest.raises(SiTError, match=f"2 of its 2 images are not in {folder}, such as"):
        read(folder)


def test_images_that_exif_turns(tmp_path):
    folder = write_set(tmp_path, content(1, [annotation()]))
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "0.png", exif=exif)
    with pytest.raises(SiTError, match="its EXIF turns it"):
        read(folder)


def test_masks_are_needed_and_there_are_none(tmp_path):
    with pytest.raises(SiTError, match="none of its 1 objects has a mask"):
        read(write_set(tmp_path, content(1, [annotation()])), "masks")


def test_two_files_of_one_split(tmp_path):
    for year in (2014, 2017):
        write_set(tmp_path, content(1, [annotation()]), f"annotations/instances_train{year}.json", f"train{year}")
    with pytest.raises(SiTError, match="several files are of split train"):
        open_dense(tmp_path, "boxes")
    name = "instances_train2017"
    _, rows = read(tmp_path, asked=(name,), split=name)
    assert rows[0]["image"]["path"] == str(tmp_path / "train2017" / "0.png")


def test_a_class_for_each_pixel_is_wanted_and_there_are_objects(tmp_path):
    folder = write_set(tmp_path, content(1, [annotation()]))
    with pytest.raises(SiTError, match=r"it has objects \(.*/train.json\), and no class for each pixel"):
        open_dense(folder, "pixels")


def test_pretraining_reads_the_images_of_the_same_folder(tmp_path):
    folder = write_set(tmp_path, content(3, [annotation(segmentation=[SQUARE])]))
    images = load_images(str(folder))
    assert [image["path"] for image in images.train["image"]] == [
        str(folder / "images" / f"{n}.png") for n in range(3)
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("name", "counts", "num_masks"),
    [("nuclei", (166, 5079), 5079), ("bccd", (72, 945), 0), ("coco_mini", (67, 575), 575)],
)
def test_shared_sets_against_pycocotools(name, counts, num_masks):
    coco = pytest.importorskip("pycocotools.coco").COCO(SHARED / name / "test.json")
    opened, rows = read(SHARED / name, split="test")
    assert (len(rows), sum(len(objects["id"]) for objects in rows["objects"])) == counts
    assert opened.notes == []
    assert opened.label_names == [category["name"] for category in coco.loadCats(coco.getCatIds())]
    masks = 0
    for row in rows:
        objects = row["objects"]
        written = coco.loadAnns(coco.getAnnIds(row["image_id"]))
        by_id = {each["id"]: each for each in written}
        assert sorted(objects["id"]) == sorted(by_id)
        for place, id in enumerate(objects["id"]):
            each = by_id[id]
            np.testing.assert_allclose(objects["bbox"][place], each["bbox"], atol=1)
            assert objects["area"][place] == each["area"] and objects["iscrowd"][place] == each.get("iscrowd", 0)
            assert opened.category_ids[objects["category"][place]] == each["category_id"]
            if objects["segmentation"][place] is not None:
                masks += 1
                if row["image_id"] % 8 == 0:
                    pixels = decode_masks([objects["segmentation"][place]], row["height"], row["width"])[0]
                    np.testing.assert_array_equal(pixels, coco.annToMask(each))
    assert masks == num_masks
