"""Comparing methods: equal budgets, a search that sees no test image, a table with every row, and a second call that goes on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import yaml

from modeling_sit import SiTConfig
from modeling_sit.data.sources import load_images
from modeling_sit.experiments import compare_methods as module
from modeling_sit.experiments import comparison_runs, method_runs, pretraining_runs
from modeling_sit.experiments.budgets import StepSize
from modeling_sit.experiments.compare_methods import MethodsComparisonResult, compare_methods
from modeling_sit.experiments.compared_images import compared_images
from modeling_sit.experiments.comparison_runs import announce
from modeling_sit.experiments.method_runs import MethodRuns, recipe_of
from modeling_sit.experiments.methods_arguments import PROFILES, MethodsComparisonArguments
from modeling_sit.experiments.pretraining_runs import Diverged, PlannedRun
from modeling_sit.experiments.trials import Trial
from modeling_sit.pretraining.checkpoints import read_output_state
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.metric_logger import NonFiniteLoss
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted

OVERRIDES = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"
FINETUNING = {"eval_strategy": "no", "save_strategy": "no", "use_cpu": True, "per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def digits():
    """100 images of train, 40 of test, one of which is of train, too."""
    images = load_images("digits", labels="required", validation_split="test")
    test = datasets.concatenate_datasets([images.validation.select(range(39)), images.train.select([0])])
    return datasets.DatasetDict(train=images.train.select(range(100)), test=test)


@pytest.fixture
def recipes(tmp_path):
    """Recipes of a tiny model, and of a short fine-tuning."""
    values = {
        "pretraining_recipe": {"config_overrides": OVERRIDES, "preview_steps": 0},
        "finetuning_recipe": FINETUNING,
    }
    paths = {}
    for name, recipe in values.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(recipe))
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def compare(digits, recipes, forget_accelerators, tmp_path):
    """Compare tiny models on a few digits, without any search."""

    def run(methods=("sit", "simclr"), dataset=None, **arguments) -> MethodsComparisonResult:
        given = {
            **recipes,
            "seeds": [0],
            "label_fractions": [1.0],
            "max_steps": [1],
            "budget_value": 2,
            "tune": False,
            "tune_finetuning": "no",
            "per_device_train_batch_size": 16,
            "protocols": ["knn"],
            "raw_pixels": ["knn"],
            **arguments,
        }
        return compare_methods(list(methods), dataset or digits, tmp_path / "out", **given)

    run.output_dir = tmp_path / "out"
    return run


@pytest.fixture
def method_runs_of(digits, recipes, forget_accelerators, tmp_path):
    """The pretraining runs of a comparison of tiny models."""

    def make(dataset=None, **arguments) -> MethodRuns:
        given = {"budget_value": 2, "per_device_train_batch_size": 16, "seeds": [0, 1], **recipes, **arguments}
        arguments = MethodsComparisonArguments(dataset=dataset or digits, output_dir=str(tmp_path / "out"), **given)
        return MethodRuns(arguments, compared_images(arguments), announce)

    return make


def rows_of(table: str) -> dict[str, dict[str, str]]:
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")
    ]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_a_comparison_that_is_cut_off_goes_on_and_its_table_has_all(compare, monkeypatch, capsys):
    def interrupted(*arguments, is_told):
        raise TrainingInterrupted(15, "after step 3")

    with monkeypatch.context() as patch:
        patch.setattr(comparison_runs, "run_finetuning", interrupted)
        with pytest.raises(TrainingInterrupted, match="the same comparison goes on"):
            compare()
    kept = [*compare.output_dir.glob("pretrained-*/model.safetensors"), *compare.output_dir.glob("frozen-*/*.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 2 + 3
    capsys.readouterr()
    result = compare()
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    # Two methods and scratch; all else is there.
    assert "[1 of 3] Fine-tuning with 100% of the labels, scratch, seed 0" in capsys.readouterr().out

    rows = rows_of(result.tables[0])
    assert list(rows) == ["raw pixels, kNN", "untrained encoder", "from scratch", "sit", "simclr"]
    assert list(rows["sit"]) == ["", "kNN", "all labels", "epochs", "encoder tokens", "seconds"]
    assert result.tables[0].startswith(
        "Each method is pretrained for 2 steps, with each seed. Accuracy on 40 images of test"
    )
    for method in ("sit", "simclr"):
        folder = compare.output_dir / f"pretrained-{method}-seed0"
        settings = read_output_state(folder).determined_by
        tokens = 2 * 16 * METHODS[method].encoder_tokens(settings)
        assert (settings["method"], settings["seed"], settings["num_images"]) == (method, 0, 100)
        assert rows[method]["encoder tokens"] == f"{tokens / 1e3:.3g} k"
        assert rows[method]["epochs"] == f"{2 * 16 / 96:.1f}" and float(rows[method]["seconds"]) >= 0
        frozen = json.loads((compare.output_dir / f"frozen-{method}-seed0" / "eval_results.json").read_text())["knn"]
        assert rows[method]["kNN"] == f"{100 * frozen['accuracy']:.1f} %"
        assert frozen["model_name_or_path"] == str(folder) and not frozen["from_scratch"]
    values = {cell.start: cell.values for cell in result.fine_tuned}
    assert set(values) == {"scratch", "sit", "simclr"} and len(result.ranking) == 2
    assert result.ranking[1].startswith("1 image is in test and in train too, byte for byte, such as ")
    saved = json.loads((compare.output_dir / "results.json").read_text())
    assert saved["budget"] == {"kind": "steps", "value": 2} and len(saved["fine_tuned"]) == 3
    for name in ("results.md", "results.png", "embeddings.png", "embeddings.html"):
        assert (compare.output_dir / name).stat().st_size > 100
    assert "features of untrained, sit, simclr" in (compare.output_dir / "embeddings.html").read_text()

    with pytest.raises(SiTError, match="another budget_value"):
        compare(budget_value=3)


def test_the_search_sees_no_test_image(method_runs_of, digits, monkeypatch):
    """Nor does pretraining: those images cannot be opened. The run of the best rate becomes that of the first seed."""
    broken = digits["test"].map(
        lambda row: {"image": {"bytes": b"no image", "path": None}}, features=digits["test"].features
    )
    runs = method_runs_of(datasets.DatasetDict(train=digits["train"], test=broken))
    measure, measured = MethodRuns.held_out_scores, []

    def scores(self, model: Path) -> dict[str, dict[str, float]]:
        if not measured:  # the others take time, and the choice is then up to chance
            assert {name: set(each) for name, each in measure(self, model).items()} == {
                name: {"knn", "linear"} for name in ("token", "mean", "token_mean")
            }
        measured.append((model.name, read_output_state(model).exported))
        best = measured[-1] == ("tuned-sit-rate-x3", "student")
        return {"token": {"knn": 0.1}, "mean": {"knn": 0.9 if best else 0.2}}

    monkeypatch.setattr(MethodRuns, "held_out_scores", scores)
    choice = runs.choose("sit")
    assert measured == [
        *((f"tuned-sit-rate-x{factor}", "student") for factor in ("1", "0.33", "3")),
        ("tuned-sit-rate-x3", "teacher"),
    ]
    usual = runs.plan("sit").base_learning_rate
    assert choice == Trial(float(f"{3 * usual:.6g}"), "student", "mean", {"knn": 0.9})
    folder = runs.pretrain("sit", 0, choice)
    assert not (runs.output_dir / "tuned-sit-rate-x3").exists()
    state = read_output_state(folder)
    assert state.exported == "student" and state.settings["base_learning_rate"] == choice.base_learning_rate
    # Nothing is trained again.
    for each in (method_runs, pretraining_runs):
        monkeypatch.setattr(each, "pretrain", None)
    assert runs.choose("sit") == choice and runs.pretrain("sit", 0, choice) == folder


@pytest.fixture
def searched(method_runs_of, monkeypatch):
    """A search whose runs are not run: a trial's score follows from its factor and weights."""

    def search(method: str, score_of, diverges=()) -> list[Trial]:
        runs = method_runs_of(tune=True)
        monkeypatch.setattr(runs, "plan", lambda method: PlannedRun(StepSize(1, 1, 1), 1e-3))
        monkeypatch.setattr(method_runs, "write_results", lambda folder, results: found.update(results))
        monkeypatch.setattr(method_runs, "results_of", lambda folder, names, run: run(names) or found)
        found, now = {}, {}

        def train(run_dir, method, seed, own):
            rate = own.get("base_learning_rate", 1e-3)
            if rate in diverges:
                raise Diverged("loss not finite at step 3")
            now.update(base_learning_rate=rate, export=own.get("export", "student"))

        class State:
            settings = now
            exported = property(lambda self: now["export"])

        monkeypatch.setattr(runs, "_run", train)
        monkeypatch.setattr(method_runs, "read_output_state", lambda folder: State())
        monkeypatch.setattr(runs, "held_out_scores", lambda folder: {"token": {"knn": score_of(**now)}})
        return runs

    return search


