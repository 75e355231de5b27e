"""Arguments of fine-tuning."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.hub.arguments import CardArguments
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.accelerator import join_cpu_processes
from modeling_sit.runtime.errors import SiTError

PROBABILITIES = ("horizontal_flip_probability", "random_erasing_probability")
AT_LEAST_ZERO = ("mixup_alpha", "cutmix_alpha", "color_jitter", "lora_rank", "randaugment_num_ops")
ABOVE_ZERO = ("image_size", "early_stopping_patience", "lora_alpha")


@dataclass(kw_only=True)
class FinetuningArguments(CardArguments, WeightsFileArguments, DatasetArguments):
    """
    The model to fine-tune, the dataset, the augmentation and the loss.

    Raises:
        [`SiTError`]: If a value is out of range, or two exclude each other.
    """

    task: Literal["classification"] = field(
        default="classification", metadata={"help": "What the model learns. The package has `classification`."}
    )
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that chooses the best checkpoint. Default: `validation`, if there is one; else a part of "
            "the training split, see `validation_fraction`."
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to measure once, at the end. It chooses nothing. Default: `test`, if there is one; else "
            "the validation images are measured again."
        },
    )
    validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Fraction in (0, 1) of the training images of each class that is held back if there is no "
            'validation split. With `eval_strategy="no"` nothing is chosen, so nothing is held back if there'
            " is a test split."
        },
    )
    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Whether to start from random weights, for a comparison with the pretrained ones."},
    )
    label_fraction: float = field(
        default=1.0, metadata={"help": "Fraction of the training images of each class to train on, in (0, 1]."}
    )
    pooling: Literal["token", "mean", "token_mean"] | None = field(
        default=None,
        metadata={
            "help": "Features that the classifier of a SiT model reads: the first token, the mean of the patch "
            "tokens, or both. Default: as in its configuration.",
        },
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of a SiT model. Default: as in its configuration."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Height and width of the input in pixels, a multiple of the patch size. Positions are "
            "interpolated. Default: as in pretraining."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Whether to train the classifier only. The features stay as they are."}
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of low-rank adapters, which are trained in place of the backbone (needs `peft`); 0 for "
            "none. They are merged into the saved model."
        },
    )
    lora_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Scale of the adapters: they are multiplied by this / `lora_rank`. Default: twice the rank."
        },
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters, in [0, 1)."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Linear layers that get adapters, by the ends of their names, such as `query value`. Default: "
            "all linear layers of the blocks."
        },
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Learning rate of each block relative to the block above it, in (0, 1]. 1 gives all blocks the "
            "same rate.",
        },
    )
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Decay in [0, 1) of an exponential moving average of the weights; 0 for none. The average is "
            "measured and saved. Early decay is lower: at most (1 + step) / (10 + step)."
        },
    )
    augmentation: Literal["plain", "3-augment", "randaugment"] = field(
        default="plain",
        metadata={
            "help": "Augmentation after crop and flip. plain: none. 3-augment (DeiT III): grayscale, solarize or "
            "blur, then color jitter. randaugment (DeiT)."
        },
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={"help": "Range of the area of a crop, as a fraction of the image's area."},
    )
    horizontal_flip_probability: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    randaugment_num_ops: int = field(
        default=2, metadata={"help": "Number of operations of RandAugment on each image."}
    )
    randaugment_magnitude: int = field(default=9, metadata={"help": "Magnitude of RandAugment, 0 to 30."})
    color_jitter: float = field(
        default=0.3,
        metadata={"help": "Largest change of brightness, contrast and saturation in 3-Augment, as a fraction."},
    )
    random_erasing_probability: float = field(
        default=0.0, metadata={"help": "Probability that a rectangle of 2 to 33 %% of the image becomes noise."}
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "Alpha of the Beta distribution of MixUp; 0 for none. With CutMix too, each batch draws one of "
            "the two.",
        },
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Alpha of the Beta distribution of CutMix; 0 for none."}
    )
    multi_label_loss: Literal["binary_cross_entropy", "asymmetric"] = field(
        default="binary_cross_entropy",
        metadata={
            "help": "Loss for images with several labels. The asymmetric loss gives easy negatives less weight. The "
            "validation loss is always binary cross-entropy."
        },
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none",
        metadata={
            "help": "Whether the loss weights each class by the inverse of its number of training images. With "
            "several labels per image, the positives of a label have the weight (images without it / images "
            "with it)."
        },
    )
    balanced_sampling: bool = field(
        default=False,
        metadata={"help": "Whether an epoch draws images with replacement, so that all classes are equally frequent."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Number of evaluations without a new best result after which training ends. Default: never."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Smallest improvement that counts as a new best result for early stopping."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.label_fraction <= 1:
            raise SiTError(f"must be in (0, 1], got {self.label_fraction}", argument="label_fraction")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise SiTError(f"must be a range 0 < low <= high <= 1, got {self.crop_scale}", argument="crop_scale")
        for names, is_in_range, range_name in (
            (("validation_fraction",), lambda value: 0 < value < 1, "in (0, 1)"),
            (("drop_path_rate", "ema_decay", "lora_dropout"), lambda value: 0 <= value < 1, "in [0, 1)"),
            (("layer_decay",), lambda value: 0 < value <= 1, "in (0, 1]"),
            (PROBABILITIES, lambda value: 0 <= value <= 1, "in [0, 1]"),
            (("randaugment_magnitude",), lambda value: 0 <= value <= 30, "from 0 to 30"),
            (AT_LEAST_ZERO, lambda value: value >= 0, "at least 0"),
            (ABOVE_ZERO, lambda value: value > 0, "above 0"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_in_range(value):
                    raise SiTError(f"must be {range_name}, got {value}", argument=name)
        if self.freeze_backbone and self.from_scratch:
            raise SiTError(
                "with `from_scratch`, random weights would stay random",
                argument="freeze_backbone",
                remedy="leave one of them out",
            )
        if self.freeze_backbone and self.lora_rank:
            raise SiTError(
                "with `lora_rank`, the adapters in the backbone learn",
                argument="freeze_backbone",
                remedy="leave one of them out",
            )
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
                if getattr(self, name):
                    raise SiTError("has no effect without adapters", argument=name, remedy="give `lora_rank` too")


@dataclass
class FinetuningTrainingArguments(TrainingArguments):
    """
    transformers' `TrainingArguments`, with defaults that suit a Vision Transformer.

    Raises:
        [`SiTError`]: If a value is out of range, or two exclude each other.
    """

    num_train_epochs: float = field(default=100, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per step on each device."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Images per evaluation batch on each device."}
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay. Biases, norms, tokens and positions have none."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Steps of linear warm-up. A value below 1 is a fraction of all steps."}
    )
    label_smoothing_factor: float | None = field(
        default=None, metadata={"help": "Label smoothing in [0, 1). Default: 0.1; 0 with several labels per image."}
    )
    logging_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to log the training loss: no, steps or epoch. Default: every epoch, or every `logging_steps`."
        },
    )
    logging_steps: float | None = field(
        default=None, metadata={"help": "Steps between logs. A value below 1 is a fraction of all steps."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep, including the best one."}
    )
    load_best_model_at_end: bool | None = field(
        default=None,
        metadata={
            "help": "Whether the run ends with the best checkpoint instead of the last one. Default: yes, if "
            "checkpoints are written and evaluated at the same steps."
        },
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "Metric that chooses the best checkpoint. Default: the first metric of the task, such as "
            "accuracy; mean_average_precision with several labels per image."
        },
    )
    # No arguments here: `hub.arguments.HubArguments` has those of the Hub. `Trainer` would push before the model's card
    # is written, and a token that was typed stays in shells' histories.
    push_to_hub: bool = field(default=False, init=False)
    hub_token: str | None = field(default=None, init=False)
    hub_private_repo: bool | None = field(default=None, init=False)
    hub_model_id: str | None = field(default=None, init=False)
    hub_strategy: str = field(default="end", init=False)
    hub_always_push: bool = field(default=False, init=False)
    hub_revision: str | None = field(default=None, init=False)

    def __post_init__(self):
        join_cpu_processes()  # before transformers makes its state
        if self.output_dir is None:
            raise SiTError("required", argument="output_dir", remedy="name a folder for the model")
        if self.label_smoothing_factor is not None and not 0 <= self.label_smoothing_factor < 1:
            raise SiTError(f"must be in [0, 1), got {self.label_smoothing_factor}", argument="label_smoothing_factor")
        if self.logging_strategy is None:
            self.logging_strategy = "epoch" if self.logging_steps is None else "steps"
        if self.logging_steps is None:
            self.logging_steps = TrainingArguments.logging_steps
        if self.load_best_model_at_end is None:
            in_step = self.save_strategy == self.eval_strategy and (
                self.eval_strategy != "steps" or (self.eval_steps or self.logging_steps) == self.save_steps
            )
            self.load_best_model_at_end = self.eval_strategy != "no" and (in_step or self.save_strategy == "best")
        # transformers would choose by the loss. The task knows its metric only when it has read the dataset.
        chosen, self.metric_for_best_model = self.metric_for_best_model, self.metric_for_best_model or "accuracy"
        try:
            super().__post_init__()
        except ValueError as problem:
            raise SiTError(" ".join(str(problem).split())) from problem
        self.metric_for_best_model = chosen
