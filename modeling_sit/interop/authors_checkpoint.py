"""Checkpoints of the authors' code of SiT. They hold a student and a teacher, each with a backbone and two heads.

The backbone has timm's names. The projection head differs from this package's default in a ReLU after its first layer.
The pixel decoder has three layers as wide as the tokens. [`SiTConfig`] can describe both.
"""

from collections.abc import Mapping
from typing import Any

import torch

from modeling_sit.interop.encoders import EncoderWeights, from_timm_network, name_weights

BACKBONE = "backbone."
# Prefixes of the heads' weights in the authors' code, and SiT's prefixes.
HEADS = {
    "head.mlp.": "projection_head.mlp.",
    "head_recons.mlp.": "decoder.mlp.",
    "head_recons.convTrans.": "decoder.projection.",
}
# The projection head is a sequence of linear, batch norm, ReLU, linear, batch norm, GELU, linear, batch norm.
FIRST_LINEAR, FIRST_NORM, LAST_LINEAR, LAST_NORM = (f"projection_head.mlp.{place}" for place in (0, 1, 6, 7))
# DINO's head has the same prefix, but no batch norm in this place.
MARK_OF_PROJECTION_HEAD = "head.mlp.1.running_mean"
MARK_OF_DECODER = "head_recons.convTrans.weight"


def is_authors_network(network: Mapping[str, torch.Tensor]) -> bool:
    """Whether these are the weights of a backbone with heads, by the names of the authors' code or of DINO's."""
    return any(name.startswith(BACKBONE) for name in network)


def from_authors_network(
    network: Mapping[str, torch.Tensor], num_attention_heads: int | None = None
) -> EncoderWeights:
    """
    One network of a checkpoint. DINO's head is left out.

    Args:
        network (`Mapping[str, torch.Tensor]`):
            Weights named `backbone.*`, and `head.mlp.*` and `head_recons.*` if it has these heads, without `module.`.
        num_attention_heads (`int`, *optional*): As for [`~interop.encoders.from_timm_network`].

    Raises:
        `ValueError`: If weights of the backbone are missing, or have no place in a SiT. The message names all of them.
    """
    backbone = {name.removeprefix(BACKBONE): value for name, value in network.items() if name.startswith(BACKBONE)}
    encoder = from_timm_network(backbone, num_attention_heads)
    encoder.left_out = [f"{BACKBONE}{name}" for name in encoder.left_out]
    others = {name: value for name, value in network.items() if not name.startswith(BACKBONE)}
    known = [
        prefix for prefix in HEADS if (MARK_OF_PROJECTION_HEAD if prefix == "head.mlp." else MARK_OF_DECODER) in others
    ]
    for name, value in others.items():
        prefix = next((prefix for prefix in known if name.startswith(prefix)), None)
        if prefix is None:
            encoder.left_out.append(name)
        else:
            encoder.heads[HEADS[prefix] + name.removeprefix(prefix)] = value
    encoder.settings |= _describe_heads(encoder.heads)
    return encoder


def _describe_heads(heads: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of the configuration, from the shapes of the heads. The activation is that of the authors' code."""
    settings: dict[str, Any] = {}
    try:
        if f"{FIRST_NORM}.running_mean" in heads:
            settings |= {
                "projection_hidden_size": len(heads[f"{FIRST_LINEAR}.weight"]),
                "projection_size": len(heads[f"{LAST_LINEAR}.weight"]),
                "projection_output_norm": f"{LAST_NORM}.running_mean" in heads,
                "projection_first_act": "relu",
            }
        if "decoder.projection.weight" in heads:
            settings |= {
                "decoder_hidden_size": heads["decoder.projection.weight"].shape[0],
                "decoder_num_hidden_layers": sum(
                    name.startswith("decoder.mlp.") and name.endswith(".weight") for name in heads
                ),
            }
    except KeyError as problem:
        raise ValueError(f"a head of the authors' code lacks {problem}; it has {name_weights(heads)}") from problem
    return settings
