"""What a run of any size needs, from what each stage costs: GPU hours, CPU cores, network, disk and memory.

Every term is a function of the costs and the plan. Its docstring has the formula and the unit. The stages work at the same time:
while the GPUs compute, CPU cores decode, disks read and the network adds up gradients. The formulas assume that the GPUs set the
pace, and compute what the other parts need to keep up. They ignore caches of decoded images, which would need less of some.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StageCosts:
    """
    What each stage costs, as measured or assumed for one model, one image size and one machine.

    Args:
        images_per_second_per_core (`float`): Images that a CPU core reads, decodes and crops twice in a second.
        images_per_second_per_device (`float`): Images (of two views each) that one device trains on in a second when it
            never waits for data.
        encoded_bytes (`float`): Mean size of an encoded image.
        decoded_bytes (`float`): Mean size of a decoded image: height x width x channels.
        crop_bytes (`float`): Size of an image's two crops, uint8.
        num_parameters (`int`): Parameters of the student that are trained, heads included.
        teacher_parameters (`int`): Parameters of the teacher.
        projection_size (`int`): Numbers in the teacher's projection of a view, which all processes gather.
        process_bytes (`float`): Memory of the process of one device, on the host.
        worker_bytes (`float`): Memory of one dataloader worker, without the batches that it has ready.
        overhead (`float`, *optional*, defaults to 0.05): Fraction in [0, 1) of the wall time in which nothing is trained: start,
            checkpoints, monitors, waiting for other devices.
        gradient_bytes_per_parameter (`int`, *optional*, defaults to 4): As gradients travel: 4 in float32.
    """

    images_per_second_per_core: float
    images_per_second_per_device: float
    encoded_bytes: float
    decoded_bytes: float
    crop_bytes: float
    num_parameters: int
    teacher_parameters: int
    projection_size: int
    process_bytes: float
    worker_bytes: float
    overhead: float = 0.05
    gradient_bytes_per_parameter: int = 4


@dataclass(frozen=True)
class TrainingPlan:
    """
    What to train, and on how many images and devices.

    Args:
        num_images (`int`): Images of the dataset.
        num_epochs (`float`): Times that each is seen, as two views.
        num_devices (`int`): GPUs, a process each.
        per_device_batch_size (`int`, *optional*, defaults to 64): Images of a step of one device.
        checkpoints_kept (`int`, *optional*, defaults to 2): `--checkpoints_total_limit`.
        prefetched_batches (`int`, *optional*, defaults to 2): Batches that each worker has ready.
    """

    num_images: int
    num_epochs: float
    num_devices: int
    per_device_batch_size: int = 64
    checkpoints_kept: int = 2
    prefetched_batches: int = 2


def num_steps(costs: StageCosts, plan: TrainingPlan) -> int:
    """Steps of the optimizer: `num_images // (num_devices * per_device_batch_size) * num_epochs`; images that do not fill
    a batch of every process are left to other epochs."""
    return int(plan.num_images // (plan.num_devices * plan.per_device_batch_size) * plan.num_epochs)


def device_hours(costs: StageCosts, plan: TrainingPlan) -> float:
    """GPU hours: `num_images * num_epochs / images_per_second_per_device / (1 - overhead) / 3600`."""
    seconds = plan.num_images * plan.num_epochs / costs.images_per_second_per_device
    return seconds / (1 - costs.overhead) / 3600


def wall_hours(costs: StageCosts, plan: TrainingPlan) -> float:
    """Hours from start to end: `device_hours / num_devices`, as all devices share the images evenly."""
    return device_hours(costs, plan) / plan.num_devices


def images_per_second(costs: StageCosts, plan: TrainingPlan) -> float:
    """Images a second of all devices while they train: `num_devices * images_per_second_per_device`."""
    return plan.num_devices * costs.images_per_second_per_device


def cpu_cores(costs: StageCosts, plan: TrainingPlan) -> int:
    """CPU cores that read, decode and crop as fast as the devices train, a dataloader worker on each:
    `ceil(images_per_second / images_per_second_per_core)`. The processes of the devices need one more core each."""
    return math.ceil(images_per_second(costs, plan) / costs.images_per_second_per_core)


def read_bytes_per_second(costs: StageCosts, plan: TrainingPlan) -> float:
    """Bytes a second that disk or network gives: `images_per_second * encoded_bytes`. Once the data lie in the page cache of
    every machine, this is RAM's."""
    return images_per_second(costs, plan) * costs.encoded_bytes


