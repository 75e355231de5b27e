"""Where bars and lines go, and what transformers says of files of weights."""

import io

import pytest
from transformers.utils import logging

from modeling_sit.runtime import progress
from modeling_sit.runtime.progress import quiet_transformers, shows_bar, write_line


@pytest.mark.parametrize("in_notebook", [True, False])
def test_notebook_shows_bars_and_has_lines_in_stdout(in_notebook, monkeypatch, capsys):
    monkeypatch.setattr(progress, "is_in_notebook", lambda: in_notebook)
    assert shows_bar(io.StringIO()) == in_notebook
    write_line("step 1")
    captured = capsys.readouterr()
    shown, empty = (captured.out, captured.err) if in_notebook else (captured.err, captured.out)
    assert (shown, empty) == ("step 1\n", "")


@pytest.mark.parametrize("had_bars", [True, False])
def test_transformers_is_quiet_in_the_block_and_as_before_after_it(had_bars):
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        logging.set_verbosity_info()
        switch[had_bars]()
        with pytest.raises(ZeroDivisionError), quiet_transformers():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise ZeroDivisionError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, had_bars)
    finally:
        logging.set_verbosity(verbosity)
        switch[shows_bars]()