def test_a_rate_that_diverges_is_out(searched):
    runs = searched("simclr", lambda base_learning_rate, export: base_learning_rate, diverges=(3e-3,))
    assert runs.choose("simclr").base_learning_rate == 1e-3
    assert [trial.scores for trial in runs.search("simclr")][-1] == {}  # no teacher to measure


def test_no_rate_is_left(searched):
    runs = searched("sit", lambda **_: 1.0, diverges=(1e-3, 3e-3, 0.000333333))
    with pytest.raises(Diverged, match="not finite with any learning rate"):
        runs.choose("sit")


def test_others_go_on_where_a_seed_and_a_method_diverge(compare, monkeypatch, capsys):
    pretrain, diverging = pretraining_runs.pretrain, {("sit", 0), ("sit", 1), ("simclr", 1)}

    def diverge(*, method, seed, **arguments):
        if (method, seed) in diverging:
            raise SiTError("loss not finite at step 2") from NonFiniteLoss(0, ["loss"])
        return pretrain(method=method, seed=seed, **arguments)

    monkeypatch.setattr(pretraining_runs, "pretrain", diverge)
    arguments = {"methods": ("sit", "simclr", "mae"), "seeds": [0, 1]}
    result = compare(**arguments)
    assert list(result.failed) == ["sit", "simclr, seed 1"] and "step 2" in result.failed["sit"]
    assert {cell.start: len(cell.values) for cell in result.fine_tuned} == {"scratch": 2, "simclr": 1, "mae": 2}
    assert {name: len(each) for name, each in result.frozen.items()} == {"scratch": 2, "simclr": 1, "mae": 2}
    assert result.tables[0].lower().endswith("simclr: 1 of 2 seeds.")
    assert "sit" not in rows_of(result.tables[0]) and "Not measured: sit: loss" in result.ranking[0]
    # It would diverge again, so it does not start again; the other seed of it was not tried.
    monkeypatch.setattr(pretraining_runs, "pretrain", None)
    assert compare(**arguments).failed == result.failed
    with pytest.raises(SiTError) as error:
        compare(methods=("sit",), seeds=[0])
    assert error.value.argument == "pretraining_recipe" and "step 2" in error.value.problem


