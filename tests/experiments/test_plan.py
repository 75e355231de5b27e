"""Plans: the cells that a file describes, what is wrong with one, and those that the package ships."""

import re
from pathlib import Path

import datasets
import pytest
import yaml

from modeling_sit.experiments.ablation_arguments import AblationArguments, settle_measures
from modeling_sit.experiments.ablation_pretrainings import Pretrainings
from modeling_sit.experiments.budgets import StepSize
from modeling_sit.experiments.compared_images import ComparedImages
from modeling_sit.experiments.plan import FOLDER, KEYS, choose_cells, merged, read_plan
from modeling_sit.experiments.pretraining_runs import PlannedRun
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import shipped_names

SHIPPED = shipped_names(FOLDER)


@pytest.fixture
def plan_of(tmp_path):
    """Read a plan of these values, or of this text."""

    def read(values):
        text = values if isinstance(values, str) else yaml.safe_dump({"question": "Which?", **values}, sort_keys=False)
        (tmp_path / "mine.yaml").write_text(text)
        return read_plan(tmp_path / "mine.yaml")

    return read


def test_cells_by_name(plan_of):
    plan = plan_of({"cells": {"a": {"corruption": "noise"}, "b": {"length": 0.5, "evaluate": {"pooling": "mean"}}}})
    assert (plan.name, plan.question, plan.claim) == ("mine", "Which?", None)
    a, b = plan.cells
    assert (a.name, dict(a.pretrain), a.length) == ("a", {"corruption": "noise"}, 1.0)
    assert (b.name, dict(b.pretrain), b.length, b.evaluate) == ("b", {}, 0.5, {"pooling": "mean"})
    assert plan.factors == {"cell": ["a", "b"]}


def test_factors_are_combined(plan_of):
    overrides = {"L1": {}, "L2": {"config_overrides": "reconstruction_norm=l2"}}
    pixels = {"all": {"config_overrides": "reconstruction_region=all", "max_train_steps": 3}}
    plan = plan_of({"factors": {"error": overrides, "pixels": pixels, "reconstruction_weight": [1, 5]}})
    assert [cell.name for cell in plan.cells] == [
        f"{error}/all/reconstruction_weight={weight}" for error in ("L1", "L2") for weight in (1, 5)
    ]
    assert plan.cells[3].place == {"error": "L2", "pixels": "all", "reconstruction_weight": "5"}
    assert plan.cells[3].pretrain == {
        "config_overrides": "reconstruction_norm=l2,reconstruction_region=all",
        "max_steps": 3,
        "reconstruction_weight": 5,
    }


def test_grids_are_put_one_after_the_other(plan_of):
    whole, parts = {"run": {"whole": {}}, "steps": {"1": {}}}, {"run": {"part": {}}, "steps": {"0.5": {"length": 0.5}}}
    plan = plan_of({"grids": [whole, parts]})
    assert [cell.name for cell in plan.cells] == ["whole/1", "part/0.5"]
    assert plan.factors == {"run": ["whole", "part"], "steps": ["1", "0.5"]}


def test_later_arguments_come_before_earlier_ones():
    first = {"max_steps": 5, "corruption": "noise", "config_overrides": "a=1"}
    assert merged(first, {"num_train_epochs": 2}, {"config_overrides": "b=2", "corruption": "zeros"}) == {
        "num_train_epochs": 2,
        "corruption": "zeros",
        "config_overrides": "a=1,b=2",
    }


def test_a_later_size_comes_before_earlier_overrides():
    first = {"config_overrides": "hidden_size=8,drop_path_rate=0"}
    assert merged(first, {"model_size": "micro", "config_overrides": "num_hidden_layers=2"}) == {
        "model_size": "micro",
        "config_overrides": "drop_path_rate=0,num_hidden_layers=2",
    }


def test_the_plans_in_the_docs(plan_of):
    page = (Path(__file__).parents[2] / "docs" / "ablations.md").read_text(encoding="utf-8")
    texts = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    first_cells = [[cell.name for cell in plan_of(text).cells][:2] for text in texts]
    assert first_cells == [["usual", "less"], ["10 %/reconstruction_weight=1", "10 %/reconstruction_weight=5"]]
    assert all(set(yaml.safe_load(text)) <= set(KEYS) for text in texts)


def test_some_cells(plan_of):
    plan = plan_of({"cells": {"a": {}, "b": {}, "c": {}}})
    assert [cell.name for cell in choose_cells(plan, ["c", "a"])] == ["a", "c"] and len(choose_cells(plan, None)) == 3
    with pytest.raises(SiTError, match="no cell 'd'") as error:
        choose_cells(plan, ["d"])
    assert error.value.argument == "cells"


