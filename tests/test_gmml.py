"""GMML corruption: where blocks fall, how many, what fills them, and that nothing else is touched."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from no_waiting import NoWaiting

from modeling_sit import gmml
from modeling_sit.gmml import CORRUPTIONS, corrupt

HEIGHT, WIDTH = 40, 60
DEFAULT_RATIOS = {"noise": (0.5, 0.7), "zeros": (0.5, 0.7), "replace": (0.3, 0.3)}
REAL_CORRUPTIONS = [name for name in CORRUPTIONS if name != "none"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=4, channels=3, height=HEIGHT, width=WIDTH, seed=100, dtype=torch.float32):
    return torch.randn(batch, channels, height, width, generator=seeded(seed)).to(dtype)


def numbered_images(batch, channels=3, height=HEIGHT, width=WIDTH):
    """Image i is 100 + i everywhere: whoever sees a pixel knows where it comes from."""
    return (100.0 + torch.arange(batch)).view(-1, 1, 1, 1).expand(-1, channels, height, width).clone()


@pytest.fixture(params=["one_by_one", "batched"])
def path(request, monkeypatch):
    """Run a test with the functions for CPUs, then with those for accelerators, on the CPU."""
    if request.param == "batched":
        monkeypatch.setattr(gmml, "_mask_loop", gmml._mask_batched)
        monkeypatch.setattr(gmml, "_fill_loop", gmml._fill_batched)
    return request.param


def shares_of(mask):
    return mask.flatten(1).double().mean(1)


def block_of(mask):
    """Top, left, bottom and right of the one full rectangle that the mask (height, width) is."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    top, left, bottom, right = rows[0].item(), columns[0].item(), rows[-1].item() + 1, columns[-1].item() + 1
    assert mask[top:bottom, left:right].all(), "more than one block"
    return top, left, bottom, right


def single_blocks(batch=3000, height=HEIGHT, width=WIDTH, block_size=(0.05, 0.25), **kwargs):
    """Blocks (batch, 4) of a share so low that one block reaches it."""
    _, mask = corrupt(
        torch.zeros(batch, 1, height, width),
        "zeros",
        zeros_ratio=(1e-4, 1e-4),
        block_size=block_size,
        generator=seeded(),
        **kwargs,
    )
    return np.array([block_of(image[0]) for image in mask])


def assert_uniform(values, expected):
    """Counts of each of the expected values, within five standard deviations of equal."""
    expected = list(expected)
    assert set(values) == set(expected)
    chance = 1 / len(expected)
    deviation = math.sqrt(len(values) * chance * (1 - chance))
    counts = np.array([np.count_nonzero(values == value) for value in expected])
    assert np.abs(counts - len(values) * chance).max() <= 5 * deviation


def kolmogorov_smirnov(values, distribution) -> float:
    """sqrt(n) times the largest distance between the values' distribution and the given one: above 2 at p < 0.001."""
    values = np.sort(np.asarray(values, dtype=float))
    expected = distribution(values)
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    return math.sqrt(len(values)) * distance


def normal_distribution(values):
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values])


