"""What tests need two processes for. A launcher starts it twice: `two_processes.py CHECKS FOLDER`.

Each process writes what it computed to `FOLDER/process-N.pt`; the tests compare it with one process that has everything.
"""

import functools
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from methods_on_two_processes import compute_method
from torch import nn

from modeling_sit import SiTConfig, SiTForPreTraining
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.teacher import Teacher
from modeling_sit.runtime.accelerator import (
    clip_gradients,
    create_accelerator,
    end_training,
    full_state_dict,
    load_full_state_dict,
    prepare_student,
)
from modeling_sit.runtime.batch_norm import SynchronizedBatchNorm1d, synchronize_batch_norm
from modeling_sit.runtime.distributed import gather_projections, mean_num_corrupted_pixels
from modeling_sit.runtime.optimizer import create_optimizer, set_hyperparameters

# Of the networks, what is called in place of `forward`.
FORWARD_METHODS = ("encode",)
NUM_PROCESSES = 2
BATCH_SIZE = 4

CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "projection_hidden_size": 16,
    "projection_size": 16,
    "drop_path_rate": 0.0,
}

# Fields of the configuration, and whether batch norm knows of the other process.
GRADIENT_CASES = {
    "teacher": ({}, True),
    "nt_xent": ({"use_teacher": False}, True),
    "all_losses": ({"rotation_weight": 0.5, "reconstruction_norm": "l2"}, True),
    "unsynchronized": ({}, False),
    "batch_norm_off": ({}, None),
}


def random_batch(seed: int) -> dict[str, torch.Tensor]:
    """A batch of all processes' images; those of the second process are corrupted a fifth as much."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, NUM_PROCESSES, BATCH_SIZE)
    clean = torch.randn(*shape, 3, 16, 16, generator=generator)
    corrupted_share = torch.tensor([0.5, 0.1]).view(1, NUM_PROCESSES, 1, 1, 1, 1)
    mask = torch.rand(*shape, 1, 16, 16, generator=generator) < corrupted_share
    corrupted = torch.where(mask, torch.randn(clean.shape, generator=generator), clean)
    labels = torch.randint(0, 4, shape, generator=generator)
    batch = {
        "pixel_values": corrupted,
        "target_pixel_values": clean,
        "corruption_mask": mask,
        "rotation_labels": labels,
    }
    return {name: values.flatten(0, 2) for name, values in batch.items()}


def share_of(batch: dict[str, torch.Tensor], process: int) -> dict[str, torch.Tensor]:
    """One process's images, view 1 of them first."""
    shape = (2, NUM_PROCESSES, BATCH_SIZE)
    return {name: values.unflatten(0, shape)[:, process].flatten(0, 1) for name, values in batch.items()}


def create_models(seed: int, **fields) -> tuple[SiTForPreTraining, Teacher]:
    """A student, and a teacher that is no copy of it any more."""
    torch.manual_seed(seed)
    student = SiTForPreTraining(SiTConfig(**{**CONFIG, **fields})).train()
    # What is random in training, a teacher does not have.
    copy = SiTForPreTraining(SiTConfig(**{**CONFIG, **fields, "drop_path_rate": 0.0}))
    copy.load_state_dict(student.state_dict())
    teacher = Teacher(copy)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return student, teacher


def switch_off_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


def forward(accelerator, wrapped_student: nn.Module, teacher: Teacher, batch: dict[str, torch.Tensor]):
    """The losses of this process's images, as the training loop asks for them; `accelerator` is `None` without others."""
    projections = teacher.project(batch["target_pixel_values"])
    if accelerator is None:
        return wrapped_student(**batch, teacher_projections=projections)
    teacher_projections, offset = gather_projections(accelerator, projections)
    with accelerator.autocast():
        return wrapped_student(
            **batch,
            teacher_projections=teacher_projections,
            teacher_projections_offset=offset,
            num_corrupted_pixels=mean_num_corrupted_pixels(accelerator, batch["corruption_mask"]),
            gather_projections=functools.partial(gather_projections, accelerator),
        )


