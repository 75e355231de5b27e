"""Low-rank adapters (Hu et al. 2021) by `peft`, for a backbone that does not learn."""

import copy
import importlib.util

from torch import nn
from transformers import PreTrainedModel

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.layer_decay import block_of
from modeling_sit.runtime.errors import SiTError

ADAPTER = "default"


class Adapters:
    """
    Puts adapters into a model, in place. Only they and the task's head learn.

    Args:
        model (`PreTrainedModel`): The model.
        arguments (`FinetuningArguments`): Rank, scale, dropout and places of the adapters.

    Raises:
        [`SiTError`]: If `peft` is not installed, or there is no such place.
    """

    def __init__(self, model: PreTrainedModel, arguments: FinetuningArguments):
        if importlib.util.find_spec("peft") is None:
            raise SiTError(
                "peft is not installed", argument="lora_rank", remedy="run pip install 'modeling-sit[lora]'"
            )
        from peft import LoraConfig, LoraModel

        config = LoraConfig(
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha or 2 * arguments.lora_rank,
            lora_dropout=arguments.lora_dropout,
            target_modules=layers_to_adapt(model, arguments.lora_target_modules),
        )
        head = [parameter for name, parameter in model.named_parameters() if is_of_head(model, name)]
        self._tuner = LoraModel(model, config, ADAPTER)
        for parameter in head:
            parameter.requires_grad_(True)

    def merged(self) -> PreTrainedModel:
        """A copy of the model with the adapters added into its weights; its class and the names of its weights are those
        from before."""
        return copy.deepcopy(self._tuner).merge_and_unload()


def layers_to_adapt(model: PreTrainedModel, asked: list[str] | None) -> list[str]:
    """Full names of the linear layers of the blocks, or of those whose names end with one of `asked`.

    Raises:
        [`SiTError`]: If there are none, or no name ends with one of `asked`.
    """
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and block_of(f"{name}.") is not None
    ]
    if not layers:
        raise SiTError(
            f"a {model.config.model_type} has no linear layers in its blocks",
            argument="lora_rank",
            remedy="leave it out, or give `freeze_backbone`",
        )
    if asked is None:
        return layers
    for ending in asked:
        if not any(f".{name}".endswith(f".{ending}") for name in layers):
            ends = sorted({name.rpartition(".")[2] for name in layers})
            raise SiTError(
                f"no linear layer in the blocks is called {ending!r}",
                argument="lora_target_modules",
                remedy=f"their names end with {', '.join(ends)}",
            )
    return [name for name in layers if any(f".{name}".endswith(f".{ending}") for ending in asked)]


def is_of_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter of this name belongs to the task's head, not to the backbone."""
    return not name.startswith(f"{model.base_model_prefix}.")
