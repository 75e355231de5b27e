"""The sizes of the boxes that a detector starts from, chosen or checked by the objects of the training images.

A wrong choice is the most frequent reason for an average precision near zero: no such box lies over an object well enough,
so that hardly any learns.
"""

from collections.abc import Sequence

import datasets
import numpy as np

# Of the levels of the feature pyramid, and of one more.
STRIDES = (4, 8, 16, 32, 64)
# Sides of the boxes as multiples of the strides; of several that are as good, the one next to the usual one is taken.
FACTORS, USUAL_FACTOR = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), 4.0
AS_GOOD = 0.05
QUANTILES = (0.05, 0.5, 0.95)
# A box of half or twice the side of an object covers a quarter of it, or is covered to a quarter.
FAR = 2.0


def object_sizes(split: datasets.Dataset, longest_edge: int) -> np.ndarray:
    """The roots of the areas of the boxes of all objects but crowds, in pixels of images whose longer side is `longest_edge`:
    float64 `(objects,)`.

    Args:
        split (`datasets.Dataset`): Rows as of `data.dense.rows`.
        longest_edge (`int`): Pixels.
    """
    sizes = [np.zeros(0)]
    for row in split.select_columns(["width", "height", "objects"]):
        boxes = np.array(row["objects"]["bbox"], dtype=np.float64).reshape(-1, 4)
        is_one = np.array(row["objects"]["iscrowd"], dtype=int).reshape(-1) == 0
        scale = longest_edge / max(row["width"], row["height"])
        sizes.append(np.sqrt(boxes[is_one, 2] * boxes[is_one, 3]) * scale)
    return np.concatenate(sizes)


def fitting_anchors(sizes: np.ndarray) -> list[float]:
    """Sides of the boxes, one for each stride, that fit objects of these sizes best."""
    if not len(sizes):
        return [USUAL_FACTOR * stride for stride in STRIDES]
    distances = {factor: misfit(sizes, [factor * stride for stride in STRIDES]) for factor in FACTORS}
    least = min(distances.values())
    good = [factor for factor in FACTORS if distances[factor] <= least + AS_GOOD]
    factor = min(good, key=lambda each: abs(np.log(each / USUAL_FACTOR)))
    return [factor * stride for stride in STRIDES]


def misfit(sizes: np.ndarray, anchors: Sequence[float]) -> float:
    """By how many doublings or halvings the sizes differ from the next anchor, in the mean."""
    return float(np.abs(np.log2(sizes[:, None] / np.array(anchors))).min(axis=1).mean())


def describe_anchors(sizes: np.ndarray, anchors: Sequence[float], longest_edge: int, is_chosen: bool) -> list[str]:
    """The anchors beside the sizes of the objects, a line or two.

    Args:
        sizes (`np.ndarray`): As [`object_sizes`] gives them.
        anchors (sequence of `float`): Sides in pixels.
        longest_edge (`int`): Of the images, in pixels.
        is_chosen (`bool`): Whether they were chosen by these sizes, and not by the user or an earlier training.
    """
    names = " ".join(f"{anchor:g}" for anchor in anchors)
    if not len(sizes):
        return [f"anchors of {names} pixels; the training images have no objects"]
    low, median, high = np.quantile(sizes, QUANTILES)
    origin = "chosen for" if is_chosen else "given, for"
    lines = [
        f"anchors of {names} pixels, {origin} objects of {low:.3g} to {high:.3g} pixels, {median:.3g} in the middle (90 % of "
        f"them; the images are {longest_edge} pixels long)"
    ]
    far = np.mean((sizes < min(anchors) / FAR) | (sizes > max(anchors) * FAR))
    if far > 0.1:
        lines.append(
            f"warning: {100 * far:.0f} % of the objects are less than half as large as the smallest anchor, or more than "
            "twice as large as the largest, and will hardly be found; give a larger `image_size` or other `anchor_sizes`"
        )
    return lines
