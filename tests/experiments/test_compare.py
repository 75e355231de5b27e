"""Comparing: every run is what it is called, tables say what the runs say, and a second call goes on."""

import csv
import errno
import json
import signal
from math import sqrt
from pathlib import Path
from statistics import mean, stdev, variance

import datasets
import pytest
import yaml
from accelerate import Accelerator

from modeling_sit.data.sources import load_images
from modeling_sit.data.splits import select_label_fraction
from modeling_sit.experiments import comparison_runs as module
from modeling_sit.experiments.compare import ComparisonArguments, ComparisonResult, compare
from modeling_sit.experiments.compared_images import compared_images
from modeling_sit.experiments.verdict import MAY_BE_SEEN, NOT_SEARCHED, ONE_LENGTH, STILL_RISES
from modeling_sit.finetuning import splits, tuning
from modeling_sit.runtime.errors import SiTError, TrainingInterrupted
from modeling_sit.runtime.signals import StopSignal

RECIPE = {"num_train_epochs": 0.05, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True}


@pytest.fixture
def run(save_tiny_sit, tmp_path):
    """Compare a tiny model on digits."""
    save_tiny_sit(tmp_path / "model", num_channels=1)
    run_recipe = tmp_path / "recipe.yaml"

    def run(**arguments) -> ComparisonResult:
        given = {
            "finetuning_recipe": run_recipe,
            "label_fractions": [0.05],
            "seeds": [0],
            "tune": False,
            "protocols": ["none"],
            "raw_pixels": ["none"],
        }
        return compare(tmp_path / "model", "digits", tmp_path / "out", **{**given, **arguments})

    run.output_dir = tmp_path / "out"
    run.write_recipe = lambda **values: run_recipe.write_text(yaml.safe_dump({**RECIPE, **values}))
    run.write_recipe()
    return run


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def main_rows(result: ComparisonResult) -> dict[str, dict[str, str]]:
    """Cells of the main table, by the names of row and column."""
    header, _, *rows = rows_of(result.tables[0])
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def results_in(folder) -> dict:
    return json.loads((folder / "eval_results.json").read_text())


def test_tables_say_what_the_runs_say_and_more_seeds_are_added(run, capsys):
    given = {"num_train_epochs": [0.5], "protocols": ["knn"]}
    run(**given)
    first = {path: path.stat().st_mtime_ns for path in run.output_dir.glob("f*/eval_results.json")}
    assert {path.parent.name for path in first} == {
        "finetuned-scratch-5%-seed0",
        "finetuned-pretrained-5%-seed0",
        "frozen-scratch",
        "frozen-pretrained",
    }
    result = run(**given, seeds=[0, 3])
    num_train = results_in(run.output_dir / "finetuned-scratch-5%-seed0")["finetune"]["num_train"]
    assert 60 < num_train < 85 and f"Labeled images: {num_train} with 5 %." in result.tables[0]
    out = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())

    saved = json.loads((run.output_dir / "results.json").read_text())
    assert saved["seeds"] == [0, 3] and saved["frozen"] == result.frozen
    assert saved["fine_tuned"] == [vars(cell) for cell in result.fine_tuned]
    text = (run.output_dir / "results.md").read_text()
    assert text.strip() in out and text == "\n\n".join([*result.tables, *result.verdict]) + "\n"
    rows = main_rows(result)
    assert list(rows) == ["untrained encoder", "from scratch", "pretrained"]
    assert list(rows["pretrained"]) == ["", "kNN", "5 % of the labels"]  # the model's folder does not say what it cost
    for cell in result.fine_tuned:
        runs = []
        for seed in (0, 3):
            measured = results_in(run.output_dir / f"finetuned-{cell.start}-5%-seed{seed}")["finetune"]
            assert measured["seed"] == seed and measured["label_fraction"] == 0.05
            assert measured["from_scratch"] is (cell.start == "scratch")
            assert (measured["split"], measured["num_train"]) == ("test", pytest.approx(72, abs=6))
            runs.append(measured["accuracy"])
        assert cell.values == runs and cell.metric == "accuracy"
        assert cell.num_images == 360
        name = {"scratch": "from scratch", "pretrained": "pretrained"}[cell.start]
        assert rows[name]["5 % of the labels"] == f"{100 * mean(runs):.1f} ± {100 * stdev(runs):.1f} %"
    frozen_rows = rows_of(result.tables[1])
    accuracy = next(row for row in frozen_rows if row[:2] == ["knn", "accuracy"])
    accuracy = dict(zip(("", "", "scratch", "pretrained"), accuracy, strict=True))
    for start in ("scratch", "pretrained"):
        measured = results_in(run.output_dir / f"frozen-{start}")["knn"]
        assert measured["from_scratch"] is (start == "scratch")
        assert result.frozen[start] == {"knn": measured}
        assert accuracy[start].startswith(f"{100 * measured['accuracy']:.1f} % (")
        name = {"scratch": "untrained encoder", "pretrained": "pretrained"}[start]
        assert rows[name]["kNN"] == f"{100 * measured['accuracy']:.1f} %"
    assert (run.output_dir / "results.png").stat().st_size > 1000


