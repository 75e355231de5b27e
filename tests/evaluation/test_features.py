"""Features of a frozen encoder against a plain loop over images."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from modeling_sit import SiTImageProcessor, SiTModel
from modeling_sit.data.image_datasets import image_name
from modeling_sit.evaluation.feature_arguments import FeatureArguments, settle_features
from modeling_sit.evaluation.features import (
    _moved_together,
    evaluation_mode,
    extract_features,
    frozen_features,
    read_batch,
)
from modeling_sit.runtime.errors import SiTError

TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
}


def png(size, seed) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_dataset(encoded, labels=None) -> datasets.Dataset:
    columns = {"image": [{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(encoded)]}
    if labels is not None:
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [png((20 + index, 30 - index), index) for index in range(11)]


@pytest.fixture(scope="module")
def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def vit() -> ViTModel:
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**TINY_VIT), add_pooling_layer=False)


def slow_features(vit, encoded, processor) -> dict[str, torch.Tensor]:
    """One image at a time, each pooling spelled out."""
    rows = {"token": [], "mean": [], "token_mean": []}
    vit.eval()
    with torch.no_grad():
        for image in encoded:
            inputs = processor(PIL.Image.open(io.BytesIO(image)), return_tensors="pt")
            tokens = list(vit(**inputs).last_hidden_state[0])
            mean = sum(tokens[1:]) / 16
            rows["token"].append(tokens[0])
            rows["mean"].append(mean)
            rows["token_mean"].append(torch.tensor([*tokens[0].tolist(), *mean.tolist()]))
    return {pooling: torch.stack(features) for pooling, features in rows.items()}


@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_equals_a_loop_over_images(vit, images, processor, pooling, batch_size):
    labels = [index % 3 for index in range(11)]
    dataset = make_dataset(images, labels)
    result = extract_features(
        vit,
        dataset,
        processor,
        FeatureArguments(per_device_eval_batch_size=batch_size, pooling=pooling),
        progress=False,
    )
    torch.testing.assert_close(result.features, slow_features(vit, images, processor)[pooling], rtol=1e-4, atol=1e-5)
    assert (result.features.dtype, result.features.device.type) == (torch.float32, "cpu")
    assert (result.labels.dtype, result.labels.tolist(), result.skipped) == (torch.int64, labels, [])


def test_workers_change_nothing(vit, images, processor):
    dataset = make_dataset([*images[:5], b"broken", *images[5:]], list(range(12)))
    alone = extract_features(vit, dataset, processor, FeatureArguments(per_device_eval_batch_size=4), progress=False)
    shared = extract_features(
        vit,
        dataset,
        processor,
        FeatureArguments(per_device_eval_batch_size=4, dataloader_num_workers=2),
        progress=False,
    )
    torch.testing.assert_close(shared.features, alone.features)
    assert shared.labels.tolist() == alone.labels.tolist()
    assert shared.skipped == alone.skipped


def test_unreadable_images_are_skipped_and_named(vit, images, processor):
    # the second batch of three holds no image at all
    encoded = [*images[:2], b"not an image", b"", b"", b"", *images[2:4], images[4][:300]]
    dataset = make_dataset(encoded, list(range(9)))
    result = extract_features(vit, dataset, processor, FeatureArguments(per_device_eval_batch_size=3), progress=False)
    expected = slow_features(vit, images[:4], processor)["token"]
    torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)
    assert result.labels.tolist() == [0, 1, 6, 7]
    assert [name for name, _ in result.skipped] == [image_name(dataset, index) for index in (2, 3, 4, 5, 8)]
    assert result.skipped[1][1] == "it is empty (0 bytes)"


@pytest.mark.parametrize("pooling", ["token", "token_mean"])
def test_nothing_but_unreadable_images(vit, processor, pooling):
    dataset, arguments = make_dataset([b"", b""]), FeatureArguments(pooling=pooling)
    with pytest.raises(SiTError, match=r"none of 2 images can be read; the first, .*0\.png.*: it is empty"):
        frozen_features(vit, dataset, processor, arguments, progress=False)
    for rows in (range(2), range(0)):
        empty = frozen_features(vit, dataset, processor, arguments, progress=False, rows=rows)
        assert empty.features.shape == (0, 32 if pooling == "token" else 64) and len(empty.skipped) == len(rows)


def test_unreadable_images_are_logged_and_the_others_know_their_rows(vit, images, processor, caplog):
    dataset = make_dataset([images[0], b"broken", *images[2:5]])
    found = frozen_features(vit, dataset, processor, progress=False)
    assert found.rows.tolist() == [0, 2, 3, 4]
    assert caplog.messages == [f"skipped {image_name(dataset, 1)}: {found.skipped[0][1]}"]
    for feature, row in zip(found.features, found.rows.tolist(), strict=True):
        (alone,) = frozen_features(vit, dataset.select([row]), processor, progress=False).features
        torch.testing.assert_close(feature, alone, rtol=1e-4, atol=1e-5)
    some = frozen_features(vit, dataset, processor, progress=False, rows=range(1, 4))
    assert some.rows.tolist() == [2, 3] and some.skipped == found.skipped
    torch.testing.assert_close(some.features, found.features[1:3], rtol=1e-4, atol=1e-5)


def test_images_with_other_channels_are_told_in_a_line(vit, images, processor, caplog):
    two = io.BytesIO()
    np.save(two, np.zeros((16, 16, 2), np.uint8))
    dataset = make_dataset([*images[:2], *[two.getvalue()] * 5])
    frozen_features(vit, dataset, processor, progress=False)
    (message,) = caplog.messages
    assert "5 images, such as" in message and "2 channels" in message and "not 3" in message
    caplog.clear()
    with pytest.raises(SiTError) as error:
        frozen_features(vit, dataset.select(range(2, 7)), processor, progress=False)
    assert error.value.remedy and "2 channels" in error.value.problem and not caplog.messages


def test_features_that_are_not_finite(images, processor):
    vit = ViTModel(ViTConfig(**TINY_VIT), add_pooling_layer=False)
    vit.layernorm.bias.data[0] = float("nan")
    with pytest.raises(SiTError, match="not finite") as error:
        frozen_features(vit, make_dataset(images), processor, progress=False)
    assert error.value.argument == "model_name_or_path"


def test_batch_with_an_unreadable_image_and_more_settings_of_the_processor(images):
    processor = SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8, do_corrupt=True)
    dataset = make_dataset([images[0], b"broken"])
    pixel_values, readable, unreadable = read_batch([1, 0], dataset, processor, 3, do_corrupt=False)
    assert readable.tolist() == [0, 1] and [index for index, _ in unreadable] == [1]
    assert pixel_values[0].flatten(1).std(dim=1).max() == 0  # gray
    expected = processor(PIL.Image.open(io.BytesIO(images[0])), do_corrupt=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values[1:], expected)


def test_without_labels(vit, images, processor):
    assert extract_features(vit, make_dataset(images), processor, progress=False).labels is None


def test_head_is_left_out(images, processor):
    classifier = ViTForImageClassification(ViTConfig(**TINY_VIT))
    dataset = make_dataset(images)
    torch.testing.assert_close(
        extract_features(classifier, dataset, processor, progress=False).features,
        extract_features(classifier.vit, dataset, processor, progress=False).features,
    )


def test_register_tokens_are_no_patches(images, processor):
    config = Dinov2WithRegistersConfig(**TINY_VIT, num_register_tokens=3)
    model = Dinov2WithRegistersModel(config).eval()
    result = extract_features(
        model, make_dataset(images[:1]), processor, FeatureArguments(pooling="mean"), progress=False
    )
    with torch.no_grad():
        inputs = processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")
        patches = model(**inputs).last_hidden_state[:, -16:]
    torch.testing.assert_close(result.features, patches.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_an_encoder_that_calls_its_blocks_its_base(images, processor):
    model = DINOv3ViTModel(DINOv3ViTConfig(**TINY_VIT, num_register_tokens=2)).eval()
    result = extract_features(model, make_dataset(images[:1]), processor, progress=False)
    with torch.no_grad():
        inputs = processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")
        token = model(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(result.features, token, rtol=1e-4, atol=1e-5)


def test_frozen_while_it_runs_and_as_it_was_after(images, processor):
    model = ViTModel(ViTConfig(**TINY_VIT, hidden_dropout_prob=0.5), add_pooling_layer=False).train()
    model.layernorm.eval()
    before = {name: module.training for name, module in model.named_modules()}
    dataset = make_dataset(images)
    first, second = (extract_features(model, dataset, processor, progress=False).features for _ in range(2))
    assert torch.equal(first, second)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_every_module_is_put_back_in_its_mode():
    networks = [torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout()) for _ in range(2)]
    networks[0][1].eval()
    networks[1].eval()
    before = [module.training for network in networks for module in network.modules()]
    with pytest.raises(ZeroDivisionError), evaluation_mode(*networks):
        assert not any(module.training for network in networks for module in network.modules())
        raise ZeroDivisionError
    assert [module.training for network in networks for module in network.modules()] == before


def test_a_probe_can_be_trained_on_the_features(vit, images, processor):
    features = extract_features(vit, make_dataset(images), processor, progress=False).features
    assert not features.requires_grad
    probe = torch.nn.Linear(32, 2)
    probe(features).sum().backward()
    torch.testing.assert_close(probe.weight.grad[0], features.sum(dim=0))


def test_half_precision_encoder_gives_float32(vit, images, processor):
    half = ViTModel(vit.config, add_pooling_layer=False).to(torch.bfloat16)
    half.load_state_dict(vit.state_dict())
    result = extract_features(
        half, make_dataset(images[:1]), processor, FeatureArguments(pooling="mean"), progress=False
    )
    inputs = processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")
    with torch.no_grad():
        patches = half(inputs["pixel_values"].bfloat16()).last_hidden_state[:, 1:]
    assert (patches.dtype, result.features.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(result.features, patches.float().mean(dim=1))


def test_progress_counts_images(vit, images, processor, monkeypatch, capsys):
    monkeypatch.setattr("modeling_sit.runtime.progress.shows_bar", lambda stream: True)
    extract_features(vit, make_dataset([*images, b""]), processor, FeatureArguments(per_device_eval_batch_size=5))
    assert "12/12" in (shown := capsys.readouterr().err) and "images/s" in shown
    extract_features(vit, make_dataset(images), processor, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("pooling", ["token", "mean", "token_mean"])
def test_a_model_is_read_as_its_configuration_says(tiny_config, images, processor, pooling):
    model, dataset = SiTModel(tiny_config(pooling=pooling)), make_dataset(images)
    asked = [
        extract_features(model, dataset, processor, FeatureArguments(pooling=name), progress=False).features
        for name in (None, pooling, "token")
    ]
    assert torch.equal(asked[0], asked[1]) and torch.equal(asked[0], asked[2]) == (pooling == "token")


def test_another_models_word_for_pooling_is_none_of_ours(vit):
    config = ViTConfig(**TINY_VIT, pooling="attention")
    assert settle_features(FeatureArguments(), config).pooling == "token"
    assert settle_features(FeatureArguments(), vit.config).pooling == "token"


def test_unknown_pooling_is_an_error(vit, images, processor):
    with pytest.raises(SiTError, match="'cls', only token, mean, token_mean") as error:
        extract_features(vit, make_dataset(images), processor, FeatureArguments(pooling="cls"))
    assert error.value.argument == "pooling"


def test_the_token_of_distillation_is_of_no_patch(images, processor):
    model = DeiTModel(DeiTConfig(**TINY_VIT), add_pooling_layer=False).eval()
    arguments = FeatureArguments(pooling="mean")
    result = extract_features(model, make_dataset(images[:1]), processor, arguments, progress=False)
    with torch.no_grad():
        tokens = model(**processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")).last_hidden_state
    assert tokens.shape[1] == 2 + 16
    torch.testing.assert_close(result.features, tokens[:, 2:].mean(dim=1), rtol=1e-4, atol=1e-5)


def test_encoder_without_a_token_of_the_image(images, processor):
    """All of its tokens are of patches; the first one is of the upper left corner."""
    sizes = {name: value for name, value in TINY_VIT.items() if name != "qkv_bias"}
    model = IJepaModel(IJepaConfig(**sizes), add_pooling_layer=False).eval()
    dataset = make_dataset(images[:1])
    for pooling in ("token", "token_mean"):
        with pytest.raises(SiTError) as error:
            extract_features(model, dataset, processor, FeatureArguments(pooling=pooling), progress=False)
        assert error.value.argument == "pooling"
    result = extract_features(model, dataset, processor, FeatureArguments(pooling="mean"), progress=False)
    with torch.no_grad():
        tokens = model(**processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(result.features, tokens.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_encoder_without_tokens_is_an_error(images, processor):
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"))
    with pytest.raises(SiTError, match=r"resnet gives .*\(11, 8, 2, 2\), not \(batch, tokens, hidden_size\)"):
        extract_features(resnet, make_dataset(images), processor, progress=False)


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_layer_is_what_that_block_gives(vit, images, processor, pooling):
    vit.eval()
    dataset = make_dataset(images)
    inputs = processor([PIL.Image.open(io.BytesIO(image)) for image in images], return_tensors="pt")
    with torch.no_grad():
        embedded = vit.embeddings(inputs["pixel_values"])
        first = vit.layers[0](embedded, None)
        second = vit.layers[1](first, None)
    tokens = {0: embedded, 1: first, 2: second, -1: vit.layernorm(second), -2: first, -3: embedded}
    for layer, expected in tokens.items():
        result = extract_features(
            vit, dataset, processor, FeatureArguments(layer=layer, pooling=pooling), progress=False
        )
        expected = expected[:, 0] if pooling == "token" else expected[:, 1:].mean(dim=1)
        torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [3, -4])
def test_layer_that_is_not_there(vit, images, processor, layer):
    with pytest.raises(SiTError, match=f"no layer {layer}: .* to 2 .*back to -3") as error:
        extract_features(vit, make_dataset(images), processor, FeatureArguments(layer=layer))
    assert error.value.argument == "layer"


def test_several_labels(vit, images, processor):
    column = [[0, 2], [], [1], None, *[[2]] * 7]
    dataset = make_dataset([*images[:4], b"broken", *images[5:]], column)
    dataset = dataset.cast_column("label", datasets.List(datasets.ClassLabel(names=["a", "b", "c"])))
    result = extract_features(vit, dataset, processor, progress=False)
    expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [-1, -1, -1], *[[0, 0, 1]] * 6]
    assert (result.labels.dtype, result.labels.tolist()) == (torch.float32, expected)


class OneOfThree:
    """What `extract_features` asks of an accelerator, in one of three processes that are run one after the other."""

    def __init__(self, process_index):
        self.num_processes, self.process_index, self.device = 3, process_index, torch.device("cpu")
        self.batches = []

    def gather(self, batch):
        self.batches.append(batch)
        return batch


@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_processes_share_the_images_in_order(vit, images, processor, batch_size, monkeypatch):
    monkeypatch.setattr("modeling_sit.evaluation.features.gather_object", lambda own: own)
    dataset = make_dataset([*images[:6], b"broken", *images[7:]], list(range(11)))
    alone = extract_features(vit, dataset, processor, progress=False)
    processes = [OneOfThree(process_index) for process_index in range(3)]
    for process in processes:
        extract_features(
            vit,
            dataset,
            processor,
            FeatureArguments(per_device_eval_batch_size=batch_size),
            accelerator=process,
            progress=False,
        )
    # What `gather` would give, batch after batch, with what is too much at the end.
    gathered = [batch for number in zip(*(process.batches for process in processes), strict=True) for batch in number]
    features, readable = (torch.cat(column)[:11] for column in zip(*gathered, strict=True))
    assert readable.tolist() == [1] * 6 + [0] + [1] * 4
    torch.testing.assert_close(features[readable.bool()], alone.features)


def test_nothing_is_drawn_from_the_global_generator(vit, images, processor):
    before = torch.get_rng_state()
    extract_features(vit, make_dataset(images), processor, progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("per_device_eval_batch_size", 0), ("dataloader_num_workers", -1), ("dataloader_timeout", 0)],
)
def test_arguments_out_of_range(argument, value):
    with pytest.raises(SiTError) as error:
        FeatureArguments(**{argument: value})
    assert error.value.argument == argument


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_readable_rows_are_moved_together_in_place(chunk_size):
    features = torch.arange(40.0).reshape(20, 2)
    readable = torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.7
    expected = features[readable]
    moved = _moved_together(features, readable, chunk_size)
    assert torch.equal(moved, expected) and moved.data_ptr() == features.data_ptr()


def test_tokens_of_detection_are_of_no_patch(images, processor):
    model = YolosModel(YolosConfig(**{**TINY_VIT, "image_size": [16, 16]}, num_detection_tokens=5)).eval()
    inputs = processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    assert tokens.shape[1] == 1 + 16 + 5
    for pooling, expected in (("token", tokens[:, 0]), ("mean", tokens[:, 1:17].mean(dim=1))):
        arguments = FeatureArguments(pooling=pooling)
        result = extract_features(model, make_dataset(images[:1]), processor, arguments, progress=False)
        torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reg_tokens", "class_token"), [(0, True), (3, True), (0, False)])
def test_timm_counts_the_tokens_in_front_of_the_patches(images, processor, reg_tokens, class_token):
    """Its configuration has no size of patches."""
    sizes = {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    front = {"reg_tokens": reg_tokens, "class_token": class_token, "global_pool": "avg"}
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args={**sizes, **front, "patch_size": 4})
    model = TimmWrapperModel(config).eval()
    dataset = make_dataset(images[:1])
    inputs = processor(PIL.Image.open(io.BytesIO(images[0])), return_tensors="pt")
    with torch.no_grad():
        tokens = model(**inputs).last_hidden_state
    assert tokens.shape[1] == 16 + reg_tokens + class_token
    mean = extract_features(model, dataset, processor, FeatureArguments(pooling="mean"), progress=False).features
    torch.testing.assert_close(mean, tokens[:, -16:].mean(dim=1), rtol=1e-4, atol=1e-5)
    if class_token:
        token = extract_features(model, dataset, processor, FeatureArguments(pooling="token"), progress=False).features
        torch.testing.assert_close(token, tokens[:, 0], rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(SiTError, match="no token of the whole image"):
            extract_features(model, dataset, processor, FeatureArguments(pooling="token"), progress=False)
