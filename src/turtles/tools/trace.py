"""`turtles trace FILE`: what a recorded run did, as tables, trees, lines or JSON.

Not here: recording (`turtles.l0.trace`), the file (`tracefile`) and the arithmetic (`tree`, `tracing`).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turtles.l0.tactics import Tactics
from turtles.l0.trace import ExitRecord
from turtles.tools import tracefile
from turtles.tools.options import Failure
from turtles.tools.tracefile import TraceFile
from turtles.tools.tracing import (
    PERCENTILES,
    Group,
    Summary,
    handler_text,
    reason_text,
    summarise,
)
from turtles.tools.tree import Exit

HEADING: Final = (
    "# retired level reason rip qualification guest_physical handled_by ran_ns context rax rcx note"
)
WIDTH: Final = 200
"""What the widest table needs: no figure is cut off, whatever the terminal."""
LONGEST_TREE: Final = 40
BELOW_SHOWN: Final = 6


# --- lines ---


def line(r: ExitRecord, note: str) -> str:
    """An exit as a line of text, in the columns of HEADING."""
    handler = handler_text(r, 1 if r.reflected else 0).replace(" ", "_")
    return (
        f"{r.retired} L{r.level} {reason_text(r)} {r.rip:#x} {r.qualification:#x} {r.guest_physical:#x} "
        f"{handler} {r.exit_ns - r.entry_ns} {r.context:#x} {r.rax:#x} {r.rcx:#x} {note}".rstrip()
    )


def show_lines(found: TraceFile) -> None:
    """Every exit as a line. Levels are as L0 knows them: 2 for all above L1."""
    click.echo(HEADING)
    for cpu in found.cpus():
        notes = found.notes.get(cpu, {})
        for number, record in enumerate(found.records(cpu)):
            click.echo(line(record, notes.get(number, "")))


# --- tables ---


def heading(found: TraceFile) -> str:
    """One line: what ran, and how it ended."""
    facts = found.facts
    off = Tactics(**{k: v for k, v in facts["tactics"].items() if k in Tactics.__dataclass_fields__}).off()
    tactics = f", L0 without {' '.join(off)}" if off else ""
    ending = found.ending["ending"] if found.ending else "the trace ends early"
    return f"{facts['guest']}; {facts['engine']}, {facts['mmu']}{tactics}, {facts['clock']} clock: {ending}"


def time_table(summary: Summary) -> Table:
    """Where time and instructions went."""
    table = Table(title="Where the time went", title_justify="left", box=None, pad_edge=False)
    for name in ("", "time ms", "share", "million instr.", "share"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    shares = list(summary.shares())
    all_ns, all_retired = sum(ns for _, ns, _ in shares) or 1, sum(n for *_, n in shares) or 1
    for name, ns, retired in shares:
        instructions = (f"{retired / 1e6:,.3f}", f"{retired / all_retired:.1%}") if retired else ("", "")
        table.add_row(name, f"{ns / 1e6:,.3f}", f"{ns / all_ns:.1%}", *instructions)
    return table


def exit_table(groups: list[Group]) -> Table:
    """A line for each level, reason and handler. Shares are of the level's exits."""
    table = Table(title="Exits", title_justify="left", box=None, pad_edge=False)
    for name in ("level", "exit reason", "handled by"):
        table.add_column(name, no_wrap=True)
    names = ["count", "exits of L1", "time ms", "share"]
    names += [f"p{share} µs" for share in PERCENTILES] + ["instr."] + [f"p{share}" for share in PERCENTILES]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    totals: dict[int, int] = {}
    for group in groups:
        totals[group.level] = totals.get(group.level, 0) + group.total.total_ns
    level = None
    for group in groups:
        if level not in (None, group.level):
            table.add_section()
        level = group.level
        total = group.total
        ns, instructions = group.percentiles()
        table.add_row(
            f"L{group.level}",
            group.reason,
            group.handled_by,
            f"{group.count:,}",
            f"{group.exits_of(1):,.1f}" if level > 1 else "",
            f"{total.total_ns / 1e6:,.3f}",
            f"{total.total_ns / (totals[level] or 1):.1%}",
            *(f"{value / 1e3:,.1f}" for value in ns),
            *(f"{value:,}" for value in (sum(total.retired), *instructions)),
        )
    return table


