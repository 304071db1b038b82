"""How often each level exited for each reason, how long it took, and who handled it.

Time of an exit handled by L0 runs from the exit to the next entry; of one reflected to L1, to the next
entry into L2, L1's own exits in between included (they are counted under L1 too). Counts are exact; times
are the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from turtles.silicon import ExitReason

REASONS: Final = 128
HANDLED: Final = 0
REFLECTED: Final = 128  # offset of the reflected half


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    level: int
    reason: str
    handled_by: str
    count: int
    total_ns: int


class Stats:
    """Counters of one virtual CPU; `counts[level][reason + HANDLED or REFLECTED]`."""

    def __init__(self) -> None:
        self.counts = [[0] * (2 * REASONS) for _ in range(3)]
        self.total_ns = [[0] * (2 * REASONS) for _ in range(3)]
        self.guest_ns = [0, 0, 0]
        self.entries = [0, 0, 0]

    def rows(self) -> list[Row]:
        """Every reason that occurred, by level, the costliest first."""
        rows = [
            Row(
                level,
                reason_name(key % REASONS),
                "L1" if key >= REASONS else "L0",
                count,
                self.total_ns[level][key],
            )
            for level, counts in enumerate(self.counts)
            for key, count in enumerate(counts)
            if count
        ]
        return sorted(rows, key=lambda r: (r.level, -r.total_ns, r.reason))


def reason_name(reason: int) -> str:
    """The SDM's name of a basic exit reason, or its number."""
    try:
        return ExitReason(reason).name
    except ValueError:
        return str(reason)
