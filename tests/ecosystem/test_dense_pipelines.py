"""transformers' pipelines of detection and segmentation: with this package, and where it cannot be imported."""

import json
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import pipeline

from modeling_sit import (
    SiTConfig,
    SiTForInstanceSegmentation,
    SiTForObjectDetection,
    SiTForSemanticSegmentation,
    SiTImageProcessor,
)
from modeling_sit.run_length_encoding import encode_mask

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "drop_path_rate": 0.0,
    "pyramid_size": 32,
    "box_head_size": 64,
    "mask_head_num_layers": 1,
    "rois_per_image": 32,
    "detections_per_image": 10,
    "nms_threshold": 0.3,
    "anchor_sizes": [16, 24, 32, 48, 64],
    "id2label": {0: "corner", 1: "block"},
}
# Multiples of 32 neither before resizing nor after it.
HEIGHT, WIDTH = 72, 100
BOXES = [(7, 11, 40, 39), (53, 26, 88, 67)]

# A process without the package: class of the model, and what the pipeline gives, masks as lists of pixels.
PROGRAM = """
import json, sys

sys.modules["modeling_sit"] = None

import numpy as np
import PIL.Image
from transformers import pipeline

image, *runs = sys.argv[1:]
report = []
for run in runs:
    task, folder, options = json.loads(run)
    run = pipeline(task, model=folder, trust_remote_code=True, device="cpu")
    results = run(PIL.Image.open(image), **options)
    for entry in results:
        if "mask" in entry:
            entry["mask"] = np.packbits(np.asarray(entry["mask"]) > 0).tolist()
    report.append([type(run.model).__module__.partition(".")[0], type(run.model).__name__, results])
print(json.dumps(report))
"""


