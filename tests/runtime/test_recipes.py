"""Recipes: by path or by the name of a shipped one."""

import json

import pytest
import yaml

from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import FOLDER, YesOrNo, read_recipe, shipped_recipes


def test_shipped_ones_by_name():
    names = shipped_recipes()
    assert {"digits", "flowers", "imagenet1k", "flowers_finetune"} <= set(names)
    for name in names:
        assert read_recipe(name) == yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) != {}


def test_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-4\nprecision: no\n# größer\n", encoding="utf-8")
    assert read_recipe(path) == read_recipe(str(path)) == {"learning_rate": "1e-4", "precision": "no"}


def test_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("seed: 1")
    assert read_recipe("~/mine.yaml") == {"seed": 1}


def test_a_file_comes_before_a_shipped_one_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("seed: 1")
    assert read_recipe("digits") == {"seed": 1}
    (tmp_path / "flowers").mkdir()
    assert read_recipe("flowers") == yaml.safe_load((FOLDER / "flowers.yaml").read_text())


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "No", "OFF", "Yes", "ON"])
def test_bare_words_stay_words(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"a: {text}\nb: [{text}]\nc: '{text}'\nd: {{{text}: {text}, e: [{text}]}}\n{text}: 1\n")
    recipe, boolean = read_recipe(path), yaml.safe_load(text)
    assert recipe["a"] == recipe["b"][0] == recipe["c"] == text
    assert type(recipe["a"]) is type(recipe["b"][0]) is YesOrNo and type(recipe["c"]) is str
    assert recipe["a"].boolean is recipe["b"][0].boolean is boolean
    assert recipe["d"] == {text: boolean, "e": [boolean]} and recipe[text] == 1
    assert json.loads(json.dumps(recipe)) == recipe


@pytest.mark.parametrize("text", ["true", "false", "True", "FALSE"])
def test_true_and_false_are_booleans(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"a: {text}\nb: '{text}'\n")
    assert read_recipe(path) == {"a": text.lower() == "true", "b": text}


def test_what_a_word_stands_for():
    assert [YesOrNo(text).word(["no", "fp16"]) for text in ("no", "No", "off", "yes")] == ["no", "no", "no", "yes"]
    assert [YesOrNo(text).word(["off", "no"]) for text in ("off", "OFF", "no")] == ["off", "off", "no"]
    assert YesOrNo("on").word(["yes", "no"]) == "yes" and YesOrNo("On").word() == "On"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "No such file"),
        (b"a: [1", "not valid YAML"),
        (b"a: \xff", "not valid YAML"),
        (b"", "key: value"),
        (b"- a", "key: value"),
    ],
)
def test_mistakes(tmp_path, content, fact):
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SiTError, match=fact) as error:
        read_recipe(path)
    assert error.value.argument == "recipe" and "mine.yaml" in error.value.problem
    assert "\n" not in str(error.value)
    assert ("flowers" in str(error.value)) == (content is None)


def test_folder(tmp_path):
    with pytest.raises(SiTError, match="directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "a:\n  b: 1\n  b: 2\n"])
def test_a_key_that_is_there_twice(tmp_path, text):
    """YAML would keep the last one."""
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SiTError, match="is there twice") as error:
        read_recipe(tmp_path / "mine.yaml")
    assert error.value.argument == "recipe"
