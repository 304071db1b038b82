"""Walk of ept12, the EPT that L1 wrote for its guest: from an l2_pa to an l1_pa, or what went wrong.

Everything read here is hostile input. It changes nothing; accessed and dirty flags are set by the caller.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from turtles.l0.mmu import ept
from turtles.l0.ram import L1Memory


class Found(IntEnum):
    """What a walk met."""

    PAGE = 0
    VIOLATION = 1
    MISCONFIGURATION = 2


class Walk12:
    """A walk's result, reused from fault to fault."""

    __slots__ = ("entries", "found", "leaf_level", "rights", "tables")

    def __init__(self) -> None:
        self.found = Found.PAGE
        # Indexed by level, TOP down to leaf_level: the table's l1_pa and the entry in it.
        self.tables = [0] * (ept.TOP + 1)
        self.entries = [0] * (ept.TOP + 1)
        self.leaf_level = 0
        self.rights = 0

    @property
    def leaf(self) -> int:
        """The entry that the walk ended at."""
        return self.entries[self.leaf_level]

    def l1_pa(self, l2_pa: int) -> int:
        """Where `l2_pa` lies, after a walk that found a page."""
        size = ept.SIZE[self.leaf_level]
        return (self.leaf & ept.ADDRESS & -size) | (l2_pa & (size - 1))


class Ept12Walker:
    """Walks ept12s in L1's memory. `execute_only` and `physical_bits` are what L1's processor offers."""

    def __init__(self, l1: L1Memory, physical_bits: int, execute_only: bool) -> None:
        self.l1 = l1
        self.physical_bits: Final = physical_bits
        self.execute_only: Final = execute_only

    def walk(self, out: Walk12, eptp12: int, l2_pa: int, access: int) -> Walk12:
        """Translates `l2_pa` for an access with the rights `access`; the answer lies in `out`."""
        load = self.l1.load64
        table = eptp12 & ept.ADDRESS
        rights = ept.RIGHTS
        out.found = Found.PAGE
        level = ept.TOP
        if l2_pa >> 48:
            # Beyond what four levels translate (SDM 29.3.2): an EPT violation at the first entry.
            out.leaf_level, out.rights, out.found = level, 0, Found.VIOLATION
            return out
        while True:
            entry = load(table + (l2_pa >> ept.SHIFT[level] & 511) * 8)
            out.tables[level] = table
            out.entries[level] = entry
            rights &= entry
            if not entry & ept.RIGHTS:
                out.found = Found.VIOLATION
                break
            if ept.misconfigured(entry, level, self.physical_bits, self.execute_only):
                out.found = Found.MISCONFIGURATION
                break
            if ept.is_leaf(entry, level):
                if access & ~rights & ept.RIGHTS:
                    out.found = Found.VIOLATION
                break
            table = entry & ept.ADDRESS
            level -= 1
        out.leaf_level = level
        out.rights = rights & ept.RIGHTS
        return out
