"""The file of a classifier's predictions."""

import numpy as np
import pytest

from modeling_sit.evaluation.predictions import Predictions, hits_of, read_hits
from modeling_sit.runtime.errors import SiTError

NAMES = ["a, b", 'c "d"\ne', "é"]


@pytest.fixture
def written(tmp_path):
    def write(name: str, rows: list[int], labels: list[int], predicted: list[int]):
        Predictions(*map(np.array, (rows, labels, predicted))).write(tmp_path / name, NAMES)
        return tmp_path / name

    return write


def test_names_of_any_kind(written):
    path = written("some.csv", [0, 2, 3], [0, 1, 2], [0, 1, 1])
    assert path.read_text(encoding="utf-8").splitlines()[:2] == ["image,label,predicted", '0,"a, b","a, b"']
    assert read_hits(path) == {0: True, 2: True, 3: False}


def test_paths_are_the_last_column_where_there_are_any(tmp_path):
    rows = np.array([0, 2])
    for paths, lines in (
        (["/a,b.png", None], ["image,label,predicted,path", '0,é,é,"/a,b.png"', "2,é,é,"]),
        ([None, None], ["image,label,predicted", "0,é,é", "2,é,é"]),
    ):
        Predictions(rows, rows * 0 + 2, rows * 0 + 2, paths).write(tmp_path / "some.csv", NAMES)
        assert (tmp_path / "some.csv").read_text(encoding="utf-8").splitlines() == lines
        assert read_hits(tmp_path / "some.csv") == {0: True, 2: True}


def test_several_classifiers_on_the_same_images(written, tmp_path):
    paths = [written("one.csv", [0, 1], [0, 1], [0, 0]), written("two.csv", [0, 1], [0, 1], [2, 1])]
    assert hits_of(paths).tolist() == [[True, False], [False, True]]
    assert hits_of([*paths, tmp_path / "missing.csv"]) is None
    assert hits_of([*paths, written("other.csv", [0, 2], [0, 1], [0, 0])]) is None
    assert hits_of([]) is None


@pytest.mark.parametrize("content", [b"file,class\na.png,a\n", b"image,label,predicted\na.png,a,a\n", b"\xff\xfe\x00"])
def test_a_file_of_another_program(content, tmp_path):
    (tmp_path / "predictions.csv").write_bytes(content)
    assert read_hits(tmp_path / "predictions.csv") is None


def test_a_folder_that_is_not_there(tmp_path, written):
    with pytest.raises(SiTError) as error:
        written("missing/some.csv", [0], [0], [0])
    assert str(tmp_path / "missing" / "some.csv") in error.value.problem
