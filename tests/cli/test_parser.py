"""Flags, recipes and one-line errors: what a user may write, and what he hears when it is wrong."""

import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from transformers.trainer_utils import IntervalStrategy

from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.parser import RecipeArgumentParser, choose_command, program_name
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.runtime import recipes
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.recipes import shipped_recipes


@dataclass
class TrainingArguments:
    """Flags of every type that the programs have."""

    output_dir: str = field(metadata={"help": "Where to."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate."})
    num_train_epochs: int = field(default=800, metadata={"help": "Epochs."})
    protocols: list[str] = field(default_factory=lambda: ["knn"], metadata={"help": "Protocols."})
    zeros_ratio: list[float] | None = field(default=None, metadata={"help": "Range."})
    corruption: Literal["none", "noise", "noise+replace"] = field(
        default="noise+replace", metadata={"help": "Corruption."}
    )
    streaming: bool = field(default=False, metadata={"help": "Stream."})
    pin_memory: bool = field(default=True, metadata={"help": "Pin."})
    max_train_steps: int | None = field(default=None, metadata={"help": "Steps."})


@pytest.fixture
def parser():
    return RecipeArgumentParser([DatasetArguments, TrainingArguments], prog="pretrain.py", description="Pretrains.")


@pytest.fixture
def parse(parser):
    """Both dataclasses' values in one dictionary."""

    def parse(*argv):
        dataset, training = parser.parse([str(argument) for argument in argv])
        assert type(dataset) is DatasetArguments
        assert type(training) is TrainingArguments
        return {**vars(dataset), **vars(training)}

    return parse


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture
def refusal(parse, capsys):
    """The one line on stderr with which the arguments are refused."""

    def refusal(*argv) -> str:
        with pytest.raises(SystemExit) as end:
            parse(*argv)
        assert end.value.code == 2
        output = capsys.readouterr()
        assert not output.out
        assert output.err.endswith("\n")
        assert len(output.err.splitlines()) == 1, output.err
        assert output.err.startswith("error: ")
        return output.err

    return refusal


REQUIRED = ("--dataset", "digits", "--output_dir", "out")


# Flags.


def test_defaults(parse):
    values = parse(*REQUIRED)
    assert values == {
        "dataset": "digits",
        "dataset_config_name": None,
        "image_column": None,
        "label_column": None,
        "train_split": None,
        "validation_split": None,
        "intensity_range": None,
        "output_dir": "out",
        "learning_rate": 1e-3,
        "num_train_epochs": 800,
        "protocols": ["knn"],
        "zeros_ratio": None,
        "corruption": "noise+replace",
        "streaming": False,
        "pin_memory": True,
        "max_train_steps": None,
    }


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--learning_rate", "5e-4"], "learning_rate", 5e-4),
        (["--learning_rate=5e-4"], "learning_rate", 5e-4),
        (["--num_train_epochs", "3"], "num_train_epochs", 3),
        (["--max_train_steps", "-1"], "max_train_steps", -1),
        (["--protocols", "knn", "linear"], "protocols", ["knn", "linear"]),
        (["--zeros_ratio", "0.5", "0.7"], "zeros_ratio", [0.5, 0.7]),
        (["--intensity_range", "-1000", "4e2"], "intensity_range", [-1000.0, 400.0]),
        (["--intensity_range", "0.50%", "99.5%"], "intensity_range", ["0.5%", "99.5%"]),
        (["--corruption", "noise"], "corruption", "noise"),
        (["--streaming"], "streaming", True),
        (["--streaming", "true"], "streaming", True),
        (["--streaming", "false"], "streaming", False),
        (["--pin_memory", "false"], "pin_memory", False),
        (["--no_pin_memory"], "pin_memory", False),
    ],
    ids=str,
)
def test_flags(parse, flags, name, value):
    assert parse(*REQUIRED, *flags)[name] == value
    assert parse(*flags, *REQUIRED)[name] == value


