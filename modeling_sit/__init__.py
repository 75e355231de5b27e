"""SiT: self-supervised Vision Transformers by group masked model learning and contrast, in the Hugging Face tools.

Importing the package registers its classes with transformers' Auto classes, and with the code that travels along with
a checkpoint that is saved. The functions that train and measure are found when they are asked for, with the libraries that
they need.
"""

import os
import sys
import warnings
from importlib import import_module

# To import torchvision makes the folder of PyTorch's compiler, whether anything is compiled or not.
if _folder := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
    try:
        os.makedirs(_folder, exist_ok=True)
    except OSError as _problem:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        warnings.warn(
            f"TORCHINDUCTOR_CACHE_DIR: {_folder} cannot be made: {_problem.strerror}; the temporary folder takes its place",
            stacklevel=2,
        )

# GCC's OpenMP, which PyTorch uses on Linux, reads this once, when PyTorch is loaded. By itself a thread that waits for the others looks
# 300,000 times before it sleeps. If another program holds a core, the threads that have work wait for a core all that time
# (scripts/benchmarks/busy_cores.py has what it costs).
if sys.platform == "linux" and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.utils import is_torchvision_available

from .configuration_sit import SiTConfig
from .image_processing_pil_sit import SiTImageProcessorPil
from .modeling_sit import (
    SiTForImageClassification,
    SiTForPreTraining,
    SiTForPreTrainingOutput,
    SiTModel,
    SiTPreTrainedModel,
)
from .modeling_sit_backbone import SiTBackbone
from .modeling_sit_detection import SiTDetectionOutput, SiTForInstanceSegmentation, SiTForObjectDetection
from .modeling_sit_segmentation import SiTForSemanticSegmentation

__version__ = "0.1.0"

__all__ = [
    "SiTBackbone",
    "SiTConfig",
    "SiTDetectionOutput",
    "SiTError",
    "SiTForImageClassification",
    "SiTForInstanceSegmentation",
    "SiTForObjectDetection",
    "SiTForPreTraining",
    "SiTForPreTrainingOutput",
    "SiTForSemanticSegmentation",
    "SiTImageProcessor",
    "SiTImageProcessorPil",
    "SiTModel",
    "SiTPreTrainedModel",
    "TrainingInterrupted",
    "ablate",
    "compare",
    "compare_methods",
    "doctor",
    "embed",
    "evaluate",
    "finetune",
    "pretrain",
    "visualize",
]

# Where each function is, so that importing this package costs no more than importing transformers' ViT.
_LAZY = {
    "SiTError": ".runtime.errors",
    "TrainingInterrupted": ".runtime.errors",
    "ablate": ".experiments.ablate",
    "compare": ".experiments.compare",
    "compare_methods": ".experiments.compare_methods",
    "doctor": ".pretraining.doctor",
    "embed": ".evaluation.embed",
    "evaluate": ".evaluation.run",
    "finetune": ".finetuning.run",
    "pretrain": ".pretraining.run",
    "visualize": ".visualization.visualize",
}

AutoConfig.register(SiTConfig.model_type, SiTConfig)
AutoModel.register(SiTConfig, SiTModel)
AutoModelForPreTraining.register(SiTConfig, SiTForPreTraining)
AutoModelForImageClassification.register(SiTConfig, SiTForImageClassification)
AutoBackbone.register(SiTConfig, SiTBackbone)
AutoModelForObjectDetection.register(SiTConfig, SiTForObjectDetection)
AutoModelForInstanceSegmentation.register(SiTConfig, SiTForInstanceSegmentation)
AutoModelForSemanticSegmentation.register(SiTConfig, SiTForSemanticSegmentation)
# The pipeline knows this class for both: of two, transformers takes the one that the checkpoint was saved from. If one of them
# were missing here, the pipeline would load the other with new weights.
AutoModelForImageSegmentation.register(SiTConfig, (SiTForInstanceSegmentation, SiTForSemanticSegmentation))

_image_processors = {"pil": SiTImageProcessorPil}
if is_torchvision_available():
    from .image_processing_sit import SiTImageProcessor

    _image_processors["torchvision"] = SiTImageProcessor
else:
    SiTImageProcessor = SiTImageProcessorPil
AutoImageProcessor.register(SiTConfig, image_processor_classes=_image_processors)

# What is registered here writes its code beside the weights, for loading with `trust_remote_code=True`.
SiTConfig.register_for_auto_class()
SiTModel.register_for_auto_class("AutoModel")
SiTForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SiTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
SiTBackbone.register_for_auto_class("AutoBackbone")
SiTForObjectDetection.register_for_auto_class("AutoModelForObjectDetection")
SiTForInstanceSegmentation.register_for_auto_class("AutoModelForImageSegmentation")
SiTForSemanticSegmentation.register_for_auto_class("AutoModelForImageSegmentation")
for _image_processor in _image_processors.values():
    _image_processor.register_for_auto_class("AutoImageProcessor")


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_LAZY[name], __name__)
    except ModuleNotFoundError as problem:
        package = (problem.name or __name__).partition(".")[0]
        if package == __name__:
            raise
        raise ImportError(
            f"modeling_sit.{name} needs the package {package!r}, which is not installed: pip install modeling-sit[train]"
        ) from problem
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
