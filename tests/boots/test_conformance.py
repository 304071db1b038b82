"""The conformance guest: what manuals say of processor and board, asked by a program that runs as L1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.boots.machine import boot, kept
from turtles.guests.cache import cache_root
from turtles.guests.freestanding import compile_guest
from turtles.l0.outcome import Ending
from turtles.tools.options import DebugExit, RunOptions

GUEST = Path(__file__).parent.parent / "guests/conformance"
# What shadow-on-shadow is known not to do: L2 without PAE.
LEFT_OUT_ON_SHADOW = ("checks_guest",)
TESTS = re.findall(r"X\((\w+)\)", (GUEST / "tests.h").read_text())


def ask(names: str, mmu: str = "multidim") -> None:
    kernel = compile_guest(GUEST, cache_root() / "conformance", "conformance")
    options = RunOptions(
        kernel=str(kernel),
        append=names,
        memory=1536 << 20,
        mmu=mmu,
        debug_exit=DebugExit(0xF4),
        timeout=120.0,
    )
    found = boot(options, "host")
    with kept(f"conformance-{mmu}-{names.split()[0]}", found):
        wrong = [line for line in found.lines if line.startswith(("FAIL", "BAD"))]
        assert not wrong
        assert re.fullmatch(r"[1-9]\d* checks, 0 failures", found.lines[-1])
        assert (found.outcome.ending, found.outcome.code) == (Ending.DEBUG_EXIT, 0)


@pytest.mark.parametrize("name", TESTS)
def test_as_the_manual_says(name: str) -> None:
    ask(name)


@pytest.mark.parametrize(
    ("mmu", "left_out"), [("shadow-on-ept", ()), ("shadow-on-shadow", LEFT_OUT_ON_SHADOW)]
)
def test_without_ept(mmu: str, left_out: tuple[str, ...]) -> None:
    """Where L1 has no EPT, tests of it find that and end."""
    without = {"ept", "eptad", "invalidations", "virtual_apic", *left_out}
    ask(" ".join(name for name in TESTS if name not in without), mmu)
