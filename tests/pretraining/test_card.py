"""The card of a pretrained encoder: valid for the Hub, and true to what was run."""

import json
from pathlib import Path

import datasets
import PIL.Image
import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard

from modeling_sit import SiTConfig, SiTModel
from modeling_sit.data.image_datasets import ImageDatasets
from modeling_sit.evaluation.metric_results import MetricResult, ProtocolResult
from modeling_sit.hub.card_file import read_card
from modeling_sit.hub.card_results import update_card
from modeling_sit.hub.provenance import Start
from modeling_sit.pretraining.card import RunFacts, write_pretraining_card
from modeling_sit.pretraining.schedules import plan_schedules

COMMAND = "accelerate launch scripts/pretrain.py --dataset some/images"
STARTS = (Start(0, COMMAND, "2 x GPU"),)


def metrics_line(step: int, **others) -> dict:
    values = {"epoch": step / 10, "loss": 1.5 + step, "reconstruction_loss": 0.25, "contrastive_loss": 1.25}
    return {"step": step, **values, "images_per_second": 1234.5, "data_wait": 0.125, **others}


@pytest.fixture
def write(tmp_path, tiny_config, flags_of, create_sit):
    """Write the card of a run; gives the folder."""

    def write_card(
        dataset="some/images",
        steps=(),  # drawing the curve takes a while
        previews=(10, 20),
        starts=STARTS,
        monitors=(),
        lines=None,
        num_images=12345,
        streamed=False,
        splits=("train", "test"),
        config=None,
        method=None,
        model_id=None,
        **settings,
    ) -> Path:
        output_dir = tmp_path / "my-run"
        output_dir.mkdir(exist_ok=True)
        lines = [metrics_line(step) for step in steps] if lines is None else lines
        (output_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        if monitors:
            (output_dir / "monitors.jsonl").write_text("\n".join(map(json.dumps, monitors)))
        for step in previews:
            (output_dir / "previews").mkdir(exist_ok=True)
            (output_dir / "previews" / f"step-{step:08d}.png").write_bytes(b"")
        flags = flags_of(dataset=dataset, output_dir=output_dir)
        schedules = plan_schedules(flags.run, num_images or 1000, 2)
        given = {
            "num_unreadable": settings.pop("num_unreadable", 0),
            "step": settings.pop("step", schedules.num_steps),
            "seconds": settings.pop("seconds", 90.0),
            "mixed_precision": settings.pop("precision", "no"),
        }
        assert settings.keys() <= flags.settings().keys()
        rows = datasets.Dataset.from_dict({"image": [0]}, split="train")
        facts = RunFacts(
            settings={**flags.settings(), **settings},
            starts=starts,
            images=ImageDatasets(
                name=dataset,
                train=rows.to_iterable_dataset() if streamed else rows,
                validation=None,
                label_names=None,
                splits=list(splits),
                num_train=num_images,
            ),
            is_streamed=streamed,
            method=method or create_sit(config or tiny_config()),
            schedules=schedules,
            num_processes=2,
            model_id=model_id,
            **given,
        )
        path = write_pretraining_card(output_dir, facts)
        assert path == output_dir / "README.md"
        return output_dir

    return write_card


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def settings_on(folder: Path) -> list[str]:
    return [line for line in text_of(folder).splitlines() if line.startswith("- `") and ": `" in line]


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def losses_on(page) -> list[list[str]]:
    return next(table for table in page.tables if table[0][0] == "step")


def test_metadata_is_valid_and_complete(write):
    folder = write()
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "transformers",
        "apache-2.0",
        "image-feature-extraction",
    )
    assert {"sit", "vit", "self-supervised"} <= set(data.tags)
    assert data.datasets == ["some/images"] and data.base_model is None and data.eval_results is None
    assert yaml.safe_load(text_of(folder).split("---\n")[1])["library_name"] == "transformers"


def test_metadata_names_what_is_on_the_hub_only(write, tmp_path):
    (tmp_path / "cells").mkdir()
    data = ModelCard.load(write(dataset=str(tmp_path / "cells")) / "README.md").data
    assert data.datasets is None
    data = ModelCard.load(write(model_name_or_path="google/vit", license="mit") / "README.md").data
    assert (data.base_model, data.license) == ("google/vit", "mit")
    data = ModelCard.load(write(model_name_or_path=str(tmp_path / "cells")) / "README.md").data
    assert data.base_model is None


