"""Which sub-folders are splits: layouts that people have, and layouts that look like them."""

import os

import pytest

from modeling_sit.data.folder_splits import split_folders
from modeling_sit.data.split_names import tell_once
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def nothing_told_yet():
    tell_once.cache_clear()


def images_in(folder, layout):
    """Three images in each folder of a layout; `{train,val}/{a,b}` stands for four folders. "." is the folder itself, and
    "~" stands for a space."""
    folders = [name.replace("~", " ") for part in layout.split(" ") for name in expand(part)]
    return sorted(os.path.normpath(f"{folder}/{name}/{number}.png") for name in folders for number in range(3))


def expand(text):
    before, brace, rest = text.partition("{")
    if not brace:
        return [text]
    inside, _, after = rest.partition("}")
    return [before + choice + end for choice in inside.split(",") for end in expand(after)]


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


@pytest.fixture
def split(folder):
    """The folders of each split of a layout, by the split's name."""

    def find(layout, *asked):
        found = split_folders(folder, images_in(folder, layout), asked)
        return {
            name: " ".join(os.path.relpath(path, folder) for path, _ in parts) for name, parts in sorted(found.items())
        }

    return find


SPLITS = {
    "{train,val,test}/{a,b} unlabelled": ("test train val", "unlabelled (3 images)"),
    "{train,val,test}/{a,b} masks": ("test train val", "masks (3 images)"),
    "{train,val,test}/{a,b} .": ("test train val", "the folder itself (3 images)"),
    "{train,val,test}/{a,b} chest_xray/{train,val,test}/{a,b}": ("test train val", "chest_xray (18 images)"),
    "chest_xray/{train,val,test}/{a,b} chest_xray/chest_xray/{train,val,test}/{a,b}": (
        "chest_xray/test chest_xray/train chest_xray/val",
        "chest_xray/chest_xray (18 images)",
    ),
    "seg_{train,test}/{a,b} seg_pred": ("seg_test seg_train", "seg_pred (3 images)"),
    "seg_train/seg_train/{a,b} seg_test/seg_test/{a,b} seg_pred/seg_pred": (
        "seg_test/seg_test seg_train/seg_train",
        "seg_pred (3 images)",
    ),
    "{training,test}_set/{a,b}": ("test_set training_set", None),
    "{Training,Test}Set/{a,b}": ("TestSet TrainingSet", None),
    "{train,val,test,unlabeled}2017": ("test2017 train2017 val2017", "unlabeled2017 (3 images)"),
    "images/{train,val}": ("images/train images/val", None),
    "{images,masks}/{train,val}": ("images/train images/val", "masks (6 images)"),
    "{images,annotations}/{training,validation}": ("images/training images/validation", "annotations (6 images)"),
    "{train,test}_images train_masks": ("test_images train_images", "train_masks (3 images)"),
    "{train,test} train_hq train_masks": ("test train", "train_hq (3 images), train_masks (3 images)"),
    "train/{a,b} unlabelled": ("train", "unlabelled (3 images)"),
    "train masks": ("train", "masks (3 images)"),
    "train .": ("train", "the folder itself (3 images)"),
    "{train,more}/{a,b}": ("train", "more (6 images)"),
    "Data/CLS-LOC/train/{n1,n2} Data/CLS-LOC/{val,test}": (
        "Data/CLS-LOC/test Data/CLS-LOC/train Data/CLS-LOC/val",
        None,
    ),
    "bottle/{train,test}/{a,b} bottle/ground_truth/b": ("bottle/test bottle/train", "bottle/ground_truth (3 images)"),
    "train val_images": ("train val_images", None),
    "train/{train,val}/{a,b}": ("train/train train/val", None),
    "{train,dev,eval}/{a,b}": ("dev eval train", None),
    "{val,test}/{a,b}": ("test val", None),
    "test/{a,b}": ("test", None),
    "PetImages/{train,test}/{cat,dog}": ("PetImages/test PetImages/train", None),
    "{train,validate,hold_out}": ("hold_out train validate", None),
    "{train,HoldOut}/{a,b}": ("HoldOut train", None),
    "{trainset,testset}": ("testset trainset", None),
    "{traindata,valdata,testdata}/{a,b}": ("testdata traindata valdata", None),
    "siteA/train/{a,b} siteB/test/{a,b}": ("siteA/train siteB/test", None),
    "2020/train 2021/test": ("2020/train 2021/test", None),
    "x/training_data y/validation_data": ("x/training_data y/validation_data", None),
    "train/{a,b} sub/test/{a,b}": ("sub/test train", None),
    "train/{a,b} sub/deep/{val,test}/{a,b}": ("sub/deep/test sub/deep/val train", None),
    "wrap/a/seg_train/{x,y} wrap/b/seg_test/{x,y}": ("wrap/a/seg_train wrap/b/seg_test", None),
    "cam1/train/train/{x,y} cam2/test/{x,y}": ("cam1/train/train cam2/test", None),
    "siteA/{train,masks} siteB/test masks/train": (
        "siteA/train siteB/test",
        "masks/train (3 images), siteA/masks (3 images)",
    ),
    "{cat,dog} test/{cat,dog}": (". test", None),
    "{cat,dog} {val,test_images}/{cat,dog}": (". test_images val", None),
    "{cat,dog} test/{cat,dog} .": (". test", "the folder itself (3 images)"),
    "cat test/cat masks": (". test", "masks (3 images)"),
    "train/{a,b} train/val/{a,b}": ("train train/val", None),
    "données/{train,test}/{chat,été}": ("données/test données/train", None),
    "{train,test}/cat": ("test train", None),
    "{train,test}/{siteA,siteB}/{a,b}": ("test train", None),
}


