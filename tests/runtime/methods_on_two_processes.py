"""One batch of every pretraining method, for one process's images or for those of both."""

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from modeling_sit.data.image_facts import ImageFacts
from modeling_sit.pretraining.flags import PretrainingFlags
from modeling_sit.pretraining.method import Method
from modeling_sit.pretraining.methods import METHODS
from modeling_sit.pretraining.model_setup import create_config, create_processor
from modeling_sit.pretraining.presets import Facts, choose
from modeling_sit.pretraining.resolve import settings_of_others, settled, with_values
from modeling_sit.runtime.accelerator import prepare_student
from modeling_sit.runtime.arguments import build_arguments

NUM_PROCESSES, BATCH_SIZE = 2, 4
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "config_overrides": "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,drop_path_rate=0",
}
# What is corrupted depends on which images share the batch; `GRADIENT_CASES` have masks.
OF_METHODS = {"sit": {"corruption": "none"}}
SCHEDULE = {"learning_rate": 1e-3, "weight_decay": 0.05}


def create_method(name: str) -> Method:
    """A method with the settings of the preset, for 1,000 images, its teacher no copy of the student any more."""
    given = {
        "dataset": "none",
        "output_dir": "none",
        "method": name,
        "max_steps": 100,
        **SIZES,
        **OF_METHODS.get(name, {}),
    }
    flags = PretrainingFlags(*build_arguments(PretrainingFlags.classes(), given, function="pretrain"))
    method = METHODS[name]
    facts = Facts(ImageFacts(1000, 32, 32, 3), "cpu")
    choices = {each.name: each.value for each in choose(facts, settled(flags), method, settings_of_others(method))}
    flags = with_values(flags, {**method.defaults, **choices})
    config = create_config(flags.model, 1000)
    created = method(config, create_processor(config, flags.model, flags.corruption), flags)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in created.student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    created.views = [group.crops for group in created.view_groups(flags.views)]
    return created.train()


def views_of(method: Method, process: int | None) -> list[torch.Tensor]:
    """Clean views of one process's images or, of all, view 1 of all of them first."""
    generator = torch.Generator().manual_seed(0)
    views = []
    for crops in method.views:
        shape = (crops.number, NUM_PROCESSES, BATCH_SIZE, 3, *crops.image_shape)
        group = torch.randn(shape, generator=generator)
        views.append(group.flatten(0, 2) if process is None else group[:, process].flatten(0, 1))
    return views


class SameForAllImages:
    """Random numbers are drawn once and are the same for each image, so that they do not depend on which images share a
    batch."""

    def __enter__(self):
        self.rand, self.randn = torch.rand, torch.randn
        torch.rand, torch.randn = self._expanded(torch.rand), self._expanded(torch.randn)

    def __exit__(self, *error):
        torch.rand, torch.randn = self.rand, self.randn

    def _expanded(self, draw):
        def expanded(*size, **settings):
            size = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
            is_of_images = len(size) > 1 and size[0] % BATCH_SIZE == 0
            return draw(1, *size[1:], **settings).expand(size).clone() if is_of_images else draw(*size, **settings)

        return expanded


def compute_method(accelerator, name: str) -> dict[str, torch.Tensor]:
    """Loss, gradients, the method's own state and, where there are any, prototypes after one batch that leaves them as they were:
    of this process's images, or of all if `accelerator` is `None`."""
    method = create_method(name)
    wrapped_student = method.student
    if accelerator is not None:
        accelerator.free_memory()
        method.synchronize_batch_norm()
        optimizer = torch.optim.SGD(method.student.parameters())
        wrapped_student, _ = prepare_student(accelerator, method.student, optimizer, method.forward_methods)
        if method.teacher is not None:
            method.teacher.prepare(method.student, method.forward_methods)
    views = views_of(method, None if accelerator is None else accelerator.process_index)
    schedule = {**SCHEDULE, **method.schedules(0.5)}
    torch.manual_seed(2)
    with SameForAllImages():
        inputs = method.inputs(views, accelerator or Accelerator(cpu=True), schedule)
        output = wrapped_student(**inputs)
    output.loss.backward()
    parameters = dict(method.student.named_parameters())
    gradients = {key: whole(value.grad) for key, value in parameters.items() if value.grad is not None}
    method.after_step({**schedule, "teacher_momentum": 1.0, "frozen_prototypes": 1.0})
    parameters = dict(method.student.named_parameters())
    return {
        "loss": output.loss.detach(),
        **{f"gradient.{key}": value for key, value in gradients.items()},
        **{f"state.{key}": value.clone() for key, value in method.own_state_dict().items()},
        **{f"weight.{key}": whole(value).detach() for key, value in parameters.items() if "prototypes" in key},
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which this process may have a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
