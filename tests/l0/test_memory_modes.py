"""The three memory modes against each other: one L2, its memory walked through each.

L2's page tables lie in L2-physical memory; ept12 says where that lies in L1's. Multi-dimensional paging walks
L2's tables through ept02. In the shadow modes L1 has folded both into a shadow table, as KVM does: L2 runs on
that through ept01, or on its mirror without EPT. For each address and access, all must find the same
host-physical address, or all none.
"""

from __future__ import annotations

import random

import pytest

from turtles.l0.mmu import ept
from turtles.l0.mmu import paging as P
from turtles.l0.mmu.ept01 import Ept01
from turtles.l0.mmu.ept02 import Ept02, Resolve, Tactic
from turtles.l0.mmu.ept12 import Ept12Walker
from turtles.l0.mmu.protection import Protection
from turtles.l0.mmu.shadow_tables import ShadowTables
from turtles.l0.mmu.tracking import WriteTracking
from turtles.l0.pool import PagePool
from turtles.l0.ports import RamRegion
from turtles.l0.ram import L1Memory
from turtles.l0.vmcs import bits as X
from turtles.silicon import Memory

MIB, GIB = 1 << 20, 1 << 30
LOW, HIGH, HIGH_L1 = 32 * MIB, 8 * MIB, 4 * GIB
PHYSICAL_BITS = 40
L2_PAGES = 256  # L2's memory
ACCESSES = [0, P.ERROR_WRITE, P.ERROR_USER, P.ERROR_USER | P.ERROR_WRITE, P.ERROR_FETCH, P.ERROR_FETCH | 4]
LINEARS = [
    base + page * 4096
    for base in (0, 0x7F00_0000_0000, 0xFFFF_8000_0000_0000)
    for page in (0, 1, 511, 512, 900)
]


