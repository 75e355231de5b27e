"""Errors know argument, problem and remedy; they survive a pickle and take the caller's names of arguments."""

import pickle
import signal

import pytest

from modeling_sit.runtime.errors import NAMED_ARGUMENT, SiTError, TrainingInterrupted, argument_names


@pytest.mark.parametrize(
    ("argument", "remedy", "text"),
    [
        (None, None, "no column 'foo'"),
        ("image_column", None, "image_column: no column 'foo'"),
        (None, "give img", "no column 'foo'; give img"),
        ("image_column", "give img", "image_column: no column 'foo'; give img"),
    ],
)
def test_text(argument, remedy, text):
    error = SiTError("no column 'foo'", argument=argument, remedy=remedy)
    assert str(error) == text
    assert (error.problem, error.argument, error.remedy) == ("no column 'foo'", argument, remedy)
    assert not error.is_shared


def test_processes_send_it_to_each_other():
    error = pickle.loads(pickle.dumps(SiTError("a problem", argument="seed", remedy="a remedy")))
    assert (error.problem, error.argument, error.remedy) == ("a problem", "seed", "a remedy")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("leave `label_column` out", ("label_column", "", "")),
        ('set `image_cache="disk"`', ("image_cache", '"', "disk")),
        ("set `seed=3`", ("seed", "", "3")),
        ("`hf auth login`", None),
        ("`--flag`", None),
        ("label_column", None),
    ],
)
def test_arguments_in_texts(text, found):
    match = NAMED_ARGUMENT.search(text)
    assert (match and (match[1], match[2] or "", match[3] or "")) == found


class TestNames:
    def test_are_the_callers(self):
        error = SiTError(
            'not with `split="all"` and `seed`', argument="split", remedy="give `split=` or `split_column`"
        ).renamed({"split": "test_split", "other": "seed"})
        assert error.argument == "test_split"
        assert error.problem == 'not with `test_split="all"` and `seed`'
        assert error.remedy == "give `test_split=` or `split_column`"

    def test_without_argument_and_remedy(self):
        error = SiTError("a split").renamed({"split": "test_split"})
        assert (error.problem, error.argument, error.remedy) == ("a split", None, None)

    def test_a_value_stays(self):
        assert SiTError("`split=split`").renamed({"split": "s"}).problem == "`s=split`"

    def test_in_a_block(self):
        original = SiTError("no such split", argument="split")
        original.is_shared = True
        with pytest.raises(SiTError) as error, argument_names(split="test_split"):
            raise original
        assert error.value.argument == "test_split" and error.value.is_shared
        assert error.value.__cause__ is original

    def test_other_errors_pass(self):
        with pytest.raises(KeyError), argument_names(split="test_split"):
            raise KeyError("split")
        with argument_names(split="test_split"):
            pass


def test_interruption():
    error = TrainingInterrupted(signal.SIGTERM, "stopped after step 3")
    for each in (error, pickle.loads(pickle.dumps(error))):  # as from another process
        assert (type(each), each.signal, str(each)) == (TrainingInterrupted, signal.SIGTERM, "stopped after step 3")
    assert (error.signal, str(error)) == (15, "stopped after step 3")
