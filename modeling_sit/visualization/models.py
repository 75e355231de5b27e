"""The model that reconstructs: the one that figures need beside the frozen encoder."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, BaseImageProcessor

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.evaluation.encoder import check_is_no_missing_folder
from modeling_sit.interop.reading import check_weights_file_flags, has_no_auto_encoder, read_checkpoint
from modeling_sit.runtime.errors import SiTError


def load_reconstructing_model(
    model_name_or_path: str, network: str | None = None, num_attention_heads: int | None = None
) -> tuple[SiTForPreTraining, BaseImageProcessor]:
    """
    Load a SiT checkpoint with its decoder, in float32, and the image processor that goes with it.

    Args:
        model_name_or_path (`str`):
            A folder that `scripts/pretrain.py` wrote, the id of such a model on the Hub, or a file of the authors' code.
        network, num_attention_heads (*optional*): Of a file of weights, as for [`~interop.reading.read_checkpoint`].

    Returns:
        `tuple[SiTForPreTraining, BaseImageProcessor]`: The model in evaluation mode, on the CPU, and the processor.

    Raises:
        [`SiTError`]: If there is no such model, it is not SiT, or it does not reconstruct.
    """
    check_is_no_missing_folder(model_name_or_path)
    named = f"--model_name_or_path {model_name_or_path}"
    folder = Path(model_name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SiTError(f"{named}: no config.json in this folder, so it holds no model")
    check_weights_file_flags(model_name_or_path, network, num_attention_heads)
    if has_no_auto_encoder(model_name_or_path):
        read = read_checkpoint(model_name_or_path, network=network, num_attention_heads=num_attention_heads)
        if not read.reconstructs:
            raise SiTError(f"{named}: it has no decoder of SiT, so it reconstructs nothing; give a pretrained SiT")
        read.log_notes()
        return read.create_model(SiTForPreTraining), read.create_processor()
    try:
        config = AutoConfig.from_pretrained(model_name_or_path)
        if not isinstance(config, SiTConfig):
            raise SiTError(f"{named}: a model of type {config.model_type} reconstructs nothing; give a pretrained SiT")
        if config.reconstruction_weight == 0:
            raise SiTError(f"{named}: pretrained with reconstruction_weight=0, so it reconstructs nothing")
        model, info = SiTForPreTraining.from_pretrained(
            model_name_or_path, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(model_name_or_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        where = "this model cannot be loaded" if folder.is_dir() else "no such folder, nor a model that the Hub gives"
        raise SiTError(f"{named}: {where}: {reason}") from problem
    missing = sorted(name for name in info["missing_keys"] if name.startswith(("vit.", "decoder.")))
    if missing:
        raise SiTError(
            f"{named}: {len(missing)} weights are not there, such as {missing[0]}, so it reconstructs nothing; give the "
            "pretrained model, not the fine-tuned one"
        )
    return model, processor
