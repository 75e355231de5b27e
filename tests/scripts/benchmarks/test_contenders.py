"""The contenders do the work that they are said to do."""

import numpy as np
import PIL.Image
import pytest
import torch
from throughput import ours
from throughput.arithmetic import NUM_COUNTED, count_pretraining_flops, count_training_flops, matrix_rate
from throughput.photographs import photograph, write_photographs
from throughput.plain import CorruptedViews, PlainReference, TransformedImages, plain_view
from throughput.transformers_models import create_mae, create_mim
from transformers import ViTConfig, ViTForMaskedImageModeling

from modeling_sit import SiTConfig
from modeling_sit.data.sources import load_images
from modeling_sit.data.views import PAPER_VIEWS, ViewArguments
from modeling_sit.pretraining.loop import training_step
from modeling_sit.runtime.accelerator import create_accelerator

OVERRIDES = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,decoder_hidden_size=16,projection_hidden_size=16,"
    "projection_size=16,initializer_range=0.1"
)


@pytest.fixture
def pretraining(save_images, tmp_path, forget_accelerators):
    """A tiny run of ours, ready for its first batch."""
    forget_accelerators()
    folder = save_images(tmp_path / "images", 6)
    flags = ours.parse_flags(
        dataset=folder,
        output_dir=tmp_path / "run",
        image_size=16,
        patch_size=8,
        config_overrides=OVERRIDES,
        per_device_train_batch_size=4,
        teacher_momentum=0.5,
        base_learning_rate=0.064,  # 0.0001, 0.0002 and so on in the steps of the warm-up
    )
    return ours.prepare(flags, create_accelerator(cpu=True, mixed_precision="no"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_plain_step_is_ours(pretraining, monkeypatch, attention):
    """From the same clean and corrupted views: the same losses and weights, of the student and of the teacher."""
    plain = PlainReference(
        "plain",
        pretraining.method.student,
        pretraining.method.processor,
        pretraining.data.images.train,
        pretraining.flags.views,
        pretraining.schedule,
        batch_size=4,
        num_workers=0,
        attention=attention,
        flops_per_image=0,
    )
    before = {name: parameter.clone() for name, parameter in plain.student.named_parameters()}
    # Stochastic depth draws from the global generator, which our step seeds.
    for model in (pretraining.method.student, plain.student):
        for layer in model.vit.encoder.layer:
            layer.drop_path.drop_probability = 0.0
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        clean = torch.randn(8, 3, 16, 16, generator=generator)
        corrupted, mask = pretraining.method.processor.corrupt(clean, generator)
        monkeypatch.setattr(pretraining, "augment", [lambda crops, clean=clean: clean])
        with monkeypatch.context() as patch:
            patch.setattr(pretraining.method.processor, "corrupt", lambda *_, pair=(corrupted, mask), **__: pair)
            output, _ = training_step(pretraining, (torch.zeros(2, 4, 3, 16, 16, dtype=torch.uint8),), number)
        loss = plain.train_on((clean, corrupted, mask))
        assert loss.item() == pytest.approx(output.loss.item(), abs=1e-5)
    # What adds the same to all keys, or to all that a batch norm centres, has no gradient but rounding, which Adam enlarges;
    # the batch norm's running mean follows it.
    no_gradient = (
        "key.bias",
        "projection_head.mlp.0.bias",
        "projection_head.mlp.3.bias",
        "projection_head.mlp.6.bias",
        "running_mean",
    )
    for plains, our in (
        (plain.student, pretraining.method.student),
        (plain.teacher, pretraining.method.teacher.model),
    ):
        expected = our.state_dict()
        for name, value in plains.state_dict().items():
            if not name.endswith(no_gradient):
                torch.testing.assert_close(
                    value, expected[name], atol=1e-5, rtol=1e-5, msg=lambda message, name=name: f"{name}: {message}"
                )
    for name, parameter in plain.student.named_parameters():
        assert name.endswith(no_gradient) or (parameter - before[name]).abs().max() > 1e-4, name
    assert (plain.teacher.vit.layernorm.bias - plain.student.vit.layernorm.bias).abs().max() > 1e-4


def test_the_plain_views_are_those_of_the_method(pretraining):
    """Same mean and spread as the batched ones', from the same images, and corrupted as the processor does."""
    processor, images = pretraining.method.processor, pretraining.data.images.train
    settings = (ViewArguments(**PAPER_VIEWS), (16, 16), processor.image_mean, processor.image_std)
    transforms = [plain_view(settings[0], view, *settings[1:]) for view in range(2)]
    torch.manual_seed(0)
    dataset = TransformedImages(images, *transforms)
    loader = dataset.batches(2, 48, collate_fn=CorruptedViews(processor))
    (clean, corrupted, mask), _ = loader
    assert len(loader) == 2 and clean.shape == corrupted.shape == (96, 3, 16, 16) and mask.shape == (96, 1, 16, 16)
    batches = ours.OurRun("ours", pretraining).batches(12)
    (augment,) = pretraining.augment
    batched = augment(torch.cat([crops for (crops,) in batches], dim=1))
    for view, ours_of_view in zip(clean.chunk(2), batched.chunk(2), strict=True):
        assert view.mean().item() == pytest.approx(ours_of_view.mean().item(), abs=0.25)
        assert view.std().item() == pytest.approx(ours_of_view.std().item(), rel=0.25)
    outside = ~mask.expand_as(clean)
    assert torch.equal(corrupted[outside], clean[outside])
    assert 0.3 <= mask.float().mean() < 0.75


def test_the_plain_views_have_settings_of_their_own():
    """View 1 is blurred, view 2 solarized, as the arguments say."""
    image = PIL.Image.fromarray(photograph(np.random.default_rng(0)))
    chances = {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "crop_scale": [1.0, 1.0]}
    chances["color_jitter"] = [0.0] * 4
    arguments = ViewArguments(
        **chances, blur_probability=[1.0, 0.0], blur_sigma=[2.0, 2.0], solarize_probability=[0.0, 1.0]
    )
    torch.manual_seed(0)
    blurred, solarized = (plain_view(arguments, view, (112, 112), [0.0] * 3, [1.0] * 3)(image) for view in range(2))
    assert blurred.max() > 0.6 and solarized.max() <= 0.5
    roughness = [(view[..., 1:] - view[..., :-1]).abs().mean() / view.std() for view in (blurred, solarized)]
    assert roughness[0] < 0.7 * roughness[1]


def test_ours_reads_all_images_and_trains(pretraining):
    run = ours.OurRun("ours", pretraining)
    batches = list(run.batches(2))
    assert [crops.shape for (crops,) in batches] == [(2, 4, 3, 16, 16)] * 2
    weight = pretraining.method.student.vit.layernorm.weight.clone()
    assert run.train_on(batches[0]).isfinite() and run.number == 1
    assert not torch.equal(weight, pretraining.method.student.vit.layernorm.weight)
    # The next run goes on where this one stopped.
    assert torch.equal(next(iter(run.batches(1)))[0], batches[1][0])


def test_reading_here_gives_the_batches_of_workers(pretraining):
    assert ours.read_here(pretraining) is pretraining.data
    pretraining.flags.run.dataloader_num_workers = 2
    data = ours.read_here(pretraining)
    assert data is not pretraining.data
    both = [next(iter(each.batches(0, 1)))["crops"][0] for each in (data, pretraining.data)]
    assert torch.equal(*both)


def test_stages_leave_the_run_as_it_was(pretraining):
    run, method = ours.OurRun("ours", pretraining), pretraining.method
    owners = (pretraining, method, method.teacher, method.processor, pretraining.accelerator, pretraining.augment[0])
    before = [set(vars(owner)) for owner in owners]
    steps = run.time_stages(num_warmup_steps=1, num_steps=2)
    assert len(steps) == 2 and all(seconds > 0 for step in steps for seconds in step.values())
    assert [set(vars(owner)) for owner in owners] == before
    assert "project" not in vars(method.teacher) and "backward" not in vars(pretraining.accelerator)


def test_bare_arithmetic_changes_no_weight(pretraining):
    weights = {name: value.clone() for name, value in pretraining.method.student.named_parameters()}
    bare = ours.BareArithmetic("bare", pretraining)
    (batch,) = bare.batches(1)
    losses = [bare.train_on(batch) for _ in range(2)]
    assert all(loss > 0 for loss in losses)
    assert all(torch.equal(value, weights[name]) for name, value in pretraining.method.student.named_parameters())
    assert all(parameter.grad is None for parameter in pretraining.method.student.parameters())


@pytest.mark.parametrize("create", [create_mae, create_mim])
def test_transformers_models_train(create, pretraining):
    torch.manual_seed(0)
    contender = create(
        "theirs",
        pretraining.method.student.config,
        images=pretraining.data.images.train,
        processor=pretraining.method.processor,
        accelerator=pretraining.accelerator,
        batch_size=4,
        num_workers=0,
    )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"):
        assert getattr(contender.model.config, name) == getattr(pretraining.method.student.config, name)
    weights = [parameter.clone() for parameter in contender.model.parameters() if parameter.requires_grad]
    (batch,) = contender.batches(1)
    assert batch.shape == (4, 3, 16, 16)
    losses = [contender.train_on(batch).item() for _ in range(40)]
    if create is create_mae:
        assert contender.model.config.decoder_hidden_size == 16  # its own, not 512
    assert np.mean(losses[-10:]) < np.mean(losses[:10])  # each step masks other patches
    trained = [parameter for parameter in contender.model.parameters() if parameter.requires_grad]
    assert all(not torch.equal(*pair) for pair in zip(weights, trained, strict=True))
    assert contender.flops_per_image > 0 and contender.num_views == 1


def closed_form(config: SiTConfig) -> tuple[float, float, float, float, float]:
    """FLOPs of patch embedding, blocks, projection head and decoder for one view, forward, and of the blocks for the contrastive
    token alone: a multiplication and an addition are two."""
    tokens = 1 + (config.image_size // config.patch_size) ** 2
    width, patches, pixels = config.hidden_size, tokens - 1, config.patch_size**2 * config.num_channels
    linear = 4 * width**2 + 2 * width * config.intermediate_size
    layer = 2 * tokens * linear + 4 * tokens**2 * width
    # All tokens have keys and values; the rest is for one.
    last_layer = 4 * tokens * width**2 + 2 * (linear - 2 * width**2) + 4 * tokens * width
    hidden = config.projection_hidden_size
    projection = 2 * (width * hidden + hidden**2 + hidden * config.projection_size)
    decoder_width = config.decoder_hidden_size
    decoder = 2 * patches * (width * decoder_width + decoder_width**2 + decoder_width * pixels)
    num_layers = config.num_hidden_layers
    blocks, token_blocks = num_layers * layer, (num_layers - 1) * layer + last_layer
    return 2 * patches * pixels * width, blocks, projection, decoder, token_blocks


@pytest.mark.parametrize(
    "fields",
    [{}, {"hidden_size": 192, "num_attention_heads": 3, "image_size": 96}, {"contrastive_weight": 0.0}],
)
def test_counted_flops_are_the_closed_form(fields):
    """Student forward, and twice that backward; teacher forward without decoder, for the contrastive token; two views."""
    config = SiTConfig(**fields)
    embedding, blocks, projection, decoder, token_blocks = closed_form(config)
    has_contrast = config.contrastive_weight > 0
    # The images need no gradient.
    student = 2 * embedding + 3 * (blocks + decoder + (projection if has_contrast else 0))
    teacher = embedding + token_blocks + projection if has_contrast else 0
    assert count_pretraining_flops(config) == pytest.approx(2 * (student + teacher), rel=0.001)


def test_counted_flops_of_another_model():
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    config = ViTConfig(**sizes, image_size=64, patch_size=16, encoder_stride=16)
    masks = torch.empty(NUM_COUNTED, 16, dtype=torch.bool, device="meta")
    embedding, blocks, *_ = closed_form(SiTConfig(**sizes, image_size=64))
    decoder = 2 * 16 * 64 * 16 * 16 * 3
    counted = count_training_flops(ViTForMaskedImageModeling, config, bool_masked_pos=masks)
    assert counted == pytest.approx(2 * embedding + 3 * (blocks + decoder), rel=0.001)


def test_the_matrix_rate_is_one_of_a_machine():
    assert 1e9 < matrix_rate(torch.device("cpu"), torch.float32, repeats=2) < 1e14


def test_photographs_cost_what_photographs_cost(tmp_path):
    """Sizes of files as of images of this quality, much low and little high frequency, the same from the same seed."""
    write_photographs(tmp_path / "a", 3)
    write_photographs(tmp_path / "b", 3)
    files = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in files] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert 25_000 < path.stat().st_size < 120_000
        with PIL.Image.open(path) as image:
            assert (image.size, image.mode) == ((500, 375), "RGB")
    pixels = photograph(np.random.default_rng(0)).astype(float)
    assert 90 < pixels.mean() < 165 and 30 < pixels.std() < 70
    steps = np.abs(np.diff(pixels, axis=1)).mean()
    assert 1 < steps < 0.3 * pixels.std()
    assert len(load_images(str(tmp_path / "a")).train) == 3
