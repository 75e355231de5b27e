"""The one loader: checkpoints of every format to go on from, to fine-tune, to measure, to look at and to convert."""

import json

import pytest
import safetensors.torch
import timm
import torch
import transformers
from authors_network import random_network, save_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from modeling_sit import (
    SiTBackbone,
    SiTConfig,
    SiTForImageClassification,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForPreTraining,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
    SiTModel,
)
from modeling_sit.evaluation.encoder import load_encoder
from modeling_sit.finetuning.arguments import FinetuningArguments
from modeling_sit.finetuning.classifier import load_classifier
from modeling_sit.interop.load import load_checkpoint, read_config
from modeling_sit.interop.plain_vit import write_plain_vit
from modeling_sit.interop.resize import interpolate_positions
from modeling_sit.interop.safetensors import MODEL_CLASSES, write_safetensors
from modeling_sit.interop.timm import write_timm_folder
from modeling_sit.pretraining.arguments import CorruptionArguments, ModelArguments
from modeling_sit.pretraining.model_setup import create_config, create_processor, create_student
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.models import load_reconstructing_model

POSITIONS = "vit.embeddings.position_embeddings"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
IMAGES = {"image_size": 16, "patch_size": 8}
SMALL_HEADS = "decoder_hidden_size=8,projection_hidden_size=8,projection_size=8"


@pytest.fixture(scope="module")
def networks():
    return {"student": random_network(0), "teacher": random_network(1)}


@pytest.fixture(scope="module")
def authors(networks, tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("authors") / "checkpoint.pth", **networks))


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES, **IMAGES, **decoder)).save_pretrained(folder)
    transformers.ViTImageProcessor(image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes), folder, model_args=sizes)
    return str(folder)


def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def student_of(seed=0, **flags):
    arguments = ModelArguments(**flags)
    return create_student(create_config(arguments, 10), arguments, seed)


@pytest.fixture(scope="module")
def sit_file(tmp_path_factory):
    """A pretrained SiT in one file, and the model."""
    sizes = {"decoder_hidden_size": 8, "projection_hidden_size": 8, "projection_size": 8}
    model = SiTForPreTraining(SiTConfig(**SIZES, **IMAGES, **sizes)).eval()
    path = tmp_path_factory.mktemp("sit") / "sit.safetensors"
    write_safetensors(model, SiTImageProcessor(image_mean=[0.1] * 3, image_std=[0.2] * 3), path)
    return str(path), model


