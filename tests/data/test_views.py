"""The two views: crops as functions of index and seed, their quarter turns, and the flags of their augmentation."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from modeling_sit.data import views
from modeling_sit.data.decoding import UnreadablePicture
from modeling_sit.data.sampling import PictureBatches
from modeling_sit.data.views import TwoCropsDataset, ViewArguments, collate_crops, rotate_views

SHAPE = (16, 16)


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_dataset(encoded: list[bytes | None]) -> datasets.Dataset:
    rows = [{"bytes": picture, "path": f"{number}.png"} for number, picture in enumerate(encoded)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": rows}, features=features, split="train")


def random_pictures(count: int, seed: int = 0) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [encode(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]


def two_crops(encoded: list[bytes | None], num_channels: int = 3, shape=SHAPE, **settings) -> TwoCropsDataset:
    return TwoCropsDataset(as_dataset(encoded), shape, num_channels, ViewArguments(**settings))


class TestTwoCrops:
    def test_shape_and_type(self):
        for num_channels in (1, 3, 4):
            item = two_crops(random_pictures(1), num_channels, (16, 24))[0, 0]
            assert item["crops"].shape == (2, num_channels, 16, 24)
            assert item["crops"].dtype == torch.uint8
            assert item["unreadable"] == []

    def test_are_a_function_of_index_and_seed(self):
        dataset = two_crops(random_pictures(4))
        crops = dataset[2, 7]["crops"]
        assert torch.equal(dataset[2, 7]["crops"], crops)
        assert not torch.equal(dataset[2, 8]["crops"], crops)
        assert not torch.equal(dataset[3, 7]["crops"], crops)
        assert not torch.equal(crops[0], crops[1])

    def test_are_the_same_in_any_number_of_workers(self):
        dataset = two_crops(random_pictures(9))
        batches = [
            list(
                DataLoader(
                    dataset,
                    batch_sampler=PictureBatches(9, 3, seed=5, stop=5),
                    collate_fn=collate_crops,
                    num_workers=workers,
                )
            )
            for workers in (0, 1, 2)
        ]
        assert len(batches[0]) == 5
        for other in batches[1:]:
            assert all(torch.equal(a["crops"], b["crops"]) for a, b in zip(batches[0], other, strict=True))

    def test_leave_the_global_generator_alone_and_do_not_depend_on_it(self):
        dataset = two_crops(random_pictures(1))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        crops = dataset[0, 3]["crops"]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(dataset[0, 3]["crops"], crops)

    @pytest.mark.parametrize(
        ("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.4), (1.5, 2.0)), ((0.5, 0.5), (1.0, 1.0))]
    )
    def test_area_and_ratio_stay_in_their_ranges_and_use_them(self, scale, ratio):
        # Red tells a pixel's column, green its row: the slope in a crop is the crop's size over that of the view.
        row, column = np.mgrid[:200, :240]
        picture = encode(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))
        dataset = two_crops([picture], crop_scale=list(scale), crop_ratio=list(ratio))
        areas, ratios = [], []
        for seed in range(150):
            for crop in dataset[0, seed]["crops"].float():
                width = (crop[0, :, 12] - crop[0, :, 3]).mean().item() / 9 * 16
                height = (crop[1, 12] - crop[1, 3]).mean().item() / 9 * 16
                areas.append(width * height / (200 * 240))
                ratios.append(width / height)
        for values, (low, high) in ((areas, scale), (ratios, ratio)):
            assert min(values) > 0.93 * low
            assert max(values) < 1.07 * high
            spread = high - low
            assert min(values) < 1.07 * (low + 0.1 * spread)
            assert max(values) > 0.93 * (high - 0.35 * spread)  # a big crop that does not fit is drawn anew

    def test_resampling_is_bicubic(self):
        """A bicubic kernel overshoots at an edge, a bilinear one does not."""
        pixels = np.zeros((8, 8, 3), dtype=np.uint8) + 64
        pixels[:, 4:] = 192
        dataset = two_crops([encode(pixels)], shape=(64, 64), crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0])
        crop = dataset[0, 0]["crops"][0]
        assert crop.max() > 192
        assert crop.min() < 64

    def test_unreadable_pictures_are_replaced_by_the_next_readable_and_named(self):
        good = random_pictures(2)
        dataset = two_crops([good[0], b"broken", b"", good[1], None])
        item = dataset[1, 9]
        assert torch.equal(item["crops"], dataset[3, 9]["crops"])
        assert [problem.split(":")[0] for problem in item["unreadable"]] == [
            "row 1 of train (1.png)",
            "row 2 of train (2.png)",
        ]
        wrapped = dataset[4, 9]
        assert torch.equal(wrapped["crops"], dataset[0, 9]["crops"])
        assert len(wrapped["unreadable"]) == 1

    def test_a_picture_of_one_pixel(self):
        item = two_crops([encode(np.full((1, 1, 3), 77, dtype=np.uint8))])[0, 0]
        assert (item["crops"] == 77).all()

    def test_whole_set_unreadable(self):
        dataset = two_crops([b"", b"broken"])
        with pytest.raises(UnreadablePicture, match=r"2 pictures.*1\.png"):
            dataset[0, 0]

    def test_a_long_row_of_unreadable_pictures_is_not_walked_through(self, monkeypatch):
        monkeypatch.setattr(views, "MAX_UNREADABLE_IN_A_ROW", 3)
        good = random_pictures(1)
        assert len(two_crops([b"", b"", *good])[0, 0]["unreadable"]) == 2
        with pytest.raises(UnreadablePicture):
            two_crops([b"", b"", b"", *good])[0, 0]

    def test_collation_puts_the_views_first(self):
        dataset = two_crops([*random_pictures(2), b""])
        items = [dataset[index, seed] for index, seed in ((0, 1), (1, 2), (2, 3))]
        batch = collate_crops(items)
        assert batch["crops"].shape == (2, 3, 3, *SHAPE)
        for picture, item in enumerate(items):
            for view in range(2):
                assert torch.equal(batch["crops"][view, picture], item["crops"][view])
        assert batch["unreadable"] == items[2]["unreadable"] != []


def random_views(count: int, channels: int = 3, side: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


class TestRotateViews:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
    def test_is_numpys_quarter_turns_picture_by_picture(self, dtype):
        views = (50 * random_views(40).abs()).to(dtype)
        given = views.clone()
        rotated, labels = rotate_views(views, torch.Generator().manual_seed(0))
        assert torch.equal(views, given)
        assert rotated.dtype == dtype and labels.dtype == torch.int64 and labels.shape == (40,)
        assert set(labels.tolist()) == {0, 1, 2, 3}
        for view, turned, label in zip(views.float(), rotated.float(), labels.tolist(), strict=True):
            assert np.array_equal(turned.numpy(), np.rot90(view.numpy(), label, axes=(1, 2)))

    def test_one_quarter_turn_is_counter_clockwise(self):
        """As Pillow turns a picture on the screen: what was at the right comes to the top."""
        view = torch.arange(9.0).view(1, 1, 3, 3)
        rotated, labels = rotate_views(view.expand(30, -1, -1, -1), torch.Generator().manual_seed(0))
        turned = PIL.Image.fromarray(view[0, 0].numpy()).transpose(PIL.Image.Transpose.ROTATE_90)
        assert np.array_equal(rotated[labels == 1][0, 0].numpy(), np.asarray(turned))
        assert rotated[labels == 1][0, 0, 0].tolist() == [2, 5, 8]

    def test_every_view_has_its_own_draw_of_equal_chances(self):
        _, labels = rotate_views(torch.zeros(4000, 1, 1, 1), torch.Generator().manual_seed(0))
        shares = torch.bincount(labels, minlength=4) / 4000
        assert shares.shape == (4,)
        assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5
        view_1, view_2 = labels.chunk(2)
        assert (view_1 == view_2).float().mean().item() == pytest.approx(0.25, abs=0.04)

    def test_draws_from_the_generator_handed_in_and_from_no_other(self):
        views = random_views(16)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        _, labels = rotate_views(views, torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(rotate_views(views, torch.Generator().manual_seed(1))[1], labels)
        assert not torch.equal(rotate_views(views, torch.Generator().manual_seed(2))[1], labels)

    def test_is_a_function_of_torch_manual_seed_by_default(self):
        views, results = random_views(16), []
        for seed, other_seed in ((0, 0), (0, 1), (1, 0)):
            torch.manual_seed(seed)
            np.random.seed(other_seed)
            results.append(rotate_views(views)[1])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_views_that_are_not_square_are_refused(self):
        with pytest.raises(ValueError, match="8 x 16"):
            rotate_views(torch.zeros(4, 3, 8, 16))


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_scale": [0.2]},
        {"crop_scale": [0.0, 1.0]},
        {"crop_scale": [0.6, 0.4]},
        {"crop_scale": [0.5, 1.5]},
        {"crop_ratio": [1.0, 1.0, 1.0]},
        {"crop_ratio": [-1.0, 1.0]},
        {"horizontal_flip_probability": 1.1},
        {"vertical_flip_probability": -0.1},
        {"color_jitter": [0.4, 0.4, 0.2]},
        {"color_jitter": [0.4, 0.4, 0.2, 0.6]},
        {"color_jitter": [-0.4, 0.4, 0.2, 0.1]},
        {"color_jitter_probability": 2.0},
        {"grayscale_probability": float("nan")},
        {"blur_probability": [1.0]},
        {"blur_probability": [1.0, 1.1]},
        {"blur_sigma": [0.0, 2.0]},
        {"blur_sigma": [2.0, 0.1]},
        {"solarize_probability": [0.0, -0.2]},
        {"solarize_threshold": 2.0},
        {"solarize_threshold": -0.1},
    ],
)
def test_arguments_out_of_range_name_the_flag(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"--{name}"):
        ViewArguments(**settings)


def test_default_arguments_are_the_papers():
    arguments = vars(ViewArguments())
    assert arguments == {
        "crop_scale": [0.2, 1.0],
        "crop_ratio": [3 / 4, 4 / 3],
        "horizontal_flip_probability": 0.5,
        "vertical_flip_probability": 0.0,
        "color_jitter": [0.4, 0.4, 0.2, 0.1],
        "color_jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_probability": [1.0, 0.1],
        "blur_sigma": [0.1, 2.0],
        "solarize_probability": [0.0, 0.2],
        "solarize_threshold": 0.5,
    }
