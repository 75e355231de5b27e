"""Arguments and recipes of fine-tuning."""

import math
from pathlib import Path

import pytest
import yaml
from transformers.training_args import ParallelMode

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError

RECIPES = Path(__file__).parents[2] / "modeling_sit" / "recipes"


@pytest.fixture
def parse(tmp_path):
    def parse(*flags, recipe: str | None = None):
        required = ["--dataset", "d", "--model_name_or_path", "m", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
        parser = RecipeArgumentParser((FinetuningArguments, FinetuningTrainingArguments))
        return parser.parse(([str(RECIPES / recipe)] if recipe else []) + required + list(flags))

    return parse


@pytest.mark.parametrize("recipe", sorted(path.name for path in RECIPES.glob("*_finetune.yaml")))
def test_recipes_are_read(parse, recipe):
    parsed = parse(recipe=recipe)
    given = yaml.safe_load((RECIPES / recipe).read_text())
    given.pop("dataset", None)  # a flag here gives another
    for name, value in given.items():
        (holder,) = (arguments for arguments in parsed if hasattr(arguments, name))
        assert getattr(holder, name) == value, name


def test_deit_recipe(parse):
    arguments, training = parse(recipe="deit_finetune.yaml")
    assert (arguments.mixup_alpha, arguments.cutmix_alpha, training.label_smoothing_factor) == (0.8, 1.0, 0.1)
    assert (arguments.augmentation, arguments.random_erasing_probability) == ("randaugment", 0.25)
    assert arguments.drop_path_rate == 0.1 and arguments.ema_decay > 0.99 and arguments.layer_decay < 1


def test_what_depends_on_the_data_is_left_open(parse):
    arguments, training = parse()
    opened = ("mixup_alpha", "cutmix_alpha", "ema_decay", "augmentation", "layer_decay", "crop_scale")
    assert all(getattr(arguments, name) is None for name in opened)
    opened = ("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "warmup_steps")
    assert all(getattr(training, name) is None for name in opened)
    assert training.evaluates is None and not training.is_tuned
    assert (arguments.random_erasing_probability, arguments.lora_rank, arguments.class_weights) == (0, 0, "none")
    assert not arguments.balanced_sampling and not arguments.freeze_backbone


@pytest.mark.parametrize("word", ["no", "off", "No"])
@pytest.mark.parametrize("in_python", [False, True])
def test_a_bare_no_of_a_recipe(tmp_path, word, in_python):
    names = ("logging_strategy", "eval_strategy", "save_strategy")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("".join(f"{name}: {word}\n" for name in (*names, "report_to", "bf16", "dataset")))
    given = {"model_name_or_path": "m", "output_dir": str(tmp_path / "out"), "use_cpu": True}
    classes = (FinetuningArguments, FinetuningTrainingArguments)
    if in_python:
        arguments, training = build_arguments(classes, given, recipe, "finetune")
    else:
        flags = [f"--{name}={value}" for name, value in given.items()]
        arguments, training = RecipeArgumentParser(classes).parse([str(recipe), *flags])
    assert [getattr(training, name) for name in names] == ["no"] * 3
    assert training.report_to == [] and training.bf16 is False and arguments.dataset == word


def test_an_unknown_tracker(parse):
    with pytest.raises(SystemExit):
        parse("--report_to", "nobody")


@pytest.mark.parametrize(
    ("flags", "rate", "steps"),
    [
        (["--learning_rate", "auto", "--max_steps", "auto"], "auto", "auto"),
        (["--learning_rate", "5e-4", "--max_train_steps", "200"], 5e-4, 200),
        (["--learning_rate", "0", "--max_steps", "-1"], 0.0, None),  # transformers' word for no number of steps
    ],
)
def test_a_number_or_auto(parse, flags, rate, steps):
    training = parse(*flags)[1]
    assert (training.learning_rate, training.max_steps) == (rate, steps)
    assert training.is_tuned is (rate == "auto")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("learning_rate", "fast"),
            ("max_steps", "1.5"),
            ("max_steps", "0"),
            ("max_steps", True),
            ("learning_rate", [1]),
        ),
        *(("learning_rate", -1e-3), ("weight_decay", -1), ("seed", -1)),
        *(("num_train_epochs", 0), ("num_train_epochs", -1), ("num_train_epochs", math.inf)),
        *(("per_device_train_batch_size", 0), ("per_device_eval_batch_size", 0), ("gradient_accumulation_steps", 0)),
    ],
)
def test_values_that_cannot_be(tmp_path, name, value):
    with pytest.raises(SiTError) as error:
        FinetuningTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: value})
    assert error.value.argument == name


