"""Exit statistics as a table in the style of `perf kvm stat`, and as JSON.

Not here: counting, which L0 does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.table import Table

from turtles.l0.stats import Level, Row

SCHEMA: Final = 1


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


def mean_ns(row: Row) -> float:
    """Mean time of one exit."""
    return row.total_ns / row.count if row.count else 0.0


def mean_retired(row: Row) -> float:
    """Mean number of instructions that L1 needed for one exit."""
    return row.retired / row.count if row.count else 0.0


def in_order(rows: Iterable[Row]) -> list[Row]:
    """By level, then by total time."""
    return sorted((r for r in rows if r.count), key=lambda r: (r.level, -r.total_ns, r.reason))


def exit_table(rows: Sequence[Row]) -> Table:
    """The table that `turtles demo` ends with; shares are of the level's exits.

    The time of a reflected exit holds L1's own exits while it handled it: the levels' times do not add up.
    Instructions are L1's meanwhile; where L0 handles an exit itself no guest executes any.
    """
    table = Table(title="VM exits", title_justify="left", box=None, pad_edge=False)
    for heading in ("level", "exit reason", "handled by"):
        table.add_column(heading, no_wrap=True)
    for heading in ("count", "share", "time ms", "share", "mean µs", "mean instr."):
        table.add_column(heading, justify="right", no_wrap=True)
    ordered = in_order(rows)
    counts, times = Counter[int](), Counter[int]()
    for r in ordered:
        counts[r.level] += r.count
        times[r.level] += r.total_ns
    level = None
    for r in ordered:
        if level is not None and r.level != level:
            table.add_section()
        level = r.level
        table.add_row(
            f"L{r.level}",
            r.reason,
            r.handled_by,
            f"{r.count:,}",
            f"{r.count / counts[level]:.1%}",
            f"{r.total_ns / 1e6:,.1f}",
            f"{r.total_ns / (times[level] or 1):.1%}",
            f"{mean_ns(r) / 1e3:,.1f}",
            f"{mean_retired(r):,.0f}",
        )
    return table


def level_lines(levels: Sequence[Level]) -> list[str]:
    """What each level did between its exits, a line each."""
    return [
        f"L{x.level} ran {x.ran_ns / 1e9:,.2f} s, {x.retired / 1e6:,.1f} million instructions" for x in levels
    ]


def as_json(rows: Sequence[Row], levels: Sequence[Level], figures: RunFigures) -> str:
    """Everything that the table shows, and the run's figures."""
    exits = [{**asdict(r), "mean_ns": mean_ns(r), "mean_retired": mean_retired(r)} for r in in_order(rows)]
    run = {
        "ending": figures.ending,
        "seconds": figures.seconds,
        "retired": figures.retired,
        "mips": figures.mips,
    }
    whole = {
        "schema": SCHEMA,
        "run": {**run, **figures.facts},
        "levels": [asdict(level) for level in levels],
        "exits": exits,
    }
    return json.dumps(whole, indent=1) + "\n"
