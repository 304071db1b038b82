"""Lockstep: equal machines are equal, a planted difference is found to the instruction, engines agree."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guests.samples import elf32, multiboot_header
from turtles.silicon import disassemble
from turtles.silicon import slots as S
from turtles.tools.demo import embedded_options
from turtles.tools.lockstep import (
    NAMES,
    Difference,
    Executed,
    NoEngine,
    Run,
    Side,
    compared_slots,
    lockstep,
)
from turtles.tools.machine import Rig
from turtles.tools.options import DebugExit, Failure, RunOptions

# xor eax,eax; 1: inc eax; mov [2000h],eax; cmp eax,N; jne 1b; mov al,5; out F4h,al
COUNT = 20_000
LOOP = (
    bytes.fromhex("31c0 40 a300200000 3d".replace(" ", ""))
    + COUNT.to_bytes(4, "little")
    + bytes.fromhex("75f3 b005 e6f4 f4".replace(" ", ""))
)


def options(directory: Path) -> RunOptions:
    path = directory / "kernel"
    path.write_bytes(elf32(multiboot_header().ljust(32, b"\0") + LOOP.ljust(64, b"\xf4")))
    return RunOptions(str(path), memory=32 << 20, debug_exit=DebugExit(0xF4))


def cuts(engine: str = "interpreter") -> tuple[Side, Side]:
    seed = int(os.environ.get("TURTLES_SEED", random.randrange(1 << 32)))
    print(f"TURTLES_SEED={seed}")
    return Side(engine), Side(engine, random.Random(seed), f"{engine}, cut")


def test_cutting_a_run_changes_nothing(tmp_path: Path) -> None:
    result = lockstep(options(tmp_path), cuts(), step=777)
    assert result.difference is None, result.difference
    assert result.comparisons > 4 * COUNT // 777
    assert result.ended is not None and result.ended.code == 5


@pytest.mark.parametrize("what", ["register", "memory"])
def test_a_planted_difference_is_found_at_its_instruction(tmp_path: Path, what: str) -> None:
    """Between the instructions that ran to 34567 ns and the one before, in the second machine only."""
    at = 34_567

    def meddle(side: int, rig: Rig, now: int) -> None:
        if side == 1 and now >= at and not hasattr(rig, "planted"):
            rig.planted = True  # type: ignore[attr-defined]
            if what == "register":
                rig.core.slots[S.RBX] ^= 0x40
            else:
                rig.memory.store(0x3000, 8, 0x1234)

    result = lockstep(
        options(tmp_path), (Side("interpreter"), Side("interpreter")), step=10_000, meddle=meddle
    )
    found = result.difference
    assert found is not None
    assert (found.before, found.after) == (at - 1, at)
    expected = "rbx: " if what == "register" else "memory at 0x3000: "
    assert [line for line in found.what if line.startswith(expected)] == found.what
    assert len(found.executed) == 1
    assert found.executed[0].text.split("  ")[1].split()[0] in ("inc", "mov", "cmp", "jne")
    assert f"after the instruction at {at - 1} ns" in found.lines()[0]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_embedded_tower_may_be_cut_anywhere(depth: int) -> None:
    result = lockstep(embedded_options(depth, "virtual", None), cuts(), step=50_000)
    assert result.difference is None, "\n".join(result.difference.lines())
    assert result.ended is not None and result.comparisons > 100


@pytest.mark.parametrize("variant", ["engines", "cuts"])
def test_the_translator_does_as_the_interpreter(tmp_path: Path, variant: str) -> None:
    sides = (Side("interpreter"), Side("translator")) if variant == "engines" else cuts("translator")
    try:
        for guest in (options(tmp_path), embedded_options(2, "virtual", None)):
            result = lockstep(guest, sides, step=50_000)
            assert result.difference is None, "\n".join(result.difference.lines())
    except NoEngine as e:
        pytest.skip(e.format_message())


def test_the_fragments_of_executed_code_are_shown() -> None:
    """Here of a run without a difference, around where it stands."""
    found = Difference(0, 9, [], [], [])
    run = Run(
        embedded_options(1, "virtual", None), (Side("interpreter"), Side("translator")), 0, 50_000, 10**7
    )
    run.run()
    assert run.difference is None
    core = next(rig.core for rig in run.rigs if rig.core.engine == "translator")
    rips = [Executed(0, core.slots[S.RIP] + n, "") for n in range(-4096, 4096)]
    found.fragments.extend(run.fragments(rips))
    assert 0 < len(found.fragments) <= 3
    assert any(line.strip() == "ways out" for line in found.lines())


def test_the_command(tmp_path: Path) -> None:
    guest = options(tmp_path)
    command = [sys.executable, "-m", "turtles", "lockstep", "--kernel", guest.kernel, "-m", "32M"]
    done = subprocess.run(
        [*command, "--debug-exit", "0xf4", "--step", "10000"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "equal at" in done.stdout and "debug-exit" in done.stdout


def test_names_of_slots() -> None:
    assert NAMES[S.RAX] == "rax" and NAMES[S.RIP] == "rip"
    assert "cs.base" in NAMES and "ymm15[3]" in NAMES
    assert S.RETIRED in compared_slots() and S.ENTRY_TIME not in compared_slots()
    with pytest.raises(Failure, match="no field"):
        compared_slots(["nothing"])


def test_disassembly() -> None:
    assert disassemble(b"\x48\x01\xd8") == "add rax,rbx"
    assert disassemble(b"\x01\xd8", 0, 16) == "add ax,bx"
    assert disassemble(b"\xeb\xfe", 0x1000, 32) == "jmp short 00001000h"
    assert disassemble(b"\x06") == "(bad)"
    with pytest.raises(ValueError, match="bits"):
        disassemble(b"\x90", 0, 8)
