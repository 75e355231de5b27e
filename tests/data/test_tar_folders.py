"""A tar file is read as the folder that was packed."""

import io
import itertools
import tarfile

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets.data_files import DataFilesDict
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.data.split_names import tell_once
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def isolated_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    tell_once.cache_clear()
    yield
    datasets.enable_progress_bars()


def encoded(value):
    buffer = io.BytesIO()
    PIL.Image.new("L", (2, 3), value).save(buffer, "PNG")
    return buffer.getvalue()


def members_of(layout):
    """Two images in each of these folders, or a member of this name."""
    names = [f"{part}{value}.png" if part.endswith("/") else part for part in layout.split(" ") for value in range(2)]
    names = list(dict.fromkeys(names))
    return [(name, encoded(value) if name.endswith("png") else b"text") for value, name in enumerate(names)]


def write_tar(path, members, mode="w"):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def contents_of(images):
    """Values and names of classes, in each split that is used."""
    found = {}
    for split, rows in {"train": images.train, "validation": images.validation}.items():
        for row in rows or ():
            value = int(np.asarray(decode_image(row["image"], 1)).mean())
            label = row.get("label", -1)
            name = images.label_names[label] if images.label_names is not None and label >= 0 else None
            found.setdefault(split, []).append((value, name))
    return {split: sorted(rows, key=str) for split, rows in found.items()}


LAYOUTS = {
    "splits": "train/ test/",
    "splits of classes": "train/cat/ train/dog/ val/cat/ val/dog/ test/cat/ test/dog/",
    "deeper": "images/train/cat/ images/train/dog/ images/val/cat/ images/val/dog/ README.md",
    "synonyms": "seg_train/a/ seg_train/b/ seg_test/a/ seg_test/b/",
    "test first": "test/a/ training/a/ training/b/ test/b/",
    "beside": "train/a/ train/b/ test/a/ test/b/ unlabelled/ masks/",
    "classes": "cat/ dog/",
    "classes deeper": "cat/x/ cat/y/ dog/x/",
    "hidden": "cat/ dog/ .cache/ .x.png cat/.ipynb_checkpoints/ ._cat/",
    "macOS": "cat/ dog/ cat/._0.png __MACOSX/cat/._0.png ._cat/",
    "piles among classes": "train/a/ train/b/ test/",
    "loose images": "cat/ dog/ 9.png",
    "flat": "8.png 9.png",
}


@pytest.mark.parametrize(
    ("name", "packed"), [*zip(LAYOUTS, itertools.cycle(["", "./", "flowers/", "/home/me/flowers/"]), strict=False)]
)
def test_as_the_folder_that_was_packed(tmp_path, name, packed):
    members = members_of(LAYOUTS[name])
    for name, content in members:
        if "__MACOSX" not in name:
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    folder = load_images(str(tmp_path / "folder"))
    tar = write_tar(tmp_path / "a.tar", [(f"{packed}{name}", content) for name, content in members])
    for streaming in (True, False) if "classes" in name else (True,):
        images = load_images(str(tar), streaming=streaming)
        assert contents_of(images) == contents_of(folder)
        assert (images.label_names, images.splits) == (folder.label_names, folder.splits)


def test_a_compressed_tar(tmp_path):
    """Its classes are known if it is read anyway; as a stream it may not tell splits."""
    for layout in ("cat/ dog/", "train/cat/ train/dog/ test/cat/ test/dog/"):
        path = write_tar(tmp_path / f"{len(layout)}.tar.gz", members_of(layout), "w:gz")
        assert load_images(str(path)).label_names == ["cat", "dog"]
    with pytest.raises(SiTError) as error:
        load_images(str(path), streaming=True)
    assert error.value.argument == "dataset" and "streaming" in error.value.remedy


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"0": "cat/", "1": "dog/"}, "cat dog"),
        ({"flowers-train": "f/a/ f/b/", "flowers-test": "f/b/ f/a/"}, "a b"),
        ({"train": "train/a/ train/b/", "test": "test/a/"}, "a b"),
        ({"0": "train/a/ test/a/", "1": "train/b/ test/b/"}, "a b"),
        ({"0": "jpg/", "1": "jpg/"}, None),
        ({"0": "00000/", "1": "00001/"}, None),
    ],
)
def test_several_files(tmp_path, files, expected, streaming):
    """As the folder into which all of them were unpacked, but for splits that the files' own names tell."""
    for name, layout in files.items():
        write_tar(tmp_path / "set" / f"{name}.tar", members_of(layout))
    images = load_images(str(tmp_path / "set"), streaming=streaming)
    assert (images.label_names and " ".join(images.label_names)) == expected
    assert (images.validation is not None) == any("test" in name for name in [*files, *files.values()])
    if expected is not None:
        assert len(list(images.train)) == 4


