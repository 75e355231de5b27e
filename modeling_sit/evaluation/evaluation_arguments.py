"""The model that is measured, and where the results go."""

from dataclasses import dataclass, field

from modeling_sit.evaluation.feature_arguments import FeatureArguments
from modeling_sit.interop.arguments import WeightsFileArguments


@dataclass(kw_only=True)
class EvaluationArguments(WeightsFileArguments, FeatureArguments):
    """The model that is measured, and where the results go."""

    model_name_or_path: str = field(
        metadata={"help": "Folder, Hub id or file of weights of the pretrained model. Required."}
    )
    from_scratch: bool = field(
        default=False,
        metadata={
            "help": "Whether to measure the same encoder with random weights, before any training. Pretraining "
            "should give better results than these. They need a separate `output_dir`."
        },
    )
    per_device_eval_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per batch, in each process. Default: 64 for features, 8 for `detection` and `segmentation`."
        },
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for eval_results.json. Default: the folder of the model, if it is a local folder."},
    )
    device: str | None = field(
        default=None,
        metadata={
            "help": "cpu or cuda; with one process also a device such as cuda:1. Default: cuda, if there is a GPU."
        },
    )
