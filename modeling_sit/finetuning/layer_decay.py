"""Learning rates that fall from the classifier to the embeddings."""

import re
from collections.abc import Sequence

from torch import nn

from modeling_sit.runtime.optimizer import NO_DECAY_NAMES

# `encoder.layer.3.` of SiT, `layers.3.` of transformers' ViT, `blocks.3.` of others, `stages.1.layers.3.` of ResNets.
BLOCK = re.compile(r"(?:^|\.)(?:stages\.(\d+)\.)?(?:layer|layers|blocks)\.(\d+)\.")
# What else is in a stage: what makes the image smaller in front of its blocks.
STAGE = re.compile(r"(?:^|\.)stages\.(\d+)\.")
# `embedder.` of ResNets, `pre_layrnorm.` of CLIP, `patch_embed.`, `pos_embed.`, `stem.` and `norm_pre.` of timm.
EMBEDDINGS = re.compile(r"(?:embeddings|embedder|pre_layrnorm|patch_embed|pos_embed|stem|norm_pre)\.")
# Tokens and positions, by the ends of their names: timm has them beside the embeddings.
TOKENS = (*NO_DECAY_NAMES, "pos_embed", "reg_token", "dist_token", "register_tokens", "distillation_token")


def layer_decay_groups(model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float) -> list[dict]:
    """Trainable parameters in groups of one learning rate and one weight decay, for PyTorch's optimizers.

    The rate of the classifier and the last layer norm is the full one; the last block's is `layer_decay` times that, and so
    on down to the embeddings (Clark et al. 2020; BEiT's and MAE's fine-tuning). Biases, norms, tokens and positions do not
    decay.

    Args:
        model (`nn.Module`): A Vision Transformer with a classifier.
        learning_rate, weight_decay (`float`): Of the classifier.
        layer_decay (`float` in (0, 1]): Factor from a block to the one below it.

    Returns:
        `list[dict]`: Full rate first, for whoever logs the rate of the first group.
    """
    blocks = blocks_of(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of(name, blocks)
        decays = not (parameter.ndim <= 1 or name.endswith(TOKENS))
        groups.setdefault((depth, not decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": 0.0 if is_vector else weight_decay,
        }
        for (depth, is_vector), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def blocks_of(model: nn.Module) -> list[tuple[int, int]]:
    """The stage, and the block in it, of every block of a model, from the embeddings to the classifier."""
    return sorted({block for name, _ in model.named_parameters() if (block := block_of(name)) is not None})


def depth_of(name: str, blocks: Sequence[tuple[int, int]]) -> int:
    """How far below the classifier, which is at 0 with the last layer norm, a parameter of this name is; `blocks` are all in order."""
    block = block_of(name)
    if block is not None:
        return len(blocks) - blocks.index(block)
    return len(blocks) + 1 if EMBEDDINGS.search(name) or name.endswith(TOKENS) else 0


def block_of(name: str) -> tuple[int, int] | None:
    """The stage, and the block in it, both from 0, that a parameter of this name belongs to; `None` for those before and after the
    blocks. What is in a stage and in none of its blocks belongs to the first one."""
    match = BLOCK.search(name) or STAGE.search(name)
    # Some ViTs embed patches by a ResNet, which has stages of its own.
    if match is None or EMBEDDINGS.search(name[: match.start() + 1]):
        return None
    return int(match[1] or 0), int(match[2]) if match.re is BLOCK else 0
