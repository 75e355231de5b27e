"""Evaluation from arguments to results: load the model and the images, run the protocols, write what they measured."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator

from modeling_sit.data.arguments import DatasetArguments
from modeling_sit.data.description import tell, told
from modeling_sit.data.labeled import labeled_splits
from modeling_sit.data.own_files import check_outside_dataset
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.dense_run import measure_whole_model
from modeling_sit.evaluation.encoder import load_encoder, random_encoder
from modeling_sit.evaluation.evaluation_arguments import EvaluationArguments
from modeling_sit.evaluation.feature_arguments import settle_features
from modeling_sit.evaluation.features import frozen_features
from modeling_sit.evaluation.metric_results import Measured, ProtocolResult
from modeling_sit.evaluation.protocol_arguments import ProtocolArguments
from modeling_sit.evaluation.protocols import PROTOCOLS
from modeling_sit.evaluation.results import (
    RESULTS_FILE,
    WEIGHTS,
    EvaluationResults,
    as_result,
    drop_results,
    of_other_weights,
    read_results,
    write_results,
)
from modeling_sit.runtime.accelerator import choose_device, end_training, forget_settings, patient_processes
from modeling_sit.runtime.arguments import build_arguments
from modeling_sit.runtime.atomic_files import check_writable
from modeling_sit.runtime.distributed import main_process_first, sync_errors
from modeling_sit.runtime.errors import SiTError
from modeling_sit.runtime.fingerprints import model_fingerprint
from modeling_sit.runtime.memory import memory_errors
from modeling_sit.runtime.private_paths import without_private_paths
from modeling_sit.runtime.progress import quiet_transformers, write_line


@dataclass(frozen=True)
class Evaluation:
    """
    What [`run_evaluation`] measured.

    Args:
        protocols (`dict[str, ProtocolResult]`): The result of each protocol, by name.
        settings (`dict[str, Any]`): What was measured on what: number of images, dataset, split, pooling, layer,
            model, fingerprint of its weights.
        dataset_config (`str`, *optional*): Configuration of a Hub dataset.
        path (`Path`, *optional*): The `eval_results.json` with the results; `None` if none was written.
    """

    protocols: dict[str, ProtocolResult]
    settings: dict[str, Any]
    dataset_config: str | None = None
    path: Path | None = None

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The results of each protocol, by name, as `eval_results.json` has them: numbers, texts, lists and dicts."""
        return {name: {**as_result(protocol), **self.settings} for name, protocol in self.protocols.items()}

    @property
    def for_card(self) -> dict[str, Any]:
        """Arguments of [`~hub.card_results.update_card`] after the folder: `update_card(folder,
        **result.for_card)`."""
        return {
            "measurements": self.protocols,
            "dataset": self.settings["dataset"],
            "dataset_config": self.dataset_config,
            "split": self.settings["split"],
            "settings": {
                name: self.settings[name]
                for name in ("num_train", "num_validation", "pooling", "layer", WEIGHTS)
                if name in self.settings
            },
        }


@quiet_transformers()
def evaluate(
    model_name_or_path: str,
    dataset: str | datasets.Dataset | datasets.DatasetDict,
    *,
    recipe: str | Path | None = None,
    **arguments,
) -> EvaluationResults | None:
    """
    Measure the frozen features of a pretrained encoder on labeled images; or what a model finds that was fine-tuned for
    detection or segmentation, with `protocols=["detection"]` or `["segmentation"]`.

    Args:
        model_name_or_path (`str`): Folder, Hub id or file of weights.
        dataset (`str`, `datasets.Dataset` or `datasets.DatasetDict`): Labeled images, to train probes and to measure; or
            images with objects, or with a class for each pixel ([`~data.dense.loading.open_dense`]), to measure.
        recipe (`str` or `Path`, *optional*): YAML file, or name of a shipped recipe, of defaults for the arguments.
        arguments: Fields of [`EvaluationArguments`], [`DatasetArguments`] and [`ProtocolArguments`], such as
            `protocols=["knn", "linear"]`.

    Returns:
        [`EvaluationResults`]: A `dict` with the results of each protocol: its metrics in [0, 1], their intervals and the settings, all
        JSON-able. They are also written to `eval_results.json` in `output_dir`, or in the model's folder, if there is
        either. `None` in all processes but the main one.

    Raises:
        `TypeError`: If there is no such argument.
        [`SiTError`]: If an argument is wrong, or the model or the images cannot be used.
    """
    keywords = {"model_name_or_path": model_name_or_path, "dataset": dataset, **arguments}
    classes = (EvaluationArguments, DatasetArguments, ProtocolArguments)
    with told():  # printing is the command's part
        evaluation = run_evaluation(*build_arguments(classes, keywords, recipe, "evaluate"))
    return None if evaluation is None else EvaluationResults(evaluation.results, evaluation.protocols)


