import io

import numpy as np
import PIL.Image
import pytest

from modeling_sit.data.decoding import DAMAGED, NOT_SUPPORTED, TOO_LARGE, UnfitImage, UnreadableImage, decode_image
from modeling_sit.data.unreadable import as_error


@pytest.mark.parametrize("reason", [DAMAGED, NOT_SUPPORTED, TOO_LARGE, "No such file or directory"])
@pytest.mark.parametrize("in_worker", [False, True])
def test_the_remedy_is_for_what_is_wrong(reason, in_worker):
    """A worker's exception arrives with its traceback before the message."""
    message = f"100 images in a row, the last of them a.png: {reason}: why"
    if in_worker:
        prefix = "modeling_sit.data.opening.UnreadableImage: "
        message = f"Caught UnreadableImage in DataLoader worker process 0.\nTraceback ...\n{prefix}{message}\n"
    error = as_error("cells", UnreadableImage(message))
    assert error.argument == "dataset" and error.problem.startswith("cells cannot be read: 100 images")
    assert ("damaged" in (error.remedy or "")) == (reason == DAMAGED)
    assert ("SIT_MAX_IMAGE_PIXELS" in (error.remedy or "")) == (reason == TOO_LARGE)
    assert ("convert" in (error.remedy or "")) == (reason == NOT_SUPPORTED)


def test_each_of_several_reasons_has_its_remedy():
    problems = f"none of the 2 images of a batch: a.png: {DAMAGED}: cut; b.png: {TOO_LARGE}: 9 x 9 pixels"
    remedy = as_error("cells", UnreadableImage(problems)).remedy
    assert "damaged" in remedy and "raise the limit" in remedy and "convert" not in remedy


def test_sound_images_that_do_not_fit_are_told_how_to_fit():
    encoded = io.BytesIO()
    PIL.Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(encoded, "PNG")
    with pytest.raises(UnfitImage) as caught:
        decode_image(encoded.getvalue(), 12, name="a.png")
    in_worker = (
        f"Traceback ...\nmodeling_sit.data.opening.UnfitImage: 100 images in a row, the last of them {caught.value}\n"
    )
    for message in (str(caught.value), in_worker):
        error = as_error("cells", UnfitImage(message))
        assert "num_channels" in error.remedy and "damaged" not in error.remedy and "UnfitImage" not in error.problem


def test_a_missing_reader_is_its_own_remedy():
    problem = UnfitImage("a.tif: a TIFF of 12 channels of 16 bits, which Pillow does not read: pip install 'it[that]'")
    assert as_error("cells", problem).remedy is None
