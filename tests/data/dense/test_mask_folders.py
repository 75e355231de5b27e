import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from modeling_sit.data.dense.loading import open_dense
from modeling_sit.data.dense.mask_values import read_mask
from modeling_sit.data.sources import load_images
from modeling_sit.runtime.errors import SiTError

SHARED = Path(__file__).parents[4] / "shared" / "data"
SIZE = (12, 10)


def save(path, values=None, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        PIL.Image.new(mode, SIZE, 90).save(path)
    else:
        PIL.Image.fromarray(values).save(path)
    return path


def mask(*values, dtype=np.uint8):
    """A mask with these values, side by side."""
    return np.resize(np.array(values, dtype=dtype), SIZE[::-1])


def write_pairs(folder, image="images/{}.jpg", masks="masks/{}.png", count=2, values=(0, 1, 2, 255)):
    for number in range(count):
        save(folder / image.format(number))
        save(folder / masks.format(number), mask(*values))
    return folder


def read(folder, split="train", **arguments):
    opened = open_dense(folder, "pixels", **arguments)
    return opened, opened.read(split)


def values_of(rows):
    return [np.unique(read_mask(label, "")).tolist() for label in rows["label"]]


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("images/train/{}.jpg", "annotations/train/{}.png"),
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("train/{}.jpg", "train_masks/{}_mask.gif"),
        ("train_images/{}.jpg", "train_labels/{}.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("train/{}.png", "train_labels/{}_L.png"),
        ("leftImg8bit/images/{}.png", "leftImg8bit/gt/{}_labelIds.png"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("train/{}.rf.c0ffee.jpg", "train/{}.rf.c0ffee_mask.png"),
        ("pile/{}.jpg", "pile/{}-gt.png"),
    ],
)
def test_layouts(tmp_path, image, masks):
    write_pairs(tmp_path, image, masks)
    opened, rows = read(tmp_path)
    assert opened.splits == ["train"]
    pairs = zip(rows["image"], rows["label"], strict=True)
    assert [(i["path"], m["path"]) for i, m in pairs] == [
        (str(tmp_path / image.format(n)), str(tmp_path / masks.format(n))) for n in range(2)
    ]
    assert opened.label_names == ["0", "1", "2"] and "no file names the classes" in opened.notes[0]


def test_splits(tmp_path):
    for split in ("train", "val", "test"):
        write_pairs(tmp_path, f"{split}/images/{{}}.jpg", f"{split}/masks/{{}}.png", values=(0, len(split)))
    opened, rows = read(tmp_path)
    assert sorted(opened.splits) == ["test", "train", "val"] and str(rows.split) == "train"
    # All splits tell how many classes there are.
    assert len(opened.label_names) == 6 and len(opened.read("val")) == 2


def test_names_of_classes(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    assert read(tmp_path)[0].label_names == ["sky", "road", "tree"]
    (tmp_path / "id2label.json").write_text(json.dumps({"2": "c", "0": "a", "1": "b"}))
    assert read(tmp_path)[0].label_names == ["a", "b", "c"]
    assert read(tmp_path, label_names=["x", "y", "z"])[0].label_names == ["x", "y", "z"]
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "a", "2": "c"}))
    with pytest.raises(SiTError, match="the indices are 0, 2, and not"):
        read(tmp_path)


def test_masks_beside_their_images_with_their_classes(tmp_path):
    """Roboflow's folders."""
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        write_pairs(tmp_path / split, "{}_jpg.rf.1.jpg", "{}_jpg.rf.1_mask.png", count, values=(0, 1))
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cell, round\n")
    opened, rows = read(tmp_path)
    assert opened.label_names == ["background", "cell, round"] and not opened.notes
    assert {split: len(opened.read(split)) for split in opened.splits} == {"train": 3, "valid": 1, "test": 2}
    assert len(rows) == len(load_images(str(tmp_path)).train) == 3
    (tmp_path / "test" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, crack\n")
    with pytest.raises(SiTError, match=r"test/_classes.csv and .*train/_classes.csv name other classes"):
        read(tmp_path)
    (tmp_path / "classes.txt").write_text("none\ncell\n")
    assert read(tmp_path)[0].label_names == ["none", "cell"]
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "test" / "_classes.csv").write_text("filename, cell, crack\na.jpg, 0, 1\n")
    with pytest.raises(SiTError, match=r"test/_classes.csv is no table of indices and names"):
        read(tmp_path)


