"""Measuring a model with the head of a dense task: which images, which of its outputs, and the results."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.dense.loading import DenseDataset, open_dense
from modeling_sit.data.image_datasets import VALIDATION_SPLITS, dataset_name
from modeling_sit.data.label_encoding import join
from modeling_sit.evaluation.coco_evaluation import check_pycocotools
from modeling_sit.evaluation.dense_models import DenseModel, Output, load_dense_model
from modeling_sit.evaluation.dense_protocols import measure_dense, objects_result, pixels_result
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.metric_results import Measured, ProtocolResult
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.runtime.distributed import main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.private_paths import without_private_paths

logger = logging.getLogger(__name__)

BATCH_SIZE = 8
# What each protocol measures, the first that the model and the images both have.
WANTED: dict[str, tuple[Output, ...]] = {"detection": ("boxes",), "segmentation": ("masks", "pixels")}


def measure_whole_model(
    arguments: EvaluationArguments,
    dataset_arguments: DatasetArguments,
    protocol_arguments: ProtocolArguments,
    accelerator: Accelerator,
    device: torch.device,
) -> Measured:
    """Find objects or classes of pixels in the images of one split in all processes, and measure them in one.

    Returns:
        callable: For the main process: gives the results of the protocols, by name, and the settings.

    Raises:
        [`SiTError`]: In every process, if an argument does not fit, or the model or the images cannot be used.
    """
    with sync_errors(accelerator):
        check_arguments(arguments)
    dense = main_process_first(
        accelerator, lambda: load_dense_model(arguments.model_name_or_path, ", or take other `protocols`")
    )
    with sync_errors(accelerator):
        dataset_arguments.set_intensity_range(dense.processor, dense.model.config)
    dataset, outputs = main_process_first(
        accelerator, lambda: open_for_protocols(dense, dataset_arguments, protocol_arguments.protocols)
    )
    rows = main_process_first(
        accelerator, lambda: dataset.read(choose_split(dataset.splits, dataset_arguments.validation_split))
    )
    if accelerator.is_main_process:
        for note in dataset.notes:
            logger.warning("%s", note)
    dense.model.to(device)
    measurement = measure_dense(
        dense,
        rows,
        dataset.label_names,
        list(outputs.values()),
        accelerator,
        batch_size=arguments.per_device_eval_batch_size or BATCH_SIZE,
        num_workers=arguments.dataloader_num_workers,
        timeout=arguments.dataloader_timeout,
        progress=accelerator.is_main_process,
    )

    def results() -> tuple[dict[str, ProtocolResult], dict[str, Any]]:
        protocols = {
            protocol: pixels_result(measurement, protocol_arguments)
            if output == "pixels"
            else objects_result(measurement, output)
            for protocol, output in outputs.items()
        }
        for protocol, result in protocols.items():
            if all(math.isnan(metric.value) for metric in result.metrics):
                what = "labeled pixels" if outputs[protocol] == "pixels" else "objects"
                logger.warning("%s: split %s has no %s, so there is nothing to measure", protocol, rows.split, what)
        settings = {
            "num_validation": measurement.num_images,
            "skipped": len(measurement.skipped),
            "dataset": without_private_paths(dataset_name(dataset_arguments.dataset)),
            "split": str(rows.split),
        }
        return protocols, settings

    return results


def check_arguments(arguments: EvaluationArguments) -> None:
    """Raise [`SiTError`] if an argument is given that is for features."""
    for name, default in (
        ("from_scratch", False),
        ("pooling", None),
        ("layer", -1),
        ("network", None),
        ("num_attention_heads", None),
    ):
        if getattr(arguments, name) != default:
            raise SiTError("goes with protocols of features, and these measure a whole model", argument=name)


def open_for_protocols(
    dense: DenseModel, arguments: DatasetArguments, protocols: Sequence[str]
) -> tuple[DenseDataset, dict[str, Output]]:
    """The dataset, and what each protocol measures of the model.

    A protocol that could measure masks of objects or classes of pixels measures what the dataset has.

    Args:
        dense ([`DenseModel`]): The model.
        arguments ([`DatasetArguments`]): Where the images are.
        protocols (sequence of `str`): Keys of `WANTED`.

    Raises:
        [`SiTError`]: If the model gives nothing that a protocol measures, or the dataset has nothing of it.
    """
    for protocol in protocols:
        dense.require(WANTED[protocol], protocol, "protocols")
    choices: dict[str, tuple[Output, ...]] = {
        protocol: tuple(output for output in WANTED[protocol] if output in dense.outputs) for protocol in protocols
    }
    if "detection" in choices:  # objects have boxes, pixels none
        choices |= {
            protocol: tuple(output for output in outputs if output != "pixels")
            for protocol, outputs in choices.items()
        }
        if not all(choices.values()):
            raise SiTError(
                f"{dense.name} finds boxes, and no masks of objects",
                argument="protocols",
                remedy="take one of the two",
            )
    of_segmentation = choices.get("segmentation", ())
    error = None
    for output in of_segmentation or ("boxes",):
        try:
            dataset = open_for_output(output, dense, arguments)
        except SiTError as problem:
            error = error or problem
            continue
        return dataset, {protocol: output if protocol == "segmentation" else "boxes" for protocol in choices}
    raise error


def open_for_output(output: Output, dense: DenseModel, arguments: DatasetArguments) -> DenseDataset:
    """The dataset with what is true of the images, where it is to be compared with an output of a model.

    Raises:
        [`SiTError`]: If it has nothing of that kind.
    """
    if output != "pixels":
        check_pycocotools()
    return open_dense(
        arguments.dataset,
        output,
        dataset_config_name=arguments.dataset_config_name,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
        asked=tuple(split for split in (arguments.train_split, arguments.validation_split) if split is not None),
        reduce_labels=bool(getattr(dense.processor, "do_reduce_labels", False)),
    )


def choose_split(splits: Sequence[str], asked: str | None, usual: Sequence[str] = VALIDATION_SPLITS) -> str:
    """The split to measure on: the one that is asked for, else that of validation, else that of test.

    Args:
        splits (sequence of `str`): Names of the splits.
        asked (`str`, *optional*): The one that is asked for.
        usual (sequence of `str`, *optional*): Names that are taken if none is asked for, the first that is there.

    Raises:
        [`SiTError`]: If there is none.
    """
    if asked is not None:
        if asked not in splits:
            raise SiTError(f"no split {asked}, only {join(splits)}", argument="validation_split")
        return asked
    by_name = {split.lower(): split for split in splits}
    found = next((by_name[name] for name in usual if name in by_name), None)
    if found is None:
        raise SiTError(
            f"there is no split of a usual name to measure on, only {join(splits)}",
            argument="validation_split",
            remedy="name one",
        )
    return found
