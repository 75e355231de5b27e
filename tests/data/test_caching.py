"""Images that are decoded once are the same as images decoded each time, and only whole caches are used."""

import errno
import fcntl
import gc
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from cached_images import UNREADABLE, crops_of

from modeling_sit.data import caching, decoded_cache
from modeling_sit.data.caching import CacheBuilder, ImageCacheArguments, cache_images
from modeling_sit.data.crops import DecodedImages, collate_crops
from modeling_sit.data.decoded_cache import DecodedImageCache, cache_key, estimate_bytes, write_images
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.device_crops import CropLoader, CropsOnDevice
from modeling_sit.data.loaders import BatchLoader
from modeling_sit.data.sampling import LoadingSettings, ResumableBatchSampler
from modeling_sit.image_modes import PixelFormat
from modeling_sit.runtime.atomic_files import TEMPORARY_PREFIX
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.locks import warn_without_lock

forking = multiprocessing.get_context("fork")
ONE_PROCESS = SimpleNamespace(num_processes=1, device=torch.device("cpu"), wait_for_everyone=lambda: None)


def cached(
    folder, kind: str = "disk", cache_dir: Path | None = None, num_epochs: float = 100, accelerator=ONE_PROCESS
):
    directory = {} if cache_dir is None else {"image_cache_dir": str(cache_dir)}
    arguments = ImageCacheArguments(image_cache=kind, **directory)
    return cache_images(accelerator, str(folder), crops_of(folder), arguments, num_epochs)


def files_of(cache_dir: Path) -> list[Path]:
    return sorted(path for path in cache_dir.rglob("*.arrow") if not path.name.startswith("."))


@pytest.fixture
def decoded(monkeypatch):
    """Which images are decoded, in order."""
    indices = []
    decode = DecodedImages.__getitem__
    monkeypatch.setattr(DecodedImages, "__getitem__", lambda self, index: indices.append(index) or decode(self, index))
    return indices


class TestCrops:
    @pytest.mark.parametrize("kind", ["memory", "disk"])
    def test_are_the_same_as_without(self, folder, tmp_path, kind):
        """Also in place of what cannot be read, which is named alike."""
        crops, kept = crops_of(folder), cached(folder, kind, tmp_path / "cache" if kind == "disk" else None)
        assert len(kept) == len(crops) == 8
        assert crops.images[6].shape == (38, 50, 3)  # an eighth
        for index in range(8):
            expected, item = crops[index, 3], kept[index, 3]
            assert torch.equal(item["crops"][0], expected["crops"][0]) and item["unreadable"] == expected["unreadable"]

    def test_on_the_device_but_for_rounding(self, folder):
        kept = cached(folder, "device")
        assert isinstance(kept, CropsOnDevice)
        batches = [list(batches_of(crops)) for crops in (crops_of(folder), kept)]
        for expected, batch in zip(*batches, strict=True):
            assert (batch["crops"][0].int() - expected["crops"][0].int()).abs().max() <= 1
            assert batch["unreadable"] == expected["unreadable"]

    @pytest.mark.parametrize("kind", ["memory", "disk", "device"])
    def test_do_not_depend_on_the_number_of_workers(self, folder, tmp_path, kind):
        kept = cached(folder, kind, tmp_path / "cache" if kind == "disk" else None)
        for batch, other in zip(batches_of(kept), batches_of(kept, num_workers=2), strict=True):
            assert torch.equal(batch["crops"][0], other["crops"][0]) and batch["unreadable"] == other["unreadable"]

    @pytest.mark.parametrize("kind", ["memory", "disk"])
    def test_in_a_process_that_is_told_where(self, folder, tmp_path, kind):
        """As dataloader workers are that are not forked: what they get is a path, not the pixels."""
        kept = cached(folder, kind, tmp_path / "cache" if kind == "disk" else None)
        sent = pickle.dumps(kept)
        assert len(sent) < 3000
        assert torch.equal(pickle.loads(sent)[6, 0]["crops"][0], kept[6, 0]["crops"][0])

    def test_decode_nothing(self, folder, tmp_path, decoded):
        kept = cached(folder, "disk", tmp_path / "cache")
        assert sorted(decoded) == list(range(8))
        for index in range(8):
            kept[index, 0]
        assert len(decoded) == 8


