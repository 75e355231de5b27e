"""Sheets of reconstructions: clean images, corrupted images, and what the model reconstructs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.evaluation.features import evaluation_mode
from modeling_sit.image_modes import as_shown, shown_channels
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.palette import shortened

ROWS = ("clean", "corrupted", "reconstruction", "pasted")
MARGIN = 4
LABEL_WIDTH = 96
FONT_SIZE = 12
TITLE_SIZE = 14
CAPTION_SIZE = 9
MIN_IMAGE_SIZE = 64
MAX_COLUMNS = 8


def reconstruction_sheet(
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    reconstruction: torch.Tensor,
    corruption_mask: torch.Tensor,
    image_mean,
    image_std,
    image_size: int = MIN_IMAGE_SIZE,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """A sheet of four labeled rows: clean view, corrupted view, reconstruction, and the clean view with the
    reconstruction in its corrupted pixels. More than 8 images are in several such blocks, one below the other.

    Args:
        clean, corrupted, reconstruction (`torch.Tensor` of shape `(images, channels, height, width)`): Normalized.
        corruption_mask (`torch.Tensor` of shape `(images, 1, height, width)`): Bool.
        image_mean, image_std (sequences of `float`): Undo the normalization.
        image_size (`int`, *optional*, defaults to 64):
            Smallest number of pixels of an image's longer side; the labels grow with it.
        captions (sequence of `str`, *optional*):
            A text above each image, cut to its width. Default: none, and no space for them.

    Returns:
        `PIL.Image.Image`: RGB; small images are enlarged by a whole factor, so that pixels stay visible. Of channels that
        are no colors it shows those of [`as_shown`], and says which.
    """
    pasted = torch.where(corruption_mask, reconstruction.to(clean.dtype), clean)
    rows = dict(zip(ROWS, (clean, corrupted, reconstruction, pasted), strict=True))
    return sheet_of_rows(rows, image_mean, image_std, image_size, captions)


def masked_sheet(
    clean: torch.Tensor, reconstruction: torch.Tensor, mask: torch.Tensor, processor: SiTImageProcessor
) -> Image.Image:
    """The [`reconstruction_sheet`] of images of which parts were masked: they are shown in the mean color of all images.

    Args:
        clean, reconstruction (`torch.Tensor` of shape `(images, channels, height, width)`): Normalized.
        mask (`torch.Tensor` of shape `(images, 1, height, width)`): Bool.
        processor ([`SiTImageProcessor`]): Has the normalization.
    """
    rows = {
        "clean": clean,
        "masked": clean.masked_fill(mask, 0),
        "reconstruction": reconstruction,
        "pasted": torch.where(mask, reconstruction.to(clean.dtype), clean),
    }
    return sheet_of_rows(rows, processor.image_mean, processor.image_std)


def sheet_of_rows(
    rows: Mapping[str, torch.Tensor],
    image_mean,
    image_std,
    image_size: int = MIN_IMAGE_SIZE,
    captions: Sequence[str] | None = None,
) -> Image.Image:
    """Rows of images below each other, each with its label.

    Args:
        rows (mapping from `str` to `torch.Tensor` of shape `(images, channels, height, width)`): Normalized, by label.
        image_mean, image_std, image_size, captions: As for [`reconstruction_sheet`].
    """
    num_images, _, height, width = next(iter(rows.values())).shape
    note = channels_note(next(iter(rows.values())).shape[1])
    rows = {label: to_uint8(row, image_mean, image_std) for label, row in rows.items()}
    num_blocks = -(-num_images // MAX_COLUMNS)
    num_columns = -(-num_images // num_blocks)
    factor = max(1, -(-image_size // max(height, width)))
    cell_width, cell_height = width * factor + MARGIN, height * factor + MARGIN
    label_width, font_size, caption_size = (
        size * image_size // MIN_IMAGE_SIZE for size in (LABEL_WIDTH, FONT_SIZE, CAPTION_SIZE)
    )
    caption_font = ImageFont.load_default(max(1, caption_size))
    caption_height = 3 * caption_size // 2 if captions and any(captions) else 0
    block_height = caption_height + len(rows) * cell_height
    block_gap = cell_height // 4
    sheet = Image.new(
        "RGB",
        (label_width + num_columns * cell_width, MARGIN + num_blocks * (block_height + block_gap) - block_gap),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(max(1, font_size))
    for block in range(num_blocks):
        block_top = MARGIN + block * (block_height + block_gap)
        shown = range(block * num_columns, min((block + 1) * num_columns, num_images))
        if caption_height:
            for column, number in enumerate(shown):
                place = (label_width + column * cell_width, block_top + caption_height - caption_size // 4)
                text = _fitted(captions[number], caption_font, cell_width - MARGIN)
                draw.text(place, text, fill="black", anchor="ld", font=caption_font)
        for number, (label, row) in enumerate(rows.items()):
            top = block_top + caption_height + number * cell_height
            draw.text((MARGIN, top + cell_height // 2), label, fill="black", anchor="lm", font=font)
            if note is not None and number == 0:
                place = (MARGIN, top + cell_height // 2 + font_size)
                draw.multiline_text(place, note.replace(" of", "\nof"), fill="black", font=caption_font)
            for column, pixels in enumerate(row[shown.start : shown.stop]):
                image = _to_image(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
                sheet.paste(image, (label_width + column * cell_width, top))
    return sheet


def stacked_sheets(
    sheets: Sequence[Image.Image], titles: Sequence[str], image_size: int = MIN_IMAGE_SIZE
) -> Image.Image:
    """Sheets below each other, each with its title above.

    Args:
        sheets (sequence of `PIL.Image.Image`): RGB, of any size.
        titles (sequence of `str`): Of each sheet, cut to the width of the widest.
        image_size (`int`, *optional*, defaults to 64): As for [`reconstruction_sheet`]: titles grow with it.
    """
    size = TITLE_SIZE * image_size // MIN_IMAGE_SIZE
    font, title_height, gap = ImageFont.load_default(max(1, size)), 2 * size, image_size // 4
    width = max(sheet.width for sheet in sheets)
    height = sum(title_height + sheet.height for sheet in sheets) + gap * (len(sheets) - 1)
    stacked = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(stacked), 0
    for sheet, title in zip(sheets, titles, strict=True):
        if top:
            draw.line([(0, top - gap // 2), (width, top - gap // 2)], fill="gray")
        text = _fitted(title, font, width - 2 * MARGIN)
        draw.text((MARGIN, top + title_height // 2), text, fill="black", anchor="lm", font=font)
        stacked.paste(sheet, (0, top + title_height))
        top += title_height + sheet.height + gap
    return stacked


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text cut to at most so many pixels."""
    for length in range(len(text), 0, -1):
        short = shortened(text, length)
        if font.getlength(short) <= width:
            return short
    return ""


