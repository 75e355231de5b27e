"""`evaluate` from Python: what it returns, what it writes, and its errors."""

import errno
import json

import pytest
from accelerate.state import AcceleratorState, GradientState

from modeling_sit.data.sources import load_images
from modeling_sit.evaluation import run
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.run import check_results_folder, evaluate
from modeling_sit.runtime import atomic_files
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(autouse=True)
def own_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def model(save_tiny_sit, tmp_path):
    return save_tiny_sit(tmp_path / "model")


@pytest.fixture
def flowers(save_images, tmp_path):
    for number, folder in enumerate(("train/rose", "train/tulip", "val/rose", "val/tulip")):
        save_images(tmp_path / "flowers" / folder, 5, seed=number)
    return tmp_path / "flowers"


def test_results_are_returned_and_written_to_the_models_folder(model, flowers, capsys):
    results = evaluate(str(model), str(flowers), protocols=["knn", "linear"], knn_k=3, linear_c=[0.1], device="cpu")
    assert list(results) == ["knn", "linear"]
    assert results["knn"]["k"] == 3 and results["linear"]["c"] == 0.1 and results["knn"]["split"] == "val"
    assert json.loads((model / "eval_results.json").read_text()) == results
    assert capsys.readouterr().out == ""  # printing is the command's part
    # As a notebook shows them.
    header, _, *rows = (line.strip("| ").split(" | ") for line in results._repr_markdown_().splitlines())
    assert header == ["protocol", "metric", "value", "95 % interval"]
    shown = {(protocol, metric): value for protocol, metric, value, _ in rows}
    assert shown["knn", "accuracy"] == f"{results['knn']['accuracy']:.4f}"
    assert {protocol for protocol, _ in shown} == {"knn", "linear"}


def test_a_recipe_gives_defaults_and_keywords_override_it(model, flowers, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("protocols: linear,knn\nknn_k: 5\nlinear_c: 0.1\n")
    results = evaluate(model, flowers, recipe=recipe, knn_k=2, output_dir=tmp_path / "results", device="cpu")
    assert list(results) == ["linear", "knn"] and results["knn"]["k"] == 2
    assert (tmp_path / "results" / "eval_results.json").exists() and not (model / "eval_results.json").exists()


def test_results_of_other_weights_are_dropped(model, flowers, save_tiny_sit, capsys):
    path, given = model / "eval_results.json", {"knn_k": 2, "linear_c": [0.1], "device": "cpu"}
    evaluate(model, flowers, protocols=["knn", "linear"], **given)
    path.write_text(json.dumps({**json.loads(path.read_text()), "mine": {"accuracy": 1}, "finetune": {"loss": 1}}))
    evaluate(model, flowers, protocols=["linear"], **given)
    assert json.loads(path.read_text()).keys() == {"knn", "linear", "mine", "finetune"}
    # Those of new weights are of no fingerprint.
    evaluate(model, flowers, from_scratch=True, output_dir=model, **given, protocols=["retrieval"])
    assert json.loads(path.read_text()).keys() == {"knn", "linear", "mine", "finetune", "retrieval"}
    save_tiny_sit(model, seed=1)
    assert "dropped" not in capsys.readouterr().err
    evaluate(model, flowers, protocols=["linear"], **given)
    assert json.loads(path.read_text()).keys() == {"linear", "mine", "finetune", "retrieval"}
    assert f"{path}: dropped knn: results of other weights\n" in capsys.readouterr().err


def test_without_a_folder_nothing_is_written(model, flowers, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    assert evaluate(model, flowers, knn_k=2, from_scratch=True, device="cpu")["knn"]["from_scratch"] is True
    loaded = load_encoder(str(model))
    monkeypatch.setattr(run, "load_encoder", lambda *_: loaded)
    assert 0 <= evaluate("someone/some-sit", flowers, knn_k=2, device="cpu")["knn"]["accuracy"] <= 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("has_a_folder", [True, False])
def test_results_that_cannot_be_written_are_not_computed(model, flowers, tmp_path, monkeypatch, has_a_folder):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(atomic_files.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(run, "load_encoder", lambda *_: pytest.fail("it began to compute"))
    place = {"output_dir": tmp_path / "results"} if has_a_folder else {}
    with pytest.raises(SiTError, match=r"eval_results\.json cannot be written: Permission denied; give another"):
        evaluate(model, flowers, knn_k=2, device="cpu", **place)


def test_mistakes(model, flowers):
    with pytest.raises(TypeError, match="did you mean protocols"):
        evaluate(model, flowers, protocol="knn")
    with pytest.raises(SiTError) as error:
        evaluate(model, flowers, protocols="liner")
    assert error.value.argument == "protocols"
    with pytest.raises(SiTError) as error:
        evaluate(model, flowers, knn_k=11, device="cpu")
    assert error.value.argument == "knn_k"


def test_every_result_can_be_written_as_json(model, flowers, tmp_path):
    arguments = {"linear_c": [0.1], "fewshot_labels": ["50%"], "fewshot_draws": 2, "knn_k": 2, "device": "cpu"}
    results = evaluate(model, flowers, protocols=["knn", "linear", "fewshot", "retrieval"], **arguments)
    assert json.loads(json.dumps(results)) == results
    assert load_images(str(flowers)).name == results["knn"]["dataset"]


class TestWorkers:
    def error(self, model, images, **arguments) -> SiTError:
        with pytest.raises(SiTError) as error:
            evaluate(str(model), str(images), knn_k=3, device="cpu", dataloader_num_workers=2, **arguments)
        return error.value

    def test_that_cannot_hand_over_a_batch(self, model, flowers, long_temporary_folder):
        error = self.error(model, flowers)
        assert error.argument == "dataloader_num_workers" and "TMPDIR" in error.remedy

    def test_that_hang(self, model, flowers, hanging_workers):
        assert self.error(model, flowers, dataloader_timeout=1).argument == "dataloader_timeout"


def test_a_misspelled_folder_is_a_matter_of_spelling(tmp_path):
    for name, starts in ((tmp_path / "nosuch", "check the spelling; "), ("someone/nosuch", "for a file of weights")):
        arguments = EvaluationArguments(model_name_or_path=str(name))
        with pytest.raises(SiTError, match="no such folder") as error:
            check_results_folder(arguments)
        assert error.value.remedy.startswith(starts) and "`output_dir`" in error.value.remedy
