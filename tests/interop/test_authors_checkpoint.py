"""The authors' checkpoints, against a second implementation of their network."""

import pytest
import torch
from authors_network import AuthorsNetwork, random_network, save_checkpoint

from modeling_sit import SiTForPreTraining, SiTModel
from modeling_sit.interop.convert_in import read_checkpoint
from modeling_sit.runtime.errors import SiTError


@pytest.fixture(scope="module")
def networks():
    return {"student": random_network(0), "teacher": random_network(1)}


@pytest.fixture(scope="module")
def checkpoint(networks, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("authors") / "checkpoint.pth", **networks)


def images(size=16, channels=3):
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(2))


def assert_gives_the_same(read, network, images):
    """Features, reconstruction and projection; features of the backbone alone too."""
    with torch.no_grad():
        tokens, reconstruction, projection = network(images)
        output = read.create_model(SiTForPreTraining)[0](images)
        features = read.create_model(SiTModel)[0](images).last_hidden_state
    for ours, theirs in ((features, tokens), (output.reconstruction, reconstruction), (output.projection, projection)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("chosen", ["student", "teacher", None])
def test_gives_what_the_network_gives(checkpoint, networks, chosen):
    read = read_checkpoint(str(checkpoint), network=chosen, num_attention_heads=3)
    assert_gives_the_same(read, networks[chosen or "teacher"], images())
    assert any(note.startswith(f"its {chosen or 'teacher'} is used") for note in read.notes)


@pytest.mark.parametrize(
    "sizes",
    [
        {"patch": 4, "size": 12, "channels": 1, "depth": 3, "mlp": 2},
        {"width": 64, "heads": 1, "hidden": 8, "out": 4},
        {"depth": 11, "width": 8, "heads": 2},
    ],
    ids=["grey_of_3_x_3_patches", "heads_by_convention", "two_digits_of_blocks"],
)
def test_sizes_come_from_the_shapes(tmp_path, sizes):
    network = random_network(3, **sizes)
    heads = None if sizes.get("width") == 64 else network.heads
    read = read_checkpoint(str(save_checkpoint(tmp_path / "c.pth", network)), num_attention_heads=heads)
    assert_gives_the_same(read, network, images(sizes.get("size", 16), sizes.get("channels", 3)))


def test_config_says_what_the_heads_are(checkpoint):
    config = read_checkpoint(str(checkpoint), num_attention_heads=3).config
    assert (config.decoder_num_hidden_layers, config.decoder_hidden_size) == (3, 24)
    assert (config.projection_first_act, config.projection_output_norm) == ("relu", True)
    assert (config.projection_hidden_size, config.projection_size) == (20, 12)


def test_survives_a_folder_of_this_package(checkpoint, networks, tmp_path):
    model = read_checkpoint(str(checkpoint), num_attention_heads=3).create_model(SiTForPreTraining)[0]
    model.save_pretrained(tmp_path)
    saved = SiTForPreTraining.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        _, reconstruction, projection = networks["teacher"](images())
        output = saved(images())
    torch.testing.assert_close(output.reconstruction, reconstruction, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.projection, projection, rtol=0, atol=1e-4)


def test_has_the_parameters_of_the_public_copy(tmp_path):
    """One network of ViT-S/16: backbone, projection head and decoder as large as is known of it."""
    with torch.device("meta"):
        network = AuthorsNetwork(384, 12, 6, size=224, patch=16, hidden=4096, out=256)
    weights = {name: torch.zeros(()).expand(value.shape) for name, value in network.state_dict().items()}
    path = tmp_path / "copy.pth"
    torch.save(weights, path)
    read = read_checkpoint(str(path))
    with torch.device("meta"):
        model = SiTForPreTraining(read.config)
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()}
    assert counts == {"vit": 21_665_664, "decoder": 738_435, "projection_head": 19_423_488}
    assert (read.config.num_attention_heads, read.config.image_size, read.config.patch_size) == (6, 224, 16)
    assert model.state_dict().keys() == read.state_dict.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_network_alone(tmp_path, networks, prefix, suffix):
    import safetensors.torch

    weights = {f"{prefix}{name}": value for name, value in networks["student"].state_dict().items()}
    path = tmp_path / f"network{suffix}"
    torch.save(weights, path) if suffix == ".pth" else safetensors.torch.save_file(weights, path)
    assert_gives_the_same(read_checkpoint(str(path), num_attention_heads=3), networks["student"], images())
    with pytest.raises(SiTError, match="one network") as error:
        read_checkpoint(str(path), num_attention_heads=3, network="teacher")
    assert error.value.argument == "network"