def to_uint8(pixel_values: torch.Tensor, image_mean, image_std) -> torch.Tensor:
    """Normalized images `(images, channels, height, width)` as uint8 on the CPU, clipped to the range."""
    pixel_values = pixel_values.detach().float().cpu()
    mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (image_mean, image_std))
    return ((pixel_values * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)


def channels_note(num_channels: int) -> str | None:
    """Which channels a figure shows, such as `channels 1-3 of 12`; `None` if they are gray or color."""
    return None if num_channels in (1, 3) else f"channels 1-{len(shown_channels(num_channels))} of {num_channels}"


def _to_image(pixels: torch.Tensor) -> Image.Image:
    return as_shown(pixels.permute(1, 2, 0).numpy())


def draw_reconstructions(
    model: SiTForPreTraining,
    processor: SiTImageProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    *,
    corruption: str | None = None,
    seed: int = 0,
    image_size: int = 96,
) -> Image.Image:
    """Corrupt some images, reconstruct them, and draw the [`reconstruction_sheet`].

    Args:
        model ([`SiTForPreTraining`]): A model that reconstructs.
        processor ([`SiTImageProcessor`]): The model's.
        images (sequence of `PIL.Image.Image`): Of the model's number of channels, of any size.
        captions, image_size: As for [`reconstruction_sheet`].
        corruption (`str`, *optional*): How to corrupt the images. Default: as the processor does.
        seed (`int`, *optional*, defaults to 0): Seed of the corruption.

    Raises:
        [`SiTError`]: If the model reconstructs nothing, or images are to be replaced by others and there is only one.
    """
    if model.config.reconstruction_weight == 0:
        raise SiTError(
            "the model was pretrained with `reconstruction_weight=0`, so it reconstructs nothing",
            argument="model_name_or_path",
        )
    if corruption is not None:
        processor = copy.copy(processor)
        processor.corruption = corruption
    if len(images) == 1 and "replace" in processor.corruption:
        raise SiTError(
            f"{processor.corruption} fills an image from another one, and there is only one",
            argument="corruption",
            remedy='give several, or `corruption="noise"`',
        )
    crops = processor(list(images), do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    crops = crops.round().clamp(0, 255).to(torch.uint8)
    return preview_sheet(model, processor, crops, seed, image_size, captions)


@torch.no_grad()
def preview_sheet(
    model: SiTForPreTraining,
    processor: SiTImageProcessor,
    crops: torch.Tensor,
    seed: int,
    image_size: int = MIN_IMAGE_SIZE,
    captions: Sequence[str] | None = None,
) -> Image.Image | None:
    """Corrupt `crops` (uint8, `(images, channels, height, width)`) and reconstruct them; `None` from a model without a
    reconstruction.

    The same seed corrupts the same way, so that the sheets of a run can be compared. The modes of the model's modules
    stay as they are.
    """
    if model.config.reconstruction_weight == 0:
        return None
    device = model.device
    # They are read by the range already: percentiles of a crop would stretch it once more.
    settings = {"do_resize": False, "do_convert_rgb": False, "intensity_range": None}
    clean = processor(list(crops), **settings, return_tensors="pt")["pixel_values"].to(device)
    corrupted, mask = processor.corrupt(clean, generator=torch.Generator(device).manual_seed(seed))
    with evaluation_mode(model):
        reconstruction = model(corrupted).reconstruction
    return reconstruction_sheet(
        clean, corrupted, reconstruction, mask, processor.image_mean, processor.image_std, image_size, captions
    )