def compute_gradients(accelerator, case: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Losses, gradients and running statistics after one batch."""
    fields, synchronized = GRADIENT_CASES[case]
    student, teacher = create_models(seed=0, **fields)
    wrapped_student = student
    if synchronized is None:
        switch_off_batch_norm(student)
    if accelerator is not None:
        if synchronized:
            synchronize_batch_norm(student)
        teacher.prepare(student, FORWARD_METHODS)
        wrapped_student = accelerator.prepare(student)
    output = forward(accelerator, wrapped_student, teacher, batch)
    output.loss.backward()
    return {
        "loss": output.loss.detach(),
        **{f"gradient.{name}": value.grad for name, value in student.named_parameters() if value.grad is not None},
        **{f"student.{name}": value.clone() for name, value in student.named_buffers()},
        **{f"teacher.{name}": value.clone() for name, value in teacher.model.named_buffers()},
    }


BATCH_NORM_CASES = {
    "affine": ({}, (8, 6)),
    "plain": ({"affine": False, "eps": 1e-3}, (8, 6)),
    "cumulative": ({"momentum": None}, (8, 6)),
    "untracked": ({"track_running_stats": False}, (8, 6)),
    "length": ({"momentum": 0.3}, (8, 6, 5)),
    "far_from_0": ({}, (8, 6)),
    "bfloat16": ({}, (8, 6)),
    "evaluation": ({}, (8, 6)),
}
# The processes' batches differ in size.
BATCH_NORM_SHARES = (slice(0, 5), slice(5, 8))


def batch_norm_inputs(case: str) -> tuple[nn.BatchNorm1d, list[torch.Tensor], torch.Tensor]:
    """A batch norm with weights of its own, inputs of two batches of all processes, and the gradient of its outputs."""
    settings, shape = BATCH_NORM_CASES[case]
    generator = torch.Generator().manual_seed(sum(map(ord, case)))
    module = nn.BatchNorm1d(shape[1], **settings).train(case != "evaluation")
    with torch.no_grad():
        for tensor in (*module.parameters(), *(buffer for buffer in module.buffers() if buffer.ndim)):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    spread, mean = (0.1, 100.0) if case == "far_from_0" else (2.0, 1.0)
    inputs = [spread * torch.randn(shape, generator=generator) + mean for _ in range(2)]
    gradient = torch.randn(shape, generator=generator)
    if case == "bfloat16":
        inputs, gradient = [values.bfloat16() for values in inputs], gradient.bfloat16()
    return module, inputs, gradient


def compute_batch_norm(case: str, share: slice) -> dict[str, torch.Tensor]:
    """What [`run_batch_norm`] gives for one process's share of the batches, with batch norm over all."""
    module, inputs, gradient = batch_norm_inputs(case)
    # A layer with parameters beside it, for they say on which device the model is.
    synchronized = synchronize_batch_norm(nn.Sequential(module, nn.Linear(1, 1)))[0]
    assert type(synchronized) is SynchronizedBatchNorm1d
    return run_batch_norm(synchronized, [values[share] for values in inputs], gradient[share])


def run_batch_norm(module: nn.Module, inputs: list[torch.Tensor], gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, gradients and running statistics after two batches."""
    results = {}
    for number, values in enumerate(inputs):
        values = values.clone().requires_grad_()
        output = module(values)
        output.backward(gradient)
        results |= {f"output.{number}": output.detach(), f"gradient.{number}": values.grad}
    results |= {f"gradient.{name}": parameter.grad for name, parameter in module.named_parameters()}
    return results | {f"buffer.{name}": buffer for name, buffer in module.named_buffers()}


def projections_of(process: int) -> torch.Tensor:
    return torch.randn(2 * BATCH_SIZE, 5, generator=torch.Generator().manual_seed(process))


def loss_weights_of(process: int) -> torch.Tensor:
    """The loss of a process in the check of the gather: its weighted sum of all projections."""
    shape = (NUM_PROCESSES * 2 * BATCH_SIZE, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(10 + process))


def compute_gather(accelerator) -> dict[str, torch.Tensor]:
    projections = projections_of(accelerator.process_index).requires_grad_()
    gathered, offset = gather_projections(accelerator, projections)
    (gathered * loss_weights_of(accelerator.process_index)).sum().backward()
    mask = share_of(random_batch(0), accelerator.process_index)["corruption_mask"]
    return {
        "gathered": gathered.detach(),
        "offset": torch.tensor(offset),
        "gradient": projections.grad,
        "mean_num_corrupted_pixels": mean_num_corrupted_pixels(accelerator, mask),
        "half_gathered": gather_projections(accelerator, projections.detach().half())[0],
    }


def compute_later_runs(accelerator) -> list[int]:
    """The processes that know each other in each of many runs in one program."""
    found = []
    for _ in range(20):
        end_training(accelerator)
        accelerator = create_accelerator(mixed_precision="no")
        found.append(sum(gather_object([accelerator.process_index + 1])))
    return found


class Run:
    """A short pretraining, as the training loop does it, with two batches a step."""

    def __init__(self, accelerator, seed: int):
        accelerator.free_memory()
        self.accelerator = accelerator
        self.student, self.teacher = create_models(seed, drop_path_rate=0.5)
        synchronize_batch_norm(self.student)
        optimizer = create_optimizer(self.student, (0.9, 0.999), accelerator.device)
        for group in optimizer.param_groups:
            # Batch norm leaves no gradient but rounding to the biases before it, which Adam would make whole steps of.
            group["eps"] = 1e-3
        self.wrapped_student, self.optimizer = prepare_student(accelerator, self.student, optimizer, FORWARD_METHODS)
        self.teacher.prepare(self.student, FORWARD_METHODS)
        self.norms = []

    def train(self, first_step: int, num_steps: int, max_norm: float = 3.0) -> None:
        for number in range(2 * first_step, 2 * (first_step + num_steps)):
            torch.manual_seed(1000 * number + self.accelerator.process_index)
            batch = share_of(random_batch(number), self.accelerator.process_index)
            del batch["rotation_labels"]
            set_hyperparameters(self.optimizer, 1e-2, 0.1)
            with self.accelerator.accumulate(self.wrapped_student):
                output = forward(self.accelerator, self.wrapped_student, self.teacher, batch)
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    self.norms.append(clip_gradients(self.accelerator, self.wrapped_student, max_norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self.monitor(batch["target_pixel_values"])
                self.teacher.update(self.student, 0.9)

    @torch.no_grad()
    def monitor(self, pixel_values: torch.Tensor) -> None:
        """Look at features between steps, which must change nothing."""
        for model in (self.student, self.teacher.model):
            model.eval()
            model.encode(pixel_values)
            model.train()

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights, on the main process."""
        return {
            f"{role}.{name}": value.clone()
            for role, model in (("student", self.student), ("teacher", self.teacher.model))
            for name, value in full_state_dict(model).items()
        }


def compute_runs(accelerator, folder: Path) -> dict[str, torch.Tensor]:
    """A run of four steps, and one that goes on, from other weights, where the first was after two."""
    run = Run(accelerator, seed=0)
    run.train(0, 2)
    accelerator.save_state(str(folder / "checkpoint"))
    teacher = full_state_dict(run.teacher.model)
    teacher = {name: value.clone() for name, value in teacher.items()}
    run.train(2, 2)
    weights, norms = run.weights(), torch.stack(run.norms)

    resumed = Run(accelerator, seed=1)
    resumed.train(0, 1)
    accelerator.load_state(str(folder / "checkpoint"))
    load_full_state_dict(resumed.teacher.model, teacher)
    resumed.train(2, 2)
    return {
        "norms": norms,
        "local_values": torch.tensor(
            [
                sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in model.parameters())
                for model in (run.student, run.teacher.model)
            ]
        ),
        **{f"weights.{name}": value for name, value in weights.items()},
        **{f"resumed.{name}": value for name, value in resumed.weights().items()},
    }


def main(checks: list[str], folder: Path) -> None:
    settings = {"gradient_accumulation_steps": 2} if "runs" in checks else {}
    accelerator = create_accelerator(mixed_precision="no", **settings)
    results = {"engine": accelerator.distributed_type.value, "num_processes": accelerator.num_processes}
    process = accelerator.process_index
    if "gather" in checks:
        results["gather"] = compute_gather(accelerator)
    if "batch_norm" in checks:
        for case in BATCH_NORM_CASES:
            results[f"batch_norm.{case}"] = compute_batch_norm(case, BATCH_NORM_SHARES[process])
    if "gradients" in checks:
        for case in GRADIENT_CASES:
            results[f"gradients.{case}"] = compute_gradients(accelerator, case, share_of(random_batch(0), process))
    if "methods" in checks:
        for name in METHODS:
            results[f"methods.{name}"] = compute_method(accelerator, name)
    if "runs" in checks:
        results["runs"] = compute_runs(accelerator, folder)
    if "measures" in checks:
        from measures_on_two_processes import compute_evaluation, compute_measures  # which imports much

        results["measures"] = compute_measures(accelerator)
        # Last: the trainer's accelerator shares its state with this one.
        results["evaluation"] = compute_evaluation(accelerator, folder)
    if "later_runs" in checks:
        results["later_runs"] = compute_later_runs(accelerator)
    torch.save(results, folder / f"process-{process}.pt")
    end_training(accelerator)


if __name__ == "__main__":
    main(sys.argv[1].split(","), Path(sys.argv[2]))
