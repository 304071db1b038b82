"""Runs one configuration once and gives the record that the journal keeps.

Times inside a guest are its own; beside each stands what the host saw between the two lines that frame it:
wall time, instructions by level, exits. Not here: which configurations there are, what follows from it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from turtles.guests import benchmarks, embedded
from turtles.guests.cache import cache_root
from turtles.guests.images import ImageSet
from turtles.tools import marks
from turtles.tools.marks import Mark
from turtles.tools.measure import (
    BEGIN,
    RESULT,
    ClockCheck,
    Reader,
    Results,
    Say,
    follow,
    turtles,
    turtles_guest,
)
from turtles.tools.options import Failure
from turtles.tools.paper import breakdown
from turtles.tools.paper.journal import Record
from turtles.tools.paper.plan import Configuration

LIMIT_S: Final = 900.0
"""A run that takes longer is a failure; the bench goes on without it."""


def spans(found: Iterable[Mark]) -> list[dict[str, Any]]:
    """Rows that are framed by two marks of one level."""
    begun: dict[tuple[int, str], Mark] = {}
    repeat: dict[int, int] = {}
    result = []
    for mark in found:
        match = RESULT.search(mark.line.strip())
        if match is None:
            continue
        row, level = match[1], mark.level
        if row == "repeat":
            repeat[level] = int(match[2])
        elif row.startswith(BEGIN):
            begun[(level, row.removeprefix(BEGIN))] = mark
        elif begin := begun.pop((level, row), None):
            span = marks.between(begin, mark)
            result.append(
                {
                    "level": level,
                    "repeat": repeat.get(level, 0),
                    "row": row,
                    "operations": int(match[2]),
                    "begin_ns": begin.ns,
                    "end_ns": mark.ns,
                    **span.as_json(),
                }
            )
    return result


def clocks(name: str, number: int, found: Iterable[Mark]) -> list[ClockCheck]:
    """Each level's clock beside the host's, between the two lines that tell it.

    The host's is taken where the line leaves the machine: what this program is late with does not count.
    """
    first: dict[int, tuple[float, int]] = {}
    result = []
    for mark in found:
        match = RESULT.search(mark.line.strip())
        if match is None or match[1] != "clock":
            continue
        told = float(match[3]), mark.ns
        if mark.level not in first:
            first[mark.level] = told
            continue
        guest, host = (b - a for a, b in zip(first[mark.level], told, strict=True))
        result.append(ClockCheck(name, mark.level, number, guest / 1e9, host / 1e9))
    return result


def run(configuration: Configuration, number: int, images: ImageSet | None, say: Say) -> Record:
    """One run."""
    begin, started = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S %Z")
    results = Results()
    more: dict[str, Any] = {"spans": [], "breakdown": [], "run": None}
    if configuration.at == (0,):
        _native(configuration, number, _needed(images), results, say)
    else:
        more = _guest(configuration, number, images, results, say)
    return {
        "configuration": configuration.name,
        "options": options_key(configuration),
        "round": number,
        "started": started,
        "seconds": time.monotonic() - begin,
        "samples": [asdict(s) for s in results.samples],
        "clocks": [asdict(c) for c in results.clocks],
        "failures": results.failures,
        **more,
    }


def options_key(configuration: Configuration) -> str:
    """Everything that a run of a configuration is told, so that a change of it is another run."""
    return json.dumps(asdict(configuration) | {"expected_s": 0, "times": 1}, sort_keys=True)


def _needed(images: ImageSet | None) -> ImageSet:
    if images is None:
        raise Failure("this configuration needs the bench images: turtles image bench")
    return images


def _native(c: Configuration, number: int, images: ImageSet, results: Results, say: Say) -> None:
    """The set on the host itself, with the programs of the guests' root."""
    root = benchmarks.unpacked_root(images.root)
    reader = Reader(c.name, number, 0, results, lambda row: say(f"{c.name}: {row}"))
    with tempfile.TemporaryDirectory(prefix="turtles-") as scratch:
        environment = {**benchmarks.native_environment(root), "BENCH_SCRATCH": scratch}
        command = ["/bin/sh", str(root / "bench/run"), *c.settings.words]
        status = follow(command, reader, LIMIT_S, environment)
    _check(c, status, reader, results)


def _guest(
    c: Configuration, number: int, images: ImageSet | None, results: Results, say: Say
) -> dict[str, Any]:
    """The set in a tower."""
    reader = Reader(c.name, number, 1, results, lambda row: say(f"{c.name}: {row}"))
    with tempfile.TemporaryDirectory(prefix="turtles-") as name:
        directory = Path(name)
        stats, log, trace = directory / "stats.json", directory / "marks", directory / "trace"
        options = [*c.options, "--prealloc", "--stats", str(stats), "--marks", str(log)]
        if c.traced:
            options += ["--trace", str(trace)]
        if c.embedded:
            kernel = embedded.build(cache_root() / "embedded")
            command = turtles(
                *("run", "--kernel", str(kernel), "--append", f"depth={c.levels - 1}", "-m", "256M"),
                *("--debug-exit", "0xf4", *options),
            )
        else:
            command = turtles_guest(_needed(images), c.append, *options, disks=c.levels)
        status = follow(command, reader, LIMIT_S)
        with contextlib.suppress(OSError):
            with log.open() as lines:
                said = list(marks.read(lines))
            found = spans(said)
            results.clocks = clocks(c.name, number, said)
            shares = breakdown.of_file(trace, found) if c.traced else []
            with contextlib.suppress(ValueError):  # a run that broke off wrote none
                figures = json.loads(stats.read_text())["run"]
                _check(c, status, reader, results)
                _landmarks(c, reader, results)
                return {"spans": found, "breakdown": shares, "run": figures}
    _check(c, status, reader, results)
    return {"spans": [], "breakdown": [], "run": None}


def _landmarks(c: Configuration, reader: Reader, results: Results) -> None:
    """When each level's init spoke, by the host's clock."""
    for level, seconds in reader.inits.items():
        reader.landmark(level, "boot", seconds)


def _check(c: Configuration, status: int, reader: Reader, results: Results) -> None:
    """A run counts when it ended well and every level that is measured gave every row of its last repeat."""
    if status:
        results.failures.append(f"{c.name} ended with status {status}: {reader.last}")
        return
    wanted = {*c.rows, *(p.partition(":")[0] for p in c.programs)}
    for level in c.at:
        given = {s.row for s in results.samples if s.level == level and s.repeat == c.repeats - 1}
        if missing := sorted(wanted - given):
            where = f"L{level}" if level else "the host"
            results.failures.append(f"{c.name}: {where} gave no {' and no '.join(missing)}: {reader.last}")
