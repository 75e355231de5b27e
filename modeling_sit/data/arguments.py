"""Arguments that say where the images come from."""

from dataclasses import dataclass, field


@dataclass
class DatasetArguments:
    """Where the images come from."""

    dataset: str = field(
        metadata={
            "help": "Images: a folder (with or without class sub-folders), a parquet or webdataset tar file or a "
            "folder of them, a `save_to_disk` folder, a Hub id, or the built-in `digits`. Required."
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
        metadata={"help": "Split to measure on. Default: `validation` if there is one, else `test`."},
    )
