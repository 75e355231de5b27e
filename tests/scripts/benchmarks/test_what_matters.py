"""The benchmark of what matters most."""

import what_matters
from what_matters import CHANGES, WhatMattersArguments, measure_changes, with_change

from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.recipes import read_recipe


def flags_of(name: str, tmp_path) -> PretrainingFlags:
    given = {"dataset": "digits", "output_dir": tmp_path, **with_change(name)}
    return PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, what_matters.RECIPE, "pretrain"))


def test_each_change_changes_what_it_says_and_nothing_else(tmp_path):
    recipe = flags_of("the recipe", tmp_path).settings()
    for name, change in CHANGES.items():
        changed = flags_of(name, tmp_path).settings()
        assert {key for key in recipe if recipe[key] != changed[key]} == set(change), name


def test_overrides_are_added_to_those_of_the_recipe():
    overrides = with_change("positions: fixed, sine and cosine")["config_overrides"]
    assert overrides == read_recipe("digits")["config_overrides"] + ",position_embedding_type=sincos"


def test_a_run_is_measured_once(tmp_path):
    arguments = WhatMattersArguments(output_dir=str(tmp_path), max_steps=2, changes=[0, 11])
    results = measure_changes(arguments)
    assert [result["change"] for result in results] == ["the recipe", "contrast alone"]
    assert all(0 <= result[protocol] <= 1 for result in results for protocol in ("knn", "fewshot"))
    assert "| contrast alone |" in (tmp_path / "results.md").read_text()
    before = (tmp_path / "run-0-seed0" / "model.safetensors").stat().st_mtime_ns
    assert measure_changes(arguments) == results
    assert (tmp_path / "run-0-seed0" / "model.safetensors").stat().st_mtime_ns == before
