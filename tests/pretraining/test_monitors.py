"""Online monitors: their figures against closed forms and slow versions, and that a run does not notice them."""

import copy
import random
import re
import threading
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
import torch.distributed
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.image_datasets import ImageDatasets, read_row
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.features import distributed_batches
from modeling_sit.evaluation.knn import knn_predict
from modeling_sit.evaluation.linear import linear_predict
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.monitor_images import Embeddings, MonitoredMethod, MonitorImages
from modeling_sit.pretraining.monitors import (
    MONITORS,
    MonitorArguments,
    OnlineMonitors,
    choose_monitors,
    knn,
    linear,
    rankme,
    std,
    teacher_agreement,
)
from modeling_sit.runtime.errors import SiTError

NAMES = [
    "rankme",
    "projection_rankme",
    "embedding_std",
    "teacher_agreement",
    "knn_accuracy",
    "linear_accuracy",
]


def lone_process(**settings) -> SimpleNamespace:
    """Stand-in for the accelerator of one process on the CPU."""
    process = {
        "num_processes": 1,
        "process_index": 0,
        "is_main_process": True,
        "device": torch.device("cpu"),
        "autocast": nullcontext,
        "gather": lambda mine: mine,
    }
    return SimpleNamespace(**{**process, **settings})


def run_in_processes(num_processes: int, function) -> list:
    """What `function(accelerator, process_index)` gives in processes that are threads; gathering waits for all of them."""
    barrier = threading.Barrier(num_processes, timeout=20)
    sent, results = [None] * num_processes, [None] * num_processes

    def gather(index: int, mine: dict) -> dict:
        sent[index] = mine
        barrier.wait()
        # As over a network: what is not of one shape cannot be gathered.
        assert len({tuple((name, part.shape) for name, part in theirs.items()) for theirs in sent}) == 1
        gathered = {name: torch.cat([theirs[name] for theirs in sent]) for name in mine}
        barrier.wait()
        return gathered

    def work(index: int) -> None:
        accelerator = lone_process(
            num_processes=num_processes,
            process_index=index,
            is_main_process=index == 0,
            gather=lambda mine: gather(index, mine),
        )
        try:
            results[index] = function(accelerator, index)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(index,)) for index in range(num_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def digits() -> ImageDatasets:
    return load_images("digits")


@pytest.fixture
def method(create_sit, tiny_config) -> SiT:
    """With a teacher that is no copy any more, and batch norms with statistics of their own."""
    method = create_sit(tiny_config(drop_path_rate=0.5, hidden_dropout_prob=0.1))
    method.student.decoder.eval()
    torch.manual_seed(0)
    for _ in range(2):
        method.student.encode(torch.randn(8, 3, 16, 16))
    method.teacher.model.load_state_dict(method.student.state_dict())
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return method


@pytest.fixture
def without_teacher(method) -> SiT:
    method.teacher = None
    return method


@pytest.fixture
def monitors_of(digits):
    """Make the monitors of a run on the digits, with other arguments or circumstances on request."""

    def make(
        images=digits, has_teacher=True, accelerator=None, batch_size=16, num_workers=0, **arguments
    ) -> OnlineMonitors:
        arguments = MonitorArguments(**{"monitor_images": 40, **arguments})
        accelerator = accelerator or lone_process()
        return OnlineMonitors(arguments, images, has_teacher, accelerator, 7, batch_size, num_workers)

    return make


def with_damage(images: datasets.Dataset, *rows: int) -> datasets.Dataset:
    """The images, of which these rows hold something else."""
    damaged_images = images["image"][:]
    for row in rows:
        damaged_images[row] = {"bytes": b"no image", "path": None}
    columns = {
        "image": damaged_images,
        **({"label": images["label"][:]} if "label" in images.column_names else {}),
    }
    return datasets.Dataset.from_dict(columns, features=images.features)


def embedded(features, projection=None, teacher_projection=None, labels=None) -> SimpleNamespace:
    """Stand-in for a monitored method that makes these of any images."""
    made = Embeddings(features, projection, teacher_projection, labels, 0)
    return SimpleNamespace(embed=lambda images: made)


class TestMonitors:
    def test_rankme_is_of_features_and_of_projections_that_are_trained(self):
        features, projection = torch.eye(6), torch.eye(6)[:, :3]
        values = dict(rankme(embedded(features, projection), MonitorImages(train=None)))
        assert values == pytest.approx({"rankme": 6, "projection_rankme": 3}, abs=1e-4)
        values = dict(rankme(embedded(features), MonitorImages(train=None)))
        assert values == pytest.approx({"rankme": 6}, abs=1e-4)

    def test_standard_deviation_is_of_features(self):
        model = embedded(torch.eye(16), projection=torch.ones(16, 4))
        assert dict(std(model, MonitorImages(train=None))) == {"embedding_std": pytest.approx((1 - 1 / 16) ** 0.5)}

    def test_teacher_agreement_is_the_mean_cosine_of_the_same_images(self):
        projection, teacher_projection = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).unbind()
        cosines = [
            float(mine @ theirs / (mine.norm() * theirs.norm()))
            for mine, theirs in zip(projection, teacher_projection, strict=True)
        ]
        model = embedded(torch.eye(7), projection, teacher_projection)
        values = dict(teacher_agreement(model, MonitorImages(train=None)))
        assert values == {"teacher_agreement": pytest.approx(sum(cosines) / 7, abs=1e-6)}

    @pytest.mark.parametrize(("factor", "agreement"), [(2.0, 1), (-0.5, -1)])
    def test_teacher_agreement_of_parallel_projections(self, factor, agreement):
        projection = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
        model = embedded(torch.eye(7), projection, factor * projection)
        values = dict(teacher_agreement(model, MonitorImages(train=None)))
        assert values == {"teacher_agreement": pytest.approx(agreement, abs=1e-6)}

    def test_teacher_agreement_without_a_teacher_is_nothing(self):
        for projection in (None, torch.eye(7)):
            assert not list(teacher_agreement(embedded(torch.eye(7), projection), MonitorImages(train=None)))

    @pytest.mark.parametrize(
        ("monitor", "name", "predict"),
        [(knn, "knn_accuracy", knn_predict), (linear, "linear_accuracy", linear_predict)],
    )
    def test_accuracies_learn_on_training_and_measure_on_validation_images(
        self, monitor, name, predict, digits, method
    ):
        images = MonitorImages.sample(digits, 90, seed=0)
        model = MonitoredMethod(method, lone_process())
        train, validation = model.embed(images.train), model.embed(images.validation)
        scores = predict(train.features, train.labels, validation.features, 10)
        hits = sum(int(row.argmax() == label) for row, label in zip(scores, validation.labels, strict=True))
        assert len(validation.labels) == 45
        assert dict(monitor(model, images)) == {name: pytest.approx(hits / 45)}
        # Far above the 10 % of chance even on a network with random weights: digits are easily told apart.
        assert hits / 45 > 0.3

    @pytest.mark.parametrize("monitor", [knn, linear])
    def test_without_validation_images_a_third_is_held_back(self, monitor):
        # The images held back alone have label 1, on which nobody could have learnt it.
        labels = torch.tensor([0, 0, 1] * 5)
        features = torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
        ((_, accuracy),) = monitor(embedded(features, labels=labels), MonitorImages(train=None, num_labels=2))
        assert accuracy == 0
        # Seen among others, they are easily told apart.
        labels = torch.tensor([0, 1, 1, 1, 0, 0] * 5)
        features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) + 10 * labels[:, None]
        ((_, accuracy),) = monitor(embedded(features, labels=labels), MonitorImages(train=None, num_labels=2))
        assert accuracy == 1

    @pytest.mark.parametrize("monitor", [knn, linear])
    def test_images_without_a_label_do_not_count(self, monitor):
        generator = torch.Generator().manual_seed(0)
        features, labels = torch.randn(30, 4, generator=generator), torch.arange(30) % 2
        images = MonitorImages(train=None, num_labels=2)
        mixed_features = torch.stack([features, 100 * features]).transpose(0, 1).flatten(0, 1)
        mixed_labels = torch.stack([labels, torch.full_like(labels, -1)]).T.flatten()
        expected = list(monitor(embedded(features, labels=labels), images))
        assert list(monitor(embedded(mixed_features, labels=mixed_labels), images)) == expected

    @pytest.mark.parametrize("monitor", [knn, linear])
    @pytest.mark.parametrize("num_labeled", [0, 2])
    def test_too_few_labels_give_nothing(self, monitor, num_labeled):
        labels = torch.tensor([1] * num_labeled + [-1] * 4)
        model = embedded(torch.randn(len(labels), 4), labels=labels)
        assert not list(monitor(model, MonitorImages(train=None, num_labels=2)))


