"""What stands behind the controls of the page: from their values to HTML. The browser's library is not needed here."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from modeling_sit.data.sources import load_images
from modeling_sit.demo.answers import (
    Corruption,
    Shown,
    attend,
    classify,
    find_objects,
    look,
    map_page,
    neighbours,
    reconstruct,
)
from modeling_sit.demo.arguments import RANDOM, DemoArguments
from modeling_sit.demo.checkpoints import ShownCheckpoint, load_shown, untrained_twin
from modeling_sit.demo.gallery import Gallery, Query, uploaded
from modeling_sit.demo.page import figures, framed, paragraph, probabilities, side_by_side
from modeling_sit.runtime.accelerator import choose_device
from modeling_sit.runtime.errors import SiTError, argument_names

NUM_COMPARED = 6  # neighbors of each checkpoint


class Demonstration:
    """
    The checkpoints and images of a page. Each method answers one of its buttons.

    `file` is the path of an uploaded file, `number` that of an image of the dataset, which counts where there is no file. All
    methods raise [`SiTError`] with a message for the user.

    Args:
        arguments ([`DemoArguments`]): Limits of uploads.
        checkpoint ([`ShownCheckpoint`]): What is shown.
        compared ([`ShownCheckpoint`], *optional*): What is shown beside it.
        gallery ([`Gallery`], *optional*): Images of a dataset.
    """

    def __init__(
        self,
        arguments: DemoArguments,
        checkpoint: ShownCheckpoint,
        compared: ShownCheckpoint | None = None,
        gallery: Gallery | None = None,
    ):
        self.arguments = arguments
        self.checkpoint = checkpoint
        self.compared = compared
        self.gallery = gallery
        self._maps: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, arguments: DemoArguments) -> "Demonstration":
        """The checkpoints and images that arguments name.

        Raises:
            [`SiTError`]: If a checkpoint or the dataset cannot be used.
        """
        arguments.check_intensity_range()
        device = choose_device(arguments.device)
        name = arguments.model_name_or_path
        checkpoint = load_shown(name, arguments.network, arguments.num_attention_heads, device)
        arguments.set_intensity_range(checkpoint.processor, checkpoint.model.config)
        compared = None
        if arguments.compare_with == RANDOM:
            compared = untrained_twin(checkpoint, name, arguments.seed)
        elif arguments.compare_with is not None:
            with argument_names(model_name_or_path="compare_with"):
                compared = load_shown(arguments.compare_with, device=device)
            arguments.set_intensity_range(compared.processor, compared.model.config)
            if compared.name == checkpoint.name:
                checkpoint, compared = (
                    replace(each, name="/".join(Path(path).parts[-2:]))
                    for each, path in ((checkpoint, name), (compared, arguments.compare_with))
                )
        gallery = None
        if arguments.dataset is not None:
            gallery = Gallery.of(load_images(**arguments.for_loading), arguments.max_images, arguments.seed)
        return cls(arguments, checkpoint, compared, gallery)

    def describe(self) -> list[str]:
        """What the page shows and what its limits are, in lines."""
        lines = [self.checkpoint.describe()]
        if self.compared is not None:
            lines.append(f"beside it {self.compared.describe()}")
        if self.gallery is not None:
            lines.append(f"{len(self.gallery):,} images of {Path(self.gallery.name).name}")
        lines.append(
            f"Files of up to {self.arguments.max_upload_megabytes:g} MB and {self.arguments.max_upload_pixels / 1e6:g} "
            f"million pixels; of animations the first frame. Computed on {self.checkpoint.model.device.type}."
        )
        return lines

    def query(self, file: str | None, number: Any) -> Query:
        """The image that is chosen."""
        if file:
            return uploaded(file, self.arguments.max_upload_megabytes)
        if self.gallery is None:
            raise SiTError("there is no image yet", remedy="give one")
        return self.gallery.query(number)

    def look(self, file: str | None, number: Any) -> tuple[str, PIL.Image.Image]:
        """The image, and the same to paint on."""
        shown = look(self.checkpoint, self.query(file, number))
        return figures(shown), shown[-1].image

    def reconstruct(self, file: str | None, number: Any, kind: str, ratio: float, block_size: float, seed: int) -> str:
        """The image corrupted by random blocks, and reconstructed."""
        query = self.query(file, number)
        corruption = Corruption(kind, ratio, block_size, seed)
        return figures(reconstruct(self.checkpoint, query, corruption, self._donor(query)))

    def reconstruct_painted(self, file: str | None, number: Any, painted: dict | None, kind: str, seed: int) -> str:
        """The image corrupted where the user has painted, and reconstructed."""
        query = self.query(file, number)
        corruption = Corruption(kind, seed=seed)
        mask = painted_mask(painted)
        return figures(reconstruct(self.checkpoint, query, corruption, self._donor(query), mask))

    def attend(self, file: str | None, number: Any, layer: int | None, heads: Sequence[int] | None) -> str:
        """Where the first token looks."""
        return figures(attend(self.checkpoint, self.query(file, number), layer, heads))

    def neighbours(self, file: str | None, number: Any, count: int) -> str:
        """The nearest images of the dataset."""
        return figures(self._nearest(self.checkpoint, self.query(file, number), count))

    def map(self, method: str = "tsne") -> str:
        """The map of the dataset, in a frame. It is drawn once."""
        gallery = self._gallery()
        with self._lock:
            if method not in self._maps:
                page = gallery.answer(lambda: map_page(self.checkpoint, gallery, method))
                self._maps[method] = framed(page, f"map of the features of {len(gallery):,} images")
            return self._maps[method]

    def classify(self, file: str | None, number: Any) -> dict[str, float]:
        """The classes of the image, with their probabilities."""
        return classify(self.checkpoint, self.query(file, number))

    def find(self, file: str | None, number: Any, threshold: float) -> str:
        """The objects, or the classes of pixels, that the model finds."""
        return figures(find_objects(self.checkpoint, self.query(file, number), threshold), is_wide=True)

    def compare(self, file: str | None, number: Any, kind: str, ratio: float, seed: int) -> str:
        """What both checkpoints make of the image: the same corruption, and each one's attention, neighbors and prediction."""
        if self.compared is None:
            raise SiTError("there is one checkpoint alone", remedy="start the demo with `compare_with`")
        query = self.query(file, number)
        corruption = Corruption(kind, ratio, seed=seed)
        query.read(
            self.checkpoint.pixel_format
        )  # an image that cannot be read is one error, and not a note in each column

        def blocks(checkpoint: ShownCheckpoint) -> list[str]:
            parts: list[tuple[str, Callable[[], list[Shown]]]] = [
                ("Reconstruction", lambda: reconstruct(checkpoint, query, corruption, self._donor(query))[1:]),
                ("Attention, mean of the heads", lambda: attend(checkpoint, query)[1:2]),
            ]
            if self.gallery is not None:
                parts.append(("Nearest images", lambda: self._nearest(checkpoint, query, NUM_COMPARED)))
            found = []
            for title, answer in parts:
                try:
                    found += [paragraph(title), figures(answer())]
                except SiTError as error:  # one of the two may have no decoder
                    found += [paragraph(title), paragraph(error.problem)]
            if checkpoint.task is not None:
                found.append(paragraph("Prediction"))
            if checkpoint.task == "classification":
                found.append(probabilities(classify(checkpoint, query)))
            elif checkpoint.task is not None:
                found.append(figures(find_objects(checkpoint, query), is_wide=True))
            return found

        return side_by_side([(each.name, blocks(each)) for each in (self.checkpoint, self.compared)])

    def _nearest(self, checkpoint: ShownCheckpoint, query: Query, count: int) -> list[Shown]:
        gallery = self._gallery()
        return gallery.answer(lambda: neighbours(checkpoint, query, gallery, count))

    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise SiTError("there is no dataset", remedy="start the demo with `dataset`")
        return self.gallery

    def _donor(self, query: Query) -> Query | None:
        """Another image, which the same image always gets."""
        if self.gallery is None or len(self.gallery) < 2:
            return None
        return self.gallery.query(((query.row or 0) + len(self.gallery) // 2) % len(self.gallery))


def painted_mask(painted: dict | None) -> np.ndarray:
    """The places `(height, width)` that a user has painted on, bool, from the layers of the canvas.

    Args:
        painted (`dict`, *optional*): `layers`, a list of RGBA arrays `(height, width, 4)`.

    Raises:
        [`SiTError`]: If there is nothing to paint on.
    """
    layers = [np.asarray(layer) for layer in (painted or {}).get("layers") or ()]
    if not layers:
        raise SiTError("nothing is painted", remedy="paint on the image first")
    return np.any([layer[..., 3] > 0 for layer in layers], axis=0)