CELL = {"cells": {"a": {}}}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"cells": {"a": {"corrupton": "noise"}}}, r"cell a: .*'corrupton'; did you mean corruption\?"),
        ({"cells": {"a": {"corruption": "dust"}}}, "cell a: corruption: 'dust'"),
        ({"cells": {"a": {"method": "simcrl"}}}, r"cell a: .*did you mean simclr\?"),
        ({"cells": {"a": {"method": "mae", "noise_ratio": [0.1, 0.2]}}}, "cell a: noise_ratio: is a setting of sit"),
        ({"cells": {"a": {"seed": 3}}}, "cell a: seed is the same for all cells"),
        ({"cells": {"a": {"length": 0}}}, "cell a: length must be a number above 0"),
        ({"cells": {"a": {"measured_after": 1.5}}}, r"cell a: measured_after must be in \(0, 1\]"),
        ({"cells": {"a": {"length": 2, "max_steps": 5}}}, "cell a: .*say the same"),
        ({"cells": {"a": {"evaluate": {"poling": "mean"}}}}, r"cell a: evaluate has .*did you mean pooling\?"),
        ({"cells": {"a": {"finetune": {"model_name_or_path": "x"}}}}, "cell a: model_name_or_path is the same"),
        ({"cells": {"a, b": {}}}, "'a, b': a comma"),
        ({"cells": ["a"]}, "cells must hold"),
        ({"cells": {}}, "no cells"),
        ({}, "none of cells, factors, grids"),
        ({**CELL, "factors": {}}, "cells and factors"),
        ({**CELL, "colour": 1}, "unknown key 'colour'"),
        ({**CELL, "pretrain": {"learning_speed": 1}}, "`pretrain`: pretrain has no argument 'learning_speed'"),
        ({**CELL, "question": None}, "no `question`"),
        ({"factors": {"speed": [1, 2]}}, "speed has a list of values"),
        ({"grids": [{"x": {"a": {}}}, {"x": {"a": {"length": 2}}}]}, "two cells called 'a'"),
    ],
)
def test_what_cannot_be(plan_of, values, problem):
    with pytest.raises(SiTError, match=problem) as error:
        plan_of(values)
    assert error.value.argument == "plan"


def test_two_cells_of_one_name_in_a_file(plan_of):
    """YAML itself would keep the second one and say nothing."""
    with pytest.raises(SiTError, match=r"'a' is there twice.*line 4") as error:
        plan_of("question: Which?\ncells:\n  a: {corruption: noise}\n  a: {corruption: zeros}\n")
    assert error.value.argument == "plan"


def test_a_plan_that_is_not_there():
    with pytest.raises(SiTError, match="nowhere") as error:
        read_plan("nowhere")
    assert error.value.argument == "plan" and "corruption_kind" in error.value.remedy


def test_shipped_ones():
    assert set(SHIPPED) == {
        *("corruption_kind", "corruption_ratio", "alignment", "tasks", "epochs", "teacher", "weight", "loss"),
        "resolution",
    }


@pytest.fixture
def pretrainings_of(tmp_path):
    """The pretrainings of a shipped plan. No images are opened, and no preset chooses anything."""

    def plan(name: str, profile: str = "full") -> Pretrainings:
        arguments = AblationArguments(plan=name, dataset="d", output_dir=str(tmp_path), profile=profile, steps=32)
        plan = read_plan(name)
        columns = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=[]))
        none = datasets.Dataset.from_dict({"image": [], "label": []}, features=columns)
        images = ComparedImages(none, none, [], "", {"dataset": "d"})
        planned = Pretrainings(plan, arguments, settle_measures(arguments, plan), images)
        planned.planned = lambda name, given: PlannedRun(StepSize(16, 1, 16), 1e-3, 32, 16)
        planned._images_of = lambda fraction: {"dataset": "d"}
        return planned

    return plan


@pytest.mark.parametrize("profile", ["smoke", "full"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_plan_says_what_it_is_and_shares_its_pretrainings(name, profile, pretrainings_of):
    """The header's number of pretrainings is what the plan has, and the arguments of each are accepted by `pretrain`."""
    planned = pretrainings_of(name, profile)
    header = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("# ")]
    told = {
        word: next(line for line in header if line.startswith(f"# {word}")) for word in ("Question", "Runs", "Time")
    }
    assert f"modeling-sit ablate {name} --dataset" in "\n".join(header) and planned.plan.claim
    assert f"{len(planned.all)} pretraining" in told["Runs"]
    for each in planned.all:
        build_arguments(PretrainingFlags.classes(), {**each.given, "output_dir": "o"}, function="pretrain")
        steps = [each.step_of(cell) for cell in each.cells]
        assert all(step == each.num_steps or step % each.export_steps == 0 for step in steps)
        assert [step / each.num_steps for step in steps] == [cell.measured_after for cell in each.cells]


def test_plans_share_the_pretraining_with_the_usual_settings(pretrainings_of):
    usual = {
        "corruption_kind": "noise+replace",  # the default, which it says
        "tasks": "both",
        "loss": "L1/corrupted",
        "epochs": "separate runs/1",
    }
    keys = []
    for name, cell in usual.items():
        planned = pretrainings_of(name)
        (found,) = choose_cells(planned.plan, [cell])
        keys.append(planned.of(found).key)
    assert len(set(keys)) == 1
    every = {each.key for name in SHIPPED for each in pretrainings_of(name).all}
    assert len(every) == sum(len(pretrainings_of(name).all) for name in SHIPPED) - (len(usual) - 1)