@memory_errors("a smaller `per_device_eval_batch_size` takes less")
def run_evaluation(
    arguments: EvaluationArguments, dataset_arguments: DatasetArguments, protocol_arguments: ProtocolArguments
) -> Evaluation | None:
    """Run the protocols, and write the results. Those of other weights that are in the folder are dropped.

    With several processes, all extract features, or find objects and classes of pixels, and the main one goes on alone.

    Returns:
        [`Evaluation`]: `None` in all processes but the main one.

    Raises:
        [`SiTError`]: If an argument is wrong, or the model or the images cannot be used.
    """
    device = choose_device(arguments.device)
    forget_settings()  # of an earlier run of this process
    patience = patient_processes(arguments.dataloader_timeout)
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
    device = device if accelerator.num_processes == 1 else accelerator.device
    with sync_errors(accelerator):
        check_outside_dataset(arguments.output_dir, dataset_arguments.dataset)
        output_dir = results_folder(arguments)
        if output_dir is not None:
            # Before anything is computed.
            read_results(output_dir)
            check_writable(output_dir / RESULTS_FILE, "give another folder with `output_dir`")
    weights = _fingerprint(arguments) if accelerator.is_main_process else {}
    measure = measure_whole_model if protocol_arguments.measures_whole_models else measure_features
    measured = measure(arguments, dataset_arguments, protocol_arguments, accelerator, device)
    end_training(accelerator)
    if not accelerator.is_main_process:
        return None
    protocols, settings = measured()
    name = without_private_paths(arguments.model_name_or_path)
    settings |= {"model_name_or_path": name, "from_scratch": arguments.from_scratch, **weights}
    evaluation = Evaluation(protocols, settings, dataset_arguments.dataset_config_name)
    if output_dir is None:
        return evaluation
    if weights:
        _drop_others(output_dir, evaluation)
    path = write_results(output_dir, evaluation.results)
    return Evaluation(protocols, settings, dataset_arguments.dataset_config_name, path)


def _fingerprint(arguments: EvaluationArguments) -> dict[str, str]:
    """The fingerprint of the weights, by its name in the results. Empty without pretrained weights, in a folder where it is not known
    which files they are, and if they cannot be read, which loading them tells."""
    name = str(arguments.model_name_or_path)
    with suppress(OSError):
        fingerprint = None if arguments.from_scratch else model_fingerprint(name)
        if fingerprint is not None and not (fingerprint == name and Path(name).exists()):
            return {WEIGHTS: fingerprint}
    return {}


def _drop_others(output_dir: Path, evaluation: Evaluation) -> None:
    """Delete the results of other weights than those that were measured, and say so."""
    others = of_other_weights(read_results(output_dir), evaluation.settings[WEIGHTS])
    dropped = [name for name in others if name not in evaluation.protocols]  # the rest is replaced
    if dropped:
        drop_results(output_dir, dropped)
        write_line(f"{output_dir / RESULTS_FILE}: dropped {', '.join(dropped)}: results of other weights")


def measure_features(
    arguments: EvaluationArguments,
    dataset_arguments: DatasetArguments,
    protocol_arguments: ProtocolArguments,
    accelerator: Accelerator,
    device: torch.device,
) -> Measured:
    """Extract the features of the training and the validation images in all processes, and measure them in one.

    Returns:
        callable: For the main process: gives the results of the protocols, by name, and the settings.
    """
    model, processor = main_process_first(
        accelerator,
        lambda: load_encoder(arguments.model_name_or_path, arguments.network, arguments.num_attention_heads),
    )
    if arguments.from_scratch:
        model = random_encoder(model, arguments.model_name_or_path, protocol_arguments.seed)
    images = main_process_first(accelerator, lambda: load_images(**dataset_arguments.for_loading, labels="required"))
    with sync_errors(accelerator):
        dataset_arguments.set_intensity_range(processor, model.config)
        tell(images, intensity_range=getattr(processor, "intensity_range", None))
        arguments = settle_features(arguments, model.config)
        splits = labeled_splits(images)
    train, validation = (
        frozen_features(model, split, processor, arguments, device=device, accelerator=accelerator) for split in splits
    )

    def results() -> tuple[dict[str, ProtocolResult], dict[str, Any]]:
        protocols = {
            name: PROTOCOLS[name](train, validation, images.label_names, protocol_arguments, device)
            for name in protocol_arguments.protocols
        }
        settings = {
            "num_train": len(train.features),
            "num_validation": len(validation.features),
            "skipped": len(train.skipped) + len(validation.skipped),
            "dataset": without_private_paths(images.name),
            "split": str(splits[1].split),
            "pooling": arguments.pooling,
            "layer": arguments.layer,
        }
        return protocols, settings

    return results


def results_folder(arguments: EvaluationArguments) -> Path | None:
    """The folder for `eval_results.json`: `output_dir`, else the folder of the pretrained model, else none."""
    if arguments.output_dir is not None:
        return Path(arguments.output_dir)
    folder = Path(arguments.model_name_or_path)
    return folder if folder.is_dir() and not arguments.from_scratch else None


def check_results_folder(arguments: EvaluationArguments) -> None:
    """Check that the results have a folder, for a caller that keeps nothing else of them.

    Raises:
        [`SiTError`]: If they have none.
    """
    if results_folder(arguments) is not None:
        return
    if arguments.from_scratch:
        raise SiTError(
            "these results are not the pretrained model's",
            argument="from_scratch",
            remedy="give an `output_dir` for them",
        )
    path = Path(arguments.model_name_or_path)
    is_misspelled = len(path.parts) > 1 and path.parent.is_dir() and not path.exists()
    raise SiTError(
        f"{path}: no such folder",
        argument="model_name_or_path",
        remedy=f"{'check the spelling; ' if is_misspelled else ''}for a file of weights, or a model on the Hub, say with "
        "`output_dir` where eval_results.json goes",
    )
