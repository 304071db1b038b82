"""What an exit costs by the host's clock: CPUID to L0's Python and back, and a VM entry and exit alone.

Runs small machines in this process. Not here: what other exits cost, which `--stats` tells of any run.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Final

from turtles.guests import workloads
from turtles.guests.cache import cache_root
from turtles.l0.outcome import Ending
from turtles.l0.vcpu import Vcpu
from turtles.silicon.reasons import ExitReason
from turtles.tools.machine import Rig
from turtles.tools.options import DebugExit, Failure, RunOptions

ROUNDS: Final = 5
ENTRIES: Final = 20_000
A_MINUTE_NS: Final = 60_000_000_000


@dataclass
class ExitCosts:
    """Nanoseconds: each measurement of a CPUID exit, by the clock and as processor time, and of an entry."""

    cpuid_ns: list[float] = field(default_factory=list)
    cpuid_processor_ns: list[float] = field(default_factory=list)
    entry_ns: list[float] = field(default_factory=list)

    @property
    def cpuid(self) -> float:
        """The guest's CPUID, its exit, L0's handling, the entry, and the guest's loop round it."""
        return statistics.median(self.cpuid_ns)

    @property
    def cpuid_processor(self) -> float:
        """The same without the time that other programs of a shared host took."""
        return statistics.median(self.cpuid_processor_ns)

    @property
    def entry(self) -> float:
        """A VM entry and exit, and the call from Python."""
        return statistics.median(self.entry_ns)


def _rig(work: str) -> Rig:
    kernel = str(workloads.build(cache_root() / "workloads"))
    options = RunOptions(kernel, append=f"work={work}", memory=128 << 20, debug_exit=DebugExit(0xF4))
    return Rig(options, lambda data: None)


def _run(rig: Rig) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    begin = time.thread_time()
    result = rig.run()
    processor = time.thread_time() - begin
    if result.outcome.ending is not Ending.DEBUG_EXIT:
        raise Failure(f"a workload ended badly: {result.outcome.message or result.outcome.ending.value}")
    return result.seconds, processor


def _entry_ns() -> float:
    """Of an entry that ends at once by a CPUID that nobody steps over."""
    rig = _rig("cpuid")
    found: list[float] = []

    def measure(vcpu: Vcpu) -> bool:
        if not found:
            enter, vmcs = vcpu.core.enter, vcpu.vmcs
            deadline = vcpu.core.now() + A_MINUTE_NS
            begin = time.perf_counter_ns()
            for _ in range(ENTRIES):
                enter(vmcs, deadline)
            found.append((time.perf_counter_ns() - begin) / ENTRIES)
        return False

    rig.l0.on_exit(ExitReason.CPUID, level=1)(measure)
    _run(rig)
    if not found:
        raise Failure("the workload made no CPUID exit")
    return found[0]


def exit_costs(rounds: int = ROUNDS) -> ExitCosts:
    """Measure, so many times each."""
    costs = ExitCosts()
    for _ in range(rounds):
        without, with_loop = _run(_rig("none")), _run(_rig("cpuid"))
        clock, processor = (
            (b - a) / workloads.CPUID_ROUNDS * 1e9 for a, b in zip(without, with_loop, strict=True)
        )
        costs.cpuid_ns.append(clock)
        costs.cpuid_processor_ns.append(processor)
        costs.entry_ns.append(_entry_ns())
    return costs
