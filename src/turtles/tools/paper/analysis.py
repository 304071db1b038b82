"""From records to the paper's tables: medians, instructions, costs of exits, shares of time, and the bars.

Pure functions of the journal's records. Not here: measuring, what the paper printed, showing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from turtles.l0.stats import Row
from turtles.tools import bars
from turtles.tools.bars import Bar
from turtles.tools.marks import Span
from turtles.tools.measure import ClockCheck, Sample
from turtles.tools.paper.breakdown import Breakdown
from turtles.tools.paper.journal import Record
from turtles.tools.paper.plan import DEFAULT, KINDS, NATIVE, NESTED, THIRD

SINGLE_LIMIT_NS: Final = 3000.0
SHORTEST_S: Final = {1: 5.0, 2: 30.0}
DEEP_SHORTEST_S: Final = 600.0
SHADOW_ON_EPT: Final = "shadow-on-ept"

# The paper's names of exits, in its order, and the SDM's.
REASONS: Final = {
    "external interrupt": ("EXTERNAL_INTERRUPT",),
    "port I/O": ("IO",),
    "read MSR": ("RDMSR",),
    "CR access": ("CR_ACCESS",),
    "APIC access": ("APIC_ACCESS", "APIC_WRITE"),
    "exception": ("EXCEPTION_OR_NMI",),
    "interrupt window": ("INTERRUPT_WINDOW",),
    "CPUID": ("CPUID",),
    "EPT violation": ("EPT_VIOLATION",),
}
# Where the CPUID loop of a level is found: in the towers of packages, else in the embedded one.
CPUID_AT: Final = {
    1: ((DEFAULT, 1), ("embedded L1", 1)),
    2: ((DEFAULT, 2), ("embedded L2", 2)),
    3: ((THIRD, 3), ("embedded L3", 3)),
}


@dataclass(frozen=True)
class ExitCost:
    """Exits of one kind: how many were seen, and what one took."""

    count: int
    ns: float
    retired: float
    """Instructions of L1 for one."""


@dataclass(frozen=True)
class Shares:
    """Parts of a stretch of time, in per cent; what a processor slept is left out."""

    guest: float
    l1: float
    l0: float
    switch: float


class Analysis:
    """What the records of one version say."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.samples = [Sample(**s) for r in self.records for s in r["samples"]]
        self.medians = bars.medians(self.samples)
        self._spans: dict[tuple[str, int, str], list[tuple[int, Span]]] = {}
        self._breakdowns: dict[tuple[str, int, str], list[Breakdown]] = {}
        for r in self.records:
            for s in r["spans"]:
                key = (r["configuration"], s["level"], s["row"])
                self._spans.setdefault(key, []).append((s["repeat"], Span.from_json(s)))
            for b in r["breakdown"]:
                key = (r["configuration"], b["level"], b["row"])
                self._breakdowns.setdefault(key, []).append(
                    Breakdown(**{**b, "retired": tuple(b["retired"])})
                )

    # --- figures ---

    def ns(self, configuration: str, level: int, row: str) -> float | None:
        """The median for one operation, by the guest's clock."""
        return self.medians.get((configuration, level, row))

    def span(self, configuration: str, level: int, row: str) -> Span | None:
        """What the host saw of a row: of the middle repeat, the first left out where there are more."""
        found = self._spans.get((configuration, level, row), [])
        warm = [s for repeat, s in found if repeat > 0] or [s for _, s in found]
        return sorted(warm, key=lambda s: s.ns)[len(warm) // 2] if warm else None

    def nested(self, row: str, measure: Callable[[Span], int] | None = None) -> float | None:
        """What a row takes in L2 by what it took in L1 just before or after: the median of such pairs.

        By the guest's clock, or by one of the host's measures. Not the ratio of medians: a host wanders
        between pairs by more than what nesting costs.
        """
        ratios = []
        for r in self.records:
            if r["configuration"] != DEFAULT:
                continue
            found: dict[tuple[int, int], list[float]] = {}
            for each in r["samples"] if measure is None else r["spans"]:
                if each["row"] == row:
                    value = each["ns"] if measure is None else measure(Span.from_json(each))
                    found.setdefault((each["repeat"], each["level"]), []).append(value)
            first = min(1, max((repeat for repeat, _ in found), default=0))
            for (repeat, level), one in found.items():
                if level == 1 and repeat >= first:
                    ratios += [b / a for a, b in zip(one, found.get((repeat, 2), []), strict=False) if a]
        return statistics.median(ratios) if ratios else None

    def cpuid(self, level: int) -> float | None:
        """One CPUID in a loop, in nanoseconds."""
        return next((t for c, n in CPUID_AT[level] if (t := self.ns(c, n, "cpuid")) is not None), None)

    def transactions(self) -> int | None:
        """In one run of the transaction server."""
        for r in self.records:
            for program in json.loads(r["options"]).get("programs", []):
                name, _, number = program.partition(":")
                if name == "redis":
                    return KINDS * int(number)
        return None

    def l0(self) -> list[str]:
        """How L0 ran: compiled, or as Python, in which exits cost more."""
        return sorted({r["run"]["l0"] for r in self.records if r["run"]})

    def breakdown(self, configuration: str, level: int, row: str = "cpuid") -> Breakdown | None:
        """Of the run in the middle, of a traced configuration."""
        found = sorted(self._breakdowns.get((configuration, level, row), []), key=lambda b: b.total_ns)
        return found[len(found) // 2] if found else None

    def exit_cost(self, configuration: str, level: int, reason: str) -> ExitCost | None:
        """Of all exits of a level for one of the paper's reasons, while that level's rows ran."""
        rows: list[Row] = [
            row
            for (c, n, _), found in self._spans.items()
            if (c, n) == (configuration, level)
            for _, span in found
            for row in span.exits
            if row.level == level and row.reason in REASONS[reason]
        ]
        if level == 2:
            # What the paper calls nested is an exit that L1 handled; L0's own are single-level ones.
            rows = [row for row in rows if row.handled_by == "L1"]
        count = sum(row.count for row in rows)
        if not count:
            return None
        total, retired = sum(row.total_ns for row in rows), sum(row.retired for row in rows)
        return ExitCost(count, total / count, retired / count)

    def switch_ns(self, level: int) -> float | None:
        """An entry and exit of a level, without what the guest does, from traced runs."""
        found = [
            b.switch_ns / b.switches
            for (c, n, _), all_of in self._breakdowns.items()
            for b in all_of
            if n == level and b.switches
        ]
        return statistics.median(found) if found else None

    def shares(self, configuration: str, row: str) -> Shares | None:
        """Where the time of a row in L2 goes; switches as their number times what a traced one takes."""
        span, switch = self.span(configuration, 2, row), self.switch_ns(2)
        if span is None or switch is None:
            return None
        asleep = sum(r.total_ns for r in span.exits if r.reason == "HLT" and r.handled_by == "L0")
        switching = switch * (span.count(1) + span.count(2))
        total = span.ns - asleep
        l0 = max(total - sum(span.guest_ns) - switching, 0.0)
        parts = (span.guest_ns[2], span.guest_ns[1], l0, switching)
        return Shares(*(100 * part / sum(parts) for part in parts))

    def gain(self, mode: str, row: str) -> float | None:
        """How much longer a row takes in another memory mode than in the default one."""
        return bars.ratio(self.medians, (mode, 2), (DEFAULT, 2), row)

    # --- the table of bars ---

    def bars(self) -> list[tuple[Bar, str]]:
        """Each bar, and what the paper found."""
        one, two, three = (self.cpuid(level) for level in (1, 2, 3))
        build, redis = self.nested("build"), self.nested("redis")
        below = None if redis is None else 100 * (1 - 1 / redis)
        traced = self.breakdown("traced all", 2) or self.breakdown("embedded L2", 2)
        shadow = self.gain(SHADOW_ON_EPT, "build")
        quick_enough = one is not None and one <= SINGLE_LIMIT_NS
        nested = two / one if one and two else None
        measures: tuple[tuple[str, Callable[[Span], int]], ...] = (
            ("processor time", lambda s: s.cpu_ns),
            ("instructions", lambda s: sum(s.retired)),
        )
        spent = tuple(
            (f"{name} %", 100 * (r - 1)) for name, f in measures if (r := self.nested("build", f)) is not None
        )
        served = tuple(
            (f"{name} %", 100 * (1 - 1 / r))
            for name, f in measures
            if (r := self.nested("redis", f)) is not None
        )
        parts = tuple((n, v / 1e3) for n, v in (("single µs", one), ("nested µs", two)) if v is not None)
        return [
            (
                Bar("build in L2 over L1, run time", 6.0, _percent(build), "%", spent),
                "+14.5 %; +10.3 % with DRW",
            ),
            (
                Bar(
                    "transaction server in L2 below L1",
                    4.0,
                    below,
                    "%",
                    served,
                ),
                "7.8 %; 6.3 % with DRW",
            ),
            (
                Bar(
                    "CPUID exit, nested / single, while single ≤ 3 µs",
                    4.0,
                    nested,
                    parts=parts,
                    condition=quick_enough,
                ),
                "23; 4.75 with all",
            ),
            (
                Bar(
                    "exits of L1 for one CPUID exit of L2, its VMRESUME counted",
                    1.0,
                    traced.caused if traced else None,
                ),
                "13; 2 without VMREAD and VMWRITE",
            ),
            (Bar("build, shadow-on-EPT / multi-dimensional", None, shadow), "3.47"),
            (
                Bar("CPUID exit, L3 / L2", 15.0, three / two if two and three else None),
                "not measured",
            ),
        ]

    def missing_native(self) -> bool:
        """Whether the host itself was not measured."""
        return not any(s.program == NATIVE for s in self.samples)

    def configurations(self) -> list[str]:
        """Those there are records of, in order of appearance."""
        return list(dict.fromkeys(r["configuration"] for r in self.records))

    def clocks(self) -> list[ClockCheck]:
        """Guests' clocks beside the host's."""
        return [ClockCheck(**c) for r in self.records for c in r["clocks"] if c["level"] > 0]


def clock_holds(c: ClockCheck) -> bool | None:
    """Whether a guest's clock is right; none where that cannot be told.

    A line of L2's console is on its way for hundredths of a second, one of L3's for tenths.
    """
    return c.holds if c.host_s >= SHORTEST_S.get(c.level, DEEP_SHORTEST_S) else None


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else 100 * (ratio - 1)


TABLE_2: Final = ((NATIVE, 0), (DEFAULT, 1), (NESTED, 2), (DEFAULT, 2))
"""Where the columns of the paper's Table 2 are found: host, guest, nested, nested with DRW."""
