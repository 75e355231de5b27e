"""The search of rate and length: against scores that are known, and on real runs."""

import json
import math
import os
import shutil
import signal

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from modeling_sit.finetuning import presets, run, trials
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.labeled_splits import LabeledSplits
from modeling_sit.finetuning.splits import MAX_DRAWS, held_out_draws
from modeling_sit.finetuning.trainer import ReproducibleTrainer
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.finetuning.trials import Trial, Trials
from modeling_sit.finetuning.tuning import is_rise, remaining_steps, search, tune, worth_noticing
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted

RATES = (0.0003, 0.001, 0.003)


def searched(score, rates=RATES, steps=100, num_held_out=1000, sweeps=True, limit=100):
    """The best of a search by a function from rate and steps to a metric, and what was tried."""
    tried = []

    def measure(rate, steps):
        tried.append((rate, steps))
        metric = score(rate, steps)
        return Trial(rate, steps, metric, loss=-metric, seconds=0)

    best = search(rates, steps, measure, num_held_out, sweeps=sweeps, limit=limit)
    assert len(tried) == len(set(tried))
    return (best.learning_rate, best.max_steps), tried


def peak(best):
    """Falls on both sides of a rate."""
    return lambda rate, steps: 0.8 - 0.1 * abs(math.log(rate / best))


class TestSearch:
    def test_best_rate_in_the_middle(self):
        assert searched(peak(0.001)) == ((0.001, 100), [(rate, 100) for rate in RATES])

    @pytest.mark.parametrize(("best", "beyond"), [(0.009, [0.009, 0.027]), (0.0001, [0.0001, 3.3e-5])])
    def test_goes_on_beyond_the_edge(self, best, beyond):
        found, tried = searched(peak(best))
        assert found == (pytest.approx(best, rel=0.01), 100)
        assert [rate for rate, _ in tried[3:]] == beyond

    def test_does_not_go_on_for_ever(self):
        found, tried = searched(lambda rate, steps: min(0.9, rate))
        assert found == (0.027, 100) and len(tried) == 5

    def test_loss_decides_among_equals(self):
        losses = {0.0003: 0.5, 0.001: 0.2, 0.003: 0.4}
        best = search(RATES, 9, lambda rate, steps: Trial(rate, steps, 0.9, losses[rate], 0), 50, sweeps=True, limit=9)
        assert best.learning_rate == 0.001

    @pytest.mark.parametrize(("lead", "best"), [(0.01, 0.0003), (0.03, 0.001)])
    def test_loss_decides_among_rates_that_differ_by_less_than_noise(self, lead, best):
        """Half a standard error of 0.8 on 120 images is 0.018."""
        metrics, losses = {0.0003: 0.8, 0.001: 0.8 + lead, 0.003: 0.7}, {0.0003: 0.5, 0.001: 0.6, 0.003: 0.1}
        found = search(
            RATES, 9, lambda rate, steps: Trial(rate, steps, metrics.get(rate, 0.1), losses.get(rate, 1.0), 0), 120,
            sweeps=True, limit=9,
        )  # fmt: skip
        assert found.learning_rate == best

    def test_rates_whose_loss_is_not_finite(self):
        found, _ = searched(lambda rate, steps: 0.5 if rate < 0.0005 else -math.inf)
        assert found[0] < 0.0005

    def test_length_grows_while_it_helps(self):
        """A curve that rises to 0.9 with the logarithm of the steps, and stays there from 400 on."""
        found, tried = searched(
            lambda rate, steps: min(0.9, 0.5 + 0.2 * math.log2(steps / 100)), [0.001], sweeps=False, limit=10_000
        )
        assert tried == [(0.001, steps) for steps in (100, 200, 400, 800)]
        assert found == (0.001, 400)

    def test_a_rise_within_the_noise_ends_the_search(self):
        """But the longer run is taken: it is the better one."""
        found, tried = searched(lambda rate, steps: 0.8 + steps * 1e-6, [0.001], sweeps=False, limit=10_000)
        assert (found, len(tried)) == ((0.001, 200), 2)

    def test_length_has_a_limit(self):
        found, tried = searched(lambda rate, steps: steps / 1000, [0.001], sweeps=False, limit=350)
        assert [steps for _, steps in tried] == [100, 200, 350] and found == (0.001, 350)

    def test_a_longer_run_tries_the_next_smaller_rate(self):
        def score(rate, steps):
            best = 0.001 if steps == 100 else 0.00033
            return peak(best)(rate, steps) + (0.2 if steps > 100 else 0)

        found, tried = searched(score, limit=200)
        assert tried[-2:] == [(0.001, 200), (0.00033, 200)] and found == (0.00033, 200)

    @pytest.mark.parametrize("sweeps", [False, True])
    @pytest.mark.parametrize("limit", [100, 150, 400, 800])
    def test_what_remains_after_the_first_trial(self, sweeps, limit):
        """Of a search that finds nothing beyond its first trials, and of one that always goes on."""
        rates = RATES if sweeps else [0.001]
        _, shortest = searched(lambda rate, steps: 0.9 - abs(rate - 0.001), rates, sweeps=sweeps, limit=limit)
        _, longest = searched(lambda rate, steps: min(0.9, rate + steps / 1000), rates, sweeps=sweeps, limit=limit)
        trained = tuple(sum(steps for _, steps in tried[1:]) for tried in (shortest, longest))
        assert remaining_steps(len(rates), 100, sweeps=sweeps, limit=limit) == trained

    @pytest.mark.parametrize(
        ("lengths", "rises"),
        [
            ({100: 0.5, 200: 0.6, 400: 0.7}, True),
            ({100: 0.5, 200: 0.7, 400: 0.701}, False),
            ({100: 0.7, 200: 0.6, 400: 0.69}, False),
            ({400: 0.5}, True),  # nothing shorter was tried
        ],
    )
    def test_still_rises(self, lengths, rises):
        tried = [Trial(0.001, steps, metric, 0.0, 0) for steps, metric in lengths.items()]
        assert is_rise(tried[-1], tried, 1000) == rises

    def test_what_is_worth_noticing(self):
        assert worth_noticing(1.0, 20) == pytest.approx(0.05)  # one image
        assert worth_noticing(0.5, 10_000) == pytest.approx(0.0025)  # half of 0.5 / sqrt(10,000)


