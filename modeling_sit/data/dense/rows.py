"""The rows of a dataset for dense tasks: images with objects, or with a class for each pixel."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from modeling_sit.data.dense.annotations import AnnotatedObject
from modeling_sit.data.split_names import split_named

ENCODED = datasets.Image(decode=False)
OBJECTS = "objects"  # the column
# Of pixels without a class.
IGNORED_PIXEL = 255
MAX_PIXEL_CLASSES = IGNORED_PIXEL


def object_features(label_names: Sequence[str]) -> datasets.Features:
    """The columns of images with objects.

    `image`, `image_id`, `width` and `height` in pixels, and `objects`, a struct of lists: `id`, `bbox` (x, y of the upper
    left corner, width, height, in pixels), `category` (from 0), `area` (square pixels), `iscrowd` (1 for a crowd),
    `segmentation` (compressed run lengths, or null).

    Args:
        label_names (sequence of `str`): Names of the classes, in the order of their indices.
    """
    segmentation = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
    return datasets.Features(
        {
            "image": ENCODED,
            "image_id": datasets.Value("int64"),
            "width": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            OBJECTS: {
                "id": datasets.List(datasets.Value("int64")),
                "bbox": datasets.List(datasets.List(datasets.Value("float64"), length=4)),
                "category": datasets.List(datasets.ClassLabel(names=list(label_names))),
                "area": datasets.List(datasets.Value("float64")),
                "iscrowd": datasets.List(datasets.Value("int64")),
                "segmentation": datasets.List(segmentation),
            },
        }
    )


def pixel_features() -> datasets.Features:
    """The columns of images with a class for each pixel: `image` and `label`, a mask image of one channel, whose values
    are indices of classes, and [`IGNORED_PIXEL`] where there is none."""
    return datasets.Features({"image": ENCODED, "label": ENCODED})


def object_columns(
    image_ids: Sequence[int], sizes: Sequence[tuple[int, int]], objects: Sequence[Sequence[AnnotatedObject]]
) -> dict[str, pa.Array]:
    """The columns of [`object_features`] but for `image`, as Arrow arrays.

    Args:
        image_ids (sequence of `int`): Of each image.
        sizes (sequence of pairs): Width and height of each image.
        objects (sequence of sequences of [`AnnotatedObject`]): Of each image.
    """
    counts = np.array([len(each) for each in objects], dtype=np.int64)
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]), pa.int32())
    flat = [each for of_image in objects for each in of_image]
    boxes = np.array([each.box for each in flat], dtype=np.float64).reshape(-1)
    values = {
        "id": pa.array([each.id for each in flat], pa.int64()),
        "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes), 4),
        "category": pa.array([each.category for each in flat], pa.int64()),
        "area": pa.array([each.area for each in flat], pa.float64()),
        "iscrowd": pa.array([each.is_crowd for each in flat], pa.int64()),
        "segmentation": pa.array(
            [each.mask for each in flat],
            pa.struct([pa.field("size", pa.list_(pa.int32())), pa.field("counts", pa.string())]),
        ),
    }
    lists = {name: pa.ListArray.from_arrays(offsets, column) for name, column in values.items()}
    sizes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return {
        "image_id": pa.array(image_ids, pa.int64()),
        "width": pa.array(sizes[:, 0]),
        "height": pa.array(sizes[:, 1]),
        "objects": pa.StructArray.from_arrays(list(lists.values()), list(lists)),
    }


def table_of(columns: dict[str, pa.Array], features: datasets.Features, split: str) -> datasets.Dataset:
    """A dataset of Arrow columns, in memory."""
    return datasets.Dataset.from_dict(columns, features=features, split=split_named(split))


def names_of(rows: datasets.Dataset) -> list[str]:
    """Names of the classes of rows with objects."""
    return rows.features["objects"]["category"].feature.names


def annotations_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a row in COCO's form: fields `id`, `image_id`, `category_id` (from 0), `bbox`, `area`, `iscrowd`,
    `segmentation` (where there is a mask)."""
    objects = row["objects"]
    annotations = []
    for place, number in enumerate(objects["id"]):
        annotation = {"id": number, "image_id": row["image_id"], "category_id": objects["category"][place]}
        annotation |= {name: objects[name][place] for name in ("bbox", "area", "iscrowd")}
        if objects["segmentation"][place] is not None:
            annotation["segmentation"] = objects["segmentation"][place]
        annotations.append(annotation)
    return annotations
