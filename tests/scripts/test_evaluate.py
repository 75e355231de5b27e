"""scripts/evaluate.py from flags to `eval_results.json`, and its errors."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from forked_python import run_forked
from huggingface_hub import ModelCard
from program_process import start_together
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation import run as evaluation
from modeling_sit.evaluation.features import frozen_features
from modeling_sit.runtime.fingerprints import model_fingerprint

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
COLORS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (210, 30, 30)}


@pytest.fixture
def run(run_program):
    """Run the command in this process with these flags; its exit code."""
    return lambda *flags: run_program("evaluate", *flags)


@pytest.fixture(scope="module")
def vit() -> ViTModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4
    )
    return ViTModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def model_folder(vit, tmp_path) -> Path:
    vit.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def colors(tmp_path_factory) -> Path:
    """A folder of noisy images of one color each: 8 a class to train, 3 to validate."""
    folder = tmp_path_factory.mktemp("colors")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, color in COLORS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(color + generator.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def results_in(folder: Path) -> dict:
    return json.loads((folder / "eval_results.json").read_text())


def test_digits_from_any_folder_as_scikit_learn_has_them(vit, model_folder, tmp_path):
    command = [SCRIPT, "--model_name_or_path", "model", "--dataset", "digits", "--device", "cpu"]
    ended = run_forked(command, tmp_path / "log", errors=tmp_path / "errors", folder=tmp_path)
    errors = (tmp_path / "errors").read_text()
    assert ended.exitcode == 0, errors
    assert re.search(r"^knn +accuracy +0\.\d{4} +0\.\d{4} to 0\.\d{4}$", ended.said, re.MULTILINE)
    assert all(line.startswith("features:") for line in errors.splitlines() if line), errors

    images = load_images("digits")
    processor = ViTImageProcessor.from_pretrained(model_folder)
    features, labels = [], []
    for split in (images.train, images.validation):
        inputs = processor([decode_image(image) for image in split["image"]], return_tensors="pt")
        with torch.no_grad():
            features.append(vit(**inputs).last_hidden_state[:, 0].numpy())
        labels.append(np.array(split["label"]))
    classifier = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    predictions = classifier.fit(features[0], labels[0]).predict(features[1])
    results = results_in(model_folder)
    intervals = results["knn"].pop("intervals")
    assert set(intervals) == {"accuracy", "top_5_accuracy", "macro_f1"}
    assert all(low < results["knn"][name] < high for name, (low, high) in intervals.items())
    assert results == {
        "knn": {
            # one image of 360 for ties that fall differently in rounding
            "accuracy": pytest.approx(accuracy_score(labels[1], predictions), abs=1.5 / 360),
            "top_5_accuracy": pytest.approx(0.87, abs=0.1),
            "macro_f1": pytest.approx(f1_score(labels[1], predictions, average="macro"), abs=0.01),
            "k": 20,
            "temperature": 0.07,
            "num_train": 1437,
            "num_validation": 360,
            "skipped": 0,
            "dataset": "digits",
            "split": "test",
            "pooling": "token",
            "layer": -1,
            "model_name_or_path": "model",
            "from_scratch": False,
            "weights_fingerprint": model_fingerprint(str(model_folder)),
        }
    }


def test_flags_reach_what_they_set(run, model_folder, colors, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset: {colors}\nmodel_name_or_path: {model_folder}\nknn_k: 3\npooling: mean\n")
    flags = ["--pooling", "token_mean", "--knn_temperature", 0.5, "--per_device_eval_batch_size", 5]
    flags += ["--output_dir", tmp_path / "new" / "folder", "--dataloader_num_workers", 1]
    assert run(recipe, *flags) == 0
    assert re.search(r"accuracy +1\.0000 +1\.0000 to 1\.0000", capsys.readouterr().out)
    results = results_in(tmp_path / "new" / "folder")["knn"]
    assert (results["accuracy"], results["num_train"], results["num_validation"]) == (1.0, 24, 9)
    assert (results["k"], results["temperature"], results["pooling"]) == (3, 0.5, "token_mean")
    assert (results["dataset"], results["split"]) == (str(colors), "val")
    assert not (model_folder / "eval_results.json").exists()


@pytest.mark.parametrize("more", [[], ["--from_scratch"]])
def test_the_pooling_is_the_models(run, save_tiny_sit, colors, tmp_path, more):
    model = save_tiny_sit(tmp_path / "sit", pooling="mean")
    assert run("--model_name_or_path", model, "--dataset", colors, "--output_dir", tmp_path / "out", *more) == 0
    assert results_in(tmp_path / "out")["knn"]["pooling"] == "mean"


def test_before_any_training(run, vit, model_folder, colors, tmp_path, monkeypatch):
    encoders = []
    monkeypatch.setattr(
        evaluation,
        "frozen_features",
        lambda model, *rest, **settings: encoders.append(model) or frozen_features(model, *rest, **settings),
    )
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        flags = ["--from_scratch", "--seed", seed, "--output_dir", tmp_path / name]
        assert run("--model_name_or_path", model_folder, "--dataset", colors, *flags) == 0
        assert results_in(tmp_path / name)["knn"]["from_scratch"] is True
    first, again, other = (encoder.embeddings.patch_embeddings.projection.weight for encoder in encoders[::2])
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, vit.embeddings.patch_embeddings.projection.weight)
    assert not (model_folder / "eval_results.json").exists()


def test_every_protocol_at_once_and_into_the_card(run, model_folder, colors, capsys):
    card = model_folder / "README.md"
    card.write_text("---\nlicense: apache-2.0\n---\n\n# A card\n")
    flags = ["--model_name_or_path", model_folder, "--dataset", colors, "--knn_k", 3, "--bootstrap_resamples", 20]
    flags += ["--protocols", "knn,linear,fewshot,retrieval", "--fewshot_labels", "50%", "2", "--update_model_card"]
    assert run(*flags, "--layer", 1) == 0
    first = ModelCard.load(card)
    results = results_in(model_folder)
    assert list(results) == ["knn", "linear", "fewshot", "retrieval"]
    assert {result["layer"] for result in results.values()} == {1}
    assert results["fewshot"]["num_chosen"] == {"50%": 12, "2": 6}
    assert set(results["fewshot"]["std"]) == set(results["fewshot"]["intervals"])
    out = capsys.readouterr().out
    for protocol, result in results.items():
        for name, ends in result["intervals"].items():
            assert ends[0] <= result[name] <= ends[1]
            assert re.search(rf"^{protocol} +{name} +{result[name]:.4f} ", out, re.MULTILINE)
    figures = {result.metric_name: result for result in first.data.eval_results}
    assert figures["knn accuracy"].metric_value == pytest.approx(results["knn"]["accuracy"])
    assert (figures["knn accuracy"].dataset_type, figures["knn accuracy"].dataset_split) == (colors.name, "val")
    assert run(*flags) == 0
    assert len(ModelCard.load(card).data.eval_results) == len(first.data.eval_results)
    assert ModelCard.load(card).data.eval_results[0].metric_args["layer"] == -1
    weights = load_file(model_folder / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, model_folder / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert run(*flags, "--protocols", "knn") == 0
    assert {result.metric_name.split()[0] for result in ModelCard.load(card).data.eval_results} == {"knn"}
    assert results_in(model_folder).keys() == {"knn"}
    assert "dropped linear, fewshot, retrieval: " in capsys.readouterr().err


def test_several_labels_per_image(run, model_folder, colors, tmp_path):
    images = load_images(str(colors))
    names = ["blue", "not red", "not blue"]
    label = datasets.List(datasets.ClassLabel(names=names))
    splits = {}
    for split, rows in (("train", images.train), ("test", images.validation)):
        labels = [[[0, 1], [1, 2], [2]][number] for number in rows["label"]]
        splits[split] = rows.remove_columns("label").add_column("label", labels, feature=label)
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    flags = ["--protocols", "knn,linear,fewshot,retrieval", "--knn_k", 3, "--fewshot_labels", "2"]
    assert run("--model_name_or_path", model_folder, "--dataset", tmp_path / "saved", *flags) == 0
    results = results_in(model_folder)
    for protocol, name in (("knn", ""), ("linear", ""), ("fewshot", "_2_per_class"), ("retrieval", "")):
        assert results[protocol][f"mean_average_precision{name}"] > 0.9
    assert results["knn"]["macro_f1"] == 1.0


def test_two_processes_measure_what_one_does(run, model_folder, colors, tmp_path):
    flags = ["--model_name_or_path", model_folder, "--dataset", colors, "--protocols", "knn,linear", "--knn_k", 3]
    flags += ["--per_device_eval_batch_size", 5, "--device", "cpu", "--output_dir"]
    assert run(*flags, tmp_path / "one") == 0
    processes = start_together("evaluate", *flags, tmp_path / "two", log=tmp_path / "log")
    assert [process.wait() for process in processes] == [0, 0], (tmp_path / "log").read_text()
    assert results_in(tmp_path / "two") == results_in(tmp_path / "one")
    assert (tmp_path / "log").read_text().count("written to") == 1


def test_two_processes_tell_a_mistake_once(model_folder, colors, tmp_path):
    flags = ["--model_name_or_path", model_folder, "--dataset", colors / "train", "--device", "cpu"]
    processes = start_together("evaluate", *flags, log=tmp_path / "log")
    assert [process.wait() for process in processes] == [1, 1]
    log = (tmp_path / "log").read_text()
    assert log.count("error: ") == 1 and "--validation_split" in log and "Traceback" not in log


def test_classes_without_a_training_image(run, model_folder, colors, tmp_path, capsys):
    shutil.copytree(colors, tmp_path / "colors")
    shutil.rmtree(tmp_path / "colors" / "train" / "red")
    error = one_line_error(run, capsys, "--model_name_or_path", model_folder, "--dataset", tmp_path / "colors")
    assert "--validation_split" in error and "red" in error


def test_classes_with_one_image(run, model_folder, colors, tmp_path, capsys):
    shutil.copytree(colors, tmp_path / "colors")
    for folder in (tmp_path / "colors" / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    flags = ["--model_name_or_path", model_folder, "--dataset", tmp_path / "colors", "--protocols", "linear"]
    error = one_line_error(run, capsys, *flags)
    assert "--linear_c" in error
    assert run(*flags, "--linear_c", 0.1) == 0


def test_splits_can_be_exchanged(run, model_folder, colors):
    flags = ["--train_split", "val", "--validation_split", "train", "--knn_k", 1]
    assert run("--model_name_or_path", model_folder, "--dataset", colors, *flags) == 0
    results = results_in(model_folder)["knn"]
    assert (results["num_train"], results["num_validation"], results["split"]) == (9, 24, "train")


def test_results_of_other_protocols_stay(run, model_folder, colors):
    earlier = {"linear": {"accuracy": 0.5}, "knn": {"accuracy": 0.1, "k": 7}}
    (model_folder / "eval_results.json").write_text(json.dumps(earlier))
    assert run("--model_name_or_path", model_folder, "--dataset", colors) == 0
    results = results_in(model_folder)
    assert results["linear"] == earlier["linear"]
    assert (results["knn"]["accuracy"], results["knn"]["k"]) == (1.0, 20)
    assert [path.name for path in model_folder.glob("eval_results*")] == ["eval_results.json"]


def test_heads_are_left_out(run, vit, model_folder, colors):
    """A classifier's folder measures its encoder, though `AutoModel` finds no pooler there."""
    classifier = ViTForImageClassification(vit.config)
    classifier.vit.load_state_dict(vit.state_dict())
    classifier.save_pretrained(model_folder)
    assert run("--model_name_or_path", model_folder, "--dataset", colors) == 0
    assert results_in(model_folder)["knn"]["accuracy"] == 1.0


