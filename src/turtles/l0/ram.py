"""L1's physical memory, as L0 reaches it: from `l1_pa` to `host_pa`, and reads and writes by `l1_pa`.

What lies outside RAM reads as ones and swallows writes, since every such address comes from a guest.
Not here: devices (MmioSpace) and translations through anyone's page tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from turtles.l0.ports import RamRegion
from turtles.silicon import Memory

PAGE: Final = 4096
ONES_64: Final = (1 << 64) - 1


class L1Memory:
    """RAM regions of L1 over host-physical memory."""

    def __init__(self, memory: Memory, regions: Sequence[RamRegion]) -> None:
        for r in regions:
            if (r.l1_pa | r.size | r.host_pa) % PAGE:
                raise ValueError(f"RAM region at {r.l1_pa:#x} is not made of whole pages")
        self.memory = memory
        self.regions = tuple(sorted(regions, key=lambda r: r.l1_pa))
        # The largest first: as a rule it is that.
        by_size = sorted(regions, key=lambda r: -r.size)
        self._spans = tuple((r.l1_pa, r.l1_pa + r.size, r.host_pa - r.l1_pa) for r in by_size)
        self._load = memory.load
        # Who is told of stores, after each; none where nobody follows them.
        self.on_write: Callable[[int, int], None] | None = None

    def host_pa(self, l1_pa: int) -> int:
        """Where `l1_pa` lies, or -1 outside RAM."""
        for first, end, delta in self._spans:
            if first <= l1_pa < end:
                return l1_pa + delta
        return -1

    def host_page(self, l1_pa: int) -> int:
        """Where the page at `l1_pa` lies, or -1 for one that is not aligned or not RAM."""
        return -1 if l1_pa & 0xFFF else self.host_pa(l1_pa)

    def contiguous(self, l1_pa: int, size: int) -> int:
        """Host address of `size` bytes that lie in one piece, or -1."""
        for first, end, delta in self._spans:
            if first <= l1_pa and l1_pa + size <= end:
                return l1_pa + delta
        return -1

    def load64(self, l1_pa: int) -> int:
        """An aligned 64-bit load (page-table entries)."""
        for first, end, delta in self._spans:
            if first <= l1_pa < end:
                return self._load(l1_pa + delta, 8)
        return ONES_64

    def load8(self, l1_pa: int) -> int:
        """One byte (I/O and MSR bitmaps)."""
        host_pa = self.host_pa(l1_pa)
        return 0xFF if host_pa < 0 else self._load(host_pa, 1)

    def set_bits64(self, l1_pa: int, bits: int) -> None:
        """Sets bits in an aligned 64-bit word, atomically (accessed and dirty flags)."""
        host_pa = self.host_pa(l1_pa)
        if host_pa >= 0:
            self.memory.fetch_or(host_pa, 8, bits)

    def read(self, l1_pa: int, size: int) -> bytes:
        """`size` bytes; those outside RAM are FFH."""
        host_pa = self.contiguous(l1_pa, size)
        if host_pa >= 0:
            return self.memory.read(host_pa, size)
        parts = []
        for at, length in _pages(l1_pa, size):
            host_pa = self.host_pa(at)
            parts.append(b"\xff" * length if host_pa < 0 else self.memory.read(host_pa, length))
        return b"".join(parts)

    def write(self, l1_pa: int, data: bytes) -> None:
        """Stores `data`; what falls outside RAM is lost."""
        host_pa = self.contiguous(l1_pa, len(data))
        if host_pa >= 0:
            self.memory.write(host_pa, data)
        else:
            done = 0
            for at, length in _pages(l1_pa, len(data)):
                host_pa = self.host_pa(at)
                if host_pa >= 0:
                    self.memory.write(host_pa, data[done : done + length])
                done += length
        if self.on_write is not None:
            self.on_write(l1_pa, len(data))


def _pages(address: int, size: int) -> list[tuple[int, int]]:
    """Cuts a range at page boundaries."""
    pieces = []
    while size > 0:
        length = min(size, PAGE - (address & (PAGE - 1)))
        pieces.append((address, length))
        address += length
        size -= length
    return pieces
