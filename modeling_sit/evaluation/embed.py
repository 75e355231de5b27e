"""Embedding of a dataset: the features of all its images, in memory or in parquet files."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import BaseImageProcessor, PreTrainedModel

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.description import tell, told
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.evaluation.feature_files import cut_into_shards, feature_table, missing_shards, write_shard
from modeling_sit.evaluation.features import Features, frozen_features
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.accelerator import choose_device, end_training, forget_settings
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.distributed import broadcast_from_main, main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.fingerprints import IRRELEVANT_CONFIG
from modeling_sit.runtime.hugging_face_cache import check_datasets_cache
from modeling_sit.runtime.memory import memory_errors
from modeling_sit.runtime.progress import quiet_transformers

TAKES_LESS = "a smaller `per_device_eval_batch_size` takes less"


@dataclass(kw_only=True)
class EmbeddingArguments(WeightsFileArguments):
    """The model, and where its features go.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the parquet files; they go into its sub-folder `data`. The command needs it."},
    )
    normalize: bool = field(
        default=False, metadata={"help": "Whether to scale each vector to length 1. Then inner products are cosines."}
    )
    shard_size: int = field(
        default=10000,
        metadata={"help": "Images per file. So many are in memory at a time, and are lost if the command is killed."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to start again if there are files of earlier runs."}
    )
    device: str | None = field(
        default=None,
        metadata={
            "help": "cpu or cuda; with one process also a device such as cuda:1. Default: cuda, if there is a GPU."
        },
    )

    def __post_init__(self):
        if self.shard_size < 1:
            raise SiTError(f"must be at least 1, got {self.shard_size}", argument="shard_size")


@dataclass(frozen=True)
class EmbeddedSplit:
    """
    The files of a split's features.

    Args:
        files (`list[Path]`): The parquet files, in order.
        num_vectors (`int`): Images with features.
        width (`int`): Numbers in a vector.
        num_skipped (`int`): Images that cannot be read.
        num_reused (`int`): Files that were there already.
    """

    files: list[Path]
    num_vectors: int
    width: int
    num_skipped: int
    num_reused: int


@quiet_transformers()
@memory_errors(TAKES_LESS)
def embed(
    model_name_or_path: str,
    dataset: str | datasets.Dataset | datasets.DatasetDict,
    *,
    recipe: str | Path | None = None,
    **arguments,
) -> datasets.Dataset | None:
    """
    Embed the images of a dataset with a frozen encoder: those of the training and of the validation split.

    Args:
        model_name_or_path (`str`): Folder, Hub id or file of weights.
        dataset (`str`, `datasets.Dataset` or `datasets.DatasetDict`): The images. The training and the validation
            split are embedded.
        recipe (`str` or `Path`, *optional*): YAML file, or name of a shipped recipe, of defaults for the arguments.
        arguments: Fields of [`EmbeddingArguments`], [`FeatureArguments`] and [`DatasetArguments`], such as
            `normalize=True`.

    Returns:
        `datasets.Dataset`: A row for each image that can be read: `split` and `row`, its number in the split; `path`,
        its file, or `None`; `vector`, its features, float32; and `label`, if there are labels. With `output_dir`, the
        rows lie in parquet files there. `None` in all processes but the main one.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If an argument is wrong, or the model or the images cannot be used.
    """
    keywords = {"model_name_or_path": model_name_or_path, "dataset": dataset, **arguments}
    classes = (EmbeddingArguments, FeatureArguments, DatasetArguments)
    embedding, features, images = build_arguments(classes, keywords, recipe, "embed")
    if embedding.output_dir is None:
        with told():  # printing is the command's part
            embedder = _Embedder(embedding, features, images)
        tables = {name: embedder.embed_split(split) for name, split in embedder.splits.items()}
        end_training(embedder.accelerator)
        if not embedder.accelerator.is_main_process:
            return None
        rows = {name: datasets.Dataset(datasets.table.InMemoryTable(table)) for name, table in tables.items()}
    else:
        check_datasets_cache()  # through which the files are read at the end
        with told():
            splits = run_embedding(embedding, features, images)
        if splits is None:
            return None
        rows = {
            name: datasets.Dataset.from_parquet([str(path) for path in split.files]) for name, split in splits.items()
        }
    named = [part.add_column("split", [name] * len(part)) for name, part in rows.items()]
    return datasets.concatenate_datasets(named)


@memory_errors(TAKES_LESS)
def run_embedding(
    arguments: EmbeddingArguments, feature_arguments: FeatureArguments, dataset_arguments: DatasetArguments
) -> dict[str, EmbeddedSplit] | None:
    """Write the features of a dataset to parquet files.

    Files that are there already stay as they are: the same call goes on where a killed one stopped. With several
    processes, each computes shards of its own.

    Returns:
        `dict[str, EmbeddedSplit]`: By name of the split. `None` in all processes but the main one.

    Raises:
        [`SiTError`]: If an argument is wrong, there are files of other settings or images, the model or the images
            cannot be used, or a file cannot be written.
    """
    if arguments.output_dir is None:
        raise SiTError("missing", argument="output_dir", remedy="give a folder for the parquet files")
    check_outside_dataset(arguments.output_dir, dataset_arguments.dataset)
    embedder = _Embedder(arguments, feature_arguments, dataset_arguments)
    accelerator = embedder.accelerator
    settings = embedder.fingerprint()
    shards = [
        shard
        for name, split in embedder.splits.items()
        for shard in cut_into_shards(Path(arguments.output_dir) / "data", name, split, arguments.shard_size)
    ]
    missing = broadcast_from_main(
        accelerator, lambda: missing_shards(shards, settings, arguments.overwrite_output_dir)
    )
    with sync_errors(accelerator):
        for number in missing[accelerator.process_index :: accelerator.num_processes]:
            found = embedder.features(
                shards[number].split, rows=shards[number].rows, progress=accelerator.is_main_process
            )
            write_shard(shards[number], found.features, found.rows, settings)
    end_training(accelerator)
    if not accelerator.is_main_process:
        return None
    embedded = {}
    for name, split in embedder.splits.items():
        numbers = [number for number, shard in enumerate(shards) if shard.split is split]
        files = [shards[number].path for number in numbers]
        num_vectors = sum(pq.read_metadata(path).num_rows for path in files)
        embedded[name] = EmbeddedSplit(
            files,
            num_vectors,
            width=pq.read_schema(files[0]).field("vector").type.list_size,
            num_skipped=len(split) - num_vectors,
            num_reused=len(set(numbers) - set(missing)),
        )
    return embedded


class _Embedder:
    """The model, the images and the device of a call."""

    def __init__(
        self,
        arguments: EmbeddingArguments,
        feature_arguments: FeatureArguments,
        dataset_arguments: DatasetArguments,
    ):
        device = choose_device(arguments.device)
        # The processes wait for one another only at the end, and there as long as it takes.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
        forget_settings()  # of an earlier run of this process
        self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
        self.device = device if self.accelerator.num_processes == 1 else self.accelerator.device
        self.normalize = arguments.normalize
        self.model, self.processor = main_process_first(
            self.accelerator,
            lambda: load_encoder(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads),
        )
        with sync_errors(self.accelerator):
            self.arguments = settle_features(feature_arguments, self.model.config)
            dataset_arguments.set_intensity_range(self.processor, self.model.config)
        images = main_process_first(self.accelerator, lambda: load_images(**dataset_arguments.for_loading))
        with sync_errors(self.accelerator):
            tell(images, intensity_range=getattr(self.processor, "intensity_range", None))
        self.splits = {str(split.split): split for split in (images.train, images.validation) if split is not None}

    def fingerprint(self) -> dict[str, Any]:
        """What the features depend on beside the images."""
        return {
            "model": fingerprint_of_model(self.model, self.processor),
            "pooling": self.arguments.pooling,
            "layer": self.arguments.layer,
            "normalize": self.normalize,
        }

    def features(self, split: datasets.Dataset, **settings) -> Features | None:
        """The [`frozen_features`] of a split without its labels; `settings` are more of its arguments."""
        images = split.select_columns("image")
        found = frozen_features(self.model, images, self.processor, self.arguments, device=self.device, **settings)
        if found is not None and self.normalize:
            found.features = torch.nn.functional.normalize(found.features, dim=1)
        return found

    def embed_split(self, split: datasets.Dataset):
        """The [`feature_table`] of a split, which all processes compute; `None` in all but the main one."""
        found = self.features(split, accelerator=self.accelerator)
        return None if found is None else feature_table(split, found.features, found.rows)


def fingerprint_of_model(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    """A hash that differs where features differ: of weights, configuration and image processor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    config = {name: value for name, value in model.config.to_dict().items() if name not in IRRELEVANT_CONFIG}
    digest.update(json.dumps([config, processor.to_dict()], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