def test_two_masks_beside_an_image(tmp_path):
    write_pairs(tmp_path, "{}.png", "{}_mask.png")
    save(tmp_path / "0_mask_1.png", mask(0, 1))
    with pytest.raises(SiTError, match=r"not clear which mask belongs to which image: .*/0_mask.png, .*/0_mask_1.png"):
        open_dense(tmp_path, "pixels")


def test_black_and_white_masks_are_of_two_classes(tmp_path):
    opened, rows = read(write_pairs(tmp_path, values=(0, 255)))
    assert opened.label_names == ["0", "1"] and "255 is class 1" in opened.notes[0]
    assert values_of(rows) == [[0, 1]] * 2
    assert rows.column_names == ["image", "label"]


def test_black_and_white_masks_of_another_split(tmp_path):
    """In one split 1 is a class, and in the other 255 would be no class, though it stands for the same."""
    write_pairs(tmp_path / "train", values=(0, 1))
    write_pairs(tmp_path / "val", values=(0, 255))
    opened, _ = read(tmp_path)
    with pytest.raises(SiTError) as error:
        opened.read("val")
    assert error.value.argument == "dataset" and "val" in error.value.problem


def test_a_split_without_the_one_class(tmp_path):
    """255 is no class in the other split, and is none here."""
    write_pairs(tmp_path / "train", values=(0, 1, 255))
    write_pairs(tmp_path / "val", values=(0, 255))
    opened, _ = read(tmp_path)
    assert values_of(opened.read("val")) == [[0, 255]] * 2


def test_masks_of_one_bit_and_palettes(tmp_path):
    write_pairs(tmp_path, count=1)
    palette = PIL.Image.fromarray(mask(0, 1, 2, 255)).convert("P")
    palette.putpalette([value for color in np.random.default_rng(0).integers(0, 256, 256) for value in [color] * 3])
    palette.save(tmp_path / "masks" / "0.png")
    assert values_of(read(tmp_path)[1]) == [[0, 1, 2, 255]]
    save(tmp_path / "masks" / "0.png", mask(0, 1, dtype=bool))
    assert values_of(read(tmp_path)[1]) == [[0, 1]]


def test_reduced_labels(tmp_path):
    opened, rows = read(write_pairs(tmp_path, values=(0, 1, 2, 255)), reduce_labels=True)
    assert opened.label_names == ["0", "1"] and values_of(rows) == [[0, 1, 255]] * 2


def test_reduced_colors_lose_the_name_of_the_first(tmp_path):
    colors = np.array([[0, 0, 0], [128, 0, 64], [255, 255, 255]], np.uint8)
    write_pairs(tmp_path, count=1)
    save(tmp_path / "masks" / "0.png", colors[mask(0, 1, 2)])
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nvoid,0,0,0\nsky,128,0,64\ntree,255,255,255\n")
    opened, rows = read(tmp_path, reduce_labels=True)
    assert opened.label_names == ["sky", "tree"] and values_of(rows) == [[0, 1, 255]]
    assert any(note.endswith("1 is sky") for note in opened.notes)


def test_colors_of_classes(tmp_path):
    colors = np.array([[128, 0, 64], [0, 0, 0], [255, 255, 255]], np.uint8)
    write_pairs(tmp_path, count=1)
    save(tmp_path / "masks" / "0.png", colors[mask(0, 1, 2)])
    with pytest.raises(SiTError, match=r"0.png is a mask in color \(RGB\)"):
        read(tmp_path)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,128,0,64\nroad,0,0,0\ntree,255,255,255\n")
    opened, rows = read(tmp_path)
    assert opened.label_names == ["sky", "road", "tree"]
    np.testing.assert_array_equal(read_mask(rows[0]["label"], ""), mask(0, 1, 2))
    (tmp_path / "class_dict.csv").unlink()
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nsky:128,0,64::\nroad:0,0,0::\n")
    with pytest.raises(SiTError, match=r"the color \(255, 255, 255\) at \(2, 0\), which is of no class"):
        read(tmp_path)