def test_methods_are_ranked_by_the_seeds_that_all_have():
    """The third is the best of SiT, and SimCLR has diverged with it."""

    def cell(start: str, **values: float) -> comparison_runs.FineTuned:
        seeds = [int(name.removeprefix("seed")) for name in values]
        return comparison_runs.FineTuned(0.1, start, "accuracy", list(values.values()), 100, seeds)

    scratch, sit = cell("scratch", seed0=0.2, seed1=0.2, seed2=0.2), cell("sit", seed0=0.4, seed1=0.4, seed2=1.0)
    seen = []
    pixels = [
        comparison_runs.OfPixels(0.1, "knn", [0.9, 0.9, 0.9], []),
        comparison_runs.OfPixels(0.1, "svm", [0.6], []),
    ]
    runs = SimpleNamespace(
        hits=lambda cell: seen.append((cell.start, cell.seeds)),
        pixel_hits=lambda cell: None,
        arguments=SimpleNamespace(seeds=[0, 1, 2]),
    )
    text = module._ranking(0.1, [scratch, sit, cell("simclr", seed0=0.5, seed1=0.5)], pixels, runs)
    assert "simclr is best" in text and "50.0 %" in text
    assert "RBF SVM: 60.0 %" in text  # the other one's values are of all seeds
    assert seen == [(start, [0, 1]) for start in ("scratch", "sit", "simclr")]
    text = module._ranking(0.1, [scratch, cell("sit", seed0=0.4), cell("simclr", seed1=0.5)], pixels, runs)
    assert "no seed is left" in text


def test_the_teacher_is_measured_with_the_best_rate(searched):
    runs = searched("sit", lambda base_learning_rate, export: base_learning_rate * (2 if export == "teacher" else 1))
    trials = runs.search("sit")
    assert [(trial.base_learning_rate, trial.export) for trial in trials] == [
        *((rate, "student") for rate in (1e-3, 0.000333333, 3e-3)),
        (3e-3, "teacher"),
    ]
    assert runs.choose("sit") == trials[-1]
    assert searched("sit", lambda **_: 0.5).choose("sit") == Trial(1e-3, "student", "token", {"knn": 0.5})  # of equals


