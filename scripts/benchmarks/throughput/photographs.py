"""Images for users who have none: JPEG files that take as long to decode as photographs."""

from pathlib import Path

import numpy as np
import PIL.Image

WIDTH, HEIGHT = 500, 375  # of most images in ImageNet and in the Oxford sets
JPEG_QUALITY = 90
NUM_EDGES = 12


def write_photographs(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` JPEG files of 500 x 375 pixels into a folder.

    They are sums of noise whose amplitude falls with its frequency, as in natural images, crossed by straight edges, so
    that a file has about the size, and the decoder about the work, of a photograph's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        PIL.Image.fromarray(photograph(generator)).save(folder / f"{number:05}.jpg", quality=JPEG_QUALITY)
    return folder


def photograph(generator: np.random.Generator) -> np.ndarray:
    """Pixels, uint8 `(375, 500, 3)`."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    amplitude = 1 / np.maximum(frequency, 1 / WIDTH) ** 1.4
    phases = generator.uniform(0, 2 * np.pi, (3, *frequency.shape))
    brightness, *tints = np.fft.irfft2(amplitude * np.exp(1j * phases), s=(HEIGHT, WIDTH))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    brightness = brightness / brightness.std()
    for _ in range(NUM_EDGES):
        row, column, angle = generator.uniform(0, (HEIGHT, WIDTH, 2 * np.pi))
        beyond = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle) > 0
        brightness += generator.normal(0, 0.6) * beyond
    # Color changes less than brightness does.
    channels = brightness + 0.3 * np.stack([tints[0], -tints[0] - tints[1], tints[1]]) / np.std(tints)
    centred = channels - channels.mean()
    return (128 + 50 * centred / centred.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
