"""`evaluate.evaluator("image-classification")` on a classifier of this package, with this package's metric."""

import datasets
import evaluate
import PIL.Image
import pytest
import torch

from modeling_sit import SiTForImageClassification, SiTImageProcessor
from modeling_sit.evaluation.metrics import load_metric

NAMES = ["cornflower", "daisy", "rose"]


def test_gives_the_accuracy_of_the_model(tiny_config, save_images, tmp_path):
    """As a user calls it, from a folder of `save_pretrained`."""
    torch.manual_seed(0)
    config = tiny_config(id2label=dict(enumerate(NAMES)), label2id={name: number for number, name in enumerate(NAMES)})
    SiTForImageClassification(config).save_pretrained(tmp_path)
    SiTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    model = SiTForImageClassification.from_pretrained(tmp_path).eval()
    processor = SiTImageProcessor.from_pretrained(tmp_path)
    paths = sorted(str(path) for path in save_images(tmp_path / "images", 9).iterdir())
    labels = [number % 3 for number in range(9)]
    data = datasets.Dataset.from_dict({"image": paths, "label": labels}).cast_column("image", datasets.Image())

    result = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=model,
        data=data,
        feature_extractor=processor,
        metric=load_metric("accuracy"),
        label_mapping=model.config.label2id,
    )
    predictions = []
    with torch.no_grad():
        for path in paths:
            inputs = processor(PIL.Image.open(path).convert("RGB"), return_tensors="pt")
            predictions.append(int(model(**inputs).logits.argmax()))
    expected = sum(prediction == label for prediction, label in zip(predictions, labels, strict=True)) / 9
    assert result["accuracy"] == pytest.approx(expected)
    assert 0 < expected < 1 and result["samples_per_second"] > 0
