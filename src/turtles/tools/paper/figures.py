"""The paper's figures and ours, panel by panel: the same axes, the same order, the paper's on the left.

Each is drawn from `published` and an `Analysis`; where we have nothing, our panel says so. Not here: tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from turtles.tools import plots
from turtles.tools.paper import published
from turtles.tools.paper.analysis import REASONS, SHADOW_ON_EPT, TABLE_2, Analysis
from turtles.tools.paper.plan import DEFAULT, EPT12, NESTED, OTHER_MODES

THEIRS: Final = "the paper's own figures"
OURS: Final = "turtles"
ABSENT: Final = "not measured here yet"
PARTS: Final = {"guest": "#9ecae1", "L1": "#3182bd", "L0": "#e6550d", "switch": "#756bb1"}
SERIES: Final = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860")


@dataclass(frozen=True)
class Figure:
    """One of the page's figures."""

    name: str
    title: str
    svg: str
    png: bytes


def _stacked(axes: Any, columns: Mapping[str, Sequence[float]], parts: Sequence[str], unit: str) -> None:
    """Bars of parts, one on the other; `columns` may hold fewer parts, then the last ones."""
    names = list(columns)
    bottom = [0.0] * len(names)
    for i, part in enumerate(parts):
        heights = [columns[name][i] for name in names]
        axes.bar(range(len(names)), heights, 0.6, bottom=bottom, label=part, color=PARTS[part])
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
    axes.set_ylabel(unit)


def _totals(axes: Any, columns: Mapping[str, Sequence[float]], form: str) -> None:
    """The sums, over the bars."""
    for at, values in enumerate(columns.values()):
        if sum(values):
            axes.annotate(
                format(sum(values), form), (at, sum(values)), (0, 2), textcoords="offset points",
                ha="center", fontsize=7,
            )  # fmt: skip


def _figures(axes: Any, form: str, top: float | None = None) -> None:
    """Each bar's height over it; of one that the axis cuts off at `top`, inside."""
    for bar in axes.patches:
        height = bar.get_height()
        if height != height:
            continue
        cut = top is not None and height > top
        place = (bar.get_x() + bar.get_width() / 2, top if cut and top else height)
        axes.annotate(
            format(height, form), place, (0, -9 if cut else 2), textcoords="offset points",
            ha="center", fontsize=6.5, color="white" if cut else "black",
        )  # fmt: skip


def _same(axes: Sequence[Any], *, log: bool = False) -> None:
    """Both panels with one range, so that heights can be held beside each other."""
    heights = [h for each in axes for bar in each.patches if (h := bar.get_height()) > 0]
    if not heights:
        return
    for each in axes:
        if log:
            each.set_yscale("log")
            each.set_ylim(min(heights) / 1.5, max(heights) * 3)
            each.yaxis.set_major_formatter("{x:g}")
            each.yaxis.set_minor_formatter("")
        else:
            each.set_ylim(0, max(heights) * 1.25)


def _grouped(axes: Any, rows: Mapping[str, Sequence[float | None]], series: Sequence[str], unit: str) -> None:
    """Groups of bars side by side; what is missing is left out."""
    width = 0.8 / len(series)
    for i, name in enumerate(series):
        at = [n + (i - (len(series) - 1) / 2) * width for n in range(len(rows))]
        heights = [values[i] if values[i] is not None else float("nan") for values in rows.values()]
        axes.bar(at, heights, width, label=name, color=SERIES[i])
    axes.set_xticks(range(len(rows)), list(rows), rotation=35, ha="right", fontsize=8)
    axes.set_ylabel(unit)


def _empty(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, ABSENT, ha="center", va="center", transform=axes.transAxes, color="#777777")


def _titled(axes: Sequence[Any]) -> None:
    for each, title in zip(axes, (THEIRS, OURS), strict=False):
        each.set_title(title, fontsize=9)
        if each.get_legend_handles_labels()[0]:
            each.legend(fontsize=6, framealpha=0.5, ncols=2, loc="upper right")