# How much is covered.


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("corruption", REAL_CORRUPTIONS)
def test_default_shares_overshoot_by_less_than_a_block(path, corruption, aligned):
    height, width, patch = 64, 96, 8
    _, mask = corrupt(
        numbered_images(64, 1, height, width),
        corruption,
        align_to_patches=aligned,
        patch_size=patch,
        generator=seeded(),
    )
    ratios = [DEFAULT_RATIOS[kind] for kind in corruption.split("+")]
    if aligned:
        largest_block = (height // patch // 4) * (width // patch // 4) * patch**2
    else:
        largest_block = (height // 4) * (width // 4)
    low, high = min(low for low, _ in ratios), max(high for _, high in ratios)
    shares = shares_of(mask)
    assert (shares >= low).all()
    assert (shares < high + largest_block / (height * width)).all()


@pytest.mark.parametrize(("kind", "ratio"), [("noise", (0.2, 0.6)), ("zeros", (0.5, 0.7)), ("replace", (0.1, 0.3))])
def test_shares_are_uniform_across_their_range(path, kind, ratio):
    # Blocks of one pixel, which do not blur the share: 1/400 at most.
    _, mask = corrupt(
        torch.zeros(300, 1, 20, 20), kind, **{f"{kind}_ratio": ratio}, block_size=(0.05, 0.05), generator=seeded()
    )
    position = (shares_of(mask).numpy() - ratio[0]) / (ratio[1] - ratio[0])
    assert position.min() >= 0
    assert position.max() <= 1 + 1 / 400 / (ratio[1] - ratio[0])
    assert kolmogorov_smirnov(position, lambda values: np.clip(values, 0, 1)) < 2


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.6, 0.7, 0.9])
def test_blocks_of_a_pixel_cover_the_share_exactly(path, ratio):
    """Nothing may overshoot but the last block, and the last of these is one pixel that was needed."""
    _, mask = corrupt(
        torch.zeros(8, 1, 10, 10), "zeros", zeros_ratio=(ratio, ratio), block_size=(0.1, 0.1), generator=seeded()
    )
    assert mask.flatten(1).sum(1).tolist() == [round(100 * ratio)] * 8


@pytest.mark.parametrize("ratio", [(0.0, 0.0), (0, 0)])
def test_share_of_zero_covers_nothing(path, ratio):
    pixel_values = images()
    corrupted, mask = corrupt(pixel_values, "noise", noise_ratio=ratio, generator=seeded())
    assert not mask.any()
    assert torch.equal(corrupted, pixel_values)


@pytest.mark.parametrize("block_size", [(0.01, 0.02), (0.05, 0.25), (0.5, 0.5), (0.05, 1.0), (0.7, 0.7), (1.0, 1.0)])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_share_is_reached_with_blocks_of_any_size(path, share, block_size):
    batch = 400 if path == "one_by_one" and block_size[0] >= 0.05 else 30
    _, mask = corrupt(
        torch.zeros(batch, 1, 20, 30),
        "zeros",
        zeros_ratio=(share, share),
        block_size=block_size,
        generator=seeded(),
    )
    assert shares_of(mask).min() >= share


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 50), (7, 5)])
def test_tiny_images(path, height, width):
    pixel_values = images(6, 3, height, width)
    corrupted, mask = corrupt(pixel_values, "zeros", generator=seeded())
    assert (shares_of(mask) >= 0.5).all()
    assert torch.equal(corrupted, pixel_values.masked_fill(mask, 0))


# Where blocks fall.


def test_block_sides_are_uniform_between_5_and_25_percent():
    top, left, bottom, right = single_blocks().T
    assert_uniform(bottom - top, range(2, 11))
    assert_uniform(right - left, range(3, 16))


def test_block_height_and_width_are_independent():
    top, left, bottom, right = single_blocks().T
    correlation = np.corrcoef(bottom - top, right - left)[0, 1]
    assert abs(correlation) < 5 / math.sqrt(3000)


def test_blocks_lie_anywhere():
    # One size, so that every place can be counted: 40 - 8 + 1 rows and 60 - 12 + 1 columns.
    top, left, bottom, right = single_blocks(6000, block_size=(0.2, 0.2)).T
    assert set(bottom - top) == {8}
    assert set(right - left) == {12}
    assert_uniform(top, range(33))
    assert_uniform(left, range(49))
    assert abs(np.corrcoef(top, left)[0, 1]) < 5 / math.sqrt(6000)


def test_block_bounds_are_whole_pixels_within_the_range():
    # 5 % and 25 % of 30 are 1.5 and 7.5 pixels: 2 to 7 lie within.
    top, left, bottom, right = single_blocks(2000, height=30, width=30).T
    assert_uniform(bottom - top, range(2, 8))
    assert_uniform(right - left, range(2, 8))