def batches_of(crops, **settings):
    """Four batches as `TrainingData` reads them."""
    loading = LoadingSettings(3, 1, **settings)
    sampler = ResumableBatchSampler(len(crops), loading, 0, 4)
    if isinstance(crops, CropsOnDevice):
        return CropLoader(crops, batch_sampler=sampler, **loading.for_loader)
    return BatchLoader(crops, batch_sampler=sampler, collate_fn=collate_crops, **loading.for_loader)


class TestOnDisk:
    def test_many_images_are_announced(self, folder, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(caching, "PATIENCE_OF_A_USER", 0.1)
        write = caching.write_images

        def write_slowly(*arguments):
            time.sleep(0.5)
            return write(*arguments)

        monkeypatch.setattr(caching, "write_images", write_slowly)
        cached(folder, "disk", tmp_path / "cache")
        first, second = capsys.readouterr().err.splitlines()
        assert first == "image cache: decoding 8 images, once"
        assert second.startswith("image cache: 8 images") and "made in" in second

    def test_the_next_run_decodes_nothing(self, folder, tmp_path, decoded, capsys):
        first = cached(folder, "disk", tmp_path / "cache")
        (path,) = files_of(tmp_path / "cache")
        assert re.search(
            rf"image cache: 8 images, [\d.]+ MB, {path}, made in [\d.]+ s\n", err := capsys.readouterr().err
        )
        assert "decoding" not in err  # it took no time
        decoded.clear()
        again = cached(folder, "disk", tmp_path / "cache")
        assert decoded == UNREADABLE  # only these are tried again
        assert capsys.readouterr().err.endswith("made before\n")
        assert torch.equal(again[6, 0]["crops"][0], first[6, 0]["crops"][0])

    def test_changed_images_are_decoded_anew(self, folder, tmp_path):
        cached(folder, "disk", tmp_path / "cache")
        PIL.Image.new("RGB", (24, 20), "red").save(folder / "00.png")
        assert (cached(folder, "disk", tmp_path / "cache")[0, 0]["crops"][0][:, 0] == 255).all()

    def test_images_that_can_be_read_again_are(self, folder, tmp_path, monkeypatch):
        """The disk failed for a moment while the cache was made: its key is that of the same files."""
        decode = DecodedImages.__getitem__

        def failing(self, index):
            if index == 3:
                raise UnreadableImage("3: Input/output error")
            return decode(self, index)

        with monkeypatch.context() as patch:
            patch.setattr(DecodedImages, "__getitem__", failing)
            assert cached(folder, "disk", tmp_path / "cache")[3, 0]["unreadable"] == ["3: Input/output error"]
        again = cached(folder, "disk", tmp_path / "cache")
        assert again[3, 0]["unreadable"] == []
        assert torch.equal(again[3, 0]["crops"][0], crops_of(folder)[3, 0]["crops"][0])

    @pytest.mark.parametrize(
        "damage", [lambda path: os.truncate(path, 1000), lambda path: path.write_bytes(b"x" * 99)]
    )
    def test_a_damaged_one_is_made_anew(self, folder, tmp_path, decoded, damage):
        cached(folder, "disk", tmp_path / "cache")
        (path,) = files_of(tmp_path / "cache")
        damage(path)
        decoded.clear()
        kept = cached(folder, "disk", tmp_path / "cache")
        assert sorted(decoded) == list(range(8))
        assert torch.equal(kept[6, 0]["crops"][0], crops_of(folder)[6, 0]["crops"][0])

    def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_one(self, folder, tmp_path, monkeypatch):
        def die():
            decode = DecodedImages.__getitem__
            DecodedImages.__getitem__ = lambda self, index: os._exit(9) if index == 6 else decode(self, index)
            cached(folder, "disk", tmp_path / "cache")

        monkeypatch.setattr(decoded_cache, "cpu_count", lambda: 1)
        process = forking.Process(target=die)
        process.start()
        process.join(20)
        assert process.exitcode == 9
        assert files_of(tmp_path / "cache") == []
        leftovers = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]
        assert len(leftovers) == 1
        assert len(cached(folder, "disk", tmp_path / "cache")) == 8
        assert not leftovers[0].exists()

    def test_what_a_user_has_in_the_folder_stays(self, folder, tmp_path):
        cached(folder, "disk", tmp_path / "cache")
        (path,) = files_of(tmp_path / "cache")
        mine = [path.with_name(name) for name in ("a.arrow", "b.arrow", "c.arrow", ".unfinished-a.arrow", "notes.txt")]
        for each in mine:
            each.write_text("mine")
            os.utime(each, (0, 0))
        old = [path.with_name(f"{digit * 32}.arrow") for digit in "abc"]
        for each in old:
            each.write_text("a cache of other settings")
            os.utime(each, (0, 0))
        path.unlink()
        cached(folder, "disk", tmp_path / "cache")
        assert path.exists() and sum(each.exists() for each in old) == 1
        assert all(each.read_text() == "mine" for each in mine)

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
    def test_without_locks(self, folder, tmp_path, monkeypatch, capsys, number):
        """What others may be writing or reading is left alone."""

        def refuse(*arguments):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        warn_without_lock.cache_clear()
        kept = cached(folder, "disk", tmp_path / "cache")
        (path,) = files_of(tmp_path / "cache")
        others = [
            path.with_name(name)
            for name in (f".unfinished-{'a' * 32}.arrow", f"{'b' * 32}.arrow", f"{'c' * 32}.arrow")
        ]
        for each in others:
            each.write_text("of another run")
            os.utime(each, (0, 0))
        path.unlink()
        kept = cached(folder, "disk", tmp_path / "cache")
        assert torch.equal(kept[6, 0]["crops"][0], crops_of(folder)[6, 0]["crops"][0])
        assert all(each.read_text() == "of another run" for each in others)
        said = capsys.readouterr().err
        assert "waiting for another" not in said and said.count("warning: files cannot be locked here") == 2

    def test_two_runs_at_once_decode_once(self, folder, tmp_path):
        log = tmp_path / "log"

        def run():
            decode = DecodedImages.__getitem__

            def slowly(self, index):
                time.sleep(0.02)
                with open(log, "a") as file:
                    file.write(f"{index}\n")
                return decode(self, index)

            DecodedImages.__getitem__ = slowly
            assert len(cached(folder, "disk", tmp_path / "cache")) == 8

        processes = [forking.Process(target=run) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(20)
            assert process.exitcode == 0
        decoded = [index for index in map(int, log.read_text().split()) if index not in UNREADABLE]
        assert sorted(decoded) == [index for index in range(8) if index not in UNREADABLE]

    def test_few_stay_of_one_dataset(self, folder, tmp_path):
        """The last used, those in use, and those of other datasets."""
        other = tmp_path / "other"
        other.mkdir()
        (folder / "00.png").rename(other / "a.png")
        cached(other, "disk", tmp_path / "cache")
        (of_other,) = files_of(tmp_path / "cache")
        in_use = cached(folder, "disk", tmp_path / "cache")
        made = []
        for time_of_change in (1, 2, 3):
            os.utime(folder / "02.png", (time_of_change, time_of_change))
            cached(folder, "disk", tmp_path / "cache")
            made.append(max(set(files_of(tmp_path / "cache")) - set(made), key=lambda path: path.stat().st_mtime_ns))
        expected = {of_other, in_use.images.path, *made[1:]}
        assert set(files_of(tmp_path / "cache")) == expected

    def test_without_a_folder_to_write_to(self, folder, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(SiTError, match=r"file/pile-\w+ cannot be written") as error:
            cached(folder, "disk", tmp_path / "file")
        assert error.value.argument == "image_cache_dir" and '`image_cache="none"`' in error.value.remedy

    def test_without_room(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
        with pytest.raises(SiTError, match=r"disk: .* take about .* room for 0.009 MB") as error:
            cached(folder, "disk", tmp_path / "cache")
        assert error.value.argument == "image_cache" and "`image_cache_dir`" in error.value.remedy
        assert files_of(tmp_path / "cache") == []

    def test_on_a_disk_that_becomes_full(self, folder, tmp_path):
        """The kernel refuses the write: nothing stays, and the error names the folder."""

        def run():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            with pytest.raises(SiTError, match=r"cache/pile-\w+ cannot be written: File too large") as error:
                cached(folder, "disk", tmp_path / "cache")
            assert error.value.argument == "image_cache_dir"

        process = forking.Process(target=run)
        process.start()
        process.join(20)
        assert process.exitcode == 0
        assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]

    def test_a_folder_of_its_own_for_each_dataset_in_the_cache_of_datasets(self, monkeypatch, tmp_path, folder):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        cached(folder, "disk")
        (path,) = files_of(tmp_path / "hf" / "sit_images")
        assert re.fullmatch(r"pile-\w{12}", path.parent.name)


class TestInMemory:
    def test_is_let_go_of_with_its_last_reader(self, folder):
        def held():
            return "sit-images" in Path("/proc/self/maps").read_text()

        kept = cached(folder, "memory")
        assert held()
        del kept
        assert not held()

    def test_without_room(self, folder, monkeypatch):
        monkeypatch.setattr(caching, "free_memory", lambda: 1000)
        for kind in ("memory", "device"):
            with pytest.raises(SiTError, match=rf"{kind}: .* room for 0.0009 MB") as error:
                cached(folder, kind)
            assert error.value.argument == "image_cache" and '`image_cache="disk"`' in error.value.remedy


class TestAuto:
    def test_is_memory_where_there_is_room(self, folder, tmp_path, capsys):
        assert isinstance(cached(folder, "auto", tmp_path / "cache").images, DecodedImageCache)
        assert "in memory" in capsys.readouterr().err
        assert not (tmp_path / "cache").exists()

    def test_is_what_lies_on_disk_already(self, folder, tmp_path, decoded):
        cached(folder, "disk", tmp_path / "cache")
        decoded.clear()
        cached(folder, "auto", tmp_path / "cache")
        assert set(decoded) == set(UNREADABLE)

    def test_goes_on_where_crops_were_cut(self, folder, tmp_path):
        """On the device, even for the last epoch; and not there, if they were not."""
        arguments = ImageCacheArguments(image_cache_dir=str(tmp_path / "cache"))
        of = {
            on_device: cache_images(ONE_PROCESS, str(folder), crops_of(folder), arguments, 1, on_device)
            for on_device in (True, False, None)
        }
        assert [isinstance(crops, CropsOnDevice) for crops in of.values()] == [True, False, False]
        memory = ImageCacheArguments(image_cache="memory")
        assert not isinstance(
            cache_images(ONE_PROCESS, str(folder), crops_of(folder), memory, 1, on_device=True), CropsOnDevice
        )

    def test_an_attempt_that_fails_leaves_no_memory_taken(self, folder, tmp_path, monkeypatch):
        """The estimate was too low: half the memory must not be held while the next place is tried."""
        held = []
        monkeypatch.setattr(caching, "estimate_bytes", lambda images: 0)
        monkeypatch.setattr(caching, "free_memory", lambda: 1000)
        build_on_disk = CacheBuilder._build_on_disk

        def watched(self, *arguments):
            files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
            held.extend(file for file in files if "sit-images" in file)
            return build_on_disk(self, *arguments)

        monkeypatch.setattr(CacheBuilder, "_build_on_disk", watched)
        gc.disable()
        try:
            kept = cached(folder, "auto", tmp_path / "cache")
        finally:
            gc.enable()
        assert [kept.images.path] == files_of(tmp_path / "cache")
        assert held == []

    def test_is_disk_where_memory_is_short(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(caching, "free_memory", lambda: 1000)
        kept = cached(folder, "auto", tmp_path / "cache")
        assert [kept.images.path] == files_of(tmp_path / "cache")

    def test_is_nowhere_where_all_is_short_and_says_why(self, folder, tmp_path, monkeypatch, capsys, decoded):
        monkeypatch.setattr(caching, "free_memory", lambda: 1000)
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        assert isinstance(cached(folder, "auto", tmp_path / "cache").images, DecodedImages)
        (line,) = capsys.readouterr().err.splitlines()
        assert "no image cache" in line and "room for 0.00025 MB" in line
        assert decoded == []

    def test_is_nowhere_for_a_short_run(self, folder, capsys):
        assert isinstance(cached(folder, "auto", num_epochs=2.9).images, DecodedImages)
        assert capsys.readouterr().err == ""


class TestTwoProcesses:
    def test_one_decodes_and_both_read(self, folder, tmp_path):
        """In memory, by the name that the one's file has for the other."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(rank: int):
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
            )  # fmt: skip
            indices, decode = [], DecodedImages.__getitem__
            DecodedImages.__getitem__ = lambda self, index: indices.append(index) or decode(self, index)
            kept = cached(folder, "memory", accelerator=Accelerator(cpu=True))
            torch.save((len(indices), kept[6, 0]["crops"][0]), tmp_path / f"{rank}.pt")

        processes = [forking.Process(target=run, args=(rank,)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        (first, crops), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
        assert (first, second) == (8, 0)
        assert torch.equal(crops, others) and torch.equal(crops, crops_of(folder)[6, 0]["crops"][0])


class TestArguments:
    @pytest.mark.parametrize("kind", ["memory", "device", "none"])
    def test_a_folder_is_for_the_disk(self, kind):
        with pytest.raises(SiTError, match=kind) as error:
            ImageCacheArguments(image_cache=kind, image_cache_dir="cache")
        assert error.value.argument == "image_cache_dir"


class TestProgram:
    MODEL = (
        "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,decoder_hidden_size=16,projection_hidden_size=16,"
        "projection_size=16"
    )

    def flags(self, folder, output_dir, *flags):
        return (
            *("--dataset", folder, "--output_dir", output_dir, "--image_size", 8, "--patch_size", 4),
            *("--config_overrides", self.MODEL, "--per_device_train_batch_size", 4, "--max_train_steps", 6),
            *("--logging_steps", 6, "--checkpointing_steps", 3, "--preview_steps", 0, "--report_to", "none", *flags),
        )

    @pytest.fixture
    def weights(self, run_program, folder, tmp_path):
        def weights(name, *flags) -> bytes:
            assert run_program("pretrain", *self.flags(folder, tmp_path / name, *flags)) == 0
            return (tmp_path / name / "model.safetensors").read_bytes()

        return weights

    def test_learns_the_same_and_goes_on_with_another_cache(self, weights, tmp_path):
        expected = weights("none", "--image_cache", "none")
        assert weights("memory", "--image_cache", "memory") == expected
        shutil.rmtree(tmp_path / "memory" / "checkpoints" / "step-00000006")
        disk = (
            "--image_cache",
            "disk",
            "--image_cache_dir",
            tmp_path / "cache",
            "--resume_from_checkpoint",
            "auto",
        )
        assert weights("memory", *disk) == expected
        assert len(files_of(tmp_path / "cache")) == 1

    def test_on_the_device_it_stays_there(self, weights, one_line_error, folder, tmp_path):
        flags = ("--image_cache", "device")
        whole = weights("device", *flags)
        shutil.rmtree(tmp_path / "device" / "checkpoints" / "step-00000006")
        going_on = ("--resume_from_checkpoint", "auto")
        flags = self.flags(folder, tmp_path / "device", "--image_cache", "memory", *going_on)
        assert "--allow_changed_settings" in one_line_error("pretrain", *flags)
        assert weights("device", *going_on) == whole  # `auto` knows

    def test_a_dry_run_keeps_nothing(self, run_program, folder, tmp_path):
        cache = ("--image_cache", "disk", "--image_cache_dir", tmp_path / "cache")
        assert run_program("pretrain", *self.flags(folder, tmp_path / "out", "--dry_run", *cache)) == 0
        assert not (tmp_path / "cache").exists()

    def test_of_a_stream_is_an_error(self, one_line_error, folder, tmp_path):
        flags = self.flags(folder, tmp_path / "out", "--streaming", "--image_cache", "memory")
        assert "--image_cache: memory: " in one_line_error("pretrain", *flags)

    def test_a_folder_of_no_account_is_an_error(self, one_line_error, folder, tmp_path):
        flags = self.flags(folder, tmp_path / "out", "--image_cache", "memory", "--image_cache_dir", "cache")
        assert "--image_cache_dir" in one_line_error("pretrain", *flags, code=2)


class TestHanging:
    """A read that hangs ends in an error, and another process that hangs too."""

    @pytest.fixture(autouse=True)
    def little_time(self, monkeypatch):
        monkeypatch.setattr(caching, "SECONDS_FOR_AN_IMAGE", 0.5)
        monkeypatch.setattr(decoded_cache, "SECONDS_FOR_AN_IMAGE", 0.5)
        monkeypatch.setattr(caching, "LOCK_INTERVAL", 0.05)

    @pytest.mark.parametrize("kind", ["memory", "disk", "auto"])
    def test_in_a_read(self, folder, tmp_path, monkeypatch, kind):
        go_on = threading.Event()
        monkeypatch.setattr(decoded_cache, "_decode", lambda images, index: go_on.wait(60))
        started = time.monotonic()
        with pytest.raises(SiTError) as error:
            cached(folder, kind, tmp_path / "cache" if kind == "disk" else None)
        assert time.monotonic() - started < 20
        assert error.value.argument == "dataset"
        go_on.set()

    def test_in_another_process_that_holds_the_folder(self, folder, tmp_path):
        path = cached(folder, "disk", tmp_path / "cache").images.path
        with open(path.parent / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(SiTError) as error:
                cached(folder, "disk", tmp_path / "cache")
        assert error.value.argument == "image_cache" and str(path.parent) in error.value.problem

    def test_in_no_process_whose_file_grows(self, folder, tmp_path):
        path = cached(folder, "disk", tmp_path / "cache").images.path

        def write(lock):
            for number in range(12):
                (path.parent / f"{TEMPORARY_PREFIX}other").write_bytes(bytes(number))
                time.sleep(0.1)
            lock.close()

        lock = (path.parent / "lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = threading.Thread(target=write, args=(lock,))
        writer.start()
        assert len(cached(folder, "disk", tmp_path / "cache")) == 8
        writer.join()


def test_channels_without_color(tmp_path):
    (tmp_path / "bands").mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (3, 9, 8, 5), dtype=np.uint16)
    for number, each in enumerate(values):
        np.save(tmp_path / "bands" / f"{number}.npy", each)
    images = crops_of(tmp_path / "bands", num_channels=PixelFormat(5, (0, 4095))).images
    key = cache_key(images)
    assert key != cache_key(crops_of(tmp_path / "bands", num_channels=PixelFormat(5, (0, 2000))).images)
    assert estimate_bytes(images) == 3 * 9 * 8 * 5
    with open(tmp_path / "cache", "wb") as file:
        write_images(file, images, key, 10**6)
    kept = DecodedImageCache(tmp_path / "cache", key)
    for number, each in enumerate(values):
        assert (kept[number] == np.rint(each * (255 / 4095))).all()
