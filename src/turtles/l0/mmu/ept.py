"""Format of EPT paging-structure entries and EPT pointers (SDM 29.3.2), and what makes one misconfigured.

Pure functions on integers, for ept01, ept12 and ept02 alike. It walks nothing.
"""

from __future__ import annotations

from typing import Final

from turtles.l0.mmu import paging

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
RIGHTS: Final = 7
MEMORY_TYPE: Final = 7 << 3
WRITE_BACK: Final = 6
IGNORE_PAT: Final = 1 << 6
LARGE: Final = 1 << 7
ACCESSED: Final = 1 << 8
DIRTY: Final = 1 << 9
ADDRESS: Final = 0x000F_FFFF_FFFF_F000
ENTRIES: Final = 512
TOP: Final = 4  # level of the PML4 table; 3 PDPT, 2 PD, 1 PT

# By level: position of the index in an address, and bytes that one entry maps.
SHIFT: Final = paging.SHIFT
SIZE: Final = paging.SIZE

EPTP_WALK_4: Final = 3 << 3
EPTP_ACCESSED_DIRTY: Final = 1 << 6

# Exit qualification of an EPT violation (SDM table 28-7).
QUAL_ACCESS: Final = 7
QUAL_RIGHTS_SHIFT: Final = 3
QUAL_RIGHTS: Final = 7 << 3
QUAL_LINEAR_VALID: Final = 1 << 7
QUAL_FINAL: Final = 1 << 8  # clear: the access was to a guest paging-structure entry
QUAL_NMI_UNBLOCKED: Final = 1 << 12

_BAD_TYPES: Final = frozenset((2, 3, 7))


def is_leaf(entry: int, level: int) -> bool:
    """Whether a present entry maps a page (SDM 29.3.2: bit 7 of a PDPTE or PDE, and every PTE)."""
    return level == 1 or (level < TOP and bool(entry & LARGE))


def misconfigured(entry: int, level: int, physical_bits: int, execute_only: bool = True) -> bool:
    """Whether a present entry breaks SDM 29.3.3.1: rights, reserved bits, or memory type."""
    rights = entry & RIGHTS
    if rights & (READ | WRITE) == WRITE or (rights == EXECUTE and not execute_only):
        return True
    if entry & ADDRESS & -1 << physical_bits:
        return True
    if not is_leaf(entry, level):
        # PML4E: bits 7:3; PDPTE and PDE that reference a table: bits 6:3 (bit 7 is clear).
        return bool(entry & (0xF8 if level == TOP else 0x78))
    if level > 1 and entry & (SIZE[level] - 1) & ~0xFFF:
        return True
    return entry >> 3 & 7 in _BAD_TYPES


def valid_eptp(eptp: int, physical_bits: int, accessed_dirty: bool) -> bool:
    """The checks of SDM 27.2.1.1 on an EPT pointer: memory type UC or WB, four levels, reserved bits."""
    if eptp & 7 not in (0, WRITE_BACK) or eptp & 0x38 != EPTP_WALK_4:
        return False
    if eptp & EPTP_ACCESSED_DIRTY and not accessed_dirty:
        return False
    return not eptp & 0xF80 and not eptp >> physical_bits
