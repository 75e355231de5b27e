"""The arguments of the demo."""

from dataclasses import dataclass, field

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.errors import SiTError

RANDOM = "random"
MAX_IMAGES = 2000
MEGABYTE = 10**6


@dataclass(kw_only=True)
class DemoArguments(WeightsFileArguments, DatasetArguments):
    """What is shown, and where.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    model_name_or_path: str = field(
        metadata={
            "help": "Checkpoint to show, in any form that the package reads: a folder, a Hub id, a file of weights."
        }
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Images to choose from, to find neighbors among, and to map: a folder, parquet or webdataset tar files, a "
            "`save_to_disk` folder, a Hub id, or `digits`. Default: none; you give images of your own."
        },
    )
    compare_with: str | None = field(
        default=None,
        metadata={
            "help": "A second checkpoint, shown beside the first, or `random` for the same network before any training."
        },
    )
    max_images: int = field(
        default=MAX_IMAGES,
        metadata={"help": "Largest number of images of the dataset. If there are more, they are chosen at random."},
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to serve on. By default only this machine reaches it; 0.0.0.0 serves the network."},
    )
    port: int = field(default=7860, metadata={"help": "Port to serve on."})
    max_upload_megabytes: float = field(
        default=20.0, metadata={"help": "Largest size of an uploaded file, in megabytes."}
    )
    max_upload_pixels: int = field(
        default=40_000_000,
        metadata={"help": "Largest number of pixels of an image. JPEGs of more are read at a smaller size."},
    )
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda or a device such as cuda:1. Default: cuda, if there is a GPU."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of images, and of all other random numbers."})
    export_space: str | None = field(
        default=None,
        metadata={
            "help": "Folder to write a Hugging Face Space to, with the checkpoint and some of the images, instead of serving."
        },
    )

    def __post_init__(self):
        for name, low, high in (
            ("port", 1, 65535),
            ("max_images", 4, 100_000),
            ("max_upload_megabytes", 0.001, 1000),
            ("max_upload_pixels", 1, 10**9),
        ):
            if not low <= getattr(self, name) <= high:
                raise SiTError(f"must be from {low:,} to {high:,}, got {getattr(self, name)}", argument=name)
