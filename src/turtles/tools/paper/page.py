"""The page of `turtles bench paper`: bars, the paper's tables and figures beside ours, every configuration.

One HTML file that needs nothing else; figures also as SVG and PNG files beside it. Not here: what a figure
draws.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from turtles.tools import bars, plots
from turtles.tools.bars import Bar, duration
from turtles.tools.html_parts import document, table
from turtles.tools.marks import Span
from turtles.tools.options import Failure
from turtles.tools.paper import figures, published
from turtles.tools.paper.analysis import REASONS, TABLE_2, Analysis, clock_holds

ROWS: Final = ("cpuid", "fault", "fork", "ctxsw", "build", "redis", "boot")
MEANING: Final = {
    "cpuid": "a CPUID in a loop",
    "fault": "first touch of a page",
    "fork": "fork, exit and wait",
    "ctxsw": "a switch between two processes",
    "build": "make: a directory of newlib with gcc",
    "redis": "redis-benchmark against redis, all transactions",
    "boot": "to this level's init, from the start of the run",
}


def bar_cells(bar: Bar, paper: str) -> list[str]:
    """A line of the table of bars."""
    what, value, limit, verdict = bars.shown(bar)
    return [what, paper, value, limit, verdict, "; ".join(f"{name} {v:.2f}" for name, v in bar.parts)]


BAR_HEADINGS: Final = ("what", "the paper", "measured", "bar", "", "beside it")


def _table_2(a: Analysis) -> str:
    def ratio(values: Sequence[float | None], score: bool) -> list[str]:
        cells = []
        for i, value in enumerate(values):
            base = values[1]
            if value is None or base is None:
                cells.append("–")
                continue
            shown = f"{value:,.0f}" if score else f"{value:,.1f} s"
            change = f" ({100 * (value / base - 1):+.1f} %)" if i > 1 else ""
            cells.append(shown + change)
        return cells

    build = [None if (t := a.ns(c, n, "build")) is None else t / 1e9 for c, n in TABLE_2]
    each = a.transactions() or 1
    redis = [None if (t := a.ns(c, n, "redis")) is None else each * 1e9 / t for c, n in TABLE_2]
    spent = {row: [_billions(a.span(c, n, row)) for c, n in TABLE_2] for row in ("build", "redis")}
    rows = [
        [f"kernbench ({published.MARK})", *ratio(published.KERNBENCH_S, False)],
        ["build", *ratio(build, False)],
        ["its instructions", *spent["build"]],
        [f"SPECjbb ({published.MARK})", *ratio(published.SPECJBB_SCORE, True)],
        ["transactions a second", *ratio(redis, True)],
        ["instructions of all", *spent["redis"]],
    ]
    return table(["", *published.COLUMNS], rows)


def _billions(span: Span | None) -> str:
    return f"{sum(span.retired) / 1e9:.3f} G" if span else "–"


def _configurations(a: Analysis) -> str:
    """Every row of every configuration: time, instructions, exits for one operation."""
    rows = []
    for configuration in a.configurations():
        for level in range(4):
            for row in ROWS:
                ns = a.ns(configuration, level, row)
                if ns is None:
                    continue
                rows.append(
                    [
                        configuration,
                        f"L{level}" if level else "host",
                        row,
                        duration(ns),
                        *_seen(a, configuration, level, row),
                    ]
                )
    headings = (
        "configuration",
        "level",
        "row",
        "time",
        "processor time, s",
        "million instructions",
        "of L1",
        "exits of L1",
        "exits of L2",
    )
    return table(headings, rows)


def _seen(a: Analysis, configuration: str, level: int, row: str) -> list[str]:
    """What the host saw of the whole row."""
    span = a.span(configuration, level, row)
    if span is None:
        return [""] * 5
    million = [f"{n / 1e6:,.1f}" for n in (sum(span.retired), span.retired[1])]
    return [f"{span.cpu_ns / 1e9:.2f}", *million, f"{span.count(1):,}", f"{span.count(2):,}"]


def _exit_costs(a: Analysis) -> str:
    rows = []
    for reason in REASONS:
        cells = []
        for configuration, level in figures.EXITS_AT:
            cost = a.exit_cost(configuration, level, reason)
            cells.append(
                f"{cost.ns / 1e3:,.1f} µs, {cost.retired:,.0f} instructions ({cost.count:,})" if cost else "–"
            )
        paper = " / ".join(f"{v:g}" for v in published.EXITS[reason])
        rows.append([reason, paper, *cells])
    return table(["", f"thousand cycles ({published.MARK})", *published.EXIT_COLUMNS], rows)


def _cpuid(a: Analysis) -> str:
    rows = []
    ours = figures.cpuid_parts(a)
    for column, total in published.CPUID_CYCLES.items():
        told = published.CPUID_SHARES.get(column)
        paper = f"{total:,}" + (f" (L1 {told[0]:,}, L0 {told[1]:,}, switches {told[2]:,})" if told else "")
        parts = ours.get(column)
        mine = (
            f"{sum(parts):,.0f} (L1 {parts[0]:,.0f}, L0 {parts[1]:,.0f}, switches {parts[2]:,.0f})"
            if parts
            else "–"
        )
        b = next((b for c, n in figures.CPUID_COLUMNS[column] if (b := a.breakdown(c, n))), None)
        instructions = f"{sum(b.retired) / b.operations:,.0f}" if b else "–"
        caused = (
            f"{b.caused:g} (mean {b.caused_mean:.2f})" if b and b.caused is not None and b.level > 1 else "–"
        )
        rows.append([column, paper, mine, instructions, caused])
    headings = (
        "",
        f"cycles ({published.MARK})",
        "ns, every exit recorded",
        "instructions",
        "exits of L1 for one",
    )
    return table(headings, rows)


def _clocks(a: Analysis) -> str:
    told = {None: "too short to tell", True: "within 0.1 %", False: "WRONG: its figures mean nothing"}
    rows = [
        [bars.label(c.program, c.level), f"{c.error:+.4%}", c.host_s, told[clock_holds(c)]]
        for c in a.clocks()
    ]
    return table(("guest", "error", "over s", ""), rows)


def text(result: Mapping[str, Any], a: Analysis, drawn: Sequence[figures.Figure]) -> str:
    """The page."""
    host = result["host"]
    parts = [
        "<h1>The Turtles paper, measured again</h1>",
        f"<p>{html.escape(result['started'])}; {html.escape(str(host['processor']))}, {host['cores']} cores, "
        f"Linux {html.escape(host['kernel'])}; {html.escape(result['what'])}. The paper's figures are from "
        f"{html.escape(published.SOURCE)}, measured on one {published.GHZ} GHz Xeon core, and are marked; "
        "those read off its drawings are good to about 0.5 %.</p>",
        f"<p>L0: {html.escape(', '.join(a.l0()) or 'not run')}.</p>",
        "<p>Figures of a host that others share wander: only ratios of one run mean something.</p>",
        "<h2>Bars</h2>",
        table(BAR_HEADINGS, [bar_cells(bar, paper) for bar, paper in a.bars()]),
        "<h2>Table 2</h2>",
        _table_2(a),
        *(f"<h2>{html.escape(f.title)}</h2>{f.svg}" for f in drawn),
        *([] if drawn else [f"<p>{plots.MISSING}</p>"]),
        f"<p>Figures 7 and 8 need a network card, which guests do not have here: {figures.ABSENT}.</p>",
        "<h2>What an exit costs: figures of ours</h2>",
        _exit_costs(a),
        "<h2>A CPUID, told apart</h2>",
        _cpuid(a),
        "<h2>Every configuration</h2>",
        "<p>Time is the median for one operation by the guest's clock; the rest is of a whole row: what the "
        "host's processor gave the machine's thread, and instructions and exits as L0 counted them. A host "
        "that is busy with other work stretches the first, hardly the second, never the others.</p>",
        table(("row", "what it is"), MEANING.items()),
        _configurations(a),
        "<h2>Guests' clocks beside the host's</h2>",
        _clocks(a),
    ]
    if result["failures"]:
        parts += ["<h2>Runs that failed</h2>", table(["what"], [[f] for f in result["failures"]])]
    return document("turtles bench paper", parts)


def write(result: Mapping[str, Any], a: Analysis, path: Path) -> list[Path]:
    """The page and its figures; returns the files."""
    drawn = figures.drawn(a)
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(result, a, drawn))
        for f in drawn:
            svg, png = (path.with_name(f"{path.stem}-{f.name}.{kind}") for kind in ("svg", "png"))
            svg.write_text(f.svg)
            png.write_bytes(f.png)
            written += [svg, png]
    except OSError as e:
        raise Failure(f"{path}: {e.strerror}") from None
    return written


def as_json(a: Analysis) -> dict[str, Any]:
    """What follows from the samples, for the JSON file."""
    return {
        "bars": [
            {**asdict(b), "parts": dict(b.parts), "reached": b.reached, "paper": p} for b, p in a.bars()
        ],
        "medians_ns": [
            {"configuration": c, "level": level, "row": row, "ns": ns}
            for (c, level, row), ns in sorted(a.medians.items())
        ],
        "published": {
            name.lower(): _plain(value) for name, value in vars(published).items() if name.isupper()
        },
    }


def _plain(value: Any) -> Any:
    """With keys that JSON has."""
    if isinstance(value, dict):
        return {" ".join(k) if isinstance(k, tuple) else k: v for k, v in value.items()}
    return value
