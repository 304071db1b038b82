"""Tells a console's lines apart by level and marks them: the outermost console carries the inner ones.

L1's init script puts a marker before each line of L2's console; the embedded tower marks its own. Markers
nest. Not here: where the bytes come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MARKER: Final = re.compile(r"L([2-9])\| ?|\[L([1-9])\] ?")
CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[c()][0-9A-Za-z]?|[\x00-\x08\x0b-\x1f\x7f]")
LONGEST: Final = 4096


@dataclass(frozen=True)
class Line:
    """A line of some level's console."""

    level: int
    text: str


def classify(text: str) -> Line:
    """A console line without its marker, and the level that said it."""
    level = 1
    while (match := MARKER.match(text)) and (marked := int(match[1] or match[2])) >= level:
        level = marked
        text = text[match.end() :]
    return Line(level, text)


class LineSplitter:
    """Cuts a console's bytes into lines of a level; control sequences are dropped."""

    def __init__(self, show: Callable[[Line], None]) -> None:
        self._show = show
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Bytes as they come."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LONGEST:
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            self._emit(line)

    def finish(self) -> None:
        """Show an unfinished last line."""
        if self._pending:
            self._emit(self._pending)
            self._pending = b""

    def _emit(self, raw: bytes) -> None:
        text = CONTROL.sub("", raw.decode("utf-8", "replace")).rstrip()
        self._show(classify(text))
