"""The embedded tower, one to four levels: its lines, its exits as L0 and as L1 count them, and repetition."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.boots.machine import Boot, boot, kept
from turtles import compiled
from turtles.l0.mmu.ept02 import Tactic
from turtles.l0.outcome import Ending
from turtles.silicon.slots import RETIRED
from turtles.tools.demo import embedded_options


def run(depth: int, clock: str = "virtual", tactic: Tactic = Tactic.INVEPT) -> Boot:
    return boot(replace(embedded_options(depth, clock, None), ept12=tactic), clock)


def counted_by(level: int, lines: list[str]) -> dict[str, int]:
    """The counts that the hypervisor at `level` prints at its end."""
    line = next(line for line in lines if line.startswith(f"[L{level}] exits: "))
    return {
        name: int(count) for name, count in re.findall(r"([a-z ]+) (\d+)(?:,|$)", line.split("exits:")[1])
    }


def reflected(exits: Counter[tuple[int, str, str]]) -> dict[str, int]:
    """What L0 gave to L1, in L1's words."""
    names = {"CPUID": "cpuid", "IO": "io", "EPT_VIOLATION": "ept violation", "HLT": "hlt"}
    return {word: exits[2, reason, "L1"] for reason, word in names.items()}


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("clock", ["host", "virtual"])
def test_tower(depth: int, clock: str) -> None:
    found = run(depth, clock)
    with kept(f"embedded-{depth}-{clock}", found):
        assert found.outcome.ending is Ending.POWER_OFF, found.outcome
        leaf = [line for line in found.lines if line.startswith(f"[L{depth + 1}] ")]
        assert leaf[0].endswith(" MiB, a guest")
        assert leaf[-1].endswith("done")
        assert any("5 timer interrupts while halted" in line for line in leaf)
        assert any("3 timer interrupts while running" in line for line in leaf)
        name = "KVMKVMKVM" if depth == 0 else "TurtlesLevel"
        assert any(f'calls itself "{name}"' in line for line in leaf)
        loops = 1000 if depth <= 1 else 100
        for level in range(1, depth + 1):
            counts = {k.strip(): v for k, v in counted_by(level, found.lines).items()}
            assert counts["cpuid"] >= loops
            if level == 1:
                assert {k: counts[k] for k in ("cpuid", "io", "ept violation", "hlt")} == reflected(
                    found.exits
                )
        if depth == 0:
            assert {level for level, _, _ in found.exits} == {1}
            assert found.exits[1, "CPUID", "L0"] == loops + 1
        if depth == 1:
            # 1000, and the one that asks for the name of the hypervisor.
            assert found.exits[2, "CPUID", "L1"] == 1001
            assert found.exits[2, "EPT_VIOLATION", "L1"] == 8
        if depth == 2:
            # Whatever L1 is told of L3, it is told as L2's VMRESUME.
            assert found.exits[2, "VMLAUNCH", "L1"] == 1
            assert found.exits[2, "VMRESUME", "L1"] >= loops


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("tactic", [Tactic.EAGER, Tactic.UNSYNC])
def test_however_ept02_follows_ept12_the_guests_say_the_same(depth: int, tactic: Tactic) -> None:
    plain, tracked = run(depth), run(depth, tactic=tactic)
    with kept(f"embedded-{depth}-{tactic.value}", plain, tracked):
        assert tracked.outcome.ending is Ending.POWER_OFF, tracked.outcome
        said = [re.sub(r"\d+", "N", line) for line in plain.lines]
        assert [re.sub(r"\d+", "N", line) for line in tracked.lines] == said
        # L1 wrote to ept12, and L0 saw it.
        assert tracked.exits[1, "EPT_VIOLATION", "L0"] > plain.exits[1, "EPT_VIOLATION", "L0"]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_virtual_time_repeats(depth: int) -> None:
    first, second = run(depth), run(depth)
    with kept(f"embedded-{depth}-repeated", first, second):
        assert first.retired == second.retired
        assert first.exits == second.exits
        assert first.serial == second.serial
        assert first.digest == second.digest


@pytest.mark.skipif(bool(compiled.WHY_NOT), reason="L0 is not compiled: nothing to compare")
def test_compiled_l0_and_python_do_the_same() -> None:
    program = (
        "from turtles.tools.demo import embedded_options; from turtles.tools.machine import Rig;"
        "rig = Rig(embedded_options(1, 'virtual', None), lambda data: None); rig.run();"
        "print(rig.core.digest(), rig.core.slots[RETIRED])"
    ).replace("RETIRED", str(RETIRED))
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, compiled.SWITCH: form},
            capture_output=True, text=True, check=True,
        ).stdout
        for form in ("python", "")
    ]  # fmt: skip
    assert digests[0] == digests[1]