def below_lines(groups: list[Group]) -> Iterator[str]:
    """For each reason of L2 and above, which exits of lower levels one of them brings."""
    for group in groups:
        if group.below and group.finished:
            shown = [
                f"{count / group.finished:.2f} L{level} {reason}"
                for (level, reason), count in group.below.most_common(BELOW_SHOWN)
            ]
            more = ", …" if len(group.below) > BELOW_SHOWN else ""
            yield f"L{group.level} {group.reason} ({group.handled_by}): {', '.join(shown)}{more}"


# --- trees ---


def tree_lines(exit_: Exit, depth: int = 0) -> Iterator[str]:
    """An exit with its subtree; of exits alike that follow each other the first stands for all."""
    yield "  " * depth + _exit_line(exit_)
    number = 0
    while number < len(exit_.children):
        child = exit_.children[number]
        shape = _shape(child)
        end = number + 1
        while end < len(exit_.children) and _shape(exit_.children[end]) == shape:
            end += 1
        lines = tree_lines(child, depth + 1)
        if end - number > 1:
            next(lines)
            ns = sum(alike.handling.total_ns for alike in exit_.children[number:end] if alike.handling)
            indent = "  " * (depth + 1)
            yield f"{indent}L{child.level} {reason_text(child.record)} ×{end - number}: {ns / 1e3:,.1f} µs"
        yield from lines
        number = end


def _exit_line(exit_: Exit) -> str:
    handling, record = exit_.handling, exit_.record
    if handling is None:
        took = "never ended"
    else:
        took = f"{handling.total_ns / 1e3:,.1f} µs"
        if handling.idle_ns:
            took += f" ({handling.idle_ns / 1e3:,.1f} asleep)"
        if retired := sum(handling.retired):
            took += f", {retired:,} instr."
    handler = handler_text(record, exit_.handled_by)
    return f"L{exit_.level} {reason_text(record)} at {record.rip:#x}, by {handler}: {took}"


Shape = tuple[int, int, tuple["Shape", ...]]


def _shape(exit_: Exit) -> Shape:
    return exit_.level, exit_.record.reason, tuple(_shape(child) for child in exit_.children)


def show_summary(found: TraceFile, summary: Summary) -> None:
    """Everything, for people."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    console.print(heading(found), markup=False)
    if inferred := summary.inferred():
        console.print(f"{', '.join(inferred)} inferred: to L0 all levels above L1 are L2")
    groups = summary.in_order()
    for table in (time_table(summary), exit_table(groups)):
        console.print()
        console.print(table)
    if below := list(below_lines(groups)):
        console.print("\nExits of lower levels for each of them")
        for text in below:
            console.print(f"  {text}", markup=False)
    if summary.slowest:
        console.print("\nThe slowest")
    for root in summary.slowest:
        lines = list(tree_lines(root, 1))
        for text in lines[:LONGEST_TREE]:
            console.print(Text(text))
        if len(lines) > LONGEST_TREE:
            console.print(f"    … and {len(lines) - LONGEST_TREE:,} lines more")


# --- the command ---


def run_trace(path: str, *, lines: bool, slowest: int, as_json: bool, perfetto: str | None) -> int:
    """The command; its status."""
    gc.disable()  # trees have no cycles: the collector would find nothing, and take a third of the time
    try:
        return _run(tracefile.read(path), lines, slowest, as_json, perfetto)
    finally:
        gc.enable()


def _run(found: TraceFile, lines: bool, slowest: int, as_json: bool, perfetto: str | None) -> int:
    if lines:
        show_lines(found)
        return 0
    runs = [found.records(cpu) for cpu in found.cpus()]
    if perfetto is not None:
        from turtles.tools.perfetto import export

        try:
            with open(perfetto, "wb") as file:
                export(runs, file)
        except OSError as e:
            raise Failure(f"--perfetto {perfetto}: {e.strerror}") from None
        return 0
    summary = summarise(runs, slowest)
    if as_json:
        run = {key: value for key, value in found.facts.items() if key != "words"}
        click.echo(json.dumps({"run": {**run, "end": found.ending}, **summary.as_json()}, indent=1))
    else:
        show_summary(found, summary)
    return 0
