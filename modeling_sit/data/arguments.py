"""Arguments that say where the images come from."""

from dataclasses import dataclass, field
from typing import Any

from modeling_sit.image_modes import Level, check_intensity_range
from modeling_sit.runtime.errors import SiTError


@dataclass
class DatasetArguments:
    """Where the images come from."""

    dataset: str = field(
        metadata={
            "help": "Images: a folder (with or without class sub-folders), a parquet or webdataset tar file or a "
            "folder of them, a `save_to_disk` folder, a Hub id, or the built-in `digits`. With boxes or masks: a COCO "
            "folder, a column `objects`, or images and masks. Required."
        }
    )
    dataset_config_name: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a Hub dataset that has several configurations. Of a folder, the sub-folder to read."
        },
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the images. Default: the one column of type Image."}
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the labels, or COLUMN.FIELD of a struct. If an image may have several labels, a "
            "column of lists. Default: the one ClassLabel column, or one with a usual name."
        },
    )
    train_split: str | None = field(
        default=None,
        metadata={"help": "Training split, or the sub-folder that is one. Default: `train`, or the only split."},
    )
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Split to measure, embed or show. Default: `validation` if there is one, else `test`."},
    )
    intensity_range: list[Level] | None = field(
        default=None,
        metadata={
            "help": "Stored values that become black and white, for images of more than 8 bits: 0 4095 for 12 bits in "
            "files of 16; or a pair for each channel, one after the other. Values beyond are clipped. 0.5% 99.5% are "
            "percentiles of each image (also of 8 bits), for images that are dark or differ in exposure. Default: the "
            "range of the model; for a new model the range of the type."
        },
    )

    @property
    def for_loading(self) -> dict[str, Any]:
        """The arguments of [`~modeling_sit.data.sources.load_images`]."""
        return {
            name: getattr(self, name) for name in DatasetArguments.__dataclass_fields__ if name != "intensity_range"
        }

    def check_intensity_range(self, num_channels: int | None = None) -> None:
        """Raise a [`SiTError`] if the range is none for images of so many channels, or of any number of them."""
        if self.intensity_range is not None:
            try:
                check_intensity_range(self.intensity_range, num_channels)
            except ValueError as problem:
                raise SiTError(str(problem).partition(" ")[2], argument="intensity_range") from problem

    def set_intensity_range(self, processor: Any, config: Any) -> None:
        """Give a model's image processor the range that the user asks for, by which images are decoded, if any.

        Args:
            processor (`BaseImageProcessor`): The image processor; changed in place.
            config (`PreTrainedConfig`): The model's.

        Raises:
            [`SiTError`]: If the range does not fit the model's channels.
        """
        if self.intensity_range is not None:
            self.check_intensity_range(getattr(config, "num_channels", 3))
            processor.intensity_range = list(self.intensity_range)
