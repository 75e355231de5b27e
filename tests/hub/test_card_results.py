"""Figures in the model card, read back with the Hub's own client and as a reader sees them."""

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_sit.evaluation.metric_results import MetricResult, ProtocolResult
from modeling_sit.hub.card_file import Card, read_card
from modeling_sit.hub.card_results import finetuning_results, put_results, update_card
from modeling_sit.runtime.errors import SiTError

BODY = "# Flowers\n\nWhat --- it is, and ``code``.  \n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "README.md").write_text(f"---\nlicense: apache-2.0 # mine\ntags:\n- sit\n---\n\n{BODY}")
    return tmp_path / "vit"


def update(folder, accuracy, split="test", protocol="knn", dataset="flowers", config=None, **settings):
    figures = [
        MetricResult("accuracy", accuracy, (0.1, 0.9), 0.01),
        MetricResult("macro_f1", accuracy / 2, (0.0, 0.5)),
    ]
    measurements = {protocol: ProtocolResult(figures, {"k": 20})}
    settings = {"layer": -1, **settings}
    return update_card(folder, measurements, dataset=dataset, dataset_config=config, split=split, settings=settings)


def shown(page, folder) -> list[list[str]]:
    """The rows of the table of results."""
    (header, *rows) = page(folder).tables[-1]
    assert header == ["dataset", "split", "metric", "value", "95 % interval", "settings"]
    return rows


def test_card_has_the_figures_and_the_rest_as_it_was(folder):
    before = (folder / "README.md").read_text()
    update(folder, 0.12345678)
    text = (folder / "README.md").read_text()
    assert text.startswith(before.partition("---\n\n")[0]) and f"---\n\n{BODY}" in text
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.tags, card.data.model_name) == ("apache-2.0", ["sit"], "vit")
    assert card.data.metrics == ["accuracy", "f1"]
    accuracy, macro_f1 = card.data.eval_results
    assert (accuracy.task_type, accuracy.dataset_type, accuracy.dataset_split) == (
        "image-classification",
        "flowers",
        "test",
    )
    assert (accuracy.metric_type, accuracy.metric_name, accuracy.metric_value) == (
        "accuracy",
        "knn accuracy",
        0.123457,
    )
    assert accuracy.metric_args == {"interval": [0.1, 0.9], "std": 0.01, "layer": -1, "k": 20}
    assert (macro_f1.metric_type, macro_f1.metric_name) == ("f1", "knn macro_f1")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md"]


def test_figures_of_objects_and_of_pixels(folder, page):
    classes = {"classes": {"cell": {"map": 0.25}}}
    figures = [MetricResult("map", 0.25), MetricResult("map_large", float("nan"))]
    measurements = {"detection": ProtocolResult(figures, {"num_objects": 7, **classes})}
    measurements["segmentation"] = ProtocolResult([MetricResult("mean_iou", 0.5, (0.4, 0.6))], classes)
    update_card(folder, measurements, dataset="cells", split="test", settings={"num_validation": 3})
    found = ModelCard.load(folder / "README.md").data.eval_results
    assert [(each.task_type, each.metric_type, each.metric_value) for each in found] == [
        ("object-detection", "map", 0.25),
        ("image-segmentation", "mean_iou", 0.5),
    ]
    assert found[0].metric_args == {"num_validation": 3, "num_objects": 7}
    assert shown(page, folder) == [
        ["cells", "test", "detection map", "0.2500", "", "num_validation 3, num_objects 7"],
        ["cells", "test", "segmentation mean_iou", "0.5000", "0.4000 to 0.6000", "num_validation 3"],
    ]


def test_people_see_them_in_a_table(folder, page):
    update(folder, 0.12345678)
    update(folder, 0.5, dataset="user/cells|dead", split="held *back*", config="big", protocol="linear")
    assert shown(page, folder) == [
        ["flowers", "test", "knn accuracy", "0.1235 ± 0.0100", "0.1000 to 0.9000", "layer -1, k 20"],
        ["flowers", "test", "knn macro_f1", "0.0617", "0.0000 to 0.5000", "layer -1, k 20"],
        [
            "user/cells|dead (big)",
            "held *back*",
            "linear accuracy",
            "0.5000 ± 0.0100",
            "0.1000 to 0.9000",
            "layer -1, k 20",
        ],
        ["user/cells|dead (big)", "held *back*", "linear macro_f1", "0.2500", "0.0000 to 0.5000", "layer -1, k 20"],
    ]


def test_text_around_the_table_stays(folder, page):
    path = update(folder, 0.1)
    begin, end = "<!-- sit:begin results -->", "<!-- sit:end results -->"
    text = path.read_text()
    path.write_text(text.replace(begin, f"My words  \n{begin}").replace(end, f"{end}\n\tand more"))
    before, _, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2]
    update(folder, 0.9)
    text = path.read_text()
    # What stands below the metadata, to the last byte.
    assert text.partition("---\n\n")[2].startswith(before.partition("---\n\n")[2] + begin)
    assert text.endswith(end + after)
    assert [row[3] for row in shown(page, folder)] == ["0.9000 ± 0.0100", "0.4500"]


