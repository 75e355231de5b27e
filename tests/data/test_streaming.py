"""Streams: who reads which image when, with which crops, from where a run goes on, and in how much memory."""

import dataclasses
import io
import itertools
import json
import re
import tarfile
import threading

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit.data import shard_reading, sources, streaming
from modeling_sit.data.crops import CropGroup, CropsDataset, DecodedImages, RandomCrops
from modeling_sit.data.decoding import UnreadableImage, decode_image
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.data.sampling import CROPS, ORDER, LoadingSettings, derive_seed
from modeling_sit.data.shard_reading import first_images
from modeling_sit.data.sources import load_images
from modeling_sit.data.streaming import StreamedCrops, StreamingArguments, StreamingLoader
from modeling_sit.runtime.errors import SiTError

SHARD_SIZES = [5, 3, 7, 4, 6]
NUM_IMAGES = sum(SHARD_SIZES)
SHAPE = (6, 6)
CROPPING = RandomCrops([CropGroup(2, SHAPE, (0.4, 1.0))], (3 / 4, 4 / 3))


def crops_of(table: datasets.Dataset) -> CropsDataset:
    return CropsDataset(DecodedImages(table, 3, CROPPING.draft_scale), CROPPING)


def png(number):
    """An image by whose red one knows it again, in whichever crop; the other channels tell the crops apart."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    pixels[..., 0] = number
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shards_of_numbers(sizes=SHARD_SIZES):
    numbers = itertools.count()
    return [list(itertools.islice(numbers, size)) for size in sizes]


def write_parquet(path, images, **columns):
    rows = {"image": [{"bytes": image, "path": None} for image in images], **columns}
    # Row groups of two rows, so that shards have several.
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path, batch_size=2)


def write_parquets(folder, sizes=SHARD_SIZES, damaged=()):
    for shard, numbers in enumerate(shards_of_numbers(sizes)):
        images = [b"no image" if number in damaged else png(number) for number in numbers]
        write_parquet(folder / f"train-{shard:04}.parquet", images)
    return folder


def write_tars(folder, sizes=SHARD_SIZES):
    for shard, numbers in enumerate(shards_of_numbers(sizes)):
        with tarfile.open(folder / f"train-{shard:04}.tar", "w") as tar:
            for number in numbers:
                for extension, content in {"png": png(number), "cls": b"1"}.items():
                    member = tarfile.TarInfo(f"{number:03}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def write_folder(folder, sizes=SHARD_SIZES):
    for number in range(sum(sizes)):
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    return folder


def write_renamed(folder):
    """A column that is not called `image`, and not of type Image either."""
    rows = {"photo": [{"bytes": png(number), "path": None} for number in range(NUM_IMAGES)], "other": ["x"] * 25}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet", batch_size=4)
    return folder


FORMS = {"parquet": write_parquets, "tar": write_tars, "folder": write_folder, "renamed": write_renamed}


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    """The same images in any form, as a stream."""
    loaded = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setattr(sources, "MAX_SHARDS_OF_A_TABLE", 6)
        datasets.disable_progress_bars()

        def load(form) -> ImageDatasets:
            if form not in loaded:
                loaded[form] = load_images(str(FORMS[form](tmp_path_factory.mktemp(form))), streaming=True)
            return loaded[form]

        yield load
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def images(images_of) -> ImageDatasets:
    return images_of("parquet")


def loader(images, num_batches=16, **settings) -> StreamingLoader:
    stream = {name: settings.pop(name) for name in ("start_state",) if name in settings}
    stream["shuffle_buffer_size"] = settings.pop("shuffle_buffer_size", 6)
    images = dataclasses.replace(images, num_train=settings.pop("num_images", None))
    loading = LoadingSettings(**{"batch_size": 4, "seed": 0, **settings})
    return StreamingLoader(images, StreamedCrops(CROPPING, 3), loading, num_batches, **stream)


def numbers_in(batch) -> list[int]:
    red = batch["crops"][0][:, :, 0].transpose(0, 1).flatten(1)
    assert (red == red[:, :1]).all()
    return red[:, 0].tolist()


def numbers_of(loader) -> list[int]:
    return [number for batch in loader for number in numbers_in(batch)]


def content(batch) -> tuple:
    return batch["crops"][0].numpy().tobytes(), tuple(batch["unreadable"])


def expected_numbers(shards, num_images, seed=0, buffer=6, process=0, num_processes=1, at_a_time=8) -> list[int]:
    """The order as one would write it down, with all images at hand."""

    def permuted(values, *numbers):
        generator = torch.Generator().manual_seed(derive_seed(seed, ORDER, *numbers))
        return [values[place] for place in torch.randperm(len(values), generator=generator)]

    result = []
    for epoch in itertools.count():
        order = permuted(range(len(shards)), epoch)
        num_dealt = len(shards) // num_processes * num_processes
        mine = [shards[shard] for shard in order[:num_dealt][process::num_processes]]
        mine += [shards[shard][(process + shard) % num_processes :: num_processes] for shard in order[num_dealt:]]
        waiting, being_read, numbers, turn = [list(shard) for shard in mine], [], [], 0
        while waiting or being_read:
            while waiting and len(being_read) < at_a_time:
                being_read.append(waiting.pop(0))
            turn %= len(being_read)
            if being_read[turn]:
                numbers.append(being_read[turn].pop(0))
                turn += 1
            else:
                del being_read[turn]
        for block, start in enumerate(range(0, len(numbers), buffer)):
            result += permuted(numbers[start : start + buffer], process, epoch, block)
        if len(result) >= num_images:
            return result[:num_images]


# Which image when.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("buffer", [1, 6, 1000])
def test_every_image_once_a_pass(images_of, form, buffer):
    numbers = numbers_of(loader(images_of(form), 15, batch_size=5, shuffle_buffer_size=buffer))
    for epoch in range(3):
        assert sorted(numbers[25 * epoch : 25 * (epoch + 1)]) == list(range(25))


@pytest.mark.parametrize(("num_processes", "at_a_time"), [(1, 2), (1, 8), (2, 2), (3, 8), (7, 2)])
def test_the_order_is_the_plain_one(images, num_processes, at_a_time, monkeypatch):
    monkeypatch.setattr(shard_reading, "SHARDS_AT_A_TIME", at_a_time)
    num_images = 64 // num_processes // 4 * 4  # more than two passes
    for process in range(num_processes):
        part = {"process_index": process, "num_processes": num_processes}
        expected = expected_numbers(
            shards_of_numbers(),
            num_images,
            seed=3,
            process=process,
            num_processes=num_processes,
            at_a_time=at_a_time,
        )
        assert numbers_of(loader(images, num_images // 4, seed=3, **part)) == expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_processes_share_a_pass(images_of, form, num_processes):
    seen = []
    for process in range(num_processes):
        part = {"process_index": process, "num_processes": num_processes}
        one = loader(images_of(form), 100, batch_size=1, **part)
        # Whether or not it ends with the first batch of the next pass, the state says when the pass is over.
        for batch in one:
            if one.state_dict()["stream"]["epoch"] > 0 and one.state_dict()["position"] > 0:
                break
            seen += numbers_in(batch)
    assert sorted(seen) == list(range(25))


def test_order_is_another_one_in_another_pass_and_with_another_seed(images):
    numbers = numbers_of(loader(images, 10, batch_size=5))
    first, second = numbers[:25], numbers[25:]
    assert first != second
    assert first == numbers_of(loader(images, 5, batch_size=5))
    assert first != numbers_of(loader(images, 5, batch_size=5, seed=1))
    assert first != sorted(first)


def test_sorted_classes_are_mixed():
    """A hundred shards of a class each, as class sub-folders give: a block holds as many as are read in turns."""
    table = datasets.Dataset.from_dict({"image": [{"bytes": b"", "path": str(row // 10)} for row in range(1000)]})
    stream = shard_reading.ProcessStream(table.to_iterable_dataset(num_shards=100), None, 0, 0, 1)
    assert len({image.image["path"] for image in stream.read_block(40)}) == 8


def test_epoch(images):
    known, unknown = loader(images, 14, num_images=25), loader(images, 14)
    assert known.epoch == unknown.epoch == 0
    for number, _ in enumerate(zip(known, unknown, strict=True), start=1):
        assert known.epoch == pytest.approx(4 * number / 25)
        assert unknown.epoch == 4 * number // 25
    assert isinstance(unknown.epoch, int)
    half = loader(images, 1, num_images=25, num_processes=2)
    assert [half.epoch for _ in half] == [8 / 25]


# Crops.


def test_crops_are_those_of_the_images_seed(images):
    numbers = numbers_of(loader(images, 15, process_index=1, num_processes=2))
    crops = torch.cat([batch["crops"][0] for batch in loader(images, 15, process_index=1, num_processes=2)], dim=1)
    table = datasets.Dataset.from_dict({"image": [{"bytes": png(number), "path": None} for number in range(25)]})
    plain = crops_of(table)
    for sample, number in enumerate(numbers):
        assert torch.equal(crops[:, sample], plain[number, derive_seed(0, CROPS, 1, sample)]["crops"][0])


@pytest.mark.parametrize("form", FORMS)
def test_results_do_not_depend_on_the_workers(images_of, form):
    results = []
    for num_workers in (0, 1, 2):
        one = loader(images_of(form), 9, num_workers=num_workers)
        results.append([(content(batch), json.dumps(one.state_dict()), one.epoch) for batch in one])
    assert results[0] == results[1] == results[2] and len(results[0]) == 9


def test_global_generators_are_left_alone(images):
    torch.manual_seed(5)
    np.random.seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = [content(batch) for batch in loader(images, 3)]
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(6)
    assert [content(batch) for batch in loader(images, 3)] == first


# Resuming.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("buffer", "process_index", "num_processes"), [(6, 0, 1), (4, 1, 2), (1, 0, 3), (1000, 2, 3)])
def test_resuming_after_any_batch(images_of, form, buffer, process_index, num_processes):
    """Within blocks, at their ends, at the ends of passes, and in batches that span them."""
    settings = {"shuffle_buffer_size": buffer, "process_index": process_index, "num_processes": num_processes}
    whole = loader(images_of(form), 15, **settings)
    expected, states = [], [json.dumps(whole.state_dict())]
    for batch in whole:
        expected.append(content(batch))
        states.append(json.dumps(whole.state_dict()))
    for done, state in enumerate(states[:-1]):
        resumed = loader(images_of(form), min(3, 15 - done), start_state=json.loads(state), **settings)
        assert json.dumps(resumed.state_dict()) == state
        assert [content(batch) for batch in resumed] == expected[done : done + 3]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("process_index", "num_processes", "at_a_time"), [(0, 1, 8), (2, 3, 2)])
def test_resuming_again_and_again(images_of, form, process_index, num_processes, at_a_time, monkeypatch):
    """Also with blocks so small that not all open shards are read between two resumes."""
    monkeypatch.setattr(shard_reading, "SHARDS_AT_A_TIME", at_a_time)
    part = {"process_index": process_index, "num_processes": num_processes, "batch_size": 3}
    for buffer in (1, 5):
        expected = [content(batch) for batch in loader(images_of(form), 12, shuffle_buffer_size=buffer, **part)]
        found, state = [], None
        for _ in range(12):
            state = json.loads(json.dumps(state))
            one = loader(images_of(form), 5, start_state=state, shuffle_buffer_size=buffer, **part)
            found.append(content(next(iter(one))))
            state = one.state_dict()
        assert found == expected


def test_state_is_of_the_batch_given_out_not_of_those_under_way(images):
    one = loader(images, 12, num_workers=2)
    batches = iter(one)
    next(batches)
    assert one.state_dict()["num_samples"] == 4
    rest = [content(batch) for batch in loader(images, 11, start_state=one.state_dict())]
    assert [content(batch) for batch in batches] == rest


def test_a_batch_of_another_size_goes_on_at_the_same_image(images):
    one = loader(images, 3)
    start = numbers_of(one)
    assert start + numbers_of(loader(images, 4, batch_size=2, start_state=one.state_dict())) == expected_numbers(
        shards_of_numbers(), 20
    )


def test_going_on_with_the_same_loader(images):
    one = loader(images, 6)
    first = content(next(iter(one)))
    assert [first, *map(content, one)] == [content(batch) for batch in loader(images, 6)]


def test_skipped_images_are_not_decoded_and_one_block_at_most_is_read_again(images, monkeypatch):
    decoded, read = [], []
    plain_read = shard_reading._OpenShard.read

    def counted_decode(encoded, *arguments, name, **settings):
        decoded.append(name)
        return decode_image(encoded, *arguments, name=name, **settings)

    def counted_read(shard):
        image = plain_read(shard)
        if image is not None:
            read.append(image.name)
        return image

    monkeypatch.setattr(streaming, "decode_image", counted_decode)
    monkeypatch.setattr(shard_reading._OpenShard, "read", counted_read)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    for done in range(1, 6):  # all in the first pass
        decoded.clear()
        one = loader(images, done)
        list(one)
        given_out = list(decoded)
        assert len(set(given_out)) == 4 * done
        decoded.clear(), read.clear()
        list(loader(images, 1, start_state=one.state_dict()))
        assert len(decoded) == 4 and not set(decoded) & set(given_out)
        assert len(set(read) & set(given_out)) == 4 * done % 6  # what was given out of the block that is not done


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed .* was 0, and is 1 now"),
        ({"shuffle_buffer_size": 7}, "shuffle_buffer_size .* was 6, and is 7 now"),
        ({"num_processes": 2}, "number of processes .* was 1, and is 2 now"),
    ],
)
def test_a_state_of_another_stream(images, changed, named):
    with pytest.raises(SiTError, match=named):
        loader(images, 1, start_state=loader(images, 1).state_dict(), **changed)


def test_a_state_of_another_data_set(images_of):
    with pytest.raises(SiTError, match=r"number of shards .* was 5, and is 1 now"):
        loader(images_of("renamed"), 1, start_state=loader(images_of("parquet"), 1).state_dict())


# Trouble.


def test_the_next_readable_image_of_the_batch_stands_in(tmp_path):
    damaged = {0, 6, 7, 19, 24}
    images = load_images(str(write_parquets(tmp_path, damaged=damaged)), streaming=True)
    numbers = expected_numbers(shards_of_numbers(), 24)
    results = []
    for num_workers in (0, 2):
        batches = list(loader(images, 6, num_workers=num_workers))
        results.append([content(batch) for batch in batches])
    assert results[0] == results[1]

    named = set()
    for number, batch in enumerate(batches):
        asked = numbers[4 * number : 4 * number + 4]
        for place, found in enumerate(numbers_in(batch)):
            others = [other for other in asked[place:] + asked[:place] if other not in damaged]
            assert found == others[0]
            seed = derive_seed(0, CROPS, 0, 4 * number + place)
            table = datasets.Dataset.from_dict({"image": [{"bytes": png(found), "path": None}]})
            assert torch.equal(batch["crops"][0][:, place], crops_of(table)[0, seed]["crops"][0])
        assert len(batch["unreadable"]) == len(damaged & set(asked))
        named.update(batch["unreadable"])
    rows = {0: (0, 0), 6: (1, 1), 7: (1, 2), 19: (4, 0), 24: (4, 5)}
    assert {problem.split(": ")[0] for problem in named} == {
        f"row {row} of {tmp_path}/train-{shard:04}.parquet"
        for number, (shard, row) in rows.items()
        if number in numbers
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_readable_image(tmp_path, num_workers):
    write_parquet(tmp_path / "train.parquet", [b"1", b"", b"3"])
    images = load_images(str(tmp_path), streaming=True)
    with pytest.raises(UnreadableImage, match="none of the 3 images of a batch") as caught:
        list(loader(images, 2, batch_size=3, num_workers=num_workers))
    message = str(caught.value).strip().splitlines()[-1]
    assert all(f"row {row} of {tmp_path}/train.parquet" in message for row in range(3))


def test_names(images_of, tmp_path):
    def names(form, **part):
        stream = shard_reading.ProcessStream(images_of(form).train, images_of(form).train_shards, 0, 0, 1)
        stream = stream if not part else shard_reading.ProcessStream(stream.stream, stream.shards, 0, **part)
        return {read_number(image): image.name for image in stream.read_block(25)}

    def read_number(image):
        return decode_image(image.image).getpixel((0, 0))[0]

    assert re.fullmatch(r"/.*/a/008\.png", names("folder")[8])
    assert re.fullmatch(r"row 2 of /.*/train-0001\.tar \(007\.png\)", names("tar")[7])
    assert re.fullmatch(r"row 2 of /.*/train-0001\.parquet", names("parquet")[7])
    # A row keeps its name, whoever reads it.
    shared = [names("parquet", process_index=process, num_processes=7) for process in range(7)]
    assert {number: name for part in shared for number, name in part.items()} == names("parquet")
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(25)]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path)
    saved = load_images(str(tmp_path), streaming=True)
    assert saved.train.num_shards == 6
    for image in shard_reading.ProcessStream(saved.train, saved.train_shards, 0, 0, 1).read_block(25):
        assert image.name == f"row {read_number(image)} of train"


@pytest.mark.parametrize(("sizes", "num_processes", "index"), [([3], 4, 3), ([1, 1], 5, 2)])
def test_a_process_without_a_image(tmp_path, sizes, num_processes, index):
    images = load_images(str(write_parquets(tmp_path, sizes)), streaming=True)
    with pytest.raises(SiTError, match=f"process {index + 1} of {num_processes} has no image.*start fewer"):
        list(loader(images, 1, process_index=index, num_processes=num_processes))
    assert numbers_of(loader(images, 1, batch_size=2, num_processes=num_processes)) == [0, 0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard(tmp_path, num_workers, caplog):
    write_tars(tmp_path, [20])
    path = tmp_path / "train-0000.tar"
    images = load_images(str(tmp_path), streaming=True)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(SiTError, match=r"train-0000\.tar cannot be read beyond row") as caught:
        list(loader(images, 5, num_workers=num_workers))
    assert "\n" not in str(caught.value)


def test_images_elsewhere_are_fetched_where_they_are_decoded(tmp_path):
    import fsspec

    with fsspec.open("memory://images/1.png", "wb") as file:
        file.write(png(77))
    images = [{"bytes": None, "path": f"memory://images/{number}.png"} for number in (1, 2)]
    batch = [(streaming.EncodedImage(image, image["path"]), 0) for image in images]
    first, second = StreamedCrops(CROPPING, 3).__getitems__(batch)
    assert (first["crops"][0][:, 0] == 77).all() and first["unreadable"] == []
    assert second["unreadable"][0].startswith("memory://images/2.png: ")


def test_reading_ends_with_the_loop(images, monkeypatch):
    """Who leaves in the middle of a run need not wait until a big block is read."""
    threads_before = set(threading.enumerate())
    plain_read_block, plain_read = shard_reading.ProcessStream.read_block, shard_reading._OpenShard.read
    wanted_no_more, num_reads = None, 0

    def read_block(stream, size, stop):
        nonlocal wanted_no_more
        wanted_no_more = stop
        return plain_read_block(stream, size, stop)

    def read(shard):
        nonlocal num_reads
        num_reads += 1
        if num_reads == 12:  # in the second block of ten
            assert wanted_no_more.wait(60)
        return plain_read(shard)

    monkeypatch.setattr(shard_reading.ProcessStream, "read_block", read_block)
    monkeypatch.setattr(shard_reading._OpenShard, "read", read)
    batches = iter(loader(images, 10, shuffle_buffer_size=10))
    next(batches)
    batches.close()
    assert num_reads <= 12
    assert set(threading.enumerate()) <= threads_before


# Others.


def test_first_images(images):
    for count in (3, 8, 1000):
        first = first_images(images.train, count, images.train_shards)
        assert [decode_image(image.image).getpixel((0, 0))[0] for image in first] == list(range(min(count, 25)))
    assert first[6].name == f"row 1 of {images.train_shards[1].name}"
    assert first_images(images.train, 2)[1].name == "row 1 of shard 0"


def test_reading_ahead_may_be_closed_by_the_reader_itself():
    """As the garbage collector does it in whichever thread it runs."""
    waits, problems = threading.Event(), []

    def blocks():
        yield 0
        waits.wait(10)
        try:
            ahead.close()
        except RuntimeError as problem:
            problems.append(problem)
        yield 1

    ahead = streaming._read_ahead(blocks())
    assert next(ahead) == 0
    waits.set()
    reader = next(thread for thread in threading.enumerate() if thread.name.startswith(streaming.READER_THREAD))
    reader.join(10)
    assert not reader.is_alive() and not problems


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, None), ({"streaming": True}, 1000), ({"streaming": True, "shuffle_buffer_size": 5}, 5)],
)
def test_default_buffer(settings, expected):
    assert StreamingArguments(**settings).shuffle_buffer_size == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shuffle_buffer_size": 5}, "without `streaming`"),
        ({"streaming": True, "shuffle_buffer_size": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_arguments(settings, named):
    with pytest.raises(SiTError, match=named) as error:
        StreamingArguments(**settings)
    assert error.value.argument == "shuffle_buffer_size"


class TestStreamsInMemory:
    """A stream that the user has made has its own rows, all of them and no others."""

    @pytest.fixture
    def rows(self) -> datasets.IterableDataset:
        columns = {"image": [{"bytes": png(number), "path": None} for number in range(23)], "label": list(range(23))}
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        return table.to_iterable_dataset(num_shards=5)

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows,
            lambda rows: rows.take(11),
            lambda rows: rows.skip(11),
            lambda rows: rows.shuffle(0, buffer_size=3).take(11),
            lambda rows: datasets.interleave_datasets([rows, rows.skip(11)]),
            lambda rows: rows.filter(lambda row: row["label"] % 2 == 1),
            lambda rows: rows.filter(lambda label: label < 9, input_columns=["label"]).take(4),
            lambda rows: rows.map(dict).take(11),  # features are not known
        ],
    )
    def test_rows_are_those_of_the_stream(self, rows, change):
        stream = change(rows)
        expected = sorted(np.asarray(row["image"])[0, 0, 0] for row in stream)
        images = load_images(stream)
        loaded = first_images(images.train, 1000, images.train_shards)
        assert sorted(np.asarray(decode_image(each.image, 3))[0, 0, 0] for each in loaded) == expected