def test_the_command_line_is_the_default(parser, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *REQUIRED, "--num_train_epochs", "5"])
    assert parser.parse()[1].num_train_epochs == 5


def test_help_names_flags_defaults_and_the_recipe(parse, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--dataset", "--learning_rate", "default: 800", "RECIPE.yaml", "Pretrains."):
        assert part in text


# Recipes.


def test_recipe_gives_defaults_and_flags_override_it(parse, recipe):
    path = recipe("dataset: digits\nlearning_rate: 0.5\nnum_train_epochs: 3\nprotocols: [linear, knn]\n")
    values = parse(path, "--output_dir", "out", "--num_train_epochs", "7", "--protocols", "knn")
    assert values["dataset"] == "digits"
    assert values["output_dir"] == "out"
    assert values["learning_rate"] == 0.5
    assert values["num_train_epochs"] == 7
    assert values["protocols"] == ["knn"]
    assert values["corruption"] == "noise+replace"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 5e-4", "learning_rate", 5e-4),  # a string to YAML, which wants 5.0e-4
        ("learning_rate: 5.0e-4", "learning_rate", 5e-4),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: -0.1", "learning_rate", -0.1),
        ("learning_rate: -5e-5", "learning_rate", -5e-5),
        ("learning_rate: -0.00005", "learning_rate", -5e-5),
        ("max_train_steps: -1", "max_train_steps", -1),
        ("max_train_steps: null", "max_train_steps", None),
        ("max_train_steps:", "max_train_steps", None),
        ("protocols: [knn, linear]", "protocols", ["knn", "linear"]),
        ("protocols:\n- knn\n- linear", "protocols", ["knn", "linear"]),
        ("protocols: linear", "protocols", ["linear"]),
        ("zeros_ratio: [5e-1, 0.7]", "zeros_ratio", [0.5, 0.7]),
        ("zeros_ratio: [0, 1]", "zeros_ratio", [0.0, 1.0]),
        ("streaming: true", "streaming", True),
        ("streaming: yes", "streaming", True),
        ("streaming: false", "streaming", False),
        ("pin_memory: false", "pin_memory", False),
        ("pin_memory: no", "pin_memory", False),
        ("pin_memory: off", "pin_memory", False),
        ("streaming: On", "streaming", True),
        ("image_column: no", "image_column", "no"),
        ("label_column: off", "label_column", "off"),
        ("train_split: yes", "train_split", "yes"),
        ("validation_split: On", "validation_split", "On"),
        ("protocols: no", "protocols", ["no"]),
        ("protocols: [off, 'no', on]", "protocols", ["off", "no", "on"]),
        ("corruption: noise", "corruption", "noise"),
        ("corruption: off", "corruption", "none"),
        ("corruption: false", "corruption", "none"),
        ("max_train_steps: 2.0", "max_train_steps", 2),
        ("corruption: noise+replace", "corruption", "noise+replace"),
        ("image_column: a column", "image_column", "a column"),
        ("image_column: 7", "image_column", "7"),
        ("image_column: '--odd'", "image_column", "--odd"),
        ("image_column: ''", "image_column", ""),
        ("train_split: 'train[:50%]'  # half", "train_split", "train[:50%]"),
    ],
)
def test_values_in_a_recipe(parse, recipe, line, name, value):
    assert parse(recipe(line), *REQUIRED)[name] == value


def test_flags_override_booleans_of_a_recipe(parse, recipe):
    path = recipe("streaming: true\npin_memory: false\n")
    values = parse(path, *REQUIRED, "--streaming", "false", "--pin_memory")
    assert values["streaming"] is False
    assert values["pin_memory"] is True


def test_required_flags_may_stand_in_the_recipe(parse, recipe):
    values = parse(recipe("dataset: digits\noutput_dir: runs/one\n"))
    assert (values["dataset"], values["output_dir"]) == ("digits", "runs/one")


