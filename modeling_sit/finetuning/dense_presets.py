"""Defaults of detection and segmentation."""

from modeling_sit.finetuning.presets import Preset
from modeling_sit.runtime.words import rounded

# Wider backbones have heads of the usual size, and learn with smaller rates.
NARROW = 192
# Images in a step: of a CPU, and of an accelerator.
BATCH_SIZE_CPU, BATCH_SIZE = 4, 16
# Epochs of 500 images. Of more images the run sees each one less often, but at least so many times.
USUAL_EPOCHS, USUAL_IMAGES, MIN_EPOCHS = 50, 500, 12
MIN_STEPS = 500
# Images of 160 pixels that a CPU is given to learn from without being asked: an hour or less of a small model.
CPU_IMAGES, CPU_IMAGE = 8_000, 160
# With fewer epochs, large changes of scale slow a run down more than they help it.
EPOCHS_OF_A_LONG_RUN = 50


class DensePreset(Preset):
    """
    As [`Preset`], with what detection and segmentation need: small batches of large images, many epochs, and no average.

    Starting points, from ViTDet's and iBOT's recipes for hundreds of images; not a measured optimum.
    """

    def usual_batch_size(self) -> int:
        """4 on a CPU, else 16."""
        return BATCH_SIZE_CPU if self.facts.on_cpu else BATCH_SIZE

    def usual_steps(self) -> int:
        """50 epochs for 500 images or fewer, and fewer epochs for more, at least 12; half as many again from scratch. On a
        CPU no more than [`CPU_IMAGES`] of 160 pixels in all, fewer if they are larger. 500 steps at least."""
        facts = self.facts
        epochs = max(MIN_EPOCHS, USUAL_EPOCHS * min(1.0, USUAL_IMAGES / facts.num_train) ** 0.5)
        steps = epochs * self.steps_per_epoch * (1.5 if facts.from_scratch else 1)
        if facts.on_cpu:
            images = CPU_IMAGES * min(1.0, CPU_IMAGE / facts.image_size) ** 2
            steps = min(steps, images / self.batch_size)
        return max(MIN_STEPS, int(round(steps, -1)))

    def usual_learning_rate(self) -> float:
        """Peak rate of AdamW: 1e-3 for narrow backbones, 1e-4 for others; 1e-3 for heads or adapters alone."""
        if not self.facts.trains_backbone:
            return 1e-3
        return 1e-3 if self.facts.hidden_size <= NARROW else 1e-4

    def _choose_average(self) -> None:
        self._choose("ema_decay", 0.0, "detection and segmentation train without an average")

    def _choose_augmentation(self) -> None:
        epochs = self.num_epochs
        is_long = round(epochs) >= EPOCHS_OF_A_LONG_RUN  # the usual number of steps is rounded
        reason = f"{rounded(epochs, 3)} epochs are a {'long' if is_long else 'short'} run"
        self._choose("scale_jitter", [0.5, 2.0] if is_long else [0.8, 1.25], reason)
        self._choose("horizontal_flip_probability", 0.5, "most things have mirror images")