class TestSitFile:
    """What `convert_checkpoint.py --format safetensors` writes."""

    def test_pretraining_goes_on_with_every_head(self, sit_file):
        path, model = sit_file
        student = student_of(model_name_or_path=path).eval()
        torch.testing.assert_close(student.state_dict(), model.state_dict(), rtol=0, atol=0)

    def test_is_measured_and_looked_at(self, sit_file):
        path, model = sit_file
        encoder, processor = load_encoder(path)
        reconstructing, _ = load_reconstructing_model(path)
        with torch.no_grad():
            expected = model(images())
            assert torch.equal(encoder(images()).last_hidden_state, model.vit(images()).last_hidden_state)
            assert torch.equal(reconstructing(images()).reconstruction, expected.reconstruction)
        assert list(processor.image_mean) == [0.1] * 3

    def test_a_classifier_gives_its_encoder(self, tmp_path, capsys):
        model = SiTForImageClassification(SiTConfig(**SIZES, **IMAGES, num_labels=3)).eval()
        write_safetensors(model, None, tmp_path / "classifier.safetensors")
        encoder, _ = load_encoder(str(tmp_path / "classifier.safetensors"))
        torch.testing.assert_close(encoder.state_dict(), model.vit.state_dict(), rtol=0, atol=0)
        told = capsys.readouterr().err
        assert "its classifier" in told and "normalized as ImageNet's" in told

    @pytest.mark.parametrize("flag", [{"network": "teacher"}, {"num_attention_heads": 3}])
    def test_says_itself_what_other_files_do_not(self, sit_file, flag):
        for load in (load_encoder, load_checkpoint):
            with pytest.raises(SiTError, match="this one says that itself") as error:
                load(sit_file[0], **flag)
            assert error.value.argument == next(iter(flag))

    def test_damaged(self, sit_file, tmp_path):
        with safe_open(sit_file[0], framework="pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        del weights["vit.layernorm.bias"]
        save_file(weights, tmp_path / "sit.safetensors", metadata)
        with pytest.raises(SiTError, match=r"sit\.safetensors: .*vit\.layernorm\.bias"):
            load_encoder(str(tmp_path / "sit.safetensors"))


class TestPretraining:
    @pytest.mark.parametrize("chosen", ["student", None])
    def test_goes_on_from_the_authors_checkpoint(self, authors, networks, chosen, capsys):
        student = student_of(model_name_or_path=authors, network=chosen, num_attention_heads=3).eval()
        with torch.no_grad():
            _, reconstruction, projection = networks[chosen or "teacher"](images())
            output = student(images())
        torch.testing.assert_close(output.reconstruction, reconstruction, rtol=0, atol=1e-4)
        torch.testing.assert_close(output.projection, projection, rtol=0, atol=1e-4)
        assert student.config.reconstruction_weight == 5  # as for any start on few images
        assert f"checkpoint.pth: its {chosen or 'teacher'} is used" in capsys.readouterr().err

    def test_of_other_heads_on_request(self, authors, networks):
        """The backbone stays."""
        student = student_of(model_name_or_path=authors, num_attention_heads=3, config_overrides=SMALL_HEADS).eval()
        assert student.projection_head.mlp[-2].weight.shape == (8, 8)
        with torch.no_grad():
            features = student.vit(images()).last_hidden_state
            torch.testing.assert_close(features, networks["teacher"].tokens(images()), rtol=0, atol=1e-4)

    def test_of_another_backbone_than_asked_for(self, authors):
        with pytest.raises(SiTError, match=r"checkpoint\.pth.*another backbone"):
            student_of(model_name_or_path=authors, num_attention_heads=3, config_overrides="hidden_size=48")

    @pytest.mark.parametrize("source", ["authors", "mae", "timm_folder"])
    def test_starts_from(self, request, source):
        """New heads come from the seed, whatever else is random."""
        name = request.getfixturevalue(source)
        flags = {"model_name_or_path": name, "config_overrides": SMALL_HEADS}
        flags |= {"num_attention_heads": 3} if source == "authors" else {}
        first, second = student_of(**flags).state_dict(), student_of(**flags).state_dict()
        other = student_of(seed=1, **flags).state_dict()
        for weight in first:
            assert torch.equal(first[weight], second[weight])
            assert not weight.startswith("vit.") or torch.equal(first[weight], other[weight])
        assert not torch.equal(first["decoder.mlp.0.weight"], other["decoder.mlp.0.weight"])

    def test_of_mae_keeps_its_heads_to_itself(self, mae):
        config = create_config(ModelArguments(model_name_or_path=mae), 10)
        assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (2048, 2)

    def test_normalizes_as_the_source_does(self, mae, timm_folder, authors):
        def normalization(**flags):
            arguments = ModelArguments(**flags)
            processor = create_processor(create_config(arguments, 10), arguments, CorruptionArguments())
            return processor.image_mean[0], processor.image_std[0]

        assert normalization(model_name_or_path=mae) == (0.1, 0.2)
        assert normalization(model_name_or_path=timm_folder) == (0.5, 0.5)
        assert normalization(model_name_or_path=authors, num_attention_heads=3) == (0.485, 0.229)
        assert normalization(model_name_or_path=mae, image_mean=[0.3] * 3) == (0.3, 0.2)

    @pytest.mark.parametrize("source", ["authors", "sit", "vit", "mae"])
    def test_for_images_of_another_size(self, request, source, tmp_path, save_tiny_sit):
        """Positions are interpolated, nothing else is touched; without the flag they stay as they are."""
        flags = {"config_overrides": SMALL_HEADS}
        if source == "sit":
            name = str(save_tiny_sit(tmp_path))
            flags = {}
        elif source == "vit":
            transformers.ViTModel(transformers.ViTConfig(**SIZES, **IMAGES)).save_pretrained(tmp_path)
            name = str(tmp_path)
        else:
            name = request.getfixturevalue(source)
            flags = {"num_attention_heads": 3} if source == "authors" else flags
        before = student_of(model_name_or_path=name, **flags)
        after = student_of(model_name_or_path=name, image_size=40, **flags)
        assert (before.config.image_size, after.config.image_size) == (16, 40)
        assert after.eval()(torch.zeros(2, 3, 40, 40)).reconstruction.shape == (2, 3, 40, 40)
        before, after = before.state_dict(), after.state_dict()
        expected = interpolate_positions(before[POSITIONS], (2, 2), (5, 5))
        assert after[POSITIONS].shape == (1, 26, expected.shape[-1])
        torch.testing.assert_close(after[POSITIONS], expected)
        for weight in before.keys() - {POSITIONS}:
            if source in ("authors", "sit") or weight.startswith("vit."):
                assert torch.equal(before[weight], after[weight]), weight

    def test_for_images_of_the_size_that_it_knows(self, authors):
        flags = {"model_name_or_path": authors, "num_attention_heads": 3}
        before, after = student_of(**flags).state_dict(), student_of(image_size=16, **flags).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize(
        ("flags", "argument"),
        [
            ({"image_size": 20}, "image_size"),
            ({"patch_size": 4}, "patch_size"),
            ({"model_size": "tiny"}, "model_size"),
            ({"num_attention_heads": None}, "num_attention_heads"),
        ],
    )
    def test_arguments_that_do_not_fit(self, authors, flags, argument):
        with pytest.raises(SiTError) as error:
            create_config(ModelArguments(**{"model_name_or_path": authors, "num_attention_heads": 3, **flags}), 10)
        assert argument in str(error.value)

    @pytest.mark.parametrize("flag", [{"network": "student"}, {"num_attention_heads": 2}])
    def test_flags_of_files_are_not_ignored(self, flag, mae):
        for name in (None, mae, "someone/some-vit"):
            with pytest.raises(SiTError, match="is for a `model_name_or_path` that is a file") as error:
                create_config(ModelArguments(model_name_or_path=name, **flag), 10)
            assert error.value.argument == next(iter(flag))

    def test_of_what_a_sit_cannot_be(self, tmp_path):
        """Else its weights were silently random, or its config's numbers meant something else."""
        transformers.BeitConfig().save_pretrained(tmp_path)
        transformers.IJepaModel(transformers.IJepaConfig(**SIZES, **IMAGES)).save_pretrained(tmp_path / "ijepa")
        with pytest.raises(SiTError, match=r"ijepa: .*no token in front"):
            student_of(model_name_or_path=str(tmp_path / "ijepa"))
        with pytest.raises(SiTError, match="beit"):
            student_of(model_name_or_path=str(tmp_path))


def finetuning(name, **flags):
    return FinetuningArguments(dataset="some", model_name_or_path=name, **flags)


class TestFinetuning:
    @pytest.mark.parametrize("source", ["authors", "mae", "timm_folder"])
    def test_starts_from(self, request, source, capsys):
        name = request.getfixturevalue(source)
        flags = {"num_attention_heads": 3} if source == "authors" else {}
        processor, model = load_classifier(finetuning(name, pooling="mean", **flags), ["a", "b"], False)
        encoder, _ = load_encoder(name, **flags)
        with torch.no_grad():
            tokens = encoder(images()).last_hidden_state
            expected = model.classifier(tokens[:, 1:].mean(dim=1))
            torch.testing.assert_close(model.eval()(images()).logits, expected)
        assert model.config.id2label == {0: "a", 1: "b"}
        assert (processor.size.height, processor.size.width) == (16, 16)

    def test_of_another_size_and_from_scratch(self, authors):
        flags = {"num_attention_heads": 3, "image_size": 24}
        processor, model = load_classifier(finetuning(authors, **flags), ["a", "b"], False)
        assert model.config.image_size == processor.size.height == 24
        _, scratch = load_classifier(finetuning(authors, from_scratch=True, **flags), ["a", "b"], False)
        assert scratch(torch.zeros(1, 3, 24, 24)).logits.shape == (1, 2)
        name = "vit.encoder.layer.0.output.dense.weight"
        assert not torch.equal(scratch.state_dict()[name], model.state_dict()[name])

    def test_survives_its_folder(self, authors, tmp_path):
        """What a fine-tuned model's folder holds is a SiT, not what it came from."""
        _, model = load_classifier(finetuning(authors, num_attention_heads=3), ["a", "b"], False)
        model.eval().save_pretrained(tmp_path)
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images()).logits, model(images()).logits)
        assert json.loads((tmp_path / "config.json").read_text())["projection_first_act"] == "relu"

    def test_flags_of_files_are_not_ignored(self, mae):
        with pytest.raises(SiTError, match="teacher is for") as error:
            load_classifier(finetuning(mae, network="teacher"), ["a", "b"], False)
        assert error.value.argument == "network"


