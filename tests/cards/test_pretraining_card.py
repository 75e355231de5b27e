"""The model card: valid for the Hub, and true to what was run and measured."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from modeling_sit.training.model_card import write_finetuning_card, write_pretraining_card

from modeling_sit.data.streaming import StreamingArguments
from modeling_sit.data.views import ViewArguments
from modeling_sit.training.arguments import CorruptionArguments, ModelArguments, PretrainingArguments
from modeling_sit.training.schedules import plan_schedules

CARDS = Path(__file__).parents[2] / "model_cards"


def metrics_line(step: int, **others) -> dict:
    values = {"epoch": step / 10, "loss": 1.5 + step, "reconstruction_loss": 0.25, "contrastive_loss": 1.25}
    return {"step": step, **values, "images_per_second": 1234.5, "data_wait": 0.125, **others}


@pytest.fixture
def write_card(tmp_path):
    def write(
        dataset="some/pictures", steps=(10, 20), previews=(10, 20), command="accelerate launch x.py", **settings
    ):
        output_dir = tmp_path / "my-run"
        output_dir.mkdir(exist_ok=True)
        lines = [json.dumps(metrics_line(step)) for step in steps]
        (output_dir / "metrics.jsonl").write_text("\n".join(lines))
        for step in previews:
            (output_dir / "previews").mkdir(exist_ok=True)
            (output_dir / "previews" / f"step-{step:08d}.png").write_bytes(b"")
        given = {name: settings.pop(name) for name in ("num_pictures", "num_unreadable") if name in settings}
        groups = [StreamingArguments, ModelArguments, CorruptionArguments, ViewArguments]
        arguments = PretrainingArguments(dataset=dataset, output_dir=str(output_dir))
        flags = {
            name: value for group in (arguments, *(made() for made in groups)) for name, value in asdict(group).items()
        }
        assert settings.keys() <= flags.keys()
        write_pretraining_card(
            CARDS / "pretraining_template.md",
            output_dir,
            **{
                "settings": {**flags, **settings},
                "command": command,
                "num_pictures": 12345,
                "num_unreadable": 0,
                "schedules": plan_schedules(arguments, 12345, 2),
                "num_processes": 2,
                "device": torch.device("cpu"),
                "seconds": 90.0,
                **given,
            },
        )
        return output_dir / "README.md"

    return write


def settings_on(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("- `--")]


def test_a_stream_is_told(write_card):
    """Also one whose length nobody knows."""
    text = write_card(streaming=True, shuffle_buffer_size=500, num_pictures=None).read_text()
    assert "- `--streaming`: `True`" in text and "- `--shuffle_buffer_size`: `500`" in text
    assert "an unknown number of pictures of" in text


def test_loads_as_a_model_card(write_card):
    path = write_card()
    card = ModelCard.load(path)
    assert card.data.library_name == "transformers"
    assert card.data.license == "apache-2.0"
    assert "self-supervised" in card.data.tags
    head = path.read_text().split("---\n")[1]
    assert yaml.safe_load(head)["library_name"] == "transformers"


def test_says_what_was_run(write_card):
    card = write_card(command="accelerate launch scripts/pretrain.py --dataset some/pictures").read_text()
    assert "# my-run" in card
    assert "accelerate launch scripts/pretrain.py --dataset some/pictures" in card
    assert "12,345 pictures of `some/pictures`" in card
    assert "| steps, epochs | 76,800, 800 |" in card
    assert "| total batch | 128 pictures" in card
    assert "| weights in this folder | teacher |" in card
    assert "2 x " in card and "1.5 minutes" in card
    assert f"torch {torch.__version__.partition('+')[0]}" in card
    assert "unreadable" not in card
    assert "arxiv.org/abs/2104.03602" in card


def test_newest_preview_is_shown_or_none(write_card):
    assert "](previews/step-00000020.png)" in write_card().read_text()


def test_without_previews(write_card):
    card = write_card(previews=()).read_text()
    assert "previews/" not in card and "Rows:" not in card


def test_unreadable_pictures_are_counted(write_card):
    assert "3 of them unreadable and skipped" in write_card(num_unreadable=3).read_text()


def test_settings_that_differ_from_the_defaults_and_no_others(write_card):
    assert settings_on(write_card().read_text()) == []
    card = write_card(
        seed=7,
        corruption="zeros",
        blur_probability=[0, 0],
        model_size="tiny",
        export="student",
        overwrite_output_dir=True,
    ).read_text()
    assert settings_on(card) == [
        "- `--seed`: `7`",
        "- `--model_size`: `tiny`",
        "- `--corruption`: `zeros`",
        "- `--blur_probability`: `[0, 0]`",
    ]
    assert "| weights in this folder | student |" in card


def test_template_syntax_in_what_users_give_stays_as_it_is(write_card):
    dataset = "/data/100%/{{ 7 * 7 }}/{% raw %}/{x}"
    path = write_card(dataset=dataset, command=f"run --dataset '{dataset}'", config_overrides="hidden_act={{gelu}}")
    card = path.read_text()
    assert card.count(dataset) == 3
    assert "- `--config_overrides`: `hidden_act={{gelu}}`" in card
    ModelCard.load(path)


def test_metrics_are_a_spread_of_the_lines_with_the_last(write_card):
    card = write_card(steps=range(10, 1010, 10)).read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and "% |" in line]
    steps = [int(row.split("|")[1]) for row in rows]
    assert steps == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert rows[-1] == "| 1000 | 100 | 1001.5000 | 0.2500 | 1.2500 | 1234.5 | 12.5 % |"
    few = write_card(steps=(10, 20, 30)).read_text()
    assert [int(line.split("|")[1]) for line in few.splitlines() if "% |" in line] == [10, 20, 30]


def test_citation_is_whole(write_card):
    card = write_card().read_text()
    bibtex = card.partition("```bibtex\n")[2].partition("```")[0]
    assert bibtex.startswith("@article{atito2021sit,")
    assert bibtex.count("{") == bibtex.count("}")
    assert "title   = {SiT: Self-supervised vIsion Transformer}," in bibtex


def test_tables_have_the_columns_of_their_heads(write_card):
    """Also with a `|` in the name of the data set, which ends a cell even in code."""
    for dataset in ("some/pictures", "/data/a|b"):
        lines = write_card(dataset=dataset).read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith("|---"):
                columns = line.count("|")
                table = [lines[number - 1]]
                for row in lines[number + 1 :]:
                    if not row.startswith("|"):
                        break
                    table.append(row)
                assert len(table) > 1
                assert all(row.replace("\\|", "").count("|") == columns for row in table)


class TestClassifier:
    report = {  # noqa: RUF012
        "accuracy": 0.915625,
        "loss": 0.31,
        "num_train": 144,
        "num_validation": 360,
        "label_fraction": 0.1,
        "from_scratch": False,
        "epochs": 60.0,
        "seed": 3,
        "dataset": "some/pictures",
        "split": "test",
        "model_name_or_path": "my/pretrained",
    }

    def card(self, folder: Path, label_names=("a", "b"), **report) -> Path:
        write_finetuning_card(
            CARDS / "finetuning_template.md",
            folder,
            report={**self.report, **report},
            label_names=list(label_names),
            command="accelerate launch scripts/finetune.py --seed 3",
            num_processes=2,
            device=torch.device("cpu"),
        )
        return folder / "README.md"

    def test_loads_as_a_model_card(self, tmp_path):
        card = ModelCard.load(self.card(tmp_path))
        assert card.data.pipeline_tag == "image-classification"
        assert card.data.library_name == "transformers"

    def test_says_what_was_measured(self, tmp_path):
        card = self.card(tmp_path).read_text()
        assert "0.915625 on the 360 pictures of split `test`" in card
        assert "144 labelled pictures of `some/pictures`" in card
        assert "from `my/pretrained`" in card
        assert "| classes | 2: a, b |" in card
        assert "| epochs, seed | 60.0, 3 |" in card
        assert "accelerate launch scripts/finetune.py --seed 3" in card

    def test_from_scratch(self, tmp_path):
        card = self.card(tmp_path, from_scratch=True).read_text()
        assert "from random weights" in card and "from `my/pretrained`" not in card

    held_back = {"split": "10 % of train, held back", "num_validation": 72, "accuracy": 0.875, "loss": 0.4}  # noqa: RUF012

    def test_says_what_was_chosen_by_what(self, tmp_path):
        chosen_by = "accuracy on 10 % of train, held back"
        card = " ".join(self.card(tmp_path, chosen_by=chosen_by, validation=self.held_back).read_text().split())
        assert (
            "weights are those of the best checkpoint by accuracy on 10 % of train, held back, measured on the way"
            in card
        )
        assert "by which nothing was chosen, measured once at the end" in card
        assert "On the 72 pictures of split `10 % of train, held back`: accuracy 0.875." in card

    def test_says_that_figures_flatter(self, tmp_path):
        chosen = {"chosen_by": "accuracy on 10 % of train, held back", "validation": self.held_back, **self.held_back}
        card = self.card(tmp_path, **chosen).read_text()
        assert "0.875 on the 72 pictures" in card and "flatter" in card
        assert "nothing was chosen" not in card and "On the 72 pictures" not in card

    def test_says_that_nothing_was_chosen(self, tmp_path):
        card = self.card(tmp_path, chosen_by=None, validation=None).read_text()
        assert "those of the last step; no checkpoint was chosen" in card and "flatter" not in card

    def test_lists_its_figures_for_the_hub(self, tmp_path):
        report = {"macro_f1": 0.75, "mean_average_precision": 0.8}
        data = ModelCard.load(self.card(tmp_path, **report)).data
        listed = {result.metric_type: result.metric_value for result in data.eval_results}
        assert listed == {"accuracy": 0.915625, "macro_f1": 0.75, "mean_average_precision": 0.8}
        assert {result.dataset_split for result in data.eval_results} == {"test"}
        assert data.metrics == ["accuracy", "mean_average_precision", "macro_f1"]

    def test_several_labels(self, tmp_path):
        assert "may have several" not in self.card(tmp_path).read_text()
        assert "a picture may have several" in self.card(tmp_path, mean_average_precision=0.8).read_text()

    def test_long_lists_of_classes_are_cut(self, tmp_path):
        card = self.card(tmp_path, label_names=[f"class {number}" for number in range(1000)]).read_text()
        assert "| classes | 1000: class 0, class 1," in card
        assert "class 19, ... |" in card and "class 20" not in card

    def test_template_syntax_in_class_names(self, tmp_path):
        assert "{{ 7 * 7 }}, {% if %}" in self.card(tmp_path, label_names=["{{ 7 * 7 }}", "{% if %}"]).read_text()
