"""The card of a fine-tuned classifier: valid for the Hub, and true to what was run and measured."""

from pathlib import Path

import PIL.Image
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from transformers import ViTConfig

from modeling_sit import SiTForImageClassification
from modeling_sit.evaluation.metric_results import MetricResult, ProtocolResult
from modeling_sit.finetuning.card import FinetuningFacts, write_finetuning_card
from modeling_sit.hub.card_results import update_card
from modeling_sit.hub.provenance import Start

COMMAND = "accelerate launch scripts/finetune.py --seed 3"
REPORT = {
    "accuracy": 0.915625,
    "loss": 0.31,
    "num_train": 144,
    "num_validation": 360,
    "label_fraction": 0.1,
    "from_scratch": False,
    "epochs": 60.0,
    "steps": 1080,
    "learning_rate": 0.0005,
    "tuned_by": None,
    "seed": 3,
    "dataset": "some/images",
    "split": "test",
    "model_name_or_path": "my/pretrained",
    "chosen_by": None,
    "validation": None,
}
HELD_BACK = {"split": "10 % of train, held back", "num_validation": 72, "accuracy": 0.875, "loss": 0.4}
LOG = [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5, "eval_accuracy": 0.5}, {"step": 2, "loss": 1.0}]


@pytest.fixture
def write(tmp_path, tiny_config):
    def write_card(label_names=("a", "b"), config=None, log=(), starts=None, **others) -> Path:
        folder = tmp_path / "classifier"
        folder.mkdir(exist_ok=True)
        (config or tiny_config()).save_pretrained(folder)
        keep_results = others.pop("keep_results", False)
        given = {name: others.pop(name) for name in ("license", "model_id", "examples") if name in others}
        assert others.keys() <= {*REPORT, "task", "map", "macro_f1", "mean_average_precision"}
        facts = FinetuningFacts(
            report={**REPORT, **others},
            label_names=list(label_names),
            log=log,
            starts=starts or [Start(0, COMMAND, "2 x GPU")],
            seconds=90,
            **given,
        )
        write_finetuning_card(folder, facts, keep_results)
        return folder

    return write_card


def words_of(page) -> str:
    return " ".join(page.text.split())


def test_metadata_is_valid_and_complete(write):
    data = ModelCard.load(write(macro_f1=0.75) / "README.md").data
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "image-classification",
        "transformers",
        "apache-2.0",
    )
    assert data.base_model == "my/pretrained" and data.datasets == ["some/images"]
    assert data.metrics == ["accuracy", "f1"]
    listed = {result.metric_type: result.metric_value for result in data.eval_results}
    assert listed == {"accuracy": 0.915625, "f1": 0.75}
    assert {result.dataset_split for result in data.eval_results} == {"test"}


@pytest.mark.parametrize(
    ("task", "tag", "does", "call"),
    [
        ("detection", "object-detection", "finds objects in images, each with a box and a class", "detect"),
        ("instance_segmentation", "image-segmentation", "each with a box, a mask and a class", "segment"),
        ("semantic_segmentation", "image-segmentation", "gives each pixel of an image a class", "segment"),
    ],
)
def test_other_tasks(write, page, task, tag, does, call):
    folder = write(task=task, map=0.5)
    data = ModelCard.load(folder / "README.md").data
    assert data.pipeline_tag == tag and tag in data.tags
    shown = page(folder)
    assert does in words_of(shown)
    assert any(f'{call} = pipeline("{tag}", repository, trust_remote_code=True)' in block for block in shown.blocks)
    assert "ViTForImageClassification" not in shown.text


def test_base_model_is_one_of_the_hub(write, tmp_path):
    (tmp_path / "pretrained").mkdir()
    folder = write(model_name_or_path=str(tmp_path / "pretrained"))
    assert ModelCard.load(folder / "README.md").data.base_model is None
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_says_what_was_run_and_measured(write, page):
    shown = page(write(log=LOG))
    assert shown.headings == [
        "classifier",
        "Results",
        "How to load it",
        "What was run",
        "How it went",
        "Limits",
        "License",
        "Citation",
    ]
    assert "fine-tuned on 144 labeled images of some/images from my/pretrained." in words_of(shown)
    assert shown.tables[0][1][:4] == ["some/images", "test", "finetune accuracy", "0.9156"]
    assert "num_validation 360" in shown.tables[0][1][5]
    assert shown.facts["classes"] == "2: a, b"
    assert shown.facts["epochs, seed"] == "60, 3"
    assert shown.facts["fraction of the labels"] == "0.1"
    assert shown.facts["hardware"] == "2 x GPU"
    assert shown.facts["time, of all starts together"] == "1.5 minutes"
    assert COMMAND + "\n" in shown.blocks
    assert list(shown.images) == ["loss_curve.png"]


def test_nothing_to_draw(write, page):
    shown = page(write())
    assert not shown.images and "How it went" not in shown.headings


def test_examples(write, page):
    folder = write(task="semantic_segmentation", examples=Figure(), split="10 % of train, held back")
    shown = page(folder)
    assert list(shown.images) == ["examples.png"] and PIL.Image.open(folder / "examples.png").format == "PNG"
    assert "Some of the 360 measured images (10 % of train, held back), chosen at random." in words_of(shown)
    write(task="semantic_segmentation")
    assert not page(folder).images and "chosen at random" not in page(folder).text


def test_from_scratch(write, page):
    folder = write(from_scratch=True)
    shown = page(folder)
    assert "from random weights, with the configuration of my/pretrained." in words_of(shown)
    assert ModelCard.load(folder / "README.md").data.base_model is None


