"""What the tests of pretraining share: arguments, the method SiT, and whole runs in this process."""

from pathlib import Path

import pytest
import torch
import yaml
from pretraining_runs import RecordedRun, arguments_of

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.presets import PAPER
from modeling_sit.pretraining.resolve import settings_of_others, with_values
from modeling_sit.pretraining.run import pretrain as pretrain_images
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def flags_of():
    """All arguments of a run, the paper's but for those that are given."""

    def flags(**arguments) -> PretrainingFlags:
        keywords = {"dataset": "digits", "output_dir": "out", "preset": "paper", **arguments}
        flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), keywords, function="pretrain"))
        if flags.run.preset != "paper":
            return flags
        method = METHODS.get(flags.run.method, METHODS["sit"])  # of no method, the error comes later
        others = settings_of_others(method)
        paper = {name: value for name, value in {**PAPER, **method.paper}.items() if name not in others}
        return with_values(flags, {**method.defaults, **paper})

    return flags


@pytest.fixture
def create_sit(tiny_config, flags_of):
    """Make the method SiT of a configuration, its networks in training mode."""

    def create(config: SiTConfig | None = None, **arguments) -> SiT:
        config, flags = config or tiny_config(), flags_of(**arguments)
        method = SiT(config, create_processor(config, flags.model, flags.corruption), flags)
        method.student.train()
        return method

    return create


@pytest.fixture
def pretrain(forget_accelerators, tmp_path):
    """Pretrain in this process, with [`arguments_of`]; gives the output folder."""

    def pretrain(name: str = "out", **arguments) -> Path:
        forget_accelerators()
        return pretrain_images(**arguments_of(tmp_path / name, **arguments)).output_dir

    return pretrain


@pytest.fixture
def refused(pretrain):
    """The error of a run that cannot go on for a user's mistake."""

    def refused(name: str = "refused", **arguments) -> SiTError:
        with pytest.raises(SiTError) as error:
            pretrain(name, **arguments)
        return error.value

    return refused


@pytest.fixture
def recorded(forget_accelerators, monkeypatch, tmp_path):
    """Pretrain SiT on batches of four images and record what the student is given; by arguments, or by a recipe of the same."""
    forward = SiTForPreTraining.forward
    batches = []

    def recording(model, pixel_values, **inputs):
        output = forward(model, pixel_values, **inputs)
        if model.training:  # a preview is no batch
            given = {"pixel_values": pixel_values, **inputs, "projection": output.projection}
            given["reconstruction"] = output.reconstruction
            batches.append(
                {name: value.detach().clone() if torch.is_tensor(value) else value for name, value in given.items()}
            )
        return output

    monkeypatch.setattr(SiTForPreTraining, "forward", recording)

    def run(
        settings: dict, name: str = "out", by_recipe: bool = False, steps: int = 2, dataset="digits", **sizes
    ) -> RecordedRun:
        batches.clear()
        forget_accelerators()
        overrides = {field: value for field, value in sizes.items() if field != "channels"}
        arguments = arguments_of(
            tmp_path / name, overrides=overrides, channels=sizes.get("channels", 1), max_steps=steps
        )
        arguments = {**arguments, "per_device_train_batch_size": 4, "dataset": str(dataset), **settings}
        if by_recipe:
            recipe = {**arguments, "output_dir": str(arguments["output_dir"])}
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            arguments = {name: arguments[name] for name in ("dataset", "output_dir")}
            arguments["recipe"] = tmp_path / "recipe.yaml"
        return RecordedRun(pretrain_images(**arguments).output_dir, list(batches))

    return run
