"""ELF executables as a boot loader sees them: the header and the loadable segments, 32 or 64 bit.

Written out because a loader needs 60 lines of the format, and each refusal as one line for the user.
Not here: sections, symbols, relocation.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from turtles.guests.state import GuestError

EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3


@dataclass(frozen=True)
class LoadSegment:
    """A PT_LOAD program header with its bytes; memory beyond the bytes is zero."""

    paddr: int
    vaddr: int
    memory_size: int
    data: bytes


@dataclass(frozen=True)
class Elf:
    """An ELF executable: class, entry point and what to load."""

    bits: int
    entry: int
    segments: tuple[LoadSegment, ...]

    def physical_entry(self) -> int:
        """The entry point in physical addresses: kernels are often linked high and loaded low."""
        for s in self.segments:
            if s.vaddr <= self.entry < s.vaddr + s.memory_size:
                return self.entry - s.vaddr + s.paddr
        return self.entry


def is_elf(image: bytes) -> bool:
    """Whether the file begins with ELF's magic."""
    return image[:4] == b"\x7fELF"


def parse_elf(image: bytes) -> Elf:
    """Read and check an x86 executable; `GuestError` says in one line what is wrong."""
    if not is_elf(image):
        raise GuestError("kernel: no ELF file")
    if len(image) < 64:
        raise GuestError(f"kernel: truncated ELF: {len(image)} bytes are too few for its header")
    bits = {1: 32, 2: 64}.get(image[4])
    if bits is None or image[5] != 1:
        raise GuestError("kernel: ELF of an unknown class or byte order")
    if bits == 32:
        kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = struct.unpack_from(
            "<HHIIIIIHHH", image, 16
        )
    else:
        kind, machine, _, entry, phoff, _, _, _, phentsize, phnum = struct.unpack_from(
            "<HHIQQQIHHH", image, 16
        )
    if machine not in (EM_386, EM_X86_64):
        raise GuestError(f"kernel: ELF for machine {machine}, not x86")
    if kind not in (ET_EXEC, ET_DYN):
        raise GuestError(f"kernel: ELF of type {kind} is no executable")
    size = 32 if bits == 32 else 56
    if phentsize < size or phoff + phnum * phentsize > len(image):
        raise GuestError("kernel: truncated ELF: its program headers lie outside of the file")
    segments = tuple(
        s for i in range(phnum) if (s := _segment(image, bits, phoff + i * phentsize)) is not None
    )
    if not segments:
        raise GuestError("kernel: ELF without anything to load")
    return Elf(bits, entry, segments)


def _segment(image: bytes, bits: int, at: int) -> LoadSegment | None:
    if bits == 32:
        kind, offset, vaddr, paddr, file_size, memory_size = struct.unpack_from("<6I", image, at)
    else:
        kind, _, offset, vaddr, paddr, file_size, memory_size = struct.unpack_from("<IIQQQQQ", image, at)
    if kind != PT_LOAD or memory_size == 0:
        return None
    if offset + file_size > len(image):
        raise GuestError(
            f"kernel: truncated ELF: a segment ends at {offset + file_size}, the file at {len(image)}"
        )
    if file_size > memory_size:
        raise GuestError(f"kernel: ELF segment at {paddr:#x} has more bytes in the file than in memory")
    return LoadSegment(paddr, vaddr, memory_size, image[offset : offset + file_size])
