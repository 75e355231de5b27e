"""Words of the programs' lines."""

from modeling_sit.runtime.words import counted


def test_one_is_no_plural():
    numbers = [counted(number, "image") for number in (0, 1, 2, 1000)]
    assert numbers == ["0 images", "1 image", "2 images", "1,000 images"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
