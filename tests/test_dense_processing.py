"""Image processors of both backends for detection and segmentation: sizes, padding, annotations, label maps."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import DetrImageProcessor

from modeling_sit import SiTImageProcessor, SiTImageProcessorPil
from modeling_sit.run_length_encoding import encode_mask

BACKENDS = [SiTImageProcessor, SiTImageProcessorPil]
# Of resizing: see test_image_processing_sit.py.
TWO_LEVELS = 2.01 / 255 / 0.224
EDGE = {"longest_edge": 64}


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def backend(request):
    return request.param


def image(height=50, width=40):
    """Color gradients: images on which a resize is more than noise."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [127.5 + 127.5 * np.sin(5 * (a * y + b * x)) for a, b in ((1, 0), (0, 1), (1, 1))]
    return PIL.Image.fromarray(np.rint(np.stack(waves, -1)).astype(np.uint8))


def rectangle(height, width, left, top, right, bottom):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def objects(*boxes, height=50, width=40):
    """Rectangles `(left, top, right, bottom)` in COCO's form."""
    return [
        {
            "category_id": number % 3,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": (box[2] - box[0]) * (box[3] - box[1]),
            "iscrowd": 0,
            "segmentation": encode_mask(rectangle(height, width, *box)),
        }
        for number, box in enumerate(boxes)
    ]


