"""`turtles bench silicon` and `turtles bench peers`: what is compared, in pairs, and what comes out.

Native, turtles and QEMU's TCG take turns, so that a wandering host meets them all. Not here: how a run is
read, how figures are judged, plots.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from turtles.guests.images import RECIPES, ImageSet, obtain
from turtles.tools import bars, measure, page
from turtles.tools.doctor import cpu_name
from turtles.tools.exits import ExitCosts, exit_costs
from turtles.tools.measure import Results, Say, Settings
from turtles.tools.options import Failure
from turtles.tools.progress import progress

QUICK: Final = Settings(scale=0.2, repeats=3, programs=False, levels=1)
FULL: Final = Settings(scale=0.3, repeats=3)
QUICK_ROUNDS: Final = 3
PAIRS: Final = 3
"""Of `peers`: L2 beside L1 is a matter of per cents, and from run to run hosts wander by as many."""


@dataclass
class Bench:
    """Everything that a bench found; what is written and shown is made of it."""

    name: str
    settings: Settings
    pairs: int
    results: Results = field(default_factory=Results)
    exits: ExitCosts | None = None
    speed: list[dict[str, Any]] = field(default_factory=list)
    kernel: str = ""
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    load_after: float = 0.0

    @property
    def medians(self) -> bars.Medians:
        """Of all samples."""
        return bars.medians(self.results.samples)

    @property
    def table(self) -> list[bars.Bar]:
        """The bars that this bench has figures for, and for `peers` all."""
        found = bars.all_bars(self.medians, self.exits.cpuid if self.exits else None)
        return found if self.name == "peers" else [b for b in found if b.value is not None]

    def as_json(self) -> dict[str, Any]:
        """Every sample, and what follows from them."""
        r = self.results
        return {
            "bench": self.name,
            "started": self.started,
            "host": {
                "processor": cpu_name(),
                "cores": os.cpu_count(),
                "kernel": os.uname().release,
                "load": [self.load_before, self.load_after],
            },
            "guest_kernel": self.kernel,
            "settings": {**asdict(self.settings), "pairs": self.pairs, "memory": measure.MEMORY},
            "bars": [{**asdict(b), "parts": dict(b.parts), "reached": b.reached} for b in self.table],
            "medians_ns": bars.figures(self.medians),
            "exit_costs": asdict(self.exits) if self.exits else None,
            "speed": self.speed,
            "clocks": [{**asdict(c), "error": c.error, "holds": c.holds} for c in r.clocks],
            "failures": r.failures,
            "runs": r.runs,
            "samples": [asdict(s) for s in r.samples],
        }


def images(name: str) -> ImageSet:
    """A set of images, from the cache or built now."""
    with progress(f"{name} images") as report:
        return obtain(RECIPES[name], report)


def silicon(say: Say, pairs: int, settings: Settings, rounds: int, more: Sequence[str] = ()) -> Bench:
    """The set in L1 beside the host itself, and what exits cost."""
    bench, guest = Bench("silicon", settings, pairs), images("bench")
    bench.kernel = guest.kernel_version
    for pair in range(pairs):
        measure.run_native(settings, pair, bench.results, say)
        measure.run_set("turtles", guest, settings, pair, bench.results, say, *more)
    say("exits")
    bench.exits = exit_costs(rounds)
    bench.load_after = os.getloadavg()[0]
    return bench


def peers(say: Say, pairs: int, settings: Settings, save: Path | None = None) -> Bench:
    """Everything: the tower and the set, native, turtles and TCG by turns; `save` is kept up to date."""
    bench, guest, tower = Bench("peers", settings, pairs), images("bench"), images("tower")
    bench.kernel = guest.kernel_version
    say("exits")
    bench.exits = exit_costs()
    for pair in range(pairs):

        def told(what: str, pair: int = pair) -> None:
            say(f"pair {pair + 1} of {pairs}: {what}")

        for program in ("turtles", "tcg"):
            measure.run_tower(program, tower, pair, bench.results, told)
        measure.run_native(settings, pair, bench.results, told)
        for program in ("turtles", "tcg"):
            measure.run_set(program, guest, settings, pair, bench.results, told)
            if save is not None:  # a long bench that is ended keeps what it has
                write_json(bench, save)
    bench.load_after = os.getloadavg()[0]
    return bench


# --- showing it ---


def write_json(bench: Bench, path: Path) -> None:
    """The file that a later reader, or another plot, needs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(bench.as_json(), indent=1) + "\n")
    except OSError as e:
        raise Failure(f"{path}: {e.strerror}") from None


def show(bench: Bench, console: Console) -> None:
    """Medians, clocks and bars as tables."""
    m = bench.medians
    columns = sorted({(p, n) for p, n, _ in m}, key=lambda c: (c[1], c[0] == "tcg"))
    table = Table(title="medians", title_justify="left", box=None, pad_edge=False)
    table.add_column("one operation")
    for program, level in columns:
        table.add_column(bars.label(program, level), justify="right")
    ours = ("turtles", 1)
    with_native = ("native", 0) in columns and ours in columns
    if with_native:
        table.add_column("L1 / native", justify="right")
    for row in bars.figures(m):
        name = str(row["row"])
        cells = [bars.duration(m[(*c, name)]) if (*c, name) in m else "" for c in columns]
        ratio = bars.ratio(m, ours, ("native", 0), name)
        more = [f"{ratio:.2f}" if ratio is not None else ""] if with_native else []
        table.add_row(name, *cells, *more)
    console.print(table)
    if bench.exits:
        e = bench.exits
        console.print(
            f"\nCPUID in L1 to L0's Python and back: {e.cpuid:,.0f} ns by the host's clock, "
            f"{e.cpuid_processor:,.0f} ns of processor time\n"
            f"VM entry and exit, with the call from Python: {e.entry:,.0f} ns",
            highlight=False,
        )
    for clock in bench.results.clocks:
        verdict = {None: "too short to tell", True: "holds", False: "DOES NOT HOLD"}[clock.holds]
        guest = bars.label(clock.program, clock.level)
        console.print(
            f"clock of {guest}: {clock.error:+.4%} over {clock.host_s:.1f} s: {verdict}", highlight=False
        )
    console.print()
    table = Table(title="bars", title_justify="left", box=None, pad_edge=False)
    for i, heading in enumerate(("what (ratio of medians)", "measured", "bar", "")):
        table.add_column(heading, justify="right" if i in (1, 2) else "left")
    for bar in bench.table:
        table.add_row(*bars.shown(bar))
    console.print(table)
    for failure in bench.results.failures:
        console.print(f"failed: {failure}", highlight=False)


def finish(bench: Bench, json_path: Path, page_path: Path | None) -> int:
    """Show and write; 1 where a run failed or a guest's clock was wrong."""
    console = Console()
    show(bench, console)
    write_json(bench, json_path)
    written = [json_path]
    if page_path is not None:
        written += page.write(bench.as_json(), page_path)
    console.print(f"\nwritten: {', '.join(map(str, written))}", soft_wrap=True, highlight=False)
    bad_clock = any(c.holds is False for c in bench.results.clocks)
    return 1 if bench.results.failures or bad_clock else 0