class TestEmbed:
    def test_equals_a_loop_over_the_images_that_can_be_read(self, digits, method):
        images = with_damage(digits.train.select(range(13)), 2, 8, 12)
        # Batches of four, the last of one: it holds nothing but a damaged image.
        made = MonitoredMethod(method, lone_process(), batch_size=4).embed(images)
        students, teachers = (copy.deepcopy(each).eval() for each in (method.student, method.teacher.model))
        rows = [row for row in range(13) if row not in (2, 8, 12)]
        with torch.no_grad():
            inputs = [
                method.processor(read_row(digits.train, row)[0], return_tensors="pt")["pixel_values"] for row in rows
            ]
            tokens = torch.cat([students.vit(pixels).last_hidden_state[:, 0] for pixels in inputs])
            torch.testing.assert_close(made.features, tokens)
            torch.testing.assert_close(made.projection, students.projection_head(tokens), rtol=1e-4, atol=1e-5)
            expected = torch.cat([teachers.project(pixels) for pixels in inputs])
            torch.testing.assert_close(made.teacher_projection, expected, rtol=1e-4, atol=1e-5)
        assert made.labels.tolist() == [digits.train[row]["label"] for row in rows]
        assert made.num_unreadable == 3
        assert not made.features.requires_grad and made.features.dtype == torch.float32

    def test_without_teacher_and_labels(self, digits, without_teacher):
        images = digits.train.select(range(3)).remove_columns("label")
        made = MonitoredMethod(without_teacher, lone_process()).embed(images)
        assert made.teacher_projection is None and made.labels is None
        assert made.projection is not None

    def test_projections_that_are_not_trained_are_none(self, digits, create_sit, tiny_config):
        method = create_sit(tiny_config(contrastive_weight=0.0))
        made = MonitoredMethod(method, lone_process()).embed(digits.train.select(range(3)))
        assert made.projection is None and made.teacher_projection is None and len(made.features) == 3

    def test_images_are_never_corrupted(self, digits, method):
        images = digits.train.select(range(3))
        clean = MonitoredMethod(method, lone_process()).embed(images)
        method.processor.do_corrupt = True
        again = MonitoredMethod(method, lone_process()).embed(images)
        assert torch.equal(clean.features, again.features)

    def test_is_done_in_the_precision_of_the_run_and_given_in_float32(self, digits, method):
        images = digits.train.select(range(8))
        half = lone_process(autocast=lambda: torch.autocast("cpu", torch.bfloat16))
        exact = MonitoredMethod(method, lone_process()).embed(images).projection
        rough = MonitoredMethod(method, half).embed(images).projection
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, exact)
        torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)

    def test_gray_images(self, digits, create_sit, tiny_config):
        images = with_damage(digits.train.select(range(4)), 1)
        method = create_sit(tiny_config(num_channels=1))
        assert len(MonitoredMethod(method, lone_process()).embed(images).features) == 3

    @pytest.mark.parametrize("whose", ["student", "teacher"])
    def test_what_is_not_finite_says_that_training_has_diverged(self, digits, method, whose):
        head = {"student": method.student, "teacher": method.teacher.model}[whose].projection_head
        torch.nn.init.constant_(head.mlp[0].weight, torch.inf)
        model = MonitoredMethod(method, lone_process())
        with pytest.raises(SiTError, match=r"not finite.*`base_learning_rate`"):
            model.embed(digits.train.select(range(3)))
        assert method.student.training and not method.student.decoder.training and method.teacher.model.training


