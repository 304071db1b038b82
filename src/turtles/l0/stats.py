"""How often each level exited for each reason, how long it took, and who handled it.

Time of an exit handled by L0 runs from the exit to the next entry; of one reflected to L1, to the next
entry into L2, L1's own exits in between included (they are counted under L1 too). Beside time stand the
instructions that were retired meanwhile: L1's, while it handles an exit of L2. Counts are exact; times are
the core's clock.
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
    retired: int = 0
    """Instructions that L1 retired while it handled these exits."""


@dataclass(frozen=True)
class Level:
    """What a level did between its exits."""

    level: int
    ran_ns: int
    retired: int


class Stats:
    """Counters of one virtual CPU; `counts[level][reason + HANDLED or REFLECTED]`."""

    def __init__(self) -> None:
        self.counts = [[0] * (2 * REASONS) for _ in range(3)]
        self.total_ns = [[0] * (2 * REASONS) for _ in range(3)]
        self.guest_ns = [0, 0, 0]
        self.retired = [0, 0, 0]
        """Instructions by level; L1's are known at the end of the run."""
        self.handling_retired = [0] * (2 * REASONS)
        """L1's instructions while it handled exits of L2, by the key in `counts[2]`."""

    def rows(self) -> list[Row]:
        """Every reason that occurred, by level, the costliest first."""
        rows = [
            Row(
                level,
                reason_name(key % REASONS),
                "L1" if key >= REASONS else "L0",
                count,
                self.total_ns[level][key],
                self.handling_retired[key] if level == 2 else 0,
            )
            for level, counts in enumerate(self.counts)
            for key, count in enumerate(counts)
            if count
        ]
        return sorted(rows, key=lambda r: (r.level, -r.total_ns, r.reason))

    def levels(self) -> list[Level]:
        """The levels that ran."""
        return [Level(n, self.guest_ns[n], self.retired[n]) for n in (1, 2) if self.guest_ns[n]]


def reason_name(reason: int) -> str:
    """The SDM's name of a basic exit reason, or its number."""
    try:
        return ExitReason(reason).name
    except ValueError:
        return str(reason)
