"""One value of a YAML text is changed, and nothing else."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from llmctl.yaml_edit import EditError, set_value, split_key

FILE = """\
# the first line
server:
  host: 127.0.0.1   # who may call
  port:  8000       # PORT

# The socket, which stands
# in two lines.
control:
  mode: "0600"
logging:
models:
  qwen2.5-7b:   # the big one
    path: '~/m.gguf'
    aliases:
    - a   # first
    - b
    # after the list
    restart: {max: 5, backoff: [0.1, 10]}
  # the last comment
"""


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("server.port", "8080", "  port:  8000       # PORT", "  port:  8080       # PORT"),
        ("server.port", "auto", "port:  8000 ", "port:  auto "),
        ("server.port", "a: b", "port:  8000 ", 'port:  "a: b" '),
        ("server.port", "x # y", "port:  8000 ", 'port:  "x # y" '),
        ("server.port", "*.example.com", "port:  8000 ", 'port:  "*.example.com" '),
        ("server.port", "[a, b]", "port:  8000 ", "port:  [a, b] "),
        ("server.port", "", "port:  8000 ", 'port:  "" '),
        ("server.idle", "5", "# PORT\n", "# PORT\n  idle: 5\n"),
        ("control.mode", "null", '"0600"', "null"),
        ("logging.main.format", "json", "logging:\n", "logging:\n  main:\n    format: json\n"),
        ("logging", "{}", "logging:\n", "logging: {}\n"),
        ("models.qwen2.5-7b.path", "/a b.gguf", "'~/m.gguf'", "/a b.gguf"),
        ('models."qwen2.5-7b".tier', "heavy", "10]}\n", "10]}\n    tier: heavy\n"),
        ("models.qwen2.5-7b.aliases", "[c]", "aliases:\n    - a   # first\n    - b\n", "aliases: [c]\n"),
        ("models.qwen2.5-7b.restart.max", "9", "{max: 5,", "{max: 9,"),
        ("models.qwen2.5-7b.restart.max", "a, b", "{max: 5,", '{max: "a, b",'),
        ("models.qwen2.5-7b.restart.window", "60", "10]}", "10], window: 60}"),
        ("models.new.path", "x", "10]}\n", "10]}\n  new:\n    path: x\n"),
        ('models."a.b: c".path', "x", "10]}\n", '10]}\n  "a.b: c":\n    path: x\n'),
        ("cache.enabled", "false", "10]}\n", "10]}\ncache:\n  enabled: false\n"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_one_place_changes_and_every_other_byte_stays(key: str, value: str, old: str, new: str, newline: str) -> None:
    """Comments, quotes, spaces and line ends are the person's own."""
    assert FILE.count(old) == 1
    text = FILE.replace("\n", newline)
    expected = FILE.replace(old, new).replace("\n", newline)
    assert set_value(text, split_key(key), value).text == expected


def test_an_edit_tells_what_stood_there() -> None:
    """And the path as the file has it."""
    edit = set_value(FILE, ["models", "qwen2", "5-7b", "path"], "x")
    assert (edit.path, edit.before) == (("models", "qwen2.5-7b", "path"), "~/m.gguf")
    assert set_value(FILE, ["new"], "x").before is None


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "# no line end", "\ufeff# with a mark\n"])
def test_a_file_without_values_gets_its_first(text: str) -> None:
    """What is in it stays."""
    edited = set_value(text, ["server", "port"], "1").text
    assert edited.startswith(text)
    assert yaml.safe_load(edited) == {"server": {"port": 1}}


@pytest.mark.parametrize(
    "text", ["a: 1", "a: {b: 1}", "{a: 1}", "a:\n- 1", "a: |\n  x\n  y\n", "a: null", "a: ~ # x\n"]
)
def test_a_value_is_added_behind_whatever_is_last(text: str) -> None:
    """Files without an end of line, in braces, with block texts."""
    assert yaml.safe_load(set_value(text, ["z"], "1").text) == {**yaml.safe_load(text), "z": 1}


@pytest.mark.parametrize("text", ["a:", "a: # x", "a: null", "a: ~ # x\nb: 1", "a: {}", "{a: }"])
def test_a_key_with_nothing_behind_it_is_filled(text: str) -> None:
    """Its comment stays where it is."""
    edited = set_value(text, ["a", "b", "c"], "1").text
    assert yaml.safe_load(edited)["a"] == {"b": {"c": 1}}
    assert ("# x" in edited) == ("# x" in text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\n", "a.b"),
        ("- 1\n", "a"),
        ("just text", "a"),
        ("base: &b {x: 1}\na: *b\n", "a.x"),
        ("a: [1\n", "a"),
        ("a: &a [*a]\n", "b"),
    ],
)
def test_what_cannot_be_changed_is_refused(text: str, key: str) -> None:
    """Values with keys below them, aliases, lists, broken files."""
    with pytest.raises(EditError):
        set_value(text, split_key(key), "1")


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", 'a"b', '"a', "a.'b"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """Before anything is read."""
    with pytest.raises(EditError):
        split_key(key)


NAMES = st.text("abc.-_: #'\"[]{}é", min_size=1, max_size=6)
VALUES = st.recursive(
    st.text(max_size=8) | st.integers() | st.none(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3),
    max_leaves=8,
)


@example({}, [":"], "a\x85b\u2028c")  # line breaks to YAML, letters to JSON
@example({}, ["[]"], "a key that would be a list")
@given(st.dictionaries(NAMES, VALUES, max_size=4), st.lists(NAMES, min_size=1, max_size=3), st.text(max_size=12))
def test_any_value_at_any_key_of_any_file(tree: dict[str, object], path: list[str], value: str) -> None:
    """Either it is refused, or what is read afterwards is the old tree with that one value."""
    for flow in (False, True, None):
        text = yaml.dump(tree, default_flow_style=flow, allow_unicode=True)
        try:
            edit = set_value(text, path, value, quoted=True)
        except EditError:
            continue
        expected = place = yaml.safe_load(text)
        for part in edit.path[:-1]:
            place[part] = place.get(part) or {}
            place = place[part]
        place[edit.path[-1]] = value.strip()
        assert yaml.safe_load(edit.text) == expected