class TestProcesses:
    @pytest.mark.parametrize("num_images", [1, 2, 5, 16, 17])
    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    @pytest.mark.parametrize("num_processes", [1, 2, 3])
    def test_sharing_out_is_even_in_order_and_whole(self, num_images, batch_size, num_processes):
        shares = [distributed_batches(num_images, batch_size, num_processes, index) for index in range(num_processes)]
        assert len({tuple(map(len, share)) for share in shares}) == 1
        assert all(0 < len(batch) <= batch_size for batch in shares[0])
        gathered = [index for batches in zip(*shares, strict=True) for batch in batches for index in batch]
        assert gathered[:num_images] == list(range(num_images))
        assert len(gathered) - num_images < num_processes
        assert all(0 <= index < num_images for index in gathered)

    @pytest.mark.parametrize("num_processes", [2, 3])
    def test_all_measure_what_one_alone_measures(self, monitors_of, digits, method, num_processes):
        images = replace(digits, train=with_damage(digits.train.select(range(40)), 0, 9, 39))
        flags = {"monitor_images": 40, "images": images, "batch_size": 7}
        alone = monitors_of(**flags).run(method)

        def one_process(accelerator, index):
            return monitors_of(accelerator=accelerator, **flags).run(copy.deepcopy(method))

        values = run_in_processes(num_processes, one_process)
        assert all(value == values[0] for value in values)
        assert values[0] == pytest.approx(alone, abs=1e-5)
        assert list(alone) == NAMES

    def test_sharded_weights_are_left_sharded(self, digits, method):
        images, student, teacher = digits.train.select(range(5)), method.student, method.teacher
        expected = MonitoredMethod(method, lone_process()).embed(images)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            for network in (student, teacher.model):
                fully_shard(network)
                for name in method.forward_methods:
                    register_fsdp_forward_method(network, name)
            made = MonitoredMethod(method, lone_process()).embed(images)
            assert all(isinstance(weight, DTensor) for weight in (*student.parameters(), *teacher.parameters()))
            # And they can be trained on.
            student(torch.randn(4, 3, 16, 16), target_pixel_values=torch.zeros(4, 3, 16, 16)).loss.backward()
        finally:
            torch.distributed.destroy_process_group()
        torch.testing.assert_close(made.projection, expected.projection)
        torch.testing.assert_close(made.teacher_projection, expected.teacher_projection)


