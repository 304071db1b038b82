"""The translator as Python sees it: its cache's size, what it has done, its code as text."""

from __future__ import annotations

from tests.silicon.machine import CODE, Machine
from turtles.silicon import Core, ExitReason, slots

LOOP = bytes.fromhex("48ffc0 4829d1 75f8 f4")
"""top: inc rax; sub rcx, rdx; jnz top; hlt"""
ROUNDS = 1000


def looped(cache: int | None = None) -> Core:
    """A core with the translator after the loop."""
    machine = Machine(LOOP)
    if cache is not None:
        machine.core = Core(machine.memory, machine.model, "virtual", translation_cache=cache)
        machine.state = machine.core.slots
    machine.state[slots.GPR + 1] = ROUNDS
    machine.state[slots.GPR + 2] = 1
    assert machine.core.enter(machine.vmcs) == ExitReason.HLT
    assert machine.state[slots.GPR] == ROUNDS
    return machine.core


def test_the_size_of_the_cache_is_a_setting() -> None:
    small, usual = looped(2 << 20).translation, looped().translation
    assert small["cache_limit"] == 2 << 20
    assert usual["cache_limit"] > small["cache_limit"]
    for done in (small, usual):
        assert 0 < done["cache_used"] <= done["cache_limit"]
        assert done["fragments"] > 0
        assert done["evictions"] == 0


def test_a_cache_of_an_absurd_size_is_made_sane() -> None:
    assert 0 < looped(0).translation["cache_limit"] <= 1 << 20


def test_a_fragment_as_text() -> None:
    core = looped()
    text = core.fragment(CODE)
    assert text is not None
    lines = [line.strip() for line in text.splitlines()]
    at = [next(n for n, line in enumerate(lines) if line == want) for want in (
        f"{CODE:x}  inc rax", f"{CODE + 3:x}  sub rcx,rdx", "ways out"
    )]  # fmt: skip
    assert at == sorted(at)
    host = lines[at[0] + 1 : at[1]]
    assert any(line.endswith("inc rax") for line in host), "guest RAX lives in host RAX"
    assert core.fragment(CODE + 0x4000) is None