class TestMeasuring:
    @pytest.mark.parametrize("chosen", ["student", "teacher"])
    def test_of_the_authors_checkpoint(self, authors, networks, chosen, capsys):
        encoder, processor = load_encoder(authors, chosen, 3)
        with torch.no_grad():
            expected = networks[chosen].tokens(images())
            torch.testing.assert_close(encoder(images()).last_hidden_state, expected, rtol=0, atol=1e-4)
        assert not encoder.training and not processor.do_corrupt
        assert "its" in capsys.readouterr().err

    def test_of_mae_is_the_same_every_time(self, mae):
        """transformers' `AutoModel` gives it with three quarters of the patches dropped, by chance."""
        encoder, _ = load_encoder(mae)
        with torch.no_grad():
            tokens = [encoder(images()).last_hidden_state for _ in range(2)]
        assert tokens[0].shape == (2, 5, 16)
        assert torch.equal(*tokens)

    def test_of_a_timm_folder(self, timm_folder):
        encoder, _ = load_encoder(timm_folder)
        model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
        with torch.no_grad():
            expected = model.forward_features(images())
            torch.testing.assert_close(encoder(images()).last_hidden_state, expected, rtol=0, atol=1e-5)

    def test_flags_of_files_are_not_ignored(self, mae):
        with pytest.raises(SiTError, match="2 is for") as error:
            load_encoder(mae, None, 2)
        assert error.value.argument == "num_attention_heads"


