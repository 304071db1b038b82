from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turtles.tools.levels import Line, LineSplitter, classify


def test_markers_nest() -> None:
    assert classify("plain") == Line(1, "plain")
    assert classify("L2| [    0.0] Linux") == Line(2, "[    0.0] Linux")
    assert classify("L2| L3| deep") == Line(3, "deep")
    assert classify("L2: no marker") == Line(1, "L2: no marker")


def test_control_sequences_are_dropped() -> None:
    lines: list[Line] = []
    splitter = LineSplitter(lines.append)
    splitter.feed(b"\x1b[2JSea")
    splitter.feed(b"BIOS\r\nL2| x\x1bc\n")
    splitter.feed(b"rest")
    splitter.finish()
    assert lines == [Line(1, "SeaBIOS"), Line(2, "x"), Line(1, "rest")]


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_cuts_do_not_matter(pieces: list[bytes]) -> None:
    whole: list[Line] = []
    cut: list[Line] = []
    one, many = LineSplitter(whole.append), LineSplitter(cut.append)
    one.feed(b"".join(pieces))
    one.finish()
    for piece in pieces:
        many.feed(piece)
    many.finish()
    assert whole == cut