def test_recipe_may_hold_words_of_any_language(parse, recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("dataset: Blüten/花\n".encode())
    assert parse(path, "--output_dir", "out")["dataset"] == "Blüten/花"


# Names of shipped recipes.


@dataclass
class AnyRecipe:
    """The one flag of a recipe."""

    dataset: str = field(metadata={"help": "Images."})


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder of that name, with images perhaps, is no recipe
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "shipped")
    recipes.FOLDER.mkdir()
    (recipes.FOLDER / "digits.yaml").write_text("dataset: shipped\n")
    (values,) = RecipeArgumentParser([AnyRecipe]).parse(["digits"])
    assert values.dataset == "shipped"


def test_a_file_of_the_same_name_is_taken_first(parse, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe("dataset: mine\n", name="digits")
    assert parse("digits", "--output_dir", "out")["dataset"] == "mine"


def test_an_unknown_recipe_is_answered_by_those_that_there_are(refusal):
    message = refusal("digitz", *REQUIRED)
    assert all(name in message for name in shipped_recipes())


# Other names, text in YAML, positional arguments, help.


@dataclass
class TransformersLike:
    """Flags as `transformers.TrainingArguments` has them."""

    max_steps: int = field(default=-1, metadata={"help": "Steps; see `eval_strategy` and `streaming`."})
    eval_strategy: IntervalStrategy | str = field(default="epoch", metadata={"help": "When to measure."})
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata={"help": "Trackers."})
    mode: Literal["no", "yes"] = field(default="yes", metadata={"help": "Mode."})
    num_workers: int = field(default=0, metadata={"help": 'Not with `mode="no"`, 50 % of `cores`.'})


@pytest.mark.parametrize("argv", [["--max_train_steps", "7"], ["--max_steps", "7"], ["--max-train-steps=7"]])
def test_an_alias_stands_for_its_flag(argv):
    (values,) = RecipeArgumentParser([TransformersLike]).parse(argv)
    assert values.max_steps == 7


@pytest.mark.parametrize("typed", [["--num_train_epochs", "7"], ["--num_train_epochs=7"], ["--num-train-epochs=7"]])
def test_typed_epochs_replace_the_steps_of_a_recipe(recipe, typed):
    @dataclass
    class Length:
        num_train_epochs: int | None = field(default=None, metadata={"help": "Epochs."})
        max_steps: int | None = field(default=None, metadata={"help": "Steps."})

    def length(*flags):
        (values,) = RecipeArgumentParser([Length], prog="finetune.py").parse([str(path), *flags])
        return values.num_train_epochs, values.max_steps

    path = recipe("max_train_steps: 5\nnum_train_epochs: 2\n")
    assert length() == (2, 5)
    assert length(*typed) == (7, None)
    assert length(*typed, "--max_steps", "9") == (7, 9)


@pytest.mark.parametrize("typed", [["--patch_size", "4"], ["--patch_size=4"], ["--patch-size=4"]])
def test_a_typed_size_replaces_the_fields_of_a_recipe(recipe, typed):
    @dataclass
    class Model:
        patch_size: int | None = field(default=None, metadata={"help": "Patches."})
        config_overrides: str | None = field(default=None, metadata={"help": "Fields."})

    def overrides(text, *flags):
        path = recipe(f"config_overrides: {text}\n")
        return RecipeArgumentParser([Model], prog="pretrain.py").parse([str(path), *flags])[0].config_overrides

    text = "image_size=[8,4],patch_size=[2,4],qkv_bias=false"
    assert overrides(text) == text
    assert overrides(text, *typed) == "image_size=[8,4],qkv_bias=false"
    assert overrides(text, *typed, "--config_overrides", "patch_size=2") == "patch_size=2"
    assert overrides("patch_size=2", *typed) is None


def test_an_alias_stands_for_its_key(recipe):
    path = recipe("max_train_steps: 7\n")
    assert RecipeArgumentParser([TransformersLike]).parse([str(path)])[0].max_steps == 7
    assert RecipeArgumentParser([TransformersLike]).parse([str(path), "--max_steps", "8"])[0].max_steps == 8