@pytest.mark.parametrize("layout", SPLITS)
def test_splits_and_what_is_left_out(split, caplog, layout):
    folders, left_out = SPLITS[layout]
    found = split(layout)
    assert sorted(" ".join(found.values()).split()) == folders.split()
    if left_out is None:
        assert not caplog.messages
    else:
        (told,) = caplog.messages
        assert f": {left_out}" in told and "\n" not in told


@pytest.mark.parametrize(
    "layout",
    [
        "{cat,dog}",
        "{train,car}",
        "{training,car,bus}",
        "{test_tube,flask}",
        "{test_tube,flask,train}",
        "{test_tube,training,flask}",
        "{valid,invalid}",
        "{cat,holdout}",
        "{crash_test,assembly_line}",
        "{bullet_train,steam_train,tram}",
        "train/{steam,diesel} car/{suv,sedan}",
        "PetImages/{cat,dog}",
        "seg_train/{a,b}",
        ". a b",
    ],
)
def test_classes(split, layout):
    assert split(layout) == {"train": "."}


@pytest.mark.parametrize(
    ("layout", "name"), [("{training,car,test_tube}", "training"), ("cat dog test_set", "test_set")]
)
def test_a_class_that_is_called_like_a_split_is_told(split, caplog, layout, name):
    split(layout)
    (told,) = caplog.messages
    assert f": {name}: read as a class" in told and "`train_split`" in told


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("siteA siteB/test", "siteB/test"),
        ("{cat,dog}/{new,val}", "cat/val, dog/val"),
        ("train/{a,b} train/{a,b}/val", "train/a/val, train/b/val"),
        ("train/{a,b,hold~out}", "train/hold out"),
        ("{train,test}/{a,b} train/old/test", "train/old/test"),
        ("{train,val}/{a,test}", None),
        ("{train,val}/{a,valid}/x", None),
        ("{cat,dog}/{big,small}", None),
        ("test/{a,val}", None),
    ],
)
def test_held_out_folders_within_training_images_are_told(split, caplog, layout, names):
    split(layout)
    told = [message for message in caplog.messages if "called like validation or test" in message]
    assert [names is not None and f": {names};" in message for message in told] == [True] * (names is not None)


