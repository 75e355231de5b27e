"""Defaults that fit the data: what a run does where its arguments do not say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments
from modeling_sit.runtime.words import rounded

BATCH_SIZES = (16, 256)
SMALL_IMAGE = 32
# Below these, MixUp, CutMix and RandAugment slow a run down more than they help it.
EPOCHS_OF_A_LONG_RUN, IMAGES_OF_A_LONG_RUN = 50, 3_000
STEPS_OF_AN_AVERAGE = 5_000
WARMUP, MAX_WARMUP_STEPS = 0.05, 1_000
MIN_STEPS = 1_000
# Of augmentations; a plain one has none of them.
STRENGTHS = ("color_jitter", "randaugment_num_ops", "randaugment_magnitude")
STAYS = "the backbone stays as it is"
# Images of 32 pixels that a CPU is given to learn from without being asked: an hour or less of a small model.
CPU_IMAGES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """
    What the defaults depend on.

    Args:
        num_train (`int`): Number of training images.
        from_scratch (`bool`): Whether the weights are random at the start.
        trains_backbone (`bool`): Whether the backbone's own weights learn; not so if it is frozen or has adapters.
        hidden_size (`int`): Width of the backbone.
        num_layers (`int`): Number of its blocks.
        image_size (`int`): Height or width of the input in pixels, the larger one.
        num_channels (`int`): 1 (gray), 3 (RGB), or others without color.
        multi_label (`bool`): Whether an image may have several labels.
        on_cpu (`bool`): Whether the run has no accelerator.
        num_batches (`int`, *optional*, defaults to 1): Batches of one device in a step: processes times accumulation.
    """

    num_train: int
    from_scratch: bool = False
    trains_backbone: bool = True
    hidden_size: int = 384
    num_layers: int = 12
    image_size: int = 224
    num_channels: int = 3
    multi_label: bool = False
    on_cpu: bool = False
    num_batches: int = 1


class Choice(NamedTuple):
    """A default: its value, and the reason in a few words."""

    value: Any
    reason: str


@dataclass
class Preset:
    """
    The defaults of a run, one after the other: later ones depend on earlier ones.

    Args:
        facts ([`RunFacts`]): The images, the model, the machine.
        given (mapping from `str`): The arguments that the user or a recipe gives, by name. They are as they are.
    """

    facts: RunFacts
    given: Mapping[str, Any]
    choices: dict[str, Choice] = field(default_factory=dict)

    def __post_init__(self):
        self._choose_length()
        self._choose_rates()
        self._choose_augmentation()

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.choices[name].value

    def _choose(self, name: str, value: Any, reason: str) -> None:
        if name not in self.given:
            self.choices[name] = Choice(value, reason)

    def lines(self) -> list[str]:
        """What was chosen and why, a line each."""
        if not self.choices:
            return []
        lines = [f"  {name} {choice.value}: {choice.reason}" for name, choice in self.choices.items()]
        return ["chosen for this run, each an argument of its own:", *lines]

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return self["per_device_train_batch_size"] * self.facts.num_batches

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the run sees each image once. The last one may have fewer images."""
        return math.ceil(self.facts.num_train / self.batch_size)

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        if "max_steps" in self.given or "num_train_epochs" not in self.given:
            return self["max_steps"]
        return math.ceil(self.given["num_train_epochs"] * self.steps_per_epoch)

    @property
    def num_epochs(self) -> float:
        """How often the run sees each image."""
        return self.num_steps / self.steps_per_epoch

    def usual_batch_size(self) -> int:
        """Images in a step: the power of two next to half the square root of their number, from 16 to 256. A CPU gains
        nothing by batches above 64, and a large model on large images has no room for more."""
        facts = self.facts
        low, high = BATCH_SIZES
        if facts.on_cpu:
            high = 64 if facts.image_size <= 64 else 32
        elif facts.image_size > 128:
            high = min(high, facts.num_batches * (64 if facts.hidden_size > 384 else 128))
        size = 2 ** round(math.log2(max(1.0, math.sqrt(facts.num_train) / 2)))
        return max(low, min(high, size))

    def usual_steps(self) -> int:
        """Steps of a run: 1,000 for 100 images, and 2 times as many for 10 times the images; half as many again from
        scratch. On an accelerator, 3 epochs at least (5 from scratch). On a CPU no more than [`CPU_IMAGES`] of 32 pixels in
        all, fewer if they are larger, but 1,000 steps at least."""
        facts = self.facts
        steps = MIN_STEPS * max(1.0, facts.num_train / 100) ** 0.3 * (1.5 if facts.from_scratch else 1)
        if facts.on_cpu:
            images = CPU_IMAGES * (SMALL_IMAGE / max(SMALL_IMAGE, facts.image_size)) ** 2
            steps = max(MIN_STEPS, min(steps, images / self.batch_size))
        else:
            steps = max(steps, (5 if facts.from_scratch else 3) * facts.num_train / self.batch_size)
        return max(MIN_STEPS, int(round(steps, -1)))

    def usual_learning_rate(self) -> float:
        """Peak rate of AdamW: 1e-3 from scratch and 5e-4 pretrained at a width of 128. It falls with the root of the width.
        A classifier or adapters alone learn with 1e-3."""
        facts = self.facts
        if not facts.trains_backbone:
            return 1e-3
        rate = (1e-3 if facts.from_scratch else 5e-4) * math.sqrt(128 / facts.hidden_size)
        return min(1e-3, float(f"{rate:.0e}"))

    def usual_layer_decay(self) -> float:
        """1 from scratch and for shallow models. Pretrained models of 6 blocks or more: 0.9; of 12 or more: 0.75, as BEiT and
        MAE have it."""
        facts = self.facts
        if facts.from_scratch or not facts.trains_backbone or facts.num_layers < 6:
            return 1.0
        return 0.9 if facts.num_layers < 12 else 0.75

    def _choose_length(self) -> None:
        facts = self.facts
        batch_size = self.usual_batch_size()
        reason = f"for {facts.num_train:,} training images" + (" on a CPU" if facts.on_cpu else "")
        self._choose("per_device_train_batch_size", max(1, batch_size // facts.num_batches), reason)
        if "num_train_epochs" not in self.given:
            steps = self.usual_steps()
            epochs = steps / self.steps_per_epoch
            self._choose("max_steps", steps, f"each of {facts.num_train:,} images is seen {rounded(epochs)} times")

    def _choose_rates(self) -> None:
        facts, steps = self.facts, self.num_steps
        start = "from scratch" if facts.from_scratch else "pretrained"
        reason = f"{start}, {facts.hidden_size} wide" if facts.trains_backbone else STAYS
        self._choose("learning_rate", self.usual_learning_rate(), reason)
        decay = self.usual_layer_decay()
        reason = f"{start}, {facts.num_layers} blocks" if facts.trains_backbone else STAYS
        self._choose("layer_decay", decay, f"{reason}: lower blocks learn more slowly" if decay < 1 else reason)
        is_long = WARMUP * steps > MAX_WARMUP_STEPS
        reason = "enough for any run" if is_long else "this fraction of all steps"
        self._choose("warmup_steps", MAX_WARMUP_STEPS if is_long else WARMUP, reason)
        self._choose_average()

    def _choose_average(self) -> None:
        steps = self.num_steps
        if steps < STEPS_OF_AN_AVERAGE:
            self._choose("ema_decay", 0.0, "a short run ends with small steps")
            return
        decay = min(0.9999, round(1 - 25 / steps, 5))
        self._choose("ema_decay", decay, f"averages the last {round(1 / (1 - decay)):,} of {steps:,} steps")

    def _choose_augmentation(self) -> None:
        facts, epochs = self.facts, self.num_epochs
        reason = "several labels per image" if facts.multi_label else "one label per image"
        self._choose("label_smoothing_factor", 0.0 if facts.multi_label else 0.1, reason)
        is_small = facts.image_size <= SMALL_IMAGE
        reason = f"images of {facts.image_size} pixels"
        self._choose("crop_scale", [0.5 if is_small else 0.2, 1.0], reason)
        is_character = is_small and facts.num_channels == 1
        reason = "small gray images are often characters" if is_character else "most things have mirror images"
        self._choose("horizontal_flip_probability", 0.0 if is_character else 0.5, reason)
        is_long = epochs >= EPOCHS_OF_A_LONG_RUN and facts.num_train >= IMAGES_OF_A_LONG_RUN
        is_strong = is_long and facts.trains_backbone
        if facts.trains_backbone:
            reason = (
                f"{rounded(epochs, 3)} epochs of {facts.num_train:,} images are a {'long' if is_long else 'short'} run"
            )
        else:
            reason = STAYS
        has_color = facts.num_channels in (1, 3)
        strong = "randaugment" if has_color else "3-augment"
        self._choose("augmentation", strong if is_strong else "plain", reason + ("" if is_strong else self._unused()))
        self._choose("mixup_alpha", 0.8 if is_strong else 0.0, reason)
        self._choose("cutmix_alpha", 1.0 if is_strong else 0.0, reason)

    def _unused(self) -> str:
        """The given strengths of augmentations that a plain one does not have, in words."""
        fields = FinetuningArguments.__dataclass_fields__
        unused = [name for name in STRENGTHS if self.given.get(name, fields[name].default) != fields[name].default]
        return "".join(f"; {name} has no effect" for name in unused)


def read_facts(
    num_train: int,
    config: Any,
    arguments: FinetuningArguments,
    training_arguments: FinetuningTrainingArguments,
    num_blocks: int | None = None,
) -> RunFacts:
    """What the defaults of a run depend on.

    Args:
        num_train (`int`): Number of training images.
        config (`PreTrainedConfig`): The model's configuration, for images of the size that the run uses.
        arguments, training_arguments: The run's arguments.
        num_blocks (`int`, *optional*): Blocks of the model, where its configuration does not count them.
    """
    size = getattr(config, "image_size", None) or arguments.image_size or RunFacts.image_size
    return RunFacts(
        num_train=num_train,
        from_scratch=arguments.from_scratch,
        trains_backbone=not (arguments.freeze_backbone or arguments.lora_rank),
        hidden_size=getattr(config, "hidden_size", None) or RunFacts.hidden_size,
        num_layers=getattr(config, "num_hidden_layers", None)
        or len(getattr(config, "depths", None) or ())  # a network in stages has few, and one rate for all
        or num_blocks
        or RunFacts.num_layers,
        image_size=size if isinstance(size, int) else max(size),
        num_channels=getattr(config, "num_channels", RunFacts.num_channels),
        on_cpu=training_arguments.device.type == "cpu",
        num_batches=training_arguments.world_size * training_arguments.gradient_accumulation_steps,
    )


def settle_defaults(
    facts: RunFacts,
    arguments: FinetuningArguments,
    training_arguments: FinetuningTrainingArguments,
    preset_class: type[Preset] = Preset,
) -> Preset:
    """Set the arguments that are `None` by the preset, in place.

    Args:
        facts ([`RunFacts`]): What the defaults depend on.
        arguments, training_arguments: The run's arguments. `auto` is not among them any more.
        preset_class (`type`, *optional*, defaults to [`Preset`]): The task's.

    Returns:
        [`Preset`]: With what it chose, and why.
    """
    groups = (arguments, training_arguments)
    given = {name: value for group in groups for name, value in vars(group).items() if value is not None}
    preset = preset_class(facts, given)
    for name, choice in preset.choices.items():
        setattr(next(group for group in groups if hasattr(group, name)), name, choice.value)
    # What transformers takes for none.
    if training_arguments.max_steps is None:
        training_arguments.max_steps = -1
    if training_arguments.num_train_epochs is None:
        training_arguments.num_train_epochs = preset.num_epochs
    return preset
