"""Words of the programs' lines."""

from modeling_sit.runtime.words import counted, rounded


def test_one_is_no_plural():
    numbers = [counted(number, "image") for number in (0, 1, 2, 1000)]
    assert numbers == ["0 images", "1 image", "2 images", "1,000 images"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]


def test_no_number_has_an_exponent():
    numbers = [0, 0.25, 2.54, 9.5, 12.5, 1000, 123456.7]
    assert [rounded(number) for number in numbers] == ["0", "0.25", "2.5", "9.5", "12", "1,000", "123,457"]
    assert [rounded(number, 4) for number in (0.08904, 19.2345, 20_018)] == ["0.08904", "19.23", "20,018"]
