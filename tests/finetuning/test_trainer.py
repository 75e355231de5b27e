"""Runs that go on where they were stopped, and checkpoints that are chosen."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from finetuning_runs import (
    CHECKPOINTS,
    EVERYTHING_RANDOM,
    ON_THE_WAY,
    accuracy_by_hand,
    assert_equal,
    assert_same,
    backbone_in,
    results_of,
    weights_in,
)

from modeling_sit.evaluation.results import read_results, write_results
from modeling_sit.finetuning import run
from modeling_sit.finetuning import trials as tuning_trials
from modeling_sit.finetuning.checkpoints import HISTORY
from modeling_sit.finetuning.trainer import ReproducibleTrainer
from modeling_sit.interop.convert import convert
from modeling_sit.runtime import waiting
from modeling_sit.runtime.errors import TrainingInterrupted


class TestGoingOn:
    """A run that was stopped and goes on ends, weight for weight and to the last bit, where one ends that was not."""

    def assert_goes_on(self, finetune, model, dataset, stop: int = 2, steps: int = 5, **arguments) -> Path:
        arguments = {**CHECKPOINTS, **arguments}
        whole = finetune(model, dataset, **arguments, name="whole", steps=steps)
        finetune(model, dataset, **arguments, name="stopped", steps=stop)
        arguments |= {"resume_from_checkpoint": "auto"}
        stopped = finetune(model, dataset, **arguments, name="stopped", steps=steps)
        last = json.loads((stopped / "checkpoint-4" / "trainer_state.json").read_text())
        assert last["global_step"] == 4
        assert_equal(weights_in(whole), weights_in(stopped))
        assert results_of(whole)["loss"] == results_of(stopped)["loss"]
        card = (stopped / "README.md").read_text()
        assert f"\n# going on from step {stop}:\n" in card and card.count("\n# going on") == 1
        return stopped

    @pytest.mark.parametrize("batch_size", [16, 20])  # 40 images: amid an epoch, and where one ends
    def test_with_everything_random(self, finetune, sit, colors, batch_size):
        self.assert_goes_on(finetune, sit, colors, **EVERYTHING_RANDOM, batch_size=batch_size)

    def test_with_accumulated_batches(self, finetune, sit, colors):
        arguments = {"gradient_accumulation_steps": 2, "augmentation": "3-augment", "mixup_alpha": 0.8}
        self.assert_goes_on(finetune, sit, colors, **arguments, batch_size=6, stop=4)

    def test_every_key_of_a_model_that_is_saved_under_other_names(self, finetune, vit, colors):
        """transformers' ViT is one; `Trainer` alone would go on from a random encoder."""
        folder = self.assert_goes_on(finetune, vit, colors, mixup_alpha=0.8)
        moved = backbone_in(folder)
        for name, value in backbone_in(vit).items():
            if value.std() > 0:
                assert (moved[name] - value).abs().max() < 0.1 * value.abs().max() + 0.02, name

    def test_with_adapters(self, finetune, sit, colors):
        pytest.importorskip("peft")
        self.assert_goes_on(finetune, sit, colors, lora_rank=2, lora_dropout=0.1, ema_decay=0.9)

    def test_whatever_the_number_of_workers(self, finetune, sit, colors):
        alone = finetune(sit, colors, **EVERYTHING_RANDOM, name="alone")
        arguments = {**EVERYTHING_RANDOM, "dataloader_num_workers": 2}
        assert_equal(weights_in(alone), weights_in(finetune(sit, colors, **arguments, name="workers")))

    @pytest.mark.parametrize("length", [{"steps": 4}, {"steps": None, "num_train_epochs": 1.4}])
    def test_a_finished_run_stays_as_it_is(self, finetune, sit, colors, length):
        """Its last step is amid an epoch: 40 images in batches of 16, or 4 of 10."""
        arguments = {**CHECKPOINTS, **length, "batch_size": 16 if length["steps"] else 10, "ema_decay": 0.9}
        folder = finetune(sit, colors, **arguments, save_total_limit=9)
        weights, results = weights_in(folder), results_of(folder)
        assert results["steps"] == (4 if length["steps"] else 6)
        finetune(sit, colors, **arguments, resume_from_checkpoint="auto")
        assert_equal(weights_in(folder), weights)
        assert results_of(folder) == results
        assert not (folder / f"checkpoint-{results['steps'] + 1}").exists()

    def test_a_finished_run_that_was_moved(self, finetune, sit, colors, tmp_path):
        """It ends with its best checkpoint, which is not where it was."""
        arguments = {**ON_THE_WAY, "learning_rate": 1, "lr_scheduler_type": "constant", "steps": 8}
        folder = finetune(sit, colors, **arguments)
        weights, results = weights_in(folder), results_of(folder)
        folder.rename(tmp_path / "moved")
        moved = finetune(sit, colors, **arguments, resume_from_checkpoint="auto", name="moved")
        assert_equal(weights_in(moved), weights)
        assert results_of(moved) == results

    @pytest.mark.parametrize(
        ("name", "first", "second"),
        [
            ("label_fraction", {"label_fraction": 0.5}, {}),
            ("total_batch", {"batch_size": 10}, {"batch_size": 5}),
            ("image_size", {}, {"image_size": 24}),
        ],
    )
    def test_settings_of_another_run(self, finetune, refused, sit, colors, name, first, second):
        """The results would say of the one what the other was given."""
        folder = finetune(sit, colors, **CHECKPOINTS, **first)
        before = results_of(folder)
        error = refused(sit, colors, **{**CHECKPOINTS, **second}, resume_from_checkpoint="auto", name="out")
        assert error.argument == "resume_from_checkpoint" and f"{name}: " in error.problem
        assert results_of(folder) == before

    def test_what_is_the_default_may_be_given(self, finetune, sit, colors):
        finetune(sit, colors, **CHECKPOINTS)
        arguments = {"pooling": "token", "image_size": 16, "resume_from_checkpoint": "auto"}
        assert results_of(finetune(sit, colors, **CHECKPOINTS, **arguments, steps=4))["steps"] == 4

    def test_the_same_total_batch(self, finetune, sit, colors):
        finetune(sit, colors, **CHECKPOINTS, batch_size=10)
        arguments = {"batch_size": 5, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "auto"}
        assert results_of(finetune(sit, colors, **CHECKPOINTS, **arguments, steps=4))["steps"] == 4

    def test_other_labels_of_as_many_images(self, finetune, refused, sit, colors, tmp_path):
        shutil.copytree(colors, tmp_path / "colors")
        finetune(sit, tmp_path / "colors", **CHECKPOINTS)
        train = tmp_path / "colors" / "train"
        (train / "red" / "00.png").rename(train / "green" / "red.png")
        error = refused(sit, tmp_path / "colors", **CHECKPOINTS, resume_from_checkpoint="auto", name="out")
        assert error.argument == "resume_from_checkpoint"

    def test_the_search_of_another_run_is_not_begun(self, finetune, refused, sit, colors, monkeypatch):
        finetune(sit, colors, **CHECKPOINTS)
        monkeypatch.setattr(run, "tune", None)
        arguments = {"learning_rate": "auto", "resume_from_checkpoint": "auto", "seed": 7}
        assert refused(sit, colors, **CHECKPOINTS, **arguments, name="out").argument == "resume_from_checkpoint"

    def test_results_tell_nothing_of_the_home_folder(self, finetune, sit, colors, tmp_path, monkeypatch):
        shutil.copytree(colors, tmp_path / "colors")
        monkeypatch.setenv("HOME", str(tmp_path))
        results = results_of(finetune(sit, tmp_path / "colors"))
        assert (results["dataset"], results["model_name_or_path"]) == ("~/colors", "~/sit")

    def test_results_of_other_weights_go(self, finetune, sit, colors):
        folder = finetune(sit, colors)
        write_results(folder, {"knn": {"accuracy": 1.0}})
        finetune(sit, colors)  # the same weights
        assert read_results(folder).keys() == {"finetune", "knn"}
        finetune(sit, colors, seed=7)
        assert read_results(folder).keys() == {"finetune"}

    def test_trials_of_other_labels_are_not_taken(self, finetune, sit, colors, tmp_path, monkeypatch):
        """As many images of each class as before."""
        monkeypatch.setattr("modeling_sit.finetuning.splits.MAX_DRAWS", 1)
        monkeypatch.setattr("modeling_sit.finetuning.tuning.MAX_EXTENSIONS", 0)
        shutil.copytree(colors, tmp_path / "colors")
        arguments = {"learning_rate": "auto", "tuning_learning_rates": [1e-3], "validation_fraction": 0.6}
        finetune(sit, tmp_path / "colors", **arguments)
        prepare, trials = tuning_trials.prepare_trainer, []
        monkeypatch.setattr(tuning_trials, "prepare_trainer", lambda *given: trials.append(given) or prepare(*given))
        finetune(sit, tmp_path / "colors", **arguments)
        assert not trials, "those of the file are taken"
        train = tmp_path / "colors" / "train"
        for old, new in (("red/00.png", "green/0.png"), ("green/00.png", "red/0.png")):
            (train / old).rename(train / new)
        finetune(sit, tmp_path / "colors", **arguments)
        assert trials

    def test_a_file_of_weights_that_was_moved(self, finetune, sit, colors, tmp_path):
        arguments = {**CHECKPOINTS, "resume_from_checkpoint": "auto"}
        path = tmp_path / "weights.safetensors"
        convert(str(sit), path, format="safetensors")
        finetune(path, colors, **CHECKPOINTS)
        path.rename(tmp_path / "moved.safetensors")
        assert results_of(finetune(tmp_path / "moved.safetensors", colors, **arguments, steps=4))["steps"] == 4

    def test_another_pretrained_model(self, finetune, refused, save_tiny_sit, sit, colors, tmp_path):
        finetune(sit, colors, **CHECKPOINTS)
        other = save_tiny_sit(tmp_path / "other", seed=1)
        error = refused(other, colors, **CHECKPOINTS, resume_from_checkpoint="auto", name="out")
        assert "model: " in error.problem

    @pytest.mark.parametrize("from_scratch", [False, True])
    def test_the_same_weights_with_another_configuration(self, finetune, refused, sit, colors, from_scratch):
        arguments = {**CHECKPOINTS, "from_scratch": from_scratch}
        folder = finetune(sit, colors, **arguments)
        path = sit / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))
        arguments |= {"resume_from_checkpoint": "auto", "steps": 4}
        assert "configuration: " in refused(sit, colors, **arguments, name="out").problem
        # A checkpoint of before this was noted.
        history = folder / "checkpoint-2" / HISTORY
        saved = json.loads(history.read_text())
        del saved["settings"]["configuration"]
        history.write_text(json.dumps(saved))
        assert results_of(finetune(sit, colors, **arguments))["steps"] == 4

    def test_settings_of_another_model(self, finetune, refused, sit, colors):
        finetune(sit, colors, **CHECKPOINTS, name="stopped")
        arguments = {"resume_from_checkpoint": "auto", "ema_decay": 0.9}
        assert "`ema_decay`" in str(refused(sit, colors, **arguments, name="stopped"))

    def test_without_asking_for_it(self, finetune, refused, sit, colors):
        finetune(sit, colors, **CHECKPOINTS, name="stopped")
        assert '`resume_from_checkpoint="auto"`' in str(refused(sit, colors, name="stopped"))

    def test_sigterm_leaves_a_checkpoint(self, finetune, sit, colors, tmp_path, monkeypatch):
        """And what was measured on the way to it is what an uninterrupted run measures."""
        arguments = {"eval_strategy": "epoch", "save_strategy": "epoch", "early_stopping_patience": 9}
        arguments |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "mixup_alpha": 0.8}
        whole = finetune(sit, colors, **arguments, name="whole", steps=9)
        step = ReproducibleTrainer.training_step

        def stopping_step(self, *args, **kwargs):
            if self.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(ReproducibleTrainer, "training_step", stopping_step)
        with pytest.raises(
            TrainingInterrupted, match=r'SIGTERM after step 5: .*`resume_from_checkpoint="auto"`'
        ) as stop:
            finetune(sit, colors, **arguments, name="stopped", steps=9)
        assert stop.value.signal == signal.SIGTERM
        assert not (tmp_path / "stopped" / "eval_results.json").exists()
        assert (tmp_path / "stopped" / "checkpoint-5" / "trainer_state.json").exists()
        monkeypatch.undo()
        stopped = finetune(sit, colors, **arguments, resume_from_checkpoint="auto", name="stopped", steps=9)
        assert_equal(weights_in(whole), weights_in(stopped))
        assert results_of(whole) == results_of(stopped)

    @pytest.mark.parametrize("arguments", [{}, {"resume_from_checkpoint": "auto"}])
    def test_sigterm_while_no_batch_comes(self, finetune, sit, colors, monkeypatch, hanging_workers, arguments):
        """Nor does it where the run goes on amid an epoch, for which Accelerate makes a loader of its own."""
        if arguments:
            finetune(sit, colors, **CHECKPOINTS, steps=2, batch_size=10)
        monkeypatch.setattr(waiting, "SECONDS_AFTER_A_SIGNAL", 0.5)
        hanging_workers.append(lambda: os.kill(os.getppid(), signal.SIGTERM))
        with pytest.raises(TrainingInterrupted) as stop:
            finetune(sit, colors, **CHECKPOINTS, **arguments, dataloader_num_workers=1, steps=3, batch_size=10)
        assert stop.value.signal == signal.SIGTERM

    def test_auto_in_a_new_folder_starts(self, finetune, sit, colors):
        begun = finetune(sit, colors, resume_from_checkpoint="auto", name="auto")
        assert_same(weights_in(begun), weights_in(finetune(sit, colors, name="plain")))

    def test_auto_does_not_take_an_unfinished_one(self, finetune, sit, colors, tmp_path):
        arguments = {"save_strategy": "steps", "save_steps": 2}
        folder = finetune(sit, colors, **arguments, steps=2)
        (folder / "checkpoint-9").mkdir()
        finetune(sit, colors, **arguments, resume_from_checkpoint="auto", steps=4)
        assert (folder / "checkpoint-4").exists()

    def test_path_that_is_none(self, refused, sit, colors, tmp_path):
        error = refused(sit, colors, resume_from_checkpoint=tmp_path / "nowhere")
        assert error.argument == "resume_from_checkpoint" and str(tmp_path / "nowhere") in str(error)


