"""What figures call models."""

import pytest

from modeling_sit.visualization.models import titles_of


@pytest.mark.parametrize(
    ("models", "titles"),
    [
        (["outputs/mine"], ["mine"]),
        (["user/model-of-the-hub", "outputs/mine/"], ["model-of-the-hub", "mine"]),
        (["random", "outputs/mine"], ["before training (random weights)", "after training"]),
        (["random", "a/first", "a/second"], ["before training (random weights)", "first", "second"]),
        (["a/x/last", "b/x/last", "other", "last"], ["a/x/last", "b/x/last", "other", "last"]),
        (["a/last", "b/last"], ["a/last", "b/last"]),
        (["a/one", "b/one", "a/two", "b/two"], ["a/one", "b/one", "a/two", "b/two"]),
    ],
)
def test_titles_are_short_and_different(models, titles):
    assert titles_of(models) == titles