def test_frozen_features_are_of_the_tokens_that_the_model_names(run, save_tiny_sit, tmp_path):
    """A loss of masked image modeling has taught no token."""
    save_tiny_sit(tmp_path / "model", num_channels=1, pooling="mean")
    run(protocols=["knn"])
    assert [results_in(run.output_dir / f"frozen-{start}")["knn"]["pooling"] for start in module.STARTS] == [
        "mean"
    ] * 2


def test_raw_pixels_get_the_labels_of_the_fine_tuned_models(run, monkeypatch):
    seen = []
    classify = module.classify_pixels

    def watched(classifier, train, test, label_names, seed):
        seen.append((classifier, seed, train.rows.tolist(), len(test.labels)))
        return classify(classifier, train, test, label_names, seed)

    monkeypatch.setattr(module, "classify_pixels", watched)
    given = {"raw_pixels": ["knn,svm"], "label_fractions": [0.05, 1.0], "seeds": [0, 2], "max_steps": [1]}
    result = run(**given)
    assert [(classifier, seed) for classifier, seed, *_ in seen] == [
        *(("knn", 0), ("svm", 0), ("knn", 2), ("svm", 2)),  # with 5 % of the labels
        *(("knn", 0), ("svm", 0)),  # with all labels no seed draws anything
    ]
    train = load_images("digits", labels="required").train
    numbered = train.add_column("number", list(range(len(train))))
    for _, seed, rows, num_test in seen[:4]:
        assert rows == select_label_fraction(numbered, 0.05, seed)["number"][:] and num_test == 360
    assert seen[4][2] == list(range(1437))

    cells = {(cell.classifier, cell.label_fraction): cell for cell in result.raw_pixels}
    assert len(cells["knn", 0.05].values) == 2 and len(cells["knn", 1.0].values) == 1
    for cell in result.fine_tuned:
        measured = results_in(run.output_dir / f"finetuned-{cell.start}-{100 * cell.label_fraction:g}%-seed2")
        settings = cells["svm", cell.label_fraction].settings[-1]
        assert settings["num_labeled"] == settings["num_fitted"] == measured["finetune"]["num_train"]
    rows = main_rows(result)
    assert list(rows) == ["raw pixels, kNN", "raw pixels, RBF SVM", "from scratch", "pretrained"]
    values = cells["svm", 0.05].values
    assert (
        rows["raw pixels, RBF SVM"]["5 % of the labels"] == f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f} %"
    )
    assert rows["raw pixels, kNN"]["all labels"] == f"{100 * cells['knn', 1.0].values[0]:.1f} %"
    assert len(result.verdict) == 2 and "loses to the best classifier of raw pixels" in result.verdict[0]

    def hits(path: str) -> list[bool]:
        with (run.output_dir / path).open(newline="") as file:
            return [line["label"] == line["predicted"] for line in csv.DictReader(file)]

    # Each difference is taken image by image.
    pretrained, scratch = (
        [hits(f"finetuned-{start}-100%-seed{seed}/predictions.csv") for seed in (0, 2)]
        for start in ("pretrained", "scratch")
    )
    values = {cell.start: cell.values for cell in result.fine_tuned if cell.label_fraction == 1}
    assert [mean(each) for each in (*pretrained, *scratch)] == [*values["pretrained"], *values["scratch"]]
    svm = hits("raw-pixels/predictions-svm-100%.csv")
    for others in (scratch, [svm, svm]):
        of_seeds = variance([mean(one) - mean(other) for one, other in zip(pretrained, others, strict=True)]) / 2
        images = zip(*pretrained, *others, strict=True)
        of_images = variance([(first + second - third - fourth) / 2 for first, second, third, fourth in images]) / 360
        assert f"noise of {100 * sqrt(of_seeds + of_images):.1f}" in result.verdict[1]
    saved = json.loads((run.output_dir / "results.json").read_text())
    assert saved["raw_pixels"] == [vars(cell) for cell in result.raw_pixels] and saved["verdict"] == result.verdict

    # What is there is not measured again.
    seen.clear()
    path = run.output_dir / "raw-pixels" / "eval_results.json"
    kept = json.loads(path.read_text())
    del kept["svm-5%-seed2"]
    path.write_text(json.dumps(kept))
    assert run(**given).raw_pixels == result.raw_pixels
    assert [(classifier, seed) for classifier, seed, *_ in seen] == [("svm", 2)]


