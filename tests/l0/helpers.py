"""A machine without a board: devices that remember, interrupts and L1's exits made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from turtles.l0.machine import WITHOUT, Machine
from turtles.l0.ports import RamRegion
from turtles.l0.tactics import ALL, Tactics
from turtles.l0.trace import ExitRecord, decode, record
from turtles.l0.vcpu import Vcpu
from turtles.l0.vmcs import bits as X
from turtles.silicon import Core, Memory, Model
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

MIB = 1 << 20
RAM = 16 * MIB
HIGH = 4 << 30
"""L1's second piece of RAM starts here, and lies behind the first in host-physical memory."""


class Bus:
    """Ports or MMIO: reads answer from `values`, writes are remembered."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.writes: list[tuple[int, int, int]] = []
        self.reads: list[tuple[int, int]] = []

    def read(self, address: int, width: int, /) -> int:
        self.reads.append((address, width))
        return self.values.get(address, (1 << 8 * width) - 1)

    def write(self, address: int, width: int, value: int, /) -> None:
        self.writes.append((address, width, value))


class Apic:
    """A local APIC whose pending vector the test sets."""

    def __init__(self) -> None:
        self.nmi_pending = False
        self.cr8 = 0
        self.tsc: Callable[[], int] = lambda: 0
        self.wake: Callable[[], None] | None = None
        self.identity = 0
        self.enabled = True
        self.vectors: list[int] = []
        self.acknowledged: list[int] = []
        self.ended = 0
        self.msrs: dict[int, int] = {0x1B: 0xFEE0_0900}
        self.tsc_moves = 0

    def pending(self) -> int:
        return max(self.vectors, default=-1)

    def acknowledge(self, vector: int, /) -> None:
        self.vectors.remove(vector)
        self.acknowledged.append(vector)

    def end_of_interrupt(self) -> None:
        self.ended += 1

    def take_nmi(self) -> None:
        self.nmi_pending = False

    def tsc_changed(self) -> None:
        self.tsc_moves += 1

    def read_msr(self, msr: int, /) -> int:
        try:
            return self.msrs[msr]
        except KeyError:
            raise ValueError(hex(msr)) from None

    def write_msr(self, msr: int, value: int, /) -> None:
        if msr not in self.msrs:
            raise ValueError(hex(msr))
        self.msrs[msr] = value


class Events:
    """One timer: `callbacks` run when `deadline` has come."""

    def __init__(self) -> None:
        self.deadline: int | None = None
        self.callbacks: list[Callable[[], None]] = []

    def next_deadline(self) -> int | None:
        return self.deadline

    def run(self, now_ns: int, /) -> None:
        if self.deadline is not None and now_ns >= self.deadline:
            self.deadline = None
            for callback in self.callbacks:
                callback()


class Rig:
    """A machine with one virtual CPU, L1 in 64-bit mode without paging tables (identity, by CR0.PG = 0)."""

    mode = "multidim"
    """The memory mode of every rig; what runs its tests in several sets it."""

    def __init__(
        self,
        *,
        tactics: Tactics = ALL,
        model: Model | None = None,
        clock: Literal["host", "virtual"] = "host",
    ) -> None:
        self.memory = Memory(2 * RAM, pool=8 * MIB)
        mode = Rig.mode
        self.model = model or Model("max", disable=WITHOUT.get(mode, ()))
        self.ports, self.mmio = Bus(), Bus()
        self.apic, self.events = Apic(), Events()
        regions = [RamRegion(0, RAM, 0), RamRegion(HIGH, RAM, RAM)]
        self.machine = Machine(
            self.memory, self.model, regions, self.ports, self.mmio, mode=mode, tactics=tactics
        )
        self.core = Core(self.memory, self.model, clock)
        self.vcpu: Vcpu = self.machine.add_vcpu(self.core, self.apic, self.events)
        self.v = self.vcpu.v01
        self.regs = self.vcpu.regs
        self.supervisor()

    def supervisor(self) -> None:
        """Flat 32-bit protected mode at CPL 0, paging off: linear addresses are L1-physical."""
        v = self.v
        v[F.GUEST_CR0] = X.CR0_PE | X.CR0_NE | X.CR0_ET
        for number in range(6):
            base = F.GUEST_ES_SELECTOR + 4 * number
            v[base] = 8
            v[base + 2] = 0xFFFF_FFFF
            v[base + 3] = 0xC093 if number != 1 else 0xC09B
        v[F.GUEST_RFLAGS] = 2
        v[F.GUEST_RIP] = 0x1000

    def memory_operand(self, address: int, register2: int = 0) -> None:
        """The instruction information and qualification of an operand at a plain 32-bit address."""
        self.v[F.EXIT_INSTRUCTION_INFO] = 1 << 7 | 3 << 15 | 1 << 22 | 1 << 27 | register2 << 28
        self.v[F.EXIT_QUALIFICATION] = address
        self.v[F.EXIT_INSTRUCTION_LENGTH] = 4

    def put64(self, l1_pa: int, value: int) -> None:
        self.machine.l1.write(l1_pa, value.to_bytes(8, "little"))

    def injected(self) -> int | None:
        """Vector that the context takes next, or none."""
        info = self.vcpu.v[F.ENTRY_INTERRUPTION_INFO]
        return info & 0xFF if info & X.VALID else None

    def vmx_result(self) -> str | int:
        """How the last VMX instruction ended: "success", "invalid", or the error number of VMfailValid."""
        flags = self.v[F.GUEST_RFLAGS]
        if flags & X.RFLAGS_CF:
            return "invalid"
        if flags & X.RFLAGS_ZF:
            c = self.vcpu.current12
            assert c is not None
            return c.v[F.VM_INSTRUCTION_ERROR]
        return "success"

    def enter_vmx(self) -> None:
        """Puts L1 in VMX operation, with a VMXON region at 1000H."""
        v = self.v
        v[F.GUEST_CR0] |= X.CR0_PG
        v[F.CR0_READ_SHADOW] = X.CR0_PE | X.CR0_NE | X.CR0_PG | X.CR0_ET
        v[F.CR4_READ_SHADOW] = X.CR4_VMXE
        self.regs[S.FEATURE_CONTROL] = 5
        self.identity_map()
        self.put64(0x1000, self.machine.revision)
        self.put64(0x800, 0x1000)
        self.memory_operand(0x800)
        self.call("VMXON")

    def identity_map(self) -> None:
        """32-bit page tables at 2000H that map 4 GiB onto itself in 4-MiB pages."""
        directory = b"".join((n << 22 | 0x87).to_bytes(4, "little") for n in range(1024))
        self.machine.l1.write(0x2000, directory)
        self.v[F.GUEST_CR3] = 0x2000
        self.v[F.GUEST_CR4] |= X.CR4_PSE

    def call(self, reason: str) -> None:
        """Runs L0's handler for an exit with this reason at the level that is on."""
        from turtles.silicon import ExitReason

        vcpu = self.vcpu
        vcpu.v[F.EXIT_REASON] = ExitReason[reason]
        vcpu.handlers[vcpu.level][ExitReason[reason]](vcpu)

    def vmptrld(self, l1_pa: int) -> None:
        """VMCLEAR and VMPTRLD of a region at `l1_pa`, by hand."""
        self.put64(l1_pa, self.machine.revision)
        self.put64(0x800, l1_pa)
        self.memory_operand(0x800)
        self.call("VMCLEAR")
        self.memory_operand(0x800)
        self.call("VMPTRLD")