def test_all_starts_are_told(write, page):
    starts = [Start(0, "first", "CPU"), Start(9, "second", "GPU")]
    shown = page(write(starts=starts))
    assert "first\n# going on from step 9:\nsecond\n" in shown.blocks


def test_says_what_was_chosen_by_what(write, page):
    chosen_by = "accuracy on 10 % of train, held back"
    shown = page(write(chosen_by=chosen_by, validation=HELD_BACK))
    assert (
        "weights are those of the best checkpoint by accuracy on 10 % of train, held back. The first results"
        in words_of(shown)
    )
    assert "measured once, at the end, on images that chose nothing" in words_of(shown)
    assert [row[1:4] for row in shown.tables[0][1:]] == [
        ["test", "finetune accuracy", "0.9156"],
        ["10 % of train, held back", "finetune accuracy", "0.8750"],
    ]


def test_says_that_figures_are_optimistic(write, page):
    chosen = {"chosen_by": "accuracy on 10 % of train, held back", "validation": HELD_BACK, **HELD_BACK}
    shown = page(write(**chosen))
    assert "optimistic" in shown.text and "chose nothing" not in shown.text
    assert len(shown.tables[0]) == 2


@pytest.mark.parametrize(
    ("tuned_by", "is_optimistic"),
    [("accuracy on validation, 24 images", True), ("accuracy on 20 % of train, 24 images", False), (None, False)],
)
def test_says_that_the_measured_images_chose_the_rate(write, page, tuned_by, is_optimistic):
    measured = {**HELD_BACK, "split": "validation"}
    shown = page(write(tuned_by=tuned_by, validation=measured, **measured))
    assert ("chose the learning rate" in words_of(shown)) == is_optimistic == ("optimistic" in shown.text)


def test_says_that_nothing_was_chosen(write, page):
    shown = page(write())
    assert "those of the last step; no checkpoint was chosen" in words_of(shown) and "optimistic" not in shown.text


def test_several_labels(write, page):
    assert "may have several" not in page(write()).text
    assert "an image may have several" in page(write(mean_average_precision=0.8)).facts["classes"]


def test_long_lists_of_classes_are_cut(write, page):
    classes = page(write(label_names=[f"class {number}" for number in range(1000)])).facts["classes"]
    assert classes.startswith("1000: class 0, class 1,") and classes.endswith("class 19, ...")


def test_odd_class_names(write, page):
    names = ["{{ 7 * 7 }}", "{% if %}", "a|b", "<i>", "*x*"]
    assert page(write(label_names=names)).facts["classes"] == f"5: {', '.join(names)}"


class TestLoading:
    @pytest.fixture
    def run(self, write, page, tmp_path, monkeypatch, capsys):
        """Run the blocks of code of a model's card; gives what they print and the names they leave."""

        def run_blocks(model, processor_folder) -> tuple[str, dict]:
            folder = write(config=model.config)
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_bytes(
                (processor_folder / "preprocessor_config.json").read_bytes()
            )
            for path in processor_folder.glob("*.py"):
                (folder / path.name).write_bytes(path.read_bytes())
            PIL.Image.new("RGB", (30, 20), "red").save(tmp_path / "image.jpg")
            monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
            monkeypatch.chdir(tmp_path)
            names = {}
            for block in page(folder).blocks:
                if "import" in block:
                    exec(block, names)
            return capsys.readouterr().out, names

        return run_blocks

    def test_of_a_sit(self, run, save_tiny_sit, tiny_config, tmp_path):
        torch.manual_seed(0)
        printed, names = run(SiTForImageClassification(tiny_config()), save_tiny_sit(tmp_path / "pretrained"))
        assert "LABEL_0" in printed and "LABEL_1" in printed
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            logits = names["classify"].model(pixels).logits
            torch.testing.assert_close(names["vit"](pixels).logits, logits)

    def test_plain_vit_is_not_promised_for_other_pooling(self, write, page, tiny_config):
        assert "ViTForImageClassification" not in page(write(config=tiny_config(pooling="mean"))).text

    def test_a_plain_vit_needs_no_code(self, write, page):
        shown = page(write(config=ViTConfig()))
        assert "trust_remote_code" not in shown.text and "modeling_sit" not in shown.text
        assert "Citation" not in shown.headings


class TestAgain:
    def measure(self, folder):
        measured = {"knn": ProtocolResult([MetricResult("accuracy", 0.5, (0.4, 0.6))], {})}
        update_card(folder, measured, dataset="some/images", split="test", settings={})

    @pytest.mark.parametrize("same", [True, False])
    def test_figures_of_the_same_weights_stay_and_of_others_go(self, write, page, same):
        folder = write()
        self.measure(folder)
        write(accuracy=0.25, keep_results=same)
        figures = {row[2]: row[3] for row in page(folder).tables[0][1:]}
        assert figures == {**({"knn accuracy": "0.5000"} if same else {}), "finetune accuracy": "0.2500"}

    def test_what_people_wrote_stays(self, write):
        folder = write()
        text = (folder / "README.md").read_text()
        (folder / "README.md").write_text(text.replace("## Limits\n", "## Limits\n\nMine.  \n") + "\tmore")
        write(accuracy=0.25)
        after = (folder / "README.md").read_text()
        assert "## Limits\n\nMine.  \n" in after and after.endswith("\tmore") and "0.2500" in after


def test_says_what_chose_rate_and_length(write, page):
    words = words_of(page(write()))
    assert "0.0005, 1,080" in words and "chosen by" not in words
    assert "0.0005, 1,080; chosen by accuracy on 20 % of train" in words_of(
        page(write(tuned_by="accuracy on 20 % of train"))
    )
