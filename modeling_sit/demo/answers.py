"""What the demo answers: functions from a checkpoint and images to figures. Nothing here knows of the browser."""

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from matplotlib.figure import Figure

from modeling_sit.data.decoding import Image
from modeling_sit.demo.checkpoints import ShownCheckpoint
from modeling_sit.demo.gallery import Gallery, Query
from modeling_sit.evaluation.dense_models import DenseModel
from modeling_sit.evaluation.features import evaluation_mode, frozen_features
from modeling_sit.gmml import CORRUPTION_KINDS, MAX_CORRUPTION_RATIO
from modeling_sit.image_modes import as_shown
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.attention import attention_maps, attention_overlays
from modeling_sit.visualization.dense_run import ShownRows, draw_detections, draw_segmentation
from modeling_sit.visualization.embeddings import Panel, map_embeddings
from modeling_sit.visualization.model_maps import page_of
from modeling_sit.visualization.neighbours import nearest_images
from modeling_sit.visualization.reconstructions import channels_note, to_uint8
from modeling_sit.visualization.selection import label_sets, thumbnail

SMALLEST_BLOCK = 0.05
SHOWN_SIDE = 256  # images smaller than this are enlarged by a whole factor, so that their pixels stay visible
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Shown:
    """
    An image of the page.

    Args:
        image (`PIL.Image.Image`): In RGB.
        caption (`str`): The text below it.
        description (`str`): The text in its place for who does not see it.
    """

    image: PIL.Image.Image
    caption: str
    description: str


