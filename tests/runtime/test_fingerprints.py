"""What tells models and datasets apart."""

import datasets

from modeling_sit.runtime.fingerprints import dataset_fingerprint, model_fingerprint


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
