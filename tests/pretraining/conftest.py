"""What the tests of pretraining share: arguments, the method SiT, and whole runs in this process."""

from pathlib import Path

import pytest
from pretraining_runs import arguments_of

from modeling_sit import SiTConfig
from modeling_sit.pretraining.arguments import PretrainingFlags
from modeling_sit.pretraining.methods.sit import SiT
from modeling_sit.pretraining.model_setup import create_processor
from modeling_sit.pretraining.run import pretrain as pretrain_images
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def flags_of():
    """All arguments of a run, defaults but for those that are given."""

    def flags(**arguments) -> PretrainingFlags:
        keywords = {"dataset": "digits", "output_dir": "out", **arguments}
        return PretrainingFlags(*build_arguments(PretrainingFlags.classes(), keywords, function="pretrain"))

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