def test_says_what_was_run(write, page):
    shown = page(write())
    assert shown.headings == [
        "my-run",
        "Results",
        "How to load it",
        "What was run",
        "How it went",
        "Limits",
        "License",
        "Citation",
    ]
    assert COMMAND + "\n" in shown.blocks
    assert "(0.01 M parameters, 16 x 16 pixels in patches of 8 x 8)" in shown.text
    assert "12,345 images of some/images" in words(shown.text)
    facts = shown.facts
    assert facts["data"].startswith("some/images: 12,345 images, of split train (its splits: train, test)")
    assert facts["steps, epochs"] == "76,800, 800"
    assert facts["total batch"] == "128 images"
    of_an_image = 2 * 5 * (3 + 1)  # two views of four patches and the token, for the student and the teacher
    assert facts["encoder tokens"].startswith(f"{76_800 * 128 * of_an_image:,};")
    assert facts["losses"] == "1 x reconstruction (l1, corrupted pixels) + 1 x contrast (to a teacher)"
    assert facts["weights in this folder"] == "teacher"
    assert facts["hardware"] == "2 x GPU" and facts["precision"] == "float32"
    assert facts["time, of all starts together"] == "1.5 minutes"
    assert f"torch {torch.__version__.partition('+')[0]}" in facts["versions"]
    assert f"transformers {transformers.__version__}" in facts["versions"]
    assert "unreadable" not in shown.text and "streamed" not in facts["data"]
    assert "https://arxiv.org/abs/2104.03602" in shown.links


def test_other_runs(write, page, tiny_config):
    config = tiny_config(contrastive_weight=0, reconstruction_norm="l2", reconstruction_weight=5)
    facts = page(write(config=config, num_unreadable=3, precision="bf16", export="student", step=1000)).facts
    assert "12,345 images, 3 of them unreadable and skipped, of split" in facts["data"]
    assert facts["losses"] == "5 x reconstruction (l2, corrupted pixels)"
    assert (facts["precision"], facts["weights in this folder"]) == ("bf16", "student")
    assert facts["steps, epochs"].startswith("1,000 of 76,800, so far, ")


def test_all_starts_are_shown(write, page):
    starts = [Start(0, "first command", "CPU"), Start(1500, "second ```", "GPU"), Start(2000, "third", "GPU")]
    shown = page(write(starts=starts))
    commands = "first command\n# going on from step 1,500:\nsecond ```\n# going on from step 2,000:\nthird\n"
    assert commands in shown.blocks
    assert shown.facts["hardware"] == "CPU, then GPU"


# What these settings are, but for those that are named.
PAPER = "- `preset`: `paper`"


def test_a_stream_is_named(write, page):
    """Also one whose length nobody knows."""
    folder = write(streaming=True, shuffle_buffer_size=500, num_images=None, streamed=True)
    assert settings_on(folder) == [PAPER, "- `streaming`: `True`", "- `shuffle_buffer_size`: `500`"]
    shown = page(folder)
    assert "an unknown number of images of some/images" in words(shown.text)
    assert "streamed" in shown.facts["data"]


def test_newest_preview_and_curve_are_shown(write, page):
    images = page(write(steps=(10, 20))).images
    assert list(images) == ["previews/step-00000020.png", "loss_curve.png"]
    assert all(images.values())  # for those who do not see them


def test_without_previews_metrics_and_monitors(write, page):
    shown = page(write(previews=(), steps=()))
    assert not shown.images and "Rows:" not in shown.text and "monitor" not in shown.text


def test_curve_is_of_the_losses(write):
    folder = write(steps=(10, 20))
    assert PIL.Image.open(folder / "loss_curve.png").format == "PNG"
    wide = PIL.Image.open(folder / "loss_curve.png").width
    write(lines=[metrics_line(step, contrastive_loss=0.0) for step in (1, 2)])
    assert PIL.Image.open(folder / "loss_curve.png").width < wide
    assert not list(folder.glob(".unfinished*"))


def test_monitors_last_figures(write, page):
    monitors = [{"step": 1000, "epoch": 1.0, "rankme": 1.5}, {"step": 2000, "epoch": 2.0, "rankme": 7.25, "mine": 0.5}]
    tables = page(write(monitors=monitors)).tables
    (table,) = [table for table in tables if table[0][0] == "monitor"]
    assert table[0][:2] == ["monitor", "at step 2,000"]
    assert [row[:2] for row in table[1:]] == [["rankme", "7.25"], ["mine", "0.5"]]
    assert "collapsed" in table[1][2] and table[2][2] == ""