@dataclass(frozen=True)
class Corruption:
    """
    How an image is corrupted.

    Args:
        kind (`str`, *optional*, defaults to `"noise"`): `"noise"`, `"zeros"` or `"replace"`.
        ratio (`float` in [0, 0.9], *optional*, defaults to 0.5): Fraction of the pixels.
        block_size (`float` in [0.05, 1], *optional*, defaults to 0.25): Largest side of a block, as a fraction of the image's.
        seed (`int`, *optional*, defaults to 0): Of all random numbers.

    Raises:
        [`SiTError`]: If a value is out of range.
    """

    kind: str = "noise"
    ratio: float = 0.5
    block_size: float = 0.25
    seed: int = 0

    def __post_init__(self):
        if self.kind not in CORRUPTION_KINDS:
            raise SiTError(f"no corruption {self.kind!r}, only {', '.join(CORRUPTION_KINDS)}")
        for name, low, high in (
            ("ratio", 0, MAX_CORRUPTION_RATIO),
            ("block_size", SMALLEST_BLOCK, 1),
            ("seed", 0, 2**31),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise SiTError(f"{name} must be from {low} to {high}, got {value}")


def look(checkpoint: ShownCheckpoint, query: Query) -> list[Shown]:
    """The image as its file has it, and as the model sees it.

    Raises:
        [`SiTError`]: If it cannot be read.
    """
    facts, image = query.facts(), query.read(checkpoint.pixel_format)
    seen = as_seen(checkpoint, image)
    small = as_shown(image).copy()
    small.thumbnail((2 * SHOWN_SIDE, 2 * SHOWN_SIDE))
    text = f"{facts.width} x {facts.height} pixels, mode {facts.mode} of {facts.bits} bits"
    text += ", the first of several frames" if facts.has_more else ""
    note = channels_note(checkpoint.pixel_format.num_channels)
    name = query.name if query.label is None else f"{query.name} ({query.label})"
    side = f"{seen.width} x {seen.height} pixels{'' if note is None else f', {note}'}"
    return [
        Shown(enlarged(small), f"{name}: {text}", f"the image {name}"),
        Shown(enlarged(seen), f"as the model sees it: {side}", f"the image {name} as the model sees it"),
    ]


def reconstruct(
    checkpoint: ShownCheckpoint,
    query: Query,
    corruption: Corruption,
    donor: Query | None = None,
    painted: np.ndarray | None = None,
) -> list[Shown]:
    """Corrupt an image and reconstruct it.

    Args:
        checkpoint ([`ShownCheckpoint`]): The model.
        query ([`Query`]): The image.
        corruption ([`Corruption`]): How to corrupt it.
        donor ([`Query`], *optional*): The other image that `"replace"` takes pixels from.
        painted (`np.ndarray` of shape `(height, width)`, *optional*):
            Bool, of any size: the places to corrupt, instead of random blocks.

    Returns:
        `list[Shown]`: Clean, corrupted, reconstruction, and the reconstruction pasted into the corrupted pixels.

    Raises:
        [`SiTError`]: If the model reconstructs nothing, an image cannot be read, there is no donor, or nothing is painted.
    """
    checkpoint.require("reconstruct")
    model = checkpoint.reconstructing
    if corruption.kind == "replace" and donor is None:
        raise SiTError(
            "replace takes pixels of another image, and there is no dataset", remedy="choose noise or zeros"
        )
    if painted is not None and not painted.any():
        raise SiTError("nothing is painted", remedy="paint on the image first")
    images = [query.read(checkpoint.pixel_format)]
    if donor is not None:
        try:
            images.append(donor.read(checkpoint.pixel_format))
        except SiTError:
            if corruption.kind == "replace":  # else nothing is taken from it
                raise
    clean = pixel_values_of(checkpoint, images)
    generator = torch.Generator(model.device).manual_seed(int(corruption.seed))
    if painted is None:
        corrupted, mask = _with_blocks(checkpoint.processor, corruption).corrupt(clean, generator=generator)
    else:
        mask = _resized_mask(painted, clean.shape[-2:]).to(clean.device).expand(len(clean), 1, -1, -1)
        corrupted = torch.where(mask, _filling(clean, corruption.kind, generator), clean)
    clean, corrupted, mask = clean[:1], corrupted[:1], mask[:1]
    with evaluation_mode(model), torch.no_grad():
        reconstruction = model(corrupted).reconstruction.to(clean.dtype)
    pasted = torch.where(mask, reconstruction, clean)
    rows = {"clean": clean, "corrupted": corrupted, "reconstruction": reconstruction, "pasted": pasted}
    processor = checkpoint.processor
    pixels = {name: to_uint8(row, processor.image_mean, processor.image_std)[0] for name, row in rows.items()}
    texts = {"corrupted": f"{mask.float().mean().item():.0%} of the pixels"}
    if mask.any():
        difference = (pixels["pasted"].float() - pixels["clean"].float()).abs().mean(0)[mask[0, 0].cpu()].mean()
        texts["pasted"] = f"differs by {difference:.1f} of 255 in the corrupted pixels"
    return [
        Shown(
            enlarged(as_shown(row.permute(1, 2, 0).numpy())),
            f"{name}: {texts[name]}" if name in texts else name,
            f"{query.name}, {name}",
        )
        for name, row in pixels.items()
    ]


def attend(
    checkpoint: ShownCheckpoint, query: Query, layer: int | None = None, heads: Sequence[int] | None = None
) -> list[Shown]:
    """Where the first token looks.

    Args:
        checkpoint ([`ShownCheckpoint`]): The model.
        query ([`Query`]): The image.
        layer (`int`, *optional*): Which layer, from 1. Default: the last.
        heads (sequence of `int`, *optional*): Which heads, from 1. Default: all.

    Returns:
        `list[Shown]`: The image, the mean of the heads, and each head.

    Raises:
        [`SiTError`]: If the model has no such attention, layer or head, or the image cannot be read.
    """
    checkpoint.require("encode")
    checkpoint.require("attend")
    if isinstance(layer, float):  # as JSON may give it
        layer = int(layer)
    chosen = list(range(1, checkpoint.num_heads + 1)) if not heads else [int(head) for head in heads]
    for head in chosen:
        if not 1 <= head <= checkpoint.num_heads:
            raise SiTError(f"no head {head}: the model has heads 1 to {checkpoint.num_heads}")
    image = query.read(checkpoint.pixel_format)
    pixel_values = pixel_values_of(checkpoint, [image])
    maps = attention_maps(checkpoint.encoder, pixel_values, layer)[0]
    seen = to_uint8(pixel_values, checkpoint.processor.image_mean, checkpoint.processor.image_std)[0]
    shown = [Shown(enlarged(as_shown(seen.permute(1, 2, 0).numpy())), "image", f"the image {query.name}")]
    overlays = attention_overlays(seen, torch.cat([maps.mean(0, keepdim=True), maps[[head - 1 for head in chosen]]]))
    for name, overlay in zip(("mean of heads", *(f"head {head}" for head in chosen)), overlays, strict=True):
        shown.append(Shown(enlarged(overlay), name, f"attention of {name} on {query.name}"))
    return shown


def neighbours(checkpoint: ShownCheckpoint, query: Query, gallery: Gallery, count: int = 8) -> list[Shown]:
    """The images of a gallery whose features are nearest to the query's.

    Args:
        checkpoint ([`ShownCheckpoint`]): The model.
        query ([`Query`]): The image. One of the gallery is not its own neighbor.
        gallery ([`Gallery`]): Where neighbors are sought.
        count (`int`, *optional*, defaults to 8): How many; fewer in a smaller gallery.

    Raises:
        [`SiTError`]: If the model has no encoder, the count is below 1, or the image cannot be read.
    """
    checkpoint.require("encode")
    if not count >= 1:
        raise SiTError(f"count must be at least 1, got {count}")
    query.read(checkpoint.pixel_format)  # says what is wrong with it
    found = gallery.features(checkpoint)
    rows = found.rows.tolist()
    own = [rows.index(query.row)] if query.row is not None and query.row in rows else None
    features = frozen_features(checkpoint.encoder, query.split, checkpoint.processor, progress=False).features
    count = min(int(count), len(rows) - (own is not None))
    cosines, nearest = nearest_images(features, found.features, count, own)
    shown = []
    for cosine, place in zip(cosines[0].tolist(), nearest[0].tolist(), strict=True):
        other = gallery.query(rows[place])
        small = thumbnail(gallery.split, rows[place], SHOWN_SIDE, checkpoint.pixel_format)
        text = other.name if other.label is None else other.label
        shown.append(Shown(enlarged(small), f"{text}, cosine {cosine:.3f}", f"neighbor {other.name}"))
    return shown


def map_page(checkpoint: ShownCheckpoint, gallery: Gallery, method: str = "tsne") -> str:
    """The map of a gallery's features as a page of its own, in HTML.

    Raises:
        [`SiTError`]: If the model has no encoder, there are too few images, or there is no such method.
    """
    checkpoint.require("encode")
    found = gallery.features(checkpoint)
    shown = gallery.split.select(found.rows.tolist())
    labels = label_sets(shown, gallery.label_names)
    is_single = all(names is None or len(names) == 1 for names in labels)
    embedded = map_embeddings(
        [Panel(checkpoint.name, found.features)],
        labels,
        gallery.label_names,
        color_by=None if is_single else "cluster",
        method=method,
    )
    return page_of(embedded, shown, labels, gallery.name, checkpoint.name, checkpoint.pixel_format)


def classify(checkpoint: ShownCheckpoint, query: Query) -> dict[str, float]:
    """The classes of an image with their probabilities, the most probable first.

    Raises:
        [`SiTError`]: If the model is no classifier, or the image cannot be read.
    """
    model = checkpoint.predicting
    if checkpoint.task != "classification":
        raise SiTError(checkpoint.missing.get("predict", "the model is no classifier"))
    pixel_values = pixel_values_of(checkpoint, [query.read(checkpoint.pixel_format)])
    with evaluation_mode(model), torch.no_grad():
        logits = model(pixel_values=pixel_values).logits[0].float()
    is_multi = model.config.problem_type == "multi_label_classification"
    probabilities = logits.sigmoid() if is_multi else logits.softmax(0)
    order = probabilities.argsort(descending=True, stable=True).tolist()
    return {model.config.id2label[number]: float(probabilities[number]) for number in order}


def find_objects(checkpoint: ShownCheckpoint, query: Query, threshold: float = 0.5) -> list[Shown]:
    """The image with the boxes, masks or classes of pixels that the model finds.

    Args:
        checkpoint ([`ShownCheckpoint`]): A detector or a segmenter.
        query ([`Query`]): The image.
        threshold (`float`, *optional*, defaults to 0.5): Objects with a lower score are not drawn.

    Raises:
        [`SiTError`]: If the model finds none of these, or the image cannot be read.
    """
    dense = checkpoint.predicting
    if not isinstance(dense, DenseModel):
        raise SiTError(checkpoint.missing.get("predict", "the model finds no objects and no classes of pixels"))
    rows = ShownRows([query.read(dense.pixel_format)], [query.name], [None])
    is_pixels = checkpoint.task == "segmentation"
    figure = draw_segmentation(dense, rows) if is_pixels else draw_detections(dense, rows, float(threshold))
    what = "a class for each pixel" if is_pixels else "objects"
    return [Shown(drawn(figure), f"{what} in {query.name}", f"{query.name} with {what} that the model finds")]


def as_seen(checkpoint: ShownCheckpoint, image: Image) -> PIL.Image.Image:
    """An image as the model sees it, in RGB."""
    processor = checkpoint.processor
    values = to_uint8(pixel_values_of(checkpoint, [image]), processor.image_mean, processor.image_std)
    return as_shown(values[0].permute(1, 2, 0).numpy())


def pixel_values_of(checkpoint: ShownCheckpoint, images: Sequence[Image]) -> torch.Tensor:
    """Normalized images `(images, channels, height, width)`, on the checkpoint's device."""
    values = checkpoint.processor(images=list(images), return_tensors="pt")["pixel_values"]
    return values.to(checkpoint.model.device)


def enlarged(image: PIL.Image.Image) -> PIL.Image.Image:
    """A small image enlarged by a whole factor."""
    factor = max(1, SHOWN_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)


def drawn(figure: Figure) -> PIL.Image.Image:
    """A figure as an image in RGB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return PIL.Image.open(buffer).convert("RGB")


def _with_blocks(processor, corruption: Corruption):
    """The image processor with these settings of the corruption."""
    processor = copy.copy(processor)
    processor.corruption = corruption.kind
    setattr(processor, f"{corruption.kind}_ratio", [float(corruption.ratio)] * 2)
    processor.block_size = [SMALLEST_BLOCK, float(corruption.block_size)]
    processor.align_to_patches = False
    return processor


def _filling(clean: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """What a kind of corruption puts in the place of the first image's pixels."""
    if kind == "noise":
        return torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    return torch.zeros_like(clean) if kind == "zeros" else clean.flip(0)


def _resized_mask(painted: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A painted mask `(1, 1, height, width)` of the model's images: a pixel counts if at least half of it is painted."""
    values = torch.from_numpy(np.ascontiguousarray(painted, dtype=np.float32))[None, None]
    return torch.nn.functional.adaptive_avg_pool2d(values, tuple(size)) >= 0.5
