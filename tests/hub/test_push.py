"""scripts/push_to_hub.py, and the models' own push_to_hub, against a Hub on this machine: what gets there, what else is said."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from huggingface_hub.utils import logging as hub_logging
from loopback_hub import TOKEN, Repository, environment_for
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor
from modeling_sit.hub.push import push
from modeling_sit.runtime.errors import SiTError

# Runs where nothing called modeling_sit can be imported, with an empty cache.
LOADS = """
import importlib.abc, json, sys

import torch


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "modeling_sit":
            raise ModuleNotFoundError("No module named 'modeling_sit'", name="modeling_sit")


sys.meta_path.insert(0, Blocker())
import PIL.Image
import transformers
from transformers import AutoImageProcessor, pipeline

image, results, *asked = sys.argv[1:]
outputs = {}
for number, (name, auto_class) in enumerate(word.split("=") for word in asked):
    model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    inputs = processor(PIL.Image.open(image), return_tensors="pt")
    with torch.no_grad():
        outputs[f"{name}={auto_class}"] = {
            key: value for key, value in model(**inputs).items() if isinstance(value, torch.Tensor)
        }
    if auto_class == "AutoModelForImageClassification":
        classify = pipeline("image-classification", model=name, trust_remote_code=True)
        outputs[f"{name}=pipeline"] = {each["label"]: torch.tensor(each["score"]) for each in classify(image)}
