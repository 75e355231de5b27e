"""The frozen encoder that the protocols measure, with its image processor, and the same before any training."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor, PreTrainedModel

from modeling_sit import SiTModel
from modeling_sit.interop.reading import check_weights_file_flags, has_no_auto_encoder, read_checkpoint
from modeling_sit.runtime.errors import SiTError


def load_encoder(
    model_name_or_path: str, network: str | None = None, num_attention_heads: int | None = None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Load the encoder of a checkpoint, without heads, in float32, and the image processor that goes with it.

    Args:
        model_name_or_path (`str`):
            A folder of `save_pretrained` or the id of a model on the Hub: SiT, or any model that `AutoModel` knows; or what
            [`~interop.reading.read_checkpoint`] reads, a file of weights.
        network, num_attention_heads (*optional*): Of a file of weights, as for [`~interop.reading.read_checkpoint`].

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`: The encoder in evaluation mode, on the CPU, and the processor.

    Raises:
        [`SiTError`]: If there is no such model, a file of it is missing or damaged, or it lacks weights of the encoder.
    """
    check_is_no_missing_folder(model_name_or_path)
    folder = Path(model_name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise SiTError(f"--model_name_or_path {folder}: no config.json in this folder, so it holds no model")
    check_weights_file_flags(model_name_or_path, network, num_attention_heads)
    if has_no_auto_encoder(model_name_or_path):
        read = read_checkpoint(model_name_or_path, network=network, num_attention_heads=num_attention_heads)
        read.log_notes()
        return read.create_model(SiTModel), read.create_processor()
    try:
        model, info = AutoModel.from_pretrained(model_name_or_path, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(model_name_or_path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = " ".join(str(problem).split())
        where = "this model cannot be loaded" if folder.is_dir() else "no such folder, nor a model that the Hub gives"
        raise SiTError(f"--model_name_or_path {model_name_or_path}: {where}: {reason}") from problem
    # ViT's pooler is not part of most checkpoints, and not of the features either.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise SiTError(
            f"--model_name_or_path {model_name_or_path}: {len(missing)} of the encoder's weights are not there, such as "
            f"{missing[0]}; its features would be random"
        )
    # SiT's processor can be saved with corruption switched on; frozen features are of images as they are.
    processor.do_corrupt = False
    return model, processor


def check_is_no_missing_folder(model_name_or_path: str, flag: str = "--model_name_or_path") -> None:
    """Raise [`SiTError`] for what can only be meant as a path, for it is no id on the Hub, where there is no such folder."""
    path = Path(model_name_or_path)
    is_path = path.is_absolute() or model_name_or_path.startswith((".", "~")) or model_name_or_path.count("/") > 1
    if is_path and not path.exists():
        raise SiTError(f"{flag} {path}: no such folder")


def random_encoder(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """An encoder like `model`, with the weights that training starts from; a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(model.config, dtype=torch.float32).eval()