def test_rates_and_steps_are_chosen_once_for_all_seeds(run, monkeypatch):
    monkeypatch.setattr(splits, "MAX_DRAWS", 1)
    monkeypatch.setattr(tuning, "MAX_EXTENSIONS", 0)
    run.write_recipe(num_train_epochs=1, tuning_learning_rates=[1e-3, 1e-1], max_tuning_steps=2, save_strategy="no")
    result = run(tune=True, seeds=[0])
    assert set(result.choices) == {("scratch", 0.05), ("pretrained", 0.05)}
    for (start, fraction), choice in result.choices.items():
        trials = json.loads((run.output_dir / f"tuned-{start}-5%" / "tuning.json").read_text())
        assert choice.learning_rate == trials["choice"]["learning_rate"]
        assert choice.value == trials["choice"]["metric"] and fraction == 0.05
    monkeypatch.setattr(module, "tune", None)  # what is chosen is not chosen again
    again = run(tune=True, seeds=[0, 1])
    assert again.choices == result.choices
    for (start, _), choice in again.choices.items():
        for seed in (0, 1):
            measured = results_in(run.output_dir / f"finetuned-{start}-5%-seed{seed}")["finetune"]
            assert (measured["learning_rate"], measured["steps"]) == (choice.learning_rate, choice.max_steps)
            # All labels of the fraction are learned.
            assert measured["num_train"] == pytest.approx(72, abs=6) and measured["chosen_by"] is None
    header, _, *rows = rows_of(again.tables[-1])
    for row, choice in zip(rows, again.choices.values(), strict=True):
        assert dict(zip(header, row, strict=True))["learning rate"] == f"{choice.learning_rate:g}"


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize(
    ("given", "recipe", "length", "tried"),
    [
        ({"num_train_epochs": [3]}, {"max_steps": 9}, (3, None), [1]),
        ({"max_steps": [5]}, {"num_train_epochs": 9}, (None, 5), [1]),
        ({}, {"num_train_epochs": 9}, (9, None), [1, 2]),
        ({}, {"num_train_epochs": 9}, (9, None), [1]),  # the limit is the first length
    ],
)
def test_a_length_that_is_given_replaces_that_of_the_recipe(run, monkeypatch, tune, given, recipe, length, tried):
    """In the search of the rate, and in the runs; after the search these have its steps alone."""
    seen = []

    def built(self, given):
        groups = build(self, given)
        seen.append((groups[1].num_train_epochs, groups[1].max_steps))
        return groups

    def chosen(*groups):
        trials = [tuning.Trial(0.01, steps, 0.5, 0.5, 0) for steps in tried]
        return tuning.Tuning(0.01, 1, 16, "accuracy", "some", True, trials)

    build = module.Runs._build
    monkeypatch.setattr(module.Runs, "_build", built)
    monkeypatch.setattr(module, "tune", chosen)
    monkeypatch.setattr(module, "run_finetuning", lambda groups, training, hub, is_told: write(training.output_dir))

    def write(folder):
        module.write_results(Path(folder), {"finetune": {"accuracy": 0.5, "num_validation": 360}})

    run.write_recipe(**{"num_train_epochs": None, **recipe})
    result = run(tune=tune, **given)
    searched = length if given else (9, "auto")
    assert seen == [searched, (None, 1)] * 2 if tune else seen == [length] * 2
    assert result.verdict[0].endswith((STILL_RISES if len(tried) > 1 else ONE_LENGTH) if tune else NOT_SEARCHED)