class TestChoosing:
    def test_best_checkpoint_by_held_back_images(self, finetune, sit, colors):
        """The rate rises until all is lost: the best is an early one, and it is what is saved and measured."""
        arguments = {**ON_THE_WAY, "learning_rate": 1, "lr_scheduler_type": "constant_with_warmup"}
        folder = finetune(sit, colors, **arguments, warmup_steps=30, validation_fraction=0.3, steps=20, batch_size=14)
        newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
        state = json.loads((newest / "trainer_state.json").read_text())
        measured = {line["step"]: line["eval_accuracy"] for line in state["log_history"] if "eval_accuracy" in line}
        best = max(measured, key=lambda step: (measured[step], -step))
        assert len(measured) == 10 and best < 20
        assert state["best_global_step"] == best
        assert_equal(weights_in(folder), weights_in(folder / f"checkpoint-{best}"))
        results = results_of(folder)
        assert results["validation"]["accuracy"] == measured[best]
        assert results["validation"]["num_validation"] == 12 and results["num_train"] == 28
        assert results["chosen_by"] == "accuracy on 30 % of train, held back"
        assert (results["split"], results["num_validation"]) == ("test", 12)
        assert results["accuracy"] == accuracy_by_hand(folder, colors)
        assert "chosen_by" not in (folder / "README.md").read_text()
        assert "best checkpoint by accuracy on 30 % of train" in (folder / "README.md").read_text()

    def test_test_images_are_measured_once(self, finetune, sit, colors, monkeypatch):
        evaluate, measured = ReproducibleTrainer.evaluate, []

        def spy(self, dataset=None, **kwargs):
            dataset = self.eval_dataset if dataset is None else dataset
            measured.append(str(dataset.split.split))
            return evaluate(self, dataset, **kwargs)

        monkeypatch.setattr(ReproducibleTrainer, "evaluate", spy)
        finetune(sit, colors, **ON_THE_WAY, steps=9)
        assert measured == ["train"] * 4 + ["test"]

    def test_early_stopping(self, finetune, sit, colors):
        arguments = {**ON_THE_WAY, "learning_rate": 0, "early_stopping_patience": 2}
        folder = finetune(sit, colors, **arguments, steps=30)
        assert results_of(folder)["epochs"] == 3
        again = results_of(finetune(sit, colors, **arguments, resume_from_checkpoint="auto", steps=30))
        assert again == results_of(folder)

    def test_more_patience_on_request(self, finetune, sit, colors):
        arguments = {**ON_THE_WAY, "learning_rate": 0, "steps": 30}
        assert results_of(finetune(sit, colors, **arguments, early_stopping_patience=2))["epochs"] == 3
        again = finetune(sit, colors, **arguments, early_stopping_patience=4, resume_from_checkpoint="auto")
        assert results_of(again)["epochs"] == 5

    def test_the_last_checkpoint_on_request(self, finetune, sit, colors):
        folder = finetune(sit, colors, **ON_THE_WAY, load_best_model_at_end=False, steps=6)
        assert results_of(folder)["chosen_by"] is None
        assert_equal(weights_in(folder), weights_in(folder / "checkpoint-6"))
        assert "last step" in (folder / "README.md").read_text()

    @pytest.mark.parametrize("asked", [{}, {"eval_strategy": "steps"}])
    def test_without_a_test_split_nothing_chooses_unasked(self, sit, colors, tmp_path, monkeypatch, asked):
        evaluate, measured = ReproducibleTrainer.evaluate, []

        def spy(self, *args, **kwargs):
            measured.append(self.state.global_step)
            return evaluate(self, *args, **kwargs)

        monkeypatch.setattr(ReproducibleTrainer, "evaluate", spy)
        given = {"max_steps": 4, "save_steps": 2, "use_cpu": True, "report_to": "none", **asked}
        results = run.finetune(sit, colors / "train", tmp_path / "out", **given).metrics
        assert (results["split"], results["num_train"]) == ("10 % of train, held back", 36)
        if asked:
            assert results["chosen_by"] == "accuracy on 10 % of train, held back" and measured == [2, 4, 4]
        else:
            assert results["chosen_by"] is None and measured == [4]
            assert_equal(weights_in(tmp_path / "out"), weights_in(tmp_path / "out" / "checkpoint-4"))

    def test_all_test_images_are_measured_where_training_leaves_out_the_last_ones(
        self, finetune, refused, sit, colors
    ):
        arguments = {"dataloader_drop_last": True, "per_device_eval_batch_size": 7}
        folder = finetune(sit, colors, **arguments, steps=5)
        assert results_of(folder)["accuracy"] == accuracy_by_hand(folder, colors)
        assert refused(sit, colors, dataloader_drop_last=True, batch_size=41).argument == "dataloader_drop_last"

    def test_mistakes(self, refused, sit, colors):
        assert refused(sit, colors, early_stopping_patience=2).argument == "early_stopping_patience"
        arguments = {**ON_THE_WAY, "metric_for_best_model": "mean_average_precision"}
        assert "accuracy, macro_f1, loss" in str(refused(sit, colors, **arguments))
        assert refused(sit, colors, **ON_THE_WAY, validation_split="test").argument == "validation_split"
