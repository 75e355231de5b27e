"""Sheets of reconstructions, pixel by pixel."""

import numpy as np
import PIL.Image
import pytest
import torch

from modeling_sit import SiTForPreTraining, SiTImageProcessor
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.reconstructions import (
    LABEL_WIDTH,
    MARGIN,
    MIN_IMAGE_SIZE,
    channels_note,
    draw_reconstructions,
    masked_sheet,
    preview_sheet,
    reconstruction_sheet,
    stacked_sheets,
    to_uint8,
)

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def random_views(channels: int, shape: tuple[int, int], seed: int = 0, count: int = 3) -> dict:
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted, reconstruction = torch.randn(3, count, channels, *shape, generator=generator)
    mask = torch.rand(count, 1, *shape, generator=generator) < 0.5
    return {"clean": clean, "corrupted": corrupted, "reconstruction": reconstruction, "corruption_mask": mask}


def cells(sheet: PIL.Image.Image, count: int, shape: tuple[int, int]) -> np.ndarray:
    """Rows of images on a sheet, at their own size, `(4, count, height, width, 3)`."""
    height, width = shape
    factor = max(1, -(-MIN_IMAGE_SIZE // max(shape)))
    pixels = np.asarray(sheet)
    result = np.zeros((4, count, height, width, 3), dtype=np.uint8)
    for row in range(4):
        for column in range(count):
            top = MARGIN + row * (height * factor + MARGIN)
            left = LABEL_WIDTH + column * (width * factor + MARGIN)
            enlarged = pixels[top : top + height * factor, left : left + width * factor]
            result[row, column] = enlarged[::factor, ::factor]
            np.testing.assert_array_equal(enlarged, result[row, column].repeat(factor, 0).repeat(factor, 1))
    return result


def as_pixels(pixel_values: torch.Tensor, mean, std) -> np.ndarray:
    """By hand: undo the normalization, clip, round."""
    values = pixel_values.double().numpy().transpose(0, 2, 3, 1) * np.array(std) + np.array(mean)
    return np.rint(np.clip(values, 0, 1) * 255).astype(int)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (100, 80)])
def test_rows_are_clean_corrupted_reconstruction_and_pasted(shape):
    views = random_views(3, shape)
    sheet = reconstruction_sheet(**views, image_mean=MEAN, image_std=STD)
    assert sheet.mode == "RGB"
    pasted = torch.where(views["corruption_mask"].expand(-1, 3, -1, -1), views["reconstruction"], views["clean"])
    rows = cells(sheet, 3, shape)
    for row, expected in zip(rows, (views["clean"], views["corrupted"], views["reconstruction"], pasted), strict=True):
        assert np.abs(row.astype(int) - as_pixels(expected, MEAN, STD)).max() <= 1
    mask = views["corruption_mask"].numpy()[:, 0]
    np.testing.assert_array_equal(rows[3][~mask], rows[0][~mask])
    np.testing.assert_array_equal(rows[3][mask], rows[2][mask])


@pytest.mark.parametrize(
    ("shape", "factor"), [((8, 8), 8), ((16, 16), 4), ((60, 60), 2), ((64, 64), 1), ((224, 96), 1)]
)
def test_size(shape, factor):
    sheet = reconstruction_sheet(**random_views(3, shape, count=5), image_mean=MEAN, image_std=STD)
    assert sheet.width == LABEL_WIDTH + 5 * (shape[1] * factor + MARGIN)
    assert sheet.height == MARGIN + 4 * (shape[0] * factor + MARGIN)


def test_grey_images():
    views = random_views(1, (16, 16))
    rows = cells(reconstruction_sheet(**views, image_mean=[0.5], image_std=[0.25]), 3, (16, 16))
    assert (rows == rows[..., :1]).all()
    assert np.abs(rows[0].astype(int) - as_pixels(views["clean"], [0.5], [0.25])).max() <= 1


def test_rows_are_labeled():
    sheet = reconstruction_sheet(**random_views(3, (16, 16)), image_mean=MEAN, image_std=STD)
    labels = np.asarray(sheet)[:, :LABEL_WIDTH]
    for row in range(4):
        top = MARGIN + row * (64 + MARGIN)
        assert (labels[top : top + 64] < 100).any()
    assert (labels[:, 0] == 255).all() and (labels[:, -1] == 255).all()  # none is cut off


