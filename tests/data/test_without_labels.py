"""What to do about a dataset without labels."""

import datasets
import pytest
from source_files import IMAGE, load, png, write_images

from modeling_sit.data.labeled import labeled_splits
from modeling_sit.runtime.errors import SiTError

pytestmark = pytest.mark.usefixtures("isolated_cache")


def trouble(dataset) -> SiTError:
    with pytest.raises(SiTError) as error:
        load(dataset, labels="required")
    return error.value


def test_images_in_files_have_no_column(tmp_path):
    write_images(tmp_path, {"1.png": 1, "2.png": 2})
    error = trouble(tmp_path)
    assert error.argument == "label_column" and error.remedy.startswith(
        "put the images of each class into a sub-folder"
    )
    with pytest.raises(SiTError, match="sub-folder of its own"):
        labeled_splits(load(tmp_path, validation_split="train"))


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl", "instances.json"])
def test_tables_beside_the_images_are_not_read(tmp_path, name):
    write_images(tmp_path, {"1.png": 1, "2.png": 2})
    (tmp_path / name).write_text("1.png,cat\n")
    assert f"such as {name}, are not read" in (remedy := trouble(tmp_path).remedy)
    assert "sub-folder of its own" in remedy and 'datasets.load_dataset("imagefolder"' in remedy


def test_a_dataset_with_columns(tmp_path):
    images = [{"bytes": png(1), "path": None}]
    datasets.Dataset.from_dict({"image": images}, features=datasets.Features(image=IMAGE)).save_to_disk(tmp_path)
    assert (trouble(tmp_path).argument, trouble(tmp_path).remedy) == ("label_column", "name their column")
