"""The benchmark's flags."""

from dataclasses import dataclass, field
from typing import Literal

KINDS = ("files", "synthetic", "bare", "plain", "mae", "mim")
SWEEPS = ("batch", "image_size", "workers", "model_size")
AT_LEAST_ONE = ("num_images", "runs", "steps", "threads", "per_device_train_batch_size")
AT_LEAST_ZERO = ("warmup_steps", "dataloader_num_workers")


@dataclass
class ThroughputArguments:
    """What is measured, on which images, how long."""

    profile: Literal["cpu", "gpu", "smoke"] = field(
        default="cpu",
        metadata={
            "help": "`cpu`: a tiny model where reading dominates, and ViT-S/16 at 224, in minutes on 2 cores. `gpu`: ViT-S/16, two "
            "views of 224, bf16, batches and workers, in less than 10 minutes on one H100. `smoke`: seconds, to see that all works."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images, as `modeling-sit pretrain` takes them. Default: random JPEG files of 500 x 375 pixels, in a temporary "
            "folder."
        },
    )
    num_images: int | None = field(
        default=None, metadata={"help": "Number of images to make. Default: 512; 2,048 for `gpu`; 16 for `smoke`."}
    )
    contenders: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Contenders: `files` (our run from files), `synthetic` (our step on images that are on the device), `bare` (the networks "
            "alone), `plain` (the plain reference of our step), `mae`, `mim` (transformers' models). Default: all."
        },
    )
    scenarios: list[str] = field(
        default_factory=list, metadata={"help": "Names of the profile's scenarios to measure. Default: all."}
    )
    sweep: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Measure and draw how the cost grows with `batch`, `image_size`, `workers`, `model_size`, or `all`, instead of the "
            "scenarios."
        },
    )
    runs: int | None = field(default=None, metadata={"help": "Runs of each contender. Default: the profile's."})
    steps: int | None = field(default=None, metadata={"help": "Measured steps of a run. Default: the scenario's."})
    warmup_steps: int | None = field(
        default=None,
        metadata={"help": "Steps before the clock starts, and two more for each worker. Default: the scenario's."},
    )
    seconds: float = field(
        default=30.0, metadata={"help": "Seconds after which a run ends, after any number of steps."}
    )
    time_limit: float | None = field(
        default=None,
        metadata={
            "help": "Minutes after which the measuring ends and the report is printed. Default: 9 for `gpu`, else none."
        },
    )
    threads: int | None = field(default=None, metadata={"help": "PyTorch's threads. Default: PyTorch's choice."})
    per_device_train_batch_size: int | None = field(
        default=None, metadata={"help": "Images in a batch of every contender. Default: the scenario's."}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read for every contender. Default: the scenario's."}
    )
    mixed_precision: Literal["no", "bf16"] | None = field(
        default=None,
        metadata={
            "help": "Precision of all contenders but the plain reference, which is float32. Default: `bf16` for `gpu`, and for `cpu` where this CPU "
            "multiplies matrices faster in it; else `no`."
        },
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Whether our runs get the flag of this name of `modeling-sit pretrain`."}
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Value of the flag of this name of `modeling-sit pretrain`, for our run with a cache. Default: `device` for `gpu`, else "
            "`memory`."
        },
    )
    plain_attention: Literal["eager", "sdpa"] = field(
        default="eager", metadata={"help": "Attention of the plain reference: written out, or PyTorch's fused one."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for every run and all other results."})
    figure: str | None = field(
        default=None, metadata={"help": "PNG file for a sweep's curves. Default: beside --output, with its name."}
    )

    def __post_init__(self):
        for name, choices in (("contenders", KINDS), ("sweep", (*SWEEPS, "all"))):
            values = [part for value in getattr(self, name) for part in value.split(",") if part]
            for value in values:
                if value not in choices:
                    raise ValueError(f"--{name} {value}: none of {', '.join(choices)}")
            setattr(self, name, values)
        for names, least in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
            for name in names:
                if getattr(self, name) is not None and getattr(self, name) < least:
                    raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("seconds", "time_limit"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
