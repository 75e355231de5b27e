"""The images of a comparison."""

from dataclasses import dataclass

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.experiments.compared_images import compared_images


@dataclass(kw_only=True)
class Arguments(DatasetArguments):
    """With what a comparison has beside them."""

    validation_split: str | None = None


def test_fingerprint_follows_what_is_in_the_folder(save_images, tmp_path):
    def fingerprint() -> str:
        return compared_images(Arguments(dataset=str(tmp_path / "images"))).fingerprint()

    for number, name in enumerate(("cats", "dogs")):
        save_images(tmp_path / "images" / name, 6, seed=number)
    before = fingerprint()
    assert fingerprint() == before
    image = next((tmp_path / "images" / "cats").iterdir())
    image.rename(tmp_path / "images" / "dogs" / "other.png")
    relabeled = fingerprint()
    (tmp_path / "images" / "dogs" / "other.png").unlink()
    assert len({before, relabeled, fingerprint()}) == 3
