"""The configuration of a model that is like a checkpoint's, with weights that no training has seen."""

import copy
from pathlib import Path

from transformers import PreTrainedConfig

from modeling_sit import SiTConfig


def untrained_config(config: PreTrainedConfig, model_name_or_path: str) -> PreTrainedConfig:
    """The configuration for new weights that train as well as the architecture can.

    Checkpoints of plain ViTs, and older ones of SiT, have an `initializer_range` alone, which [`SiTConfig`] takes for a
    normal. That does not matter to weights that are loaded, but narrow models learn badly from such a start: what is
    compared with the pretrained weights starts as new models of SiT do.

    Args:
        config (`PreTrainedConfig`): The checkpoint's, as it is loaded. It stays as it is.
        model_name_or_path (`str`): The checkpoint.

    Returns:
        `PreTrainedConfig`: Of a SiT, with `initialization="xavier"` unless the checkpoint's `config.json` names one.
        Others' as they are.
    """
    if not isinstance(config, SiTConfig):
        return config
    saved = {} if Path(model_name_or_path).is_file() else PreTrainedConfig.get_config_dict(model_name_or_path)[0]
    if saved.get("initialization") is not None:
        return config
    config = copy.deepcopy(config)
    config.initialization = "xavier"
    return config
