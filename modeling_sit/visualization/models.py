"""The model that reconstructs, which figures need beside the frozen encoder."""

from transformers import BaseImageProcessor

from modeling_sit import SiTForPreTraining
from modeling_sit.interop.load import load_checkpoint
from modeling_sit.runtime.errors import SiTError


def load_reconstructing_model(
    model_name_or_path: str, network: str | None = None, num_attention_heads: int | None = None
) -> tuple[SiTForPreTraining, BaseImageProcessor]:
    """
    Load a pretrained SiT with its decoder, and its image processor.

    Args:
        model_name_or_path, network, num_attention_heads: As of [`~interop.load.load_checkpoint`].

    Returns:
        `tuple[SiTForPreTraining, BaseImageProcessor]`: The model in evaluation mode, on the CPU, in float32, and the
        image processor.

    Raises:
        [`SiTError`]: If there is no such model, or it does not reconstruct images.
    """
    loaded = load_checkpoint(
        model_name_or_path, SiTForPreTraining, network=network, num_attention_heads=num_attention_heads
    )
    missing = [name for name in loaded.missing_keys if name.startswith("decoder.")]
    reason = f"it has no {missing[0]}" if missing else "it was pretrained with reconstruction_weight=0"
    if missing or loaded.model.config.reconstruction_weight == 0:
        raise SiTError(
            f"{model_name_or_path} reconstructs nothing: {reason}",
            argument="model_name_or_path",
            remedy="give a SiT that was pretrained with reconstruction, and not fine-tuned",
        )
    loaded.log_notes()
    return loaded.model, loaded.require_processor()
