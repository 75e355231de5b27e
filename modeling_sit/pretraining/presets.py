"""Defaults that fit the data: from the images and the device to the settings of a run, each with its reason.

The numbers stand at the top. Nothing here reads a file or a clock: the same facts give the same settings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.data.views import PAPER_VIEWS
from modeling_sit.interop.resize import pair
from modeling_sit.pretraining.patches import patch_grid
from modeling_sit.runtime.words import rounded

if TYPE_CHECKING:
    from modeling_sit.pretraining.method import Method

# ---------------------------------------------------------------------------------------------------------------------
# The numbers. A table `((limit, value), ...)` gives the value of the first limit that is not exceeded.
# ---------------------------------------------------------------------------------------------------------------------

EVERYTHING = math.inf

MODEL_SIZES = {
    "micro": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3},
    "mini": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
# Of an attention head, about, by a width that the user gives alone.
HEAD_WIDTH = ((191, 32), (EVERYTHING, 64))

# By the shorter side of the images in pixels: the patches, and the largest views. Views are as large as the images up to
# that, in whole patches, and have at least MIN_TOKENS.
SIZES = {
    "cpu": ((40, (4, 40)), (EVERYTHING, (8, 64))),
    "gpu": ((40, (4, 40)), (128, (8, 128)), (EVERYTHING, (16, 224))),
}
PATCH_SIZES = (2, 4, 7, 8, 14, 16, 32)  # that are tried where the user gives the size of the views
MIN_TOKENS, MAX_TOKENS = 16, 256

# By the number of images.
MODELS = {
    "cpu": ((5_000, "micro"), (EVERYTHING, "mini")),  # of images up to SMALL_SIDE; others have LARGER_IMAGES_MODEL
    "gpu": ((20_000, "tiny"), (EVERYTHING, "small")),
}
SMALL_SIDE, LARGER_IMAGES_MODEL = 40, "mini"
# A CPU with less time than this, in seconds, has the smallest model.
SHORT_TIME, SHORT_TIME_MODEL = 600, "micro"

# By the number of images: 20 minutes to two hours on two cores; minutes to hours on a GPU.
STEPS = {
    "cpu": ((499, 1_000), (5_000, 1_500), (EVERYTHING, 3_000)),
    "gpu": ((499, 4_000), (5_000, 10_000), (20_000, 20_000), (100_000, 40_000), (EVERYTHING, 100_000)),
}
# By the number of images on a CPU; by the side of the views on each GPU.
CPU_BATCH = ((199, 32), (499, 64), (EVERYTHING, 128))
GPU_BATCH = ((64, 256), (128, 128), (EVERYTHING, 64))
# Images x tokens x width x layers in a batch on a CPU. 16 images of ViT-S/16 at 224 pixels, twice, take 2.6 GB with their gradients.
# Below the smallest batch, contrast has too few others.
CPU_BATCH_SIZE, SMALLEST_CPU_BATCH = 16_000_000, 8

# Peak learning rate by the width; of total batches above 256, times the square root of batch / 256.
PEAK_LEARNING_RATE = ((128, 3e-3), (192, 1e-3), (EVERYTHING, 5e-4))
RATED_BATCH = 256
WARMUP = 0.1  # of the steps

# The teacher's memory is 1 / (1 - momentum) steps: this fraction of the run, within limits.
TEACHER_MEMORY, MIN_MEMORY, MAX_MEMORY = 0.025, 2, 2_000

# Below this many steps a run is short: less corruption and color, no stochastic depth, and the student is exported.
SHORT_RUN = 20_000
# Below this many images a dataset is small: less color.
FEW_IMAGES = 20_000
# Below this many images the reconstruction weighs more (arXiv 2104.03602, section 4).
SMALL_DATASET = 100_000
RECONSTRUCTION_WEIGHT = ((SMALL_DATASET - 1, 5.0), (EVERYTHING, 1.0))
SHORT_RUN_RATIOS = {"noise": [0.2, 0.4], "zeros": [0.2, 0.4], "replace": [0.1, 0.2]}
PAPER_RATIOS = {"noise": [0.5, 0.7], "zeros": [0.5, 0.7], "replace": [0.3, 0.3]}
DROP_PATH_RATE = 0.1  # of long runs

# By the shorter side of the images.
SMALLEST_CROP = ((40, 0.5), (96, 0.3), (EVERYTHING, 0.2))
BLUR = ((47, [0.0, 0.0]), (95, [0.5, 0.1]), (EVERYTHING, [1.0, 0.1]))  # by the side of the views
MILD_COLOR, MILD_GRAYSCALE = [0.2, 0.2, 0.1, 0.05], 0.05

# Widths of the heads, by the backbone's.
DECODER_WIDTH, MAX_DECODER_WIDTH = 2, 2048
PROJECTION_WIDTH, MAX_PROJECTION_WIDTH = 4, 4096
PROJECTION_SIZE = ((96, 64), (192, 128), (EVERYTHING, 256))

CHECKPOINTS, CHECKPOINT_EVERY = 10, (100, 5_000)  # in the run; steps between them, at least and at most

# The setting of the paper and of this package's recipes (arXiv 2104.03602).
PAPER = {
    "per_device_train_batch_size": 64,
    "num_train_epochs": 800.0,
    "base_learning_rate": 5e-4,
    "warmup_epochs": 10.0,
    "teacher_momentum": 0.996,
    "export": "teacher",
    "checkpointing_steps": "500",
    **{f"{kind}_ratio": ratio for kind, ratio in PAPER_RATIOS.items()},
    **PAPER_VIEWS,
}


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """
    What a preset follows from.

    Args:
        images ([`ImageFacts`]): The training images.
        device_type (`str`): As PyTorch names it: `"cpu"`, `"cuda"`.
        num_processes (`int`, *optional*, defaults to 1): How many share a batch.
        has_bf16 (`bool`, *optional*, defaults to `False`): Whether the device is fast in bfloat16.
        time_budget (`float`, *optional*): Seconds for the run.
        is_streamed (`bool`, *optional*, defaults to `False`): Whether batches go on from one epoch into the next.
    """

    images: ImageFacts
    device_type: str
    num_processes: int = 1
    has_bf16: bool = False
    time_budget: float | None = None
    is_streamed: bool = False

    @property
    def kind(self) -> str:
        """The column of the tables: `"cpu"` or `"gpu"`."""
        return "cpu" if self.device_type == "cpu" else "gpu"

    @property
    def count(self) -> float:
        """Number of images; a stream of unknown length counts as endless."""
        return EVERYTHING if self.images.num_images is None else self.images.num_images

    @property
    def side(self) -> int:
        """The images' shorter side in pixels."""
        return min(self.images.height, self.images.width)