def test_settings_that_differ_from_the_defaults_and_no_others(write, monkeypatch, page):
    folder = write()
    assert settings_on(folder) == [PAPER]
    monkeypatch.setenv("HOME", "/home/somebody")
    folder = write(
        seed=7,
        corruption="zeros",
        blur_probability=[0, 0],
        model_size="tiny",
        model_name_or_path="/home/somebody/vit",
        export="student",
        overwrite_output_dir=True,
        license="mit",
    )
    assert settings_on(folder) == [
        PAPER,
        "- `seed`: `7`",
        "- `model_size`: `tiny`",
        "- `model_name_or_path`: `~/vit`",
        "- `corruption`: `zeros`",
        "- `blur_probability`: `[0, 0]`",
    ]


def test_all_that_a_preset_chose_is_among_the_settings(write):
    """Another machine may choose otherwise."""
    listed = settings_on(write(preset="auto", warmup_steps=5))
    assert {"- `noise_ratio`: `[0.5, 0.7]`", "- `warmup_steps`: `5`", "- `export`: `teacher`"} - set(listed) == {
        "- `export`: `teacher`"  # it is said elsewhere on the card
    }
    assert not any("preset" in line for line in listed)


def test_an_argument_without_a_value_is_no_setting(write):
    assert settings_on(write(warmup_epochs=None, warmup_steps=5)) == [PAPER, "- `warmup_steps`: `5`"]


def test_template_syntax_and_markdown_in_what_users_give(write, page):
    dataset = "/data/100%/{{ 7 * 7 }}{% raw %}|`*{x}"
    starts = [Start(0, f"run --dataset '{dataset}'", "CPU")]
    shown = page(write(dataset=dataset, starts=starts, config_overrides="hidden_act={{gelu}}"))
    assert f"12,345 images of {dataset}" in words(shown.text)
    assert shown.facts["data"].startswith(f"{dataset}: 12,345")
    assert f"run --dataset '{dataset}'\n" in shown.blocks
    assert "config_overrides: hidden_act={{gelu}}" in shown.text


def test_metrics_are_some_of_the_lines_with_the_last(write, page, monkeypatch, tiny_config):
    monkeypatch.setattr("modeling_sit.hub.card_writing.curves_figure", lambda *_: None)
    rows = losses_on(page(write(steps=range(10, 1010, 10))))
    assert rows[0] == [
        "step",
        "epoch",
        "loss",
        "reconstruction loss",
        "contrastive loss",
        "images a second",
        "waiting for data",
    ]
    assert [int(row[0]) for row in rows[1:]] == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert rows[-1] == ["1000", "100", "1001.5000", "0.2500", "1.2500", "1234.5", "12.5 %"]
    rotated = [metrics_line(step, rotation_loss=0.5) for step in (10, 20, 30)]
    rows = losses_on(page(write(lines=rotated, config=tiny_config(rotation_weight=0.5))))
    assert [row[0] for row in rows[1:]] == ["10", "20", "30"]
    assert rows[0][5] == "rotation loss" and rows[1][5] == "0.5000"


def test_citation_is_whole(write, page):
    (bibtex,) = [block for block in page(write()).blocks if block.startswith("@article")]
    assert bibtex.startswith("@article{atito2021sit,") and bibtex.endswith("}\n")
    assert bibtex.count("{") == bibtex.count("}")
    assert "title   = {SiT: Self-supervised vIsion Transformer}," in bibtex


def test_how_to_load_it_works(write, page, save_tiny_sit, tmp_path, monkeypatch):
    folder = write()
    save_tiny_sit(folder)
    PIL.Image.new("RGB", (30, 20), "red").save(tmp_path / "image.jpg")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    first, second = (block for block in page(folder).blocks if "import" in block)
    names = {}
    exec(first, names)
    assert names["features"].shape == (1, 16)
    exec(second, names)
    torch.testing.assert_close(names["vit"](**names["inputs"]).last_hidden_state, names["tokens"])


def test_the_hubs_id_where_it_is_known(write, page):
    assert 'repository = "my-run"  #' in page(write()).blocks[0]
    assert 'repository = "me/flowers"  #' in page(write(model_id="me/flowers")).blocks[0]


