"""The student: the network that is trained."""

import torch

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.pretraining.arguments import ModelArguments
from modeling_sit.runtime.errors import SiTError


def create_student(config: SiTConfig, arguments: ModelArguments, seed: int) -> SiTForPreTraining:
    """A student with weights from the seed, or from the checkpoint to go on from. Heads without a loss are frozen.

    Raises:
        [`SiTError`]: If there is no such attention implementation, or the checkpoint cannot be loaded.
    """
    torch.manual_seed(seed)
    if arguments.attn_implementation is not None:
        config._attn_implementation = arguments.attn_implementation
    try:
        student = SiTForPreTraining(config)
    except (ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())
        raise SiTError(f"{arguments.attn_implementation}: {reason}", argument="attn_implementation") from problem
    if arguments.model_name_or_path is not None:
        loaded = load_checkpoint(
            arguments.model_name_or_path,
            SiTForPreTraining,
            network=arguments.network,
            num_attention_heads=arguments.num_attention_heads,
            config=config,
        )
        loaded.log_notes()
        student = loaded.model
    student.decoder.requires_grad_(config.reconstruction_weight > 0)
    student.projection_head.requires_grad_(config.contrastive_weight > 0)
    if arguments.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student
