"""Where the time of a traced run goes: guest, levels below, L0, switches; and what one exit becomes.

Of `turtles.tools.tree`, for the stretches of a run in which the rows ran. Not here: recording exits, which
costs a little time itself.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from turtles.l0.stats import reason_name
from turtles.l0.trace import ExitRecord
from turtles.tools import tracefile
from turtles.tools.tree import Exit, Forest, Spent

REASONS: Final = {"cpuid": "CPUID"}
"""The exits that a row is made of."""


@dataclass(frozen=True)
class Breakdown:
    """Nanoseconds of a stretch of a run, and how one exit became several."""

    level: int
    row: str
    operations: int
    total_ns: int
    guest_ns: int
    """Of the level that was measured."""
    below_ns: int
    """Of the hypervisors between it and L0."""
    l0_ns: int
    switch_ns: int
    idle_ns: int
    switches: int
    retired: tuple[int, ...]
    """Instructions by level."""
    caused: float | None
    """Exits of lower levels for one exit of the row's kind, the VMRESUME counted: the median."""
    caused_mean: float | None


def _one(before: Spent, after: Spent, found: Sequence[int], span: dict[str, Any]) -> Breakdown:
    spent = Spent(b - a for a, b in zip(before, after, strict=True))
    level = span["level"]
    return Breakdown(
        level,
        span["row"],
        span["operations"],
        spent.total_ns,
        spent.ran_ns[level],
        sum(spent.ran_ns[1:level]),
        spent.l0_ns,
        spent.switching_ns,
        spent.idle_ns,
        sum(spent.exits),
        spent.retired,
        statistics.median(found) if found else None,
        statistics.fmean(found) if found else None,
    )


def of_records(records: Iterable[ExitRecord], spans: Sequence[dict[str, Any]]) -> list[Breakdown]:
    """Of every span, by the core's clock."""
    times: list[int] = []
    seen: list[Exit] = []
    for root in Forest().grow(records):
        for each in root.walk():
            times.append(each.record.exit_ns)
            seen.append(each)
    result = []
    for span in spans:
        first = bisect.bisect_left(times, span["begin_ns"])
        last = bisect.bisect_right(times, span["end_ns"]) - 1
        if last <= first:
            continue
        wanted = REASONS.get(span["row"])
        found = [
            sum(1 for _ in x.walk()) - 1
            for x in seen[first:last]
            if x.level == span["level"] and x.handling and reason_name(x.record.basic) == wanted
        ]
        result.append(_one(Spent(seen[first].begin), Spent(seen[last].begin), found, span))
    return result


def of_file(path: Path, spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every row of a traced run."""
    file = tracefile.read(str(path))
    cpus = file.cpus()
    return [asdict(b) for b in of_records(file.records(cpus[0]), spans)] if cpus else []