def test_many_images_stand_in_blocks_below_each_other():
    """Each block is the sheet of its own images."""
    views = random_views(3, (16, 16), count=19)
    sheet = np.asarray(reconstruction_sheet(**views, image_mean=MEAN, image_std=STD))
    for block in range(3):
        part = {name: value[7 * block : 7 * (block + 1)] for name, value in views.items()}
        alone = np.asarray(reconstruction_sheet(**part, image_mean=MEAN, image_std=STD))[MARGIN:]
        top = MARGIN + block * (4 * (64 + MARGIN) + (64 + MARGIN) // 4)
        np.testing.assert_array_equal(sheet[top : top + len(alone), : alone.shape[1]], alone)
    assert sheet.shape[:2] == (MARGIN + 12 * 68 + 2 * 17, LABEL_WIDTH + 7 * 68)


def test_captions_stand_above_the_images_and_are_cut_to_their_width():
    views = random_views(3, (16, 16))
    plain = np.asarray(reconstruction_sheet(**views, image_mean=MEAN, image_std=STD))
    captions = ["W" * 50, "", "g"]
    sheet = np.asarray(reconstruction_sheet(**views, image_mean=MEAN, image_std=STD, captions=captions))
    height = len(sheet) - len(plain)
    np.testing.assert_array_equal(sheet[MARGIN + height :], plain[MARGIN:])
    inked = (sheet[: MARGIN + height] < 200).any(axis=(0, 2))
    cells = [inked[LABEL_WIDTH + column * 68 :][:64].any() for column in range(3)]
    assert cells == [True, False, True] and not inked[LABEL_WIDTH + 64 : LABEL_WIDTH + 68].any()
    assert (sheet[MARGIN + height - 1] == 255).all() and (sheet[0] == 255).all()


def test_half_precision_reconstruction():
    views = random_views(3, (16, 16))
    views["reconstruction"] = views["reconstruction"].to(torch.bfloat16)
    expected = reconstruction_sheet(
        **{**views, "reconstruction": views["reconstruction"].float()}, image_mean=MEAN, image_std=STD
    )
    views["reconstruction"].requires_grad_()
    assert reconstruction_sheet(**views, image_mean=MEAN, image_std=STD) == expected


def test_to_uint8_clips_and_rounds():
    values = torch.tensor([-1.0, 0.0, 0.25, 0.5, 1.0, 9.0]).view(1, 1, 1, 6)
    pixels = to_uint8(values, [0.0], [1.0])
    assert pixels.dtype == torch.uint8
    assert pixels.flatten().tolist() == [0, 0, 64, 128, 255, 255]


class TestPreview:
    @pytest.fixture
    def model(self, tiny_config) -> SiTForPreTraining:
        torch.manual_seed(0)
        return SiTForPreTraining(tiny_config(drop_path_rate=0.9))

    @pytest.fixture
    def processor(self) -> SiTImageProcessor:
        return SiTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD, patch_size=8)

    crops = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def test_shows_the_crops_and_what_the_model_makes_of_them(self, model, processor):
        rows = cells(preview_sheet(model, processor, self.crops, seed=3), 4, (16, 16))
        clean, corrupted, reconstruction, pasted = rows
        np.testing.assert_array_equal(clean, self.crops.permute(0, 2, 3, 1))
        assert 0.2 < (clean != corrupted).any(-1).mean() < 0.9

        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
        normalized = (self.crops / 255 - mean) / std
        shown, mask = processor.corrupt(normalized, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = model.eval()(shown).reconstruction
        assert np.abs(reconstruction.astype(int) - as_pixels(expected, MEAN, STD)).max() <= 1
        hole = mask[:, 0].numpy()
        np.testing.assert_array_equal(pasted[hole], reconstruction[hole])
        np.testing.assert_array_equal(pasted[~hole], clean[~hole])

    def test_is_a_function_of_the_seed(self, model, processor):
        before = torch.get_rng_state()
        a, b, c = (preview_sheet(model, processor, self.crops, seed) for seed in (1, 1, 2))
        assert a == b != c
        assert torch.equal(torch.get_rng_state(), before)

    def test_mode_of_the_model_is_left_as_it_was(self, model, processor):
        for training in (True, False):
            preview_sheet(model.train(training), processor, self.crops, seed=0)
            assert model.training is training
            assert model.vit.training is training

    def test_grey(self, tiny_config):
        model = SiTForPreTraining(tiny_config(num_channels=1))
        processor = SiTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
        clean = cells(preview_sheet(model, processor, self.crops[:, :1], seed=0), 4, (16, 16))[0]
        np.testing.assert_array_equal(clean[..., 0], self.crops[:, 0])

    def test_crops_are_not_stretched_once_more(self, model):
        """Percentiles are those of the whole image, which is read by them already."""
        size = {"height": 16, "width": 16}
        processor = SiTImageProcessor(size=size, patch_size=8, intensity_range=["2%", "98%"])
        dark = self.crops // 4
        np.testing.assert_array_equal(
            cells(preview_sheet(model, processor, dark, seed=0), 4, (16, 16))[0], dark.permute(0, 2, 3, 1)
        )

    def test_nothing_without_a_decoder(self, tiny_config, processor):
        model = SiTForPreTraining(tiny_config(reconstruction_weight=0.0))
        assert preview_sheet(model, processor, self.crops, seed=0) is None


class TestDraw:
    """From images to a sheet."""

    @pytest.fixture
    def model(self, tiny_config) -> SiTForPreTraining:
        torch.manual_seed(0)
        return SiTForPreTraining(tiny_config())

    @pytest.fixture
    def processor(self) -> SiTImageProcessor:
        return SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8)

    def images(self, count: int) -> list[PIL.Image.Image]:
        generator = np.random.default_rng(0)
        return [PIL.Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]

    def test_is_the_preview_of_the_images(self, model, processor):
        images = self.images(3)
        crops = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        sheet = draw_reconstructions(model, processor, images, ["a", "b", "c"], seed=1, image_size=64)
        assert sheet == preview_sheet(model, processor, crops, 1, 64, ["a", "b", "c"])

    def test_another_corruption_leaves_the_processor_as_it_was(self, model, processor):
        clean, corrupted, _, _ = cells(
            draw_reconstructions(model, processor, self.images(2), corruption="none", image_size=64), 2, (16, 16)
        )
        np.testing.assert_array_equal(clean, corrupted)
        assert processor.corruption == "noise+replace"

    def test_mistakes(self, model, processor, tiny_config):
        with pytest.raises(SiTError) as error:
            draw_reconstructions(model, processor, self.images(1))
        assert error.value.argument == "corruption"
        model = SiTForPreTraining(tiny_config(reconstruction_weight=0.0))
        with pytest.raises(SiTError) as error:
            draw_reconstructions(model, processor, self.images(2))
        assert error.value.argument == "model_name_or_path"


