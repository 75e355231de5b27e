"""Where bars and lines go, and what transformers says of files of weights."""

import io

import huggingface_hub.utils
import pytest
from transformers.utils import logging

from modeling_sit.runtime import progress
from modeling_sit.runtime.progress import bar_of_images, quiet_transformers, shows_bar, write_line


@pytest.mark.parametrize("in_notebook", [True, False])
def test_notebook_shows_bars_and_has_lines_in_stdout(in_notebook, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_in_notebook", lambda: in_notebook)
    assert shows_bar(io.StringIO()) == in_notebook
    write_line("step 1")
    captured = capsys.readouterr()
    shown, empty = (captured.out, captured.err) if in_notebook else (captured.err, captured.out)
    assert (shown, empty) == ("step 1\n", "")


@pytest.mark.parametrize(
    "is_terminal, seconds_an_image, times_shown",
    [(True, 1.0, 202), (True, 0.001, 4), (False, 1.0, 4), (False, 0.2, 0)],
    ids=["terminal", "quick on a terminal", "log", "quick in a log"],
)
def test_a_log_has_a_line_of_the_bar_each_minute(is_terminal, seconds_an_image, times_shown, monkeypatch, capsys):
    """200 images: a terminal before all and after each, a log after 60, 120 and 180 seconds; both again at the end."""
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    monkeypatch.setattr(progress, "shows_bar", lambda stream: is_terminal)
    with bar_of_images(200, "features") as bar:
        for _ in range(200):
            now += seconds_an_image
            bar.update()
    said = capsys.readouterr().err
    assert said.count("features") == times_shown and ("200/200" in said) == (times_shown > 0)
    with bar_of_images(1, "features", shown=False) as bar:
        now += 100
        bar.update()
    assert capsys.readouterr().err == ""


def test_transformers_is_quiet_in_the_block_and_as_before_after_it(monkeypatch, capsys):
    def shown(bar) -> bool:
        assert list(bar(range(2))) == [0, 1]
        return "2/2" in capsys.readouterr().err

    monkeypatch.setattr(logging, "_tqdm_active", True)
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        with pytest.raises(ZeroDivisionError), quiet_transformers():
            with quiet_transformers():
                pass
            assert logging.get_verbosity() == logging.ERROR
            assert not shown(logging.tqdm)
            assert shown(huggingface_hub.utils.tqdm)  # somebody waits for a download
            raise ZeroDivisionError
        assert logging.get_verbosity() == logging.INFO and shown(logging.tqdm)
    finally:
        logging.set_verbosity(verbosity)