def device_copy_bytes_per_second(costs: StageCosts, plan: TrainingPlan) -> float:
    """Bytes a second from the host to one device: `images_per_second_per_device * crop_bytes`."""
    return costs.images_per_second_per_device * costs.crop_bytes


def all_reduce_bytes_per_second(costs: StageCosts, plan: TrainingPlan) -> float:
    """Bytes a second that one device sends to add up gradients, in a ring of n devices, `2 * (n - 1) / n * num_parameters *
    gradient_bytes_per_parameter` a step, and to share its teacher projections, `(n - 1) * 2 * per_device_batch_size *
    projection_size * 4` a step; times `images_per_second_per_device / per_device_batch_size` steps a second. 0 for one
    device."""
    others = plan.num_devices - 1
    gradients = 2 * others / plan.num_devices * costs.num_parameters * costs.gradient_bytes_per_parameter
    projections = others * 2 * plan.per_device_batch_size * costs.projection_size * 4
    return (gradients + projections) * costs.images_per_second_per_device / plan.per_device_batch_size


def dataset_bytes(costs: StageCosts, plan: TrainingPlan) -> float:
    """Disk space of the encoded images: `num_images * encoded_bytes`."""
    return plan.num_images * costs.encoded_bytes


def decoded_bytes(costs: StageCosts, plan: TrainingPlan) -> float:
    """Space for all decoded images, if they are decoded once only: `num_images * decoded_bytes`."""
    return plan.num_images * costs.decoded_bytes


def checkpoint_bytes(costs: StageCosts, plan: TrainingPlan) -> float:
    """Disk space of checkpoints: `(checkpoints_kept + 1) * 4 * (3 * num_parameters + teacher_parameters)`: in float32 the
    student and its two moments in AdamW, and the teacher; one more than are kept, for the oldest goes when a newer one is
    complete."""
    return (plan.checkpoints_kept + 1) * 4 * (3 * costs.num_parameters + costs.teacher_parameters)


def host_memory_bytes(costs: StageCosts, plan: TrainingPlan) -> float:
    """RAM of all machines together: `num_devices * process_bytes + cpu_cores * (worker_bytes + prefetched_batches *
    per_device_batch_size * crop_bytes)`. It does not grow with the number of images."""
    batches = plan.prefetched_batches * plan.per_device_batch_size * costs.crop_bytes
    return plan.num_devices * costs.process_bytes + cpu_cores(costs, plan) * (costs.worker_bytes + batches)


def scaling_table(costs: StageCosts, plans: list[TrainingPlan]) -> str:
    """A table in Markdown, with a column for each plan and a row for each term."""

    def counted(number: float) -> str:
        return f"{number:,.0f}"

    def sized(num_bytes: float) -> str:
        for unit in ("B", "kB", "MB", "GB", "TB"):
            if num_bytes < 1000 or unit == "TB":
                return f"{num_bytes:,.0f} {unit}" if num_bytes >= 100 else f"{num_bytes:,.3g} {unit}"
            num_bytes /= 1000

    def timed(hours: float) -> str:
        return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"

    rows = [
        ("epochs", lambda costs, plan: f"{plan.num_epochs:g}"),
        ("GPUs", lambda costs, plan: counted(plan.num_devices)),
        ("steps", lambda costs, plan: counted(num_steps(costs, plan))),
        ("GPU hours", lambda costs, plan: timed(device_hours(costs, plan))),
        ("hours", lambda costs, plan: timed(wall_hours(costs, plan))),
        ("images a second", lambda costs, plan: counted(images_per_second(costs, plan))),
        ("CPU cores to decode and crop", lambda costs, plan: counted(cpu_cores(costs, plan))),
        ("read, a second", lambda costs, plan: sized(read_bytes_per_second(costs, plan))),
        ("copied to each GPU, a second", lambda costs, plan: sized(device_copy_bytes_per_second(costs, plan))),
        ("sent by each GPU, a second", lambda costs, plan: sized(all_reduce_bytes_per_second(costs, plan))),
        ("disk for the images", lambda costs, plan: sized(dataset_bytes(costs, plan))),
        ("the same, decoded", lambda costs, plan: sized(decoded_bytes(costs, plan))),
        ("disk for checkpoints", lambda costs, plan: sized(checkpoint_bytes(costs, plan))),
        ("RAM, all machines", lambda costs, plan: sized(host_memory_bytes(costs, plan))),
    ]
    lines = [
        ["", *(f"{plan.num_images / 1e6:,g} M images" for plan in plans)],
        ["---", *["---:"] * len(plans)],
        *([name, *(cell(costs, plan) for plan in plans)] for name, cell in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
