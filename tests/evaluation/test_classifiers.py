"""Classifiers as they are, against one image at a time."""

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from modeling_sit import SiTForImageClassification, SiTImageProcessor
from modeling_sit.data.decoding import decode_image
from modeling_sit.data.sources import load_images
from modeling_sit.evaluation.classifiers import load_classifier, measure_classifier
from modeling_sit.runtime.errors import SiTError

NAMES = ["rose", "tulip", "daisy"]


@pytest.fixture
def folder(save_images, tmp_path):
    for seed, name in enumerate(NAMES):
        save_images(tmp_path / "flowers" / name, 4, seed=seed)
    return tmp_path / "flowers"


@pytest.fixture
def classifier(tiny_config):
    """Of four classes, in another order than those of the images."""

    def make(names=("daisy", "oak", "rose", "tulip")) -> SiTForImageClassification:
        torch.manual_seed(3)
        labels = dict(enumerate(names))
        config = tiny_config(id2label=labels, label2id={name: number for number, name in labels.items()})
        model = SiTForImageClassification(config).eval()
        torch.nn.init.normal_(model.classifier.weight)
        return model

    return make


@pytest.fixture
def processor():
    return SiTImageProcessor(size={"height": 16, "width": 16}, patch_size=8)


def scores_of(model, processor, split) -> np.ndarray:
    scores = []
    for image in split["image"]:
        pixel_values = processor(decode_image(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            scores.append(model(pixel_values).logits[0].numpy())
    return np.stack(scores)


def test_accuracy(folder, classifier, processor):
    images, model = load_images(str(folder)), classifier()
    split = images.train
    labels = split["label"][:]
    unlabeled = [label if row % 5 else -1 for row, label in enumerate(labels)]
    split = split.remove_columns("label").add_column("label", unlabeled, feature=split.features["label"])
    predicted = [model.config.id2label[place] for place in scores_of(model, processor, split).argmax(axis=1)]
    pairs = [(images.label_names[label], name) for label, name in zip(unlabeled, predicted, strict=True) if label >= 0]
    expected = np.mean([true == found for true, found in pairs])
    assert 0 < expected < 1
    for batch_size in (64, 3):
        assert measure_classifier(model, processor, split, images.label_names, "cpu", batch_size) == expected


def test_mean_average_precision_of_several_labels(folder, classifier, processor):
    split = load_images(str(folder)).train.remove_columns("label")
    truth = (np.random.default_rng(0).random((len(split), 3)) < 0.4).astype(int)
    labels = [row.nonzero()[0].tolist() for row in truth]
    split = split.add_column("label", labels, feature=datasets.List(datasets.ClassLabel(names=NAMES)))
    model = classifier()
    scores = scores_of(model, processor, split)
    own = {name: number for number, name in model.config.id2label.items()}
    expected = np.mean([average_precision_score(truth[:, n], scores[:, own[name]]) for n, name in enumerate(NAMES)])
    assert measure_classifier(model, processor, split, NAMES) == pytest.approx(expected)


def test_a_classifier_that_does_not_know_the_classes(folder, classifier, processor):
    images = load_images(str(folder))
    with pytest.raises(SiTError, match="daisy"):
        measure_classifier(classifier(["oak", "rose", "tulip"]), processor, images.train, images.label_names)


def test_which_checkpoints_are_classifiers(save_tiny_sit, classifier, tmp_path):
    assert load_classifier(str(save_tiny_sit(tmp_path / "pretrained"))) is None
    model = classifier()
    model.save_pretrained(tmp_path / "classifier")
    loaded = load_classifier(str(tmp_path / "classifier"))
    assert not loaded.training and torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert load_classifier(str(tmp_path / "classifier" / "model.safetensors")) is None