NAMES = ("a", "b", "c")


def splits(labels, **others) -> LabeledSplits:
    """A dataset of these labels, whose images are their numbers."""
    several = isinstance(labels[0], list)
    label = datasets.ClassLabel(names=list(NAMES))
    features = datasets.Features(image=datasets.Value("int64"), label=datasets.List(label) if several else label)
    rows = {"image": list(range(len(labels))), "label": labels}
    train = datasets.Dataset.from_dict(rows, features=features, split="train")
    return LabeledSplits(name="some", label_names=list(NAMES), multi_label=several, train=train, **others)


@pytest.mark.parametrize(
    ("metrics", "mean"),
    [([0.2, math.nan, 0.4], 0.3), ([math.nan, math.nan], -math.inf), ([0.2, None], -math.inf)],
)
def test_draws_without_an_object_have_no_metric(metrics, mean):
    """Of detection, and `None` where the loss was not finite."""
    given = object.__new__(Trials)
    given.draws, given.finished, given.prints = metrics, [], False
    given._run_once = lambda rate, steps, draw: {"metric": metrics[draw], "loss": 1.0, "seconds": 1.0}
    assert given.measure(0.001, 10).metric == pytest.approx(mean)


class TestHeldOut:
    def test_a_named_validation_split_is_what_is_measured(self):
        given = splits([0, 1, 2] * 30)
        given.validation, given.validation_name = given.train.select(range(12)), "validation"
        (draw,), name = held_out_draws(given, 0.1, 0)
        assert draw.train is given.train and draw.validation is given.validation and draw.test is None
        assert name == "validation, 12 images"

    def test_what_was_held_back_to_measure_the_model_is_left_out(self):
        given = splits([0, 1] * 200)
        given.validation, given.is_held_back = given.train.select(range(3)), True
        (draw,), _ = held_out_draws(given, 0.1, 0)
        assert len(draw.validation) == 80 and len(draw.train) == 320

    @pytest.mark.parametrize(("number", "num_draws", "num_held_out"), [(3000, 1, 300), (600, 1, 120), (90, 4, 18)])
    def test_few_images_give_more_of_them_in_several_draws(self, number, num_draws, num_held_out):
        given = splits([0, 1, 2] * (number // 3))
        draws, name = held_out_draws(given, 0.1, 0)
        assert len(draws) == num_draws
        assert ("draws" in name) is (num_draws > 1)
        for draw in draws:
            assert np.bincount(draw.validation["label"]).tolist() == [num_held_out // 3] * 3
            images = draw.train["image"][:] + draw.validation["image"][:]
            assert sorted(images) == list(range(number))
        assert len({tuple(draw.validation["image"]) for draw in draws}) == num_draws

    def test_is_a_function_of_the_seed(self):
        given = splits([0, 1, 2] * 20)
        one, same, other = (
            [draw.validation["image"][:] for draw in held_out_draws(given, 0.1, seed)[0]] for seed in (1, 1, 2)
        )
        assert one == same != other

    def test_the_only_image_of_a_class_is_left_to_train_on(self):
        draws, _ = held_out_draws(splits([0, 0, 0, 1, 2, 2]), 0.2, 0)
        assert len(draws) == MAX_DRAWS
        for draw in draws:
            assert set(draw.train["label"]) == {0, 1, 2}
            assert set(draw.validation["label"]) == {0, 2}

    def test_of_several_labels_too(self):
        """Class b is on one image, together with a; without it, c is on one image, which stays as well."""
        draws, _ = held_out_draws(splits([[0], [0], [0], [0, 1, 2], [2, 0]]), 0.2, 0)
        for draw in draws:
            assert {3, 4} <= set(draw.train["image"]) and len(draw.validation) >= 1

    def test_one_image_of_each_class(self):
        with pytest.raises(SiTError) as error:
            held_out_draws(splits([0, 1, 2]), 0.2, 0)
        assert error.value.argument == "learning_rate" and "`validation_split`" in error.value.remedy


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """A folder of noisy images of three shades: 24 of each to train, 6 to test."""
    folder = tmp_path_factory.mktemp("shades")
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        for name, shade in (("dark", 60), ("grey", 128), ("light", 190)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(shade + generator.normal(0, 40, (16, 16)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{index:02}.png")
    return folder


@pytest.fixture
def given(save_tiny_sit, shades, tmp_path):
    return {
        "model_name_or_path": save_tiny_sit(tmp_path / "sit", num_channels=1),
        "dataset": shades,
        "output_dir": tmp_path / "out",
        "learning_rate": "auto",
        "max_steps": "auto",
        "max_tuning_steps": 3,
        "validation_fraction": 0.85,  # 60 of 72 images, which are enough in one draw
        "tuning_learning_rates": [1e-5, 0.01],
        "use_cpu": True,
        "report_to": "none",
        "seed": 3,
    }


@pytest.fixture
def trained(monkeypatch):
    """What was trained, in order: rate, steps, number of training images, whether there were test images."""
    train, seen = ReproducibleTrainer.train, []

    def spy(self, *args, **kwargs):
        splits = self.task.splits
        seen.append((self.args.learning_rate, self.args.max_steps, len(splits.train), splits.test is not None))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(ReproducibleTrainer, "train", spy)
    return seen


def file_in(folder) -> dict:
    return json.loads((folder / "tuning.json").read_text())


class TestRuns:
    @pytest.fixture(autouse=True)
    def few_trials(self, given, monkeypatch):
        """The search itself has tests of its own, above."""
        monkeypatch.setattr("modeling_sit.finetuning.tuning.MAX_EXTENSIONS", 0)
        given["tuning_learning_rates"] = [0.003, 0.01]

    def test_chooses_then_learns_from_all_images(self, given, trained, capsys):
        result = run.finetune(**given)
        *tried, final = trained
        assert all(number == 12 and not tests for _, _, number, tests in tried)
        written = file_in(result.output_dir)
        choice = written["choice"]
        assert final == (choice["learning_rate"], choice["max_steps"], 72, True)
        assert [(each["learning_rate"], each["max_steps"]) for each in written["trials"]] == [
            each[:2] for each in tried
        ]
        assert choice["metric"] == max(each["metric"] for each in written["trials"])
        assert result.metrics["learning_rate"] == choice["learning_rate"] and result.metrics["steps"] == 3
        assert result.metrics["tuned_by"] == "accuracy on 85 % of train, 60 images"
        assert (result.metrics["split"], result.metrics["num_train"]) == ("test", 72)
        out = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("the rest of the search takes about") for line in out) == 1
        lines = [line for line in out if line.startswith(("learning rate", "chosen:"))]
        assert len(lines) == len(written["trials"]) + 1
        assert "LOAD REPORT" not in "".join(lines)

    def test_the_final_run_is_that_of_the_chosen_values(self, given, tmp_path):
        tuned = run.finetune(**given)
        chosen = {"learning_rate": tuned.metrics["learning_rate"], "max_steps": tuned.metrics["steps"]}
        plain = run.finetune(**{**given, **chosen, "output_dir": tmp_path / "plain"})
        weights, others = (load_file(each.output_dir / "model.safetensors") for each in (tuned, plain))
        assert all(torch.equal(value, others[name]) for name, value in weights.items())

    def test_a_run_that_holds_images_back_has_the_batches_of_the_trials(self, given, monkeypatch):
        """Of the images that are left it would choose smaller ones."""
        sizes = []
        train = ReproducibleTrainer.train
        monkeypatch.setattr(presets.Preset, "usual_batch_size", lambda preset: preset.facts.num_train // 4)

        def spy(self, *args, **kwargs):
            sizes.append(self.args.per_device_train_batch_size)
            return train(self, *args, **kwargs)

        monkeypatch.setattr(ReproducibleTrainer, "train", spy)
        run.finetune(**{**given, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_tuning_steps": None})
        assert sizes == [18, 18, 18]

    def tuned(self, given, **others):
        given = {name: str(value) if name in PATHS else value for name, value in {**given, **others}.items()}
        training = {name: given.pop(name) for name in TRAINING if name in given}
        os.makedirs(training["output_dir"], exist_ok=True)
        return tune(FinetuningArguments(**given), FinetuningTrainingArguments(**training))

    def test_goes_on_where_it_stopped(self, given, trained, tmp_path):
        whole = self.tuned(given, output_dir=tmp_path / "whole")
        number = len(trained)
        signal_at, train = number + 2, ReproducibleTrainer.training_step

        def stopping(trainer, *args, **kwargs):
            if len(trained) == signal_at and trainer.state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return train(trainer, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReproducibleTrainer, "training_step", stopping)
            with pytest.raises(TrainingInterrupted):
                self.tuned(given)
        assert len(file_in(tmp_path / "out")["trials"]) == 1 and not list((tmp_path / "out").glob("checkpoint-*"))
        again = self.tuned(given)
        assert len(trained) == signal_at + number - 1
        what = [(each.learning_rate, each.max_steps, each.metric, each.loss) for each in again.trials]
        assert what == [(each.learning_rate, each.max_steps, each.metric, each.loss) for each in whole.trials]
        assert (again.learning_rate, again.max_steps) == (whole.learning_rate, whole.max_steps)

    def test_another_configuration_of_the_same_weights(self, given, trained):
        """Trials of before it was noted go on."""
        self.tuned(given)
        number, path = len(trained), given["output_dir"] / "tuning.json"
        written = json.loads(path.read_text())
        del written["settings"]["configuration"]
        path.write_text(json.dumps(written))
        self.tuned(given)
        assert len(trained) == number
        config = given["model_name_or_path"] / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "relu"}))
        self.tuned(given)
        assert len(trained) == 2 * number

    def test_stops_at_a_signal_after_the_last_step_of_a_trial(self, given, monkeypatch):
        train = ReproducibleTrainer.train

        def late(trainer, *args, **kwargs):
            train(trainer, *args, **kwargs)
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(ReproducibleTrainer, "train", late)
        with pytest.raises(TrainingInterrupted):
            self.tuned(given)

    def test_trials_of_other_settings_are_of_no_use(self, given, trained):
        given |= {"learning_rate": 0.01, "max_steps": 2}
        first = self.tuned(given)
        assert self.tuned(given) == first and len(trained) == 1
        self.tuned(given, layer_decay=0.5)
        assert len(trained) == 2

    @pytest.mark.parametrize("added_to", ["train", "validation"])
    def test_trials_of_other_images_are_of_no_use(self, given, trained, shades, tmp_path, added_to):
        folder = tmp_path / "growing"
        shutil.copytree(shades, folder)
        shutil.copytree(shades / "test", folder / "validation")
        given |= {"dataset": folder, "max_steps": 2, "tuning_learning_rates": [0.01]}
        self.tuned(given)
        self.tuned(given)
        assert len(trained) == 1
        shutil.copy(shades / "test" / "dark" / "00.png", folder / added_to / "dark" / "more.png")
        self.tuned(given)
        assert len(trained) == 2 and len(file_in(tmp_path / "out")["trials"]) == 1

    def test_trials_are_augmented_as_the_run_is(self, given, monkeypatch):
        """They have fewer images, and defaults depend on the number of images."""
        monkeypatch.setattr(presets, "IMAGES_OF_A_LONG_RUN", 40)
        monkeypatch.setattr(presets, "EPOCHS_OF_A_LONG_RUN", 0)
        train, seen = ReproducibleTrainer.train, []

        def spy(trainer, *args, **kwargs):
            arguments = trainer.task.arguments
            seen.append((len(trainer.task.splits.train), arguments.augmentation, arguments.mixup_alpha))
            return train(trainer, *args, **kwargs)

        monkeypatch.setattr(ReproducibleTrainer, "train", spy)
        run.finetune(**{**given, "max_steps": 1})
        assert seen == [(12, "randaugment", 0.8)] * 2 + [(72, "randaugment", 0.8)]

    def test_only_what_is_auto(self, given, trained):
        chosen = self.tuned(given, learning_rate=0.005)
        assert chosen.learning_rate == 0.005 and {rate for rate, *_ in trained} == {0.005}
        assert chosen.still_rises  # the first length is the longest one that is allowed
        trained.clear()
        chosen = self.tuned(given, max_steps=3)
        assert chosen.max_steps == 3 and {steps for _, steps, *_ in trained} == {3} and not chosen.still_rises
        trained.clear()
        self.tuned(given, max_steps=None, num_train_epochs=1)
        assert {steps for _, steps, *_ in trained} == {5}  # 72 images in batches of 16

    def test_epochs_stay_epochs_where_the_run_holds_images_back(self, given):
        given |= {"max_steps": None, "num_train_epochs": 1, "eval_strategy": "epoch"}
        results = run.finetune(**given).metrics
        assert results["validation"] is not None and results["epochs"] == 1

    def test_no_finite_loss(self, given, monkeypatch):
        monkeypatch.setattr(trials, "LossNotFinite", SiTError)
        monkeypatch.setattr(
            ReproducibleTrainer, "training_step", lambda *args, **kwargs: (_ for _ in ()).throw(SiTError("nan"))
        )
        with pytest.raises(SiTError) as error:
            self.tuned(given)
        assert error.value.argument == "learning_rate"


PATHS = ("model_name_or_path", "dataset", "output_dir")
TRAINING = ("output_dir", "learning_rate", "max_steps", "num_train_epochs", "use_cpu", "report_to", "seed")