COMPANIONS = {
    "train/{images,masks}": ("train/images", "train/masks (3 images)"),
    "train/{images,masks} test/images": ("test/images train/images", "train/masks (3 images)"),
    "{train,val}/{images,labels}/{a,b}": ("train/images val/images", "train/labels (6 images), val/labels (6 images)"),
    "JPEGImages Annotations": ("JPEGImages", "Annotations (3 images)"),
    "JPEGImages SegmentationClass": ("JPEGImages", "SegmentationClass (3 images)"),
    "imgs labels": ("imgs", "labels (3 images)"),
    "images/{cat,dog} annotations/trimaps": ("images", "annotations (3 images)"),
    "training/{images,mask,1st_manual}": (
        "training/images",
        "training/1st_manual (3 images), training/mask (3 images)",
    ),
    "images_{1,2} masks": ("images_1 images_2", "masks (3 images)"),
    "{Original,Ground~Truth}": ("Original", "Ground Truth (3 images)"),
    "{COVID,Normal}/{images,masks}": (".", "*/masks (6 images)"),
    "data/{images,masks}": (".", "data/masks (3 images)"),
    ". masks": (".", "masks (3 images)"),
    "train train/masks/{a,b}": ("train", "train/masks (6 images)"),
    "{cat,dog} masks/{cat,dog}": (".", "masks (6 images)"),
    "labeled/{a,b} unlabeled": ("labeled", "unlabeled (3 images)"),
    "{labelled,unlabelled}/{a,b}": ("labelled", "unlabelled (6 images)"),
}


@pytest.mark.parametrize("layout", COMPANIONS)
def test_what_comes_with_images_is_left_out(split, caplog, layout):
    folders, left_out = COMPANIONS[layout]
    assert sorted(" ".join(split(layout).values()).split()) == folders.split()
    told = [message for message in caplog.messages if "not read" in message]
    assert len(told) == 1 and f": {left_out}" in told[0]


def test_the_classes_are_those_of_the_images(folder):
    paths = images_in(folder, "train/{images,masks}/{a,b}")
    ((images, inside),) = split_folders(folder, paths)["train"]
    assert images == f"{folder}/train/images" and inside == [path for path in paths if "/images/" in path]


@pytest.mark.parametrize(
    ("layout", "doubtful"),
    [
        ("{cat,dog,masks}", "masks"),
        ("{cat,dog,unlabeled}", "unlabeled"),
        ("{labeled,unlabeled}", "unlabeled"),
        ("train/{cat,dog,masks} test/{cat,dog}", "masks"),
        ("{images,thumbnails}", "images"),
        ("fold{1,2,3}/{a,b}", "fold1, fold2, fold3"),
        ("HAM_images_part_{1,2}", "HAM_images_part_1, HAM_images_part_2"),
        ("{with_mask,without_mask}", None),
        ("{mask_weared_incorrect,with_mask,without_mask,raw}", None),
        ("{train,test}/{mask,no_mask}", None),
        ("{photo,text,chart}", None),
        ("{good,bad}_part", None),
        ("{skin_fold,nose}", None),
        ("class_{1,2}", None),
        ("images", None),
        ("{train,val}/images", None),
        ("train/{a,b} val/{a,b}", None),
    ],
)
def test_classes_that_may_be_none_are_told(split, caplog, layout, doubtful):
    split(layout)
    assert len(caplog.messages) == (doubtful is not None)
    assert doubtful is None or f": {doubtful}: read as a class" in caplog.messages[0]


def test_left_out_images_are_counted_and_no_image_is_in_two_splits(folder):
    paths = images_in(folder, "{cat,dog} test/{cat,dog} masks")
    found = {
        name: [path for _, inside in parts for path in inside] for name, parts in split_folders(folder, paths).items()
    }
    assert sorted(found["train"] + found["test"]) == [path for path in paths if "masks" not in path]
    assert all("/test/" in path for path in found["test"]) and not any("/test/" in path for path in found["train"])


