"""From samples to the table of bars: medians, ratios, whether each bar is reached.

Pure functions. Not here: measuring, showing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from turtles.tools.measure import Sample

USER_ROWS: Final = ("alu", "branch", "qsort", "chase", "matmul", "memcpy")
KERNEL_ROWS: Final = ("syscall", "fault", "fork", "ctxsw")
PROGRAMS: Final = ("gzip", "gcc", "python", "sqlite", "openssl")
WORST_ROW: Final = 5.0

Key = tuple[str, int, str]  # program, level, row
Medians = dict[Key, float]


@dataclass(frozen=True)
class Bar:
    """A line of the table: a ratio, what it may be at most, and what it is made of."""

    what: str
    limit: float | None
    """None: it is measured and shown, and nothing is asked of it."""
    value: float | None
    unit: str = ""
    parts: tuple[tuple[str, float], ...] = ()
    worst: float | None = None  # no part may be above
    condition: bool = True  # whether other bars, on which this one depends, are reached

    @property
    def reached(self) -> bool | None:
        """None where a run is missing."""
        if self.value is None:
            return None
        within = self.limit is None or self.value <= self.limit
        return self.condition and within and all(v <= (self.worst or v) for _, v in self.parts)

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.limit is None and self.value is not None:
            return "measured"
        return {None: "not measured", True: "reached", False: "not reached"}[self.reached]


def medians(samples: Iterable[Sample]) -> Medians:
    """For each program, level and row; a run's first repeat warms up where there is a second one."""
    kept: dict[Key, list[Sample]] = {}
    for s in samples:
        kept.setdefault((s.program, s.level, s.row), []).append(s)
    result = {}
    for key, found in kept.items():
        warm = [s.ns for s in found if s.repeat > 0] or [s.ns for s in found]
        result[key] = statistics.median(warm)
    return result


def ratio(m: Medians, ours: tuple[str, int], theirs: tuple[str, int], row: str) -> float | None:
    """The ratio of two medians of a row; none where one is missing."""
    a, b = m.get((*ours, row)), m.get((*theirs, row))
    return a / b if a is not None and b else None


def group(
    m: Medians, ours: tuple[str, int], theirs: tuple[str, int], rows: Sequence[str]
) -> list[tuple[str, float]]:
    """Ratios of rows that both have; a program measured by several figures counts once, by their mean."""
    found = []
    for row in rows:
        names = sorted({k[2] for k in m if k[2] == row or k[2].startswith(f"{row}.")})
        ratios = [r for name in names if (r := ratio(m, ours, theirs, name)) is not None]
        if ratios:
            found.append((row, statistics.geometric_mean(ratios)))
    return found


def mean(parts: Sequence[tuple[str, float]], complete: int) -> float | None:
    """Geometric mean; none where a part is missing, since a mean of fewer would be another figure."""
    return statistics.geometric_mean([v for _, v in parts]) if len(parts) == complete and parts else None


def all_bars(m: Medians, cpuid_exit_ns: float | None) -> list[Bar]:
    """The table."""
    t1, t2, c1, c2, native = ("turtles", 1), ("turtles", 2), ("tcg", 1), ("tcg", 2), ("native", 0)

    def made(
        what: str,
        limit: float,
        ours: tuple[str, int],
        theirs: tuple[str, int],
        rows: Sequence[str],
        worst: float | None = None,
    ) -> Bar:
        parts = group(m, ours, theirs, rows)
        return Bar(what, limit, mean(parts, len(rows)), parts=tuple(parts), worst=worst)

    exit_us = None if cpuid_exit_ns is None else cpuid_exit_ns / 1e3
    user = made("user rows in L1, turtles / native", 2.5, t1, native, USER_ROWS, WORST_ROW)
    kernel = made("kernel rows in L1, turtles / TCG", 0.25, t1, c1, KERNEL_ROWS)
    inner = made(
        "all rows but cpuid, turtles L2 / L1, while the two above hold",
        1.05,
        t2,
        t1,
        (*USER_ROWS, *KERNEL_ROWS),
    )
    return [
        made("L1 boot to init, turtles / TCG", 0.6, t1, c1, ["boot"]),
        made("whole tower, turtles / TCG", 0.30, t2, c2, ["tower"]),
        user,
        kernel,
        # An L1 that is slow would make any L2 look good.
        replace(inner, condition=bool(user.reached and kernel.reached)),
        made("CPUID in L2, turtles / TCG", 0.2, t2, c2, ["cpuid"]),
        Bar("CPUID in L1: exit to L0's Python and back", 3.0, exit_us, unit="µs"),
        made("real programs in L2, turtles / TCG", 0.35, t2, c2, PROGRAMS),
    ]


def shown(bar: Bar) -> tuple[str, str, str, str]:
    """Cells: what, value, limit, verdict."""
    unit = f" {bar.unit}" if bar.unit else ""
    value = "–" if bar.value is None else f"{bar.value:.2f}{unit}"
    return bar.what, value, asked(bar), bar.verdict


def asked(bar: Bar) -> str:
    """What a bar asks for."""
    if bar.limit is None:
        return "–"
    unit = f" {bar.unit}" if bar.unit else ""
    return f"≤ {bar.limit:g}{unit}" + (f", no row above {bar.worst:g}" if bar.worst else "")


def figures(m: Medians, keep: Callable[[Key], bool] = lambda key: True) -> list[dict[str, str | float]]:
    """Medians by row with a column for each program and level."""
    columns = sorted({(p, n) for p, n, _ in m}, key=lambda c: (c[1] > 0, c[1], c[0] == "tcg"))
    rows: dict[str, dict[str, str | float]] = {}
    for program, level in columns:
        for (p, n, row), ns in m.items():
            if (p, n) == (program, level) and keep((p, n, row)):
                rows.setdefault(row, {"row": row})[label(program, level)] = ns
    return list(rows.values())


def duration(ns: float) -> str:
    """In the unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.2f} {unit}"
    return f"{ns:.2f} ns"


def label(program: str, level: int) -> str:
    """A column's name."""
    return program if level == 0 else f"{program} L{level}"
