"""What the tests of fine-tuning share: tiny models, images of a color, and whole runs in this process."""

from pathlib import Path

import pytest
import torch
from finetuning_runs import assert_equal, results_of, write_colors
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from modeling_sit.finetuning import run
from modeling_sit.runtime.errors import SiTError


@pytest.fixture
def sit(save_tiny_sit, tmp_path) -> Path:
    return save_tiny_sit(tmp_path / "sit")


@pytest.fixture
def vit(tmp_path) -> Path:
    """A plain ViT's folder, a classifier of two other labels, as the Hub has them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture(scope="session")
def colors(tmp_path_factory) -> Path:
    """A folder of noisy images of one color each: 20, 10 and 10 to train, 4 a class to validate."""
    return write_colors(tmp_path_factory.mktemp("colors"))


@pytest.fixture
def finetune(tmp_path):
    """Fine-tune in this process; gives the output folder."""

    def finetune(model, dataset, name: str = "out", steps: int = 2, batch_size: int = 16, **arguments) -> Path:
        given = {
            "max_steps": steps,
            "per_device_train_batch_size": batch_size,
            "per_device_eval_batch_size": 64,
            "use_cpu": True,
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
        }
        result = run.finetune(model, dataset, tmp_path / name, **{**given, **arguments})
        assert result.output_dir == tmp_path / name
        assert result.metrics == results_of(result.output_dir)
        assert_equal(result.model.state_dict(), result.model.from_pretrained(result.output_dir).state_dict())
        return result.output_dir

    return finetune


@pytest.fixture
def refused(finetune):
    """The error of a run that cannot go on for a user's mistake."""

    def refused(model, dataset, name: str = "refused", **arguments) -> SiTError:
        with pytest.raises(SiTError) as error:
            finetune(model, dataset, name=name, **arguments)
        return error.value

    return refused