def test_colors_of_a_palette(tmp_path):
    """Writers number them as they like; where none is of a class, the numbers are the classes."""
    colors = np.array([[128, 0, 64], [0, 0, 0], [255, 255, 255]], np.uint8)
    write_pairs(tmp_path, count=1)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,128,0,64\nroad,0,0,0\ntree,255,255,255\n")
    quantized = PIL.Image.fromarray(colors[mask(0, 1, 2)]).quantize(8)
    assert not np.array_equal(quantized, mask(0, 1, 2))
    quantized.save(tmp_path / "masks" / "0.png")
    np.testing.assert_array_equal(read_mask(read(tmp_path)[1][0]["label"], ""), mask(0, 1, 2))
    numbered = PIL.Image.fromarray(mask(0, 1, 2), "P")
    numbered.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    numbered.save(tmp_path / "masks" / "0.png")
    np.testing.assert_array_equal(read_mask(read(tmp_path)[1][0]["label"], ""), mask(0, 1, 2))
    # In the order of the classes, with a color for none, as in VOC.
    in_order = PIL.Image.fromarray(mask(0, 1, 2, 255), "P")
    in_order.putpalette([*colors.flatten().tolist(), *[224, 224, 192] * 253])
    in_order.save(tmp_path / "masks" / "0.png")
    np.testing.assert_array_equal(read_mask(read(tmp_path)[1][0]["label"], ""), mask(0, 1, 2, 255))
    with_another = np.concatenate([colors, [[224, 224, 192]]]).astype(np.uint8)[mask(0, 1, 2, 3)]
    PIL.Image.fromarray(with_another).quantize(8).save(tmp_path / "masks" / "0.png")
    with pytest.raises(SiTError, match=r"the color \(224, 224, 192\), which is of no class"):
        read(tmp_path)


def test_what_has_no_partner_is_left_out(tmp_path):
    write_pairs(tmp_path)
    save(tmp_path / "images" / "8.jpg")
    save(tmp_path / "masks" / "9.png", mask(0, 1))
    opened, rows = read(tmp_path)
    assert len(rows) == 2
    assert opened.notes[:2] == [
        f"train: 1 images have no mask and are left out, such as {tmp_path}/images/8.jpg",
        f"train: 1 masks have no image and are left out, such as {tmp_path}/masks/9.png",
    ]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda masks: save(masks / "1.png", mask(0, 300, dtype=np.uint16)), "1.png is a mask of 16 bits"),
        (lambda masks: PIL.Image.new("RGB", SIZE).save(masks / "1.png"), r"1.png is a mask in color \(RGB\)"),
        (lambda masks: PIL.Image.new("L", SIZE).save(masks / "1.png", "JPEG"), "1.png is a JPEG"),
        (lambda masks: PIL.Image.new("L", (10, 12)).save(masks / "1.png"), "1.png is a mask of 10 x 12 .* of 12 x 10"),
        (lambda masks: (masks / "1.png").write_bytes(b"no mask"), "1.png cannot be read"),
        (lambda masks: save(masks / "1.png", mask(0, 7)), "1.png has the values 7, and there are 3 classes"),
        (
            lambda masks: (masks / "1.png").rename(masks / "1_mask.png") and save(masks / "1_gt.png"),
            "not clear which mask",
        ),
    ],
)
def test_damaged_masks(tmp_path, damage, problem):
    write_pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    damage(tmp_path / "masks")
    with pytest.raises(SiTError, match=problem) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)


def test_no_image_has_the_name_of_a_mask(tmp_path):
    save(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "b.png", mask(0, 1))
    with pytest.raises(SiTError, match=r"no image has the name of a mask, such as masks/b.png"):
        open_dense(tmp_path, "pixels")


def test_folder_without_masks(tmp_path):
    save(tmp_path / "cat" / "a.png")
    with pytest.raises(SiTError, match="no folder of masks beside the images"):
        open_dense(tmp_path, "pixels")


def test_objects_are_wanted_and_there_are_masks(tmp_path):
    with pytest.raises(SiTError, match=r"it has a class for each pixel \(.*/masks/0.png\), and no objects"):
        open_dense(write_pairs(tmp_path), "masks")


@pytest.mark.parametrize(("image", "masks"), [("images", "masks"), ("train/images", "train/masks")])
def test_pretraining_leaves_masks_out(tmp_path, image, masks):
    write_pairs(tmp_path, f"{image}/{{}}.jpg", f"{masks}/{{}}.png", count=3)
    train = load_images(str(tmp_path)).train
    assert [row["path"] for row in train["image"]] == [str(tmp_path / image / f"{n}.jpg") for n in range(3)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_camvid():
    opened, rows = read(str(SHARED / "camvid"), "validation")
    assert sorted(opened.splits) == ["test", "train", "validation"]
    assert len(rows) == 101 and opened.label_names[:2] == ["sky", "building"] and len(opened.label_names) == 11
    stored = datasets.load_dataset("parquet", data_files=str(SHARED / "camvid" / "validation.parquet"))["train"]
    np.testing.assert_array_equal(read_mask(rows[3]["label"], ""), np.asarray(stored[3]["label"]))
