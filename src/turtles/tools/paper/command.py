"""`turtles bench paper`: runs what the journal does not have yet, by turns; writes JSON, page and figures.

A bench that is ended leaves a page of what it had, and goes on when it is started again. Not here: what runs
and what follows from it.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from turtles.guests.cache import cache_root, digest
from turtles.guests.images import ImageSet
from turtles.tools.bars import duration
from turtles.tools.compare import images as obtain
from turtles.tools.doctor import cpu_name
from turtles.tools.measure import result_directory
from turtles.tools.options import Failure
from turtles.tools.paper import page, plan, runs
from turtles.tools.paper.analysis import Analysis, clock_holds
from turtles.tools.paper.journal import Journal, Record, version
from turtles.tools.paper.plan import Configuration
from turtles.tools.progress import progress

ROUNDS: Final = 2


@dataclass(frozen=True)
class PaperOptions:
    """What the command was told."""

    quick: bool = False
    embedded: bool = False
    rounds: int | None = None
    only: tuple[str, ...] = ()
    scale: float = 1.0
    """Of everything that a workload does."""
    renew: bool = False
    json: str | None = None
    page: str | None = None

    @property
    def what(self) -> str:
        """For the page."""
        return "the embedded tower only" if self.embedded else "quick" if self.quick else "everything"

    def plan(self) -> list[Configuration]:
        """The configurations."""
        if self.embedded:
            found = plan.embedded()
        else:
            make, sizes = (plan.quick, plan.QUICK) if self.quick else (plan.full, plan.FULL)
            found = make(sizes.scaled(self.scale))
        names = [c.name for c in found]
        if unknown := [name for name in self.only if name not in names]:
            raise Failure(f"--only: no configuration {unknown[0]!r}; there are {', '.join(names)}")
        return [c for c in found if not self.only or c.name in self.only]


Todo = list[tuple[int, Configuration]]
"""Runs of configurations, each numbered from 0."""


def schedule(configurations: list[Configuration], rounds: int, journal: Journal) -> Todo:
    """What is left to do: every configuration once, then again, so that a wandering host meets them all."""
    step = len(configurations)
    placed = [
        (step * number + n + step * k / c.times, number * c.times + k, c)
        for number in range(rounds)
        for n, c in enumerate(configurations)
        for k in range(c.times)
    ]
    placed.sort(key=lambda run: run[0])
    return [(run, c) for _, run, c in placed if not journal.has(c.name, runs.options_key(c), run)]


def time_left(todo: Todo, journal: Journal) -> float:
    """Seconds, from what each configuration took last."""
    return sum(journal.seconds(c.name, runs.options_key(c)) or c.expected_s for _, c in todo)


def shown(seconds: float) -> str:
    """A time that is only guessed."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def result(
    o: PaperOptions, journal: Journal, kernel: str, failures: list[str]
) -> tuple[dict[str, Any], Analysis]:
    """Everything that is written."""
    wanted = {(c.name, runs.options_key(c)) for c in o.plan()}
    records: list[Record] = [r for r in journal.current() if (r["configuration"], r["options"]) in wanted]
    a = Analysis(records)
    found = {
        "bench": "paper",
        "what": o.what,
        "started": records[0]["started"] if records else time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "host": {
            "processor": cpu_name(),
            "cores": os.cpu_count(),
            "kernel": os.uname().release,
            "load": os.getloadavg()[0],
        },
        "guest_kernel": kernel,
        "version": journal.version,
        **page.as_json(a),
        "failures": failures,
        "records": records,
    }
    return found, a


def write(found: dict[str, Any], a: Analysis, json_path: Path, page_path: Path) -> list[Path]:
    """The JSON file and the page."""
    try:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as e:
        raise Failure(f"{json_path}: {e.strerror}") from None
    return [json_path, *page.write(found, a, page_path)]


def show(a: Analysis, failures: list[str], console: Console) -> None:
    """Medians and bars as tables."""
    table = Table(title="medians, for one operation", title_justify="left", box=None, pad_edge=False)
    for heading in ("configuration", "level"):
        table.add_column(heading)
    rows = [row for row in page.ROWS if any(key[2] == row for key in a.medians)]
    for row in rows:
        table.add_column(row, justify="right")
    for configuration in a.configurations():
        for level in range(4):
            times = [a.ns(configuration, level, row) for row in rows]
            if any(t is not None for t in times):
                cells = ["" if t is None else duration(t) for t in times]
                table.add_row(configuration, f"L{level}" if level else "host", *cells)
    console.print(table)
    console.print()
    table = Table(title="bars", title_justify="left", box=None, pad_edge=False)
    for i, heading in enumerate(page.BAR_HEADINGS):
        table.add_column(heading, justify="right" if i in (2, 3) else "left")
    for bar, paper in a.bars():
        table.add_row(*page.bar_cells(bar, paper))
    console.print(table)
    for failure in failures:
        console.print(f"failed: {failure}", highlight=False)


def run(o: PaperOptions) -> int:
    """The command; 1 where a run failed or a guest's clock was wrong."""
    json_path = Path(o.json) if o.json else result_directory() / "paper.json"
    page_path = Path(o.page) if o.page else json_path.with_suffix(".html")
    images: ImageSet | None = None if o.embedded else obtain("bench")
    journal_path = cache_root() / "bench" / f"{digest(str(json_path.resolve()).encode())}.jsonl"
    journal = Journal(journal_path, version(images.directory.name if images else "embedded"))
    if o.renew:
        journal.forget()
    rounds = o.rounds or (1 if o.quick or o.embedded else ROUNDS)
    todo = schedule(o.plan(), rounds, journal)
    kernel = images.kernel_version if images else "none"
    total, failures = max(time_left(todo, journal), 1.0), []
    try:
        with progress("bench paper") as report:
            while todo:
                number, configuration = todo[0]
                left = time_left(todo, journal)

                def say(what: str, left: float = left) -> None:
                    report(f"about {shown(left)} left: {what}", 1 - left / total)

                say(f"{configuration.name}, run {number + 1} of {rounds * configuration.times}")
                record = runs.run(configuration, number, images, say)
                journal.add(record)
                failures += record["failures"]
                todo.pop(0)
    finally:
        # Also when it is ended: what there is, is shown; the rest is measured when it is started again.
        found, a = result(o, journal, kernel, failures)
        written = write(found, a, json_path, page_path)
    console = Console()
    show(a, failures, console)
    console.print(f"\nL0: {', '.join(a.l0()) or 'not run'}", highlight=False)
    console.print(f"\nwritten: {', '.join(map(str, written))}", soft_wrap=True, highlight=False)
    console.print(f"journal: {journal_path}", soft_wrap=True, highlight=False)
    wrong = any(clock_holds(c) is False for c in a.clocks())
    return 1 if failures or wrong else 0
