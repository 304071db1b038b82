"""Exit statistics as a table in the style of `perf kvm stat`, and as JSON.

Takes neutral rows, so that it shows what any source counted. Not here: counting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.table import Table

SCHEMA: Final = 1


@dataclass(frozen=True)
class ExitRow:
    """Exits of one reason from one level."""

    level: int
    reason: str
    handler: str
    """`L0`, or `L1` where the exit was reflected."""
    count: int
    total_ns: int
    """Time from the exit to the next entry that L0 made for it."""

    @property
    def mean_ns(self) -> float:
        """Mean time of one exit."""
        return self.total_ns / self.count if self.count else 0.0


@dataclass(frozen=True)
class RunFigures:
    """What a run was and took, beside its exits."""

    ending: str
    seconds: float
    retired: int
    facts: Mapping[str, Any]

    @property
    def mips(self) -> float:
        """Million guest instructions a second of wall time."""
        return self.retired / self.seconds / 1e6 if self.seconds else 0.0


def in_order(rows: Iterable[ExitRow]) -> list[ExitRow]:
    """By level, then by total time."""
    return sorted((r for r in rows if r.count), key=lambda r: (r.level, -r.total_ns, r.reason))


def exit_table(rows: Sequence[ExitRow]) -> Table:
    """The table that `turtles demo` ends with."""
    table = Table(title="VM exits", title_justify="left", box=None, pad_edge=False)
    for heading in ("level", "exit reason", "handled by"):
        table.add_column(heading)
    for heading in ("count", "share", "time", "share", "mean"):
        table.add_column(heading, justify="right")
    counts = sum(r.count for r in rows) or 1
    times = sum(r.total_ns for r in rows) or 1
    level = None
    for r in in_order(rows):
        if level is not None and r.level != level:
            table.add_section()
        level = r.level
        table.add_row(
            f"L{r.level}",
            r.reason,
            r.handler,
            f"{r.count:,}",
            f"{r.count / counts:.1%}",
            f"{r.total_ns / 1e6:,.1f} ms",
            f"{r.total_ns / times:.1%}",
            f"{r.mean_ns / 1e3:,.1f} µs",
        )
    return table


def as_json(rows: Sequence[ExitRow], figures: RunFigures) -> str:
    """Everything that the table shows, and the run's figures."""
    exits = [{**asdict(r), "mean_ns": r.mean_ns} for r in in_order(rows)]
    run = {
        "ending": figures.ending,
        "seconds": figures.seconds,
        "retired": figures.retired,
        "mips": figures.mips,
    }
    return json.dumps({"schema": SCHEMA, "run": {**run, **figures.facts}, "exits": exits}, indent=1) + "\n"