def test_budgets_become_lengths_by_what_a_step_takes(method_runs_of):
    """Of SiT on views of 16 pixels in patches of 4: 17 tokens in two views, three times for the student, once for the teacher."""
    runs = method_runs_of(budget="tokens", budget_value=16 * 2 * 17 * 4 * 5.5)
    assert runs.plan("sit").step == StepSize(images=16, tokens=2 * 17 * 4, images_per_epoch=96)
    assert runs.length("sit") == {"max_steps": 5}
    assert method_runs_of(budget="seconds", budget_value=90.5).length("sit") == {"time_budget": "90.5s"}
    assert method_runs_of(budget="seconds", budget_value=200).length("sit") == {"time_budget": "200s"}


def test_a_size_of_the_model_comes_before_the_recipe(method_runs_of, monkeypatch):
    planned = []
    monkeypatch.setattr(
        method_runs, "plan_run", lambda given: planned.append(given) or PlannedRun(StepSize(16, 5, 96), 1)
    )
    method_runs_of(model_size="micro", budget="epochs").length("sit")
    (given,) = planned
    assert given["model_size"] == "micro"
    assert given["config_overrides"] == "decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"


def test_a_recipe_is_for_all_methods(tmp_path):
    path = tmp_path / "recipe.yaml"
    given = {"teacher_momentum": 0.9, "weight_decay": 0.1, "max_steps": 9, "dataset": "x"}
    path.write_text(
        yaml.safe_dump({**given, "config_overrides": "decoder_hidden_size=8,hidden_size=32,image_size=[16,32]"})
    )
    assert recipe_of(str(path), "sit") == {
        "teacher_momentum": 0.9,
        "weight_decay": 0.1,
        "config_overrides": "decoder_hidden_size=8,hidden_size=32,image_size=[16, 32]",
    }
    assert recipe_of(str(path), "simclr") == {
        "weight_decay": 0.1,
        "config_overrides": "hidden_size=32,image_size=[16, 32]",
    }
    path.write_text("learning_speed: 1")
    with pytest.raises(SiTError) as error:
        recipe_of(str(path), "sit")
    assert error.value.argument == "pretraining_recipe"


@pytest.mark.parametrize(
    ("arguments", "argument", "message"),
    [
        ({"methods": ["sit,simcrl"]}, "methods", r"no method 'simcrl'.*did you mean simclr\?"),
        ({"methods": ["sit,sit"]}, "methods", "twice"),
        ({"methods": ["none"]}, "methods", "names none"),
        ({"budget_value": 0}, "budget_value", "above 0, got 0"),
        ({"budget": "tokens", "budget_value": -5}, "budget_value", "above 0"),
        ({"budget_value": 0.5}, "budget_value", "a step at least, got 0.5"),
        ({"budget": "epochs"}, "budget_value", "epochs have no default"),
        ({"seeds": [1, 1]}, "seeds", "twice"),
    ],
)
def test_values_that_cannot_be(arguments, argument, message):
    with pytest.raises(SiTError, match=message) as error:
        MethodsComparisonArguments(dataset="d", output_dir="o", **arguments)
    assert error.value.argument == argument


def test_one_class_and_a_batch_larger_than_the_dataset(compare, digits):
    zeros = digits["train"].filter(lambda label: label == 0, input_columns="label")
    with pytest.raises(SiTError, match="one class"):
        compare(dataset=datasets.DatasetDict(train=zeros, test=zeros))
    with pytest.raises(
        SiTError, match=r"100 images, fewer than one batch of 128.*`per_device_train_batch_size` to 100"
    ):
        compare(per_device_train_batch_size=128)


def test_what_a_method_cannot_do_is_known_before_the_others_run(compare, tmp_path):
    (tmp_path / "mean.yaml").write_text(yaml.safe_dump({"config_overrides": f"{OVERRIDES},pooling=mean"}))
    with pytest.raises(SiTError, match="ibot: pooling=mean"):
        compare(["sit", "ibot"], pretraining_recipe=str(tmp_path / "mean.yaml"))
    assert not list(tmp_path.rglob("pretrained-*"))