def test_an_alias_beside_its_key_is_refused(recipe, capsys):
    path = recipe("max_train_steps: 7\nmax_steps: 8\n")
    with pytest.raises(SystemExit):
        RecipeArgumentParser([TransformersLike]).parse([str(path)])
    assert "max_steps and max_train_steps are the same" in capsys.readouterr().err


def test_an_alias_takes_nothing_from_a_flag_of_its_name(parse):
    assert parse(*REQUIRED, "--max_train_steps", "3")["max_train_steps"] == 3


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("eval_strategy: no", "eval_strategy", "no"),
        ("eval_strategy: off", "eval_strategy", "no"),
        ("mode: no", "mode", "no"),
        ("report_to: no", "report_to", ["no"]),
        ("report_to: [no, wandb]", "report_to", ["no", "wandb"]),
    ],
)
def test_a_bare_no_is_text_where_text_is_wanted(recipe, line, name, value):
    assert getattr(RecipeArgumentParser([TransformersLike]).parse([str(recipe(line))])[0], name) == value


def test_a_bare_no_is_no_number(recipe, capsys):
    with pytest.raises(SystemExit):
        RecipeArgumentParser([TransformersLike]).parse([str(recipe("num_workers: no"))])
    assert "--num_workers" in capsys.readouterr().err


def test_help_shows_named_arguments_as_flags(capsys):
    with pytest.raises(SystemExit):
        RecipeArgumentParser([TransformersLike]).parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "see --eval_strategy and `streaming`" in text  # which is no flag here
    assert "Not with --mode no, 50 % of `cores`" in text
    assert "max_train_steps" not in text


@dataclass
class Conversion:
    """A command with positional arguments."""

    source: str = field(metadata={"help": "From."})
    destination: str = field(metadata={"help": "To; see `format`."})
    format: str = field(default="vit", metadata={"help": "Format."})


@pytest.mark.parametrize(
    "argv", [["a", "b", "--format", "timm"], ["--format", "timm", "a", "b"], ["a", "--format=timm", "b"]]
)
def test_positional_arguments(argv):
    parser = RecipeArgumentParser([Conversion], positionals={"source": "FROM", "destination": "TO"})
    (values,) = parser.parse(argv)
    assert values == Conversion("a", "b", "timm")


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [(["a"], "TO"), (["a", "b", "c"], "unexpected argument 'c'"), (["a", "b", "--fromat"], "--format?")],
)
def test_mistakes_in_positional_arguments(argv, culprit, capsys):
    with pytest.raises(SystemExit) as end:
        RecipeArgumentParser([Conversion], positionals={"source": "FROM", "destination": "TO"}).parse(argv)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert culprit in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/usr/bin/modeling-sit", "modeling-sit pretrain"),
        ("/site-packages/modeling_sit/__main__.py", "python -m modeling_sit pretrain"),
        ("scripts/pretrain.py", "pretrain.py"),
    ],
)
def test_the_program_is_called_as_it_was_started(monkeypatch, program, name):
    monkeypatch.setattr(sys, "argv", [program, "pretrain"])
    assert program_name("pretrain") == name
    assert RecipeArgumentParser([AnyRecipe], command="pretrain").prog == name


def test_choose_command(capsys):
    commands = {"attention": "Where it looks.", "embeddings": "A map."}
    assert choose_command(commands, "Draws.", ["attention", "--x", "1"]) == ("attention", ["--x", "1"])
    for argv, culprit in ([["atention"], "did you mean attention?"], [[], "no command"], [["--x"], "no command"]):
        with pytest.raises(SystemExit) as end:
            choose_command(commands, "Draws.", argv)
        assert end.value.code == 2 and culprit in capsys.readouterr().err


# Mistakes in flags.


