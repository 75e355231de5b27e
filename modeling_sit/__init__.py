"""SiT: self-supervised Vision Transformers by group masked model learning and contrast, in the Hugging Face tools.

Importing the package registers its classes with transformers' Auto classes, and with the code that travels along with
a checkpoint that is saved.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
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

__version__ = "0.1.0"

__all__ = [
    "SiTConfig",
    "SiTForImageClassification",
    "SiTForPreTraining",
    "SiTForPreTrainingOutput",
    "SiTImageProcessor",
    "SiTImageProcessorPil",
    "SiTModel",
    "SiTPreTrainedModel",
]

AutoConfig.register(SiTConfig.model_type, SiTConfig)
AutoModel.register(SiTConfig, SiTModel)
AutoModelForPreTraining.register(SiTConfig, SiTForPreTraining)
AutoModelForImageClassification.register(SiTConfig, SiTForImageClassification)

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
for _image_processor in _image_processors.values():
    _image_processor.register_for_auto_class("AutoImageProcessor")
