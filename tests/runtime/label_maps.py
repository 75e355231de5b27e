"""Made-up label maps with predictions, and their figures by a slow twin."""

import math

import numpy as np


def slow_figures(predictions, references, num_labels: int, ignore_index: int = 255) -> dict[str, float]:
    """By sets of pixels."""
    true, predicted = ({label: set() for label in range(num_labels)} for _ in range(2))
    right = total = 0
    for image, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        for row in range(len(reference)):
            for column in range(len(reference[0])):
                pixel, truth, guess = (image, row, column), reference[row][column], prediction[row][column]
                if truth == ignore_index:
                    continue
                total, right = total + 1, right + (truth == guess)
                true[truth].add(pixel)
                if guess in predicted:
                    predicted[guess].add(pixel)
    iou, accuracy = {}, {}
    for label in range(num_labels):
        either, both = true[label] | predicted[label], true[label] & predicted[label]
        iou[label] = len(both) / len(either) if either else math.nan
        accuracy[label] = len(both) / len(true[label]) if true[label] else math.nan
    return {
        "mean_iou": np.mean([value for value in iou.values() if not math.isnan(value)]),
        "mean_accuracy": np.mean([value for value in accuracy.values() if not math.isnan(value)]),
        "overall_accuracy": right / total,
        **{f"iou_{label}": value for label, value in iou.items()},
        **{f"accuracy_{label}": value for label, value in accuracy.items()},
    }


def maps(seed: int, num_labels: int = 4) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images of different sizes; a fifth of their pixels is ignored; the last class is nowhere true."""
    generator = np.random.default_rng(seed)
    predictions, references = [], []
    for shape in ((7, 9), (5, 4), (1, 3)):
        reference = generator.integers(0, num_labels - 1, shape)
        prediction = np.where(generator.random(shape) < 0.6, reference, generator.integers(0, num_labels, shape))
        reference[generator.random(shape) < 0.2] = 255
        predictions.append(prediction)
        references.append(reference)
    return predictions, references
