"""The model repository that a run leaves: weights, configuration, image processor, code."""

from pathlib import Path

import torch
from accelerate import Accelerator

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.accelerator import full_state_dict
from modeling_sit.runtime.atomic_files import replace_files, write_errors
from modeling_sit.runtime.distributed import sync_errors


def export_model(
    accelerator: Accelerator,
    student: SiTForPreTraining,
    teacher: Teacher | None,
    processor: SiTImageProcessor,
    output_dir: Path,
    export: str,
) -> None:
    """Write weights, configuration, processor and code into the output folder. Every process must call this.

    Args:
        export (`str`): `"teacher"` or `"student"`: whose weights; without a teacher, the student's.

    Raises:
        [`SiTError`]: If they cannot be written; what was there stays as it was.
    """
    exported = teacher.model if teacher is not None and export == "teacher" else student
    state_dict = full_state_dict(exported)
    remedy = "what was there is as it was, and so are the checkpoints; make room, and go on from there"
    with sync_errors(accelerator), write_errors(output_dir, remedy):
        if accelerator.is_main_process:
            with replace_files(output_dir) as unfinished:
                # A sharded student is of a class that PyTorch made, whose code would be saved in place of SiT's.
                with torch.device("meta"):
                    plain_model = SiTForPreTraining(student.config)
                plain_model.save_pretrained(unfinished, state_dict=state_dict)
                processor.save_pretrained(unfinished)
