#!/usr/bin/env python
"""Write the features of all images of a dataset to parquet files.

    python scripts/embed.py --model_name_or_path M --dataset D --output_dir O
    accelerate launch scripts/embed.py ...        the same on several processes

`O/data` then holds `train-00000-of-00003.parquet` and so on, one row for each image that could be read: `row`, its number
in the split; `path`, where its file is, or was; `vector`, its features, float32; and its `label`, where it has one.

Search the vectors by faiss (pip install faiss-cpu), best of all those of --normalize, whose inner products are cosines:

    vectors = datasets.load_dataset("parquet", data_dir="O", split="train").with_format("numpy")
    index = faiss.IndexFlatIP(vectors["vector"][:].shape[1])
    index.add(vectors["vector"][:])
    scores, rows = index.search(query[None], 6)               # query: float32, (width,)

or by faiss within `datasets`, which gives the rows with all their columns:

    vectors.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)
    scores, nearest = vectors.get_nearest_examples("vector", query, k=6)
    nearest["path"], nearest["row"]

Images are read shard by shard, and a shard's file is there when it is whole. What is there already is left as it is: the
same command goes on where a killed one stopped, and ends with the same files. A split that is neither for training nor for
validation is added by another run with `--validation_split NAME`.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import BaseImageProcessor, PreTrainedModel

import modeling_sit  # noqa: F401  registers SiT with AutoModel and AutoImageProcessor
from modeling_sit.cli.errors import one_line_errors
from modeling_sit.cli.help_text import ExampleHelpFormatter
from modeling_sit.cli.parser import RecipeArgumentParser
from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.decoding import UnreadableImage
from modeling_sit.data.sources import image_name, load_images, read_row
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.evaluation.features import extract_features
from modeling_sit.interop.arguments import WeightsFileArguments
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.atomic_files import replace_file, write_errors
from modeling_sit.runtime.distributed import broadcast_from_main, main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.selection import rows_left

# Where a file says what its features are of.
METADATA_KEY = b"modeling_sit"
# What has no influence on the features.
UNIMPORTANT_CONFIG = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "transformers_version",
}


@dataclass
class EmbedArguments(WeightsFileArguments):
    """The model, and where its features go.

    Raises:
        `ValueError`: If a value is out of range.
    """

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    output_dir: str = field(metadata={"help": "Folder for the parquet files; they lie in its `data`. Required."})
    normalize: bool = field(
        default=False, metadata={"help": "Whether to scale each vector to length 1: inner products are cosines then."}
    )
    shard_size: int = field(
        default=10000, metadata={"help": "Images a file: what is in memory at a time, and lost when killed."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to begin anew where there are files of earlier runs."}
    )
    device: str | None = field(
        default=None,
        metadata={"help": "cpu, cuda or, in one process, such as cuda:1. Default: cuda where there is one."},
    )

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"--shard_size {self.shard_size}: must be at least 1")


@dataclass
class Shard:
    """
    A part of a split, and the file of its features.

    Args:
        path (`Path`): The file.
        split (`datasets.Dataset`): The whole split.
        rows (`range`): Which of its rows.
    """

    path: Path
    split: datasets.Dataset
    rows: range

    def images(self) -> datasets.Dataset:
        return self.split.select(self.rows)

    def paths(self) -> pa.ChunkedArray:
        """Where each image's file is, or was; null where that is not known."""
        images = self.images().select_columns("image").with_format("arrow")[:]["image"]
        return pc.struct_field(images, "path")