class TestSample:
    def test_is_drawn_by_the_seed_kept_in_order_and_bounded(self, digits):
        state = torch.get_rng_state()
        first, same, other = (MonitorImages.sample(digits, 30, seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        position = {image["bytes"]: row for row, image in enumerate(digits.train["image"])}
        rows = [position[image["bytes"]] for image in first.train["image"]]
        assert len(rows) == 30 and rows == sorted(set(rows))
        assert max(rows) > 700  # from the whole split
        assert same.train["image"][:] == first.train["image"][:]
        assert other.train["image"][:] != first.train["image"][:]
        assert (len(first.validation), first.num_labels, first.has_labels) == (15, 10, True)
        assert first.train["label"][:] == [digits.train[row]["label"] for row in rows]

    def test_is_all_of_a_small_set(self, digits):
        small = replace(digits, train=digits.train.select(range(5)), validation=digits.validation.select(range(4)))
        sample = MonitorImages.sample(small, 1000, seed=0)
        assert sample.train["image"][:] == small.train["image"][:]
        assert sample.validation["image"][:] == small.validation["image"][:]

    def test_validation_images_are_those_with_labels(self, digits):
        labels = [-1 if row % 3 else row % 10 for row in range(60)]
        validation = digits.validation.select(range(60)).remove_columns("label")
        validation = validation.add_column("label", labels, feature=digits.validation.features["label"])
        sample = MonitorImages.sample(replace(digits, validation=validation), 1000, seed=0)
        assert len(sample.validation) == 20 and min(sample.validation["label"]) >= 0

    def test_validation_split_without_any_label_is_none(self, digits):
        validation = digits.validation.remove_columns("label")
        hidden = validation.add_column("label", [-1] * 360, feature=digits.validation.features["label"])
        sample = MonitorImages.sample(replace(digits, validation=hidden), 30, seed=0)
        assert sample.validation is None and sample.has_labels

    def test_training_images_are_not_measured_on_as_validation_images(self, digits):
        assert MonitorImages.sample(replace(digits, validation=digits.train), 30, seed=0).validation is None

    def test_without_labels(self, digits):
        splits = (digits.train.remove_columns("label"), digits.validation.remove_columns("label"))
        plain = replace(digits, train=splits[0], validation=splits[1], label_names=None)
        sample = MonitorImages.sample(plain, 30, seed=0)
        assert (len(sample.train), sample.validation, sample.has_labels) == (30, None, False)

    @pytest.mark.parametrize("streamed", [False, True])
    def test_several_labels_of_an_image_are_as_good_as_none(self, digits, streamed, method):
        feature = datasets.List(digits.train.features["label"])
        splits = [
            split.select(range(20)).remove_columns("label").add_column("label", [[0, 3], None] * 10, feature=feature)
            for split in (digits.train, digits.validation)
        ]
        if streamed:
            splits = [split.to_iterable_dataset() for split in splits]
        several = replace(digits, train=splits[0], validation=splits[1], multi_label=True)
        sample = MonitorImages.sample(several, 12, seed=0)
        assert (len(sample.train), sample.validation, sample.has_labels) == (12, None, False)
        assert MonitoredMethod(method, lone_process()).embed(sample.train).labels is None

    def test_streams_give_their_first_images(self, digits, method):
        stream = replace(
            digits, train=digits.train.to_iterable_dataset(), validation=digits.validation.to_iterable_dataset()
        )
        sample = MonitorImages.sample(stream, 30, seed=0)
        assert sample.train["image"][:] == digits.train["image"][:30]
        assert sample.train["label"][:] == digits.train["label"][:30]
        assert sample.validation["image"][:] == digits.validation["image"][:15]
        from_stream = MonitoredMethod(method, lone_process()).embed(sample.train)
        from_rows = MonitoredMethod(method, lone_process()).embed(digits.train.select(range(30)))
        assert torch.equal(from_stream.features, from_rows.features)

    @pytest.mark.parametrize("missing", [[0, 4], list(range(10))])
    def test_streams_with_missing_labels(self, digits, method, missing):
        labels = [None if row in missing else row for row in range(10)]
        rows = digits.train.select(range(10)).remove_columns("label")
        rows = rows.add_column("label", labels, feature=digits.train.features["label"])
        sample = MonitorImages.sample(replace(digits, train=rows.to_iterable_dataset(), validation=None), 10, seed=0)
        made = MonitoredMethod(method, lone_process()).embed(sample.train)
        assert made.labels.tolist() == [-1 if row in missing else row for row in range(10)]
        assert sample.has_labels == (len(missing) < 10)


class TestChoice:
    def test_default_is_all_that_apply(self):
        assert choose_monitors(None, has_labels=True, has_teacher=True) == list(MONITORS)
        assert choose_monitors(None, has_labels=False, has_teacher=False) == ["rankme", "embedding_std"]

    def test_what_was_asked_for(self):
        assert choose_monitors(["linear", "rankme", "linear"], True, True) == ["linear", "rankme"]
        assert choose_monitors(["none"], True, True) == []

    @pytest.mark.parametrize("word", ["no", "off", "Off"])
    def test_a_no_of_a_recipe_is_none(self, word):
        assert MonitorArguments(monitors=[word]).monitors == ["none"]

    def test_what_does_not_apply_is_refused(self):
        with pytest.raises(SiTError, match=r"knn needs one label for each image.*`label_column`") as error:
            choose_monitors(["rankme", "knn"], has_labels=False, has_teacher=True)
        assert error.value.argument == "monitors"
        with pytest.raises(SiTError, match="teacher_agreement needs a teacher") as error:
            choose_monitors(["teacher_agreement"], has_labels=True, has_teacher=False)
        assert error.value.argument == "monitors"

    def test_agreement_is_left_out_where_there_is_no_teacher(self, monitors_of):
        assert monitors_of(has_teacher=False).chosen == ["rankme", "embedding_std", "knn", "linear"]

    def test_labels_are_asked_for_by_default_only_where_there_are_any(self, monitors_of, digits):
        plain = replace(digits, train=digits.train.remove_columns("label"), label_names=None)
        assert monitors_of(plain).chosen == ["rankme", "embedding_std", "teacher_agreement"]
        with pytest.raises(SiTError, match="linear needs one label"):
            monitors_of(plain, monitors=["linear"])


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "fact"),
        [
            ({"monitors": ["rankme", "rank"]}, "'rank'.*rankme, .*linear, or none"),
            ({"monitors": ["none", "knn"]}, "none, knn"),
            ({"monitor_steps": -1}, "at least 0"),
            ({"monitor_images": 1}, "at least 2"),
        ],
    )
    def test_out_of_range(self, arguments, fact):
        with pytest.raises(SiTError, match=fact) as error:
            MonitorArguments(**arguments)
        assert error.value.argument == next(iter(arguments))

    def test_several_by_commas(self):
        assert MonitorArguments(monitors=["knn,rankme"]).monitors == ["knn", "rankme"]

    def test_from_a_command_line(self):
        (arguments,) = RecipeArgumentParser(MonitorArguments).parse(["--monitors", "knn", "rankme"])
        assert arguments == MonitorArguments(monitors=["knn", "rankme"], monitor_steps=None, monitor_images=1024)
        (arguments,) = RecipeArgumentParser(MonitorArguments).parse([])
        assert arguments.monitors is None

    def test_help_names_every_monitor(self):
        text = MonitorArguments.__dataclass_fields__["monitors"].metadata["help"]
        assert all(re.search(rf"\b{name}\b", text) for name in (*MONITORS, "none"))


