"""Images and sounds among the tokens of a prompt. Pure.

A *unit* is what a projector makes of an image, a slice of one, or a piece of a sound: so many places of the context,
filled with embeddings instead of tokens. In a list of tokens it stands as that many negative numbers, the same for the
same file wherever it comes, so that prompts which show the same images have them in common. A sequence is never cut
inside a unit. Numbers tell all that is needed: the first of a unit is even and says how many places it has and how many
positions it takes (fewer than places with M-RoPE, where an image's places share positions); the others are odd.
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZE_BITS = 20
_SIZE_MASK = (1 << _SIZE_BITS) - 1
UNIT_TOKENS_MAX = _SIZE_MASK
"""Places of one unit."""


def unit_tokens(serial: int, length: int, positions: int) -> list[int]:
    """The tokens of the unit with this number: `length` places that take `positions`."""
    assert 0 < length <= UNIT_TOKENS_MAX
    assert 0 < positions <= UNIT_TOKENS_MAX
    code = ((serial << 2 * _SIZE_BITS) | (length << _SIZE_BITS) | positions) * 2
    return [-code, *[-code - 1] * (length - 1)]


def has_media(tokens: Sequence[int]) -> bool:
    """Whether there is a unit among them."""
    return bool(tokens) and min(tokens) < 0


def boundary(tokens: Sequence[int], length: int) -> int:
    """The most of the first `length` tokens that ends inside no unit."""
    if length == 0 or tokens[length - 1] >= 0:
        return length
    first = length - 1
    while tokens[first] % 2:
        first -= 1
    return length if length - first == _size(tokens[first]) else first


def position(tokens: Sequence[int], length: int) -> int:
    """Where the token after the first `length` stands; of a unit that is cut there, where it begins, if places share
    positions.
    """
    head = tokens[:length]
    if not has_media(head):
        return length
    shared = 0
    place = next(place for place, token in enumerate(head) if token < 0)
    while place < length:
        token = head[place]
        if token >= 0:
            place += 1
            continue
        size, positions = _size(token), (-token >> 1) & _SIZE_MASK
        inside = min(size, length - place)
        if positions != size:
            shared += inside - (positions if inside == size else 0)
        place += inside
    return length - shared


def _size(first: int) -> int:
    return (-first >> 1 + _SIZE_BITS) & _SIZE_MASK