def main() -> None:
    parser = RecipeArgumentParser(
        (EmbedArguments, FeatureArguments, DatasetArguments),
        description=__doc__,
        formatter_class=ExampleHelpFormatter,
    )
    arguments, feature_arguments, dataset_arguments = parser.parse()
    # What matters of loading a model, `load_encoder` says itself.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with one_line_errors(parser.flags):
        device = choose_device(arguments.device)
        # The processes wait for one another at the end alone, and there as long as it takes.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
        accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
        device = device if accelerator.num_processes == 1 else accelerator.device
        model, processor = main_process_first(
            accelerator,
            lambda: load_encoder(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads),
        )
        images = main_process_first(accelerator, lambda: load_images(**vars(dataset_arguments)))
        with sync_errors(accelerator):
            extraction = feature_arguments.settings(model.config)
        splits = {str(split.split): split for split in (images.train, images.validation) if split is not None}
        settings = {
            "model": fingerprint_of_model(model, processor),
            **{name: extraction[name] for name in ("pooling", "layer")},
            "normalize": arguments.normalize,
        }
        shards = [
            shard
            for name, split in splits.items()
            for shard in cut_into_shards(Path(arguments.output_dir) / "data", name, split, arguments.shard_size)
        ]
        missing = broadcast_from_main(
            accelerator, lambda: missing_shards(shards, settings, arguments.overwrite_output_dir)
        )
        if accelerator.is_main_process and len(missing) < len(shards):
            print(f"{len(shards) - len(missing)} of {len(shards)} files are there already")
        with sync_errors(accelerator):
            for number in missing[accelerator.process_index :: accelerator.num_processes]:
                features, rows = features_of(
                    shards[number], model, processor, device, progress=accelerator.is_main_process, **extraction
                )
                if arguments.normalize:
                    features = torch.nn.functional.normalize(features, dim=1)
                write_shard(shards[number], features, rows, settings)
        accelerator.end_training()
        if accelerator.is_main_process:
            report(arguments.output_dir, shards, splits)