@dataclass(frozen=True)
class Choice:
    """A setting that a preset chose: an argument, or a field of the configuration, its value, and why."""

    name: str
    value: Any
    reason: str


def choose(
    facts: Facts, given: Mapping[str, Any], method: "type[Method]", unused: frozenset[str] = frozenset()
) -> list[Choice]:
    """Every setting that the user leaves open.

    Args:
        facts ([`Facts`]): Of the images and the device.
        given (mapping): By name, arguments and fields of the configuration that are settled: by the user, a recipe, or the
            checkpoint that the run starts from. What is chosen fits them.
        method (`type`): Chooses what it has of its own.
        unused (`frozenset` of `str`, *optional*): Settings that the method does not have.

    Returns:
        `list[Choice]`: In the order in which they follow from each other.
    """
    choosing = Choosing(facts, dict(given), unused)
    _choose_model(choosing, facts)
    _choose_batch_and_length(choosing, facts)
    method.choose(choosing, facts)
    _choose_rates(choosing, facts, method.learning_rate_factor)
    _choose_heads(choosing, facts)
    _choose_views(choosing, facts)
    return choosing.choices


def look_up(table: tuple[tuple[float, Any], ...], number: float) -> Any:
    """The value of the first limit that `number` does not exceed."""
    return next(value for limit, value in table if number <= limit)