def test_same_figure_is_replaced_and_others_stay(folder, page):
    others = EvalResult("image-classification", "other", "Other", "accuracy", 0.5, metric_name="top-1")
    data = ModelCardData(eval_results=[others], model_name="a name of its own", metrics=["map", "accuracy"])
    (folder / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n{BODY}")))
    update(folder, 0.1)
    update(folder, 0.2, layer=3)
    update(folder, 0.3, split="validation")
    update(folder, 0.4, protocol="linear")
    update(folder, 0.5, protocol="retrieval")
    update(folder, 0.7, dataset="flowers", config="big")
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "a name of its own"
    assert card.data.metrics == ["map", "accuracy", "f1"]
    accuracies = [result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy"]
    assert sorted(accuracies) == [0.2, 0.3, 0.4, 0.5, 0.5, 0.7]
    assert {result.task_type for result in card.data.eval_results} == {
        "image-classification",
        "image-feature-extraction",
    }
    rows = shown(page, folder)
    assert len(rows) == len(card.data.eval_results) == len({tuple(row) for row in rows})
    assert [row[2:4] for row in rows if row[0] == "Other"] == [["top-1", "0.5000"]]
    assert [row[5] for row in rows if row[:3] == ["flowers", "test", "knn accuracy"]] == ["layer 3, k 20"]


def test_what_an_earlier_run_alone_measured_goes(folder, page):
    """As of more classes, where a folder of fewer has the same name."""

    first, second = (folder.parent / name / "images" for name in "ab")
    for images in (first, second):
        images.mkdir(parents=True)

    def measure(protocol, *names, dataset=first):
        figures = [MetricResult(name, 0.5) for name in names]
        update_card(folder, {protocol: ProtocolResult(figures, {})}, dataset=str(dataset), split="test", settings={})

    (folder / "README.md").write_text(f"---\nmetrics:\n- map\n- accuracy\n---\n{BODY}")
    measure("knn", "accuracy", "macro_f1", "top_5_accuracy")
    measure("linear", "accuracy", "macro_f1")
    measure("knn", "accuracy", "top_5_accuracy", dataset="others")
    measure("knn", "accuracy", dataset=second)
    kept = [("images", "linear accuracy"), ("images", "linear macro_f1")]
    kept += [("others", "knn accuracy"), ("others", "knn top_5_accuracy")]
    assert [(row[0], row[2]) for row in shown(page, folder)] == [*kept, ("images", "knn accuracy")]
    assert read_card(folder).metadata["metrics"] == ["map", "accuracy", "f1", "top_5_accuracy"]
    measure("knn", "accuracy", dataset="others")
    assert read_card(folder).metadata["metrics"] == ["map", "accuracy", "f1"]


def test_results_of_others_stay_as_they_are_written(folder):
    """Sources, keys that the Hub's client does not know, and a second model."""
    theirs = {
        "task": {"type": "image-classification", "name": "Sorting"},
        "dataset": {"type": "flowers", "name": "Flowers", "split": "test", "args": {"a": 1}},
        "metrics": [{"type": "accuracy", "value": "9 of 10", "name": "by eye", "note": "ours"}],
        "source": {"name": "A paper", "url": "https://host/paper"},
    }
    index = [{"name": "vit", "results": [theirs], "extra": 1}, {"name": "second", "results": []}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'model-index': index})}---\n{BODY}")
    update(folder, 0.1)
    update(folder, 0.2)
    first, second = read_card(folder).metadata["model-index"]
    assert first["results"][0] == theirs and first["extra"] == 1 and second == index[1]
    assert [metric["value"] for metric in first["results"][1]["metrics"]] == [0.2, 0.1]
    assert "source" not in first["results"][1]


def test_results_of_people_are_shown(folder, page):
    metrics = [
        {"type": "accuracy", "value": 91, "args": "by <hand>"},
        {"type": "f1", "value": 0.5, "args": {"interval": "0.4-0.6", "per": {"a": 1}}},
    ]
    result = {"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": metrics}
    index = [{"name": "vit", "results": [result]}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'model-index': index})}---\n{BODY}")
    update(folder, 0.1)
    assert shown(page, folder)[:2] == [
        ["D", "", "accuracy", "91", "", "by <hand>"],
        ["D", "", "f1", "0.5000", "0.4-0.6", "per (a: 1)"],
    ]


def test_of_a_folder_the_card_says_its_name_alone(folder):
    update(folder, 0.1, dataset=str(folder))
    assert ModelCard.load(folder / "README.md").data.eval_results[0].dataset_type == "vit"
    assert str(folder.parent) not in (folder / "README.md").read_text()


def test_card_without_metadata(folder):
    (folder / "README.md").write_text(BODY)
    update(folder, 0.1)
    card = ModelCard.load(folder / "README.md")
    assert len(card.data.eval_results) == 2 and BODY.strip() in card.text