@pytest.mark.parametrize(("channels", "shown"), [(2, (0, 1, None)), (4, (0, 1, 2)), (12, (0, 1, 2))])
def test_three_of_many_channels(channels, shown):
    views = random_views(channels, (8, 8))
    sheet = reconstruction_sheet(**views, image_mean=[0.5] * channels, image_std=[0.2] * channels)
    clean = to_uint8(views["clean"], [0.5] * channels, [0.2] * channels).permute(0, 2, 3, 1).numpy()
    row = cells(sheet, 3, (8, 8))[0]
    for place, channel in enumerate(shown):
        assert (row[..., place] == (0 if channel is None else clean[..., channel])).all()


def test_says_which_channels():
    assert channels_note(12) == "channels 1-3 of 12"
    assert channels_note(2) == "channels 1-2 of 2"
    assert channels_note(1) is channels_note(3) is None
    sheets = {}
    for channels in (3, 5):  # with the same pixels to show, so that only the note differs
        views = {
            name: view[:, :3].repeat(1, 2, 1, 1)[:, :channels] if name != "corruption_mask" else view
            for name, view in random_views(3, (8, 8)).items()
        }
        sheets[channels] = np.asarray(
            reconstruction_sheet(**views, image_mean=[0] * channels, image_std=[1] * channels)
        )
    assert (sheets[3][:, LABEL_WIDTH:] == sheets[5][:, LABEL_WIDTH:]).all()
    assert (sheets[3][:, :LABEL_WIDTH] != sheets[5][:, :LABEL_WIDTH]).any()


def test_masked_places_are_gray_and_labeled_so():
    views = random_views(3, (16, 16), count=2)
    processor = SiTImageProcessor(image_mean=MEAN, image_std=STD)
    mask = views["corruption_mask"]
    sheet = masked_sheet(views["clean"], views["reconstruction"], mask, processor)
    views["corrupted"] = views["clean"].masked_fill(mask, 0)
    expected = reconstruction_sheet(**views, image_mean=MEAN, image_std=STD)
    assert sheet.size == expected.size and sheet != expected
    np.testing.assert_array_equal(cells(sheet, 2, (16, 16)), cells(expected, 2, (16, 16)))


def test_stacked_sheets_are_whole_below_their_titles():
    sheets = [PIL.Image.new("RGB", size, color) for size, color in (((90, 30), "red"), ((50, 70), "blue"))]
    pixels = np.asarray(stacked_sheets(sheets, ["one", "W" * 90]))
    height = len(pixels) - 100
    title = (height - MIN_IMAGE_SIZE // 4) // 2
    tops = [title, 2 * title + 30 + MIN_IMAGE_SIZE // 4]
    for sheet, top in zip(sheets, tops, strict=True):
        np.testing.assert_array_equal(pixels[top : top + sheet.height, : sheet.width], np.asarray(sheet))
        above = pixels[top - title : top]
        assert (above < 100).any() and (above[:, -1] == 255).all() and (above[0] == 255).all()
    assert pixels.shape[1] == 90 and (pixels[tops[1] :, 50:] == 255).all()