class Choosing:
    """Settings, those that are given and those that are chosen so far."""

    def __init__(self, facts: Facts, given: dict[str, Any], unused: frozenset[str] = frozenset()):
        self.values = {"num_channels": facts.images.num_channels, "gradient_accumulation_steps": 1, **given}
        self.given = given
        self.unused = unused
        self.num_tokens = 0
        self.choices: list[Choice] = []

    def choose(self, name: str, value: Any, reason: str) -> None:
        """Choose the value, unless it is given or chosen, or the method has no such setting."""
        settled = {*self.given, *self.unused, *(choice.name for choice in self.choices)}
        if name not in settled:
            self.values[name] = value
            self.choices.append(Choice(name, value, reason))

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def is_new(self) -> bool:
        """Whether the run starts from no other model, which has a normalization."""
        return "model_name_or_path" not in self.given

    @property
    def view_side(self) -> int:
        return _side(self["image_size"])


def _choose_model(choosing: Choosing, facts: Facts) -> None:
    channels = facts.images.num_channels
    if channels != 3:
        reason = "the images are gray" if channels == 1 else f"the images have {channels} channels"
        choosing.choose("num_channels", channels, reason)
    if facts.images.mean is not None and len(facts.images.mean) == choosing["num_channels"] and choosing.is_new:
        reason = "of each channel, measured on some images"
        choosing.choose("image_mean", list(facts.images.mean), reason)
        choosing.choose("image_std", list(facts.images.std), reason)
    image_size, patch_size = _choose_sizes(facts, choosing.given.get("image_size"), choosing.given.get("patch_size"))
    on = f" on a {facts.kind.upper()}"
    choosing.choose("image_size", image_size, f"images of {facts.images.height} x {facts.images.width} pixels{on}")
    tokens = math.prod(patch_grid(choosing["image_size"], patch_size))
    choosing.num_tokens = tokens
    choosing.choose("patch_size", patch_size, f"{tokens} tokens for views of {choosing.view_side} pixels")
    if not {"hidden_size", "num_hidden_layers", "num_attention_heads"} <= choosing.given.keys():
        model = look_up(MODELS[facts.kind], facts.count)
        reason = f"{_count(facts)}{on}"
        if facts.kind == "cpu" and facts.side > SMALL_SIDE:
            model = LARGER_IMAGES_MODEL
        if facts.kind == "cpu" and facts.time_budget is not None and facts.time_budget < SHORT_TIME:
            model, reason = SHORT_TIME_MODEL, f"less than {SHORT_TIME // 60} minutes{on}"
        choosing.values = {**MODEL_SIZES[choosing.given.get("model_size", model)], **choosing.values}
        if "hidden_size" in choosing.given:
            heads = _heads_of(choosing["hidden_size"])
            choosing.choose("num_attention_heads", heads, f"for a width of {choosing['hidden_size']}")
        shape = "width {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} heads"
        choosing.choose("model_size", model, f"{shape.format(**choosing.values)}, for {reason}")
    choosing.choose(
        "reconstruction_weight", look_up(RECONSTRUCTION_WEIGHT, facts.count), f"the paper's for {_count(facts)}"
    )


