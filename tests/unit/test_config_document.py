"""YAML into values with lines."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmvisor import limits
from llmvisor.config.document import DocumentError, Scalar, plain, read_document, scalar_value


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every promise holds with libyaml's scanner and with PyYAML's own."""
    name: str = request.param
    if not hasattr(yaml, name):
        pytest.skip("PyYAML without libyaml")
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, name))
    return name


def read(text: str) -> dict[str, object]:
    root, problems = read_document(text)
    assert problems == []
    return {key: plain(entry.node) for key, entry in root.entries.items()}


def failure(text: str) -> tuple[int, str]:
    with pytest.raises(DocumentError) as caught:
        read_document(text)
    return caught.value.line, caught.value.reason


def read_or_fail(text: str) -> dict[str, object] | DocumentError:
    """The values, or the one error that reading may end in."""
    try:
        root, _ = read_document(text)
    except DocumentError as error:
        return error
    return {key: plain(entry.node) for key, entry in root.entries.items()}


def test_document_keeps_the_line_of_every_key() -> None:
    """Each entry knows the line of its key, nested ones too."""
    root, _ = read_document("a: 1\n\nb:\n  c: 2\n  d: [3,\n   4]\n")
    inner = root.entries["b"].node
    assert not isinstance(inner, Scalar)
    assert (root.entries["a"].line, root.entries["b"].line) == (1, 3)
    assert [entry.line for entry in inner.entries.values()] == [4, 5]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - a Mapping


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("", None),
        ("~", None),
        ("null", None),
        ("0600", 600),
        ("-1", -1),
        ("0x1F", 31),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e999", "1e999"),
        ("9" * 31, "9" * 31),
        ('"8000"', "8000"),
        ("'true'", "true"),
    ],
)
def test_document_reads_scalars_as_yaml_1_2_has_them(text: str, value: object) -> None:
    """`no` and dates are texts, quotes make a text, and no number is infinite or endless."""
    found = read(f"key: {text}\n")
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


def test_document_keeps_the_text_of_a_number() -> None:
    """A mode of 0600 can still be read as octal."""
    root, _ = read_document("mode: 0600\n")
    node = root.entries["mode"].node
    assert isinstance(node, Scalar)
    assert node.text == "0600"


def test_document_reports_duplicate_keys_with_both_lines() -> None:
    """The second of two equal keys is a problem that names the first one's line."""
    _, problems = read_document("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n")
    assert problems == [
        (4, "the key 'c' is there already, in line 3"),
        (5, "the key 'a' is there already, in line 1"),
    ]


def test_document_expands_aliases_and_merges() -> None:
    """Anchors and `<<` work, and a mapping's own key wins over a merged one, wherever it stands."""
    text = "base: &b {x: 1, y: 2}\nfirst: {<<: *b, y: 3}\nlast: {y: 4, <<: [*b]}\nlist: [*b]\n"
    found = read(text)
    assert found == {
        "base": {"x": 1, "y": 2},
        "first": {"x": 1, "y": 3},
        "last": {"y": 4, "x": 1},
        "list": [{"x": 1, "y": 2}],
    }


def test_document_bounds_what_aliases_expand_to() -> None:
    """A file of a few lines that stands for billions of values is refused at once."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    line, reason = failure("\n".join(lines))
    assert reason == f"more than {limits.config_nodes_max} values, aliases included"
    assert 1 < line < 10


def test_document_bounds_values_at_the_limit_and_past_it() -> None:
    """`config_nodes_max` values pass, one more does not."""
    # The root and the list count as one each.
    fits = limits.config_nodes_max - 2
    root, _ = read_document(f"a: [{', '.join(['1'] * fits)}]")
    assert root.size == limits.config_nodes_max
    assert "more than" in failure(f"a: [{', '.join(['1'] * (fits + 1))}]")[1]


def test_document_bounds_depth_at_the_limit_and_past_it() -> None:
    """`config_depth_max` levels pass, one more does not, aliases that nest included."""
    inside = limits.config_depth_max - 1
    assert read("a: " + "[" * inside + "]" * inside) is not None
    assert "nested deeper" in failure("a: " + "[" * (inside + 1) + "]" * (inside + 1))[1]
    half = limits.config_depth_max // 2 + 1
    aliased = "a: &a " + "[" * half + "]" * half + "\nb: " + "[" * half + "*a" + "]" * half
    assert failure(aliased)[0] == 2


def test_document_survives_ten_thousand_levels() -> None:
    """No depth of input is a depth of calls."""
    assert "nested deeper" in failure("a: " + "[" * 10_000)[1]


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\n\tb: 2\n", 2, "tab"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "expected"),
        ("a: 1\nb: *nobody\n", 2, "*nobody"),
        ("a: &a [*a]\n", 1, "*a"),
        ("a: 1\n--- \nb: 2\n", 2, "second document"),
        ("a: !!python/object:os.system x\n", 1, "tag"),
        ("a: 1\n? [x, y]\n: 2\n", 2, "a key has to be one word"),
        ("a: 1\nb: {<<: 5}\n", 2, "<<"),
        ("a: 1\nb: \x07\n", 2, "not allowed"),
        ("- a\n- b\n", 1, "no mapping"),
        ("just words", 1, "no mapping"),
        ("", 1, "nothing in it"),
        ("\n# only a comment\n", 1, "nothing in it"),
        ("---\n", 1, "nothing in it"),
        ("a: 'x\n", 2, "quoted"),
    ],
)
def test_document_says_where_it_cannot_be_read(text: str, line: int, part: str) -> None:
    """Wrong syntax, aliases, tags, a second document, no mapping and nothing at all: each with its line."""
    found_line, reason = failure(text)
    assert part in reason
    assert found_line == line


@settings(deadline=None)
@given(st.text(max_size=200))
@example("a: \ud800")
@example("? ")
@example("<<: &a")
@example("{? : ? }")
@example("&a : *a")
@example("%YAML 9.9\n---\na: 1")
@example("a: |\n x\n---")
@example("[a, [b]]: c")
def test_document_reading_any_text_gives_a_mapping_or_its_error(text: str) -> None:
    """Whatever stands in a file, reading it ends in values or in a `DocumentError`."""
    outcome = read_or_fail(text)
    assert isinstance(outcome, dict) or (outcome.line >= 1 and outcome.reason)


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!#\n \"?<>|,'%@`~0", max_size=60))
def test_document_reading_yaml_like_text_gives_a_mapping_or_its_error(text: str) -> None:
    """As above, over texts that are close to YAML."""
    outcome = read_or_fail(text)
    assert isinstance(outcome, dict) or 1 <= outcome.line <= text.count("\n") + 2


@settings(deadline=None)
@given(st.text(alphabet="0123456789.eE+-xXaf_:", max_size=400))
def test_document_scalars_of_any_length_have_a_value(text: str) -> None:
    """A text of digits without end is a text, not an error of the language."""
    value = scalar_value(text)
    assert value is None or isinstance(value, (str, int, float))
