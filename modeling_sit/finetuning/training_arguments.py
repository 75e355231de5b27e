"""Arguments of fine-tuning: how long and how fast it learns, and when it logs, measures and writes."""

import math
import sys
from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy

from modeling_sit.data.loaders import DEFAULT_TIMEOUT, TIMEOUT_HELP
from modeling_sit.runtime.accelerator import GROUP_MARGIN, join_cpu_processes
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.progress import shows_bar
from modeling_sit.runtime.recipes import plain_no
from modeling_sit.runtime.trackers import NONE

AUTO = "auto"
# Of all steps, between two evaluations, two checkpoints and two logs, where the run does not count epochs.
FRACTION_OF_STEPS = 0.1
FRACTION_OF_STEPS_LOGGED = 0.05


RANGES = (
    (("num_train_epochs",), lambda value: 0 < value < math.inf, "above 0, and finite"),
    (("learning_rate", "weight_decay", "seed"), lambda value: value >= 0, "at least 0"),
    (
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        lambda value: value >= 1,
        "at least 1",
    ),
)


@dataclass
class FinetuningTrainingArguments(TrainingArguments):
    """
    transformers' `TrainingArguments`, with defaults that suit a Vision Transformer.

    Raises:
        [`SiTError`]: If a value is out of range, or two exclude each other.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the model, its card, its results and its checkpoints. Required."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to go on from: its folder, or auto for the newest of the output folder, if there is one."
        },
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Number of epochs. Default: `max_steps` says how long the run is."}
    )
    max_steps: int | str | None = field(
        default=None,
        metadata={
            "help": "Number of steps, in place of epochs. auto: doubles the number until the metric on images that "
            "are held out of training rises no more. Default: by the number of training images."
        },
    )
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={"help": "Images per step on each device. Default: by the number of training images."},
    )
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Images per evaluation batch on each device."}
    )
    learning_rate: float | str | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of AdamW. auto: chosen on images that are held out of training. Default: by "
            "the start and the width of the model."
        },
    )
    dataloader_timeout: int = field(default=DEFAULT_TIMEOUT, metadata={"help": TIMEOUT_HELP})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay. Biases, norms, tokens and positions have none."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps of linear warm-up. A value below 1 is a fraction of all steps. Default: 0.05, at most "
            "1,000 steps."
        },
    )
    label_smoothing_factor: float | None = field(
        default=None, metadata={"help": "Label smoothing in [0, 1). Default: 0.1; 0 with several labels per image."}
    )
    logging_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to log the training loss: no, steps or epoch. Default: every epoch, if the run counts "
            "epochs, else every `logging_steps`."
        },
    )
    logging_steps: float | None = field(
        default=None,
        metadata={"help": "Steps between logs. A value below 1 is a fraction of all steps. Default: 0.05."},
    )
    eval_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to evaluate: no, steps or epoch. Default with a validation split, or with a test split and at "
            "least 5,000 training images: every epoch, if the run counts epochs, else every `eval_steps`. Default "
            "otherwise: only the finished model, on the test split or on images that are held back."
        },
    )
    eval_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps between evaluations. A value below 1 is a fraction of all steps. Default: `save_steps`, "
            "or 0.1."
        },
    )
    save_strategy: str | None = field(
        default=None,
        metadata={
            "help": "When to write a checkpoint: no, steps, epoch or best. Default: as often as the run evaluates, or "
            "would."
        },
    )
    save_steps: float | None = field(
        default=None,
        metadata={
            "help": "Steps between checkpoints. A value below 1 is a fraction of all steps. Default: `eval_steps`, or "
            "0.1."
        },
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
    disable_tqdm: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to print lines in place of a progress bar. Default: no on a terminal and in a notebook, else yes."
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
    # Nor these: the run has its own order of the images, labels, metrics and predictions, or they are about text.
    data_seed: int | None = field(default=None, init=False)
    train_sampling_strategy: str = field(default="random", init=False)
    length_column_name: str = field(default="length", init=False)
    remove_unused_columns: bool = field(default=True, init=False)
    label_names: list[str] | None = field(default=None, init=False)
    prediction_loss_only: bool = field(default=False, init=False)
    eval_do_concat_batches: bool = field(default=True, init=False)
    batch_eval_metrics: bool = field(default=False, init=False)
    include_for_metrics: list[str] = field(default_factory=list, init=False)
    include_num_input_tokens_seen: str | bool = field(default="no", init=False)
    neftune_noise_alpha: float | None = field(default=None, init=False)
    use_liger_kernel: bool = field(default=False, init=False)
    liger_kernel_config: dict[str, bool] | None = field(default=None, init=False)
    use_cache: bool = field(default=False, init=False)
    do_train: bool = field(default=False, init=False)
    do_eval: bool = field(default=False, init=False)
    do_predict: bool = field(default=False, init=False)
    # These would write weights of another type than the trained ones.
    bf16_full_eval: bool = field(default=False, init=False)
    fp16_full_eval: bool = field(default=False, init=False)

    def __post_init__(self):
        join_cpu_processes()  # before transformers makes its state
        if self.output_dir is None:
            raise SiTError("required", argument="output_dir", remedy="name a folder for the model")
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            setattr(self, name, plain_no(getattr(self, name)))
        if self.disable_tqdm is None:  # transformers would have it depend on its own log level
            self.disable_tqdm = not shows_bar(sys.stderr)
        self.learning_rate = _number("learning_rate", self.learning_rate, float)
        self.max_steps = _number("max_steps", self.max_steps, int)
        if self.max_steps == -1:  # transformers' word for none
            self.max_steps = None
        if self.max_steps not in (None, AUTO) and self.max_steps < 1:
            raise SiTError(f"must be at least 1, got {self.max_steps}", argument="max_steps")
        if self.label_smoothing_factor is not None and not 0 <= self.label_smoothing_factor < 1:
            raise SiTError(f"must be in [0, 1), got {self.label_smoothing_factor}", argument="label_smoothing_factor")
        for names, is_in_range, range_name in RANGES:
            for name in names:
                value = getattr(self, name)
                if value not in (None, AUTO) and not is_in_range(value):
                    raise SiTError(f"must be {range_name}, got {value}", argument=name)
        if self.dataloader_timeout < 1:
            raise SiTError(f"must be at least 1, got {self.dataloader_timeout}", argument="dataloader_timeout")
        self.ddp_timeout = max(self.ddp_timeout, self.dataloader_timeout + GROUP_MARGIN)
        # Whether the run has to evaluate while it trains; `None` for as its images are.
        self.evaluates = None if self.eval_strategy is None else self.eval_strategy != "no"
        chooses = self.load_best_model_at_end or self.save_strategy == "best" or self.metric_for_best_model is not None
        if self.evaluates is None and chooses:
            self.evaluates = True
        self._settle_strategies()
        if self.dataloader_num_workers == 0:  # PyTorch refuses to keep workers alive that there are not
            self.dataloader_persistent_workers = False
        if self.load_best_model_at_end is None:
            in_step = self.save_strategy == self.eval_strategy and (
                self.eval_strategy != "steps" or self.eval_steps == self.save_steps
            )
            self.load_best_model_at_end = self.eval_strategy != "no" and (in_step or self.save_strategy == "best")
        # transformers would choose by the loss. The task knows its metric only when it has read the dataset.
        chosen, self.metric_for_best_model = self.metric_for_best_model, self.metric_for_best_model or "accuracy"
        warmup_steps, self.warmup_steps = self.warmup_steps, self.warmup_steps or 0
        names = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        if any(plain_no(name) in NONE for name in names):
            self.report_to = "none"
        try:
            super().__post_init__()
        except ValueError as problem:
            raise SiTError(" ".join(str(problem).split())) from problem
        try:
            get_reporting_integration_callbacks(self.report_to)
        except ValueError as problem:
            raise SiTError(" ".join(str(problem).split()), argument="report_to") from problem
        self.metric_for_best_model, self.warmup_steps = chosen, warmup_steps

    @property
    def is_tuned(self) -> bool:
        """Whether something of the run is chosen on images that are held out of training."""
        return AUTO in (self.learning_rate, self.max_steps)

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one at most. For more, a launcher starts a process for each GPU. `Trainer` would use all GPUs from one
        process, and copy the model to each in every step, which this package does not support."""
        return min(1, super().n_gpu)

    def num_steps(self, batches_per_epoch: int) -> int:
        """The steps of a run, as `Trainer` counts them, if each process has so many batches in an epoch."""
        if self.max_steps > 0:
            return self.max_steps
        return math.ceil(self.num_train_epochs * math.ceil(batches_per_epoch / self.gradient_accumulation_steps))

    def evaluate_never(self) -> None:
        """Measure nothing while the run trains, so that it ends with its last weights."""
        self.eval_strategy, self.load_best_model_at_end = IntervalStrategy.NO, False

    def _settle_strategies(self) -> None:
        """When to log, evaluate and write checkpoints, where the user did not say it."""
        usual = "epoch" if self.num_train_epochs is not None and self.max_steps is None else "steps"
        if self.logging_strategy is None:
            self.logging_strategy = usual if self.logging_steps is None else "steps"
        if self.logging_steps is None:
            self.logging_steps = FRACTION_OF_STEPS_LOGGED
        if self.eval_strategy is None:
            self.eval_strategy = usual if self.eval_steps is None else "steps"
        if self.save_strategy is None:
            self.save_strategy = usual if self.eval_strategy == "no" else self.eval_strategy
        eval_steps, save_steps = self.eval_steps, self.save_steps
        self.eval_steps = eval_steps or save_steps or FRACTION_OF_STEPS
        self.save_steps = save_steps or eval_steps or FRACTION_OF_STEPS


def _number(name: str, value: float | str | None, kind: type) -> float | str | None:
    """A number that was given as one or as text; `None` and `"auto"` as they are.

    Raises:
        [`SiTError`]: If it is none of these.
    """
    if value is None or value == AUTO:
        return value
    try:
        number = kind(float(value))
        if number == float(value) and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise SiTError(f"{value!r} is neither {AUTO} nor a number", argument=name)