class TestReconstructions:
    def test_of_the_authors_checkpoint(self, authors, networks):
        model, _ = load_reconstructing_model(authors, "student", 3)
        with torch.no_grad():
            expected = networks["student"](images())[1]
            torch.testing.assert_close(model(images()).reconstruction, expected, rtol=0, atol=1e-4)

    def test_of_an_encoder_alone(self, tmp_path, networks):
        weights = networks["student"].backbone.state_dict()
        safetensors.torch.save_file(weights, tmp_path / "encoder.safetensors")
        with pytest.raises(SiTError, match=r"encoder\.safetensors reconstructs nothing"):
            load_reconstructing_model(str(tmp_path / "encoder.safetensors"), None, 3)


class TestDenseTasks:
    """A model of detection or segmentation begins with the backbone of every kind of checkpoint."""

    @pytest.mark.parametrize("source", ["authors", "mae", "timm_folder", "sit_file"])
    def test_starts_from(self, request, source):
        name = request.getfixturevalue(source)
        name = name[0] if source == "sit_file" else name
        flags = {"num_attention_heads": 3} if source == "authors" else {}
        settings = {"num_labels": 3, "pyramid_size": 8, "box_head_size": 8, "mask_head_num_layers": 1}
        encoder = load_checkpoint(name, SiTModel, **flags).model
        for model_class in (SiTForSemanticSegmentation, SiTForObjectDetection, SiTForInstanceSegmentation):
            loaded = load_checkpoint(name, model_class, settings=settings, **flags)
            torch.testing.assert_close(loaded.model.vit.state_dict(), encoder.state_dict(), rtol=0, atol=0)
            heads = {name for name, _ in loaded.model.named_children()} - {"vit"}
            assert {weight.partition(".")[0] for weight in loaded.missing_keys} == heads
            assert all(weight.isfinite().all() for weight in loaded.model.parameters())
            assert loaded.model.config.num_labels == 3
            assert len(loaded.model(torch.zeros(1, 3, 32, 64)).to_tuple()[0]) == 1

    def test_a_backbone_of_transformers_models_is_the_encoder(self, tmp_path):
        SiTBackbone(SiTConfig(**SIZES, **IMAGES)).save_pretrained(tmp_path)
        assert type(load_checkpoint(str(tmp_path)).model) is SiTModel