def test_one_label_of_each_class_leaves_none_to_choose_by(run):
    assert run(tune=True, label_fractions=[0.001]).choices == {}


@pytest.mark.parametrize("labels", [[0] * 7 + [1] * 6 + [2], [0, 1, 2]])
def test_few_images_and_classes_of_one(run, tmp_path, monkeypatch, capsys, labels):
    """Fewer than kNN asks for, and a class of which none can be held out."""
    monkeypatch.setattr(splits, "MAX_DRAWS", 1)
    monkeypatch.setattr(tuning, "MAX_EXTENSIONS", 0)
    digits = load_images("digits", labels="required", validation_split="test")
    train, test = (
        each.filter(lambda label: label < 3, input_columns="label") for each in (digits.train, digits.validation)
    )
    rows = [[row for row, label in enumerate(train["label"]) if label == kind] for kind in range(3)]
    chosen = [rows[label][number] for number, label in enumerate(labels)]
    result = compare(
        *(tmp_path / "model", datasets.DatasetDict(train=train.select(chosen), test=test), tmp_path / "few"),
        finetuning_recipe=tmp_path / "recipe.yaml",
        tune=True,
        max_steps=[1],
        seeds=[0],
        label_fractions=[1.0],
        raw_pixels=["knn", "logistic"],
        protocols=["knn", "linear"],
    )
    found = results_in(tmp_path / "few" / "frozen-pretrained")
    assert found["knn"]["k"] == len(labels) and found["linear"]["num_train"] == len(labels)
    assert bool(result.choices) == (len(labels) > 3)
    assert capsys.readouterr().out.count("Choosing rate and steps") == 2


def test_neighbors_are_no_more_than_the_images_that_can_be_read(save_tiny_sit, save_images, tmp_path):
    """A comparison has no `knn_k` that could be lowered; a plan of an ablation has."""
    for number, label in enumerate(("cats", "dogs")):
        save_images(tmp_path / "images" / "train" / label, 10, seed=number)
        save_images(tmp_path / "images" / "test" / label, 2, seed=2 + number)
    (tmp_path / "images" / "train" / "dogs" / "05.png").write_bytes(b"no image")
    model = str(save_tiny_sit(tmp_path / "model"))
    arguments = ComparisonArguments(
        model_name_or_path=model, dataset=str(tmp_path / "images"), output_dir=str(tmp_path / "out"), protocols=["knn"]
    )
    starts = {
        "usual": module.Start({0: model}),
        "planned": module.Start({0: model}, evaluation={"knn_k": 20}),
    }
    runs = module.Runs(arguments, compared_images(arguments), starts)
    assert runs.frozen("usual", 0)["knn"]["k"] == 19
    with pytest.raises(SiTError, match="19 training images") as error:
        runs.frozen("planned", 0)
    assert error.value.argument == "knn_k"


def test_test_images_that_cannot_be_read_do_not_count(run, save_images, tmp_path):
    for number, label in enumerate(("cats", "dogs")):
        save_images(tmp_path / "images" / "train" / label, 4, seed=number)
        save_images(tmp_path / "images" / "test" / label, 5, seed=2 + number)
    (tmp_path / "images" / "test" / "dogs" / "03.png").write_bytes(b"no image")
    result = compare(
        *(tmp_path / "model", tmp_path / "images", tmp_path / "out"),
        finetuning_recipe=tmp_path / "recipe.yaml",
        tune=False,
        seeds=[0],
        label_fractions=[1.0],
        raw_pixels=["none"],
        protocols=["knn"],
    )
    assert {cell.num_images for cell in result.fine_tuned} == {9}
    assert result.frozen["scratch"]["knn"]["num_validation"] == 9
    assert result.tables[0].startswith("Accuracy on 10 images of test (the 9 that can be read), one seed:")


