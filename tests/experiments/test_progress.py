"""Progress: which run it is, and what is left."""

from modeling_sit.experiments import progress as module
from modeling_sit.experiments.progress import Progress


def test_lines(monkeypatch, capsys):
    clock = iter([0.0, 60.0, 100.0, 105.0, 0.0, 0.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    progress = Progress({"pretraining": 2, "fine-tuning": 3})
    for kind, name in (("pretraining", "sit"), ("fine-tuning", "sit"), ("pretraining", "mae")):
        with progress(kind, f"{kind}: {name}"):
            pass
    assert capsys.readouterr().out.split("\n\n")[0].strip() == "[1 of 5] pretraining: sit"
    assert progress.left() == "; about 10 seconds left"


def test_kinds_of_unknown_length(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 0.0, 0.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    progress = Progress({"pretraining": 2, "search": 1})
    with progress("pretraining", "first"):
        pass
    assert progress.left() == "; about 30 seconds left and 1 run of search of unknown length"
    with progress("not foreseen", "second"):
        pass
    assert "[2 of 3] second; about 30 seconds" in capsys.readouterr().out


def test_a_run_that_fails_is_not_done():
    progress = Progress({"pretraining": 1})
    try:
        with progress("pretraining", "first"):
            raise ValueError
    except ValueError:
        pass
    assert progress.missing["pretraining"] == 1 and not progress.seconds