def test_aligned_blocks_are_made_of_whole_patches():
    # 8 x 12 patches of 5 x 5 pixels: 5 % to 25 % are 1 to 2 and 1 to 3 patches.
    blocks = single_blocks(align_to_patches=True, patch_size=5)
    assert not (blocks % 5).any()
    top, left, bottom, right = blocks.T // 5
    assert_uniform(bottom - top, range(1, 3))
    assert_uniform(right - left, range(1, 4))
    assert set(top) == set(range(8))
    assert set(left) == set(range(12))


def test_patches_need_not_be_square(path):
    _, mask = corrupt(images(), align_to_patches=True, patch_size=(4, 10), generator=seeded())
    patches = mask.reshape(4, HEIGHT // 4, 4, WIDTH // 10, 10)
    assert torch.equal(patches.all(4).all(2), patches.any(4).any(2))
    assert mask.any()


def test_blocks_of_a_image_are_not_those_of_another(path):
    _, mask = corrupt(images(8), generator=seeded())
    assert len({tuple(image.flatten().tolist()) for image in mask}) == 8


# The two ways to cover are one.


def slow_cover(blocks, share, height, width):
    """Drop a block, count, and so on: exact fractions, no shortcut."""
    masks = []
    for image_blocks, image_fraction in zip(blocks.tolist(), share.tolist(), strict=True):
        mask = [[False] * width for _ in range(height)]
        for top, left, bottom, right in image_blocks:
            covered = sum(sum(row) for row in mask)
            if Fraction(covered, height * width) >= Fraction(image_fraction):
                break
            for y in range(top, bottom):
                for x in range(left, right):
                    mask[y][x] = True
        masks.append(mask)
    return torch.tensor(masks)


@pytest.mark.parametrize("block_size", [(0.05, 0.25), (0.1, 0.1), (0.3, 0.9)])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (12, 31)])
def test_covers_equal_a_slow_loop_that_counts_after_each_block(height, width, block_size):
    share = torch.tensor([0.0, 0.001, 0.25, 0.3, 0.5, 0.6, 0.7, 0.9])
    num_blocks = gmml._sufficient_blocks(height, width, block_size, 0.9)
    blocks = gmml._draw_blocks(len(share), height, width, num_blocks, block_size, seeded(), torch.device("cpu"))
    expected = slow_cover(blocks, share, height, width)
    assert torch.equal(gmml._mask_loop(blocks, share, height, width), expected)
    assert torch.equal(gmml._mask_batched(blocks, share, height, width), expected)


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_corruption_covers_the_first_blocks_drawn(path, ratio, monkeypatch):
    drawn = []
    draw_blocks = gmml._draw_blocks
    monkeypatch.setattr(gmml, "_draw_blocks", lambda *args: drawn.append(draw_blocks(*args)) or drawn[-1])
    _, mask = corrupt(images(6, 1, 20, 30), "zeros", zeros_ratio=(ratio, ratio), generator=seeded())
    exact = slow_cover(drawn[0], torch.full((6,), ratio, dtype=torch.float64), 20, 30)
    assert torch.equal(mask[:, 0], exact)


# What fills the blocks.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_nothing_outside_the_mask_changes(path, corruption, dtype):
    pixel_values = images(6, dtype=dtype)
    corrupted, mask = corrupt(pixel_values, corruption, generator=seeded())
    assert corrupted.dtype == dtype
    assert corrupted.shape == pixel_values.shape
    assert mask.dtype == torch.bool
    assert mask.shape == (6, 1, HEIGHT, WIDTH)
    outside = ~mask.expand_as(pixel_values)
    assert outside.any()
    assert torch.equal(corrupted[outside], pixel_values[outside])
    if corruption != "none":
        assert (corrupted != pixel_values).any(), "nothing was corrupted"


def test_none_corrupts_nothing(path):
    pixel_values = images()
    corrupted, mask = corrupt(pixel_values, "none", generator=seeded())
    assert torch.equal(corrupted, pixel_values)
    assert not mask.any()


