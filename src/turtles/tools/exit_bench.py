"""`turtles bench exits`: what each kind of exit costs, by who spends it, and a profile of L0's Python.

The load is the embedded tower with `loops=1`: one kind of exit again and again between marks. Runs in this
process, in turns with L0 compiled and as Python in processes of their own where it is compiled. Not here:
exits of real guests, which `--stats` and `--trace` show.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from turtles import compiled
from turtles.guests import embedded
from turtles.guests.cache import cache_root
from turtles.l0.outcome import Ending
from turtles.silicon.slots import RETIRED
from turtles.tools.machine import Rig
from turtles.tools.options import DebugExit, Failure, RunOptions

# What a mark's number stands for, and how many rounds lie between the marks (embedded/loops.c).
ROWS: Final = {
    1: ("CPUID", 20000),
    2: ("OUT, no device", 20000),
    3: ("IN, UART status", 20000),
    4: ("RDMSR, x2APIC TPR", 20000),
    5: ("WRMSR, x2APIC EOI", 20000),
    6: ("WRMSR, TSC deadline", 20000),
    7: ("self-IPI and its interrupt", 5000),
    8: ("timer interrupt, running", 2000),
    9: ("timer interrupt, halted", 500),
    10: ("VMREAD", 20000),
    11: ("VMWRITE", 20000),
}
PORT_MARK: Final = 0x80
ROUNDS: Final = 3
PROFILE_LINES: Final = 25

Around = Callable[[Callable[[], object]], object]


@dataclass(frozen=True)
class Cost:
    """One round of a row: nanoseconds by the clock, but `processor`, which is this thread's time alone."""

    level: str
    what: str
    l0: str
    """"compiled" or "Python"."""
    clock: float
    processor: float
    in_l1: float
    in_l2: float
    between: float
    """Neither in L1 nor in L2: silicon's transitions, and L0."""
    instructions: float
    exits_l1: float
    exits_l2: float


@dataclass(frozen=True)
class _Reading:
    clock: int
    processor: int
    in_l1: int
    in_l2: int
    instructions: int
    exits_l1: int
    exits_l2: int


class Marks:
    """The device behind PORT_MARK: reads all counters at both marks."""

    def __init__(self, rig: Rig, level: int) -> None:
        self._rig = rig
        self._level = level
        self._row = 0
        self._begin: _Reading | None = None
        self.costs: list[Cost] = []

    def read(self, offset: int, width: int) -> int:
        """Nothing is there to be read."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """A mark."""
        if value:
            self._row, self._begin = value, self._look()
        elif self._begin is not None:
            self.costs.append(self._cost(self._begin, self._look()))

    def _look(self) -> _Reading:
        stats = self._rig.vcpu.stats
        return _Reading(
            time.perf_counter_ns(), time.thread_time_ns(), stats.guest_ns[1], stats.guest_ns[2],
            self._rig.core.slots[RETIRED], sum(stats.counts[1]), sum(stats.counts[2]),
        )  # fmt: skip

    def _cost(self, begin: _Reading, end: _Reading) -> Cost:
        name, rounds = ROWS[self._row]
        first, last = asdict(begin), asdict(end)
        d = {key: (last[key] - first[key]) / rounds for key in first}
        level = 1 if name in ("VMREAD", "VMWRITE") else self._level
        between = d["clock"] - d["in_l1"] - d["in_l2"]
        return Cost(f"L{level}", name, "Python" if compiled.WHY_NOT else "compiled", between=between, **d)


def run_loops(level: int, around: Around = lambda run: run()) -> list[Cost]:
    """Every row of the guest at `level` (1 or 2), once; `around` calls what runs the machine."""
    kernel = str(embedded.build(cache_root() / "embedded"))
    append = f"depth={level - 1} loops=1"
    rig = Rig(
        RunOptions(kernel, append=append, memory=256 << 20, debug_exit=DebugExit(0xF4)), lambda data: None
    )
    marks = Marks(rig, level)
    rig.board.ports.detach(PORT_MARK, 1)
    rig.board.ports.attach_device(PORT_MARK, 1, marks)
    around(rig.run)
    if rig.result is None or rig.result.outcome.ending not in (Ending.POWER_OFF, Ending.DEBUG_EXIT):
        outcome = rig.result.outcome if rig.result else "nothing"
        raise Failure(f"the embedded tower ended badly: {outcome}")
    return marks.costs


def measure(rounds: int = ROUNDS) -> list[Cost]:
    """All rows of both levels; of so many runs the one that took the least processor time."""
    best: dict[tuple[str, str], Cost] = {}
    for _ in range(rounds):
        for cost in (*run_loops(1), *run_loops(2)):
            key = cost.level, cost.what
            if key not in best or cost.processor < best[key].processor:
                best[key] = cost
    return list(best.values())


def profile() -> str:
    """Where L0's Python spends its time with L2's loops; says nothing of compiled functions."""
    profiler = cProfile.Profile()
    run_loops(2, lambda run: profiler.runcall(run))
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(PROFILE_LINES)
    return text.getvalue()


def as_python() -> tuple[list[Cost], str]:
    """The same in a process whose L0 is not compiled: costs and profile."""
    if compiled.WHY_NOT:
        return measure(), profile()
    program = (
        "import json; from dataclasses import asdict; from turtles.tools import exit_bench as bench;"
        "print(json.dumps([[asdict(c) for c in bench.measure()], bench.profile()]))"
    )
    environment = {**os.environ, compiled.SWITCH: "python"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise Failure(f"the bench failed with L0 as Python: {(result.stderr.splitlines() or ['?'])[-1]}")
    costs, text = json.loads(result.stdout)
    return [Cost(**c) for c in costs], text


def as_row(cost: Cost) -> dict[str, object]:
    """As a row of a table."""
    return {
        "a round, ns": f"{cost.level} {cost.what}",
        "clock": round(cost.clock),
        "processor": round(cost.processor),
        "in L1": round(cost.in_l1),
        "in L2": round(cost.in_l2),
        "between": round(cost.between),
        "instr.": round(cost.instructions),
        "exits": f"{cost.exits_l1:.1f}" + (f" + {cost.exits_l2:.1f}" if cost.exits_l2 else ""),
    }


def exits(say: Callable[[str], None]) -> tuple[list[Cost], str]:
    """Costs with L0 compiled (where it is) and as Python, and the profile of the latter."""
    found: list[Cost] = []
    if not compiled.WHY_NOT:
        say("L0 compiled")
        found = measure()
    say("L0 as Python")
    costs, text = as_python()
    return found + costs, text