def test_without_a_test_split_the_same_images_are_held_back_from_all_runs(run, tmp_path, capsys):
    digits = load_images("digits", labels="required").train
    result = compare(
        *(tmp_path / "model", digits.select([*range(196), *range(4)]), tmp_path / "held back"),
        finetuning_recipe=tmp_path / "recipe.yaml",
        tune=False,
        max_steps=[1],
        seeds=[0, 1],
        label_fractions=[1.0],
        raw_pixels=["knn"],
        protocols=["knn"],
    )
    num_test = result.fine_tuned[0].num_images
    assert num_test == pytest.approx(40, abs=3) and f"{num_test} images, held back" in result.tables[0]
    runs = [*(tmp_path / "held back").glob("finetuned-*"), tmp_path / "held back" / "frozen-pretrained"]
    measured = [next(iter(results_in(folder).values())) for folder in runs]
    assert {(each["num_train"], each["num_validation"]) for each in measured} == {(200 - num_test, num_test)}
    assert capsys.readouterr().out.count("chosen for this run") == 2  # of the two seeds of a start once
    assert result.verdict[-2] == MAY_BE_SEEN
    assert "byte for byte" in result.verdict[-1] and result.verdict[-1].endswith("; results on them are too good.")
    assert (tmp_path / "held back" / "results.md").read_text().endswith(f"{result.verdict[-1]}\n")
    assert len(runs) == 5 and result.raw_pixels[0].settings[0]["num_labeled"] == 200 - num_test


def test_other_settings_need_another_folder(run):
    run()
    kept = run.output_dir / "finetuned-scratch-5%-seed0" / "eval_results.json"
    before = kept.stat().st_mtime_ns
    run.write_recipe(num_train_epochs=0.1)
    with pytest.raises(SiTError, match=r"another finetuning_recipe.*`overwrite_output_dir=True`") as error:
        run()
    assert error.value.argument == "output_dir"
    assert kept.stat().st_mtime_ns == before
    result = run(overwrite_output_dir=True)
    assert kept.stat().st_mtime_ns > before
    assert result.frozen == {} and len(result.tables) == 1


def test_the_same_weights_with_another_image_processor(run, tmp_path):
    """The features are others; folders of before this was noted go on."""
    run(protocols=["knn"], label_fractions=[0.02])
    settings = json.loads((run.output_dir / "settings.json").read_text())
    del settings["configuration"]
    (run.output_dir / "settings.json").write_text(json.dumps(settings))
    run(protocols=["knn"], label_fractions=[0.02])
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [5.0]}))
    with pytest.raises(SiTError, match="another configuration"):
        run(protocols=["knn"], label_fractions=[0.02])


def test_a_signal_in_the_last_step_of_a_run_ends_the_comparison(tmp_path):
    """The run itself goes on to its end. What came before, in a run of something else, is no reason."""
    for _ in range(2):
        with StopSignal(Accelerator(cpu=True)):
            signal.raise_signal(signal.SIGTERM)
        with module.going_on(tmp_path):
            pass
        run = StopSignal(Accelerator(cpu=True))
        with pytest.raises(TrainingInterrupted, match="goes on there") as interruption, module.going_on(tmp_path), run:
            signal.raise_signal(signal.SIGTERM)
        assert interruption.value.signal is signal.SIGTERM


def test_ctrl_c_where_there_are_no_checkpoints(tmp_path):
    with pytest.raises(TrainingInterrupted, match="goes on there") as interruption, module.going_on(tmp_path):
        raise KeyboardInterrupt
    assert interruption.value.signal is signal.SIGINT


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_told_in_a_line(tmp_path, wrapped):
    def full():
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as problem:
            if wrapped:
                raise SiTError("x cannot be written", remedy="another") from problem
            raise

    with pytest.raises(SiTError, match="cannot be written") as error, module.going_on(tmp_path):
        full()
    assert error.value.argument == "output_dir" and "same command" in error.value.remedy
    with pytest.raises(OSError, match="gone"), module.going_on(tmp_path):
        raise OSError(errno.ENOENT, "gone")


