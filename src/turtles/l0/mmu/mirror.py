"""One table of a mirror (`shadow_tables`), and what decides how a guest's table is mirrored."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from turtles.l0.mmu import paging as P
from turtles.l0.ports import Slots
from turtles.l0.ram import PAGE
from turtles.l0.vmcs import bits as X

if TYPE_CHECKING:
    from turtles.l0.mmu.shadow_tables import ShadowTables


class Role(NamedTuple):
    """What decides how a guest's table is mirrored, beside its contents (SDM table 4-1)."""

    paging: bool
    long: bool
    pae: bool  # 64-bit entries; true with `long` as well
    pse: bool
    no_execute: bool
    protects: bool  # CR0.WP: without it supervisors write read-only pages, and pages count as dirty once used

    @classmethod
    def of(cls, r: P.Registers) -> Role:
        """The role for these registers."""
        if not r.cr0 & X.CR0_PG:
            return cls(False, False, True, False, False, True)
        pae = bool(r.cr4 & X.CR4_PAE)
        return cls(
            True,
            bool(r.efer & X.EFER_LMA),
            pae,
            pae or bool(r.cr4 & X.CR4_PSE),
            bool(r.efer & X.EFER_NXE),
            bool(r.cr0 & X.CR0_WP),
        )


class Table:
    """One table of the mirror, and the guest's table that it follows."""

    __slots__ = (
        "children",
        "entries",
        "epoch",
        "family",
        "flushed",
        "host_pa",
        "image",
        "l1_pa",
        "level",
        "origins",
        "part",
        "role",
        "source",
        "still",
        "tracked",
        "vpid",
    )

    def __init__(
        self,
        family: ShadowTables,
        host_pa: int,
        entries: Slots,
        level: int,
        l1_pa: int,
        part: int,
        role: Role,
        source: int,
    ) -> None:
        self.family = family
        self.tracked = False
        self.still = 0  # how many flushes in a row found it unchanged
        self.host_pa = host_pa
        self.entries = entries
        self.level = level
        self.l1_pa = l1_pa
        self.part = part  # which piece of a 32-bit table, which has twice as many entries
        self.role = role
        self.source = source  # host address of the guest's table; -1 where none is followed
        self.epoch = -1
        # Of a root: its tag in silicon's TLBs, and how many reductions these know of.
        self.vpid = 0
        self.flushed = 0
        self.children: dict[int, Table] = {}
        # The guest's entries as last looked at, in the 64-bit format.
        self.image = bytearray(PAGE if source >= 0 else 0)
        self.origins = memoryview(self.image).cast("Q")
