"""L1 programs of a few instructions, run for real: 32-bit flat protected mode, code at 1000H."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.l0.helpers import Rig
from turtles.l0.outcome import Outcome, debug_exit
from turtles.l0.tactics import ALL, Tactics
from turtles.silicon import Model

CODE = 0x1000
EXIT_PORT = 0xF4
IDT = 0x4000


def mov(register: int, value: int) -> bytes:
    """MOV r32, imm32; registers by number (0 EAX, 1 ECX, 2 EDX, 3 EBX)."""
    return bytes([0xB8 + register]) + (value & 0xFFFF_FFFF).to_bytes(4, "little")


CPUID = b"\x0f\xa2"
RDMSR = b"\x0f\x32"
WRMSR = b"\x0f\x30"
XSETBV = b"\x0f\x01\xd1"
HLT = b"\xf4"
STI = b"\xfb"
LOOP_FOREVER = b"\xeb\xfe"
UD2 = b"\x0f\x0b"
DONE = bytes([0xE7, EXIT_PORT])  # OUT EXIT_PORT, EAX
IRET = b"\xcf"


def mov_to_cr(number: int) -> bytes:
    """MOV CRn, EAX."""
    return bytes([0x0F, 0x22, 0xC0 | number << 3])


def mov_from_cr(number: int) -> bytes:
    """MOV EAX, CRn."""
    return bytes([0x0F, 0x20, 0xC0 | number << 3])


def load(address: int) -> bytes:
    """MOV EAX, [address]."""
    return b"\xa1" + address.to_bytes(4, "little")


def store(address: int) -> bytes:
    """MOV [address], EAX."""
    return b"\xa3" + address.to_bytes(4, "little")


@dataclass(frozen=True)
class Segment:
    """As a loader describes one."""

    selector: int
    base: int
    limit: int
    access: int


@dataclass(frozen=True)
class Table:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Start:
    """Flat protected mode at `CODE`, paging off, stack below 900H."""

    registers: Mapping[str, int] = field(
        default_factory=lambda: {"rip": CODE, "rsp": 0x900, "rflags": 2, "cr0": 0x31}
    )
    gdtr: Table = Table(0x500, 0x7F)
    idtr: Table = Table(IDT, 0x7FF)

    @property
    def segments(self) -> Mapping[str, Segment]:
        """Flat segments; the descriptors are put into memory by `Guest`."""
        data = Segment(0x10, 0, 0xFFFF_FFFF, 0xC093)
        return {
            "cs": Segment(8, 0, 0xFFFF_FFFF, 0xC09B),
            **{name: data for name in ("ds", "es", "fs", "gs", "ss")},
            "ldtr": Segment(0, 0, 0, 1 << 16),
            "tr": Segment(0x18, 0x700, 0x67, 0x8B),
        }


class Guest(Rig):
    """A rig whose L1 runs `code`; a write to EXIT_PORT ends it."""

    def __init__(
        self,
        code: bytes,
        *,
        model: Model | None = None,
        clock: Literal["host", "virtual"] = "host",
        tactics: Tactics = ALL,
    ) -> None:
        super().__init__(model=model, clock=clock, tactics=tactics)
        self.machine.l1.write(CODE, code)
        gdt = [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0700_0067]
        self.machine.l1.write(0x500, b"".join(entry.to_bytes(8, "little") for entry in gdt))
        self.vcpu.start(Start())
        write = self.ports.write

        def exit_or_write(port: int, width: int, value: int, /) -> None:
            if port == EXIT_PORT:
                self.machine.stop(debug_exit(value))
            else:
                write(port, width, value)

        self.ports.write = exit_or_write  # type: ignore[method-assign]

    def interrupt_gate(self, vector: int, address: int) -> None:
        """An interrupt gate to a handler."""
        gate = address & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (address >> 16) << 48
        self.machine.l1.write(IDT + 8 * vector, gate.to_bytes(8, "little"))

    def run(self, seconds: float = 10) -> Outcome:
        """Runs to the end; a guest that does not end is a failed test."""
        timer = threading.Timer(seconds, lambda: self.machine.stop(TEST_TIMEOUT))
        timer.start()
        try:
            outcome = self.vcpu.run()
        finally:
            timer.cancel()
        assert outcome is not TEST_TIMEOUT, f"still running: {self.vcpu.where()}"
        return outcome

    def result(self) -> int:
        """What the guest wrote to the exit port."""
        outcome = self.run()
        assert outcome.ending is debug_exit(0).ending, outcome
        return outcome.code


TEST_TIMEOUT = Outcome(ending=debug_exit(0).ending, code=-1, message="timeout of the test")
