"""`turtles run`: one guest, its console in this terminal, and how it ended as an exit status.

The main thread keeps the terminal and the signals; the guest runs in a thread of its own.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import click

from turtles import compiled
from turtles.l0.outcome import TIMEOUT, Ending, Outcome
from turtles.l0.stats import Level, Row
from turtles.tools.machine import Result, Rig, open_output
from turtles.tools.marks import MarkWriter
from turtles.tools.options import Failure, RunOptions
from turtles.tools.statistics import RunFigures, as_json
from turtles.tools.terminal import (
    HELP,
    RawMode,
    Wakeup,
    is_foreground_terminal,
    serve_input,
    stop_signals,
    write_all,
)

STATUS_TIMEOUT: Final = 124
GRACE_S: Final = 10.0
"""A machine that was asked to end and does not is a defect; after this the process ends without it."""


@dataclass
class Finished:
    """A machine that has run."""

    rig: Rig
    result: Result
    rows: list[Row]
    levels: list[Level]

    @property
    def digest(self) -> str:
        """Of every exit's retired count, level, reason and RIP; runs under virtual time repeat it."""
        return f"{self.rig.core.digest():016x}"


def header(rig: Rig) -> str:
    """One line: engine, what the processor offers, memory, guest."""
    offered = rig.model.features
    shown = [
        f
        for f in ("ept", "vpid", "unrestricted_guest", "vmcs_shadowing", "apic_virtualization", "vid")
        if f in offered
    ]
    off = rig.options.tactics.off()
    provided = " provided" if rig.options.prealloc else ""
    tactics = f", L0 without {' '.join(off)}" if off else ""
    return (
        f"turtles: {rig.core.engine}, L0: {compiled.state()}, "
        f"processor {rig.model.name} with vmx {' '.join(shown)}{tactics}, "
        f"{rig.options.memory >> 20} MiB{provided}, {rig.options.clock} clock; {rig.guest.what}"
    )


def exit_status(outcome: Outcome) -> int:
    """The program's status for an ending."""
    if outcome.ending is Ending.POWER_OFF:
        return 0
    if outcome.ending is Ending.DEBUG_EXIT:
        return (outcome.code << 1 | 1) & 0xFF
    return STATUS_TIMEOUT if outcome.ending is Ending.TIMEOUT else 1


def ending_line(outcome: Outcome) -> str | None:
    """One line on how a run ended, for endings that a user did not ask for."""
    if outcome.ending in (Ending.POWER_OFF, Ending.DEBUG_EXIT):
        return None
    hints = {
        Ending.TIMEOUT: "the time of --timeout is over",
        Ending.RESET: "the guest asked for a reset; there is nothing to restart it",
    }
    text = outcome.message or hints.get(outcome.ending, outcome.ending.value)
    return f"turtles: {' '.join(text.split())}"


def keyboard_source() -> int | None:
    """Where console input comes from: none where a background job would be stopped for reading it."""
    try:
        source = sys.stdin.fileno()
        return source if not os.isatty(source) or is_foreground_terminal(source) else None
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something without a descriptor
        return None


def drive(
    options: RunOptions,
    console: Callable[[bytes], None],
    *,
    keyboard: bool,
    started: Callable[[Rig], None] = lambda rig: None,
) -> Finished:
    """Run a machine to its end: signals stop it cleanly, the terminal is restored on every path."""
    rig = Rig(options, console)
    finished, wakeup = threading.Event(), Wakeup()
    ends_at = math.inf if options.timeout is None else time.monotonic() + options.timeout
    gives_up_at = math.inf

    def end(outcome: Outcome) -> None:
        nonlocal ends_at, gives_up_at
        ends_at, gives_up_at = math.inf, min(gives_up_at, time.monotonic() + GRACE_S)
        rig.stop(outcome)
        wakeup.set()

    def on_signal(number: int) -> None:
        end(Outcome(Ending.STOPPED, message=f"stopped by {signal.Signals(number).name}"))

    def seconds_left() -> float | None:
        now = time.monotonic()
        if now >= ends_at:
            end(TIMEOUT)
        if now >= gives_up_at:
            finished.set()
        left = min(ends_at, gives_up_at) - now
        return None if left == math.inf else max(left, 0.0)

    def done() -> None:
        finished.set()
        wakeup.set()

    with contextlib.ExitStack() as stack:
        stack.callback(wakeup.close)
        stack.enter_context(stop_signals(on_signal))
        source = keyboard_source() if keyboard else None
        interactive = source is not None and os.isatty(source)
        if interactive:
            click.echo(HELP, err=True)
        started(rig)
        if interactive and source is not None:
            stack.enter_context(RawMode(source))
        thread = rig.start(done)
        by_key = Outcome(Ending.STOPPED, message="ended by Ctrl-A x")
        serve_input(finished, wakeup, source, rig.type, lambda: end(by_key), seconds_left)
        if rig.result is not None:
            thread.join()
    if rig.result is None:
        raise Failure("the machine did not end when it was told to")
    return Finished(rig, rig.result, rig.vcpu.stats.rows(), rig.vcpu.stats.levels())


def write_statistics(finished: Finished, path: str) -> None:
    """`--stats`: what the exit table shows, as JSON."""
    rig, result = finished.rig, finished.result
    facts = {
        **rig.facts(),
        "translation": rig.core.translation,
        "helped": dict(sorted(rig.core.helped.items(), key=lambda item: -item[1])),
        "digest": finished.digest,
    }
    figures = RunFigures(result.outcome.ending.value, result.seconds, result.retired, facts)
    try:
        with open_output(path, "--stats") as file:
            file.write(as_json(finished.rows, finished.levels, figures))
    except OSError as e:
        raise Failure(f"--stats {path}: {e.strerror}") from None


def serial_sink(where: str, stack: contextlib.ExitStack) -> Callable[[bytes], None]:
    """Where the guest's console goes."""
    if where == "none":
        return lambda data: None
    if where == "stdio":
        return lambda data: void(write_all(1, data))
    path = where.removeprefix("file:")
    try:
        # Unbuffered: what a guest said is in the file even if the run is killed.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise Failure(f"--serial {path}: {e.strerror}") from None
    complete = True

    def to_file(data: bytes) -> None:
        nonlocal complete
        complete = write_all(descriptor, data) and complete

    def finish() -> None:
        os.close(descriptor)
        if not complete:
            raise Failure(f"--serial {path}: not everything could be written")

    stack.callback(finish)
    return to_file


def void(value: object) -> None:
    """For sinks: what a write returns is of no interest."""


def both(first: Callable[[bytes], None], second: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A sink that feeds two."""

    def feed(data: bytes) -> None:
        first(data)
        second(data)

    return feed


def run_guest(options: RunOptions) -> int:
    """Run a guest to its end; the exit status of the program."""
    with contextlib.ExitStack() as stack:
        if options.stats is not None:
            open_output(options.stats, "--stats").close()
        console = serial_sink(options.serial, stack)
        marks = None
        if options.marks is not None:
            marks = MarkWriter(stack.enter_context(open_output(options.marks, "--marks")))
            console = both(console, marks.feed)

        def started(rig: Rig) -> None:
            if marks is not None:
                marks.rig = rig
            click.echo(header(rig), err=True)

        finished = drive(options, console, keyboard=options.serial == "stdio", started=started)
        if options.stats is not None:
            write_statistics(finished, options.stats)
    if options.clock == "virtual":
        click.echo(f"turtles: digest of all exits {finished.digest}", err=True)
    outcome = finished.result.outcome
    if line := ending_line(outcome):
        click.echo(line, err=True)
    return exit_status(outcome)
