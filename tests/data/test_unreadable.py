import pytest

from modeling_sit.data.decoding import DAMAGED, NOT_SUPPORTED, TOO_LARGE, UnreadableImage
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
