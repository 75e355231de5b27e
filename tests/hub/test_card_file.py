"""What is changed in a card changes; all else stays, to the last byte."""

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_sit.hub.card_file import Card, DamagedCard, read_card, read_written_card

METADATA = """\
# A comment of mine.
license: mit   # and another
tags: [sit, "a: b"]

# In front of the metrics.
metrics:
- accuracy
- f1
# Behind them.
language:
  - en
widget: {a: 1}
"""
BODY = "\n# Title\n\n<!-- sit:begin results -->\nold\n<!-- sit:end results -->\n\n  trailing spaces   \n\ttab\n---\nno end of line"


def card(metadata: str = METADATA, body: str = BODY) -> str:
    return f"---\n{metadata}---\n{body}"


@pytest.mark.parametrize(("name", "written"), [("données", "données"), ("données".encode("latin-1"), "donn\ufffdes")])
def test_names_that_python_could_not_decode(tmp_path, name, written):
    """As on a terminal of ASCII, or of a file that has no name in UTF-8."""
    undecoded = (name if isinstance(name, bytes) else name.encode()).decode("ascii", "surrogateescape")
    Card.parse(f"{card()}\n--output_dir {undecoded}\n").save(tmp_path)
    assert str(read_card(tmp_path)) == f"{card()}\n--output_dir {written}\n"


@pytest.mark.parametrize("text", [card(), card().replace("\n", "\r\n"), "\ufeff" + card(), BODY, "", "\n" + card()])
def test_what_is_not_changed_stays(text):
    assert str(Card.parse(text)) == text


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("license", "apache-2.0", "license: mit   # and", "license: apache-2.0   # and"),
        ("tags", ["vit"], 'tags: [sit, "a: b"]', "tags:\n- vit"),
        ("metrics", ["map"], "metrics:\n- accuracy\n- f1", "metrics:\n- map"),
        ("widget", {"b": [2]}, "widget: {a: 1}", "widget:\n  b:\n  - 2"),
        ("datasets", ["a/b"], "widget: {a: 1}\n", "widget: {a: 1}\ndatasets:\n- a/b\n"),
        ("metrics", None, "metrics:\n- accuracy\n- f1\n", ""),
        ("unknown", None, "", ""),
    ],
)
def test_one_entry_changes(key, value, old, new, line_break):
    text = card().replace("\n", line_break)
    changed = Card.parse(text)
    changed.set_metadata(key, value)
    expected = text.replace(old.replace("\n", line_break), new.replace("\n", line_break)) if old else text
    assert str(changed) == expected
    assert changed.metadata.get(key) == value


def test_last_entry_without_an_end_of_line_and_empty_metadata():
    for text in ("---\nlicense: mit\n---\nbody", "---\n---\nbody", "body"):
        changed = Card.parse(text)
        changed.set_metadata("tags", ["sit"])
        assert ModelCard(str(changed)).data.tags == ["sit"]
        assert ModelCard(str(changed)).text.strip() == "body"


def test_yaml_that_cannot_be_changed_in_one_place_is_left():
    for metadata in ("{license: mit}\n", "x: &a [1]\nmetrics: &b [2]\ny: *b\n"):
        unchanged = Card.parse(card(metadata))
        with pytest.raises(DamagedCard, match="metrics"):
            unchanged.set_metadata("metrics", ["f1"])
        assert str(unchanged) == card(metadata)


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_one_section_changes(line_break):
    text = card().replace("\n", line_break)
    changed = Card.parse(text)
    assert changed.sections == ["results"] and changed.section("results") == "old"
    changed.put_section("results", "new\nlines")
    start, _, end = text.partition(f"{line_break}old{line_break}")
    content = "\n\nnew\nlines\n\n".replace("\n", line_break)
    assert str(changed) == start + content + end
    changed.put_section("results", "new\nlines")
    assert str(changed) == start + content + end


@pytest.mark.parametrize("body", ["", "# Mine", "# Mine\n", "# Mine\r\n\r\n"])
def test_a_section_that_is_missing_comes_at_the_end(body):
    changed = Card.parse(card(body=body))
    changed.put_section("results", "new")
    assert str(changed).startswith(card(body=body))
    assert changed.section("results") == "new"
    assert Card.parse(str(changed)).section("results") == "new"


@pytest.mark.parametrize(
    "marks",
    [
        "<!-- sit:begin results -->",
        "<!-- sit:end results -->",
        "<!-- sit:end results --> <!-- sit:begin results -->",
        "<!-- sit:begin results --><!-- sit:end results -->" * 2,
    ],
)
def test_damaged_marks(marks):
    damaged = Card.parse(f"# Mine\n{marks}\nmore")
    with pytest.raises(DamagedCard, match=r"sit:begin results.*sit:end results"):
        damaged.put_section("results", "new")
    assert str(damaged) == f"# Mine\n{marks}\nmore"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("---\nlicense: mit\n", "does not end"),
        ("---\na: [\n---\n", "not YAML"),
        ("---\n- a list\n---\n", "key: value"),
        ("---\nmodel-index: [3]\n---\n", "model_index"),
    ],
)
def test_damaged_metadata(text, what):
    with pytest.raises(DamagedCard, match=what) as raised:
        Card.parse(text)
    assert "\n" not in str(raised.value)


def test_saves_what_it_reads(tmp_path):
    content = card().replace("\n", "\r\n").encode() + "é".encode()
    (tmp_path / "README.md").write_bytes(content)
    assert read_card(tmp_path).save(tmp_path) == tmp_path / "README.md"
    assert (tmp_path / "README.md").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_metadata_is_as_the_hub_writes_it():
    changed = Card.parse("body")
    changed.set_metadata("language", "日本")
    assert "日本" in str(changed)
    assert yaml.safe_load(changed.metadata_yaml) == {"language": "日本"}


class TestEarlierCard:
    def test_written_by_the_programs(self, tmp_path):
        (tmp_path / "README.md").write_text(card())
        assert str(read_written_card(tmp_path)) == card()
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]

    def test_none(self, tmp_path):
        assert read_written_card(tmp_path) is None

    @pytest.mark.parametrize(
        "content",
        [b"# all mine", b"---\na: [\n---\n", b"\xff\xfe", b"<!-- sit:begin results --> and no end"],
    )
    def test_what_cannot_be_updated_is_kept_aside(self, tmp_path, capsys, content):
        """A run of days does not end in an error, and nothing is lost, because of a card."""
        for number in (1, 2):
            (tmp_path / "README.md").write_bytes(content)
            assert read_written_card(tmp_path) is None
            kept = "README.old.md" if number == 1 else "README.old-2.md"
            assert (tmp_path / kept).read_bytes() == content
            assert not (tmp_path / "README.md").exists()
            (line,) = capsys.readouterr().err.splitlines()
            assert kept in line and "written anew" in line
