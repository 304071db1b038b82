"""What a trace amounts to: counts, how exits multiply, percentiles, where time and instructions went.

Times are in nanoseconds of the clock that the run had. Not here: how it looks (`trace`, `perfetto`).
"""

from __future__ import annotations

import functools
import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any, Final

from turtles.l0.stats import reason_name
from turtles.l0.trace import VMFAIL, ExitRecord
from turtles.l0.vmcs.bits import ENTRY_FAILURE
from turtles.tools.tree import LEVELS, Exit, Forest, Spent

PERCENTILES: Final = (50, 90, 99)
SCHEMA: Final = 1


def reason_text(record: ExitRecord) -> str:
    """The reason's name; a failed entry is marked as one."""
    return _reason_text(record.reason)


@functools.cache
def _reason_text(reason: int) -> str:
    basic = reason & 0xFFFF
    if reason & VMFAIL:
        return f"VMFAIL_{basic}"
    return reason_name(basic) + ("!" if reason & ENTRY_FAILURE else "")


def handler_text(record: ExitRecord, handled_by: int) -> str:
    """The level that handled it, and the reason that L1 was given where that is another."""
    if not record.reflected or record.as_reason == record.basic:
        return f"L{handled_by}"
    return f"L{handled_by} as {reason_name(record.as_reason)}"


