"""Cards of models on a page that was made for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmvisor.fetch.library_page import UnknownPageError, parameters_of, read_cards

PAGE = """<html><a href="/library">Models</a><a href="/blog/new-models"><p>A post.</p></a>
<ul><li><a href="/library/qwen3" class="group"><h2>qwen3</h2><p> Qwen3 is
 new. </p><span>vision</span><span>8x7B</span><p><span>1.1K</span><span>&nbsp;Pulls</span></p></a></li>
<li><a href="/library/qwen3">again</a><a href='/library/b%2e%2e'><p>x</p></a><a href="/a/b/c"><p>deep</p></a></li>
<li><a href="https://elsewhere.example/library/x"><p>x</p></a><a href="/library/two"><p>Two.</p></a></li></ul>"""


def test_cards_are_links_to_models_with_a_text() -> None:
    """A link without one, a second link, and links to elsewhere are none."""
    cards = read_cards(PAGE)
    assert [card.id for card in cards if "/" not in card.id] == ["qwen3", "two"]
    first = cards[[card.id for card in cards].index("qwen3")]
    assert first.description == "Qwen3 is new."
    assert (first.pulls, first.sizes, first.capabilities) == (1100, ("8x7b",), ("vision",))


def test_post_of_the_site_is_no_model() -> None:
    """Whatever lies in another folder has a text, but nobody pulls it."""
    assert [card.id for card in read_cards(PAGE)] == ["qwen3", "two"]


def test_page_without_cards_says_so_or_is_unknown() -> None:
    """An empty result is told from another page."""
    assert read_cards("<p>No models found.</p>") == []
    with pytest.raises(UnknownPageError):
        read_cards("<html><body>Please enable JavaScript</body></html>")


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("3b", 3_000_000_000), ("0.6b", 600_000_000), ("350m", 350_000_000), ("8x7b", 56_000_000_000), ("e2b", None)],
)
def test_sizes_are_numbers_of_parameters(size: str, parameters: int | None) -> None:
    """Where they are plain numbers."""
    assert parameters_of(size) == parameters


@given(st.text(alphabet="<>/a\"= phref'1.KPuls&;!-", max_size=300))
def test_any_page_is_read_or_unknown(page: str) -> None:
    """No page is an error of another kind, and no model is listed twice or without a name."""
    try:
        ids = [card.id for card in read_cards(page)]
    except UnknownPageError:
        return
    assert all(ids)
    assert len(ids) == len(set(ids))