def annotation(*boxes, image_id=7, **size):
    return {"image_id": image_id, "annotations": objects(*boxes, **size)}


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        (EDGE, (50, 40), (64, 51)),
        (EDGE, (100, 130), (49, 64)),
        (EDGE, (64, 64), (64, 64)),
        ({"shortest_edge": 32, "longest_edge": 48}, (50, 40), (40, 32)),
        ({"shortest_edge": 32, "longest_edge": 48}, (40, 100), (19, 48)),
        ({"shortest_edge": 32}, (40, 100), (32, 80)),
        ({"max_height": 30, "max_width": 64}, (40, 50), (30, 37)),
        ({"height": 20, "width": 30}, (50, 40), (20, 30)),
    ],
)
def test_sizes(backend, size, shape, expected):
    """The size of the pixels is that which labels and outputs are computed with."""
    processor = backend(size=size, do_pad=True, patch_size=8)
    features = processor(image(*shape), annotations=annotation(), return_tensors="pt")
    height, width = expected
    assert features["pixel_mask"][0].sum(dim=0).max() == height
    assert features["pixel_mask"][0].sum(dim=1).max() == width
    padded = [-(-side // 32) * 32 for side in expected]
    assert list(features["pixel_values"].shape) == [1, 3, *padded]
    assert features["labels"][0]["size"].tolist() == padded
    assert features["labels"][0]["orig_size"].tolist() == list(shape)
    # What is not padding is the image, resized as it is without padding.
    alone = backend(size={"height": height, "width": width})(image(*shape), return_tensors="pt")["pixel_values"]
    assert torch.equal(features["pixel_values"][..., :height, :width], alone)
    outside = features["pixel_values"].masked_fill(features["pixel_mask"][:, None] == 1, 0)
    assert not outside.any()


def test_a_batch_of_several_sizes_on_both_backends():
    batch = [image(50, 40), image(100, 130), image(65, 200)]
    labels = [annotation((3, 5, 20, 30)), annotation(image_id=8), annotation((0, 0, 200, 65), height=65, width=200)]
    ours, other = (
        backend(size=EDGE, do_pad=True, patch_size=8)(
            batch, annotations=labels, return_segmentation_masks=True, return_tensors="pt"
        )
        for backend in BACKENDS
    )
    assert ours["pixel_values"].shape == (3, 3, 64, 64)
    assert (ours["pixel_values"] - other["pixel_values"]).abs().max() <= TWO_LEVELS
    assert torch.equal(ours["pixel_mask"], other["pixel_mask"])
    for one, two in zip(ours["labels"], other["labels"], strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].dtype == two[name].dtype
            assert torch.equal(one[name], two[name])
    assert [label["image_id"].tolist() for label in ours["labels"]] == [[7], [8], [7]]
    assert [tuple(label["boxes"].shape) for label in ours["labels"]] == [(1, 4), (0, 4), (1, 4)]
    assert [tuple(label["masks"].shape) for label in ours["labels"]] == [(1, 64, 64), (0, 64, 64), (1, 64, 64)]
    # (200 x 65 becomes 64 x 21 of 64 x 64.)
    assert ours["labels"][2]["boxes"].tolist()[0] == pytest.approx([0.5, 21 / 128, 1, 21 / 64])


def test_labels_are_those_of_detr(backend):
    """Against transformers' own processor, on the same size and padding."""
    settings = {"size": {"shortest_edge": 48, "longest_edge": 60}, "do_pad": True}
    boxes = (3, 5, 20, 30), (10.5, 2, 60, 45), (0, 49, 40, 50)
    target = {"image_id": 3, "annotations": objects(*[tuple(map(int, box)) for box in boxes])}
    target["annotations"][1]["bbox"][0] = 10.5
    target["annotations"].append({**target["annotations"][0], "iscrowd": 1})
    target["annotations"].append({**target["annotations"][0], "bbox": [50, 3, 4, 4]})
    without_masks = {
        **target,
        "annotations": [{k: v for k, v in o.items() if k != "segmentation"} for o in target["annotations"]],
    }
    ours = backend(**settings, patch_size=8)(image(), annotations=target, return_tensors="pt")
    theirs = DetrImageProcessor(**settings, pad_size={"height": 64, "width": 64})(
        image(), annotations=without_masks, return_tensors="pt"
    )
    assert ours["labels"][0].keys() == theirs["labels"][0].keys()
    assert tuple(theirs["labels"][0].pop("size")) == tuple(ours["labels"][0].pop("size").tolist())
    for name, value in theirs["labels"][0].items():
        torch.testing.assert_close(ours["labels"][0][name], value)
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


def test_masks_follow_their_boxes(backend):
    """Of an enlarged image, each mask fills its box to the pixel."""
    boxes = [(3, 5, 20, 30), (0, 0, 40, 50), (39, 49, 40, 50)]
    processor = backend(size={"longest_edge": 200}, do_pad=True)
    features = processor(image(), annotations=annotation(*boxes), return_segmentation_masks=True, return_tensors="pt")
    label = features["labels"][0]
    assert label["masks"].dtype == torch.bool
    for mask, (left, top, right, bottom) in zip(label["masks"], boxes, strict=True):
        assert torch.equal(
            mask, torch.from_numpy(rectangle(224, 160, *[4 * s for s in (left, top, right, bottom)])) > 0
        )
    assert label["area"].tolist() == pytest.approx(label["masks"].sum(dim=(1, 2)).tolist())


def test_objects_without_what_is_optional(backend):
    entry = {"category_id": torch.tensor(2), "bbox": np.array([4, 5, 8, 10])}
    target = {"image_id": np.int64(1), "annotations": [entry]}
    label = backend(size=EDGE, do_pad=True)(image(), annotations=[target], return_tensors="pt")["labels"][0]
    assert label["class_labels"].tolist() == [2]
    assert label["area"].item() == pytest.approx(80 * (64 / 50) * (51 / 40))


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_return_tensors(backend, return_tensors):
    processor = backend(size=EDGE, do_pad=True)
    detection = processor([image()] * 2, annotations=[annotation((3, 5, 20, 30))] * 2, return_tensors=return_tensors)
    semantic = processor([image()] * 2, segmentation_maps=[np.ones((50, 40), int)] * 2, return_tensors=return_tensors)
    kind = torch.Tensor if return_tensors == "pt" else np.ndarray
    assert isinstance(detection["labels"][0]["boxes"], kind)
    if return_tensors:
        assert isinstance(semantic["labels"], kind)
    assert len(semantic["labels"]) == 2


# Label maps.


def test_label_maps(backend):
    values = np.arange(50 * 40).reshape(50, 40) % 256
    values[values == 255] = 3
    processor = backend(size={"longest_edge": 100}, do_pad=True)
    labels = processor(image(), segmentation_maps=values, return_tensors="pt")["labels"]
    assert labels.dtype == torch.int64
    expected = np.full((128, 96), 255)
    expected[:100, :80] = np.kron(values, np.ones((2, 2)))
    assert np.array_equal(labels[0], expected)


def test_label_maps_are_resized_as_pillow_does(backend):
    values = np.random.default_rng(0).integers(0, 20, (50, 40), dtype=np.uint8)
    labels = backend(size=EDGE, do_pad=True)(image(), segmentation_maps=values, return_tensors="pt")["labels"]
    expected = PIL.Image.fromarray(values).resize((51, 64), PIL.Image.Resampling.NEAREST)
    assert np.array_equal(labels[0, :, :51], expected)
    assert (labels[0, :, 51:] == 255).all()


def test_forms_of_a_label_map(backend):
    values = np.random.default_rng(0).integers(0, 4, (50, 40), dtype=np.uint8)
    palette = PIL.Image.fromarray(values)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    processor = backend(size=EDGE, do_pad=True)
    expected = processor(image(), segmentation_maps=values, return_tensors="pt")["labels"]
    forms = [
        PIL.Image.fromarray(values),
        palette,
        PIL.Image.fromarray(values.astype(np.uint16)),
        PIL.Image.fromarray(values.astype(np.int32)),
        values[None],
        torch.from_numpy(values),
        [values[..., None]],
    ]
    for form in forms:
        assert torch.equal(processor(image(), segmentation_maps=form, return_tensors="pt")["labels"], expected)
    deep = values.astype(np.uint16) * 1000
    labels = processor(image(), segmentation_maps=[PIL.Image.fromarray(deep)], return_tensors="pt")["labels"]
    assert labels.max() == 3000


def test_labels_are_reduced(backend):
    values = np.tile(np.array([[0, 1, 2, 254, 255]], dtype=np.uint8), (50, 8))
    processor = backend(size={"height": 50, "width": 40}, do_reduce_labels=True)
    labels = processor(image(), segmentation_maps=[values], return_tensors="pt")["labels"]
    assert labels[0, 0, :5].tolist() == [255, 0, 1, 253, 255]
    assert "pixel_mask" not in processor(image(), segmentation_maps=[values], return_tensors="pt")


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"size": EDGE, "do_pad": True},
        {"size": {"shortest_edge": 32, "longest_edge": 48}, "do_pad": True, "pad_multiple": 64},
        {"size": EDGE, "do_pad": True, "pad_size": {"height": 96, "width": 64}, "do_reduce_labels": True},
        {"pad_multiple": 16},
    ],
    ids=str,
)
def test_settings_survive(backend, tmp_path, settings):
    processor = backend(**settings)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in settings} == settings
    loaded = backend.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    if "do_pad" in settings:
        one, two = (each(image(), return_tensors="pt") for each in (processor, loaded))
        assert torch.equal(one["pixel_values"], two["pixel_values"])
        assert torch.equal(one["pixel_mask"], two["pixel_mask"])


