"""What the page answers, without a browser and without gradio: pixels, neighbors, and a message for each bad input."""

import shutil
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from pages import captions_of, images_of

from modeling_sit import SiTForImageClassification, SiTForSemanticSegmentation, SiTImageProcessor
from modeling_sit.demo import answers, gallery
from modeling_sit.demo.arguments import DemoArguments
from modeling_sit.evaluation.features import frozen_features
from modeling_sit.runtime.errors import SiTError
from modeling_sit.visualization.attention import attention_maps

CLASSES = {0: "red", 1: "blue", 2: "<b>green</b>"}


def half(height: int = 20, width: int = 24) -> dict:
    """A canvas of which the left half is painted."""
    layer = np.zeros((height, width, 4), np.uint8)
    layer[:, : width // 2] = (230, 159, 0, 255)
    return {"background": None, "layers": [layer], "composite": None}


class TestReconstruct:
    def test_pasted_is_clean_but_for_the_corrupted_pixels(self, demonstrate):
        shown = images_of(demonstrate().reconstruct(None, 0, "zeros", 0.3, 0.25, 0))
        assert list(shown) == ["clean", "corrupted", "reconstruction", "pasted"]
        changed = (shown["clean"] != shown["corrupted"]).any(-1)
        assert 0.3 <= changed.mean() < 0.45
        assert (shown["pasted"][~changed] == shown["clean"][~changed]).all()
        assert (shown["pasted"][changed] == shown["reconstruction"][changed]).all()

    @pytest.mark.parametrize("kind", ["noise", "zeros", "replace"])
    def test_kinds(self, demonstrate, kind):
        one, again = (images_of(demonstrate().reconstruct(None, 0, kind, 0.5, 0.5, 3)) for _ in range(2))
        other = images_of(demonstrate().reconstruct(None, 0, kind, 0.5, 0.5, 4))
        assert (one["corrupted"] == again["corrupted"]).all() and (one["corrupted"] != other["corrupted"]).any()
        changed = (one["clean"] != one["corrupted"]).any(-1)
        colors = np.unique(one["corrupted"][changed], axis=0)
        # Noise has any color, zeros the mean color alone, and another image of the dataset is red or blue.
        assert {"noise": len(colors) > 10, "zeros": len(colors) == 1, "replace": len(colors) == 1}[kind]

    def test_what_is_painted_is_corrupted(self, demonstrate):
        shown = images_of(demonstrate().reconstruct_painted(None, 0, half(), "zeros", 0))
        changed = (shown["clean"] != shown["corrupted"]).any(-1)
        width = changed.shape[1]
        assert changed[:, : width // 2].all() and not changed[:, width // 2 :].any()

    @pytest.mark.parametrize("painted", [None, {"layers": []}, {"layers": [np.zeros((20, 24, 4), np.uint8)]}])
    def test_nothing_is_painted(self, demonstrate, painted):
        with pytest.raises(SiTError) as error:
            demonstrate().reconstruct_painted(None, 0, painted, "zeros", 0)
        assert "paint" in error.value.remedy

    @pytest.mark.parametrize(
        "values", [("dust", 0.5, 0.25, 0), ("noise", 1.0, 0.25, 0), ("noise", "x", 0.25, 0), ("noise", 0.5, 0.0, 0)]
    )
    def test_values_out_of_range(self, demonstrate, values):
        with pytest.raises(SiTError):
            demonstrate().reconstruct(None, 0, *values)

    def test_replace_without_a_dataset(self, demonstrate, own_file):
        with pytest.raises(SiTError) as error:
            demonstrate(dataset=None).reconstruct(own_file(PIL.Image.new("RGB", (9, 9))), 0, "replace", 0.5, 0.25, 0)
        assert "noise" in error.value.remedy

    def test_a_model_without_a_decoder(self, demonstrate, save_tiny_sit, tmp_path):
        demonstration = demonstrate(model_name_or_path=str(save_tiny_sit(tmp_path / "plain", reconstruction_weight=0)))
        with pytest.raises(SiTError, match="reconstructs nothing"):
            demonstration.reconstruct(None, 0, "zeros", 0.5, 0.25, 0)


class TestAttention:
    def test_layers_and_heads(self, demonstrate):
        demonstration = demonstrate()
        assert captions_of(demonstration.attend(None, 0, None, None)) == ["image", "mean of heads", "head 1", "head 2"]
        assert captions_of(demonstration.attend(None, 0, 1, [2])) == ["image", "mean of heads", "head 2"]
        for layer, heads in ((3, None), (0, None), (1, [3])):
            with pytest.raises(SiTError):
                demonstration.attend(None, 0, layer, heads)

    def test_more_attention_is_brighter(self, demonstrate, own_file):
        demonstration = demonstrate()
        pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        query = demonstration.query(own_file(PIL.Image.fromarray(pixels)), 0)
        checkpoint = demonstration.checkpoint
        seen = answers.pixel_values_of(checkpoint, [query.read(checkpoint.pixel_format)])
        weights = attention_maps(checkpoint.encoder, seen)[0, 0]  # (2, 2) patches
        shown = (
            answers.attend(checkpoint, query, heads=[1])[2].image.convert("L").resize((2, 2), PIL.Image.Resampling.BOX)
        )
        if (weights.max() - weights.min()) > 0.05:
            assert np.asarray(shown).argmax() == weights.argmax()


class TestNeighbours:
    def test_as_a_comparison_of_all_finds(self, demonstrate):
        demonstration = demonstrate()
        checkpoint, shown = demonstration.checkpoint, demonstration.gallery
        features = frozen_features(checkpoint.encoder, shown.split, checkpoint.processor).features
        cosines = torch.nn.functional.cosine_similarity(features[2][None], features)
        order = [row for row in cosines.argsort(descending=True).tolist() if row != 2][:3]
        found = answers.neighbours(checkpoint, shown.query(2), shown, 3)
        assert [each.description for each in found] == [f"neighbor {shown.query(row).name}" for row in order]
        assert [float(each.caption.rpartition(" ")[2]) for each in found] == pytest.approx(
            cosines[order].tolist(), abs=1e-3
        )

    def test_the_index_is_made_once(self, demonstrate, own_file, monkeypatch):
        demonstration, calls = demonstrate(), []
        compute = gallery.frozen_features
        monkeypatch.setattr(gallery, "frozen_features", lambda *args: calls.append(args) or compute(*args))
        path = own_file(PIL.Image.new("RGB", (30, 30), (200, 0, 0)))
        pages = [demonstration.neighbours(path, 0, 2), demonstration.neighbours(None, 5, 2), demonstration.map()]
        assert len(calls) == 1 and pages[0] != pages[1]

    def test_more_than_there_are(self, demonstrate):
        assert len(captions_of(demonstrate().neighbours(None, 0, 100))) == 7

    def test_a_dataset_that_changes(self, demonstrate, flat_images):
        demonstration = demonstrate()
        assert captions_of(demonstration.neighbours(None, 0, 1))[0].startswith("blue")
        for number in range(1, 4):
            (flat_images / "blue" / f"{number}.png").unlink()
        assert [text[:3] for text in captions_of(demonstration.neighbours(None, 0, 9))] == ["red"] * 4
        assert demonstration.map("pca").count("data:image/png;base64,") == 5
        shutil.rmtree(flat_images)
        with pytest.raises(SiTError) as error:
            demonstration.map("tsne")
        assert "blue/0.png" in error.value.problem and str(flat_images) not in str(error.value)

    def test_without_a_dataset(self, demonstrate, own_file):
        demonstration = demonstrate(dataset=None)
        for ask in (lambda: demonstration.neighbours(own_file(PIL.Image.new("L", (9, 9))), 0, 3), demonstration.map):
            with pytest.raises(SiTError, match="no dataset"):
                ask()


def test_the_map_is_in_a_frame_that_reaches_nothing(demonstrate, flat_images):
    demonstration = demonstrate()
    page = demonstration.map("pca")
    assert page.startswith("<iframe") and 'sandbox="allow-scripts"' in page and "allow-same-origin" not in page
    assert page.count("data:image/png;base64,") == 8 and str(flat_images) not in page
    assert demonstration.map("pca") is page
    with pytest.raises(SiTError):
        demonstration.map("mds")


class TestPredict:
    def save(self, model_class, tiny_config, folder) -> str:
        torch.manual_seed(0)
        names = {"id2label": CLASSES, "label2id": {name: number for number, name in CLASSES.items()}}
        config = tiny_config(image_size=32, **names)
        model_class(config).save_pretrained(folder)
        processor = SiTImageProcessor(size={"height": 32, "width": 32}, patch_size=8, pad_multiple=32)
        processor.save_pretrained(folder)
        return str(folder)

    def test_a_classifier(self, demonstrate, tiny_config, tmp_path):
        demonstration = demonstrate(
            model_name_or_path=self.save(SiTForImageClassification, tiny_config, tmp_path / "c")
        )
        found = demonstration.classify(None, 3)
        model, checkpoint = demonstration.checkpoint.predicting, demonstration.checkpoint
        image = demonstration.query(None, 3).read(checkpoint.pixel_format)
        with torch.no_grad():
            expected = model(**checkpoint.processor(images=[image], return_tensors="pt")).logits.softmax(-1)[0]
        assert found == pytest.approx({CLASSES[number]: value for number, value in enumerate(expected.tolist())})
        assert list(found.values()) == sorted(found.values(), reverse=True)
        with pytest.raises(SiTError):
            demonstration.find(None, 0, 0.5)

    def test_a_segmenter(self, demonstrate, tiny_config, tmp_path):
        demonstration = demonstrate(
            model_name_or_path=self.save(SiTForSemanticSegmentation, tiny_config, tmp_path / "s")
        )
        assert demonstration.checkpoint.task == "segmentation"
        (image,) = images_of(demonstration.find(None, 0, 0.5)).values()
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 3
        with pytest.raises(SiTError):
            demonstration.classify(None, 0)

    def test_no_head(self, demonstrate):
        with pytest.raises(SiTError, match="fine-tune"):
            demonstrate().classify(None, 0)


class TestCompare:
    def test_both_get_the_same_corruption(self, demonstrate, save_tiny_sit, tmp_path):
        other = save_tiny_sit(tmp_path / "other", seed=1)
        page = demonstrate(compare_with=str(other)).compare(None, 0, "zeros", 0.5, 0)
        left, right = page.split("<section>")[1:]
        assert "<h3>model</h3>" in left and "<h3>other</h3>" in right
        one, two = images_of(left), images_of(right)
        assert (one["corrupted"] == two["corrupted"]).all() and (one["reconstruction"] != two["reconstruction"]).any()

    def test_two_of_one_name(self, demonstrate, save_tiny_sit, tmp_path):
        """As the last folders of two runs often have."""
        one, two = (str(save_tiny_sit(tmp_path / run / "last", seed)) for seed, run in enumerate(("one", "two")))
        left, right = (
            demonstrate(model_name_or_path=one, compare_with=two)
            .compare(None, 0, "zeros", 0.5, 0)
            .split("<section>")[1:]
        )
        assert "<h3>one/last</h3>" in left and "<h3>two/last</h3>" in right
        cosines = [[text for text in captions_of(side) if "cosine" in text] for side in (left, right)]
        assert len(cosines[0]) == 6 and cosines[0] != cosines[1]

    def test_with_the_network_before_training(self, demonstrate):
        page = demonstrate(compare_with="random").compare(None, 0, "zeros", 0.5, 0)
        assert "before training" in page and page.count("Attention") == 2 and "no trained head" in page

    def test_one_alone(self, demonstrate):
        with pytest.raises(SiTError) as error:
            demonstrate().compare(None, 0, "zeros", 0.5, 0)
        assert "`compare_with`" in error.value.remedy


class TestBadInput:
    """One message that names the file, and not where it lies."""

    def told(self, demonstration, path, *words, tmp_path) -> None:
        with pytest.raises(SiTError) as error:
            demonstration.look(path, 0)
        text = str(error.value)
        assert all(word in text for word in words), text
        assert str(tmp_path) not in text and "\n" not in text

    def test_text(self, demonstrate, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        self.told(demonstrate(), str(tmp_path / "text.png"), "text.png", "no image", tmp_path=tmp_path)

    def test_a_damaged_file(self, demonstrate, own_file, tmp_path):
        path = own_file(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)))
        with open(path, "r+b") as file:
            file.truncate(500)
        self.told(demonstrate(), path, "own.png", "damaged", tmp_path=tmp_path)

    def test_too_many_pixels(self, demonstrate, own_file, tmp_path, monkeypatch):
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10**6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            for side in (1200, 3000):  # below twice the limit Pillow warns, beyond it refuses
                path = own_file(PIL.Image.new("1", (side, side)), f"{side}.png")
                self.told(demonstrate(), path, f"{side}.png", "too large", "smaller", tmp_path=tmp_path)

    def test_too_many_bytes(self, demonstrate, own_file, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 255, (50, 50, 3), dtype=np.uint8)
        path = own_file(PIL.Image.fromarray(pixels))
        self.told(demonstrate(max_upload_megabytes=0.005), path, "own.png", "0.005 MB", tmp_path=tmp_path)

    def test_empty_and_missing(self, demonstrate, tmp_path):
        (tmp_path / "empty.png").touch()
        self.told(demonstrate(), str(tmp_path / "empty.png"), "empty.png", "empty", tmp_path=tmp_path)
        self.told(demonstrate(), str(tmp_path / "gone.png"), "gone.png", tmp_path=tmp_path)

    def test_a_program(self, demonstrate, own_file, tmp_path):
        self.told(
            demonstrate(), own_file(PIL.Image.new("RGB", (9, 9)), "own.eps"), "own.eps", "program", tmp_path=tmp_path
        )

    @pytest.mark.parametrize("number", [-1, 8, None, "../../etc/passwd", float("nan")])
    def test_no_such_number(self, demonstrate, number):
        with pytest.raises(SiTError, match="0 to 7"):
            demonstrate().look(None, number)

    def test_no_image_at_all(self, demonstrate):
        with pytest.raises(SiTError, match="no image yet"):
            demonstrate(dataset=None).look(None, 0)

    def test_odd_images_are_shown(self, demonstrate, own_file):
        demonstration = demonstrate()
        red = PIL.Image.new("RGB", (40, 30), (255, 0, 0))
        deep = PIL.Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
        for path, word in (
            (own_file(PIL.Image.new("RGB", (1, 1), (255, 0, 0)), "1.png"), "1 x 1 pixels"),
            (own_file(red.convert("CMYK"), "cmyk.jpg"), "mode CMYK"),
            (own_file(deep, "deep.png"), "16 bits"),
            (
                own_file(red, "moving.gif", save_all=True, append_images=[PIL.Image.new("RGB", (40, 30))]),
                "first of several",
            ),
        ):
            page, canvas = demonstration.look(path, 0)
            assert word in page and canvas.size == (256, 256)
            if word != "16 bits":
                assert np.abs(np.asarray(canvas).reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 12
        assert demonstration.reconstruct(path, 0, "zeros", 0.5, 0.25, 0)

    def test_a_name_is_no_html(self, demonstrate, own_file):
        page, _ = demonstrate().look(own_file(PIL.Image.new("L", (9, 9)), "<script>alert(1)<&.png"), 0)
        assert "<script" not in page and "&lt;script&gt;" in page


class TestArguments:
    @pytest.mark.parametrize(
        ("argument", "value"), [("port", 0), ("port", 70000), ("max_images", 1), ("max_upload_megabytes", 0)]
    )
    def test_out_of_range(self, argument, value):
        with pytest.raises(SiTError) as error:
            DemoArguments(model_name_or_path="m", **{argument: value})
        assert error.value.argument == argument

    @pytest.mark.parametrize("argument", ["model_name_or_path", "compare_with"])
    def test_no_checkpoint(self, demonstrate, tmp_path, argument):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "config.json").write_text("{}")
        with pytest.raises(SiTError) as error:
            demonstrate(**{argument: str(tmp_path / "notes")})
        assert error.value.argument == argument

    def test_some_images_of_many(self, demonstrate):
        assert len(demonstrate(max_images=5).gallery) == 5
