"""Figures in the model card, read back with the Hub's own client."""

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_sit.cli.errors import UserError
from modeling_sit.evaluation.figures import Figure, Measurement
from modeling_sit.evaluation.model_index import update_card

BODY = "# Flowers\n\nWhat --- it is, and ``code``.\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "README.md").write_text(f"---\nlicense: apache-2.0\ntags:\n- sit\n---\n\n{BODY}")
    return tmp_path / "vit"


def update(folder, accuracy, split="test", protocol="knn", dataset="flowers", **settings):
    figures = [Figure("accuracy", accuracy, (0.1, 0.9), 0.01), Figure("macro_f1", accuracy / 2, (0.0, 0.5))]
    measurements = {protocol: Measurement(figures, {"k": 20})}
    return update_card(folder, measurements, dataset=dataset, split=split, settings={"layer": -1, **settings})


def test_card_has_the_figures_and_the_rest_as_it_was(folder):
    update(folder, 0.12345678)
    card = ModelCard.load(folder / "README.md")
    assert card.text.strip() == BODY.strip()
    assert (card.data.license, card.data.tags, card.data.model_name) == ("apache-2.0", ["sit"], "vit")
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
    assert accuracy.metric_args == {"interval": [0.1, 0.9], "spread": 0.01, "layer": -1, "k": 20}
    assert (macro_f1.metric_type, macro_f1.metric_name) == ("f1", "knn macro_f1")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md"]


def test_same_figure_is_replaced_and_others_stay(folder):
    others = EvalResult("image-classification", "other", "Other", "accuracy", 0.5, metric_name="top-1")
    data = ModelCardData(eval_results=[others], model_name="a name of its own")
    (folder / "README.md").write_text(str(ModelCard(f"---\n{data.to_yaml()}\n---\n{BODY}")))
    update(folder, 0.1)
    update(folder, 0.2, layer=3)
    update(folder, 0.3, split="validation")
    update(folder, 0.4, protocol="linear")
    update(folder, 0.5, protocol="retrieval")
    update(folder, 0.6, dataset="cells")
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "a name of its own"
    accuracies = [result.metric_value for result in card.data.eval_results if result.metric_type == "accuracy"]
    assert sorted(accuracies) == [0.2, 0.3, 0.4, 0.5, 0.5, 0.6]
    assert {result.task_type for result in card.data.eval_results} == {
        "image-classification",
        "image-feature-extraction",
    }


def test_of_a_folder_the_card_says_its_name_alone(folder):
    update(folder, 0.1, dataset=str(folder))
    assert ModelCard.load(folder / "README.md").data.eval_results[0].dataset_type == "vit"


def test_card_without_metadata(folder):
    (folder / "README.md").write_text(BODY)
    update(folder, 0.1)
    card = ModelCard.load(folder / "README.md")
    assert len(card.data.eval_results) == 2 and BODY.strip() in card.text


@pytest.mark.parametrize("content", ["---\n- a list\n---\n", "---\nmodel-index: [3]\n---\n", "---\na: [\n---\n", None])
def test_card_that_cannot_be_read_is_left_alone(folder, content):
    path = folder / "README.md"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=r"--update_model_card: .*README\.md"):
        update(folder, 0.1)
    assert content is None or path.read_text() == content
