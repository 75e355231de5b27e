"""Training by others' loops: transformers' `Trainer`, and Accelerate's `prepare`."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainingArguments, pipeline

from modeling_sit import SiTForImageClassification, SiTForPreTraining, SiTImageProcessor


@pytest.fixture
def labeled():
    """Twelve images: class 0 is dark, class 1 is bright."""
    generator = np.random.default_rng(0)
    labels = [0, 1] * 6
    images = [
        PIL.Image.fromarray(generator.integers(128 * label, 128 * (1 + label), (16, 16, 3), dtype=np.uint8))
        for label in labels
    ]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=["dark", "bright"])})
    return datasets.Dataset.from_dict({"image": images, "labels": labels}, features=features)


def test_trainer_fine_tunes_and_leaves_a_repository(pretrained, labeled, tmp_path):
    folder, _ = pretrained
    processor = SiTImageProcessor.from_pretrained(folder)
    dataset = labeled.with_transform(
        lambda batch: {**processor(batch["image"], return_tensors="pt"), "labels": batch["labels"]}
    )
    torch.manual_seed(0)
    model = SiTForImageClassification.from_pretrained(
        folder, id2label={0: "dark", 1: "bright"}, label2id={"dark": 0, "bright": 1}
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=tmp_path / "run",
            per_device_train_batch_size=4,
            num_train_epochs=4,
            learning_rate=0.01,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=processor,
        compute_metrics=lambda prediction: {
            "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
        },
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    results = trainer.evaluate()
    assert results["eval_loss"] < before and results["eval_accuracy"] == 1
    trainer.save_model(tmp_path / "finetuned")
    classify = pipeline("image-classification", model=str(tmp_path / "finetuned"), device="cpu")
    best = [result[0]["label"] for result in classify(labeled["image"][:2], top_k=1)]
    assert best == ["dark", "bright"]


def test_a_prepared_step_is_a_plain_step(pretrained, pixel_values, tmp_path):
    folder, _ = pretrained
    views = {"pixel_values": pixel_values, "target_pixel_values": pixel_values.flip(0)}
    teacher_projections = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))

    plain = SiTForPreTraining.from_pretrained(folder)
    plain_optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain(**views, teacher_projections=teacher_projections).loss.backward()
    plain_optimizer.step()

    accelerator = Accelerator(cpu=True)
    model = SiTForPreTraining.from_pretrained(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(model(**views, teacher_projections=teacher_projections).loss)
    optimizer.step()
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path / "trained", save_function=accelerator.save, state_dict=accelerator.get_state_dict(model)
    )
    trained = SiTForPreTraining.from_pretrained(tmp_path / "trained").state_dict()
    for name, weight in plain.state_dict().items():
        assert torch.equal(trained[name], weight), name
