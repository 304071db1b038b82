"""The benches' own root as L1 and L2: rows under virtual time, and KVM that is told not to use EPT.

Each boots a tower, and the image is built first: `pytest -m slow`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.boots.machine import boot, image_set, kept
from turtles.guests.images import ImageSet
from turtles.l0.outcome import Ending
from turtles.tools.measure import MEMORY, Settings
from turtles.tools.options import Drive, RunOptions

pytestmark = pytest.mark.slow

TURNS = Settings(0.02, 4, ("cpuid", "fault"), False, 2, named=("0",), at=(1, 2))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return image_set("bench")


def tower(images: ImageSet, rows: tuple[str, ...], more: str = "") -> RunOptions:
    """L2 runs these rows once, at a small scale."""
    settings = Settings(0.02, 1, rows, False, 2, named=("0",), at=(2,))
    return RunOptions(
        kernel=str(images.kernel),
        initrds=(str(images.initrd),),
        append=f"{images.append} {settings.append}{more}",
        drives=tuple(Drive(str(images.root), readonly=False, snapshot=True) for _ in range(2)),
        memory=int(MEMORY.removesuffix("G")) << 30,
        timeout=900.0,
    )


def test_l1_told_not_to_use_ept_shadows_l2s_page_tables(images: ImageSet) -> None:
    """Shadow-on-EPT by L1's choice: silicon and L0 offer EPT, and vmcs12 has none."""
    found = boot(tower(images, ("fault",), " bench.kvm=ept=0"), "virtual")
    with kept("debian-ept-0", found):
        assert found.outcome.ending is Ending.POWER_OFF, found.outcome
        assert any("BENCH fault" in line and "L2| " in line for line in found.lines)
        assert found.exits[2, "EXCEPTION_OR_NMI", "L1"] > 1000, "L2's page faults are L1's"
        assert not found.exits[2, "EPT_VIOLATION", "L1"]


def test_l1_and_l2_run_the_set_by_turns(images: ImageSet) -> None:
    """A row each, the one waiting while the other runs; in every other repeat L2 goes first."""
    options = replace(tower(images, ("cpuid",)), append=f"{images.append} {TURNS.append} bench.turns=1")
    found = boot(options, "host")
    with kept("bench-turns", found):
        assert found.outcome.ending is Ending.POWER_OFF, found.outcome
        words = [line.split() for line in found.lines]
        rows = [("L2|" in w, w[w.index("BENCH") + 1]) for w in words if "cpuid" in w or "fault" in w]
        expected = [
            (inner, row)
            for repeat in range(TURNS.repeats)
            for row in TURNS.rows
            for inner in ((False, True) if repeat % 2 == 0 else (True, False))
        ]
        assert rows == expected
        assert not any("TURN" in line for line in found.lines)


def test_figures_repeat_under_virtual_time(images: ImageSet) -> None:
    """Every line, so every figure that a guest gives, every exit and every instruction."""
    options = tower(images, ("cpuid", "fault", "fork", "ctxsw"))
    first, second = boot(options, "virtual"), boot(options, "virtual")
    with kept("bench-virtual", first, second):
        assert first.outcome.ending is Ending.POWER_OFF, first.outcome
        rows = [line for line in first.lines if "BENCH fork" in line or "BENCH cpuid" in line]
        assert len(rows) == 2
        assert first.serial == second.serial
        assert first.exits == second.exits
        assert (first.retired, first.digest) == (second.retired, second.digest)