class TestAllHeads:
    """Without a class, a checkpoint is loaded with all its heads."""

    @pytest.mark.parametrize("model_class", MODEL_CLASSES.values(), ids=MODEL_CLASSES)
    def test_every_weight_of_every_kind_of_checkpoint_is_read(self, make_model, make_processor, tmp_path, model_class):
        model = make_model(model_class, rotation_weight=1.0)
        model.save_pretrained(tmp_path)
        assert load_checkpoint(str(tmp_path)).processor is None
        make_processor(model, do_corrupt=True).save_pretrained(tmp_path)
        loaded = load_checkpoint(str(tmp_path))
        assert type(loaded.model) is model_class
        assert not loaded.model.training
        assert not loaded.processor.do_corrupt
        assert loaded.notes == []
        assert loaded.model.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(loaded.model.state_dict()[name], weight) for name, weight in model.state_dict().items())

    def test_lower_precision_is_read_as_float32_and_said(self, make_model, tmp_path):
        make_model(SiTModel).to(torch.bfloat16).save_pretrained(tmp_path)
        loaded = load_checkpoint(str(tmp_path))
        assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
        assert any("bfloat16" in note for note in loaded.notes)

    def test_missing_weights_and_other_models_are_refused(self, make_model, tmp_path):
        make_model(SiTModel).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["encoder.layer.1.layernorm_after.bias"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(SiTError, match=r"encoder\.layer\.1\.layernorm_after\.bias"):
            load_checkpoint(str(tmp_path))
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["SiTForDreams"]}))
        with pytest.raises(SiTError, match="SiTForDreams"):
            load_checkpoint(str(tmp_path))
        (tmp_path / "config.json").unlink()
        with pytest.raises(SiTError, match=r"no config\.json"):
            load_checkpoint(str(tmp_path))

    def test_a_classifier_of_vit_keeps_its_classifier(self, make_model, make_processor, tmp_path):
        model = make_model(SiTForImageClassification, id2label={0: "daisy", 1: "rose"})
        write_plain_vit(model, make_processor(model), tmp_path / "vit")
        loaded = load_checkpoint(str(tmp_path / "vit"))
        assert type(loaded.model) is SiTForImageClassification
        assert loaded.model.config.id2label == {0: "daisy", 1: "rose"}
        assert list(loaded.processor.image_mean) == [0.3, 0.4, 0.5]
        assert all(torch.equal(loaded.model.state_dict()[name], weight) for name, weight in model.state_dict().items())

    def test_what_was_written_for_timm_or_in_one_file_is_read_again(self, make_model, make_processor, tmp_path):
        model = make_model(SiTModel)
        write_timm_folder(model, make_processor(model), tmp_path / "timm")
        loaded = load_checkpoint(str(tmp_path / "timm"))
        assert list(loaded.processor.image_mean) == [0.3, 0.4, 0.5]
        assert all(torch.equal(loaded.model.state_dict()[name], weight) for name, weight in model.state_dict().items())
        model = make_model(SiTForPreTraining)
        path = tmp_path / "weights.safetensors"
        write_safetensors(model, make_processor(model, corruption="zeros"), path)
        loaded = load_checkpoint(str(path))
        assert type(loaded.model) is SiTForPreTraining and loaded.processor.corruption == "zeros"
        assert all(torch.equal(loaded.model.state_dict()[name], weight) for name, weight in model.state_dict().items())
        # One that has lost a weight since is not filled up.
        weights = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        del weights["decoder.projection.bias"]
        save_file(weights, path, metadata=metadata)
        with pytest.raises(SiTError, match=r"decoder\.projection\.bias"):
            load_checkpoint(str(path))

    def test_the_authors_checkpoints_are_read_with_their_heads(self, make_model, tmp_path):
        student, teacher = random_network(0), random_network(1)
        checkpoint = str(save_checkpoint(tmp_path / "checkpoint.pth", student, teacher))
        loaded = load_checkpoint(checkpoint, network="student", num_attention_heads=student.heads)
        assert type(loaded.model) is SiTForPreTraining
        assert torch.equal(loaded.model.vit.embeddings.position_embeddings, student.backbone.pos_embed)
        assert torch.equal(loaded.model.decoder.projection.weight, student.head_recons.convTrans.weight)
        assert any("student" in note for note in loaded.notes)
        make_model(SiTModel).save_pretrained(tmp_path / "sit")
        with pytest.raises(SiTError, match="student is for") as error:
            load_checkpoint(str(tmp_path / "sit"), network="student")
        assert error.value.argument == "network"


