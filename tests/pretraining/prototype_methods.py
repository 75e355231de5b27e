"""DINO and iBOT on a few small views."""

import torch
from accelerate import Accelerator

from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.methods.dino import DINO
from modeling_sit.pretraining.model_setup import create_processor

BATCH = 3
SCHEDULE = {"teacher_momentum": 0.5, "teacher_temperature": 0.05, "frozen_prototypes": 0.0}
# An image of 4 x 4 patches, and local crops of 2 x 2.
SETTINGS = {"method": "dino", "num_prototypes": 12, "num_local_crops": 2, "local_crop_size": 8, "seed": 0}


def create_method(flags_of, tiny_config, forget_accelerators, **arguments) -> tuple[DINO, Accelerator]:
    """A method whose teacher is no copy of the student and whose centers are not 0, and an accelerator."""
    forget_accelerators()
    flags = flags_of(**arguments)
    config = tiny_config(image_size=16, patch_size=4, drop_path_rate=0.0)
    method = METHODS[arguments["method"]](config, create_processor(config, flags.model, flags.corruption), flags)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for center in method.own_state_dict().values():
            center.copy_(torch.rand(center.shape, generator=generator) - 0.5)
    return method.train(), Accelerator(cpu=True)


def views_of(num_local: int = 2) -> list[torch.Tensor]:
    """Clean views of `BATCH` images: two, and local crops."""
    generator = torch.Generator().manual_seed(2)
    sizes = [(2, 16), (num_local, 8)] if num_local else [(2, 16)]
    return [torch.randn(number * BATCH, 3, size, size, generator=generator) for number, size in sizes]
