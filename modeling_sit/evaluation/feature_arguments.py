"""The flags of programs that need frozen features."""

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedConfig

from modeling_sit.evaluation.features import POOLINGS, check_features_asked_for
from modeling_sit.runtime.errors import SiTError


@dataclass
class FeatureArguments:
    """How the frozen encoder reads the images.

    Raises:
        `ValueError`: If a value is out of range.
    """

    pooling: Literal[POOLINGS] = field(
        default="token",
        metadata={
            "help": "What stands for an image: the token in front, the patch tokens' mean, or both side by side."
        },
    )
    layer: int = field(
        default=-1,
        metadata={
            "help": "Whose output the tokens are: -1 the encoder's, after its last norm; 0 the embeddings', from 1 up that "
            "block's; -2 is the block before the last, and so on."
        },
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Images that the encoder reads at a time, in each process."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that read images; 0 reads them in the main one."}
    )

    def __post_init__(self):
        if self.per_device_eval_batch_size < 1:
            raise ValueError(f"--per_device_eval_batch_size {self.per_device_eval_batch_size}: must be at least 1")
        if self.dataloader_num_workers < 0:
            raise ValueError(f"--dataloader_num_workers {self.dataloader_num_workers}: must be at least 0")

    def settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """These flags as [`extract_features`] takes them.

        Raises:
            [`SiTError`]: If an encoder of this config has no such layer.
        """
        try:
            check_features_asked_for(config, self.pooling, self.layer)
        except ValueError as problem:
            raise SiTError(f"--layer {self.layer}: {problem}") from problem
        return {
            "pooling": self.pooling,
            "layer": self.layer,
            "batch_size": self.per_device_eval_batch_size,
            "num_workers": self.dataloader_num_workers,
        }
