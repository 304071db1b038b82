"""Walk of a guest's own page tables, in Python: for the few operands that L0 itself must read or write.

All modes (none, 32-bit, PAE, 4-level), accessed and dirty flags set as a processor does (SDM 4.3 to 4.8).
Reserved bits, SMEP and protection keys are not looked at: these are data accesses of kernels, with PKU not
offered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from turtles.l0.vmcs import bits as X

PRESENT: Final = 1
WRITABLE: Final = 2
USER: Final = 4
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
LARGE: Final = 1 << 7
ADDRESS: Final = 0x000F_FFFF_FFFF_F000

ERROR_PRESENT: Final = 1
ERROR_WRITE: Final = 2
ERROR_USER: Final = 4

Load = Callable[[int], int]  # an aligned 64-bit load from the guest's physical memory
SetBits = Callable[[int, int], None]


class Registers(NamedTuple):
    """What a translation depends on."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    rflags: int
    cpl: int
    pdptes: tuple[int, int, int, int] = (0, 0, 0, 0)


class PageFault(Exception):
    """#PF: the linear address and the error code (SDM 4.7)."""

    def __init__(self, linear: int, error: int) -> None:
        super().__init__(linear, error)
        self.linear = linear
        self.error = error


def translate(r: Registers, linear: int, write: bool, load: Load, set_bits: SetBits) -> int:
    """Physical address of `linear`, or PageFault."""
    if not r.cr0 & X.CR0_PG:
        return linear & 0xFFFF_FFFF
    error = (ERROR_WRITE if write else 0) | (ERROR_USER if r.cpl == 3 else 0)
    long_entries = bool(r.cr4 & X.CR4_PAE)
    if r.efer & X.EFER_LMA:
        level, table = 4, r.cr3 & ADDRESS
    elif long_entries:
        pdpte = r.pdptes[linear >> 30 & 3]
        if not pdpte & PRESENT:
            raise PageFault(linear, error)
        level, table = 2, pdpte & ADDRESS
    else:
        level, table = 2, r.cr3 & 0xFFFF_F000
    rights = WRITABLE | USER
    path: list[int] = []
    while True:
        if long_entries:
            shift = 12 + 9 * (level - 1)
            at = table + (linear >> shift & 511) * 8
            entry = load(at)
        else:
            shift = 12 + 10 * (level - 1)
            at = table + (linear >> shift & 1023) * 4
            entry = load(at & ~7) >> 8 * (at & 4) & 0xFFFF_FFFF
        if not entry & PRESENT:
            raise PageFault(linear, error)
        rights &= entry
        path.append(at)
        if level == 1 or (level < 4 and entry & LARGE and (long_entries or r.cr4 & X.CR4_PSE)):
            break
        table = entry & ADDRESS
        level -= 1
    if not _permitted(r, rights, write):
        raise PageFault(linear, error | ERROR_PRESENT)
    for step, at in enumerate(path):
        bits = ACCESSED | (DIRTY if write and step == len(path) - 1 else 0)
        set_bits(at & ~7, bits << 8 * (at & 4 if not long_entries else 0))
    size = 1 << shift
    frame = entry & ADDRESS & -size
    if not long_entries and level == 2:
        frame |= (entry & 0x1F_E000) << 19  # PSE-36: bits 20:13 are address bits 39:32
        frame &= ~0xFFFF_FFFF | 0xFFC0_0000
    return frame | linear & (size - 1)


def _permitted(r: Registers, rights: int, write: bool) -> bool:
    """SDM 4.6.1 for data."""
    user_page = bool(rights & USER)
    if r.cpl == 3:
        return user_page and (not write or bool(rights & WRITABLE))
    if user_page and r.cr4 & X.CR4_SMAP and not r.rflags & X.RFLAGS_AC:
        return False
    return not write or bool(rights & WRITABLE) or not r.cr0 & X.CR0_WP
