"""Arguments of fine-tuning: the dataset, the model, the augmentation and the loss."""

from dataclasses import dataclass, field
from typing import Literal

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.finetuning.dense_arguments import CLASSIFICATION, DenseArguments, check_task, only_for
from modeling_sit.hub.arguments import CardArguments
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.errors import SiTError

PROBABILITIES = ("horizontal_flip_probability", "vertical_flip_probability", "random_erasing_probability")
AT_LEAST_ZERO = ("mixup_alpha", "cutmix_alpha", "color_jitter", "lora_rank", "randaugment_num_ops")
ABOVE_ZERO = ("image_size", "early_stopping_patience", "lora_alpha", "tuning_steps", "max_tuning_steps")


@dataclass(kw_only=True)
class FinetuningArguments(DenseArguments, CardArguments, WeightsFileArguments, DatasetArguments):
    """
    The model to fine-tune, the dataset, the augmentation and the loss.

    Raises:
        [`SiTError`]: If a value is out of range, or two exclude each other.
    """

    task: Literal["classification", "detection", "instance_segmentation", "semantic_segmentation"] = field(
        default="classification",
        metadata={
            "help": "What the model learns. classification: a class for each image, or several. detection: objects with "
            "boxes. instance_segmentation: objects with boxes and masks. semantic_segmentation: a class for each pixel."
        },
    )
    dataset: str = field(
        metadata={
            "help": "Labeled images. For classes: a folder with class sub-folders, a parquet or webdataset tar file or a "
            "folder of them, a `save_to_disk` folder, a Hub id, or the built-in `digits`. For objects: a folder of images "
            "with annotations in COCO's form, such as train.json and images/, or rows with a column `objects`. For pixels: "
            "a folder of images and masks of the same names, such as images/ and masks/, or rows with a column of masks. "
            "Required."
        }
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels, or COLUMN.FIELD of a struct; of lists, if an image may have several labels; of "
            "the objects; or of the masks. Default: the one ClassLabel column, or one with a usual name."
        },
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
            "validation split. If there is a test split, nothing is held back below 5,000 training images, unless "
            '`eval_strategy` is given; and never with `eval_strategy="no"`, because nothing is chosen then. A search '
            "(`auto`) holds out at least 0.2 of fewer than 2,000 images."
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
        default=1.0,
        metadata={
            "help": "Fraction of the training images of each class to train on, in (0, 1]; for detection and segmentation of "
            "all images alike."
        },
    )
    pooling: Literal["token", "mean", "token_mean"] | None = field(
        default=None,
        metadata=only_for(
            CLASSIFICATION,
            "Features that the classifier of a SiT model reads: the first token, the mean of the patch "
            "tokens, or both. Default: as in its configuration.",
        ),
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth of a SiT model. Default: as in its configuration."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Height and width of the input in pixels, a multiple of the patch size. Positions are "
            "interpolated. Default: as in pretraining. For detection and segmentation, the longer side, and the ratio "
            "stays. Default: that of the training images, at most 640, or 192 on a CPU."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Whether to train the head only. The features stay as they are."}
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
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of each block relative to the block above it, in (0, 1]. 1 gives all blocks the "
            "same rate. Default: by the number of blocks; 1 from scratch.",
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Decay in [0, 1) of an exponential moving average of the weights; 0 for none. The average is "
            "measured and saved. Early decay is lower: at most (1 + step) / (10 + step). Default: by the number of "
            "steps; 0 for short runs."
        },
    )
    augmentation: Literal["plain", "3-augment", "randaugment"] | None = field(
        default=None,
        metadata=only_for(
            CLASSIFICATION,
            "Augmentation after crop and flip. plain: none. 3-augment (DeiT III): grayscale, solarize or "
            "blur, then color jitter. randaugment (DeiT). Default: randaugment for long runs on a few thousand "
            "images or more, else plain.",
        ),
    )
    crop_scale: list[float] | None = field(
        default=None,
        metadata=only_for(
            CLASSIFICATION,
            "Range of the area of a crop, as a fraction of the image's area. Default: 0.2 to 1; 0.5 to 1 for "
            "images of 32 pixels or less.",
        ),
    )
    horizontal_flip_probability: float | None = field(
        default=None,
        metadata={"help": "Probability of a horizontal flip. Default: 0.5; 0 for gray images of 32 pixels or less."},
    )
    vertical_flip_probability: float = field(
        default=0.0,
        metadata={
            "help": "Probability of a vertical flip, for images without a top and a bottom, such as of a microscope or from the "
            "air."
        },
    )
    randaugment_num_ops: int = field(
        default=2, metadata=only_for(CLASSIFICATION, "Number of operations of RandAugment on each image.")
    )
    randaugment_magnitude: int = field(
        default=9, metadata=only_for(CLASSIFICATION, "Magnitude of RandAugment, 0 to 30.")
    )
    color_jitter: float = field(
        default=0.3,
        metadata=only_for(
            CLASSIFICATION, "Largest change of brightness, contrast and saturation in 3-Augment, as a fraction."
        ),
    )
    random_erasing_probability: float = field(
        default=0.0,
        metadata=only_for(CLASSIFICATION, "Probability that a rectangle of 2 to 33 %% of the image becomes noise."),
    )
    mixup_alpha: float | None = field(
        default=None,
        metadata=only_for(
            CLASSIFICATION,
            "Alpha of the Beta distribution of MixUp; 0 for none. With CutMix too, each batch draws one of "
            "the two. Default: 0.8 for long runs on a few thousand images or more, else 0.",
        ),
    )
    cutmix_alpha: float | None = field(
        default=None,
        metadata=only_for(
            CLASSIFICATION,
            "Alpha of the Beta distribution of CutMix; 0 for none. Default: 1 for long runs on a few "
            "thousand images or more, else 0.",
        ),
    )
    multi_label_loss: Literal["binary_cross_entropy", "asymmetric"] = field(
        default="binary_cross_entropy",
        metadata=only_for(
            CLASSIFICATION,
            "Loss for images with several labels. The asymmetric loss gives easy negatives less weight. The "
            "validation loss is always binary cross-entropy.",
        ),
    )
    class_weights: Literal["none", "balanced"] = field(
        default="none",
        metadata=only_for(
            CLASSIFICATION,
            "Whether the loss weights each class by the inverse of its number of training images. With "
            "several labels per image, the positives of a label have the weight (images without it / images "
            "with it).",
        ),
    )
    balanced_sampling: bool = field(
        default=False,
        metadata=only_for(
            CLASSIFICATION, "Whether an epoch draws images with replacement, so that all classes are equally frequent."
        ),
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
    tuning_learning_rates: list[float] | None = field(
        default=None,
        metadata={
            "help": 'Learning rates that `learning_rate="auto"` tries first. If the best is the smallest or the '
            "largest, it tries more beyond it. Default: a third of the usual rate, the usual rate, three times it."
        },
    )
    tuning_steps: int | None = field(
        default=None,
        metadata={
            "help": 'Number of steps that `max_steps="auto"` begins with. Default: the usual number for as many images.'
        },
    )
    max_tuning_steps: int | None = field(
        default=None,
        metadata={
            "help": 'Number of steps beyond which `max_steps="auto"` does not go. Default: eight times those it '
            "begins with."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        check_task(self, self.task)
        self.check_dense()
        if not 0 < self.label_fraction <= 1:
            raise SiTError(f"must be in (0, 1], got {self.label_fraction}", argument="label_fraction")
        crop = self.crop_scale
        if crop is not None and (len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1):
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
        if self.tuning_learning_rates is not None:
            self.tuning_learning_rates = sorted(set(self.tuning_learning_rates))
            if not self.tuning_learning_rates or self.tuning_learning_rates[0] <= 0:
                raise SiTError("must be above 0", argument="tuning_learning_rates")
        # A linear head on random features is the measure of an encoder without training.
        if self.freeze_backbone and self.from_scratch and self.segmentation_head != "linear":
            raise SiTError(
                "with `from_scratch`, random weights would stay random",
                argument="freeze_backbone",
                remedy="leave one of them out; for the value of an untrained encoder, segment with `segmentation_head=linear`",
            )
        if self.freeze_backbone and self.lora_rank:
            raise SiTError(
                "with `lora_rank`, the adapters in the backbone learn",
                argument="freeze_backbone",
                remedy="leave one of them out",
            )
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise SiTError(
                "has no effect without patience",
                argument="early_stopping_threshold",
                remedy="give `early_stopping_patience` too",
            )
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
                if getattr(self, name):
                    raise SiTError("has no effect without adapters", argument=name, remedy="give `lora_rank` too")
