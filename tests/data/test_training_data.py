"""Batches for the loop, and unreadable images: each is named once, with the dataset, by all processes."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from modeling_sit.data import opening, training_data, unreadable
from modeling_sit.data.caching import ImageCacheArguments
from modeling_sit.data.crops import CropGroup
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sampling import LoadingSettings
from modeling_sit.data.sources import load_images
from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.training_data import TrainingData
from modeling_sit.data.unreadable import UnreadableImages, unreadable_errors
from modeling_sit.runtime import waiting
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
        batches = training_data._read(DataLoader(Items(6), batch_size=2, num_workers=workers), "images")
        assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_unreadable_images_name_the_data_set(self, workers):
        """A worker's exception carries its traceback as text; the user sees the last line of it."""
        problem = UnreadableImage("100 images in a row, the last of them a: b.png: it is empty (0 bytes)")
        loader = DataLoader(Items(6, 3, problem), batch_size=2, num_workers=workers)
        batches = training_data._read(loader, "/my/images")
        assert next(batches).tolist() == [0, 1]
        with pytest.raises(SiTError) as error:
            next(batches)
        assert error.value.argument == "dataset"
        assert error.value.problem == f"/my/images cannot be read: {problem}"

    def test_other_errors_stay_what_they_are(self):
        with pytest.raises(ZeroDivisionError):
            list(training_data._read(DataLoader(Items(6, 3, ZeroDivisionError()), batch_size=2), "images"))

    def test_closing_ends_the_workers(self):
        others = torch.multiprocessing.active_children()
        loader = DataLoader(Items(100), batch_size=1, num_workers=1)
        batches = training_data._read(loader, "images")
        next(batches)
        (worker,) = set(torch.multiprocessing.active_children()) - set(others)
        batches.close()
        worker.join(4)  # its own look for whether anyone still needs it takes 5 seconds
        assert not worker.is_alive()

    def test_an_error_ends_the_workers(self):
        """Though the error is still held: a program that ends by it would wait for them."""
        others = torch.multiprocessing.active_children()
        loader = DataLoader(Items(100, 3, UnreadableImage("a.png: empty")), batch_size=1, num_workers=1)
        batches = training_data._read(loader, "images")
        next(batches)
        (worker,) = set(torch.multiprocessing.active_children()) - set(others)
        with pytest.raises(SiTError) as error:
            list(batches)
        worker.join(4)
        assert not worker.is_alive() and "a.png" in str(error.value)


