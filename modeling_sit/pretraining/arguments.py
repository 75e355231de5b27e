"""Arguments of pretraining, and the configuration that they describe."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

import joblib

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.loaders import DEFAULT_TIMEOUT, TIMEOUT_HELP
from modeling_sit.gmml import CORRUPTIONS
from modeling_sit.hub.arguments import CardArguments
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.recipes import plain_no

AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "max_steps",
    "dataloader_timeout",
)
AT_LEAST_ZERO = (
    "base_learning_rate",
    "min_learning_rate",
    "warmup_epochs",
    "warmup_steps",
    "weight_decay",
    "weight_decay_end",
    "max_grad_norm",
    "dataloader_num_workers",
    "preview_steps",
    "checkpoints_total_limit",
    "export_steps",
)

UNITS = {"h": 3600, "m": 60, "s": 1}
TIME = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?)\s*{unit}\s*)?" for unit in UNITS))


@dataclass
class ModelArguments(WeightsFileArguments):
    """What is trained."""

    model_size: Literal["micro", "mini", "tiny", "small", "base"] | None = field(
        default=None,
        metadata={
            "help": "Backbone's width/depth/heads: 96/4/3, 128/6/4, 192/12/3, 384/12/6 or 768/12/12. Default: by "
            "`preset`; the paper's is small."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: a SiT; a plain ViT of transformers (ViT, DeiT, DINO, DINOv2, MAE, MSN) or "
            "timm; or a .pth file of the authors' code. The model gets its sizes."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Height and width of the views, in pixels. The position embeddings of a checkpoint are "
            "interpolated. Default: the checkpoint's, else by `preset`; the paper's is 224."
        },
    )
    patch_size: int | None = field(
        default=None,
        metadata={"help": "Height and width of the patches, in pixels. Default: by `preset`; the paper's is 16."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Fields of SiTConfig, such as `hidden_size=64,num_hidden_layers=2`."}
    )
    reconstruction_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the reconstruction loss; 0 switches it off. Default: 5 below 100,000 images, else 1."
        },
    )
    contrastive_weight: float | None = field(
        default=None, metadata={"help": "Weight of the contrastive loss; 0 switches it off. Default: 1."}
    )
    rotation_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the rotation loss: predict by how many quarter turns a view is rotated. Default: 0 "
            "(off)."
        },
    )
    temperature: float | None = field(
        default=None, metadata={"help": "sit, simclr, moco_v3: temperature of the contrastive loss. Default: 0.2."}
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel, for values in [0, 1]. Default: ImageNet's; 0.5 for gray images; measured for other channels."
        },
    )
    image_std: list[float] | None = field(
        default=None,
        metadata={
            "help": "Standard deviation of each channel, for values in [0, 1]. Default: ImageNet's; 0.5 for gray "
            "images; measured for other channels.",
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention: `eager`, `sdpa`, `flash_attention_2` or `flex_attention`. Default: PyTorch's sdpa."
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Whether to save memory: the backward pass computes activations again."}
    )


@dataclass
class CorruptionArguments:
    """How views are corrupted."""

    corruption: Literal[CORRUPTIONS] = field(
        default="noise+replace",
        metadata={"help": "What fills the corrupted blocks. With a combination, each view draws one kind."},
    )
    noise_ratio: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the fraction of pixels that noise covers. Default: by `preset`; the paper's is 0.5 0.7."
        },
    )
    zeros_ratio: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the fraction of pixels that zeros cover. Default: by `preset`; the paper's is 0.5 0.7."
        },
    )
    replace_ratio: list[float] | None = field(
        default=None,
        metadata={
            "help": "Range of the fraction of pixels that another image covers. Default: by `preset`; the paper's is "
            "0.3 0.3."
        },
    )
    block_size: list[float] = field(
        default_factory=lambda: [0.05, 0.25],
        metadata={"help": "Range of the side of a block, as a fraction of the view's side."},
    )
    align_to_patches: bool = field(default=False, metadata={"help": "Whether each block consists of whole patches."})


@dataclass(kw_only=True)
class PretrainingArguments(CardArguments, DatasetArguments):
    """The run."""

    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that the monitors measure on. Default: `validation`, if there is one. A test split is "
            "used only if you name it here."
        },
    )
    method: str = field(
        default="sit",
        metadata={
            "help": "Pretraining method: sit, or another one that trains the same backbone: simclr, moco_v3, dino, ibot, mae, "
            "simmim, lejepa."
        },
    )
    preset: Literal["auto", "paper"] = field(
        default="auto",
        metadata={
            "help": "Values of all arguments that neither you nor a recipe gives. auto: they fit the number and size of the "
            "images, the device and the time; each is printed with its reason. paper: the paper's (ViT-S/16, 224 pixels, 800 "
            "epochs), for large datasets on GPUs."
        },
    )
    time_budget: str | None = field(
        default=None,
        metadata={
            "help": "Time for the run, such as 90s, 30m, 2h or 1h30m. The number of steps is set to fit, by the speed of "
            "a few steps that are measured first. It overrides the number of epochs and of steps, a recipe's too."
        },
    )
    output_dir: str = field(metadata={"help": "Folder for the model and all other files of the run. Required."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Whether to start again in a folder that has a run. Files that the run wrote are deleted; others stay."
        },
    )
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images per step on each device. Default: by `preset`; the paper's is 64."},
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Number of batches per optimizer step."})
    num_train_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Number of epochs. The paper: 800 on ImageNet-1K, 3000 on small datasets. Default: by `preset`, "
            "which gives a number of steps."
        },
    )
    max_steps: int | None = field(
        default=None,
        metadata={
            "help": "Number of optimizer steps. It overrides the number of epochs; `time_budget` overrides both. Default: by "
            "`preset`."
        },
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate for a total batch of 256. It is scaled linearly to the total batch of the "
            "run. Default: by `preset`; the paper's is 5e-4.",
        },
    )
    min_learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate at the end."})
    warmup_epochs: float | None = field(
        default=None,
        metadata={"help": "Epochs of linear warm-up, at most a tenth of the run (MoCo-v3: 2/15). The paper's are 10."},
    )
    warmup_steps: int | None = field(
        default=None,
        metadata={"help": "Steps of linear warm-up. They override the epochs of warm-up. Default: by `preset`."},
    )
    weight_decay: float | None = field(
        default=None,
        metadata={
            "help": "Weight decay. Biases, norms, tokens and positions have none. Default: 0.05, or the method's own."
        },
    )
    weight_decay_end: float | None = field(
        default=None,
        metadata={
            "help": "Weight decay at the end; a cosine leads to it (the authors' code: 0.04 to 0.1). Default: "
            "constant, or the method's own.",
        },
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first beta."})
    adam_beta2: float | None = field(
        default=None, metadata={"help": "AdamW's second beta. Default: 0.999, or the method's own."}
    )
    max_grad_norm: float | None = field(
        default=None,
        metadata={"help": "Gradients are clipped to this norm; 0 for no clipping. Default: 3, or the method's own."},
    )
    teacher_momentum: float | None = field(
        default=None,
        metadata={
            "help": "Momentum of the teacher at the start. It rises to 1 on a cosine. Default: by `preset`; the paper's is "
            "0.996."
        },
    )
    export: Literal["teacher", "student"] | None = field(
        default=None,
        metadata={
            "help": "The network whose weights go into the output folder. Checkpoints keep both. Default: by `preset`; "
            "the paper's is the teacher."
        },
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = field(
        default=None,
        metadata={
            "help": "Precision of the networks; no is float32. Default: the setting of `accelerate launch`, else by `preset`, "
            "else no."
        },
    )
    tf32: bool = field(
        default=False,
        metadata={
            "help": "Whether matrix products in float32 may use TF32 (NVIDIA GPUs from Ampere on). It is faster and "
            "keeps about 3 decimals. bf16 is faster still."
        },
    )
    torch_compile: bool = field(
        default=False,
        metadata={
            "help": "Whether PyTorch compiles networks and augmentation. Steps are faster, but the first one takes a"
            " minute or more. Needs a C++ compiler; on GPUs Triton."
        },
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that decode and crop, for each device. Default: 0 on a CPU, else up to 8."},
    )
    dataloader_timeout: int = field(default=DEFAULT_TIMEOUT, metadata={"help": TIMEOUT_HELP})
    on_bad_image: Literal["skip", "error"] = field(
        default="skip",
        metadata={"help": "What to do with an image that cannot be read: skip it and name it, or end the run."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of all random numbers."})
    logging_steps: int = field(default=10, metadata={"help": "Steps between lines of metrics.jsonl."})
    preview_steps: int | None = field(
        default=None, metadata={"help": "Steps between preview images; 0 for none. Default: ten previews in the run."}
    )
    checkpointing_steps: str | None = field(
        default=None,
        metadata={
            "help": "Steps between checkpoints, or `epoch`, or `no`. There is also one at the end, except with `no`. "
            "Default: by `preset`; ten in the run or fewer, but after 5,000 steps at most; every 500 steps with paper."
        },
    )
    checkpoints_total_limit: int = field(
        default=2, metadata={"help": "Number of checkpoints to keep; the oldest are deleted. 0 keeps all."}
    )
    export_steps: int = field(
        default=0,
        metadata={
            "help": "Steps between copies of the model in `exports/step-N/` of the output folder, to measure later how the "
            "features change during the run. 0 for none."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder of a checkpoint to resume from, or `auto` for the newest one in the output folder."},
    )
    allow_changed_settings: bool = field(
        default=False,
        metadata={
            "help": "Whether a run that resumes may have other settings than its checkpoint, of those that are safe to change: "
            "length, rates, weights of losses, batch, augmentation, corruption, images, processes. The schedules follow the new "
            "settings."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Whether to train for a few steps only. It prints memory, time and the files of the run, and "
            "writes nothing."
        },
    )
    report_to: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Accelerate's trackers, such as `tensorboard`, `trackio`, `wandb`; several by spaces or commas."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.checkpointing_steps = plain_no(self.checkpointing_steps)
        for names, is_in_range, range_name in (
            (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
            (AT_LEAST_ZERO, lambda value: value >= 0, "at least 0"),
            (("num_train_epochs",), lambda value: 0 < value < math.inf, "above 0, and finite"),
            (("teacher_momentum",), lambda value: 0 <= value <= 1, "in [0, 1]"),
            (("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "in [0, 1)"),
            (("seed",), lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_in_range(value):
                    raise SiTError(f"must be {range_name}, got {value}", argument=name)
        if self.checkpointing_steps not in (None, "epoch", "no") and not (
            self.checkpointing_steps.isdecimal() and int(self.checkpointing_steps)
        ):
            raise SiTError(
                f"must be a number from 1 on, epoch or no, got {self.checkpointing_steps!r}",
                argument="checkpointing_steps",
            )
        if self.time_budget is not None:
            parse_time(self.time_budget)


def parse_time(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        [`SiTError`]: If the text is no such time, or none at all.
    """
    found = TIME.fullmatch(text.strip().lower())
    seconds = sum(float(found[unit] or 0) * factor for unit, factor in UNITS.items()) if found else 0
    if seconds <= 0:
        raise SiTError(f"must be a time such as 90s, 30m, 2h or 1h30m, got {text!r}", argument="time_budget")
    return seconds


def default_num_workers(asked: int | None, device_type: str, num_local_processes: int) -> int:
    """Dataloader workers of one process: what was asked for, else none on a CPU, which the network fills, else up to 8."""
    if asked is not None:
        return asked
    return 0 if device_type == "cpu" else min(8, joblib.cpu_count() // max(num_local_processes, 1))
