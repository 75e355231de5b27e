"""What is compared with pretrained weights starts as new models do, whatever the checkpoint was started from."""

import json
import math

import pytest
import torch
import transformers

from modeling_sit import SiTConfig
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.classifier import load_classifier
from modeling_sit.interop.untrained import untrained_config

WEIGHT = "encoder.layer.0.output.dense.weight"
NORMAL = 0.02


@pytest.fixture
def checkpoint(save_tiny_sit, tmp_path):
    """A checkpoint whose `config.json` says this of its start, and no more."""
    save_tiny_sit(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())

    def write(**start) -> str:
        kept = {name: value for name, value in saved.items() if name not in ("initialization", "initializer_range")}
        path.write_text(json.dumps(kept | start))
        return str(tmp_path)

    return write


def deviations(name: str) -> list[tuple[float, float]]:
    """For the classifier and the encoder from scratch: the weights' standard deviation, and that of Xavier's uniform."""
    torch.manual_seed(0)
    arguments = FinetuningArguments(dataset="some", model_name_or_path=name, from_scratch=True)
    _, classifier = load_classifier(arguments, ["a", "b"], False)
    encoder = random_encoder(load_encoder(name)[0], name, 0)
    weights = [classifier.vit.state_dict()[WEIGHT], encoder.state_dict()[WEIGHT]]
    return [(float(weight.std()), math.sqrt(2 / sum(weight.shape))) for weight in weights]


@pytest.mark.parametrize("start", [{"initializer_range": NORMAL}, {}, {"initialization": "xavier"}])
def test_a_range_alone_does_not_hold_the_rival_back(checkpoint, start):
    for found, xavier in deviations(checkpoint(**start)):
        assert found == pytest.approx(xavier, rel=0.1) and xavier > 5 * NORMAL


def test_what_the_checkpoint_names_is_kept(checkpoint):
    for found, _ in deviations(checkpoint(initialization="normal", initializer_range=NORMAL)):
        assert found == pytest.approx(NORMAL, rel=0.1)


def test_pretrained_weights_and_their_configuration_stay(checkpoint):
    name = checkpoint(initializer_range=NORMAL)
    encoder, _ = load_encoder(name)
    new = untrained_config(encoder.config, name)
    assert (new.initialization, encoder.config.initialization) == ("xavier", "normal")
    assert {**new.to_dict(), "initialization": "normal"} == encoder.config.to_dict()


def test_of_a_file_and_of_other_architectures(tmp_path):
    (tmp_path / "weights.pth").touch()
    assert (
        untrained_config(SiTConfig(initializer_range=NORMAL), str(tmp_path / "weights.pth")).initialization == "xavier"
    )
    vit = transformers.ViTConfig()
    assert untrained_config(vit, str(tmp_path)) is vit