@pytest.mark.parametrize("rates", [[], [0.0, 1.0], [-1.0]])
def test_rates_that_cannot_be_tried(rates):
    with pytest.raises(SiTError) as error:
        FinetuningArguments(dataset="d", model_name_or_path="m", tuning_learning_rates=rates)
    assert error.value.argument == "tuning_learning_rates"


@pytest.mark.parametrize(
    ("flags", "evaluates"),
    [
        (["--eval_strategy", "no"], False),
        (["--eval_strategy", "epoch"], True),
        (["--load_best_model_at_end", "True"], True),
        (["--metric_for_best_model", "loss"], True),
        (["--save_strategy", "best"], True),
        (["--save_strategy", "no"], None),
    ],
)
def test_what_needs_an_evaluation(parse, flags, evaluates):
    assert parse(*flags)[1].evaluates is evaluates


@pytest.mark.parametrize(
    ("flags", "chooses"),
    [
        ([], True),
        (["--eval_strategy", "no"], False),
        (["--save_strategy", "no"], False),
        (["--eval_strategy", "steps", "--eval_steps", "5"], True),
        (["--eval_strategy", "epoch", "--save_strategy", "steps"], False),
        (["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"], True),
        (["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "7"], False),
        (["--eval_strategy", "steps", "--save_strategy", "best", "--eval_steps", "5"], True),
        (["--load_best_model_at_end", "False"], False),
    ],
)
def test_the_best_is_chosen_where_there_is_a_choice(parse, flags, chooses):
    _, training = parse(*flags)
    assert training.load_best_model_at_end is chooses


@pytest.mark.parametrize(
    "flag", ["data_seed", "do_train", "label_names", "batch_eval_metrics", "prediction_loss_only", "bf16_full_eval"]
)
def test_flags_of_trainer_that_would_do_nothing_or_harm_are_unknown(parse, flag, capsys):
    with pytest.raises(SystemExit):
        parse(f"--{flag}", "1")
    assert f"unknown flag --{flag}" in capsys.readouterr().err


def test_a_threshold_without_patience_is_refused(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--early_stopping_threshold", "0.1")
    assert "error: --early_stopping_threshold: " in capsys.readouterr().err


@pytest.mark.parametrize(("workers", "persistent"), [("0", False), ("2", True)])
def test_no_workers_are_kept_alive_where_there_are_none(parse, workers, persistent):
    flags = ["--dataloader_persistent_workers", "yes", "--dataloader_num_workers", workers]
    assert parse(*flags)[1].dataloader_persistent_workers is persistent


def test_one_process_uses_one_gpu(parse):
    _, arguments = parse("--per_device_train_batch_size", "8")
    arguments._n_gpu = 4  # as transformers counts them
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 8
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL


def test_higher_is_better_but_for_the_loss(parse):
    assert parse()[1].greater_is_better is True
    assert parse("--metric_for_best_model", "loss")[1].greater_is_better is False


@pytest.mark.parametrize(
    ("flags", "strategy", "steps"),
    [
        ([], "steps", 0.05),
        (["--num_train_epochs", "3"], "epoch", 0.05),
        (["--logging_steps", "10"], "steps", 10),
        (["--logging_strategy", "no", "--logging_steps", "10"], "no", 10),
        (["--logging_strategy", "steps"], "steps", 0.05),
    ],
)
def test_a_run_of_epochs_logs_each_unless_steps_are_asked_for(parse, flags, strategy, steps):
    _, training = parse(*flags)
    assert (training.logging_strategy.value, training.logging_steps) == (strategy, steps)


@pytest.mark.parametrize(
    ("flags", "strategies", "steps"),
    [
        ([], ("steps", "steps"), (0.1, 0.1)),
        (["--num_train_epochs", "3"], ("epoch", "epoch"), (0.1, 0.1)),
        (["--num_train_epochs", "3", "--max_steps", "9"], ("steps", "steps"), (0.1, 0.1)),
        (["--eval_steps", "50"], ("steps", "steps"), (50, 50)),
        (["--save_steps", "50"], ("steps", "steps"), (50, 50)),
        (["--eval_strategy", "no", "--num_train_epochs", "3"], ("no", "epoch"), (0.1, 0.1)),
    ],
)
def test_when_it_evaluates_and_saves(parse, flags, strategies, steps):
    _, training = parse(*flags)
    assert (training.eval_strategy.value, training.save_strategy.value) == strategies
    assert (training.eval_steps, training.save_steps) == steps
