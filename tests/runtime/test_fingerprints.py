"""What tells models and datasets apart."""

import json

import datasets
import pytest

from modeling_sit.runtime.fingerprints import configuration_fingerprint, dataset_fingerprint, model_fingerprint


def test_fingerprints(tmp_path):
    assert model_fingerprint("someone/vit") == "someone/vit"
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"other" if name == "c" else b"same")
    first, same, other = (model_fingerprint(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    for name in ("d", "e"):  # the weights in two files, the second of which differs
        (tmp_path / name).mkdir()
        (tmp_path / name / "model-00001-of-00002.safetensors").write_bytes(b"same")
        (tmp_path / name / "model-00002-of-00002.safetensors").write_bytes(name.encode())
    assert len({first, other, *(model_fingerprint(str(tmp_path / name)) for name in "de")}) == 4
    (tmp_path / "c" / "pytorch_model.bin").write_bytes(b"the same weights in another form, which nobody reads")
    assert model_fingerprint(str(tmp_path / "c")) == other
    images = datasets.Dataset.from_dict({"image": [1, 2]})
    assert dataset_fingerprint("digits") == "digits"
    assert dataset_fingerprint(images) == dataset_fingerprint(images) != dataset_fingerprint(images.select([0]))
    both = datasets.DatasetDict(train=images, test=images.select([0]))
    assert dataset_fingerprint(both) == {name: dataset_fingerprint(split) for name, split in both.items()}


class TestConfiguration:
    @pytest.fixture
    def change(self, tmp_path):
        """Change fields of a file of a model's folder; the fingerprint of the folder."""
        (tmp_path / "config.json").write_text('{"pooling": "token", "backbone_config": {"hidden_act": "gelu"}}')
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')

        def change(name="config.json", **fields):
            path = tmp_path / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=1))
            return configuration_fingerprint(str(tmp_path))

        return change

    def test_what_changes_features(self, change):
        found = [
            change(),
            change(pooling="mean"),
            change(backbone_config={"hidden_act": "relu"}),
            change("preprocessor_config.json", image_mean=[5.0]),
        ]
        assert len(set(found)) == 4

    def test_what_saving_writes(self, change):
        before = change()
        versions = {"transformers_version": "6", "_name_or_path": "/home/someone", "dtype": "bfloat16"}
        assert before == change(**versions, architectures=["SiTModel"], auto_map={"AutoModel": "x"})
        assert before == change(backbone_config={"hidden_act": "gelu", "torch_dtype": "float16"})
        assert before == change("preprocessor_config.json", auto_map={}, processor_class="x")

    def test_where_there_is_none(self, tmp_path):
        (tmp_path / "weights.pth").write_bytes(b"")
        for name in ("someone/vit", tmp_path, tmp_path / "weights.pth"):
            assert configuration_fingerprint(str(name)) is None