def test_unreadable_images_are_counted_and_named(run, model_folder, tmp_path, colors, caplog):
    folder = tmp_path / "colors"
    shutil.copytree(colors, folder)
    broken = [folder / "train" / "green" / "broken.png", folder / "val" / "red" / "broken.png"]
    for path in broken:
        path.write_bytes(b"broken")
    assert run("--model_name_or_path", model_folder, "--dataset", folder) == 0
    results = results_in(model_folder)["knn"]
    assert (results["num_train"], results["num_validation"], results["skipped"]) == (24, 9, 2)
    lines = [line for line in caplog.messages if line.startswith("skipped ")]
    assert [line.split(": ")[0] for line in lines] == [f"skipped {path}" for path in broken]
    assert all("it is no image" in line for line in lines)


def test_images_without_a_label_are_left_out(run, model_folder, tmp_path, colors):
    images = load_images(str(colors))
    for labeled in (5, 0):
        labels = [0, 1, 2, 1, 0, *[-1] * 4] if labeled else [-1] * 9
        unlabeled = images.validation.remove_columns("label").add_column(
            "label", labels, feature=images.train.features["label"]
        )
        folder = tmp_path / f"saved{labeled}"
        datasets.DatasetDict({"train": images.train, "test": unlabeled}).save_to_disk(folder)
        assert run("--model_name_or_path", model_folder, "--dataset", folder) == (0 if labeled else 1)
        assert results_in(model_folder)["knn"]["num_validation"] == 5