@pytest.mark.parametrize(
    "content",
    [
        b"---\n- a list\n---\n",
        b"---\nmodel-index: [3]\n---\n",
        b"---\na: [\n---\n",
        b"---\nlicense: mit\n",
        b"{license: mit}",
        b"# Mine\n<!-- sit:begin results -->\n",
        b"\xff\xfe\x00",
        None,
    ],
)
def test_card_that_cannot_be_updated_is_left_alone(folder, content):
    path = folder / "README.md"
    path.unlink() if content is None else path.write_bytes(
        b"---\n" + content + b"\n---\n" if content[:1] == b"{" else content
    )
    before = None if content is None else path.read_bytes()
    with pytest.raises(SiTError, match=r"README\.md") as raised:
        update(folder, 0.1)
    assert raised.value.argument == "update_model_card"
    assert "\n" not in str(raised.value)
    assert before is None or path.read_bytes() == before


def test_results_of_other_weights_go(folder, page):
    update(folder, 0.1)
    card = read_card(folder)
    put_results(card, [], "vit", keep_others=False)
    assert "model-index" not in card.metadata and "metrics" not in card.metadata
    assert "not measured yet" in card.section("results") and "modeling-sit evaluate" in card.section("results")
    assert ModelCard(str(card)).data.eval_results is None


def test_results_that_say_that_they_are_of_other_weights_go(folder, page, capsys):
    theirs = {"type": "x", "value": 1, "name": "by eye"}
    index = [
        {
            "name": "vit",
            "results": [{"task": {"type": "x"}, "dataset": {"type": "d", "name": "D"}, "metrics": [theirs]}],
        }
    ]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'model-index': index})}---\n{BODY}")
    update(folder, 0.1, protocol="linear")  # as earlier versions: it does not say its weights
    update(folder, 0.2, weights_fingerprint="a")
    update(folder, 0.3, weights_fingerprint="a", split="validation")
    assert capsys.readouterr().err == ""
    update(folder, 0.4, weights_fingerprint="b")
    names = [[row[1], row[2], row[5]] for row in shown(page, folder)]
    kept = [["", "by eye", ""]] + [["test", f"linear {name}", "layer -1, k 20"] for name in ("accuracy", "macro_f1")]
    assert names == [*kept, *(["test", f"knn {name}", "layer -1, k 20"] for name in ("accuracy", "macro_f1"))]
    assert (
        capsys.readouterr().err
        == f"{folder / 'README.md'}: dropped knn accuracy, knn macro_f1: results of other weights\n"
    )


class TestClassifier:
    report = {  # noqa: RUF012
        "accuracy": 0.9156251,
        "macro_f1": 0.75,
        "loss": 0.31,
        "num_train": 144,
        "num_validation": 360,
        "epochs": 60.0,
        "seed": 3,
        "dataset": "some/images",
        "split": "test",
        "validation": None,
    }

    def figures(self, **report):
        return [
            (result.dataset_split, result.metric_type, result.metric_name, result.metric_value)
            for result in finetuning_results({**self.report, **report})
        ]

    def test_figures_of_the_hub(self):
        assert self.figures() == [
            ("test", "accuracy", "finetune accuracy", 0.915625),
            ("test", "f1", "finetune macro_f1", 0.75),
        ]
        (result, _) = finetuning_results(self.report)
        assert result.metric_args == {"num_train": 144, "num_validation": 360, "epochs": 60.0, "seed": 3}
        assert result.dataset_type == "some/images"

    def test_validation_beside_the_test_and_not_twice(self):
        validation = {"split": "validation", "accuracy": 0.5, "num_validation": 10}
        assert self.figures(validation=validation)[2:] == [("validation", "accuracy", "finetune accuracy", 0.5)]
        assert len(self.figures(validation={**validation, "split": "test"})) == 2

    def test_figures_of_other_tasks(self):
        found = {
            "map": 0.5,
            "map_50": 0.75,
            "map_large": None,
            "map_nucleus": 0.5,
            "mask_map": 0.25,
            "mean_iou": 0.125,
        }
        report = {**self.report, **found}
        names = {
            "detection": {"map": 0.5, "map_50": 0.75},
            "instance_segmentation": {"mask_map": 0.25, "map": 0.5, "map_50": 0.75},
            "semantic_segmentation": {"mean_iou": 0.125},
        }
        for task, expected in names.items():
            results = finetuning_results({**report, "task": task})
            assert {result.metric_type: result.metric_value for result in results} == expected
            assert {result.task_type for result in results} == {
                "object-detection" if task == "detection" else "image-segmentation"
            }

    def test_beside_those_of_the_features(self, folder):
        update(folder, 0.1, dataset="some/images")
        card = read_card(folder)
        for accuracy in (0.5, 0.6):
            put_results(card, finetuning_results({**self.report, "accuracy": accuracy}), "vit")
        results = ModelCard(str(card)).data.eval_results
        assert sorted(result.metric_value for result in results if result.metric_type == "accuracy") == [0.1, 0.6]


def test_an_empty_card():
    card = Card.parse("")
    put_results(card, finetuning_results(TestClassifier.report), "vit")
    assert ModelCard(str(card)).data.model_name == "vit"