def test_unreadable_errors_let_all_else_pass():
    with unreadable_errors("images"):
        pass
    with pytest.raises(KeyError), unreadable_errors("images"):
        raise KeyError
    with (
        pytest.raises(SiTError, match=r"dataset: images cannot be read: a\.png: empty"),
        unreadable_errors("images"),
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
        with pytest.raises(SiTError) as error:
            unreadable.check()
        assert (error.value.argument, error.value.problem) == ("on_bad_image", "a.png: empty")
        assert capsys.readouterr().err == ""  # it is not skipped

    def test_of_all_processes(self, monkeypatch):
        """Another process has met one that this one has met too, and one more."""
        monkeypatch.setattr(unreadable, "gather_object", lambda own: [*own, "a.png: empty", "z.png: empty"])
        images = UnreadableImages("skip", ["a.png: empty", "b.png: cut short"])
        assert images.named_by_all() == ["a.png: empty", "b.png: cut short", "z.png: empty"]


GROUPS = (CropGroup(2, (16, 12), (0.2, 1.0)), CropGroup(3, (8, 8), (0.05, 0.2)))


@pytest.mark.parametrize("streaming", [False, True])
class TestBothForms:
    """Of a folder that is read as it is, and of one that is streamed."""

    @pytest.fixture
    def make(self, tmp_path, save_images, streaming):
        """Make the data of the same six images; anew each time, as a run that goes on does."""
        folder = save_images(tmp_path / "images", 6)

        def make(groups=GROUPS, cache="none", **loading) -> TrainingData:
            loading = LoadingSettings(**{"batch_size": 2, "seed": 0, **loading})
            stream = StreamingArguments(streaming=streaming, shuffle_buffer_size=4 if streaming else None)
            images = load_images(str(folder), streaming=streaming)
            return TrainingData(images, groups, loading, stream, ImageCacheArguments(image_cache=cache))

        return make

    def test_crops_for_a_preview(self, make):
        """The first of each image's crops, the same for the same seeds, whatever was drawn before."""
        data = make()
        crops = data.preview_crops(4, lambda number: number)
        assert (crops.shape, crops.dtype) == ((4, 3, 16, 12), torch.uint8)
        state = torch.get_rng_state()
        assert torch.equal(data.preview_crops(4, lambda number: number), crops)
        assert torch.equal(torch.get_rng_state(), state)
        others = data.preview_crops(4, lambda number: number + 1)
        assert not any(torch.equal(crop, other) for crop, other in zip(crops, others, strict=True))
        assert len(data.preview_crops(99, lambda number: number)) == 6

    @pytest.mark.parametrize("hangs", ["read", "stat"])
    def test_a_file_that_never_comes_is_waited_for_with_a_limit(self, hangs, make, monkeypatch):
        """In the main process, where no loader looks at the clock."""
        data = make()
        monkeypatch.setattr(opening, "SECONDS_FOR_A_FILE", 0.2)
        if hangs == "read":
            monkeypatch.setattr(opening, "open_image", lambda file: time.sleep(1000))
        else:
            calls = {"stat": lambda path: time.sleep(1000), "PathLike": os.PathLike, "environ": os.environ}
            monkeypatch.setattr(opening, "os", SimpleNamespace(**calls))
        started = time.monotonic()
        with pytest.raises(SiTError) as error:
            data.preview_crops(4, lambda number: number)
        assert time.monotonic() - started < 30
        assert error.value.argument == "dataset" and "0.2 s" in error.value.problem

    def test_a_signal_ends_the_wait_for_a_file(self, make, monkeypatch):
        data = make()
        monkeypatch.setattr(waiting, "SECONDS_AFTER_A_SIGNAL", 0.2)
        monkeypatch.setattr(opening, "open_image", lambda file: time.sleep(1000))
        waiting.stop_waiting(signal.SIGTERM)
        try:
            with pytest.raises(waiting.WaitStopped):
                data.preview_crops(4, lambda number: number)
        finally:
            waiting.wait_again()

    def test_images_that_cannot_be_read_name_the_dataset(self, make):
        data = make()
        for path in Path(data.name).iterdir():
            path.write_bytes(b"")
        with pytest.raises(SiTError, match=f"{data.name} cannot be read") as error:
            data.preview_crops(4, lambda number: number)
        assert error.value.argument == "dataset"

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_batches_go_on_where_they_were_left(self, make, num_workers):
        data, crops, states = make(num_workers=num_workers), [], []
        for batch in data.batches(0, 5):
            assert batch["unreadable"] == []
            crops.append(batch["crops"])
            states.append(data.state_dict())
        assert [tuple(group.shape for group in batch) for batch in crops] == [
            ((2, 2, 3, 16, 12), (3, 2, 3, 8, 8)),
        ] * 5
        rest = [batch["crops"] for batch in make().batches(3, 5, states[2])]
        assert len(rest) == 2
        for batch, expected in zip(rest, crops[3:], strict=True):
            assert all(torch.equal(group, other) for group, other in zip(batch, expected, strict=True))

    def test_the_first_group_does_not_depend_on_the_others(self, make):
        one, two = ([batch["crops"][0] for batch in make(groups).batches(0, 4)] for groups in (GROUPS[:1], GROUPS))
        assert all(torch.equal(crops, other) for crops, other in zip(one, two, strict=True))

    def test_epochs(self, make):
        data = make()
        numbers = [data.epoch(number) for number, _ in enumerate(data.batches(0, 7), start=1)]
        assert numbers == pytest.approx([number / 3 for number in range(1, 8)])

    def test_description_and_fingerprint(self, make, streaming):
        data = make()
        before = data.fingerprint()
        assert make(GROUPS[:1], seed=5).fingerprint() == before
        # The names of a stream's shards say nothing of the files in them.
        if not streaming:
            next(Path(data.name).iterdir()).write_bytes(b"more than before" * 1000)
            assert data.fingerprint() != before

    @pytest.mark.parametrize("kind", ["memory", "disk", "device"])
    def test_caches(self, make, streaming, kind, tmp_path, monkeypatch):
        """The same crops from memory and disk, and but for rounding from the device; nothing is kept of a stream."""
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        if streaming:
            with pytest.raises(SiTError) as error:
                make(cache=kind)
            assert error.value.argument == "image_cache"
            return
        data = make(cache=kind)
        data.cache(Accelerator(cpu=True), num_epochs=10)
        assert data.crops_on_device is (kind == "device")
        for batch, plain in zip(data.batches(0, 4), make().batches(0, 4), strict=True):
            for group, other in zip(batch["crops"], plain["crops"], strict=True):
                assert group.shape == other.shape
                assert (group.int() - other.int()).abs().max() <= (2 if kind == "device" else 0)


class TestInMemory:
    """Of a `datasets.Dataset` and of a stream that are given as objects."""

    def make(self, images, form="table", num_workers=0) -> TrainingData:
        dataset = datasets.Dataset.from_dict({"image": images})
        assert isinstance(dataset.features["image"], datasets.Image)
        if form == "stream":
            dataset = dataset.to_iterable_dataset()
        loading = LoadingSettings(batch_size=2, seed=0, num_workers=num_workers)
        found = load_images(dataset, streaming=form == "table streamed")
        return TrainingData(found, GROUPS, loading, StreamingArguments(), ImageCacheArguments(image_cache="none"))

    def images(self, *values) -> list[PIL.Image.Image]:
        return [PIL.Image.new("RGB", (20, 16), (value, 0, 0)) for value in values]

    @pytest.mark.parametrize("form", ["table", "table streamed", "stream"])
    def test_fingerprint(self, form):
        """Encoded images of equal length differ by their content."""
        images, others = self.images(1, 2, 3, 4), self.images(1, 2, 3, 5)
        lengths = [[len(row["bytes"]) for row in load_rows(rows)] for rows in (images, others)]
        assert lengths[0] == lengths[1]
        assert self.make(images, form).fingerprint() == self.make(self.images(1, 2, 3, 4), form).fingerprint()
        assert self.make(images, form).fingerprint() != self.make(others, form).fingerprint()
        assert self.make(images, form).fingerprint() != self.make(images[::-1], form).fingerprint()

    @pytest.mark.parametrize("form", ["table", "table streamed", "stream"])
    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_batches(self, form, num_workers):
        data = self.make(self.images(10, 20, 30, 40), form, num_workers)
        seen = [int(value) for batch in data.batches(0, 2) for value in batch["crops"][0][0, :, 0].amax(dim=(1, 2))]
        assert sorted(seen) == [10, 20, 30, 40]

    @pytest.mark.parametrize(
        ("form", "values"), [("table", [10, 30, 50]), ("table streamed", [10, 20, 30]), ("stream", [10, 20, 30])]
    )
    def test_a_preview_shows_images_from_all_over(self, form, values):
        """Sorted by classes, the first ones would be of one class."""
        data = self.make(self.images(10, 20, 30, 40, 50, 60), form)
        crops = data.preview_crops(3, lambda number: number)
        assert crops[:, 0].amax(dim=(1, 2)).tolist() == values


def load_rows(images) -> list[dict]:
    return datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image(decode=False))["image"][:]