class TestAgain:
    """A run that goes on, or exports other weights, has a card already."""

    def test_what_people_wrote_stays(self, write, page):
        folder = write()
        card = folder / "README.md"
        text = card.read_text().replace("tags:\n", "language: en  # mine\ntags:\n- mine\n")
        text = text.replace("# my-run", "# A name of its own").replace("## Limits\n", "## Limits\n\nMine, *too*.\n")
        card.write_text(text.replace("license: apache-2.0", "license: cc-by-4.0") + "\nAnd at the end")
        write(seconds=7200, export="student")
        shown = page(folder)
        assert shown.headings[0] == "A name of its own"
        assert shown.facts["time, of all starts together"] == "2.0 hours"
        assert shown.facts["weights in this folder"] == "student"
        assert "The weights: cc-by-4.0." in shown.text
        after = card.read_text()
        assert "language: en  # mine" in after and "Mine, *too*." in after and after.endswith("\nAnd at the end")
        data = ModelCard.load(card).data
        assert data.license == "cc-by-4.0" and data.tags[0] == "mine" and "sit" in data.tags
        again = card.read_text()
        write(seconds=7200, export="student")
        assert card.read_text() == again

    def test_a_license_that_is_asked_for(self, write, page):
        write(license="mit")
        folder = write(license="cc-by-nc-4.0")
        assert ModelCard.load(folder / "README.md").data.license == "cc-by-nc-4.0"
        assert "The weights: cc-by-nc-4.0." in page(folder).text

    def test_figures_of_earlier_weights_go(self, write, page):
        folder = write()
        measured = {"knn": ProtocolResult([MetricResult("accuracy", 0.5, (0.4, 0.6))], {})}
        update_card(folder, measured, dataset="d", split="test", settings={})
        assert any(table[0][0] == "dataset" for table in page(folder).tables)
        write()
        assert ModelCard.load(folder / "README.md").data.eval_results is None
        assert "not measured yet" in read_card(folder).section("results")

    def test_a_damaged_card_is_no_reason_to_lose_a_run(self, write, capsys):
        folder = write()
        (folder / "README.md").write_text("---\na: [\n---\nmine")
        write()
        assert ModelCard.load(folder / "README.md").data.library_name == "transformers"
        assert (folder / "README.old.md").read_text() == "---\na: [\n---\nmine"
        assert "README.old.md" in capsys.readouterr().err


def test_default_configuration_is_described(write, page):
    text = page(write(config=SiTConfig())).text
    assert "(21.67 M parameters, 224 x 224 pixels in patches of 16 x 16)" in text


class TestOfAnyMethod:
    """Of the method, the card has what the method says."""

    @pytest.fixture
    def method(self, create_sit):
        method = create_sit()
        method.title, method.citation, method.tags = (
            "Mine ([page](https://example.org/mine))",
            "@book{mine}",
            ("rare",),
        )
        method.losses = ("loss", "agreement_loss")
        method.describe_losses = lambda: "3 x agreement"
        return method

    def test(self, write, page, monkeypatch, method):
        monkeypatch.setattr("modeling_sit.hub.card_writing.curves_figure", lambda *_: None)
        lines = [{**metrics_line(10), "agreement_loss": 0.125}]
        folder = write(method=method, lines=lines)
        shown = page(folder)
        assert "pretrained without labels by Mine" in words(shown.text)
        assert "https://example.org/mine" in shown.links and "https://arxiv.org/abs/2104.03602" not in shown.links
        assert [block for block in shown.blocks if block.startswith("@")] == ["@book{mine}\n"]
        assert shown.facts["losses"] == "3 x agreement"
        header, row = losses_on(shown)
        assert header[2:4] == ["loss", "agreement loss"] and row[3] == "0.1250"
        assert "reconstruction loss" not in header
        tags = ModelCard.load(folder / "README.md").data.tags
        assert "rare" in tags and "masked-image-modeling" not in tags


@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
def test_features_are_those_that_the_configuration_names(write, tiny_config, pooling):
    config = tiny_config(pooling=pooling)
    (line,) = (line for line in text_of(write(config=config)).splitlines() if line.startswith("features = "))
    model = SiTModel(config).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    output = model(**inputs)
    names = {"model": model, "inputs": inputs, "tokens": output.last_hidden_state}
    exec(line, names)
    torch.testing.assert_close(names["features"], output.pooler_output)