def ghz() -> float | None:
    """This host's nominal clock, for figures in cycles; none where it is not told."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = [float(line.split(":")[1]) for line in file if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return max(found) / 1000 if found else None


# --- the figures ---

WORKLOADS: Final = (("kernbench", "build"), ("SPECjbb", "redis"))
NESTED_COLUMNS: Final = (("nested", NESTED), ("nested DRW", DEFAULT))


def table_2(axes: Sequence[Any], a: Analysis) -> None:
    """Table 2 as run time and score relative to the guest, L1."""
    theirs = {
        "kernbench": [published.KERNBENCH_S[1] / s for s in published.KERNBENCH_S],
        "SPECjbb": [s / published.SPECJBB_SCORE[1] for s in published.SPECJBB_SCORE],
    }
    _grouped(axes[0], theirs, published.COLUMNS, "speed, L1 = 1")
    ours: dict[str, list[float | None]] = {}
    for name, row in (("build", "build"), ("transactions", "redis")):
        base = a.ns(DEFAULT, 1, row)
        found = [a.ns(c, n, row) for c, n in TABLE_2]
        ours[name] = [base / t if base and t else None for t in found]
    if any(v is not None for values in ours.values() for v in values):
        _grouped(axes[1], ours, published.COLUMNS, "speed, L1 = 1")
    else:
        _empty(axes[1])
    for each in axes:
        each.set_ylim(0, 1.5)
        _figures(each, ".3g", 1.5)


def figure_5(axes: Sequence[Any], a: Analysis) -> None:
    """Shares of time by level."""
    _stacked(
        axes[0], {f"{w}, {c}": v for (w, c), v in published.CYCLES.items()}, published.SHARES, "% of cycles"
    )
    ours = {}
    for (_, row), name in zip(WORKLOADS, ("build", "transactions"), strict=True):
        for column, configuration in NESTED_COLUMNS:
            if s := a.shares(configuration, row):
                ours[f"{name}, {column}"] = (s.guest, s.l1, s.l0, s.switch)
    if ours:
        _stacked(axes[1], ours, published.SHARES, "% of time")
    else:
        _empty(axes[1])
    for each in axes:
        each.set_ylim(0, 125)


EXITS_AT: Final = ((DEFAULT, 1), (DEFAULT, 2), (NESTED, 2))
"""Where the columns of Figure 6 are found: single level, nested with DRW, nested."""


def figure_6(axes: Sequence[Any], a: Analysis) -> None:
    """What an exit costs, by reason."""
    _grouped(axes[0], published.EXITS, published.EXIT_COLUMNS, "thousand cycles")
    clock = ghz() or 1.0
    ours: dict[str, list[float | None]] = {}
    for reason in REASONS:
        found = [
            a.exit_cost(DEFAULT, 1, reason),
            a.exit_cost(DEFAULT, 2, reason),
            a.exit_cost(NESTED, 2, reason),
        ]
        ours[reason] = [cost.ns * clock / 1000 if cost else None for cost in found]
    if any(v is not None for values in ours.values() for v in values):
        unit = f"thousand cycles at {clock:.1f} GHz" if ghz() else "µs"
        _grouped(axes[1], ours, published.EXIT_COLUMNS, unit)
        for at, values in enumerate(ours.values()):
            if all(v is None for v in values):
                axes[1].text(
                    at, 0.02, "none", ha="center", fontsize=6, transform=axes[1].get_xaxis_transform()
                )
    else:
        _empty(axes[1])
    _same(axes, log=True)  # the paper's axis is linear; ours reaches further


def figure_7(axes: Sequence[Any], a: Analysis) -> None:
    """Network throughput."""
    axes[0].barh(list(published.NETPERF), [v for v, _ in published.NETPERF.values()], color=SERIES[0])
    axes[0].invert_yaxis()
    axes[0].tick_params(axis="y", labelsize=7)
    axes[0].set_xlabel("netperf TCP stream, Mb/s")
    _empty(axes[1])


def figure_8(axes: Sequence[Any], a: Analysis) -> None:
    """Network throughput by message size, with a driver that polls."""
    _grouped(axes[0], published.MESSAGES, published.MESSAGE_COLUMNS, "Mb/s")
    _empty(axes[1])


def figure_9(axes: Sequence[Any], a: Analysis) -> None:
    """What multi-dimensional paging gains."""
    gains = {name: (value,) for name, value in published.MULTIDIM_GAIN.items()}
    _grouped(axes[0], gains, (SHADOW_ON_EPT,), "run time / multi-dimensional")
    # The paper's kernbench and SPECjbb, then what it has not; its netperf waits for a network card.
    rows = {"build": "build", "transactions": "redis", "fault": "fault", "fork": "fork", "ctxsw": "ctxsw"}
    others = (*OTHER_MODES, *(f"{DEFAULT} {name}" for name in EPT12))
    ours = {name: [a.gain(mode, row) for mode in others] for name, row in rows.items()}
    measured = {row: values for row, values in ours.items() if any(v is not None for v in values)}
    if measured:
        _grouped(axes[1], measured, others, "run time / multi-dimensional")
    else:
        _empty(axes[1])
    _same(axes, log=True)
    for each in axes:
        each.axhline(1, color="black", linewidth=0.6)
    _figures(axes[0], ".3g")
    _figures(axes[1], ".3g")


CPUID_COLUMNS: Final = {
    "single level": (("traced all", 1), ("embedded L1", 1)),
    "nested": (("traced none", 2),),
    "nested, L0 optimised": (("traced no-shadow-vmcs", 2),),
    "nested, DRW": (("traced none,shadow-vmcs", 2),),
    "nested, both": (("traced all", 2), ("embedded L2", 2)),
}


def cpuid_parts(a: Analysis) -> dict[str, tuple[float, float, float]]:
    """Nanoseconds of one CPUID in L1, L0 and switches, for the columns of Figure 10."""
    found = {}
    for column, places in CPUID_COLUMNS.items():
        for configuration, level in places:
            if b := a.breakdown(configuration, level):
                found[column] = (
                    b.below_ns / b.operations,
                    b.l0_ns / b.operations,
                    b.switch_ns / b.operations,
                )
                break
    return found


def figure_10(axes: Sequence[Any], a: Analysis) -> None:
    """A CPUID in a loop."""
    totals = published.CPUID_CYCLES
    told = published.CPUID_SHARES
    plain = {n: v for n, v in totals.items() if n not in told}
    theirs = {n: [v / 1000 for v in told.get(n, (0, 0, 0))] for n in totals}
    heights = [plain.get(n, 0) / 1000 for n in totals]
    axes[0].bar(list(totals), heights, 0.6, color="#cccccc", label="not told apart")
    _stacked(axes[0], theirs, ("L1", "L0", "switch"), "thousand cycles")
    _totals(axes[0], {n: [v / 1000] for n, v in totals.items()}, ".1f")
    if found := cpuid_parts(a):
        clock = ghz() or 1.0
        ours = {n: [v * clock / 1000 for v in found.get(n, (0, 0, 0))] for n in totals}
        _stacked(axes[1], ours, ("L1", "L0", "switch"), f"thousand cycles at {clock:.1f} GHz")
        _totals(axes[1], ours, ".1f")
    else:
        _empty(axes[1])
    for each in axes:
        each.margins(y=0.15)


FIGURES: Final[tuple[tuple[str, str, Callable[[Sequence[Any], Analysis], None]], ...]] = (
    ("table2", "Table 2: kernbench and SPECjbb; a build and a transaction server", table_2),
    ("figure5", "Figure 5: where the cycles go", figure_5),
    ("figure6", "Figure 6: the cost of an exit", figure_6),
    ("figure7", "Figure 7: network throughput", figure_7),
    ("figure8", "Figure 8: network throughput with a polling driver, by message size", figure_8),
    ("figure9", "Figure 9: multi-dimensional paging", figure_9),
    ("figure10", "Figure 10: CPUID in a loop", figure_10),
)


def drawn(a: Analysis) -> list[Figure]:
    """All figures; none without matplotlib."""
    if not plots.available():
        return []
    result = []
    for name, title, draw in FIGURES:

        def both(axes: Sequence[Any], draw: Callable[[Sequence[Any], Analysis], None] = draw) -> None:
            draw(axes, a)
            _titled(axes)

        svg, png = plots.figure(both, 3.8, 2)
        result.append(Figure(name, title, svg, png))
    return result
