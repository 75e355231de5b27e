"""Which features a frozen encoder gives of an image, and how it reads the images."""

from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from transformers import PreTrainedConfig

from modeling_sit.data.loaders import DEFAULT_TIMEOUT, TIMEOUT_HELP
from modeling_sit.runtime.errors import SiTError

BATCH_SIZE = 64
POOLINGS = ("token", "mean", "token_mean")


@dataclass
class FeatureArguments:
    """How the frozen encoder reads the images.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    pooling: Literal[POOLINGS] | None = field(
        default=None,
        metadata={
            "help": "Features of an image: the first token (`token`), the mean of the patch tokens (`mean`), or both"
            " concatenated (`token_mean`). Default: the `pooling` of the model's configuration, which names the tokens that"
            " its training has taught; `token` for models without one."
        },
    )
    layer: int = field(
        default=-1,
        metadata={
            "help": "Layer to take the features from. -1: the encoder's output after its last norm. 0: the "
            "embeddings. 1 and more: the block of that number. -2: the block before the last, and so on."
        },
    )
    per_device_eval_batch_size: int = field(
        default=BATCH_SIZE, metadata={"help": "Images per batch of the encoder, in each process."}
    )
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that read images. With 0, the main process reads them."}
    )
    dataloader_timeout: int = field(default=DEFAULT_TIMEOUT, metadata={"help": TIMEOUT_HELP})

    def __post_init__(self):
        for name, least in (
            ("per_device_eval_batch_size", 1),
            ("dataloader_num_workers", 0),
            ("dataloader_timeout", 1),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise SiTError(f"must be at least {least}, got {getattr(self, name)}", argument=name)


Arguments = TypeVar("Arguments", bound=FeatureArguments)


def settle_features(arguments: Arguments, config: PreTrainedConfig) -> Arguments:
    """Check that an encoder has the features that are asked for.

    Returns:
        [`FeatureArguments`]: With the encoder's own pooling where they name none: `"token"` where its configuration has none;
            and with a batch size.

    Raises:
        [`SiTError`]: If it has no such features, with what there is.
    """
    if arguments.pooling is None:
        own = getattr(config, "pooling", None)  # other models may mean something else by it
        arguments = replace(arguments, pooling=own if own in POOLINGS else "token")
    if arguments.per_device_eval_batch_size is None:
        arguments = replace(arguments, per_device_eval_batch_size=BATCH_SIZE)
    pooling, layer = arguments.pooling, arguments.layer
    if pooling not in POOLINGS:
        raise SiTError(f"no pooling {pooling!r}, only {', '.join(POOLINGS)}", argument="pooling")
    num_layers = getattr(config, "num_hidden_layers", None)
    if num_layers is not None and not -num_layers - 1 <= layer <= num_layers:
        raise SiTError(
            f"no layer {layer}: it is -1 (after the last norm), from 0 (the embeddings) to {num_layers} (the last block), or "
            f"from -2 back to {-num_layers - 1}",
            argument="layer",
        )
    return arguments