def minimal_vmcs12(v12: memoryview[int], v01: memoryview[int], eptp12: int | None = None) -> None:
    """A vmcs12 that passes entry: 64-bit host, unpaged protected-mode guest where unrestricted."""
    v12[F.PIN_CONTROLS] = 0x16 | C.PIN_EXTERNAL_INTERRUPT | C.PIN_NMI
    v12[F.PRIMARY_CONTROLS] = 0x0400_6172 | C.PRIMARY_SECONDARY | C.PRIMARY_HLT
    v12[F.SECONDARY_CONTROLS] = 0
    if eptp12 is not None:
        v12[F.SECONDARY_CONTROLS] = C.SECONDARY_EPT | C.SECONDARY_UNRESTRICTED
        v12[F.EPT_POINTER] = eptp12
    v12[F.EXIT_CONTROLS] = 0x3_6DFF | C.EXIT_HOST_64 | C.EXIT_ACKNOWLEDGE
    v12[F.ENTRY_CONTROLS] = 0x11FF
    v12[F.GUEST_VMCS_LINK_POINTER] = X.NO_ADDRESS
    for slot in range(F.GUEST_ES_SELECTOR, F.GUEST_DR7):
        v12[slot] = v01[slot]
    v12[F.GUEST_TR_ACCESS], v12[F.GUEST_TR_LIMIT] = 0x8B, 0x67
    v12[F.GUEST_LDTR_ACCESS] = X.ACCESS_UNUSABLE
    v12[F.GUEST_CR0] = X.CR0_PE | X.CR0_NE | X.CR0_ET
    v12[F.GUEST_CR4] = X.CR4_VMXE
    v12[F.GUEST_RFLAGS] = 2
    v12[F.GUEST_DR7] = 0x400
    v12[F.HOST_CR0] = X.CR0_PE | X.CR0_PG | X.CR0_NE
    v12[F.HOST_CR3] = 0x2000
    v12[F.HOST_CR4] = X.CR4_PAE | X.CR4_VMXE
    v12[F.HOST_CS_SELECTOR], v12[F.HOST_TR_SELECTOR] = 8, 0x10
    v12[F.HOST_RIP], v12[F.HOST_RSP] = 0x7000, 0x8000


class Recording:
    """What a virtual CPU did, kept in memory: a `Sink`."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._data = bytearray()
        self.notes: dict[int, str] = {}
        self._recorder = record(vcpu, self)

    def exits(self, cpu: int, data: memoryview[int]) -> None:
        self._data += data

    def note(self, cpu: int, number: int, text: str) -> None:
        self.notes[number] = text

    def records(self) -> list[ExitRecord]:
        """After the run."""
        self._recorder.finish()
        return list(decode(self._data))