class Tower:
    """L1's memory with an L2 in it, and what L0 makes of it in each mode."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.memory = Memory(LOW + HIGH, pool=1024 * 4096)
        regions = (RamRegion(0, LOW, 0), RamRegion(HIGH_L1, HIGH, LOW))
        self.l1 = L1Memory(self.memory, regions)
        self.pool = PagePool(self.memory, self.memory.size, self.memory.total)
        self.next_l1 = 16 * MIB  # pages that L1 uses for its own tables
        # L2-physical page -> L1-physical page, scattered over both regions; a few are missing or read-only.
        places = [n << 12 for n in range(2048)] + [HIGH_L1 + (n << 12) for n in range(2048)]
        self.rng.shuffle(places)
        self.l1_of = {page << 12: places[page] for page in range(L2_PAGES)}
        self.rights = {page << 12: self.rng.choice([7, 7, 7, 5]) for page in range(64, L2_PAGES)}
        self.ept12 = self.table()
        for l2_pa, l1_pa in self.l1_of.items():
            self.put_ept12(l2_pa, l1_pa | self.rights.get(l2_pa, 7) | ept.WRITE_BACK << 3)
        self.cr3 = 0  # L2-physical; its tables take the first pages, which are always writable
        self.next_l2 = 0x1000
        self.registers = P.Registers(
            cr0=X.CR0_PE | X.CR0_PG | X.CR0_WP,
            cr3=self.cr3,
            cr4=X.CR4_PAE,
            efer=X.EFER_LMA | X.EFER_LME | X.EFER_NXE,
            rflags=2,
            cpl=0,
            physical_bits=PHYSICAL_BITS,
        )
        for linear in LINEARS:
            self.map_l2(linear)
        self.shadow12 = self.fold()
        self.ept01 = Ept01(self.pool, regions)
        self.tracking = WriteTracking(self.ept01, lambda eptp: None)
        protection = Protection() if seed % 2 else None
        self.mirror = ShadowTables(
            self.pool, self.l1, PHYSICAL_BITS, lambda: 1, lambda vpid: None, protection
        )

    def walker(self) -> Ept12Walker:
        return Ept12Walker(self.l1, PHYSICAL_BITS, execute_only=True)

    def table(self) -> int:
        self.next_l1 += 4096
        return self.next_l1

    def put_ept12(self, l2_pa: int, leaf: int) -> None:
        table = self.ept12
        for level in range(4, 1, -1):
            at = table + (l2_pa >> ept.SHIFT[level] & 511) * 8
            if not self.l1.load64(at):
                self.l1.write(at, (self.table() | 7).to_bytes(8, "little"))
            table = self.l1.load64(at) & ept.ADDRESS
        self.l1.write(table + (l2_pa >> 12 & 511) * 8, leaf.to_bytes(8, "little"))

    def load_l2(self, l2_pa: int) -> int:
        return self.l1.load64(self.l1_of[l2_pa & ~0xFFF] | l2_pa & 0xFFF)

    def put_l2(self, l2_pa: int, value: int) -> None:
        self.l1.write(self.l1_of[l2_pa & ~0xFFF] | l2_pa & 0xFFF, value.to_bytes(8, "little"))

    def map_l2(self, linear: int) -> None:
        """L2 maps a page with random rights, flags as if it had been used."""
        table = self.cr3
        for level in range(4, 1, -1):
            at = table + (linear >> ept.SHIFT[level] & 511) * 8
            if not self.load_l2(at):
                self.put_l2(at, self.next_l2 | self.rng.choice([7, 7, 7, 3]) | P.ACCESSED)
                self.next_l2 += 4096
            table = self.load_l2(at) & P.ADDRESS
        flags = self.rng.choice([7, 7, 5, 3, 1, 0]) | self.rng.choice([0, P.NO_EXECUTE])
        page = self.rng.randrange(64, L2_PAGES) << 12
        self.put_l2(table + (linear >> 12 & 511) * 8, page | flags | P.ACCESSED | P.DIRTY)

    def fold(self) -> int:
        """L1's shadow table: L2-linear to L1-physical, with the rights of both."""
        root = self.table()
        for linear in LINEARS:
            try:
                found = P.walk(self.registers, linear, 0, self.load_l2)
            except P.PageFault:
                continue
            table = root
            for level in range(4, 1, -1):
                at = table + (linear >> ept.SHIFT[level] & 511) * 8
                if not self.l1.load64(at):
                    self.l1.write(at, (self.table() | 7).to_bytes(8, "little"))
                table = self.l1.load64(at) & P.ADDRESS
            flags, rights = 7, self.rights.get(found.physical, 7)
            for step in found.steps:
                flags = flags & step.entry | (flags | step.entry) & P.NO_EXECUTE
            if not rights & ept.WRITE:
                flags &= ~P.WRITABLE
            leaf = self.l1_of[found.physical] | flags | P.ACCESSED | P.DIRTY
            self.l1.write(table + (linear >> 12 & 511) * 8, leaf.to_bytes(8, "little"))
        return root

    def load_host(self, host_pa: int) -> int:
        return self.memory.load(host_pa & ~7)

    # --- the modes: where an access of L2 goes, with every fault answered as L0 does ---

    def through_ept(self, eptp: int, pa: int, need: int) -> int | None:
        """What silicon finds in an EPT."""
        table, rights = eptp & ept.ADDRESS, ept.RIGHTS
        for level in range(4, 0, -1):
            entry = self.memory.load(table + (pa >> ept.SHIFT[level] & 511) * 8)
            rights &= entry
            if not entry & ept.RIGHTS:
                return None
            if ept.is_leaf(entry, level):
                break
            table = entry & ept.ADDRESS
        if need & ~rights:
            return None
        return (entry & ept.ADDRESS & -ept.SIZE[level]) + pa % ept.SIZE[level]

    def multidim(self, ept02: Ept02, linear: int, access: int) -> int | None:
        def host(l2_pa: int, need: int) -> int | None:
            found = self.through_ept(ept02.eptp, l2_pa, need)
            if found is None:
                if ept02.resolve(l2_pa, need).what is not Resolve.MAPPED:
                    return None
                found = self.through_ept(ept02.eptp, l2_pa, need)
                assert found is not None, "resumed, and would fault again"
            return found

        def load(l2_pa: int) -> int:
            host_pa = host(l2_pa, ept.READ)
            assert host_pa is not None
            return self.load_host(host_pa)

        try:
            found = P.walk(self.registers, linear, access, load)
        except P.PageFault:
            return None
        need = ept.WRITE if access & P.ERROR_WRITE else ept.EXECUTE if access & P.ERROR_FETCH else ept.READ
        return host(found.physical, need)

    def shadow_on_ept(self, linear: int, access: int) -> int | None:
        def load(l1_pa: int) -> int:
            host_pa = self.through_ept(self.ept01.eptp, l1_pa, ept.READ)
            assert host_pa is not None
            return self.load_host(host_pa)

        try:
            found = P.walk(self.registers._replace(cr3=self.shadow12), linear, access, load)
        except P.PageFault:
            return None
        return self.through_ept(self.ept01.eptp, found.physical, ept.READ)

    def shadow_on_shadow(self, linear: int, access: int) -> int | None:
        r = self.registers._replace(cr3=self.shadow12)
        root = self.mirror.root(r)
        on_mirror = r._replace(cr3=root.host_pa)
        for _ in range(2):
            try:
                return P.walk(on_mirror, linear, access, self.load_host).physical
            except P.PageFault:
                pass
            try:
                found = P.walk(r, linear, access, self.l1.load64)
            except P.PageFault:
                return None
            P.set_flags(r, found, bool(access & P.ERROR_WRITE), self.l1.set_bits64)
            assert self.mirror.fill(root, linear, found, r, bool(access & P.ERROR_WRITE)) == 0
        raise AssertionError("faults for ever")


@pytest.mark.parametrize("seed", range(6))
def test_every_mode_finds_the_same_memory_of_l2(seed: int) -> None:
    tower = Tower(seed)
    ept02s = [
        Ept02(tower.pool, tower.l1, tower.walker(), tower.ept12, lambda eptp: None, tactic, tower.tracking)
        for tactic in Tactic
    ]
    found = 0
    for linear in LINEARS:
        for access in ACCESSES:
            wanted = tower.shadow_on_ept(linear, access)
            assert tower.shadow_on_shadow(linear, access) == wanted
            for ept02 in ept02s:
                assert tower.multidim(ept02, linear, access) == wanted
            found += wanted is not None
    assert 0 < found < len(LINEARS) * len(ACCESSES), "some go through, some do not"
