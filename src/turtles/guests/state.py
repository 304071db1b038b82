"""What a loader hands to the machine: registers and segments by name, and bytes to write into RAM.

The description is neutral: it knows no VMCS and no core, so that loaders are plain functions and their
tests need no processor. It does not check that the guest will run, only that it fits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from turtles.board.layout import E820Entry, MemoryKind

PAGE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30


class GuestError(Exception):
    """A guest that cannot be loaded; the message is one line for the user."""


@dataclass(frozen=True)
class Platform:
    """What a loader is told about the board it loads for."""

    memory_map: tuple[E820Entry, ...]
    rsdp_l1_pa: int | None = None

    def fits(self, l1_pa: int, size: int) -> bool:
        """Whether `size` bytes at `l1_pa` are RAM that the loader may use."""
        return any(
            r.kind is MemoryKind.RAM and r.start <= l1_pa and l1_pa + size <= r.start + r.size
            for r in self.memory_map
        )

    def highest(self, size: int, limit: int, align: int = PAGE) -> int | None:
        """The highest aligned address below `limit` at which `size` bytes of RAM lie."""
        best: int | None = None
        for r in self.memory_map:
            if r.kind is not MemoryKind.RAM:
                continue
            top = (min(r.start + r.size, limit) - size) & -align
            if top >= r.start and (best is None or top > best):
                best = top
        return best

    def ram_above_1m(self) -> int:
        """Bytes of contiguous RAM from 1 MiB up."""
        for r in self.memory_map:
            if r.kind is MemoryKind.RAM and r.start <= MIB < r.start + r.size:
                return r.start + r.size - MIB
        return 0


@dataclass(frozen=True)
class Segment:
    """A segment register with its hidden part; `access` in the VMCS format (SDM 25.4.1)."""

    selector: int
    base: int
    limit: int
    access: int


@dataclass(frozen=True)
class DescriptorTable:
    """GDTR or IDTR."""

    base: int
    limit: int


@dataclass(frozen=True)
class MemoryWrite:
    """Bytes that belong at a guest-physical address."""

    l1_pa: int
    data: bytes


@dataclass(frozen=True)
class InitialState:
    """A processor's state at a guest's first instruction, and the memory that it finds.

    `registers` names rax…r15, rip, rflags, cr0, cr3, cr4 and efer; those left out are zero.
    `segments` names es, cs, ss, ds, fs, gs, ldtr and tr.
    """

    what: str
    registers: Mapping[str, int]
    segments: Mapping[str, Segment]
    gdtr: DescriptorTable
    idtr: DescriptorTable
    memory: tuple[MemoryWrite, ...]


# Access rights, SDM table 25-2: type 3:0, S 4, DPL 6:5, P 7, L 13, D/B 14, G 15, unusable 16.
CODE_64: Final = 0xA09B
CODE_32: Final = 0xC09B
DATA_32: Final = 0xC093
TSS_BUSY: Final = 0x008B
UNUSABLE: Final = 1 << 16


def flat_segments(code_access: int, code_selector: int, data_selector: int) -> dict[str, Segment]:
    """Segments of 4 GiB from zero, a null LDTR, and the task register that VM entry insists on."""
    data = Segment(data_selector, 0, 0xFFFF_FFFF, DATA_32)
    return {
        "cs": Segment(code_selector, 0, 0xFFFF_FFFF, code_access),
        **{name: data for name in ("ds", "es", "fs", "gs", "ss")},
        "ldtr": Segment(0, 0, 0, UNUSABLE),
        "tr": Segment(0, 0, 0xFFFF, TSS_BUSY),
    }


def descriptor(access: int, base: int = 0, limit: int = 0xFFFFF) -> int:
    """A segment descriptor (SDM 3.4.5) from access rights in the VMCS format."""
    return (
        (limit & 0xFFFF)
        | (base & 0xFF_FFFF) << 16
        | (access & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access >> 12 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


def read_file(path: str, what: str) -> bytes:
    """The file's bytes; a `GuestError` that names `what` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):  # some of them never end
                raise GuestError(f"{what} {path}: a device, not a file")
            return file.read()
    except OSError as e:
        raise GuestError(f"{what} {path}: {e.strerror or e}") from None
    except MemoryError:
        raise GuestError(f"{what} {path}: too large for this host's memory") from None
