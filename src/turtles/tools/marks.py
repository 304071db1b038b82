"""`turtles run --marks FILE`: each console line with the machine's counters at that moment, as JSON lines.

Two marks that a guest prints around something tell what it took: wall time, retired instructions, time in
each level, exits. Reading them back is here too. Not here: what the lines mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from typing import IO, Any

from turtles.l0.stats import Row
from turtles.silicon.slots import RETIRED
from turtles.tools.levels import Line, LineSplitter
from turtles.tools.machine import Rig


class MarkWriter:
    """Takes a console's bytes; writes a line for each line. In the machine's own thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._splitter = LineSplitter(self._line)
        self.rig: Rig | None = None
        """Set when there is one; what was said before has no counters and is not written."""

    def feed(self, data: bytes) -> None:
        """Console output."""
        self._splitter.feed(data)

    def _line(self, line: Line) -> None:
        rig = self.rig
        if rig is None:
            return
        stats = rig.vcpu.stats
        mark = {
            "ns": rig.core.now(),
            # This is the machine's own thread: what the host's processor really gave it.
            "cpu_ns": time.thread_time_ns(),
            # L1's share is worked out at the end of a run only; here it is what is not L2's.
            "retired": [0, rig.core.slots[RETIRED] - stats.retired[2], stats.retired[2]],
            "guest_ns": list(stats.guest_ns),
            "exits": [astuple(r) for r in stats.rows()],
            "level": line.level,
            "line": line.text,
        }
        self._file.write(json.dumps(mark) + "\n")


@dataclass(frozen=True)
class Mark:
    """A console line and the counters when it was complete."""

    ns: int
    retired: tuple[int, ...]
    guest_ns: tuple[int, ...]
    exits: tuple[Row, ...]
    level: int
    line: str
    cpu_ns: int = 0


@dataclass(frozen=True)
class Span:
    """What lies between two marks. Times are the host's."""

    ns: int
    retired: tuple[int, ...]
    """Instructions by level: everything that ran through a vmcs02 is L2's; 0 is nobody's."""
    guest_ns: tuple[int, ...]
    """By level."""
    exits: tuple[Row, ...]
    cpu_ns: int = 0
    """Processor time of the machine's thread: without waiting for a host that is busy with other work, and
    without a guest's sleep."""

    def count(self, level: int, reason: str | None = None) -> int:
        """Exits of a level, for one reason or all."""
        return sum(r.count for r in self.exits if r.level == level and reason in (None, r.reason))

    def row(self, level: int, reason: str) -> Row | None:
        """The exits of a level for a reason, whoever handled them."""
        found = [r for r in self.exits if r.level == level and r.reason == reason]
        if not found:
            return None
        who = max(found, key=lambda r: r.count).handled_by
        count, total, retired = (
            sum(r.count for r in found),
            sum(r.total_ns for r in found),
            sum(r.retired for r in found),
        )
        return Row(level, reason, who, count, total, retired)

    @property
    def l0_ns(self) -> int:
        """Everything that was no guest's: L0 and the switches, and waiting while a guest slept."""
        return self.ns - sum(self.guest_ns)

    def as_json(self) -> dict[str, Any]:
        """For a file of samples."""
        return asdict(self) | {"exits": [astuple(r) for r in self.exits]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Span:
        """What `as_json` made."""
        rows = tuple(Row(*row) for row in data["exits"])
        cpu_ns = data.get("cpu_ns", 0)
        return cls(data["ns"], tuple(data["retired"]), tuple(data["guest_ns"]), rows, cpu_ns)


def read(lines: Iterable[str]) -> Iterator[Mark]:
    """The marks of a file; a last line that a killed run left unfinished is dropped."""
    for text in lines:
        try:
            data = json.loads(text)
        except ValueError:
            return
        exits = tuple(Row(*row) for row in data["exits"])
        retired, guest = tuple(data["retired"]), tuple(data["guest_ns"])
        cpu_ns = data.get("cpu_ns", 0)
        yield Mark(data["ns"], retired, guest, exits, data["level"], data["line"], cpu_ns)


def between(begin: Mark, end: Mark) -> Span:
    """The difference."""
    before = {(r.level, r.reason, r.handled_by): r for r in begin.exits}
    rows = []
    for r in end.exits:
        old = before.get((r.level, r.reason, r.handled_by), Row(0, "", "", 0, 0))
        if r.count > old.count:
            figures = (r.count - old.count, r.total_ns - old.total_ns, r.retired - old.retired)
            rows.append(Row(r.level, r.reason, r.handled_by, *figures))

    def less(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(y - x for x, y in zip(a, b, strict=True))

    retired, guest = less(begin.retired, end.retired), less(begin.guest_ns, end.guest_ns)
    return Span(end.ns - begin.ns, retired, guest, tuple(rows), end.cpu_ns - begin.cpu_ns)