def percentile(ordered: Sequence[int], share: int) -> int:
    """The nearest-rank percentile of numbers in ascending order; 0 of none."""
    if not ordered:
        return 0
    rank = -(-len(ordered) * share // 100)
    return ordered[max(rank, 1) - 1]


@dataclass
class Group:
    """Exits of one level for one reason, handled by the same level."""

    level: int
    reason: str
    handled_by: str
    count: int = 0
    unfinished: int = 0
    """Of those, how many whose level never ran again: no time is known of them."""
    ns: array[int] = field(default_factory=lambda: array("Q"))
    instructions: array[int] = field(default_factory=lambda: array("Q"))
    """Of lower levels while they handled it, an entry an exit, as in `ns`."""
    spent: list[int] = field(default_factory=lambda: [0] * len(Forest().spent))
    below: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Exits of lower levels meanwhile, by level and reason."""

    def add(self, exit_: Exit) -> None:
        """Counts one."""
        self.count += 1
        if exit_.handling is None:
            self.unfinished += 1
            return
        self.ns.append(exit_.handling.total_ns)
        self.instructions.append(sum(exit_.handling.retired))
        self.spent = list(map(add, self.spent, exit_.handling))

    @property
    def finished(self) -> int:
        """How many have a time."""
        return len(self.ns)

    @property
    def total(self) -> Spent:
        """All that handling them took."""
        return Spent(self.spent)

    def exits_of(self, level: int) -> float:
        """The multiplication factor: exits of a lower level for one of these."""
        return self.total.exits[level] / self.finished if self.finished else 0.0

    def percentiles(self) -> tuple[list[int], list[int]]:
        """Of time and of instructions."""
        ns, instructions = sorted(self.ns), sorted(self.instructions)
        return [percentile(ns, p) for p in PERCENTILES], [percentile(instructions, p) for p in PERCENTILES]

    def as_json(self) -> dict[str, Any]:
        """Everything known."""
        ns, instructions = self.percentiles()
        total = self.total
        return {
            "level": self.level,
            "reason": self.reason,
            "handled_by": self.handled_by,
            "count": self.count,
            "unfinished": self.unfinished,
            "exits_below": {f"L{n}": self.exits_of(n) for n in range(1, self.level)},
            "exits_below_by_reason": {
                f"L{level} {reason}": count / (self.finished or 1)
                for (level, reason), count in sorted(self.below.items())
            },
            "ns": {"total": total.total_ns, **_named(ns), **_parts_ns(total)},
            "instructions": {"total": sum(total.retired), **_named(instructions), **_by_level(total.retired)},
        }


def _named(values: Sequence[int]) -> dict[str, int]:
    return {f"p{share}": value for share, value in zip(PERCENTILES, values, strict=True)}


def _by_level(values: Sequence[int]) -> dict[str, int]:
    return {f"L{level}": value for level, value in enumerate(values) if value}


def _parts_ns(spent: Spent) -> dict[str, int]:
    return {
        **_by_level(spent.ran_ns),
        "L0": spent.l0_ns,
        "switching": spent.switching_ns,
        "idle": spent.idle_ns,
    }


@dataclass
class Summary:
    """Of all virtual CPUs."""

    groups: dict[tuple[int, str, str], Group] = field(default_factory=dict)
    spent: Spent = field(default_factory=lambda: Forest().spent)
    slowest: list[Exit] = field(default_factory=list)

    def in_order(self) -> list[Group]:
        """By level, the costliest first."""
        return sorted(self.groups.values(), key=lambda g: (g.level, -g.total.total_ns, -g.count, g.reason))

    def inferred(self) -> list[str]:
        """The levels that L0 cannot tell from L2, and that were told apart by what L1 did."""
        return [f"L{level}" for level in range(3, LEVELS) if self.spent.exits[level]]

    def shares(self) -> Iterator[tuple[str, int, int]]:
        """Name, time and instructions of each level that ran, the highest first, and of what is between."""
        for level in range(LEVELS - 1, 0, -1):
            if self.spent.exits[level]:
                yield f"L{level}", self.spent.ran_ns[level], self.spent.retired[level]
        yield "L0", self.spent.l0_ns, 0
        yield "switching", self.spent.switching_ns, 0
        yield "idle", self.spent.idle_ns, 0

    def as_json(self) -> dict[str, Any]:
        """Everything that the tables show, and more."""
        return {
            "schema": SCHEMA,
            "inferred_levels": self.inferred(),
            "time": {name: {"ns": ns, "instructions": retired} for name, ns, retired in self.shares()},
            "exits": [group.as_json() for group in self.in_order()],
            "slowest": [exit_json(exit_) for exit_ in self.slowest],
        }


def exit_json(exit_: Exit) -> dict[str, Any]:
    """An exit with its subtree."""
    r, handling = exit_.record, exit_.handling
    found: dict[str, Any] = {
        "number": exit_.number,
        "level": exit_.level,
        "reason": reason_text(r),
        "handled_by": handler_text(r, exit_.handled_by),
        "rip": r.rip,
        "qualification": r.qualification,
        "at_ns": r.exit_ns,
        "retired": r.retired,
    }
    if handling is not None:
        found["ns"] = {"total": handling.total_ns, **_parts_ns(handling)}
        found["instructions"] = _by_level(handling.retired)
    if exit_.children:
        found["exits"] = [exit_json(child) for child in exit_.children]
    return found


def summarise(runs: Iterable[Iterable[ExitRecord]], slowest: int) -> Summary:
    """Goes through the records of each virtual CPU once; keeps the `slowest` trees (time asleep apart)."""
    summary = Summary()
    heap: list[tuple[int, int, int, Exit]] = []
    for cpu, records in enumerate(runs):
        forest = Forest()
        for root in forest.grow(records):
            _count(summary.groups, root, [])
            if root.handling is not None and slowest:
                busy = root.handling.total_ns - root.handling.idle_ns
                heapq.heappush(heap, (busy, -cpu, -root.number, root))
                if len(heap) > slowest:
                    heapq.heappop(heap)
        summary.spent = Spent(a + b for a, b in zip(summary.spent, forest.spent, strict=True))
    summary.slowest = [root for *_, root in sorted(heap, reverse=True)]
    return summary


def _count(groups: dict[tuple[int, str, str], Group], exit_: Exit, above: list[Group]) -> None:
    """Counts an exit and those below it; `above` are the groups of the exits that it lies under."""
    reason = reason_text(exit_.record)
    key = exit_.level, reason, handler_text(exit_.record, exit_.handled_by)
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(*key)
    group.add(exit_)
    for each in above:
        each.below[exit_.level, reason] += 1
    if exit_.children:
        # Of one that never ended no factor is known either.
        path = above if exit_.handling is None else [*above, group]
        for child in exit_.children:
            _count(groups, child, path)
