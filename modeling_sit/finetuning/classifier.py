"""The model to fine-tune: a pretrained backbone, or the same from scratch, with a new classifier."""

from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.interop.load import load_checkpoint


def load_classifier(
    arguments: FinetuningArguments, label_names: list[str], multi_label: bool
) -> tuple[BaseImageProcessor, PreTrainedModel]:
    """The image processor, and the model with a new classifier for these labels, for images of `image_size`.

    Raises:
        [`SiTError`]: If there is no such model, it lacks weights of the backbone, or an argument does not fit it.
    """
    settings = {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: number for number, label in enumerate(label_names)},
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }
    for name in ("pooling", "drop_path_rate"):
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    loaded = load_checkpoint(
        arguments.model_name_or_path,
        AutoModelForImageClassification,
        network=arguments.network,
        num_attention_heads=arguments.num_attention_heads,
        image_size=arguments.image_size,
        settings=settings,
        from_scratch=arguments.from_scratch,
    )
    loaded.log_notes()
    if arguments.freeze_backbone:
        loaded.model.base_model.requires_grad_(False)
    processor = loaded.require_processor()
    arguments.set_intensity_range(processor, loaded.model.config)
    return processor, loaded.model
