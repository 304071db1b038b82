"""Guests of random bytes in every mode: they end in VM exits, write nothing outside RAM, can be stopped."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Final, Literal

import pytest

from tests.silicon.machine import CODE, DATA, GDT, GUEST_TABLES, IDT, RAM, STACK, TSS, Machine
from turtles.silicon import ExitReason as R
from turtles.silicon import SiliconError, controls
from turtles.silicon import fields as f
from turtles.silicon import slots as s

ROUNDS: Final = int(os.environ.get("TURTLES_FUZZ_ROUNDS", "300"))
MODES: Final = ("long", "compatibility", "protected", "protected16", "paging32", "pae", "real", "v8086")
INTERESTING: Final = (0, 1, 2**64 - 1, 2**63, DATA, CODE, STACK, GUEST_TABLES, RAM - 4)
CODE_BYTES: Final = 512
INSTRUCTIONS: Final = 3000
CR0_PG, CR0_PE = 1 << 31, 1
BY_INSTRUCTION: Final = {R.CPUID, R.HLT, R.IO, R.RDMSR, R.WRMSR, R.VMCALL, R.XSETBV, R.INVD}

# Encodings that random bytes seldom are: prefixes, two- and three-byte maps, system instructions.
OPENINGS: Final = [
    *(bytes([b]) for b in (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x48, 0x0F, 0xC4, 0xC5)),
    *(bytes.fromhex(b) for b in "0f01 0f00 0f20 0f22 0f21 0f23 0f30 0f32 0fc7 0fae".split()),
    *(
        bytes.fromhex(b)
        for b in "f3a4 f3aa f3a6 f2ae f36c f36e cd80 cf ca c8 ff 9a ea 8e 8c 9d fb fa f4".split()
    ),
]


def seed() -> int:
    value = int(os.environ.get("TURTLES_SEED", random.randrange(1 << 32)))
    print(f"TURTLES_SEED={value}")
    return value


def random_code(rng: random.Random, length: int) -> bytes:
    code = bytearray()
    while len(code) < length:
        if rng.random() < 0.5:
            code += rng.choice(OPENINGS)
        code += rng.randbytes(rng.randrange(1, 6))
    return bytes(code[:length])


def segment(machine: Machine, name: str, selector: int, base: int, limit: int, access: int) -> None:
    at = getattr(f, f"GUEST_{name}_SELECTOR")
    machine.slots[at : at + 4] = memoryview(  # selector, base, limit, access rights
        b"".join(v.to_bytes(8, "little") for v in (selector, base, limit, access))
    ).cast("Q")


def set_mode(machine: Machine, mode: str) -> None:
    """Guest state of `mode`, valid for VM entry."""
    v = machine.slots
    if mode == "long":
        return
    if mode == "compatibility":
        segment(machine, "CS", 8, 0, 0xFFFFFFFF, 0xC09B)
        return
    machine.secondary(controls.SECONDARY_UNRESTRICTED)
    v[f.ENTRY_CONTROLS] &= ~controls.ENTRY_IA32E
    v[f.GUEST_EFER] = 0
    v[f.GUEST_CR0] &= ~CR0_PG
    v[f.GUEST_CR4] &= ~0x20
    machine.memory.write(
        TSS + 4, (0x10 << 32 | STACK).to_bytes(8, "little")
    )  # SS0:ESP0, for virtual-8086 mode
    wide = mode not in ("protected16",)
    segment(machine, "CS", 8, 0, 0xFFFFFFFF if wide else 0xFFFFF, 0xC09B if wide else 0x809B)
    if mode == "paging32":
        # One page table of 4-MiB pages at 7000H, flat.
        for n in range(1024):
            machine.memory.store(0x7000 + 4 * n, 4, (n << 22 | 0x87) & 0xFFFFFFFF)
        v[f.GUEST_CR3], v[f.GUEST_CR4] = 0x7000, v[f.GUEST_CR4] | 0x10
        v[f.GUEST_CR0] |= CR0_PG
    elif mode == "pae":
        for n in range(4):
            machine.memory.store(0x7000 + 8 * n, 8, 0x8000 + 0x1000 * n | 1)
            v[f.GUEST_PDPTE0 + n] = 0x8000 + 0x1000 * n | 1
            for m in range(512):
                machine.memory.store(0x8000 + 0x1000 * n + 8 * m, 8, n << 30 | m << 21 | 0x87)
        v[f.GUEST_CR3], v[f.GUEST_CR4] = 0x7000, v[f.GUEST_CR4] | 0x20
        v[f.GUEST_CR0] |= CR0_PG
    elif mode == "real":
        v[f.GUEST_CR0] &= ~CR0_PE
        for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
            selector = CODE >> 4 if name == "CS" else DATA >> 4
            segment(machine, name, selector, selector << 4, 0xFFFF, 0x9B if name == "CS" else 0x93)
        v[f.GUEST_RIP], v[f.GUEST_RSP] = 0, 0x8000
        v[f.GUEST_IDTR_BASE], v[f.GUEST_IDTR_LIMIT] = 0, 0x3FF
    elif mode == "v8086":
        for name in ("CS", "SS", "DS", "ES", "FS", "GS"):
            selector = CODE >> 4 if name == "CS" else DATA >> 4
            segment(machine, name, selector, selector << 4, 0xFFFF, 0xF3)
        v[f.GUEST_RIP], v[f.GUEST_RSP] = 0, 0x8000
        v[f.GUEST_RFLAGS] = 0x20002 | 3 << 12


class Fuzzed:
    """A machine whose pool has a fence, and that is put back into a known state before each guest."""

    def __init__(self, rng: random.Random, mode: str, clock: Literal["host", "virtual"] = "virtual") -> None:
        self.rng, self.mode = rng, mode
        self.machine = m = Machine(clock=clock)
        # The guest may read and write every MSR that silicon has, and reach every port without an exit.
        m.slots[f.PRIMARY_CONTROLS] |= controls.PRIMARY_MSR_BITMAPS | controls.PRIMARY_IO_BITMAPS
        m.slots[f.MSR_BITMAP], m.slots[f.IO_BITMAP_A], m.slots[f.IO_BITMAP_B] = m.page(), m.page(), m.page()
        set_mode(m, mode)
        self.good = bytes(m.slots)
        self.low = m.memory.read(0, CODE)
        self.fence = range(m._next_page, m.memory.total)
        m.memory.fill(self.fence.start, len(self.fence), 0xA5)
        self.pool = m.memory.read(m.memory.size, self.fence.start - m.memory.size)

    def guest(self) -> None:
        """Random code, registers and descriptor tables."""
        m, rng = self.machine, self.rng
        m.slots.cast("B")[:] = self.good
        m.memory.write(0, self.low)
        m.memory.write(CODE, random_code(rng, CODE_BYTES))
        m.memory.write(DATA, rng.randbytes(4096))
        for n in range(rng.randrange(32)):
            m.memory.store(
                GDT + 8 * n + 24, 8, rng.getrandbits(64) if rng.random() < 0.5 else 0x00CFFB000000FFFF
            )
        for vector in range(32):
            if rng.random() < 0.8:  # handlers in the random code, so that a fault is not the end
                self._handler(vector, rng.randrange(CODE_BYTES))
        for n in range(16):
            m.state[s.RAX + n] = rng.choice(
                [
                    0,
                    1,
                    2**64 - 1,
                    2**63,
                    DATA,
                    CODE,
                    STACK,
                    GUEST_TABLES,
                    RAM - 4,
                    rng.getrandbits(32),
                    rng.getrandbits(64),
                ]
            )

    def _handler(self, vector: int, offset: int) -> None:
        store, at = self.machine.memory.store, CODE + offset
        if self.mode == "real":
            store(4 * vector, 4, CODE >> 4 << 16 | offset)
            return
        size = 16 if self.mode in ("long", "compatibility") else 8
        store(IDT + size * vector, 8, at & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (at >> 16) << 48)
        if size == 16:
            store(IDT + 16 * vector + 8, 8, 0)

    def restart(self) -> None:
        """From anywhere in the code, with all but general registers and memory as at first."""
        self.machine.slots.cast("B")[:] = self.good
        self.machine.slots[f.GUEST_RIP] += self.rng.randrange(CODE_BYTES)

    def run(self) -> int:
        """Until the budget is over; an instruction that exits is skipped, or the guest begins elsewhere."""
        m = self.machine
        end = m.core.now() + INSTRUCTIONS
        exits = 0
        while m.core.now() < end and exits < 200:
            m.state[s.ASSIST_DONE] = 0
            reason = m.core.enter(m.vmcs, end)
            exits += 1
            if reason < 0 or reason >> 31:
                # A guest may get into a state that cannot be entered again only by L0's skipping.
                self.restart()
                continue
            if reason in BY_INSTRUCTION and self.rng.random() < 0.7:
                assert 1 <= m.slots[f.EXIT_INSTRUCTION_LENGTH] <= 15
                m.advance()
                m.slots[f.GUEST_INTERRUPTIBILITY] = 0
            else:
                self.restart()
        return exits

    def check(self) -> None:
        """Nothing but RAM was written: the fence, EPT, bitmaps. (The VMCS is silicon's to write.)"""
        m = self.machine
        assert m.memory.read(self.fence.start, len(self.fence)) == b"\xa5" * len(self.fence)
        page = m.vmcs.host_pa - m.memory.size
        now = m.memory.read(m.memory.size, len(self.pool))
        assert now[:page] == self.pool[:page]
        assert now[page + 4096 :] == self.pool[page + 4096 :]


@pytest.mark.parametrize("mode", MODES)
def test_random_guests(mode: str) -> None:
    start = seed()
    rng = random.Random(start)
    fuzzed = Fuzzed(rng, mode)
    exits = lacking = 0
    for n in range(ROUNDS):
        fuzzed.guest()
        try:
            exits += fuzzed.run()
        except SiliconError as error:
            # An instruction that CPUID offers and silicon lacks is named; a panic says "defect".
            assert "defect" not in str(error), (mode, start, n, str(error))
            lacking += 1
            print(error)
        fuzzed.check()
    assert exits >= ROUNDS, "guests do not run"
    assert lacking < ROUNDS // 50 + 1


def run_until_stopped(m: Machine, stopped: threading.Event, failures: list[str]) -> None:
    while not stopped.is_set():
        m.state[s.ASSIST_DONE] = 0
        try:
            reason = m.core.enter(m.vmcs, m.core.now() + 10**12)
        except SiliconError as error:
            if "defect" in str(error):
                failures.append(str(error))
            return
        if reason not in BY_INSTRUCTION:
            return
        m.advance()


@pytest.mark.parametrize("mode", MODES)
def test_a_random_guest_can_be_stopped(mode: str) -> None:
    """`stop` ends a run under the host's clock within a second, whatever the guest does."""
    rng = random.Random(seed())
    for _ in range(3):
        fuzzed = Fuzzed(rng, mode, "host")
        fuzzed.guest()
        m = fuzzed.machine
        stopped, failures = threading.Event(), list[str]()
        thread = threading.Thread(target=run_until_stopped, args=(m, stopped, failures), daemon=True)
        thread.start()
        time.sleep(0.02)
        stopped.set()
        begin = time.monotonic()
        m.core.stop()
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - begin < 1
        assert failures == []


# Loops that never come to an end by themselves: jmp $; rep movsb for 2^64; a handler that faults for ever.
ENDLESS: Final = {
    "jump": "ebfe",
    "hlt": "f4ebfd",
    "rep movs": "48c7c1ffffffff48c7c60000030048c7c700000400f3a4ebfe",
    "rep stos backwards": "fd48c7c1ffffffff48c7c700000400f3aaebfe",
    "fault for ever": "0f0b",
    "self-modifying": "488d05000000008000 00ebf7".replace(" ", ""),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_endless_code_can_be_stopped(what: str) -> None:
    machine = Machine(bytes.fromhex(ENDLESS[what]), clock="host")
    machine.slots[f.PRIMARY_CONTROLS] &= ~controls.PRIMARY_HLT
    for vector in (6, 13, 14):
        machine.handler(vector, b"\x0f\x0b")
    reasons = list[int]()
    thread = threading.Thread(
        target=lambda: reasons.append(machine.core.enter(machine.vmcs, machine.core.now() + 10**12)),
        daemon=True,
    )
    thread.start()
    time.sleep(0.05)
    machine.core.stop()
    thread.join(1)
    assert not thread.is_alive(), "a stop was not obeyed within a second"
    if what in ("jump", "hlt"):
        assert reasons == [R.EXTERNAL_INTERRUPT]
