"""Batches for the loop, and images that cannot be read: named once, told of the dataset, by all processes."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from modeling_sit.data import loading
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.loading import (
    UnreadableImages,
    create_crops,
    create_loader,
    crop_first_images,
    naming_unreadable,
    read_batches,
)
from modeling_sit.data.sources import load_images
from modeling_sit.data.views import ViewArguments
from modeling_sit.runtime.errors import SiTError


class Items(torch.utils.data.Dataset):
    """0, 1, 2 and so on; one of them raises."""

    def __init__(self, count: int, bad: int | None = None, problem: Exception | None = None):
        self.count, self.bad, self.problem = count, bad, problem

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if index == self.bad:
            raise self.problem
        return index


class TestReadBatches:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_in_the_loaders_order(self, workers):
        batches = read_batches(DataLoader(Items(6), batch_size=2, num_workers=workers), "images")
        assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_unreadable_images_name_the_data_set(self, workers):
        """A worker's exception carries its traceback as text; the user sees the last line of it."""
        problem = UnreadableImage("100 images in a row, the last of them a: b.png: it is empty (0 bytes)")
        loader = DataLoader(Items(6, 3, problem), batch_size=2, num_workers=workers)
        batches = read_batches(loader, "/my/images")
        assert next(batches).tolist() == [0, 1]
        with pytest.raises(SiTError) as error:
            next(batches)
        assert str(error.value) == f"--dataset /my/images cannot be read: {problem}; mend or remove the damaged files"

    def test_other_errors_stay_what_they_are(self):
        with pytest.raises(ZeroDivisionError):
            list(read_batches(DataLoader(Items(6, 3, ZeroDivisionError()), batch_size=2), "images"))

    def test_closing_ends_the_workers(self):
        others = torch.multiprocessing.active_children()
        loader = DataLoader(Items(100), batch_size=1, num_workers=1)
        batches = read_batches(loader, "images")
        next(batches)
        (worker,) = set(torch.multiprocessing.active_children()) - set(others)
        batches.close()
        worker.join(4)  # its own look for whether anyone still needs it takes 5 seconds
        assert not worker.is_alive()

    def test_an_error_ends_the_workers(self):
        """Though the error is still told of: a program that ends by it would wait for them."""
        others = torch.multiprocessing.active_children()
        loader = DataLoader(Items(100, 3, UnreadableImage("a.png: empty")), batch_size=1, num_workers=1)
        batches = read_batches(loader, "images")
        next(batches)
        (worker,) = set(torch.multiprocessing.active_children()) - set(others)
        with pytest.raises(SiTError) as error:
            list(batches)
        worker.join(4)
        assert not worker.is_alive() and "a.png" in str(error.value)


def test_naming_unreadable_lets_all_else_pass():
    with naming_unreadable("images"):
        pass
    with pytest.raises(KeyError), naming_unreadable("images"):
        raise KeyError
    with (
        pytest.raises(SiTError, match=r"--dataset images cannot be read: a\.png: empty"),
        naming_unreadable("images"),
    ):
        raise UnreadableImage("a.png: empty")


class TestUnreadableImages:
    def test_each_is_named_once(self, capsys):
        unreadable = UnreadableImages("skip")
        unreadable.add(["a.png: empty", "b.png: cut short"])
        unreadable.add([])
        unreadable.add(["a.png: empty", "c.png: no image"])
        assert capsys.readouterr().err.splitlines() == [
            f"skipped an unreadable image: {problem}"
            for problem in ("a.png: empty", "b.png: cut short", "c.png: no image")
        ]
        assert unreadable.named_by_all() == ["a.png: empty", "b.png: cut short", "c.png: no image"]

    def test_those_named_before_a_restart_are_counted_and_not_named_again(self, capsys):
        before = UnreadableImages("skip")
        before.add(["b.png: cut short"])
        capsys.readouterr()
        unreadable = UnreadableImages("skip", before.named_by_all())
        unreadable.add(["b.png: cut short", "a.png: empty"])
        assert capsys.readouterr().err == "skipped an unreadable image: a.png: empty\n"
        assert unreadable.named_by_all() == ["a.png: empty", "b.png: cut short"]

    def test_skipping_is_no_error(self):
        unreadable = UnreadableImages("skip")
        unreadable.add(["a.png: empty"])
        assert unreadable.check() is None
        assert unreadable.named_by_all() == ["a.png: empty"]

    def test_can_be_an_error(self, capsys):
        unreadable = UnreadableImages("error")
        unreadable.check()
        unreadable.add(["b.png: cut short", "a.png: empty"])
        with pytest.raises(SiTError, match=r"^a\.png: empty \(--on_bad_image skip would go on without it\)$"):
            unreadable.check()
        assert capsys.readouterr().err == ""  # it is not skipped

    def test_of_all_processes(self, monkeypatch):
        """Another process has met one that this one has met too, and one more."""
        monkeypatch.setattr(loading, "gather_object", lambda own: [*own, "a.png: empty", "z.png: empty"])
        unreadable = UnreadableImages("skip", ["a.png: empty", "b.png: cut short"])
        assert unreadable.named_by_all() == ["a.png: empty", "b.png: cut short", "z.png: empty"]


@pytest.mark.parametrize("streaming", [False, True])
class TestBothForms:
    """Of a folder that is read as it is, and of one that is streamed."""

    @pytest.fixture
    def made(self, tmp_path, save_images, streaming):
        images = load_images(str(save_images(tmp_path, 6)), streaming=streaming)
        return images, create_crops(images, (16, 12), 3, ViewArguments())

    def test_crops_of_the_first_images(self, made):
        """The first of each image's two crops, the same for the same seeds, whatever was drawn before."""
        crops = crop_first_images(*made, 4, seeds=lambda number: number)
        assert (crops.shape, crops.dtype) == ((4, 3, 16, 12), torch.uint8)
        state = torch.get_rng_state()
        assert torch.equal(crop_first_images(*made, 2, seeds=lambda number: number), crops[:2])
        assert torch.equal(torch.get_rng_state(), state)
        others = crop_first_images(*made, 4, seeds=lambda number: number + 1)
        assert not any(torch.equal(crop, other) for crop, other in zip(crops, others, strict=True))
        assert len(crop_first_images(*made, 99, seeds=lambda number: number)) == 6

    def test_images_that_cannot_be_read_name_the_data_set(self, made):
        images, crops = made
        for path in Path(images.name).iterdir():
            path.write_bytes(b"")
        with pytest.raises(SiTError, match=f"--dataset {images.name} cannot be read"):
            crop_first_images(images, crops, 4, seeds=lambda number: number)

    def test_batches(self, made, streaming):
        images, crops = made
        settings = {"batch_size": 2, "seed": 0, "process_index": 0, "num_processes": 1, "shuffle_buffer_size": 4}
        loader = create_loader(images, crops, first_batch=0, num_batches=5, **settings)
        batches = []
        for batch in loader:
            batches.append(batch["crops"])
            if len(batches) == 3:
                state = loader.state_dict() if streaming else None
        assert [batch.shape for batch in batches] == [(2, 2, 3, 16, 12)] * 5
        rest = create_loader(images, crops, first_batch=3, num_batches=2, stream_state=state, **settings)
        for batch, expected in zip(rest, batches[3:], strict=True):
            assert torch.equal(batch["crops"], expected)
