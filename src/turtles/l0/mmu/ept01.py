"""ept01: L1-physical to host-physical, built once from the board's RAM map with the largest pages that fit.

What is not RAM stays unmapped, so that device accesses exit. Single pages can be made read-only, for which
the large page round them is cut; whoever asks for that flushes silicon's TLBs (`tracking`).
"""

from __future__ import annotations

from array import array
from typing import Final

from turtles.l0.mmu import ept
from turtles.l0.pool import PagePool
from turtles.l0.ports import RamRegion, Slots

_LEAF: Final = ept.RIGHTS | ept.WRITE_BACK << 3


class Ept01:
    """The tables and their EPT pointer."""

    def __init__(self, pool: PagePool, regions: tuple[RamRegion, ...]) -> None:
        self._pool = pool
        self._tables: dict[int, Slots] = {}
        self._root = self._new_table()
        self.eptp: Final = self._root | ept.EPTP_WALK_4 | ept.WRITE_BACK
        for region in regions:
            self._map_region(region)

    def _new_table(self) -> int:
        host_pa = self._pool.allocate()
        self._tables[host_pa] = self._pool.slots(host_pa)
        return host_pa

    def _map_region(self, region: RamRegion) -> None:
        done = 0
        while done < region.size:
            l1_pa, host_pa = region.l1_pa + done, region.host_pa + done
            level = 3
            while (l1_pa | host_pa) % ept.SIZE[level] or done + ept.SIZE[level] > region.size:
                level -= 1
            self._set(l1_pa, level, host_pa | _LEAF | (ept.LARGE if level > 1 else 0))
            done += ept.SIZE[level]

    def _set(self, l1_pa: int, leaf_level: int, entry: int) -> None:
        table = self._tables[self._root]
        for level in range(ept.TOP, leaf_level, -1):
            index = l1_pa >> ept.SHIFT[level] & 511
            if not table[index]:
                table[index] = self._new_table() | ept.RIGHTS
            table = self._tables[table[index] & ept.ADDRESS]
        table[l1_pa >> ept.SHIFT[leaf_level] & 511] = entry

    def set_writable(self, l1_pa: int, writable: bool) -> None:
        """Gives a page of RAM its write right, or takes it; every large page on the way is cut first."""
        table = self._tables[self._root]
        for level in range(ept.TOP, 1, -1):
            index = l1_pa >> ept.SHIFT[level] & 511
            if ept.is_leaf(table[index], level):
                table[index] = self._cut(table[index], level)
            table = self._tables[table[index] & ept.ADDRESS]
        index = l1_pa >> 12 & 511
        table[index] = table[index] | ept.WRITE if writable else table[index] & ~ept.WRITE

    def _cut(self, leaf: int, level: int) -> int:
        """The entry of a table that maps what the large page `leaf` maps, with pages of the next size."""
        host_pa = self._new_table()
        entry = leaf & ~ept.LARGE if level == 2 else leaf
        size = ept.SIZE[level - 1]
        self._tables[host_pa][:] = array("Q", range(entry, entry + ept.ENTRIES * size, size))
        return host_pa | ept.RIGHTS

    def map_page(self, l1_pa: int, host_pa: int) -> None:
        """Maps one page that is not RAM (something fetches or walks there, which no device answers)."""
        self._set(l1_pa & ~0xFFF, 1, host_pa | _LEAF)
