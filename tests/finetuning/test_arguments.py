"""Arguments and recipes of fine-tuning."""

from pathlib import Path

import pytest
import yaml

from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments

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


def test_every_part_is_off_by_default(parse):
    arguments, _ = parse()
    off = {"mixup_alpha", "cutmix_alpha", "random_erasing_probability", "ema_decay", "lora_rank"}
    assert all(getattr(arguments, name) == 0 for name in off)
    assert (arguments.augmentation, arguments.layer_decay, arguments.class_weights) == ("plain", 1.0, "none")
    assert not arguments.balanced_sampling and not arguments.freeze_backbone


@pytest.mark.parametrize(
    ("flags", "chooses"),
    [
        ([], True),
        (["--eval_strategy", "no"], False),
        (["--save_strategy", "no"], False),
        (["--eval_strategy", "steps", "--eval_steps", "5"], False),
        (["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "5"], True),
        (["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "5", "--save_steps", "7"], False),
        (["--eval_strategy", "steps", "--save_strategy", "best", "--eval_steps", "5"], True),
        (["--load_best_model_at_end", "False"], False),
    ],
)
def test_the_best_is_chosen_where_there_is_a_choice(parse, flags, chooses):
    _, training = parse(*flags)
    assert training.load_best_model_at_end is chooses


def test_higher_is_better_but_for_the_loss(parse):
    assert parse()[1].greater_is_better is True
    assert parse("--metric_for_best_model", "loss")[1].greater_is_better is False


@pytest.mark.parametrize(
    ("flags", "strategy", "steps"),
    [
        ([], "epoch", 500),
        (["--logging_steps", "10"], "steps", 10),
        (["--logging_strategy", "no", "--logging_steps", "10"], "no", 10),
        (["--logging_strategy", "steps"], "steps", 500),
    ],
)
def test_every_epoch_is_logged_unless_steps_are_asked_for(parse, flags, strategy, steps):
    _, training = parse(*flags)
    assert (training.logging_strategy.value, training.logging_steps) == (strategy, steps)
