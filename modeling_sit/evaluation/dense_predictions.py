"""What a model finds in the images of a split: boxes, masks, or a class for each pixel, one image after the other."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from transformers.utils import ModelOutput

from modeling_sit.data.decoding import Image, UnreadableImage, decode_image
from modeling_sit.data.loaders import DEFAULT_TIMEOUT, BatchLoader, worker_deaths
from modeling_sit.dense_outputs import SiTDenseOutputsMixin, detections_of
from modeling_sit.evaluation.dense_models import DenseModel, Output
from modeling_sit.evaluation.features import evaluation_mode
from modeling_sit.run_length_encoding import encode_mask
from modeling_sit.runtime.products import fast_products
from modeling_sit.runtime.progress import bar_of_images

# What a model may be given of an image.
INPUTS = ("pixel_values", "pixel_mask")
# Columns of splits with objects.
SIZES = {"height", "width"}


@dataclass(frozen=True)
class FoundObjects:
    """
    Objects that a model found in an image.

    Args:
        scores (`np.ndarray` of shape `(num_found,)`): Scores, in no order.
        labels (`np.ndarray` of shape `(num_found,)`): The model's numbers of the classes.
        boxes (`np.ndarray` of shape `(num_found, 4)`, *optional*): Left, top, right, bottom in pixels of the image.
        masks (`list[dict]`, *optional*): Compressed RLE of the image's size.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    masks: list[dict] | None = None


@dataclass
class Found:
    """
    What a model found in an image.

    Args:
        row (`int`): The image's row in the split.
        boxes ([`FoundObjects`], *optional*): Objects with boxes.
        masks ([`FoundObjects`], *optional*): Objects with masks. Some models give other objects than with boxes.
        pixels (`np.ndarray` of shape `(height, width)`, *optional*): The model's number of the class of each pixel.
    """

    row: int
    boxes: FoundObjects | None = None
    masks: FoundObjects | None = None
    pixels: np.ndarray | None = None


@dataclass
class DensePredictions:
    """
    Iterates over what a model finds in some rows of a split, in no order. Images of one size go through it together; an
    image is never padded for the sake of another one, so that the batch does not change what is found.

    Args:
        dense ([`DenseModel`]): The model, on the device where it is to run.
        split (`datasets.Dataset`): Column `image`, `datasets.Image(decode=False)`.
        outputs (sequence of [`Output`]): What is wanted, of what the model gives.
        rows (iterable of `int`, *optional*): Rows of the split. Default: all.
        batch_size (`int`, *optional*, defaults to 8): Images at a time, at most.
        num_workers (`int`, *optional*, defaults to 0): Processes that read images.
        timeout (`int`, *optional*): Seconds to wait for a batch.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a bar on stderr.

    Attributes:
        skipped (`dict[int, str]`): The rows that could not be read, with the reasons.
    """

    dense: DenseModel
    split: datasets.Dataset
    outputs: Sequence[Output]
    rows: Iterable[int] | None = None
    batch_size: int = 8
    num_workers: int = 0
    timeout: int = DEFAULT_TIMEOUT
    progress: bool = False
    skipped: dict[int, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Found]:
        model, rows = self.dense.model, list(range(len(self.split)) if self.rows is None else self.rows)
        rows = _by_size(self.split, rows)
        loader = BatchLoader(
            rows,
            batch_size=self.batch_size,
            limit=self.timeout,
            num_workers=self.num_workers,
            collate_fn=partial(read_images, split=self.split, dense=_without_model(self.dense)),
            # A loader draws a seed for its workers, by default from the global generator.
            generator=torch.Generator(),
        )
        bar = bar_of_images(len(rows), " and ".join(self.outputs), shown=self.progress)
        with worker_deaths(), evaluation_mode(model), fast_products(model), torch.no_grad(), bar:
            for images, skipped in loader:
                self.skipped |= skipped
                for batch in _of_one_shape(images):
                    yield from predict(self.dense, batch, self.outputs)
                bar.update(len(images) + len(skipped))


@dataclass
class ReadImage:
    """
    An image as a model sees it.

    Args:
        row (`int`): Its row.
        size (`tuple[int, int]`): Original height and width in pixels.
        inputs (`dict[str, torch.Tensor]`): `pixel_values` `(1, channels, height, width)`, and maybe `pixel_mask`.
    """

    row: int
    size: tuple[int, int]
    inputs: dict[str, torch.Tensor]

    @classmethod
    def of(cls, processor: Any, image: Image, row: int = 0) -> "ReadImage":
        """Process an image on its own."""
        height, width = np.asarray(image).shape[:2]
        features = processor(images=[image], return_tensors="pt")
        return cls(row, (height, width), {name: features[name] for name in INPUTS if name in features})