def _heads_of(width: int) -> int:
    """A number of heads that divides the width, the nearest to the one that gives heads the usual width."""
    usual = max(1, width // look_up(HEAD_WIDTH, width))
    return min((heads for heads in range(1, 2 * usual) if width % heads == 0), key=lambda heads: abs(heads - usual))


def _choose_sizes(facts: Facts, image_size: Any, patch_size: Any) -> tuple[Any, Any]:
    """Side of the views and of the patches, each as it is given, and the other to fit."""
    patch, largest = look_up(SIZES[facts.kind], facts.side)
    if image_size is not None:
        if patch_size is None:
            patch, _ = look_up(SIZES["gpu"], _side(image_size))
            fitting = [
                other
                for other in PATCH_SIZES
                if not any(side % other for side in pair(image_size))
                and MIN_TOKENS <= math.prod(patch_grid(image_size, other)) <= MAX_TOKENS
            ]
            # The nearest one; where none fits, the configuration says what is wrong.
            patch = min(fitting, key=lambda other: abs(other - patch), default=patch)
            return image_size, patch
        return image_size, patch_size
    patch_size = patch if patch_size is None else patch_size
    unit = math.lcm(*pair(patch_size))  # the smallest square of whole patches
    side = min(round(facts.side / unit) * unit, largest) // unit * unit
    smallest = math.ceil(math.sqrt(MIN_TOKENS / math.prod(patch_grid(unit, patch_size)))) * unit
    return max(side, smallest), patch_size


def _choose_batch_and_length(choosing: Choosing, facts: Facts) -> None:
    if facts.kind == "cpu":
        batch, reason = look_up(CPU_BATCH, facts.count), f"{_count(facts)} on a CPU"
    else:
        batch, reason = look_up(GPU_BATCH, choosing.view_side), f"views of {choosing.view_side} pixels on a GPU"
    size = choosing.num_tokens * choosing["hidden_size"] * choosing["num_hidden_layers"]
    if facts.kind == "cpu" and batch * size > CPU_BATCH_SIZE:
        batch = max(SMALLEST_CPU_BATCH, 2 ** int(math.log2(CPU_BATCH_SIZE / size)))
        reason = f"{choosing.num_tokens} tokens, {choosing['hidden_size']} wide, in {choosing['num_hidden_layers']} layers on a CPU"
    most = facts.count / facts.num_processes
    if batch > most:
        batch, reason = 2 ** int(math.log2(max(most, 1))), _count(facts)
    choosing.choose("per_device_train_batch_size", batch, reason)
    is_open = choosing.given.get("num_train_epochs") is None or facts.count == EVERYTHING
    if is_open or "max_steps" in choosing.given:
        epochs = ""
        steps = look_up(STEPS[facts.kind], facts.count)
        if facts.images.num_images is not None:
            epochs = f", {rounded(steps / _steps_per_epoch(choosing, facts))} epochs"
        choosing.choose("max_steps", steps, f"{_count(facts)} on a {facts.kind.upper()}{epochs}")
    else:
        choosing.values["max_steps"] = math.ceil(choosing["num_train_epochs"] * _steps_per_epoch(choosing, facts))


def _choose_rates(choosing: Choosing, facts: Facts, learning_rate_factor: float) -> None:
    steps, batch = choosing["max_steps"], _total_batch(choosing, facts)
    peak = (
        learning_rate_factor
        * look_up(PEAK_LEARNING_RATE, choosing["hidden_size"])
        * math.sqrt(max(1, batch / RATED_BATCH))
    )
    choosing.choose(
        "base_learning_rate",
        float(f"{peak * RATED_BATCH / batch:.6g}"),
        f"peak {peak:.3g} at a batch of {batch:,}, for width {choosing['hidden_size']}",
    )
    if "warmup_epochs" not in choosing.given:
        choosing.choose("warmup_steps", int(WARMUP * steps), f"{WARMUP:.0%} of {steps:,} steps")
    momentum = teacher_momentum(steps)
    choosing.choose(
        "teacher_momentum",
        momentum,
        f"a memory of {1 / (1 - momentum):,.0f} steps, {1 / (1 - momentum) / steps:.1%} of the run",
    )
    is_short = steps < SHORT_RUN
    length = f"a {'short' if is_short else 'long'} run ({steps:,} steps)"
    choosing.choose("drop_path_rate", 0.0 if is_short else DROP_PATH_RATE, f"stochastic depth, {length}")
    reason = f"{length}: the teacher {'stays behind' if is_short else 'is the better average'}"
    choosing.choose("export", "student" if is_short else "teacher", reason)
    ratios = SHORT_RUN_RATIOS if is_short else PAPER_RATIOS
    for kind in choosing.given.get("corruption", "noise+replace").split("+"):
        if kind in ratios:
            choosing.choose(f"{kind}_ratio", ratios[kind], length if is_short else f"the paper's, {length}")
    every, (_, most) = _checkpointing_steps(steps), CHECKPOINT_EVERY
    reason = f"at least every {most:,} steps" if every == most else f"{CHECKPOINTS} or fewer in the run"
    choosing.choose("checkpointing_steps", str(every), reason)
    if facts.has_bf16:
        choosing.choose("mixed_precision", "bf16", "the GPU is fast in bfloat16")


def teacher_momentum(steps: int) -> float:
    """Momentum whose memory `1 / (1 - momentum)` is the tables' fraction of the run's steps."""
    memory = min(max(TEACHER_MEMORY * steps, MIN_MEMORY), MAX_MEMORY)
    return round(1 - 1 / memory, 5)


def _checkpointing_steps(steps: int) -> int:
    low, high = CHECKPOINT_EVERY
    return min(max(-(-steps // CHECKPOINTS // low) * low, low), high)


def _choose_heads(choosing: Choosing, facts: Facts) -> None:
    width = choosing["hidden_size"]
    for name, value, reason in (
        ("decoder_hidden_size", min(DECODER_WIDTH * width, MAX_DECODER_WIDTH), f"{DECODER_WIDTH} x"),
        ("projection_hidden_size", min(PROJECTION_WIDTH * width, MAX_PROJECTION_WIDTH), f"{PROJECTION_WIDTH} x"),
        ("projection_size", look_up(PROJECTION_SIZE, width), "for"),
    ):
        choosing.choose(name, value, f"{reason} the width of {width}")


def _choose_views(choosing: Choosing, facts: Facts) -> None:
    low = look_up(SMALLEST_CROP, facts.side)
    choosing.choose("crop_scale", [low, 1.0], f"images of {facts.side} pixels")
    is_mild = choosing["max_steps"] < SHORT_RUN or facts.count < FEW_IMAGES
    reason = "a short run or few images" if is_mild else "the paper's, a long run on many images"
    color, gray = PAPER_VIEWS["color_jitter"], PAPER_VIEWS["grayscale_probability"]
    color, gray = (MILD_COLOR, MILD_GRAYSCALE) if is_mild else (color, gray)
    solarize = [0.0, 0.0] if is_mild else PAPER_VIEWS["solarize_probability"]
    if choosing["num_channels"] != 3:
        color, gray, solarize = [*color[:2], 0.0, 0.0], 0.0, [0.0, 0.0]
        reason = f"{reason}, {'gray images' if choosing['num_channels'] == 1 else 'channels without color'}"
    choosing.choose("color_jitter", color, reason)
    choosing.choose("grayscale_probability", gray, reason)
    choosing.choose("solarize_probability", solarize, reason)
    choosing.choose("blur_probability", look_up(BLUR, choosing.view_side), f"views of {choosing.view_side} pixels")


def _total_batch(choosing: Choosing, facts: Facts) -> int:
    return choosing["per_device_train_batch_size"] * facts.num_processes * choosing["gradient_accumulation_steps"]


def _steps_per_epoch(choosing: Choosing, facts: Facts) -> float:
    """As the run counts them: an epoch has whole batches, and a step has some of these. Where the images do not fill a batch, the
    choices need a number, and the run says what is wrong."""
    batches = facts.count / (choosing["per_device_train_batch_size"] * facts.num_processes)
    return (batches if facts.is_streamed else max(1, int(batches))) / choosing["gradient_accumulation_steps"]


def _count(facts: Facts) -> str:
    return "an unknown number of images" if facts.images.num_images is None else f"{facts.images.num_images:,} images"


def _side(size: Any) -> int:
    return min(pair(size))