@pytest.mark.parametrize(
    "files",
    [
        {"train": "train/ val/", "test": "x/"},
        {"train": "test/a/ test/b/", "test": "train/a/ train/b/"},
        {"0": "fine/train/ fine/test/ coarse/train/ coarse/test/"},
        {"0": "cat/ dog/ test/cat/ test/dog/"},  # the test images lie in the folder of the others
    ],
)
def test_folders_and_files_that_contradict_each_other(tmp_path, files):
    for name, layout in files.items():
        write_tar(tmp_path / "set" / f"{name}.tar", members_of(layout))
    with pytest.raises(SiTError) as error:
        load_images(str(tmp_path / "set"))
    assert error.value.remedy


def test_files_of_labels_go_before_folders(tmp_path):
    """Even if they begin where nobody has looked. Then the splits are still those of the folders."""
    members = [(f"test/x/{value:03}.png", encoded(value)) for value in range(103)]
    members += [
        (f"train/{value % 2}/{value}.{ending}", content)
        for value in range(4)
        for ending, content in (("png", encoded(value)), ("cls", b"%d" % (value // 2)))
    ]
    images = load_images(str(write_tar(tmp_path / "a.tar", members)))
    assert contents_of(images)["train"] == [(0, "0"), (1, "0"), (2, "1"), (3, "1")]
    assert len(images.validation) == 103


def test_a_split_in_the_middle_of_a_stream(tmp_path, monkeypatch):
    """On the Hub nobody knows it before: it is never trained on."""
    for number, layout in enumerate(["train/", "train/ test/", "train/"]):
        write_tar(tmp_path / f"train-{number}.tar", members_of(layout))
    files = DataFilesDict.from_patterns({"train": sorted(str(path) for path in tmp_path.glob("*.tar"))})
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: WebDataset(data_files=files))
    images = load_images("someone/images", streaming=True)
    with pytest.raises(SiTError, match=r"1\.tar.*test, train"):
        list(images.train)


def test_links_are_told(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", members_of("cat/ dog/"))
    with tarfile.open(path, "a") as tar:
        for name, kind in (("cat/5.png", tarfile.SYMTYPE), ("dog/5.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "cat/0.png"
            tar.addfile(link)
    load_images(str(path))
    (message,) = caplog.messages
    assert "2 images" in message and "tar -h" in message


def test_a_tar_file_that_was_cut_off_is_told(tmp_path, caplog):
    path = write_tar(tmp_path / "a.tar", members_of("cat/ dog/"))
    load_images(str(path), streaming=True)
    assert not caplog.messages
    path.write_bytes(path.read_bytes()[: 3 * 1024])  # between two members: nothing else is wrong
    assert len(list(load_images(str(path), streaming=True).train)) < 4
    (message,) = caplog.messages
    assert "a.tar" in message and "cut off" in message


@pytest.mark.parametrize("kind", ["links", "arrays", "nothing"])
def test_a_tar_file_without_images(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", [("1.npy", b"x"), ("2.npy", b"x")] if kind == "arrays" else [])
    if kind == "links":
        with tarfile.open(path, "a") as tar:
            link = tarfile.TarInfo("cat/5.png")
            link.type, link.linkname = tarfile.SYMTYPE, "0.png"
            tar.addfile(link)
    with pytest.raises(SiTError) as error:
        load_images(str(path))
    assert error.value.argument == "dataset" and error.value.remedy
    assert ("arrays" in error.value.problem) == (kind == "arrays")


def test_names_of_windows_and_arrays_beside_images(tmp_path):
    members = [(name.replace("/", "\\"), content) for name, content in members_of("train/a/ train/b/ test/b/ test/a/")]
    path = write_tar(tmp_path / "a.tar", [*members, ("train\\a\\0.npy", b"x")])
    images = load_images(str(path), streaming=True)
    assert images.label_names == ["a", "b"] and images.splits == ["test", "train"]
    assert [".npy" in note for note in images.notes] == [False, True]