@pytest.mark.parametrize(
    ("flags", "culprit", "suggestion"),
    [
        (["--learning_rat", "0.1"], "--learning_rat", "--learning_rate"),
        (["--lerning_rate=0.1"], "--lerning_rate", "--learning_rate"),
        (["--num_epochs", "3"], "--num_epochs", "--num_train_epochs"),
        (["--stream"], "--stream", "--streaming"),
    ],
)
def test_unknown_flags_are_named_with_the_nearest(refusal, flags, culprit, suggestion):
    message = refusal(*REQUIRED, *flags)
    assert f"unknown flag {culprit}" in message
    assert f"did you mean {suggestion}?" in message


def test_unknown_flags_like_no_other_get_no_suggestion(refusal):
    message = refusal(*REQUIRED, "--xyzzy")
    assert "unknown flag --xyzzy" in message
    assert "did you mean" not in message


def test_unknown_flags_in_front_are_named_too(refusal):
    assert "unknown flag --xyzzy" in refusal("--xyzzy", "3", *REQUIRED)


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        (["--learning_rate", "fast"], ["--learning_rate", "fast"]),
        (["--num_train_epochs", "2.5"], ["--num_train_epochs", "2.5"]),
        (["--zeros_ratio", "0.5", "much"], ["--zeros_ratio", "much"]),
        (["--corruption", "blur"], ["--corruption", "blur", "noise+replace"]),
        (["--streaming", "perhaps"], ["--streaming", "perhaps"]),
        (["--learning_rate"], ["--learning_rate"]),
    ],
)
def test_values_of_a_wrong_type_are_named_with_their_flag(refusal, flags, culprits):
    message = refusal(*REQUIRED, *flags)
    for culprit in culprits:
        assert culprit in message


def test_missing_required_flags_are_named(refusal):
    assert "--output_dir" in refusal("--dataset", "digits")
    message = refusal()
    assert "--dataset" in message
    assert "--output_dir" in message


def test_errors_point_to_help(refusal):
    assert "pretrain.py --help" in refusal(*REQUIRED, "--xyzzy")


# Mistakes in recipes.


@pytest.mark.parametrize(
    ("line", "culprit", "suggestion"),
    [("learning_rat: 0.1", "learning_rat", "learning_rate"), ("num_epochs: 3", "num_epochs", "num_train_epochs")],
)
def test_unknown_keys_are_named_with_file_and_nearest(refusal, recipe, line, culprit, suggestion):
    path = recipe(f"dataset: digits\n{line}\n")
    message = refusal(path, "--output_dir", "out")
    assert str(path) in message
    assert f"unknown key '{culprit}'" in message
    assert "did you mean" in message
    assert suggestion in message


@pytest.mark.parametrize("key", ["xyzzy", "7", "help", "recipe", "h", "''", "null", "learning_rate=3"])
def test_keys_that_are_no_flag_are_refused(refusal, recipe, key):
    message = refusal(recipe(f"{key}: true\n"), *REQUIRED)
    assert "unknown key" in message


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("learning_rate: fast", ["learning_rate", "fast"]),
        ("num_train_epochs: 2.5", ["num_train_epochs", "2.5"]),
        ("corruption: blur", ["corruption", "blur"]),
        ("streaming: perhaps", ["streaming", "perhaps"]),
        ("zeros_ratio: [0.5, much]", ["zeros_ratio", "much"]),
        ("learning_rate: [0.1, 0.2]", ["learning_rate", "0.2"]),
        ("zeros_ratio: []", ["zeros_ratio"]),
    ],
)
def test_values_of_a_wrong_type_in_a_recipe(refusal, recipe, line, culprits):
    message = refusal(recipe(line), *REQUIRED)
    for culprit in culprits:
        assert culprit in message


@pytest.mark.parametrize(("key", "remedy"), [("image_column", "VALUE"), ("protocols", "[FIRST, SECOND]")])
def test_tables_in_a_recipe_are_refused(refusal, recipe, key, remedy):
    assert f"write {key}: {remedy}" in refusal(recipe(f"{key}:\n  deeper: value\n"), *REQUIRED)