def one_line_error(run, capsys, *flags, code: int = 1) -> str:
    capsys.readouterr()
    assert run(*flags) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("features:")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "code", "messages"),
    [
        (["--protocols", "knn,liner"], 2, ["--protocols", "'liner'", "only knn"]),
        (["--protocols", ""], 2, ["--protocols", "none of knn"]),
        (["--knn_k", "0"], 2, ["--knn_k: ", "at least 1"]),
        (["--knn_k", "25"], 1, ["--knn_k: 25", "24 training images"]),
        (
            ["--protocols", "linear,fewshot", "--fewshot_labels", "9"],
            1,
            ["--fewshot_labels: ", "than 9", "blue, green, red", "8"],
        ),
        (["--fewshot_labels", "200%"], 2, ["--fewshot_labels: '200%'"]),
        (["--layer", "3"], 1, ["--layer: no layer 3", "to 2"]),
        (["--layer", "-4"], 1, ["--layer: no layer -4", "-3"]),
        (["--from_scratch"], 1, ["--from_scratch", "--output_dir"]),
        (["--from_scratch", "--output_dir", "x", "--update_model_card"], 1, ["--update_model_card", "--from_scratch"]),
        (["--pooling", "both"], 2, ["--pooling", "token_mean"]),
        (["--linear_solver", "adam"], 2, ["--linear_solver", "lbfgs"]),
        (["--update_model_card"], 1, ["--update_model_card", "README.md"]),
        (["--knn_temperature", "0"], 2, ["--knn_temperature: ", "got 0.0"]),
        (["--knn_temperature", "nan"], 2, ["--knn_temperature: ", "got nan"]),
        (["--device", "gpu"], 1, ["--device"]),
        (["--validation_split", "train"], 1, ["--validation_split", "training split"]),
        (["--validation_split", "valid"], 1, ["--validation_split", "val"]),
        (["--per_device_eval_batch_size", "0"], 2, ["--per_device_eval_batch_size: ", "at least 1"]),
    ],
)
def test_flag_out_of_range(run, model_folder, colors, capsys, flags, code, messages):
    flags = ["--model_name_or_path", model_folder, "--dataset", colors, *flags]
    error = one_line_error(run, capsys, *flags, code=code)
    assert all(message in error for message in messages)
    assert not (model_folder / "eval_results.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(run, model_folder, colors, capsys):
    flags = ["--model_name_or_path", model_folder, "--dataset", colors, "--device", "cuda"]
    assert "--device" in one_line_error(run, capsys, *flags)


def test_data_without_validation_split_or_labels(run, model_folder, colors, capsys):
    model = ["--model_name_or_path", model_folder, "--dataset"]
    assert "--validation_split" in one_line_error(run, capsys, *model, colors / "train")
    error = one_line_error(run, capsys, *model, colors / "train" / "red")
    assert "--validation_split" in error or "--label_column" in error


def test_data_without_labels(run, model_folder, tmp_path, capsys):
    for split in ("train", "test"):
        (tmp_path / "pile" / split).mkdir(parents=True)
        PIL.Image.new("RGB", (16, 16)).save(tmp_path / "pile" / split / "0.png")
    flags = ["--model_name_or_path", model_folder, "--dataset", tmp_path / "pile"]
    assert "--label_column" in one_line_error(run, capsys, *flags)


def test_model_folder_with_something_missing(run, vit, model_folder, colors, tmp_path, capsys):
    flags = ["--dataset", colors, "--output_dir", tmp_path / "out", "--model_name_or_path"]
    error = one_line_error(run, capsys, *flags, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in error and "no such folder" in error
    (tmp_path / "empty").mkdir()
    assert "config.json" in one_line_error(run, capsys, *flags, tmp_path / "empty")

    weights = model_folder / "model.safetensors"
    complete = weights.read_bytes()
    weights.write_bytes(complete[: len(complete) // 2])
    assert str(model_folder) in one_line_error(run, capsys, *flags, model_folder)
    state = {name: tensor for name, tensor in vit.state_dict().items() if "patch_embeddings" not in name}
    vit.save_pretrained(model_folder, state_dict=state)
    assert "embeddings.patch_embeddings.projection" in one_line_error(run, capsys, *flags, model_folder)
    weights.write_bytes(complete)
    (model_folder / "preprocessor_config.json").unlink()
    assert str(model_folder) in one_line_error(run, capsys, *flags, model_folder)
    assert not (tmp_path / "out").exists()


def test_command_with_a_model_on_the_hub_needs_an_output_folder(run, colors, capsys):
    error = one_line_error(run, capsys, "--model_name_or_path", "someone/some-vit", "--dataset", colors)
    assert "--output_dir" in error


def test_features_that_are_not_finite(run, vit, model_folder, colors, capsys):
    state = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    state["layernorm.bias"][3] = torch.nan
    vit.save_pretrained(model_folder, state_dict=state)
    assert "not finite" in one_line_error(run, capsys, "--model_name_or_path", model_folder, "--dataset", colors)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_results_file_of_something_else_is_left_alone(run, model_folder, colors, capsys, content):
    (model_folder / "eval_results.json").write_text(content)
    error = one_line_error(run, capsys, "--model_name_or_path", model_folder, "--dataset", colors)
    assert "eval_results.json" in error
    assert (model_folder / "eval_results.json").read_text() == content
