"""`turtles trace FILE`: what a recorded run did, as text.

Not here: recording (`turtles.l0.trace`) and the file (`tracefile`).
"""

from __future__ import annotations

from typing import Final

import click

from turtles.l0.stats import reason_name
from turtles.l0.trace import VMFAIL, ExitRecord
from turtles.tools import tracefile

HEADING: Final = (
    "# retired level reason rip qualification guest_physical handled_by ran_ns context rax rcx note"
)


def reason_text(record: ExitRecord) -> str:
    """The reason's name; a failed entry is marked as one."""
    if record.reason & VMFAIL:
        return f"VMFAIL_{record.basic}"
    return reason_name(record.basic) + ("!" if record.refused else "")


def handler_text(record: ExitRecord) -> str:
    """L0, or L1, with the reason that L1 was given where that is another."""
    if not record.reflected:
        return "L0"
    return "L1" if record.as_reason == record.basic else f"L1:{reason_name(record.as_reason)}"


def line(r: ExitRecord, note: str) -> str:
    """An exit as a line of text, in the columns of HEADING."""
    return (
        f"{r.retired} L{r.level} {reason_text(r)} {r.rip:#x} {r.qualification:#x} {r.guest_physical:#x} "
        f"{handler_text(r)} {r.exit_ns - r.entry_ns} {r.context:#x} {r.rax:#x} {r.rcx:#x} {note}".rstrip()
    )


def show_lines(found: tracefile.TraceFile) -> None:
    """Every exit as a line."""
    click.echo(HEADING)
    for cpu in found.cpus():
        notes = found.notes.get(cpu, {})
        for number, record in enumerate(found.records(cpu)):
            click.echo(line(record, notes.get(number, "")))


def run_trace(path: str) -> int:
    """The command; its status."""
    show_lines(tracefile.read(path))
    return 0