def test_an_empty_value_is_not_ignored_where_there_is_a_default(refusal, recipe):
    assert "learning_rate" in refusal(recipe("learning_rate:\n"), *REQUIRED)


def test_recipe_must_come_first(refusal, recipe):
    path = recipe("learning_rate: 0.1\n")
    message = refusal(*REQUIRED, path)
    assert str(path) in message
    assert "first" in message


def test_only_one_recipe(refusal, recipe):
    one, other = recipe("learning_rate: 0.1\n"), recipe("num_train_epochs: 3\n", "other.yaml")
    assert str(other) in refusal(one, other, *REQUIRED)


def test_missing_recipe_is_named(refusal, tmp_path):
    path = tmp_path / "missing.yaml"
    message = refusal(path, *REQUIRED)
    assert str(path) in message
    assert "No such file" in message


def test_folder_is_no_recipe(refusal, tmp_path):
    assert str(tmp_path) in refusal(tmp_path, *REQUIRED)


@pytest.mark.parametrize("text", ["learning_rate: [0.1\n", "a: b: c\n", "\tlearning_rate: 1\n", "x: 'open\n"])
def test_invalid_yaml_is_named(refusal, recipe, text):
    path = recipe(text)
    message = refusal(path, *REQUIRED)
    assert str(path) in message
    assert "YAML" in message


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- b\n", "42\n", "# a comment\n"])
def test_recipes_without_keys_are_refused(refusal, recipe, text):
    path = recipe(text)
    assert str(path) in refusal(path, *REQUIRED)


def test_bytes_that_are_no_text_are_refused(refusal, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00dataset\xff")
    assert str(path) in refusal(path, *REQUIRED)


def test_recipes_execute_nothing(refusal, recipe, tmp_path):
    target = tmp_path / "owned"
    path = recipe(f"dataset: !!python/object/apply:os.mkdir ['{target}']\n")
    assert str(path) in refusal(path, "--output_dir", "out")
    assert not target.exists()


# One-line errors.


def leave(error):
    with one_line_errors():
        raise error


def test_a_users_mistake_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        leave(SiTError("images/ has no images:\n  give another folder\twith --dataset"))
    assert end.value.code == 1
    output = capsys.readouterr()
    assert output.err == "error: images/ has no images: give another folder with --dataset\n"
    assert not output.out


def test_an_interrupt_ends_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        leave(KeyboardInterrupt())
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [ValueError("bug"), RuntimeError("bug"), KeyError("bug")])
def test_programming_errors_keep_their_traceback(error):
    with pytest.raises(type(error)):
        leave(error)


@pytest.mark.parametrize("code", [0, 3])
def test_other_exits_pass(code):
    with pytest.raises(SystemExit) as end:
        leave(SystemExit(code))
    assert end.value.code == code


def test_nothing_happens_without_an_error(capsys):
    with one_line_errors():
        value = 1
    assert value == 1
    assert capsys.readouterr().err == ""


def test_an_error_names_its_arguments_as_flags(capsys):
    error = SiTError("no labels", argument="label_column", remedy='give `label_column` or `image_cache="disk"`')
    with pytest.raises(SystemExit), one_line_errors({"label_column", "image_cache"}):
        raise error
    assert capsys.readouterr().err == "error: --label_column: no labels; give --label_column or --image_cache disk\n"


def test_an_interrupted_run_says_how_to_go_on(capsys):
    interruption = TrainingInterrupted(15, 'stopped after step 3; `resume_from_checkpoint="auto"` goes on')
    with pytest.raises(SystemExit) as end, one_line_errors({"resume_from_checkpoint"}):
        raise interruption
    assert end.value.code == 128 + 15
    assert capsys.readouterr().out == "stopped after step 3; --resume_from_checkpoint auto goes on\n"