def test_no_image_can_be_held_out(compare, digits):
    rows = [digits["train"]["label"].index(label) for label in range(3)]
    test = digits["test"].filter(lambda label: label < 3, input_columns="label")
    single = datasets.DatasetDict(train=digits["train"].select(rows), test=test)
    with pytest.raises(SiTError) as error:
        compare(dataset=single, tune=True)
    assert error.value.argument == "tune" and not compare.output_dir.exists()


def test_too_few_seconds(compare, monkeypatch):
    def refuse(*arguments):
        raise SiTError("6 seconds are too short", argument="time_budget")

    monkeypatch.setattr(method_runs, "pretrain_in", refuse)
    with pytest.raises(SiTError, match="too short") as error:
        compare(budget="seconds", budget_value=6, max_steps=None)
    assert error.value.argument == "budget_value"


def test_defaults(monkeypatch):
    arguments = MethodsComparisonArguments(dataset="d", output_dir="o")
    assert arguments.methods == list(METHODS) and arguments.seeds == [0, 1, 2]
    assert arguments.label_fractions == [0.01, 0.1, 1.0] and arguments.amount in (
        profile["steps"] for profile in PROFILES.values()
    )
    assert arguments.tunes("scratch") and not arguments.tunes("sit")
    assert replace(arguments, tune_finetuning="all").tunes("sit")


def test_scratch_says_how_long_all_train(compare, monkeypatch):
    """Each method with its usual rate."""
    seen = []

    def fine_tune(groups, training, hub, is_told):
        seen.append((Path(training.output_dir).name, training.max_steps, training.learning_rate))
        assert groups.drop_path_rate == 0
        comparison_runs.write_results(Path(training.output_dir), {"finetune": {"accuracy": 0.5, "num_validation": 40}})

    found = comparison_runs.Choice(0.01, 7, "some")
    monkeypatch.setattr(comparison_runs.Runs, "choose", lambda self, *cell: self.chosen.setdefault(cell, found))
    monkeypatch.setattr(comparison_runs, "run_finetuning", fine_tune)
    monkeypatch.setattr(module, "write_maps", lambda *arguments: None)
    given = {"tune_finetuning": "scratch", "max_steps": None, "protocols": ["none"], "raw_pixels": ["none"]}
    result = compare(["simclr"], **given)
    assert seen == [("finetuned-scratch-100%-seed0", 7, 0.01), ("finetuned-simclr-100%-seed0", 7, None)]
    assert rows_of(result.tables[-1])["simclr"]["learning rate"] == "usual"


def test_all_methods_are_fine_tuned_with_one_stochastic_depth(tmp_path):
    model, output_dir = tmp_path / "model", tmp_path / "out"
    SiTConfig(drop_path_rate=0.1).save_pretrained(model)
    assert module._stochastic_depth(output_dir, str(model), {}) == {"drop_path_rate": 0.1}
    assert module._stochastic_depth(output_dir, str(model), {"drop_path_rate": 0.3}) == {}
    # As those before, if a method is added in front of them.
    SiTConfig(drop_path_rate=0).save_pretrained(output_dir / "finetuned-scratch-10%-seed0")
    assert module._stochastic_depth(output_dir, str(model), {}) == {"drop_path_rate": 0}


def test_where_nothing_can_be_held_out_all_train_as_long_as_the_search_might(method_runs_of):
    arguments = method_runs_of(methods=["sit"]).arguments
    scratch = comparison_runs.Start({0: "m"}, from_scratch=True, finetuning={"max_tuning_steps": 9})
    starts = {"scratch": scratch, "sit": comparison_runs.Start({0: "m"})}
    runs = comparison_runs.Runs(arguments, None, starts)
    runs.choose = lambda *cell: None
    module._settle_length(runs, 0.01)
    assert {cell: choice.max_steps for cell, choice in runs.chosen.items()} == {("scratch", 0.01): 9, ("sit", 0.01): 9}
    runs.chosen.clear()
    arguments.max_steps = [5]  # a length that is given stays
    module._settle_length(runs, 0.01)
    assert not runs.chosen


def test_as_a_program(one_line_error, tmp_path):
    given = ["--dataset", "digits", "--output_dir", tmp_path / "out"]
    assert one_line_error("compare_methods", *given, "--methods", "sitt", code=2).startswith(
        "--methods: no method 'sitt'"
    )
    assert one_line_error("compare_methods", *given, "--budget_value", 0, code=2).startswith(
        "--budget_value: must be above 0"
    )