def test_a_network_that_is_not_there(tmp_path, networks):
    path = save_checkpoint(tmp_path / "c.pth", networks["student"])
    with pytest.raises(SiTError, match="no teacher, only the student") as error:
        read_checkpoint(str(path), network="teacher", num_attention_heads=3)
    assert error.value.argument == "network"
    assert_gives_the_same(read_checkpoint(str(path), num_attention_heads=3), networks["student"], images())


def save_changed(path, network, change):
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    change(weights)
    torch.save({"teacher": weights}, path)
    return str(path)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.blocks.1.attn.qkv.weight",
        "backbone.norm.bias",
        "head_recons.mlp.2.weight",
        "head.mlp.4.running_var",
        "head.mlp.0.weight",
        "head_recons.convTrans.bias",
    ],
)
def test_a_weight_that_is_missing_is_named(tmp_path, networks, name):
    path = save_changed(tmp_path / "c.pth", networks["teacher"], lambda weights: weights.pop(f"module.{name}"))
    place = name.removeprefix("backbone.").replace("head_recons.", "").replace("head.", "").replace("convTrans.", "")
    with pytest.raises(SiTError, match=f"c.pth.*{place}"):
        read_checkpoint(path, num_attention_heads=3)


def test_weights_without_a_place_are_named(tmp_path, networks):
    def change(weights):
        weights["module.backbone.blocks.0.attn.q_norm.weight"] = torch.zeros(8)
        weights["module.backbone.blocks.1.attn.k_norm.weight"] = torch.zeros(8)

    with pytest.raises(SiTError, match=r"also has.*blocks\.0\.attn\.q_norm\.weight.*blocks\.1\.attn\.k_norm\.weight"):
        read_checkpoint(save_changed(tmp_path / "c.pth", networks["teacher"], change), num_attention_heads=3)


def test_a_wider_head_than_the_config_can_say_is_refused(tmp_path, networks):
    def change(weights):
        weights["module.head.mlp.9.weight"] = torch.zeros(3, 3)

    with pytest.raises(SiTError, match=r"projection_head\.mlp\.9\.weight"):
        read_checkpoint(save_changed(tmp_path / "c.pth", networks["teacher"], change), num_attention_heads=3)


def test_heads_that_are_not_there_are_new(tmp_path, networks):
    """The teacher of a run without reconstruction, or with neither head: its backbone is what it is."""
    for gone in (("module.head_recons.",), ("module.head_recons.", "module.head.")):

        def change(weights, gone=gone):
            for name in [name for name in weights if name.startswith(gone)]:
                del weights[name]

        path = save_changed(tmp_path / "c.pth", networks["teacher"], change)
        read = read_checkpoint(path, num_attention_heads=3)
        assert not any(name.startswith("decoder.") for name in read.state_dict)
        with torch.no_grad():
            features = read.create_model(SiTForPreTraining)[0].vit(images()).last_hidden_state
            torch.testing.assert_close(features, networks["teacher"].tokens(images()), rtol=0, atol=1e-5)


def test_dinos_head_is_left_out_and_named(tmp_path, networks):
    """The same prefixes, and another head."""
    weights = {
        f"module.{name}": value
        for name, value in networks["teacher"].state_dict().items()
        if name.startswith("backbone.")
    }
    dino = {f"module.head.mlp.{place}.weight": torch.zeros(3, 3) for place in (0, 2, 4)}
    dino["module.head.last_layer.weight_g"] = torch.zeros(3, 1)
    path = save_checkpoint(tmp_path / "c.pth", networks["student"], teacher=None)
    torch.save({"student": weights | dino, "teacher": weights | dino}, path)
    read = read_checkpoint(str(path), num_attention_heads=3)
    assert any("head.mlp.0-4.weight, head.last_layer.weight_g" in note for note in read.notes)
    with torch.no_grad():
        features = read.create_model(SiTModel)[0](images()).last_hidden_state
    torch.testing.assert_close(features, networks["teacher"].tokens(images()), rtol=0, atol=1e-5)


def test_heads_must_be_said_where_the_convention_does_not_hold(checkpoint):
    with pytest.raises(SiTError, match=r"width of 24.*`num_attention_heads`"):
        read_checkpoint(str(checkpoint))
    with pytest.raises(SiTError, match=r"hidden_size=24.*num_attention_heads=5"):
        read_checkpoint(str(checkpoint), num_attention_heads=5)


def test_the_images_must_be_square(tmp_path, networks):
    def change(weights):
        weights["module.backbone.pos_embed"] = torch.zeros(1, 1 + 6, 24)

    with pytest.raises(SiTError, match="7 positions"):
        read_checkpoint(save_changed(tmp_path / "c.pth", networks["teacher"], change), num_attention_heads=3)


def test_reading_is_no_randomness(checkpoint):
    before = torch.get_rng_state()
    read_checkpoint(str(checkpoint), num_attention_heads=3)
    assert torch.equal(torch.get_rng_state(), before)