@pytest.mark.parametrize(
    ("layout", "argument"),
    [
        ("{fine,coarse}/{train,test}/{a,b}", "dataset_config_name"),
        ("{cat,dog}/{train,test}", "dataset_config_name"),
        ("{left,right}/{train,val}/{x,y}", "dataset_config_name"),
        ("{test,trainval}/{a,b}", "train_split"),
        ("{test,train_val}/{a,b}", "train_split"),
        ("{val,test,images}", "train_split"),
        (". test", "train_split"),
        ("train/{a,b} pool", "train_split"),
        ("{train,test}{A,B}", "train_split"),
        ("{train,val}{2014,2017}", "train_split"),
        ("{train,test}_fold{1,2}", "train_split"),
        ("train/{train,val}/{a,b} test/{a,b}", "dataset"),
        ("{siteA,siteB}/train/{a,b} siteC/test/{a,b}", "dataset"),
        ("{2019,2020}/{a,b} 2021/test/{a,b}", "dataset"),
        ("cam1/train/{a,b} cam2/{test,extra}/{a,b}", "dataset"),
        ("cam1/train cam2/test .", "dataset"),
        ("{cat,dog}/{val,test}", "dataset"),
        ("{train,test}/{a,b} train/val/{a,b}", "dataset"),
    ],
)
def test_what_is_not_clear_is_refused(split, layout, argument):
    with pytest.raises(SiTError) as error:
        split(layout)
    assert error.value.argument == argument and error.value.remedy


@pytest.mark.parametrize(
    ("layout", "asked", "expected"),
    [
        ("{test,trainval}/{a,b}", "trainval", {"test": "test", "trainval": "trainval"}),
        ("{train,car,bus}", "train", {"train": "train"}),
        ("{train,test}{A,B}", "trainA", {"test": "testA", "trainA": "trainA"}),
        ("{train,val}{2014,2017}", "train2017", {"train2017": "train2017", "val": "val2017"}),
        (
            "{train,test}/{a,b} unlabelled",
            "unlabelled",
            {"test": "test", "train": "train", "unlabelled": "unlabelled"},
        ),
        ("train/{a,b} pool", "train", {"train": "train"}),
        ("train/{a,b} pool", "pool", {"pool": "pool"}),
        ("{north,south}", "north", {"north": "north"}),
        ("{train,val,test_images}", "val", {"test": "test_images", "train": "train", "val": "val"}),
        ("seg_{train,test}", "seg_train", {"seg_train": "seg_train", "test": "seg_test"}),
        ("{cat,dog,test_set}", "test_set", {"train": ".", "test_set": "test_set"}),
        ("{cat,dog} {val,test}/{cat,dog}", "val", {"train": ".", "test": "test", "val": "val"}),
        ("siteA/train siteB/test", "test", {"test": "siteB/test", "train": "siteA/train"}),
    ],
)
def test_the_user_may_name_a_sub_folder(split, layout, asked, expected):
    assert split(layout, asked) == expected


def test_a_split_that_is_named_changes_nothing(folder, caplog):
    images = images_in(folder, "{train,val,test}/{a,b} unlabelled")
    found = [split_folders(folder, images, asked) for asked in ((), ("val",), ("train", "test"), ("nonsense",))]
    assert all(list(other.items()) == list(found[0].items()) for other in found[1:])
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("layout", "split_name", "names"),
    [
        ("train_20 train_80", "train", "train_20, train_80"),
        ("train1 train2", "train", "train1, train2"),
        ("{train_0,train_1,val}/{a,b}", "train", "train_0, train_1"),
        ("{train~(1),train~(2),test}", "train", "train (1), train (2)"),
        ("train test1 test2", "test", "test1, test2"),
        ("Train train", "Train", "Train, train"),
    ],
)
def test_folders_of_one_split_are_told(split, caplog, layout, split_name, names):
    assert split(layout)[split_name] == names.replace(",", "")
    (told,) = caplog.messages
    assert f": {split_name} is made of" in told and f": {names};" in told
