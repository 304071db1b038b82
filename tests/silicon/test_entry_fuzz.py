"""Nonsense in a VMCS: every entry ends in one of the ways there are, and writes nothing else."""

import os
import random

from tests.silicon.machine import Machine
from turtles.silicon import ENTRY_FAILURE, ExitReason, SiliconError, check_entry, controls
from turtles.silicon import fields as f

ROUNDS = int(os.environ.get("TURTLES_FUZZ_ROUNDS", "3000"))
INTERESTING = [
    0,
    1,
    2,
    3,
    0xFFF,
    0x1000,
    0xFFFF,
    0xFFFFFFFF,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 47,
    1 << 63,
    2**64 - 1,
]
FAILED = {ENTRY_FAILURE | ExitReason.ENTRY_GUEST_STATE, ENTRY_FAILURE | ExitReason.ENTRY_MSR_LOAD}


def value(rng: random.Random, old: int) -> int:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(INTERESTING)
    if kind == 1:
        return old ^ 1 << rng.randrange(64)
    if kind == 2:
        return old ^ 1 << rng.randrange(17)
    return rng.getrandbits(rng.choice([8, 16, 32, 64]))


def test_random_vmcs() -> None:
    seed = int(os.environ.get("TURTLES_SEED", random.randrange(1 << 32)))
    print(f"TURTLES_SEED={seed}")
    rng = random.Random(seed)
    machine = Machine(rng.randbytes(4096))
    machine.secondary(controls.SECONDARY_UNRESTRICTED)
    fence = machine.page()
    machine.memory.write(fence, b"\xa5" * 4096)
    tables = [machine.ept_top, machine.ept_1g, machine.ept_2m, machine.ept_4k]
    before = [machine.memory.read(pa, 4096) for pa in tables]
    good = bytes(machine.slots)
    outcomes: dict[str, int] = {}
    for n in range(ROUNDS):
        machine.slots.cast("B")[:] = good
        for _ in range(rng.randrange(1, 5)):
            # The virtual-APIC page and the MSR-store area are written, by design, wherever they are.
            slot = rng.randrange(f.FIRST_FIELD, f.EXIT_AREA.start)
            if slot in (f.VIRTUAL_APIC_ADDRESS, f.EXIT_MSR_STORE_ADDRESS, f.EPT_POINTER):
                continue
            machine.slots[slot] = value(rng, machine.slots[slot])
        rule = check_entry(machine.vmcs, machine.model)
        try:
            reason = machine.run(deadline=500)
        except SiliconError as error:
            # More device accesses than can be replayed, or a VMX abort: neither is a defect.
            assert "defect" not in str(error), (seed, n)
            continue
        if rule is None:
            assert reason >= 0, (seed, n)
            assert reason == ENTRY_FAILURE | ExitReason.ENTRY_MSR_LOAD or reason < 1 << 16, (seed, n)
        else:
            assert reason == -rule.error or (rule.error == 0 and reason in FAILED), (seed, n, rule)
        outcomes["entered" if 0 <= reason < 1 << 16 else "refused"] = 1
    assert set(outcomes) == {"entered", "refused"}, seed
    assert machine.memory.read(fence, 4096) == b"\xa5" * 4096, seed
    assert [machine.memory.read(pa, 4096) for pa in tables] == before, seed
