"""The file of decoded images: what is written is what is read, and nothing but a whole file of these images is."""

import contextlib
import io
import os
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from cached_images import UNREADABLE, crops_of

from modeling_sit.data import caching, decoded_cache
from modeling_sit.data.crops import DecodedImages
from modeling_sit.data.decoded_cache import DecodedImageCache, cache_key, estimate_bytes, write_images
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sources import load_images


class TestFile:
    @pytest.fixture
    def images(self, folder):
        return crops_of(folder).images

    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch):
        """The file has several record batches, the last of them not full."""
        monkeypatch.setattr(decoded_cache, "BATCH_ROWS", 3)

    def write(self, images, max_bytes: int = 10**9) -> bytes:
        file = io.BytesIO()
        write_images(file, images, "key", max_bytes)
        return file.getvalue()

    def test_gives_what_was_written(self, images, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(self.write(images))
        cache = DecodedImageCache(path, "key")
        assert len(cache) == len(images) == 8
        assert [len(part) > 0 for part in cache.parts] == [True, True, True]
        for index in set(range(8)) - set(UNREADABLE):
            assert np.array_equal(cache[index], images[index])
        pixels = np.concatenate(cache.parts)
        start, height, width = cache.index.place(6)
        assert np.array_equal(pixels[start : start + height * width * 3].reshape(height, width, 3), images[6])

    def test_is_a_dataset(self, images, tmp_path):
        (tmp_path / "file").write_bytes(self.write(images))
        rows = datasets.Dataset.from_file(str(tmp_path / "file"))
        assert rows[6]["pixels"] == images[6].tobytes() and (rows[6]["height"], rows[6]["width"]) == (38, 50)
        assert [index for index, problem in enumerate(rows["problem"]) if problem] == UNREADABLE

    def test_is_read_without_a_copy(self, images, tmp_path):
        (tmp_path / "file").write_bytes(self.write(images))
        cache = DecodedImageCache(tmp_path / "file", "key")
        assert all(np.shares_memory(cache[index], cache.parts[index // 3]) for index in (0, 3, 6))
        assert not cache[0].flags.writeable
        assert str(tmp_path / "file") in Path("/proc/self/maps").read_text()

    def test_is_the_same_whatever_the_number_of_threads(self, images, monkeypatch):
        files = set()
        for num_threads in (1, 2, 7):
            monkeypatch.setattr(decoded_cache, "cpu_count", lambda: num_threads)  # noqa: B023
            files.add(self.write(images))
        assert len(files) == 1

    def test_has_record_batches_of_bounded_size(self, images, monkeypatch):
        monkeypatch.setattr(decoded_cache, "BATCH_BYTES", 5000)
        with pa.ipc.open_stream(self.write(images)) as reader:
            assert [len(batch) for batch in reader] == [3, 3, 1, 1]
        monkeypatch.setattr(decoded_cache, "BATCH_BYTES", 1)
        with pa.ipc.open_stream(self.write(images)) as reader:
            assert [len(batch) for batch in reader] == [1, 2, 1, 1, 1, 1, 1]

    def test_cut_short_anywhere_it_is_refused(self, images, tmp_path):
        """Also between two record batches, where the format itself allows a file to end."""
        whole = self.write(images)
        path = tmp_path / "file"
        last_pixels = whole.rindex(images[6].tobytes()) + images[6].nbytes
        for length in (0, 3, *range(100, last_pixels, 997), last_pixels - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(caching.UNUSABLE):
                DecodedImageCache(path, "key")
        path.write_bytes(whole[10:])  # the end is there, and the beginning is not
        with pytest.raises(caching.UNUSABLE):
            DecodedImageCache(path, "key")
        path.write_bytes(whole)
        assert len(DecodedImageCache(path, "key")) == 8

    def test_that_ends_after_a_record_batch_is_refused(self, images, tmp_path):
        with (
            pa.ipc.open_stream(self.write(images)) as reader,
            pa.ipc.new_stream(tmp_path / "file", reader.schema) as writer,
        ):
            for batch in [*reader][:2]:
                writer.write_batch(batch)
        with pytest.raises(ValueError, match="cut short"):
            DecodedImageCache(tmp_path / "file", "key")

    def test_of_other_images_or_foreign_it_is_refused(self, images, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(self.write(images))
        with pytest.raises(ValueError, match="other images"):
            DecodedImageCache(path, "another")
        with pa.ipc.new_stream(path, pa.schema({"a": pa.int64()})):
            pass
        with pytest.raises(ValueError, match="other images"):
            DecodedImageCache(path, "key")
        for seed in range(20):
            path.write_bytes(np.random.default_rng(seed).bytes(1000))
            with pytest.raises(caching.UNUSABLE):
                DecodedImageCache(path, "key")
        with pytest.raises(OSError):
            DecodedImageCache(tmp_path / "none", "key")

    def test_with_a_damaged_byte_it_is_refused_or_read(self, tmp_path):
        """Whatever the byte: Arrow's own reader would crash at some of them."""
        for name in ("a.png", "c.png"):
            PIL.Image.new("RGB", (4, 5)).save(tmp_path / name)
        (tmp_path / "b.png").write_bytes(b"broken")
        whole = self.write(crops_of(tmp_path).images)
        for place in range(len(whole)):
            path = tmp_path / "file"
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with contextlib.suppress(*caching.UNUSABLE, UnreadableImage):
                cache = DecodedImageCache(path, "key")
                assert [cache[index].shape for index in (0, 2)] == [(5, 4, 3)] * 2

    def test_of_unreadable_images_alone(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        (tmp_path / "file").write_bytes(self.write(crops_of(tmp_path).images))
        with pytest.raises(UnreadableImage, match=r"a\.png: it is empty"):
            DecodedImageCache(tmp_path / "file", "key")[0]

    def test_more_than_there_is_room_for_ends_it(self, images):
        size = sum(image.nbytes for image in (images[index] for index in (0, 2, 3, 4, 5, 6)))
        self.write(images, max_bytes=size)
        with pytest.raises(decoded_cache.CacheTooLarge):
            self.write(images, max_bytes=size - 1)
        assert estimate_bytes(images) == size

    def test_other_errors_are_not_swallowed(self, images, monkeypatch):
        monkeypatch.setattr(DecodedImages, "__getitem__", lambda self, index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.write(images)


class TestKey:
    def test_depends_on_all_that_changes_pixels(self, folder, monkeypatch):
        """And is the same for the same."""
        key = cache_key(crops_of(folder).images)
        assert cache_key(crops_of(folder).images) == key
        assert cache_key(crops_of(folder, crop_scale=[0.1, 1.0]).images) != key
        assert cache_key(crops_of(folder, num_channels=1).images) != key
        with monkeypatch.context() as patch:
            patch.setattr(PIL, "__version__", "another")
            assert cache_key(crops_of(folder).images) != key
        os.utime(folder / "00.png", (1, 1))
        touched = cache_key(crops_of(folder).images)
        (folder / "04.png").unlink()
        assert len({key, touched, cache_key(crops_of(folder).images)}) == 3

    def test_of_images_in_tables(self):
        digits = load_images("digits")
        keys = {cache_key(DecodedImages(digits.train, 1, crops_of("digits").images.draft_scale)) for _ in range(2)}
        digits.train = digits.train.select(range(100))
        assert len(keys) == 1
        assert cache_key(DecodedImages(digits.train, 1, crops_of("digits").images.draft_scale)) not in keys