def test_a_classifiers_file_has_no_settings_of_these(backend, tmp_path):
    backend().save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert not {"pad_multiple", "do_reduce_labels", "do_pad"} & written.keys()
    assert list(backend.from_pretrained(tmp_path)(image(), return_tensors="pt")) == ["pixel_values"]


def test_padding_by_other_settings(backend):
    processor = backend(do_resize=False, do_pad=True, patch_size=8)
    batch = [image(50, 40), image(33, 70)]
    shape = lambda **settings: tuple(processor(batch, return_tensors="pt", **settings)["pixel_values"].shape[2:])  # noqa: E731
    assert shape() == (64, 96)
    assert shape(pad_multiple=None) == (64, 96)
    assert shape(pad_multiple=1) == (50, 70)
    assert shape(pad_size={"height": 100, "width": 90}) == (100, 90)


# Bad input, one clear line each.


def test_bad_annotations(backend):
    processor = backend(size=EDGE, do_pad=True)
    good = objects((3, 5, 20, 30))[0]

    def problem(target, masks=False, **settings):
        with pytest.raises(ValueError) as raised:
            processor([image()], annotations=target, return_segmentation_masks=masks, return_tensors="pt", **settings)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    of = lambda **changes: [{"image_id": 5, "annotations": [good, {**good, **changes}]}]  # noqa: E731
    assert problem([{"image_id": "a7", "annotations": []}]) == "image_id must be a whole number from 0 on, got 'a7'"
    assert problem([{"annotations": []}]).startswith('annotations must be {"image_id": int')
    assert problem([good]).startswith('annotations must be {"image_id": int')
    assert problem([annotation()] * 2) == "there are 1 images, and 2 annotations"
    start = "object 1 of image 5: "
    assert problem(of(category_id="cat")) == start + "category_id must be a whole number from 0 on, got 'cat'"
    assert problem(of(category_id=-1)).startswith(start + "category_id must be")
    assert problem(of(bbox=[1, 2, 3])).startswith(start + "bbox must be four numbers")
    assert problem(of(bbox=[1, 2, float("nan"), 3])).startswith(start + "bbox must be four numbers")
    assert (
        problem([{"image_id": 5, "annotations": [{"bbox": [1, 2, 3, 4]}]}]) == "object 0 of image 5 has no category_id"
    )
    other = encode_mask(np.ones((40, 50)))
    assert problem(of(segmentation=other), masks=True) == start + "its mask has 50 x 40 pixels, and the image 40 x 50"
    assert problem(of(segmentation=None), masks=True) == start + "it has no segmentation"
    assert problem(of(segmentation=[[1, 2, 3, 4]]), masks=True).startswith(start + "a polygon needs")
    assert "do_center_crop" in problem(of(), do_center_crop=True, crop_size={"height": 32, "width": 32})


def test_bad_label_maps(backend):
    processor = backend(size=EDGE, do_pad=True)

    def problem(maps, **arguments):
        with pytest.raises(ValueError) as raised:
            processor([image()], segmentation_maps=maps, return_tensors="pt", **arguments)
        return str(raised.value)

    assert problem([np.zeros((40, 50), np.uint8)]) == "a segmentation map has 50 x 40 pixels, and its image 40 x 50"
    assert "one channel" in problem([image()])
    assert "whole numbers" in problem([np.zeros((50, 40))])
    assert problem([np.zeros((50, 40), int)] * 2) == "there are 1 images, and 2 segmentation_maps"
    assert "either" in problem([np.zeros((50, 40), int)], annotations=[annotation()])


@pytest.mark.parametrize(
    ("shape", "text"),
    [((50, 15), "image 1 has 15 x 50 pixels, less than"), ((900, 20), "image 1 has 1 x 64 pixels after resizing")],
)
def test_an_image_smaller_than_a_patch(backend, shape, text):
    with pytest.raises(ValueError, match=text):
        backend(size=EDGE, do_pad=True)([image(), image(*shape)], return_tensors="pt")


@pytest.mark.parametrize("value", [0, -32, 3.5, True, "32"])
def test_a_bad_multiple(backend, value):
    with pytest.raises(ValueError, match="pad_multiple"):
        backend(pad_multiple=value)