class TestReport:
    """What the loader says of weights that are new, and what it refuses."""

    @pytest.fixture
    def sit(self, save_tiny_sit, tmp_path):
        return save_tiny_sit(tmp_path / "sit")

    @staticmethod
    def change(folder, change):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def test_heads_that_are_new_are_named(self, sit):
        assert load_checkpoint(sit, SiTForPreTraining).missing_keys == []
        loaded = load_checkpoint(sit, transformers.AutoModelForImageClassification, settings={"num_labels": 3})
        assert loaded.missing_keys == ["classifier.bias", "classifier.weight"] and loaded.model.config.num_labels == 3
        loaded.model.save_pretrained(sit)
        again = load_checkpoint(sit, transformers.AutoModelForImageClassification, settings={"num_labels": 4})
        assert again.missing_keys == ["classifier.bias", "classifier.weight"]  # of other shapes

    @pytest.mark.parametrize(
        "model_class",
        [None, SiTForPreTraining, transformers.AutoModel, transformers.AutoModelForImageClassification],
    )
    def test_a_backbone_that_is_not_whole_is_refused(self, sit, model_class):
        self.change(sit, lambda weights: weights.pop("vit.layernorm.bias"))
        with pytest.raises(SiTError, match=r"1 weights .*missing, such as (vit\.)?layernorm\.bias") as error:
            load_checkpoint(sit, model_class)
        assert error.value.argument == "model_name_or_path"

    def test_weights_of_other_shapes_are_refused(self, sit):
        config = SiTConfig.from_pretrained(sit)
        config.decoder_hidden_size = 4
        with pytest.raises(SiTError, match=r"other shapes .*decoder\.mlp"):
            load_checkpoint(sit, SiTForPreTraining, config=config)
        self.change(sit, lambda weights: weights.update({"vit.layernorm.bias": torch.zeros(3)}))
        with pytest.raises(SiTError, match=r"1 weights of the backbone .*other shapes .*layernorm\.bias"):
            load_checkpoint(sit, transformers.AutoModelForImageClassification, settings={"num_labels": 3})

    def test_a_model_without_an_image_processor(self, sit):
        (sit / "preprocessor_config.json").unlink()
        loaded = load_checkpoint(sit, transformers.AutoModel)
        assert loaded.processor is None
        with pytest.raises(SiTError, match="no image processor") as error:
            loaded.require_processor()
        assert error.value.argument == "model_name_or_path"

    def test_a_setting_that_the_model_does_not_have(self, tmp_path):
        transformers.ViTModel(transformers.ViTConfig(**SIZES, **IMAGES)).save_pretrained(tmp_path)
        with pytest.raises(SiTError, match="ViTConfig has no such setting") as error:
            load_checkpoint(tmp_path, transformers.AutoModelForImageClassification, settings={"pooling": "mean"})
        assert error.value.argument == "pooling"

    @pytest.mark.parametrize("name", ["someone/model", "nowhere"])
    def test_nothing_is_there(self, name, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        for load in (read_config, load_checkpoint, lambda name: load_checkpoint(name, SiTForPreTraining)):
            with pytest.raises(SiTError, match="no such folder, and the Hub gives no such model") as error:
                load(name)
            assert error.value.argument == "model_name_or_path"

    def test_a_model_that_is_never_without_its_head(self, tmp_path):
        """Transformers would list all the models that it knows."""
        transformers.UperNetConfig(backbone_config=transformers.ResNetConfig()).save_pretrained(tmp_path)
        with pytest.raises(SiTError) as error:
            load_checkpoint(tmp_path, transformers.AutoModel)
        assert error.value.argument == "model_name_or_path"
        assert len(error.value.problem.removeprefix(str(tmp_path))) < 200

    def test_the_configuration_alone(self, sit, authors):
        assert read_config(str(sit))["hidden_size"] == 16
        assert read_config(authors, num_attention_heads=3)["projection_first_act"] == "relu"


def test_the_programs_take_a_file(run_program, authors, save_images, tmp_path, networks, capsys):
    """One step of pretraining at a rate of 0 writes back what was read, and figures are measured on it."""
    save_images(tmp_path / "images" / "a", 4)
    save_images(tmp_path / "images" / "b", 4, seed=1)
    flags = ["--dataset", tmp_path / "images", "--model_name_or_path", authors, "--num_attention_heads", 3]
    pretraining = ["--per_device_train_batch_size", 8, "--max_steps", 1, "--preview_steps", 0]
    pretraining += ["--base_learning_rate", 0, "--min_learning_rate", 0, "--export", "student", "--network", "student"]
    assert run_program("pretrain", *flags, *pretraining, "--output_dir", tmp_path / "out") == 0
    assert capsys.readouterr().err.count("its student is used, not the teacher") == 1
    model = SiTForPreTraining.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = networks["student"](images())
        torch.testing.assert_close(model(images()).reconstruction, expected[1], rtol=0, atol=1e-4)
    drawing = [
        "--corruption",
        "zeros",
        "--model_name_or_path",
        authors,
        "--num_attention_heads",
        3,
        "--device",
        "cpu",
        "--images",
    ]
    drawing += [tmp_path / "images" / "a" / "00.png", "--output", tmp_path / "figure.png"]
    assert run_program("visualize", "reconstructions", *drawing) == 0
    assert (tmp_path / "figure.png").stat().st_size > 0