class TestRun:
    def test_measures_all_on_real_images(self, monitors_of, method):
        values = monitors_of(monitor_images=60).run(method)
        assert list(values) == NAMES
        assert all(type(value) is float for value in values.values())
        assert 1 < values["rankme"] < 16 and 0 < values["embedding_std"] < 1
        assert -1 <= values["teacher_agreement"] < 1
        assert values["knn_accuracy"] > 0.2 and values["linear_accuracy"] > 0.2

    def test_every_image_is_read_and_embedded_once_whoever_asks(self, monitors_of, method, monkeypatch):
        batches = {"student": [], "teacher": []}
        student, teacher = method.student, method.teacher
        encode, project = student.encode, teacher.project
        monkeypatch.setattr(student, "encode", lambda x: (batches["student"].append(len(x)), encode(x))[1])
        monkeypatch.setattr(teacher, "project", lambda x: (batches["teacher"].append(len(x)), project(x))[1])
        monitors = monitors_of(monitor_images=40, batch_size=16)
        assert len(monitors.chosen) == 5
        monitors.run(method)
        # 40 training images and 20 of validation, no batch of more than 16.
        assert batches == {"student": [16, 16, 8, 16, 4], "teacher": [16, 16, 8, 16, 4]}

    def test_validation_images_are_read_only_where_labels_are_asked_for(
        self, monitors_of, without_teacher, monkeypatch
    ):
        sizes, encode = [], without_teacher.student.encode
        monkeypatch.setattr(without_teacher.student, "encode", lambda x: (sizes.append(len(x)), encode(x))[1])
        monitors_of(has_teacher=False, monitors=["rankme", "embedding_std"]).run(without_teacher)
        assert sum(sizes) == 40

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_the_run_does_not_notice(self, monitors_of, method, num_workers):
        monitors = monitors_of(num_workers=num_workers)

        def state():
            networks = method.networks
            return (
                [{name: value.clone() for name, value in network.state_dict().items()} for network in networks],
                [[(module.training) for module in network.modules()] for network in networks],
                [[p.grad for p in network.parameters()] for network in networks],
                (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()),
                torch.is_grad_enabled(),
            )

        before = state()
        first = monitors.run(method)
        after = state()
        for one, other in zip(before[0], after[0], strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)
        assert after[1:] == before[1:]
        assert monitors.run(method) == first

    def test_none_costs_nothing(self, monitors_of):
        for flags in ({"monitors": ["none"]}, {"monitor_steps": 0}):
            assert monitors_of(images=None, **flags).run(None) == {}

    def test_unreadable_images_are_named_once(self, monitors_of, digits, without_teacher, capsys):
        damaged = replace(digits, train=with_damage(digits.train.select(range(20)), 3, 4), validation=None)
        monitors = monitors_of(damaged, has_teacher=False)
        for _ in range(2):
            assert "rankme" in monitors.run(without_teacher)
        message = "monitors: 2 of 20 sampled images cannot be read and are left out"
        assert capsys.readouterr().err.splitlines() == [message]

    def test_nothing_readable_measures_nothing(self, monitors_of, digits, without_teacher, capsys):
        damaged = replace(digits, train=with_damage(digits.train.select(range(3)), 0, 1, 2))
        assert monitors_of(damaged, has_teacher=False).run(without_teacher) == {}
        assert "3 of 3" in capsys.readouterr().err

    def test_unreadable_validation_images_cost_the_accuracies_alone(self, monitors_of, digits, without_teacher):
        damaged = replace(digits, validation=with_damage(digits.validation.select(range(2)), 0, 1))
        values = monitors_of(damaged, has_teacher=False).run(without_teacher)
        assert list(values) == ["rankme", "projection_rankme", "embedding_std"]

    def test_a_new_monitor_is_one_function_and_one_line(self, monitors_of, without_teacher, monkeypatch):
        def length(model, images):
            yield "embedding_length", model.embed(images.train).features.norm(dim=1).mean().item()

        monkeypatch.setitem(MONITORS, "length", length)
        values = monitors_of(monitors=["length"]).run(without_teacher)
        assert list(values) == ["embedding_length"]
