"""Keyword arguments and recipes become dataclasses, with values in the types of their fields."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Union

import numpy as np
import pytest
import transformers
from transformers.trainer_utils import IntervalStrategy

from modeling_sit.image_modes import Level
from modeling_sit.runtime.arguments import argument_name, build_arguments, coerce, did_you_mean
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import YesOrNo


@dataclass
class Images:
    dataset: str
    image_column: str | None = None
    crop_scale: list[float] = field(default_factory=lambda: [0.2, 1.0])


@dataclass(kw_only=True)
class Training:
    output_dir: str
    learning_rate: float = 1e-3
    max_steps: int = -1
    precision: Literal["no", "bf16"] = "no"
    flip: bool = True
    measured: int = field(default=7, init=False)

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise SiTError(f"must be above 0, got {self.learning_rate}", argument="learning_rate")


@dataclass
class Length:
    num_train_epochs: float | None = None
    max_steps: int | None = None
    time_budget: str | None = None


@dataclass
class WarmUp:
    warmup_epochs: float | None = None
    warmup_steps: int | None = None


@dataclass
class Model:
    model_size: str | None = None
    image_size: int | None = None
    config_overrides: str | None = None


REQUIRED = {"dataset": "cells", "output_dir": "out"}


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def build(recipe=None, **keywords):
    return build_arguments((Images, Training), {**REQUIRED, **keywords}, recipe, "pretrain")


class TestBuild:
    def test_defaults(self):
        assert build() == (Images("cells"), Training(output_dir="out"))

    def test_each_dataclass_gets_its_own(self):
        images, training = build(image_column="img", max_steps=3)
        assert (images.image_column, training.max_steps) == ("img", 3)

    @pytest.mark.parametrize("place", ["~/runs/a", Path("~/runs/a")])
    def test_places_to_write_to_may_begin_with_the_home_folder(self, monkeypatch, place):
        monkeypatch.setenv("HOME", "/home/me")
        (training,) = build_arguments((Training,), {"output_dir": place})
        assert training.output_dir == "/home/me/runs/a"

    def test_lists_of_defaults_are_not_shared(self):
        build()[0].crop_scale.append(3.0)
        assert build()[0].crop_scale == [0.2, 1.0]

    def test_keywords_override_the_recipe(self, recipe):
        path = recipe("learning_rate: 1e-4\nmax_steps: 10\nprecision: no\nflip: off\n")
        training = build(path, max_steps=20)[1]
        assert training == Training(output_dir="out", learning_rate=1e-4, max_steps=20, precision="no", flip=False)

    def test_given_epochs_replace_the_steps_of_the_recipe(self, recipe):
        path = recipe("max_train_steps: 10\nnum_train_epochs: 3\n")
        lengths = ({}, {"num_train_epochs": 7}, {"num_train_epochs": 7, "max_steps": 9}, {"num_train_epochs": None})
        built = [build_arguments((Length,), given, path)[0] for given in lengths]
        assert built == [Length(3, 10), Length(7, None), Length(7, 9), Length(None, 10)]

    def test_a_given_length_replaces_the_time_of_the_recipe(self, recipe):
        path = recipe("time_budget: 30m\n")
        lengths = ({}, {"num_train_epochs": 7}, {"max_steps": 9}, {"max_steps": 9, "time_budget": "1h"})
        built = [build_arguments((Length,), given, path)[0] for given in lengths]
        assert built == [Length(time_budget="30m"), Length(7), Length(None, 9), Length(None, 9, "1h")]

    def test_given_epochs_replace_the_steps_of_warm_up_of_the_recipe(self, recipe):
        path = recipe("warmup_epochs: 1\nwarmup_steps: 10\n")
        assert build_arguments((WarmUp,), {}, path) == (WarmUp(1, 10),)
        assert build_arguments((WarmUp,), {"warmup_epochs": 3}, path) == (WarmUp(3, None),)

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ({}, "hidden_size=8,num_attention_heads=2, image_size = [8,4],qkv_bias=false"),
            ({"model_size": "micro"}, " image_size = [8,4],qkv_bias=false"),
            ({"image_size": 4}, "hidden_size=8,num_attention_heads=2,qkv_bias=false"),
            ({"image_size": None}, "hidden_size=8,num_attention_heads=2, image_size = [8,4],qkv_bias=false"),
            ({"model_size": "micro", "config_overrides": "hidden_size=4"}, "hidden_size=4"),
        ],
    )
    def test_given_sizes_replace_the_fields_of_the_recipe(self, recipe, given, kept):
        path = recipe("config_overrides: hidden_size=8,num_attention_heads=2, image_size = [8,4],qkv_bias=false\n")
        (model,) = build_arguments((Model,), given, path)
        assert model == Model(**{**given, "config_overrides": kept})

    def test_given_sizes_may_replace_all_fields(self, recipe):
        path = recipe("image_size: 8\nconfig_overrides: image_size=[8,4]\n")
        assert build_arguments((Model,), {}, path)[0] == Model(image_size=8, config_overrides="image_size=[8,4]")
        assert build_arguments((Model,), {"image_size": 4}, path)[0] == Model(image_size=4)

    def test_recipe_gives_what_is_required(self, recipe):
        path = recipe("dataset: cells\noutput_dir: out\n")
        assert build_arguments((Images, Training), {}, path) == build()

    @pytest.mark.parametrize("given", [("recipe",), ("keyword",), ("recipe", "keyword")])
    def test_alias(self, recipe, given):
        path = recipe("max_train_steps: 5\n") if "recipe" in given else None
        keywords = {"max_train_steps": 9} if "keyword" in given else {}
        assert build(path, **keywords)[1].max_steps == (9 if keywords else 5)

    @pytest.mark.parametrize(
        ("text", "precision"), [("no", "no"), ("off", "no"), ("No", "no"), ("false", "no"), ("'no'", "no")]
    )
    def test_a_bare_no_of_a_recipe_is_a_word_among_words(self, recipe, text, precision):
        assert build(recipe(f"precision: {text}\n"))[1].precision == precision

    @pytest.mark.parametrize("text", ["no", "off", "on", "yes", "No"])
    def test_a_bare_word_of_a_recipe_is_what_was_written(self, recipe, text):
        images, training = build(recipe(f"image_column: {text}\nflip: {text}\n"))
        assert images.image_column == text and type(images.image_column) is str
        assert training.flip is (text in ("on", "yes"))

    @pytest.mark.parametrize("line", ["precision: yes", "precision: on", "max_steps: no", "learning_rate: on"])
    def test_a_bare_word_in_a_wrong_place(self, recipe, line):
        name, _, text = line.partition(": ")
        with pytest.raises(SiTError) as error:
            build(recipe(line))
        assert error.value.argument == name and repr(text) in error.value.problem

    def test_true_is_no_word(self, recipe):
        with pytest.raises(SiTError) as error:
            build(recipe("image_column: true"))
        assert error.value.argument == "image_column" and "'true' in quotes" in error.value.remedy

    def test_errors_of_a_dataclass_pass(self):
        with pytest.raises(SiTError) as error:
            build(learning_rate=0)
        assert error.value.argument == "learning_rate"

    def test_a_dataset_in_memory_stays_itself(self):
        class Splits(dict):
            """As `datasets.DatasetDict` is."""

        for dataset in (object(), Splits(train=1)):
            assert build(dataset=dataset)[0].dataset is dataset
        with pytest.raises(SiTError):
            build(dataset={"train": 1})

    def test_two_dataclasses_with_one_argument(self):
        @dataclass
        class Other:
            dataset: str

        assert build_arguments((Images, Other), {"dataset": "cells"}) == (Images("cells"), Other("cells"))


class TestMistakes:
    def test_unknown_keyword(self):
        with pytest.raises(TypeError, match=r"pretrain\(\) .*'learning_rat'; did you mean learning_rate\?"):
            build(learning_rat=1)

    def test_a_field_that_is_no_argument(self):
        with pytest.raises(TypeError, match="'measured'"):
            build(measured=1)

    def test_missing(self):
        with pytest.raises(TypeError, match=r"pretrain\(\) .*arguments 'dataset', 'output_dir'"):
            build_arguments((Images, Training), {}, function="pretrain")

    def test_alias_beside_its_argument(self, recipe):
        with pytest.raises(TypeError, match="'max_steps'"):
            build(max_steps=1, max_train_steps=2)
        with pytest.raises(SiTError, match="max_steps twice"):
            build(recipe("max_steps: 1\nmax_train_steps: 2\n"))

    @pytest.mark.parametrize("line", ["learning_rat: 1", "yes: 1", "3: 1"])
    def test_unknown_key(self, recipe, line):
        with pytest.raises(SiTError, match=r"recipe\.yaml has an unknown key") as error:
            build(recipe(line))
        assert error.value.argument == "recipe"
        assert ("did you mean learning_rate?" in str(error.value)) == line.startswith("learning")

    def test_value_of_the_wrong_type(self, recipe):
        for arguments in ((recipe("max_steps: many"), {}), (None, {"max_steps": "many"})):
            with pytest.raises(SiTError) as error:
                build(arguments[0], **arguments[1])
            assert error.value.argument == "max_steps" and "'many'" in str(error.value)


GOOD = [
    (2**63 - 1, int, 2**63 - 1),  # a float knows no such number
    (str(2**53 + 1), int, 2**53 + 1),
    (YesOrNo("off"), bool, False),
    (YesOrNo("on"), bool | None, True),
    (YesOrNo("no"), bool | str, False),
    (YesOrNo("no"), str | dict | None, "no"),
    (YesOrNo("no"), int | str | None, "no"),
    (YesOrNo("no"), list[str], ["no"]),
    ([YesOrNo("no"), "on"], list[str] | None, ["no", "on"]),
    ([YesOrNo("on"), YesOrNo("off")], list[bool], [True, False]),
    (YesOrNo("Off"), Literal["no", "bf16"] | None, "no"),
    (YesOrNo("on"), Literal["on", "off"], "on"),
    (YesOrNo("Off"), Literal["none", "noise"], "none"),
    (False, Literal["none", "noise"], "none"),
    (YesOrNo("Off"), IntervalStrategy | str, "no"),
    ("1e-4", float, 1e-4),
    (1, float, 1.0),
    ("inf", float, float("inf")),
    (np.float32(0.5), float, 0.5),
    ("10", int, 10),
    (2.0, int, 2),
    (np.int64(3), int, 3),
    (True, bool, True),
    ("true", bool, True),
    ("false", bool, False),
    ("no", bool, False),
    (0, bool, False),
    (np.bool_(True), bool, True),
    ("a", str, "a"),
    (7, str, "7"),
    (False, str, "no"),
    (Path("a/b"), str, "a/b"),
    (datetime.date(2024, 1, 31), str, "2024-01-31"),
    (None, int | None, None),
    (None, Optional[int], None),  # noqa: UP045
    ("3", int | None, 3),
    ("3", Union[int, None], 3),  # noqa: UP007
    (False, Literal["no", "bf16"], "no"),
    ("bf16", Literal["no", "bf16"], "bf16"),
    (None, Literal["a"] | None, None),
    (2, Literal[1, 2], 2),
    (["1e-4", 1], list[float], [1e-4, 1.0]),
    ((1, 2), list[int], [1, 2]),
    ("knn", list[str], ["knn"]),
    ([], list[str], []),
    (["knn"], list[str] | None, ["knn"]),
    ("a", list[Literal["a", "b"]], ["a"]),
    ({"a": 1}, dict, {"a": 1}),
    ({"a": 1}, dict | str, {"a": 1}),
    ("a", Path, "a"),
    (False, str | dict, "no"),
    (False, bool | str, False),
    (["0.5%", 3, "4e3"], list[Level], ["0.5%", 3.0, 4000.0]),
]

BAD = [
    ("low", Level),
    (["0%", {}], list[Level]),
    ("abc", float),
    (None, float),
    (True, float),
    ([1.0], float),
    (2.5, int),
    ("2.5", int),
    (False, int),
    (float("inf"), int),
    (float("nan"), int),
    ("maybe", bool),
    (2, bool),
    (None, bool),
    (None, str),
    (True, str),
    ([], str),
    ({}, str),
    (True, Literal["no", "bf16"]),
    (False, Literal["yes"]),
    (True, Literal[1, 2]),
    ([], Literal["a"]),
    (None, Literal["a"]),
    (["a"], list[int]),
    ([None], list[str]),
    (None, list[str]),
]


class TestCoerce:
    @pytest.mark.parametrize(("value", "hint", "expected"), GOOD)
    def test_value_in_the_type(self, value, hint, expected):
        found = coerce("name", value, hint)
        assert found == expected and type(found) is type(expected)

    @pytest.mark.parametrize(("value", "hint"), BAD)
    def test_no_value_of_the_type(self, value, hint):
        with pytest.raises(SiTError) as error:
            coerce("name", value, hint)
        assert error.value.argument == "name"


class TestTransformersArguments:
    """The fields of `TrainingArguments`, which fine-tuning inherits: strings as annotations, enums, unions."""

    def test_values(self, tmp_path, recipe):
        path = recipe("learning_rate: 1e-4\neval_strategy: no\nbf16: false\nmax_train_steps: 12\nreport_to: none\n")
        (arguments,) = build_arguments(
            (transformers.TrainingArguments,), {"output_dir": tmp_path / "out", "use_cpu": True, "seed": 3.0}, path
        )
        assert arguments.output_dir == str(tmp_path / "out")
        assert (arguments.learning_rate, arguments.max_steps, arguments.seed) == (1e-4, 12, 3)
        assert arguments.eval_strategy == "no" and arguments.bf16 is False and arguments.report_to == []

    def test_mistakes(self):
        with pytest.raises(TypeError, match="did you mean learning_rate"):
            build_arguments((transformers.TrainingArguments,), {"learnin_rate": 1})
        with pytest.raises(SiTError) as error:
            build_arguments((transformers.TrainingArguments,), {"output_dir": "out", "max_steps": "many"})
        assert error.value.argument == "max_steps"


class TestNames:
    def test_alias(self):
        assert argument_name("max_train_steps", ["max_steps"]) == "max_steps"
        assert argument_name("max_train_steps", ["max_steps", "max_train_steps"]) == "max_train_steps"
        assert argument_name("max_train_steps", ["other"]) == "max_train_steps"
        assert argument_name("seed", ["other"]) == "seed"

    def test_did_you_mean(self):
        assert did_you_mean("sed", {"seed": 1}) == "; did you mean seed?"
        assert did_you_mean("xyz", ["seed"]) == ""