def image_and_annotation():
    """Two objects, one of them without its upper left corner."""
    pixels = np.random.default_rng(0).integers(100, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    entries = []
    for number, (left, top, right, bottom) in enumerate(BOXES):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[top:bottom, left:right] = True
        if number == 0:
            mask[top : top + 10, left : left + 10] = False
        pixels[mask] = [(255, 40, 40), (40, 255, 80)][number]
        box = [left, top, right - left, bottom - top]
        entries.append({"category_id": number, "bbox": box, "segmentation": encode_mask(mask)})
    return PIL.Image.fromarray(pixels), {"image_id": 0, "annotations": entries}


def save(model, processor, folder):
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of each class: of instance segmentation one that has learned an image by heart, of the others new ones."""
    processor = SiTImageProcessor(size={"longest_edge": 75}, do_pad=True, patch_size=8)
    image, annotation = image_and_annotation()
    features = processor(image, annotations=annotation, return_segmentation_masks=True, return_tensors="pt")
    assert features["pixel_values"].shape == (1, 3, 64, 96)
    torch.manual_seed(0)
    model, steps, rate = SiTForInstanceSegmentation(SiTConfig(**SMALL)), 220, 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        model(**features).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("dense")
    image.save(folder / "image.png")
    return {
        "image": folder / "image.png",
        "instance": save(model, processor, folder / "instance"),
        "detection": save(
            SiTForObjectDetection(SiTConfig(**SMALL, detection_threshold=0.0)), processor, folder / "detection"
        ),
        "semantic": save(SiTForSemanticSegmentation(SiTConfig(**SMALL)), processor, folder / "semantic"),
    }


@pytest.fixture(scope="module")
def elsewhere(folders, tmp_path_factory):
    """What pipelines give where the package cannot be imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    runs = [
        ("object-detection", folders["instance"], {"threshold": 0.9}),
        ("image-segmentation", folders["instance"], {}),
        ("object-detection", folders["detection"], {"threshold": 0.1}),
        ("image-segmentation", folders["semantic"], {}),
        ("image-segmentation", folders["semantic"], {"subtask": "semantic"}),
    ]
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [json.dumps([task, str(path), options]) for task, path, options in runs]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folders["image"]), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(zip(runs, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_boxes_are_the_truth_within_a_pixel(elsewhere):
    """Of an image that was learned by heart, whose sides are no multiples of 32, in a process without the package."""
    _, (module, name, found) = elsewhere[0]
    # Transformers' pipeline of boxes has a detector of every checkpoint; that of masks has a class of its own.
    assert (module, name) == ("transformers_modules", "SiTForObjectDetection")
    best = {entry["label"]: entry["box"] for entry in reversed(found)}  # the highest score comes first
    assert best.keys() == {"corner", "block"}
    for label, box in zip(("corner", "block"), BOXES, strict=True):
        assert list(best[label].values()) == pytest.approx(box, abs=1)


def test_masks_are_the_truth(folders):
    image, annotation = image_and_annotation()
    run = pipeline("image-segmentation", model=str(folders["instance"]), device="cpu")
    assert type(run.model) is SiTForInstanceSegmentation
    found = {entry["label"]: np.asarray(entry["mask"]) > 0 for entry in reversed(run(image))}
    assert found.keys() == {"corner", "block"}
    truth = SiTImageProcessor(do_resize=False, patch_size=8)(
        image, annotations=annotation, return_segmentation_masks=True, return_tensors="pt"
    )["labels"][0]["masks"]
    for label, mask in zip(("corner", "block"), truth.numpy(), strict=True):
        assert (found[label] & mask).sum() / (found[label] | mask).sum() > 0.94


def test_the_same_where_the_package_is_missing(folders, elsewhere):
    classes = {
        "instance": {"object-detection": SiTForObjectDetection, "image-segmentation": SiTForInstanceSegmentation},
        "detection": {"object-detection": SiTForObjectDetection},
        "semantic": {"image-segmentation": SiTForSemanticSegmentation},
    }
    for (task, folder, options), (module, name, actual) in elsewhere:
        run = pipeline(task, model=str(folder), device="cpu")
        assert type(run.model) is classes[folder.name][task]
        assert (module, name) == ("transformers_modules", type(run.model).__name__)
        expected = run(PIL.Image.open(folders["image"]), **options)
        assert actual
        for one, other in zip(actual, expected, strict=True):
            assert one["label"] == other["label"]
            assert one["score"] == (None if other["score"] is None else pytest.approx(other["score"], abs=1e-5))
            if "box" in other:
                assert list(one["box"].values()) == pytest.approx(list(other["box"].values()), abs=1)
            else:
                assert one["mask"] == np.packbits(np.asarray(other["mask"]) > 0).tolist()


@pytest.mark.parametrize(
    "options", [{}, {"subtask": "semantic"}, {"subtask": "instance"}, {"threshold": 1.0}], ids=str
)
def test_a_semantic_checkpoint_gives_its_label_map(folders, options):
    """Whatever transformers takes it for: it asks processors for instances first."""
    folder, image = str(folders["semantic"]), PIL.Image.open(folders["image"])
    segments = pipeline("image-segmentation", model=folder, device="cpu")(image, **options)
    model, processor = SiTForSemanticSegmentation.from_pretrained(folder), SiTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(HEIGHT, WIDTH)])
    present = [number for number in SMALL["id2label"] if (label_map == number).any()]
    assert [segment["label"] for segment in segments] == [SMALL["id2label"][number] for number in present]
    for number, segment in zip(present, segments, strict=True):
        assert np.array_equal(np.asarray(segment["mask"]) > 0, label_map == number)


def test_batches_and_bfloat16(folders):
    """Images of one batch are padded together, each by itself; the heads compute in float32 whatever is asked for."""
    image = PIL.Image.open(folders["image"])
    run = pipeline("object-detection", model=str(folders["instance"]), device="cpu", dtype=torch.bfloat16)
    for entries in run([image, image]):
        assert {entry["label"] for entry in entries} == {"corner", "block"}