torch.save(outputs, results)
"""


@pytest.fixture
def run_folder(save_tiny_sit, tmp_path) -> Path:
    """What a run leaves."""
    folder = save_tiny_sit(tmp_path / "flowers-vit")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# Flowers\n\n![loss](loss.png)\n")
    PIL.Image.new("RGB", (4, 4)).save(folder / "loss.png")
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000002" / "optimizer.bin").write_bytes(b"moments")
    return folder


def files_of(repository: Repository) -> set[str]:
    return set(repository.files) - {".gitattributes"}


class TestPushed:
    def test_folder(self, run_program, logged_in, run_folder, capsys):
        assert run_program("push_to_hub", run_folder) == 0
        repository = logged_in.repositories["ada/flowers-vit"]
        assert f"pushed to {logged_in.url}/ada/flowers-vit: 20 files, " in capsys.readouterr().out
        assert {name: (run_folder / name).read_bytes() for name in files_of(repository)} == {
            name: content for name, content in repository.files.items() if name != ".gitattributes"
        }
        assert {"model.safetensors", "README.md", "loss.png", "modeling_sit.py"} < files_of(repository)
        assert not [name for name in repository.files if "checkpoint" in name]
        assert not repository.private
        assert not logged_in.unknown

    def test_what_is_there_is_not_sent_again(self, run_program, logged_in, run_folder):
        assert run_program("push_to_hub", run_folder) == 0
        assert run_program("push_to_hub", run_folder) == 0
        assert len(logged_in.repositories["ada/flowers-vit"].commits) == 1
        (run_folder / "README.md").write_text("anew")
        assert run_program("push_to_hub", run_folder) == 0
        assert logged_in.repositories["ada/flowers-vit"].commits[1]["paths"] == ["README.md"]
        assert sum(method == "PUT" for method, _ in logged_in.requests) == 2  # weights and image, once

    def test_into_an_organization_privately(self, run_program, logged_in, run_folder):
        assert run_program("push_to_hub", run_folder, "--hub_model_id", "lab/vit", "--hub_private_repo") == 0
        assert logged_in.repositories["lab/vit"].private

    def test_with_the_newest_checkpoint_and_none_of_an_older_one(self, run_program, logged_in, run_folder):
        flags = (run_folder, "--hub_strategy", "checkpoint")
        assert run_program("push_to_hub", *flags) == 0
        repository = logged_in.repositories["ada/flowers-vit"]
        assert repository.files["last-checkpoint/optimizer.bin"] == b"moments"
        newer = run_folder / "checkpoints" / "step-00000004"
        newer.mkdir()
        (newer / "other.bin").write_bytes(b"newer")
        assert run_program("push_to_hub", *flags) == 0
        assert {name for name in repository.files if "checkpoint" in name} == {"last-checkpoint/other.bin"}
        # What does not go up with the checkpoint leaves that which is there alone.
        assert run_program("push_to_hub", run_folder) == 0
        assert "last-checkpoint/other.bin" in repository.files

    def test_without_a_card(self, run_program, logged_in, run_folder, capsys):
        (run_folder / "README.md").unlink()
        assert run_program("push_to_hub", run_folder) == 0
        assert "no README.md" in capsys.readouterr().out

    def test_the_card_loads_it_from_where_it_is(self, run_program, logged_in, run_folder):
        loading = 'repository = "{0}"  # or the folder\n\nViTModel.from_pretrained("{0}")'
        card = "---\nlicense: mit\n---\n\n# {1}\n\nMy own flowers-vit.\n\n<!-- sit:begin usage -->\n\n{0}\n\n<!-- sit:end usage -->\n"
        for written, model_id in (("flowers-vit", "ada/flowers-vit"), ("ada/flowers-vit", "lab/vit")):
            (run_folder / "README.md").write_text(card.format(loading.format(written), "flowers-vit"))
            assert run_program("push_to_hub", run_folder, "--hub_model_id", model_id) == 0
            pushed = logged_in.repositories[model_id].files["README.md"].decode()
            assert pushed == card.format(loading.format(model_id), "flowers-vit")

    def test_token_of_the_login(self, run_program, hub, connect, run_folder):
        connect(hub.url, token=None)
        Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True)
        Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
        assert run_program("push_to_hub", run_folder) == 0
        assert "ada/flowers-vit" in hub.repositories

    def test_connection_dropped_once(self, run_program, logged_in, run_folder):
        logged_in.fail("^/stored/", None, times=1)
        assert run_program("push_to_hub", run_folder) == 0
        assert "model.safetensors" in logged_in.repositories["ada/flowers-vit"].files


class TestFromPython:
    def test_gives_the_address(self, logged_in, run_folder):
        assert push(run_folder, hub_model_id="lab/vit", hub_private_repo=True) == f"{logged_in.url}/lab/vit"
        assert logged_in.repositories["lab/vit"].private

    def test_errors_know_their_argument(self, logged_in, run_folder):
        shutil.rmtree(run_folder / "checkpoints")
        for name, value in (("hub_model_id", "a b"), ("hub_strategy", "checkpoint")):
            with pytest.raises(SiTError) as error:
                push(run_folder, **{name: value})
            assert error.value.argument == name
        assert not logged_in.requests

    def test_leaves_the_clients_settings_as_they_were(self, logged_in, run_folder):
        hub_logging.set_verbosity_info()
        try:
            push(run_folder)
            assert hub_logging.get_verbosity() == hub_logging.INFO
            assert not are_progress_bars_disabled()
        finally:
            hub_logging.set_verbosity_warning()


class TestTroubles:
    """Each is one line that names what to do; nothing of it holds the token, and the repository is as it was."""

    @pytest.fixture
    def trouble(self, one_line_error, run_folder):
        def trouble(*flags, folder: Path = run_folder) -> str:
            message = one_line_error("push_to_hub", folder, *flags)
            assert TOKEN not in message
            return message

        return trouble

    def test_not_logged_in(self, trouble, hub, connect):
        connect(hub.url, token=None)
        message = trouble()
        assert "not logged in" in message and "`hf auth login`" in message and "HF_TOKEN" in message
        assert not hub.requests

    def test_token_that_the_hub_does_not_know(self, trouble, hub, connect):
        connect(hub.url, token="hf_unknown")
        hub.fail("whoami", 401, body={"error": "no such token hf_unknown"})
        message = trouble()
        assert "does not know your token" in message and "`hf auth login`" in message
        assert "hf_unknown" not in message

    def test_token_for_reading(self, trouble, hub, connect):
        hub.add_user("hf_reader", "ada", role="read")
        connect(hub.url, token="hf_reader")
        assert "for reading only" in trouble()

    def test_name_of_others(self, trouble, logged_in):
        message = trouble("--hub_model_id", "bell/vit")
        assert "may not write to bell/vit" in message and "--hub_model_id" in message
        assert "don't have the rights" in message

    def test_repository_of_others(self, trouble, logged_in):
        logged_in.repositories["bell/vit"] = Repository(writers=("bell",))
        assert "may not write to bell/vit" in trouble("--hub_model_id", "bell/vit")
        assert not logged_in.repositories["bell/vit"].commits

    def test_gated_repository(self, trouble, logged_in):
        logged_in.repositories["bell/vit"] = Repository(gated=True, writers=("bell",))
        logged_in.fail("repos/create", 409, body={"url": f"{logged_in.url}/bell/vit"})
        message = trouble("--hub_model_id", "bell/vit")
        assert "bell/vit is gated" in message and f"{logged_in.url}/bell/vit" in message

    @pytest.mark.parametrize("name", ["a/b/c", "two words", "-vit", "vit--x"])
    def test_no_name(self, trouble, logged_in, name):
        assert f"--hub_model_id: {name!r} is no name for a repository" in trouble(f"--hub_model_id={name}")
        assert not logged_in.requests

    def test_public_where_it_was_to_be_private(self, trouble, logged_in):
        logged_in.repositories["ada/vit"] = Repository(private=False, writers=("ada",))
        assert "exists and is public" in trouble("--hub_model_id", "vit", "--hub_private_repo")
        assert not logged_in.repositories["ada/vit"].commits

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (400, "refuses ada/flowers-vit: error 400 (it says: too odd)"),
            (401, "does not know your token"),
            (403, "may not write to ada/flowers-vit"),
            (409, "another change to ada/flowers-vit came first (it says: too odd)"),
            (429, "the Hub fails: error 429"),
            (500, "the Hub fails: error 500 (it says: too odd)"),
            (None, "no answer from the Hub"),
        ],
    )
    def test_commit_that_fails(self, trouble, logged_in, status, expected):
        logged_in.fail("/commit/", status, body={"error": "too odd"})
        message = trouble()
        assert expected in message
        assert files_of(logged_in.repositories["ada/flowers-vit"]) == set()

    def test_upload_that_fails_says_nothing_of_addresses(self, trouble, logged_in):
        """They are signed, and good for whoever has them."""
        logged_in.fail("^/stored/", 403)
        message = trouble()
        assert "may not write" in message
        assert "/stored/" not in message

    def test_nobody_there(self, trouble, connect):
        connect("http://127.0.0.1:1")
        message = trouble()
        assert "no answer from the Hub at http://127.0.0.1:1" in message and "try again later" in message

    def test_offline(self, trouble, logged_in, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        message = trouble()
        assert "HF_HUB_OFFLINE is set" in message and "unset it" in message

    def test_token_in_a_file(self, trouble, logged_in, run_folder):
        (run_folder / "metrics.jsonl").write_text(f'{{"note": "{TOKEN}"}}\n')
        assert f"{run_folder / 'metrics.jsonl'} holds your Hub token" in trouble()
        assert not logged_in.requests

    def test_no_folder_no_model_no_checkpoint(self, trouble, logged_in, run_folder, tmp_path):
        assert "no such folder" in trouble(folder=tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "holds no model" in trouble(folder=tmp_path / "empty")
        (run_folder / "checkpoints" / "step-00000002").rename(run_folder / "checkpoints" / "mine")
        assert "has no checkpoint" in trouble("--hub_strategy", "checkpoint")

    def test_unknown_flag(self, one_line_error, run_folder):
        assert "--hub_token" in one_line_error("push_to_hub", run_folder, "--hub_token", "x", code=2)


class TestLoadedElsewhere:
    """By the repository's name, from an empty cache, in a process that has no such package."""

    def test_outputs_are_equal(self, run_program, logged_in, run_folder, tiny_config, save_images, tmp_path):
        torch.manual_seed(1)
        names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
        classifier = SiTForImageClassification(tiny_config(pooling="token_mean", **names)).eval()
        processor = SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8)
        vit = ViTForImageClassification(
            ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
        ).eval()
        pretrained = SiTForPreTraining.from_pretrained(run_folder).eval()

        assert run_program("push_to_hub", run_folder) == 0
        classifier.push_to_hub("ada/classifier")
        processor.push_to_hub("ada/classifier", private=True)
        vit.push_to_hub("ada/vit")
        ViTImageProcessor(size={"height": 16, "width": 16}).push_to_hub("ada/vit")

        image = save_images(tmp_path / "images", 1) / "00.png"
        asked = {
            "ada/flowers-vit=AutoModel": pretrained.vit,
            "ada/flowers-vit=AutoModelForPreTraining": pretrained,
            "ada/classifier=AutoModelForImageClassification": classifier,
        }
        elsewhere = subprocess.run(
            [sys.executable, "-c", LOADS, str(image), str(tmp_path / "results.pt"), *asked],
            cwd=tmp_path,
            env={**os.environ, **environment_for(logged_in.url, tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert elsewhere.returncode == 0, elsewhere.stderr[-3000:]
        outputs = torch.load(tmp_path / "results.pt", weights_only=True)
        inputs = processor(PIL.Image.open(image), return_tensors="pt")
        for name, model in asked.items():
            with torch.no_grad():
                expected = {key: value for key, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
            assert outputs[name].keys() == expected.keys()
            assert all((outputs[name][key] - value).abs().max() < 1e-5 for key, value in expected.items()), name
        with torch.no_grad():
            scores = classifier(**inputs).logits.softmax(-1)[0].tolist()
        found = {label: float(score) for label, score in outputs["ada/classifier=pipeline"].items()}
        assert found == pytest.approx({"cat": scores[0], "dog": scores[1]}, abs=1e-5)

    def test_models_own_push_brings_the_code(self, logged_in, tiny_config, tmp_path):
        torch.manual_seed(2)
        model = SiTForPreTraining(tiny_config())
        model.push_to_hub("vit")
        repository = logged_in.repositories["ada/vit"]
        auto_map = json.loads(repository.files["config.json"])["auto_map"]
        needed = {f"{name.partition('.')[0]}.py" for name in auto_map.values()} | {"losses.py"}
        assert needed <= files_of(repository)
        (tmp_path / "model.safetensors").write_bytes(repository.files["model.safetensors"])
        saved = load_file(tmp_path / "model.safetensors")
        assert all(torch.equal(weight, saved[name]) for name, weight in model.state_dict().items() if name in saved)
        assert not logged_in.unknown
