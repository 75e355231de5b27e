"""A terminal of ASCII ends no program, and files keep every character."""

import io
import sys

import pytest

from modeling_sit.cli.main import main
from modeling_sit.cli.terminal import print_any_character
from modeling_sit.experiments import report

AWKWARD = "37.5 ± 17.7 % – Ångström \U0001f600 \udcc3"


def terminal(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True)


def shown(stream: io.TextIOWrapper) -> str:
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.fixture
def use_ascii(monkeypatch):
    """Have the terminal that Python has with LC_ALL=C, PYTHONUTF8=0 and PYTHONCOERCECLOCALE=0. To be called in the test,
    because pytest sets its own streams between a fixture and the test."""
    return lambda: use_terminal_of_ascii(monkeypatch)


def use_terminal_of_ascii(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal("ascii"))
    monkeypatch.setattr(sys, "stderr", terminal("ascii", "backslashreplace"))
    with pytest.raises(UnicodeEncodeError):
        print(AWKWARD)
    sys.stdout.buffer.seek(0)
    sys.stdout.buffer.truncate()


def test_no_character_fails(use_ascii):
    use_ascii()
    print_any_character()
    print(AWKWARD)
    print(AWKWARD, file=sys.stderr)
    assert shown(sys.stdout) == "37.5 ? 17.7 % ? ?ngstr?m ? ?\n"
    assert "37.5 \\xb1 17.7" in shown(sys.stderr)


@pytest.mark.parametrize("encoding", ["latin-1", "cp437", "utf-8"])
def test_characters_that_there_are_are_shown(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", terminal(encoding))
    print_any_character()
    print("17.7 ± 1", AWKWARD[-1])
    assert shown(sys.stdout) == "17.7 ± 1 ?\n"


def test_a_stream_that_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    print_any_character()
    print(AWKWARD)
    assert sys.stdout.getvalue() == AWKWARD + "\n"


def test_every_command_begins_so(use_ascii):
    use_ascii()
    with pytest.raises(SystemExit):
        main(["±"])
    print(AWKWARD)
    assert "37.5" in shown(sys.stdout)


class Chart:
    """One that is saved as Matplotlib's are."""

    def savefig(self, path, dpi, format):
        path.write_bytes(b"chart")


def test_a_report_is_written_before_it_is_printed(use_ascii, tmp_path):
    """From Python, nobody has prepared the terminal."""
    use_ascii()
    table = "| 37.5 ± 17.7 % – Ångström |"
    with pytest.raises(UnicodeEncodeError):
        report.write_report(tmp_path, [table], {"mean": 37.5}, {"results.png": Chart()})
    assert (tmp_path / "results.md").read_bytes().decode("utf-8") == table + "\n"
    assert {path.name for path in tmp_path.iterdir()} == {"results.md", "results.json", "results.png"}


def test_a_report_that_cannot_be_written_is_printed(capsys, tmp_path):
    with pytest.raises(report.SiTError):
        report.write_report(tmp_path / "nowhere", ["| a table |"], {}, {"results.png": Chart()})
    assert "| a table |" in capsys.readouterr().out
