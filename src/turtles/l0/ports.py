"""What L0 needs from outside, as protocols that the board's objects fulfil.

L0 imports nothing above it; the board hands these in. Addresses carry the name of their space: `l1_pa` is
L1-physical, `host_pa` host-physical. Not here: what silicon offers, which L0 imports directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Slots: TypeAlias = "memoryview[int]"  # of format 'Q': a VMCS region or a core's state


@dataclass(frozen=True)
class RamRegion:
    """`size` bytes of L1's RAM at `l1_pa`, which lie at `host_pa` in host-physical memory (whole pages)."""

    l1_pa: int
    size: int
    host_pa: int


class PortSpace(Protocol):
    """L1's I/O ports."""

    def read(self, port: int, width: int, /) -> int:
        """The value that IN of `width` bytes returns (all ones where nothing answers)."""
        ...

    def write(self, port: int, width: int, value: int, /) -> None:
        """OUT."""
        ...


class MmioSpace(Protocol):
    """L1's physical addresses that are not RAM."""

    def read(self, l1_pa: int, width: int, /) -> int:
        """The value that a load of `width` bytes returns (all ones where nothing answers)."""
        ...

    def write(self, l1_pa: int, width: int, value: int, /) -> None:
        """A store."""
        ...


class LocalApic(Protocol):
    """L1's local interrupt controller. Its MMIO page is reached through `MmioSpace`."""

    nmi_pending: bool
    cr8: int
    """CR8: bits 7:4 of the task priority."""
    tsc: Callable[[], int]
    """The guest's time-stamp counter; L0 puts its own here, since the guest can move it."""

    wake: Callable[[], None] | None
    """Called when something was accepted that may make an interrupt or NMI pending; L0 puts its own here."""

    @property
    def identity(self) -> int:
        """The APIC identifier that CPUID reports."""
        ...

    @property
    def enabled(self) -> bool:
        """Whether IA32_APIC_BASE enables it; CPUID shows that."""
        ...

    def tsc_changed(self) -> None:
        """The guest moved its time-stamp counter."""
        ...

    def pending(self) -> int:
        """The highest vector that may be delivered now (above the processor priority), or -1."""
        ...

    def acknowledge(self, vector: int, /) -> None:
        """INTA: `vector` moves from requested to in service."""
        ...

    def end_of_interrupt(self) -> None:
        """EOI: the interrupt in service is over."""
        ...

    def take_nmi(self) -> None:
        """The pending NMI is delivered."""
        ...

    def read_msr(self, msr: int, /) -> int:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or 800H to 8FFH; ValueError means #GP(0)."""
        ...

    def write_msr(self, msr: int, value: int, /) -> None:
        """WRMSR of those; ValueError means #GP(0)."""
        ...


class EventQueue(Protocol):
    """Timers and completions, in the core's time. `run` calls them in the thread of the virtual CPU."""

    def next_deadline(self) -> int | None:
        """When the earliest timer is due, in nanoseconds of the core's clock."""
        ...

    def run(self, now_ns: int, /) -> None:
        """Calls everything that is due, and what other threads posted."""
        ...


class SegmentState(Protocol):
    """A segment register with its hidden part; `access` in the VMCS format (SDM 25.4.1)."""

    @property
    def selector(self) -> int:
        """Selector."""
        ...

    @property
    def base(self) -> int:
        """Base."""
        ...

    @property
    def limit(self) -> int:
        """Limit in bytes."""
        ...

    @property
    def access(self) -> int:
        """Access rights."""
        ...


class TableState(Protocol):
    """GDTR or IDTR."""

    @property
    def base(self) -> int:
        """Base."""
        ...

    @property
    def limit(self) -> int:
        """Limit in bytes."""
        ...


class StartState(Protocol):
    """A processor's state at a guest's first instruction, as a loader describes it.

    `registers` names rax to r15, rip, rflags, cr0, cr3, cr4 and efer (absent: zero); `segments` names es, cs,
    ss, ds, fs, gs, ldtr and tr.
    """

    @property
    def registers(self) -> Mapping[str, int]:
        """Registers by name."""
        ...

    @property
    def segments(self) -> Mapping[str, SegmentState]:
        """Segment registers by name."""
        ...

    @property
    def gdtr(self) -> TableState:
        """Global descriptor table."""
        ...

    @property
    def idtr(self) -> TableState:
        """Interrupt descriptor table."""
        ...
