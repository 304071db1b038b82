"""One self-contained HTML page of a bench's JSON: bars, plots, medians, clocks; plots also as SVG beside it.

Plots need matplotlib (the extra `bench`); without, the page says so and has the tables. Not here: measuring.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from turtles.tools import plots
from turtles.tools.bars import duration
from turtles.tools.html_parts import cells, document, table
from turtles.tools.options import Failure

COLOURS: Final = {
    "native": "#777777",
    "turtles L1": "#1f77b4",
    "turtles L2": "#6fb1e0",
    "tcg L1": "#d95f02",
    "tcg L2": "#f3a76d",
}


def write(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Write the page and its plots; returns the files."""
    drawn = _plots(result)
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_document(result, drawn))
        for name, svg in drawn.items():
            file = path.with_name(f"{path.stem}-{name}.svg")
            file.write_text(svg)
            written.append(file)
    except OSError as e:
        raise Failure(f"{path}: {e.strerror}") from None
    return written


# --- the document ---


def _bars(result: Mapping[str, Any]) -> str:
    lines = []
    for bar in result["bars"]:
        unit = f" {bar['unit']}" if bar["unit"] else ""
        value = "–" if bar["value"] is None else f"{bar['value']:.2f}{unit}"
        worst = f", no row above {bar['worst']:g}" if bar["worst"] else ""
        verdict = {None: "not measured", True: "reached", False: "not reached"}[bar["reached"]]
        mark = {None: "", True: "reached", False: "missed"}[bar["reached"]]
        parts = (
            ", ".join(f"{name} {v:.2f}" for name, v in bar["parts"].items()) if len(bar["parts"]) > 1 else ""
        )
        lines.append(
            f"<tr><td>{html.escape(bar['what'])}</td><td class='n'>{value}</td>"
            f"<td class='n'>≤ {bar['limit']:g}{unit}{worst}</td>"
            f"<td class='{mark}'>{verdict}</td><td>{html.escape(parts)}</td></tr>"
        )
    heading = cells(("ratio of medians", "measured", "bar", "", "its parts"), "th")
    return f"<table>{heading}{''.join(lines)}</table>"


def _document(result: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    host, settings = result["host"], result["settings"]
    before, after = host["load"]
    columns = [c for c in COLOURS if any(c in row for row in result["medians_ns"])]
    medians = [
        [row["row"], *(duration(row[c]) if c in row else "" for c in columns)] for row in result["medians_ns"]
    ]
    clocks = [
        [
            f"{c['program']} L{c['level']}",
            f"{c['error']:+.4%}",
            c["host_s"],
            {None: "too short to tell", True: "within 0.1 %", False: "WRONG: its figures mean nothing"}[
                c["holds"]
            ],
        ]
        for c in result["clocks"]
    ]
    parts = [
        f"<h1>turtles bench {html.escape(result['bench'])}</h1>",
        f"<p>{html.escape(result['started'])}; {html.escape(str(host['processor']))}, {host['cores']} cores, "
        f"Linux {html.escape(host['kernel'])}, load {before:.1f} before and {after:.1f} after; "
        f"guests: Linux {html.escape(result['guest_kernel'])}, {settings['memory']}; "
        f"{settings['pairs']} pairs, {settings['repeats']} repeats each, of which the first "
        f"warms up, scale {settings['scale']:g}.</p>",
        "<p>Figures of a host that others share wander: only ratios of one run mean something.</p>",
        "<h2>Bars</h2>",
        _bars(result),
        *(f"<h2>{html.escape(TITLES[name])}</h2>{svg}" for name, svg in drawn.items()),
        *([] if drawn else [f"<p>{plots.MISSING}</p>"]),
        "<h2>Medians, for one operation</h2>",
        table(["", *columns], medians),
    ]
    costs = result["exit_costs"]
    if costs:
        rows = [
            [name.removesuffix("_ns").replace("_", " "), sorted(v)[len(v) // 2]] for name, v in costs.items()
        ]
        parts += ["<h2>Exits of L1, ns by the host's clock</h2>", table(["", "median"], rows)]
    if clocks:
        parts += ["<h2>Guests' clocks beside the host's</h2>", table(["", "error", "over s", ""], clocks)]
    if result["failures"]:
        parts += ["<h2>Runs that failed</h2>", table(["what"], [[f] for f in result["failures"]])]
    return document("turtles bench", parts)


# --- plots ---

TITLES: Final = {
    "bars": "Measured beside its bar (left of 1 is reached)",
    "rows": "Micro-benchmarks: ns for one operation",
    "programs": "Programs, boot and tower: seconds (openssl: ns for a byte or an operation)",
}
LARGE_ROWS: Final = ("boot", "tower", "gzip", "gcc", "python", "sqlite")


def _plots(result: Mapping[str, Any]) -> dict[str, str]:
    if not plots.available():
        return {}
    medians = result["medians_ns"]
    big = [row for row in medians if row["row"] in LARGE_ROWS or row["row"].startswith("openssl")]
    small = [row for row in medians if row not in big]
    judged = [bar for bar in result["bars"] if bar["value"] is not None]
    found = {}
    if judged:
        found["bars"] = plots.svg(lambda axes: _draw_bars(axes, judged), 0.9 + 0.42 * len(judged))
    if small:
        found["rows"] = plots.svg(lambda axes: _draw_rows(axes, small, result["samples"], False), 4.2)
    if big:
        found["programs"] = plots.svg(lambda axes: _draw_rows(axes, big, result["samples"], True), 4.2)
    return found


def _draw_bars(axes: Any, judged: Sequence[Mapping[str, Any]]) -> None:
    relative = [bar["value"] / bar["limit"] for bar in judged]
    colours = ["#2c8a45" if bar["reached"] else "#c0392b" for bar in judged]
    axes.barh([bar["what"] for bar in judged], [r - 1 for r in relative], left=1, color=colours)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("measured / bar")


def _draw_rows(
    axes: Any, rows: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]], seconds: bool
) -> None:
    columns = [c for c in COLOURS if any(c in row for row in rows)]
    width = 0.8 / len(columns)

    def scale(name: str) -> float:
        return 1e-9 if seconds and name in LARGE_ROWS else 1.0

    for i, column in enumerate(columns):
        at = [n + (i - (len(columns) - 1) / 2) * width for n in range(len(rows))]
        heights = [row.get(column, float("nan")) * scale(row["row"]) for row in rows]
        axes.bar(at, heights, width, label=column, color=COLOURS[column])
        for x, row in zip(at, rows, strict=True):
            values = [
                s["ns"] * scale(s["row"])
                for s in samples
                if s["row"] == row["row"]
                and column == (s["program"] if s["level"] == 0 else f"{s['program']} L{s['level']}")
            ]
            axes.plot([x] * len(values), values, ".", color="black", markersize=2.5, alpha=0.6)
    axes.set_yscale("log")
    axes.set_xticks(range(len(rows)), [row["row"] for row in rows], rotation=30, ha="right")
    axes.legend(ncols=len(columns), fontsize=8)
