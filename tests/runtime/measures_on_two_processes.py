"""Figures of objects and of label maps, where each process has seen some of the images: one of them twice, or, as the
trainer has it, each once."""

import os
from pathlib import Path

import numpy as np
import torch
from dense_sets import write_squares
from label_maps import maps
from made_up_detections import NAMES, found_in, made_up_rows

from modeling_sit import SiTConfig, SiTImageProcessor, SiTModel
from modeling_sit.evaluation.coco_evaluation import CocoEvaluation
from modeling_sit.evaluation.semantic_evaluation import SemanticEvaluation
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.prepare import TASKS, prepare_trainer
from modeling_sit.finetuning.training_arguments import FinetuningTrainingArguments

TASK = "detection"
BACKBONE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def compute_measures(accelerator) -> dict[str, torch.Tensor]:
    """All figures, of all processes' images; `accelerator` is `None` without others."""
    rows, generator = made_up_rows(), np.random.default_rng(2)
    found = [found_in(row, generator) for row in rows]
    objects = CocoEvaluation(rows, NAMES, ("bbox", "segm"))
    pixels = SemanticEvaluation([str(number) for number in range(5)])
    predictions, references = maps(6)
    for evaluation, images in ((objects, list(rows)), (pixels, list(zip(predictions, references, strict=True)))):
        numbers = range(len(images))
        if accelerator is not None:
            # As batches are shared out: the first image comes again, to make the processes' numbers equal.
            numbers = [number % len(images) for number in range(len(images) + 2)]
            numbers = numbers[accelerator.process_index :: accelerator.num_processes]
        for number in numbers:
            if evaluation is objects:
                evaluation.add(rows[number]["image_id"], *found[number])
            else:
                evaluation.add(number, *images[number])
        if accelerator is not None:
            evaluation.merge(accelerator)
    figures = {**objects.compute(), **pixels.compute()}
    figures |= {"objects_images": objects.num_images, "pixels_images": pixels.num_images}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}


def compute_evaluation(accelerator, folder: Path) -> dict[str, torch.Tensor]:
    """All figures of a fine-tuned detector, by the trainer, with random numbers in its loss; `accelerator` is `None` without
    others."""
    if accelerator is None or accelerator.is_main_process:
        write_squares(folder / "squares", train=1, test=5)
        torch.manual_seed(0)
        SiTModel(SiTConfig(**BACKBONE)).save_pretrained(folder / "backbone")
        SiTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "backbone")
    if accelerator is not None:
        accelerator.wait_for_everyone()
    arguments = FinetuningArguments(
        model_name_or_path=str(folder / "backbone"),
        dataset=str(folder / "squares"),
        task=TASK,
        image_size=64,
        anchor_sizes=[15.0] * 5,  # as large as the squares, so that some are found without training
    )
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # which the launcher's configuration sets
    training_arguments = FinetuningTrainingArguments(
        output_dir=str(folder / "out"), use_cpu=True, report_to="none", per_device_eval_batch_size=2
    )
    trainer, _ = prepare_trainer(arguments, training_arguments, TASKS[TASK].load_splits(arguments, 0, None))
    figures = trainer.evaluate(trainer.task.eval_dataset(trainer.task.splits.test))
    names = (*trainer.task.metric_names, *trainer.task.class_metric_names, "loss")
    return {name: torch.tensor(figures[f"eval_{name}"], dtype=torch.float64) for name in names}
