"""An opening that was a dead letter opens the line that it opened when it was sent first."""

from __future__ import annotations

import pytest
from power_fleet.codec import Batch, Opening, Poison, encode
from power_fleet.dead import with_line
from power_fleet.decoding import decode

OPENING = Batch("a", 1, line=0, file_id="f", number=3, opening=Opening("1.0.0", "site", "nonce"))


def test_an_opening_keeps_its_line_when_it_is_sent_once_more() -> None:
    """What followed it in the stream names that line, not the one of its new place."""
    _, data = encode(OPENING)
    assert decode(data, 7).line == 7
    again = with_line(data, 7)
    found = decode(again, 100)
    assert (found.line, found.sequence, found.opening) == (7, 100, OPENING.opening)
    assert with_line(again, 50) == again
    with pytest.raises(Poison, match="is of another stream"):
        decode(again, 6)


@pytest.mark.parametrize("data", [encode(Batch("a", 1, line=7))[1], b"", b"poison", b"\x00" * 100])
def test_anything_else_is_sent_as_it_came(data: bytes) -> None:
    """Byte by byte."""
    assert with_line(data, 7) == data


def test_an_opening_whose_place_is_not_known_is_sent_as_it_came() -> None:
    """It is one of a letter from before places were kept."""
    _, data = encode(OPENING)
    assert with_line(data, 0) == data
