"""Walk of a guest's own page tables, in Python: for operands that L0 itself accesses, and for shadowing.

All modes (none, 32-bit, PAE, 4-level), with the error codes of a page fault (SDM 4.7), reserved bits, SMEP
and SMAP; accessed and dirty flags set as a processor does (4.8). Entries come in the 64-bit format, 32-bit
ones widened. Not looked at: protection keys, which are not offered.
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
# By level, for EPT too: position of the index in an address, and bytes that one entry maps.
SHIFT: Final = (0, 12, 21, 30, 39)
SIZE: Final = (0, 1 << 12, 1 << 21, 1 << 30, 1 << 39)
NO_EXECUTE: Final = 1 << 63
ADDRESS: Final = 0x000F_FFFF_FFFF_F000

ERROR_PRESENT: Final = 1
ERROR_WRITE: Final = 2
ERROR_USER: Final = 4
ERROR_RESERVED: Final = 8
ERROR_FETCH: Final = 16

# Address bits of an entry that are reserved where it maps a large page, by level (tables 4-15 and 4-17).
LARGE_RESERVED: Final = (0, 0, 0x1F_E000, 0x3FFF_E000, 0)

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
    physical_bits: int = 52


class PageFault(Exception):
    """#PF: the linear address and the error code (SDM 4.7)."""

    def __init__(self, linear: int, error: int) -> None:
        super().__init__(linear, error)
        self.linear = linear
        self.error = error


class Step(NamedTuple):
    """One entry of a walk: the level of its table, where it lies, its value in the 64-bit format."""

    level: int
    at: int
    entry: int


class Walk(NamedTuple):
    """A walk that was allowed: every entry used (PDPTEs, which are registers, left out), and the page."""

    steps: list[Step]
    physical: int  # where the linear address lies
    shift: int  # bits of the page's size


def reserved(r: Registers) -> int:
    """Bits that are reserved in every present entry of the 64-bit format (SDM 4.4.2, 4.5.4)."""
    bits = ADDRESS & -1 << r.physical_bits
    if not r.efer & X.EFER_NXE:
        bits |= NO_EXECUTE
    return bits if r.efer & X.EFER_LMA else bits | 0x7FF << 52


def widened(entry: int, level: int, cr4: int) -> int:
    """A 32-bit entry in the 64-bit format; a 4-MiB page keeps bit 21 where PSE-36 reserves it (table 4-4)."""
    if level == 2:
        if not cr4 & X.CR4_PSE:
            return entry & ~LARGE
        if entry & LARGE:
            return entry & 0xFFC0_01FF | (entry & 0x1F_E000) << 19 | entry & 1 << 21
    return entry


def walk(r: Registers, linear: int, access: int, load: Load) -> Walk:
    """Translates `linear` for an access described as in an error code: WRITE, USER, FETCH. Or PageFault."""
    if r.efer & X.EFER_LMA:
        level, table = 4, r.cr3 & ADDRESS
        wide, bits = True, 9
    elif r.cr4 & X.CR4_PAE:
        pdpte = r.pdptes[linear >> 30 & 3]
        if not pdpte & PRESENT:
            raise PageFault(linear, access)
        level, table = 2, pdpte & ADDRESS
        wide, bits = True, 9
    else:
        level, table = 2, r.cr3 & 0xFFFF_F000
        wide, bits = False, 10
    always = reserved(r) if wide else 0
    rights, denied = WRITABLE | USER, 0
    steps = []
    while True:
        shift = 12 + bits * (level - 1)
        if wide:
            at = table + (linear >> shift & 511) * 8
            entry = load(at)
        else:
            at = table + (linear >> shift & 1023) * 4
            entry = widened(load(at & ~7) >> 8 * (at & 4) & 0xFFFF_FFFF, level, r.cr4)
        if not entry & PRESENT:
            raise PageFault(linear, access)
        leaf = level == 1 or bool(entry & LARGE)
        bad = always
        if leaf and level > 1:
            bad |= (LARGE_RESERVED[level] if wide else 1 << 21) if level < 4 else LARGE
        if entry & bad:
            raise PageFault(linear, access | ERROR_PRESENT | ERROR_RESERVED)
        rights &= entry
        denied |= entry & NO_EXECUTE
        steps.append(Step(level, at, entry))
        if leaf:
            break
        table = entry & ADDRESS
        level -= 1
    if not _permitted(r, rights, bool(denied), access):
        raise PageFault(linear, access | ERROR_PRESENT)
    size = 1 << shift
    return Walk(steps, entry & ADDRESS & -size | linear & (size - 1), shift)


def _permitted(r: Registers, rights: int, no_execute: bool, access: int) -> bool:
    """SDM 4.6.1."""
    user_page = bool(rights & USER)
    if access & ERROR_FETCH and no_execute:
        return False
    if access & ERROR_USER:
        return user_page and (not access & ERROR_WRITE or bool(rights & WRITABLE))
    if user_page:
        if access & ERROR_FETCH:
            return not r.cr4 & X.CR4_SMEP
        if r.cr4 & X.CR4_SMAP and not r.rflags & X.RFLAGS_AC:
            return False
    return not access & ERROR_WRITE or bool(rights & WRITABLE) or not r.cr0 & X.CR0_WP


def set_flags(r: Registers, found: Walk, dirty: bool, set_bits: SetBits) -> None:
    """Accessed in every entry used, dirty in the last one; what is set already costs no store."""
    last = len(found.steps) - 1
    wide = bool(r.cr4 & X.CR4_PAE)
    for number, step in enumerate(found.steps):
        wanted = ACCESSED | DIRTY if dirty and number == last else ACCESSED
        if wanted & ~step.entry:
            set_bits(step.at & ~7, wanted << (0 if wide else 8 * (step.at & 4)))


def translate(r: Registers, linear: int, write: bool, load: Load, set_bits: SetBits) -> int:
    """Physical address of `linear` for a data access, or PageFault."""
    if not r.cr0 & X.CR0_PG:
        return linear & 0xFFFF_FFFF
    access = (ERROR_WRITE if write else 0) | (ERROR_USER if r.cpl == 3 else 0)
    found = walk(r, linear, access, load)
    set_flags(r, found, write, set_bits)
    return found.physical