def cut_into_shards(folder: Path, name: str, split: datasets.Dataset, shard_size: int) -> list[Shard]:
    """The files of a split, named as the Hub names the shards of a dataset."""
    count = max(1, -(-len(split) // shard_size))
    return [
        Shard(
            folder / f"{name}-{number:05}-of-{count:05}.parquet",
            split,
            range(number * shard_size, min((number + 1) * shard_size, len(split))),
        )
        for number in range(count)
    ]


def missing_shards(shards: list[Shard], settings: dict[str, Any], overwrite: bool) -> list[int]:
    """Which shards have no file yet; the others' files are known to be of these settings and images.

    Raises:
        [`SiTError`]: If a file of one of the splits is not.
    """
    paths = {shard.path: shard for shard in shards}
    folder = shards[0].path.parent
    names = {path.name.rsplit("-", 3)[0] for path in paths}
    for path in sorted(folder.glob("*.parquet")):
        if path.name.rsplit("-", 3)[0] not in names:
            continue
        found = read_settings(path)
        if found is None:
            raise SiTError(f"{path} is not a file of features; choose another --output_dir, or move it away")
        if overwrite:
            with write_errors(path, "choose another --output_dir"):
                path.unlink()
            continue
        remedy = "choose another --output_dir, or begin anew with --overwrite_output_dir"
        if path not in paths:
            raise SiTError(f"{path} belongs to a run with another --shard_size, or on other images; {remedy}")
        for name, value in {**settings, **images_of(paths[path])}.items():
            if found.get(name) != value:
                raise SiTError(f"{path} was made with another {name} ({found.get(name)}, now {value}); {remedy}")
    return [number for number, shard in enumerate(shards) if not shard.path.exists()]


def read_settings(path: Path) -> dict[str, Any] | None:
    """What a file says that its features are of; `None` if it does not say."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    except (OSError, pa.ArrowException, ValueError) as problem:
        raise SiTError(f"{path} cannot be read: {' '.join(str(problem).split())}; remove it") from problem


def fingerprint_of_model(model: PreTrainedModel, processor: BaseImageProcessor) -> str:
    """Tells encoders apart whose features differ: by weights, configuration and image processor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    config = {name: value for name, value in model.config.to_dict().items() if name not in UNIMPORTANT_CONFIG}
    digest.update(json.dumps([config, processor.to_dict()], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def images_of(shard: Shard) -> dict[str, Any]:
    """Tells images apart by their number and their files' names."""
    paths = "\n".join(path or "" for path in shard.paths().to_pylist())
    return {
        "first_row": shard.rows.start,
        "num_rows": len(shard.rows),
        "paths": hashlib.sha256(paths.encode()).hexdigest()[:16],
    }


def features_of(
    shard: Shard, model: PreTrainedModel, processor: BaseImageProcessor, device: torch.device, **settings
) -> tuple[torch.Tensor, list[int]]:
    """Features `(num_kept, width)` of the images of a shard that can be read, and their rows in the split. The others
    are named on stderr.

    Raises:
        [`SiTError`]: If the model gives no features, or some that are not finite.
    """
    images = shard.images().select_columns("image")
    try:
        found = extract_features(model, images, processor, device=device, **settings)
        features, kept = found.features, rows_left(images, [name for name, _ in found.skipped])
        reasons = dict(found.skipped)
    except ValueError as problem:
        reasons = unreadable_images(images, model.base_model.config.num_channels)
        if len(images) > 0 and len(reasons) == 0:
            raise SiTError(f"--model_name_or_path: {problem}") from problem
        width = model.base_model.config.hidden_size * (2 if settings["pooling"] == "token_mean" else 1)
        features, kept = torch.empty(0, width), []
    left = set(kept)
    for row in range(len(images)):
        if row not in left:
            reason = reasons.get(image_name(images, row), "it cannot be read")
            print(f"skipped {image_name(shard.split, shard.rows[row])}: {reason}", file=sys.stderr)
    if not features.isfinite().all():
        raise SiTError("--model_name_or_path: its features are not finite: its training has diverged; take another")
    return features, [shard.rows[row] for row in kept]


def unreadable_images(images: datasets.Dataset, num_channels: int) -> dict[str, str]:
    """Name and reason of each image that cannot be read, if that is all of them, else nothing."""
    reasons = {}
    for row in range(len(images)):
        try:
            read_row(images, row, num_channels)
            return {}
        except UnreadableImage as problem:
            name = image_name(images, row)
            reasons[name] = str(problem).removeprefix(f"{name}: ")
    return reasons


def write_shard(shard: Shard, features: torch.Tensor, rows: list[int], settings: dict[str, Any]) -> None:
    """Write the file of a shard, so that it is whole or not there.

    Raises:
        [`SiTError`]: If it cannot be written.
    """
    width = features.shape[1]
    columns = {
        "row": datasets.Value("int64"),
        "path": datasets.Value("string"),
        "vector": datasets.List(datasets.Value("float32"), length=width),
    }
    kept = [row - shard.rows.start for row in rows]
    values = {
        "row": pa.array(rows, pa.int64()),
        "path": shard.paths().take(pa.array(kept, pa.int64())),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(features.flatten().numpy(), pa.float32()), width),
    }
    if "label" in shard.split.column_names:
        columns["label"] = shard.split.features["label"]
        labels = shard.images().select_columns("label").with_format("arrow")[:]["label"]
        values["label"] = labels.take(pa.array(kept, pa.int64()))
    schema = datasets.Features(columns).arrow_schema
    description = json.dumps({**settings, **images_of(shard)}).encode()
    schema = schema.with_metadata({**schema.metadata, METADATA_KEY: description})
    arrays = [values[column.name].cast(column.type) for column in schema]
    with write_errors(shard.path, "make room, or choose another --output_dir, and start again"):
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replace_file(shard.path) as unfinished,
            pq.ParquetWriter(unfinished, schema, use_dictionary=False) as writer,
        ):
            if rows:  # datasets cannot read an empty row group, but a file without one
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def report(output_dir: str, shards: list[Shard], splits: dict[str, datasets.Dataset]) -> None:
    """Say what there is now, and how to load it."""
    for name, split in splits.items():
        files = [shard.path for shard in shards if shard.split is split]
        num_rows = sum(pq.read_metadata(path).num_rows for path in files)
        width = pq.read_schema(files[0]).field("vector").type.list_size
        skipped = f", {len(split) - num_rows} images skipped" if num_rows < len(split) else ""
        print(f"{name}: {num_rows} vectors of {width} numbers in {len(files)} files{skipped}")
    print(f'written to {output_dir}; load_dataset("parquet", data_dir="{os.path.abspath(output_dir)}") reads them')
    print("embed.py --help tells how to search them by faiss")


if __name__ == "__main__":
    main()
