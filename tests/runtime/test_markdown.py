"""Whatever is put into a card comes out of it when it is rendered."""

import pytest

from modeling_sit.runtime.markdown import code, code_block, escaped, table

TEXTS = [
    "plain words",
    "a|b",
    "*stars* and **more**",
    "_under_ snake_case __init__",
    "`tick` and ``ticks``",
    "`",
    "<script>alert(1)</script> <b>",
    "[a](b) ![c](d)",
    "&amp; $x$ ~~y~~",
    "back\\slash \\| and \\*",
    "{{ 7 * 7 }} {% if %}",
    "Tübingen, 日本",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text(page, text):
    shown = page(f"before {escaped(text)} after")
    assert shown.text == f"before {text} after\n"
    assert not shown.images and not shown.links


@pytest.mark.parametrize("text", TEXTS)
def test_code(page, text):
    assert page(f"before {code(text)} after").text == f"before {text} after\n"


@pytest.mark.parametrize("make", [escaped, code])
@pytest.mark.parametrize("text", TEXTS)
def test_table(page, make, text):
    shown = page("words before\n\n" + table(["name", ""], [[make(text), "1"], ["x", make(text)]]))
    assert shown.tables == [[["name", ""], [text, "1"], ["x", text]]]


@pytest.mark.parametrize("text", ["one line", "```\nfenced\n```", "~~~", "````", "# a | b"])
def test_code_block(page, text):
    assert page("words\n\n" + code_block(text.split("\n"), "python") + "\n\nmore").blocks == [text + "\n"]


def test_names_can_be_searched_for():
    assert escaped("macro_f1 of top_5_accuracy") == "macro_f1 of top_5_accuracy"


def test_line_breaks_do_not_break_out():
    assert "\n" not in escaped("a\n\n# b") + code("a\n\n# b")
