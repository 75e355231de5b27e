"""SiT's image processor without what only SiT knows, for those who have not this package."""

from transformers import BaseImageProcessor, ViTImageProcessor

from modeling_sit.image_processing_pil_sit import CORRUPTION_SETTINGS

ONLY_SIT = (*CORRUPTION_SETTINGS, "do_corrupt", "auto_map", "image_processor_type")


def plain_processor(processor: BaseImageProcessor) -> ViTImageProcessor:
    """A [`ViTImageProcessor`] that resizes, rescales and normalizes as SiT's image processor does. It takes grey and RGB
    images as they come: unlike SiT's, it makes none grey, and knows RGB only among 8-bit modes."""
    settings = {name: value for name, value in processor.to_dict().items() if name not in ONLY_SIT}
    if len(processor.image_mean) == 1:
        settings["do_convert_rgb"] = False
    return ViTImageProcessor(**settings)


def processor_notes(processor: BaseImageProcessor | None) -> list[str]:
    """What a plain processor does not do, where it matters."""
    if processor is None or len(processor.image_mean) != 1:
        return []
    return ["its processor makes no image grey: give it images of mode L (transformers' pipelines give it RGB)"]