def test_a_run_that_was_cut_off_goes_on(run):
    run.write_recipe(num_train_epochs=1, save_strategy="steps", save_steps=1)
    run()
    run_dir = run.output_dir / "finetuned-pretrained-5%-seed0"
    whole = (run_dir / "eval_results.json").read_bytes()
    (run_dir / "eval_results.json").unlink()
    checkpoints = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    before = [path.stat().st_mtime_ns for path in checkpoints]
    run()
    assert before and [path.stat().st_mtime_ns for path in checkpoints] == before
    assert (run_dir / "eval_results.json").read_bytes() == whole


def test_signal_ends_the_comparison(run, monkeypatch):
    def interrupted(*arguments, is_told):
        raise TrainingInterrupted(15, 'after step 3, and `resume_from_checkpoint="auto"` goes on')

    monkeypatch.setattr(module, "run_finetuning", interrupted)
    with pytest.raises(TrainingInterrupted, match="the same comparison") as interruption:
        run()
    assert interruption.value.signal == 15


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"finetuning_recipe": "none.yaml"}, "finetuning_recipe"),
        ({"validation_split": "holdout"}, "validation_split"),
        ({"dataset_config_name": "x"}, "dataset_config_name"),
    ],
)
def test_mistakes_of_the_runs_name_our_arguments(run, arguments, argument):
    with pytest.raises(SiTError) as error:
        run(**arguments)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("arguments", "argument", "message"),
    [
        ({"label_fractions": [0.1, 1.5]}, "label_fractions", r"\(0, 1\]"),
        ({"seeds": [1, 1]}, "seeds", "twice"),
        ({"num_train_epochs": [1, 2]}, "num_train_epochs", "`label_fractions`"),
        ({"max_steps": [1, 2]}, "max_steps", "`label_fractions`"),
        ({"max_steps": [1], "num_train_epochs": [1]}, "max_steps", "`num_train_epochs`"),
        ({"raw_pixels": ["forest"]}, "raw_pixels", "forest"),
        ({"protocols": ["linear", "knm"]}, "protocols", "'knm'.*did you mean knn"),
        ({"protocols": ["detection"]}, "protocols", "frozen features"),
        ({"seeds": []}, "seeds", "none"),
        ({"seeds": [0, -1]}, "seeds", "at least 0"),
    ],
)
def test_values_that_cannot_be(arguments, argument, message):
    with pytest.raises(SiTError, match=message) as error:
        ComparisonArguments(dataset="d", model_name_or_path="m", output_dir="o", **arguments)
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("protocols", "expected"),
    [(["knn,linear"], ["knn", "linear"]), (["none"], []), (["knn", "linear"], ["knn", "linear"])],
)
def test_protocols(protocols, expected):
    arguments = ComparisonArguments(dataset="d", model_name_or_path="m", output_dir="o", protocols=protocols)
    assert arguments.protocols == expected


def test_defaults():
    arguments = ComparisonArguments(dataset="d", model_name_or_path="m", output_dir="o")
    assert arguments.label_fractions == [0.01, 0.1, 1.0] and arguments.seeds == [0, 1, 2]
    assert arguments.raw_pixels == ["knn", "logistic", "svm"] and arguments.protocols == ["knn", "linear"]


def test_as_a_program(run, run_program, tmp_path):
    flags = ["--label_fractions", 0.05, "--seeds", 0, "--protocols", "none", "--raw_pixels", "none", "--tune", "no"]
    given = ["--model_name_or_path", tmp_path / "model", "--dataset", "digits", "--output_dir", run.output_dir]
    assert run_program("compare", *given, "--finetuning_recipe", tmp_path / "recipe.yaml", *flags) == 0
    assert (run.output_dir / "results.md").exists()
    assert run().fine_tuned  # the settings are the same