def test_zeros_are_exactly_zero(path):
    corrupted, mask = corrupt(numbered_images(8), "zeros", generator=seeded())
    assert torch.equal(corrupted == 0, mask.expand_as(corrupted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_noise_is_standard_normal(path, dtype):
    # Two images of one constant: what is not 100 or 101 is noise.
    corrupted, mask = corrupt(numbered_images(16, 3, 64, 64).to(dtype), "noise", generator=seeded())
    noise = corrupted[mask.expand_as(corrupted)].double().numpy()
    assert len(noise) > 90_000
    assert abs(noise.mean()) < 5 / math.sqrt(len(noise))
    assert abs(noise.std() - 1) < 5 / math.sqrt(2 * len(noise)) + (2e-3 if dtype == torch.bfloat16 else 0)
    if dtype in (torch.float32, torch.float64):
        assert kolmogorov_smirnov(noise[:20_000], normal_distribution) < 2
    assert 3.5 < np.abs(noise).max() < 6


def test_noise_is_independent_over_channels_images_and_neighbours(path):
    corrupted, mask = corrupt(
        torch.zeros(8, 3, 64, 64), "noise", noise_ratio=(0.9, 0.9), block_size=(1.0, 1.0), generator=seeded()
    )
    assert mask.all()
    noise = corrupted.numpy()
    pairs = [
        (noise[:, 0], noise[:, 1]),
        (noise[:, 1], noise[:, 2]),
        (noise[:-1], noise[1:]),
        (noise[..., :-1], noise[..., 1:]),
        (noise[..., :-1, :], noise[..., 1:, :]),
    ]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(one.size)


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_replace_takes_the_same_place_of_one_other_image(path, batch):
    for seed in range(4):
        pixel_values = images(batch, seed=seed)
        corrupted, mask = corrupt(pixel_values, "replace", generator=seeded(seed))
        for image in range(batch):
            hole = mask[image].expand_as(pixel_values[image])
            donors = [
                other
                for other in range(batch)
                if torch.equal(corrupted[image][hole], pixel_values[other][hole]) and hole.any()
            ]
            assert len(donors) == 1
            assert donors != [image]


def test_replace_takes_the_same_view_of_another_image(path):
    views = numbered_images(3000)
    corrupted, mask = corrupt(views, "replace", generator=seeded(), num_views=3)
    number = torch.arange(3000)
    donor = corrupted.masked_fill(~mask, 0).flatten(1).amax(1).long() - 100
    assert torch.equal(donor // 1000, number // 1000)
    distance = (donor - number) % 1000
    assert distance.min() > 0
    assert kolmogorov_smirnov(distance.double(), lambda values: np.asarray(values) / 1000) < 1.95  # 1 in 1000


@pytest.mark.parametrize("corruption", REAL_CORRUPTIONS)
def test_one_view_is_corrupted_as_a_batch_is(path, corruption):
    for one, other in zip(
        corrupt(images(), corruption, generator=seeded()),
        corrupt(images(), corruption, generator=seeded(), num_views=1),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_views", [0, 3, 8])
def test_views_that_do_not_make_up_the_batch_are_refused(num_views):
    with pytest.raises(ValueError, match="num_views"):
        corrupt(images(4), num_views=num_views)


def test_a_image_alone_is_replaced_by_itself_rather_than_its_other_view(path):
    views = numbered_images(2)
    corrupted, mask = corrupt(views, "replace", generator=seeded(), num_views=2)
    assert mask.any() and torch.equal(corrupted, views)


def test_every_other_image_is_a_donor_as_often(path):
    donors = [[] for _ in range(5)]
    generator = seeded()
    for _ in range(60):
        corrupted, _ = corrupt(numbered_images(5, 1, 12, 12), "replace", generator=generator)
        for image in range(5):
            values = set(corrupted[image].flatten().tolist()) - {100.0 + image}
            donors[image].append(values.pop() - 100)
    for image in range(5):
        assert_uniform(np.array(donors[image]), [other for other in range(5) if other != image])


def test_a_batch_of_one_has_no_other_donor(path):
    pixel_values = images(1)
    corrupted, mask = corrupt(pixel_values, "replace", generator=seeded())
    assert mask.any()
    assert torch.equal(corrupted, pixel_values)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_of_one(path, batch, corruption):
    corrupted, mask = corrupt(images(batch), corruption, generator=seeded())
    assert corrupted.shape == (batch, 3, HEIGHT, WIDTH)
    assert mask.shape == (batch, 1, HEIGHT, WIDTH)
    assert mask.dtype == torch.bool
    assert mask.any() == (batch == 1 and corruption != "none")


@pytest.mark.parametrize(
    ("corruption", "ratios"),
    [
        ("zeros+replace", {"zeros_ratio": (0.5, 0.5), "replace_ratio": (0.3, 0.3)}),
        ("noise+replace", {"noise_ratio": (0.5, 0.5), "replace_ratio": (0.3, 0.3)}),
    ],
)
def test_combinations_draw_one_kind_a_image_about_equally(path, corruption, ratios):
    first = corruption.split("+")[0]
    count = {first: 0, "replace": 0}
    corrupted, mask = corrupt(numbered_images(600, 1, 20, 20), corruption, **ratios, generator=seeded())
    for number, (image, hole) in enumerate(zip(corrupted, mask, strict=True)):
        filling = image[hole]
        share = hole.double().mean().item()
        if (filling >= 100).all():
            kind = "replace"
            assert len(filling.unique()) == 1
            assert filling[0] != 100 + number
        else:
            kind = first
            assert (filling == 0).all() if first == "zeros" else len(filling.unique()) > 0.9 * len(filling)
            assert (filling < 100).all()
        count[kind] += 1
        low = ratios[f"{kind}_ratio"][0]
        assert low <= share < low + 1 / 16, "the share of the other kind"
    assert abs(count["replace"] - 300) < 5 * math.sqrt(600 / 4)


def test_all_channels_of_a_pixel_are_corrupted_together(path):
    for channels in (1, 3, 5):
        corrupted, mask = corrupt(numbered_images(4, channels), "zeros", generator=seeded())
        assert corrupted.shape[1] == channels
        assert mask.shape[1] == 1
        assert torch.equal(corrupted == 0, mask.expand(-1, channels, -1, -1))


@pytest.mark.parametrize("kinds", [["noise"], ["zeros"], ["replace"], ["noise", "replace"], ["zeros", "replace"]])
@pytest.mark.parametrize("fill", ["_fill_loop", "_fill_batched"])
def test_fills_obey_mask_kind_and_donor(fill, kinds):
    batch = 6
    pixel_values = numbered_images(batch)
    mask = torch.rand(batch, 1, HEIGHT, WIDTH, generator=seeded(1)) < 0.5
    mask[4], mask[5] = True, False
    kind = torch.arange(batch) % len(kinds)
    donor = torch.tensor([3, 0, 1, 4, 5, 2])
    corrupted = getattr(gmml, fill)(pixel_values, mask, kinds, kind, donor, seeded(), torch.device("cpu"))
    for image in range(batch):
        hole = mask[image].expand_as(pixel_values[image])
        result = corrupted[image]
        assert (result[~hole] == 100 + image).all()
        name = kinds[kind[image]]
        if name == "zeros":
            assert (result[hole] == 0).all()
        elif name == "replace":
            assert (result[hole] == 100 + donor[image]).all()
        elif image != 5:
            assert (result[hole].abs() < 10).all()
            assert result[hole].std().item() == pytest.approx(1, abs=0.1)
            assert len(result[hole].unique()) > 0.9 * hole.sum()


# Purity.


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_inputs_are_left_unchanged_and_unshared(path, corruption):
    pixel_values = images()
    copy = pixel_values.clone()
    corrupted, _ = corrupt(pixel_values, corruption, generator=seeded())
    assert torch.equal(pixel_values, copy)
    corrupted.fill_(7)
    assert torch.equal(pixel_values, copy)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_same_seed_same_result(path, corruption):
    first = corrupt(images(), corruption, generator=seeded(3))
    torch.manual_seed(99)
    again = corrupt(images(), corruption, generator=seeded(3))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("corruption", REAL_CORRUPTIONS)
def test_other_seed_other_result(path, corruption):
    first, second = (corrupt(images(), corruption, generator=seeded(seed)) for seed in (3, 4))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("corruption", REAL_CORRUPTIONS)
def test_a_generator_goes_on(path, corruption):
    generator = seeded()
    first, second = (corrupt(images(), corruption, generator=generator) for _ in range(2))
    assert not torch.equal(first[1], second[1])


def global_random_states():
    return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_global_random_states_are_left_alone(path, corruption):
    before = global_random_states()
    corrupt(images(), corruption, generator=seeded())
    assert global_random_states() == before


def test_without_a_generator_torch_alone_decides(path):
    before = global_random_states()
    torch.manual_seed(5)
    first = corrupt(images())
    torch.manual_seed(5)
    np.random.seed(1)
    random.seed(1)
    again = corrupt(images())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert global_random_states()[0] != before[0]


# Layouts of memory.


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_memory_layout_does_not_matter(path, layout, corruption):
    if layout == "channels_last":
        pixel_values = images().to(memory_format=torch.channels_last)
    elif layout == "sliced":
        pixel_values = images(8, 6, 2 * HEIGHT, WIDTH)[::2, ::2, ::2]
    elif layout == "transposed":
        pixel_values = images(height=WIDTH, width=HEIGHT).transpose(2, 3)
    else:
        pixel_values = images(channels=1).expand(-1, 3, -1, -1)
    assert not pixel_values.is_contiguous()
    corrupted, mask = corrupt(pixel_values, corruption, generator=seeded())
    expected_corrupted, expected_mask = corrupt(pixel_values.contiguous(), corruption, generator=seeded())
    assert torch.equal(corrupted, expected_corrupted)
    assert torch.equal(mask, expected_mask)


@pytest.mark.parametrize("corruption", REAL_CORRUPTIONS)
def test_an_accelerator_never_has_the_host_wait(monkeypatch, corruption):
    with pytest.raises(AssertionError, match="the host would wait"), NoWaiting():
        corrupt(images(), corruption, num_views=2)
    monkeypatch.setattr(gmml, "_mask_loop", gmml._mask_batched)
    monkeypatch.setattr(gmml, "_fill_loop", gmml._fill_batched)
    with NoWaiting() as called:
        corrupt(images(), corruption, num_views=2)
    assert "aten.where.self" in called.names


def test_images_that_want_gradients():
    """An adversary's or a learned augmentation's images are images too."""
    pixel_values = images().requires_grad_()
    corrupted, mask = corrupt(pixel_values, "zeros", generator=seeded())
    assert torch.equal(corrupted.detach(), pixel_values.detach().masked_fill(mask, 0))


# Bad settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"corruption": "blur"},
        {"corruption": "replace+noise"},
        {"corruption": ""},
        {"corruption": None},
        {"noise_ratio": (0.7, 0.5)},
        {"noise_ratio": (-0.1, 0.5)},
        {"zeros_ratio": (0.5, 0.91)},
        {"replace_ratio": (0.3,)},
        {"replace_ratio": (0.1, 0.2, 0.3)},
        {"noise_ratio": (0.5, float("nan"))},
        {"noise_ratio": 0.6},
        {"noise_ratio": None},
        {"block_size": (0.0, 0.25)},
        {"block_size": (0.25, 0.05)},
        {"block_size": (0.05, 1.1)},
        {"block_size": (0.1,)},
        {"block_size": 0.2},
        {"align_to_patches": True, "patch_size": 7},
        {"align_to_patches": True, "patch_size": 80},
        {"align_to_patches": True, "patch_size": 0},
        {"align_to_patches": True, "patch_size": -4},
        {"align_to_patches": True, "patch_size": (4, 4, 4)},
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"corruption|ratio|block_size|patch"):
        corrupt(images(), generator=seeded(), **settings)


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (2, 1, 3, 8, 8)])
def test_bad_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="batch, channels, height, width"):
        corrupt(torch.zeros(shape), generator=seeded())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match="floating point"):
        corrupt(torch.zeros(2, 3, 8, 8, dtype=dtype), generator=seeded())