def read_images(
    rows: Sequence[int], split: datasets.Dataset, dense: tuple[Any, Any]
) -> tuple[list[ReadImage], dict[int, str]]:
    """Read some rows of a split.

    Args:
        rows (sequence of `int`): The rows.
        split (`datasets.Dataset`): Column `image`.
        dense (`tuple`): The model's image processor and the format of its images.

    Returns:
        `tuple[list[ReadImage], dict[int, str]]`: The images, and the reason for each row that cannot be read.
    """
    processor, pixel_format = dense
    images, skipped = [], {}
    for row in rows:
        try:
            image = decode_image(split[row]["image"], pixel_format, name=str(row))
            _check_size(image, split, row)
        except UnreadableImage as problem:
            skipped[row] = str(problem).removeprefix(f"{row}: ")
        else:
            images.append(ReadImage.of(processor, image, row))
    return images, skipped


def _check_size(image: Image, split: datasets.Dataset, row: int) -> None:
    """Raise [`UnreadableImage`] if an image is of another size than its row says, to which its objects belong."""
    if set(split.column_names) >= SIZES:
        told = split.select_columns(sorted(SIZES))[row]
        height, width = np.asarray(image).shape[:2]
        if (height, width) != (told["height"], told["width"]):
            raise UnreadableImage(
                f"it has {width} x {height} pixels, and its labels are for {told['width']} x {told['height']}"
            )


def predict(dense: DenseModel, images: Sequence[ReadImage], outputs: Sequence[Output]) -> Iterator[Found]:
    """What a model finds in images whose inputs are of one shape. The caller sees to the mode of the model, and to
    gradients.

    Args:
        dense ([`DenseModel`]): The model.
        images (sequence of [`ReadImage`]): The images.
        outputs (sequence of [`Output`]): What is wanted.
    """
    model = dense.model
    taken = inspect.signature(model.forward).parameters
    inputs = {
        name: torch.cat([image.inputs[name] for image in images]).to(model.device)
        for name in images[0].inputs
        if name in taken
    }
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    predicted = model(**inputs)
    for number, image in enumerate(images):
        # One at a time: masks of a hundred objects in an image's full size take much memory.
        yield found_in(dense.processor, _of_image(predicted, number, len(images)), image, outputs)


def found_in(processor: Any, predicted: ModelOutput, image: ReadImage, outputs: Sequence[Output]) -> Found:
    """What the outputs of a model say of an image.

    Args:
        processor (`BaseImageProcessor`): The model's image processor.
        predicted (`ModelOutput`): Outputs of this image alone.
        image ([`ReadImage`]): The image.
        outputs (sequence of [`Output`]): What is wanted.
    """
    found, sizes = Found(image.row), [image.size]
    if "pixels" in outputs:
        (pixels,) = processor.post_process_semantic_segmentation(predicted, target_sizes=sizes)
        found.pixels = np.asarray(pixels.cpu())
    if "masks" in outputs:
        found.masks = _masks_in(processor, predicted, image)
    if "boxes" in outputs:
        (objects,) = processor.post_process_object_detection(predicted, threshold=0.0, target_sizes=sizes)
        scores, labels, boxes = (np.asarray(objects[name].float().cpu()) for name in ("scores", "labels", "boxes"))
        found.boxes = FoundObjects(scores, labels.astype(int), boxes=boxes)
    return found


def _masks_in(processor: Any, predicted: ModelOutput, image: ReadImage) -> FoundObjects:
    if isinstance(processor, SiTDenseOutputsMixin):
        (objects,) = detections_of(predicted, [image.size])
        return FoundObjects(**objects)
    method = processor.post_process_instance_segmentation
    # Where masks can overlap, as COCO's do, the map of segments would cut them.
    whole = {"return_binary_maps": True} if "return_binary_maps" in inspect.signature(method).parameters else {}
    (segmented,) = method(predicted, threshold=0.0, target_sizes=[image.size], **whole)
    segments, segmentation = segmented["segments_info"], segmented["segmentation"]
    masks = []
    for place, segment in enumerate(segments):
        is_map = segmentation.ndim == 2
        mask = segmentation == segment["id"] if is_map else segmentation[place]
        masks.append(encode_mask(np.asarray(mask.cpu()).astype(bool)))
    scores, labels = (np.array([segment[name] for segment in segments]) for name in ("score", "label_id"))
    return FoundObjects(scores, labels.astype(int), masks=masks)


def _of_image(outputs: ModelOutput, number: int, batch_size: int) -> ModelOutput:
    """The outputs of one image of a batch."""
    return type(outputs)(
        **{
            name: value[number : number + 1]
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == batch_size
        }
    )


def _by_size(split: datasets.Dataset, rows: list[int]) -> list[int]:
    """The rows, those of images of one size together, the largest first, where the split knows the sizes."""
    if not set(split.column_names) >= SIZES:
        return rows
    sizes = split.select_columns(sorted(SIZES))[:]
    return sorted(rows, key=lambda row: (sizes["height"][row], sizes["width"][row]), reverse=True)


def _of_one_shape(images: Sequence[ReadImage]) -> Iterator[list[ReadImage]]:
    by_shape: dict[tuple, list[ReadImage]] = {}
    for image in images:
        by_shape.setdefault(tuple(image.inputs["pixel_values"].shape), []).append(image)
    yield from by_shape.values()


def _without_model(dense: DenseModel) -> tuple[Any, Any]:
    """What workers need, which would else be sent the model."""
    return dense.processor, dense.pixel_format
