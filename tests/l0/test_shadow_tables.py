"""The mirror of a guest's page tables against a walk of those: random tables, accesses, changes, flushes.

After a flush nothing may be mirrored that the guest's tables do not allow, and every access that they allow
must succeed after at most one fill. All formats: 4-level, PAE, 32-bit, and none.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turtles.l0.mmu import paging as P
from turtles.l0.mmu.mirror import Table
from turtles.l0.mmu.protection import Protection
from turtles.l0.mmu.shadow_tables import ShadowTables
from turtles.l0.pool import PagePool, PoolExhausted
from turtles.l0.ports import RamRegion
from turtles.l0.ram import L1Memory
from turtles.l0.vmcs import bits as X
from turtles.silicon import Memory

MIB, GIB = 1 << 20, 1 << 30
LOW, HIGH, HIGH_L1 = 16 * MIB, 8 * MIB, 1 * GIB
PHYSICAL_BITS = 40
TABLES = 0x10_0000
LONG, PAE, NARROW, NONE = "4-level", "PAE", "32-bit", "none"
FORMATS = [LONG, PAE, NARROW, NONE]
EVERY_ACCESS = [
    0,
    P.ERROR_WRITE,
    P.ERROR_USER,
    P.ERROR_USER | P.ERROR_WRITE,
    P.ERROR_FETCH,
    P.ERROR_FETCH | 4,
]


class World:
    """A guest's tables in L1's memory, and their mirror."""

    def __init__(
        self, kind: str, wp: bool = True, pool_pages: int = 512, shift: int = 0, tracked: bool = False
    ) -> None:
        self.kind = kind
        self.protection = Protection() if tracked else None
        self.memory = Memory(LOW + HIGH + 2 * MIB, pool=pool_pages * 4096)
        self.l1 = L1Memory(self.memory, (RamRegion(0, LOW, 0), RamRegion(HIGH_L1, HIGH, LOW + shift)))
        self.pool = PagePool(self.memory, self.memory.size, self.memory.total)
        self.flushes = 0
        self.tables = ShadowTables(
            self.pool, self.l1, PHYSICAL_BITS, itertools.count(1).__next__, self.flushed, self.protection
        )
        self.next = TABLES
        self.top = self.new()
        self.registers = P.Registers(
            cr0=X.CR0_PE | (0 if kind == NONE else X.CR0_PG) | (X.CR0_WP if wp else 0),
            cr3=self.top,
            cr4=(X.CR4_PSE if kind == NARROW else X.CR4_PAE) if kind != NONE else 0,
            efer=X.EFER_NXE | (X.EFER_LMA | X.EFER_LME if kind == LONG else 0) if kind != NARROW else 0,
            rflags=2,
            cpl=0,
            physical_bits=PHYSICAL_BITS,
        )
        if kind == PAE:
            pdptes = (self.new() | 1, self.new() | 1, self.new() | 1, self.new() | 1)
            self.registers = self.registers._replace(pdptes=pdptes)

    def flushed(self, vpid: int) -> None:
        self.flushes += 1

    def new(self) -> int:
        self.next += 4096
        return self.next

    def map(self, linear: int, physical: int, flags: int, level: int = 1) -> None:
        """The guest maps a page, making tables on the way."""
        width, bits = (4, 10) if self.kind == NARROW else (8, 9)
        above, table = (4, self.top) if self.kind == LONG else (2, self.top)
        if self.kind == PAE:
            table = self.registers.pdptes[linear >> 30 & 3] & P.ADDRESS
        while above > level:
            at = table + (linear >> 12 + bits * (above - 1) & (1 << bits) - 1) * width
            entry = int.from_bytes(self.l1.read(at, width), "little")
            if not entry & P.PRESENT or entry & P.LARGE:
                entry = self.new() | P.PRESENT | P.WRITABLE | P.USER
                self.store(at, entry.to_bytes(width, "little"))
            table = entry & P.ADDRESS
            above -= 1
        at = table + (linear >> 12 + bits * (level - 1) & (1 << bits) - 1) * width
        entry = physical | flags | (P.LARGE if level > 1 else 0)
        self.store(at, (entry & (1 << 8 * width) - 1).to_bytes(width, "little"))

    def store(self, l1_pa: int, data: bytes) -> None:
        """The guest's store, which exits where the page is tracked."""
        self.l1.write(l1_pa, data)
        host_pa = self.l1.host_pa(l1_pa)
        if self.protection is not None and host_pa in self.protection:
            self.protection.stored(host_pa, len(data))

    def tracked(self, host_pa: int) -> bool:
        return self.protection is not None and host_pa in self.protection

    def check_protected(self) -> None:
        """No mirror maps a tracked page writable."""
        pending = [(self.root(), 6)]
        while pending:
            table, rights = pending.pop()
            for index, entry in enumerate(table.entries):
                here = rights if table.level == 3 and not table.role.long else rights & entry
                if not entry & P.PRESENT:
                    continue
                if table.level > 1 and not entry & P.LARGE:
                    pending.append((table.children[index], here))
                elif here & P.WRITABLE:
                    size = 1 << 12 + 9 * (table.level - 1)
                    base = entry & P.ADDRESS & -size
                    tables = range(self.l1.host_pa(TABLES), self.l1.host_pa(self.next) + 4096, 4096)
                    assert not any(self.tracked(t) for t in tables if base <= t < base + size)

    def allowed(self, linear: int, access: int) -> P.Walk | None:
        """What the guest's tables say."""
        try:
            return P.walk(self.registers, linear, access, self.l1.load64)
        except P.PageFault:
            return None

    def root(self) -> Table:
        return self.tables.root(self.registers)

    def mirrored(self, linear: int, access: int) -> int | None:
        """Where silicon would find the page, by a walk of its own; none where it would fault."""
        root = self.root()
        table, level, rights, nx = root.host_pa, root.level, 6, 0
        while True:
            entry = self.memory.load(table + (linear >> 12 + 9 * (level - 1) & 511) * 8)
            if not entry & 1:
                return None
            assert not entry & P.ADDRESS & -1 << PHYSICAL_BITS
            if root.level == 3 and level == 3:
                assert not entry & 0x1E6, "a PDPTE with reserved bits"
            else:
                rights &= entry
                nx |= entry >> 63
            if level == 1 or (level < 4 and entry & P.LARGE):
                break
            table = entry & P.ADDRESS
            assert table >= self.memory.size, "a table of the mirror outside the pool"
            level -= 1
        if (access & P.ERROR_FETCH and nx) or (access & P.ERROR_USER and not rights & 4):
            return None
        if access & P.ERROR_WRITE and not rights & 2:
            supervisor = not access & P.ERROR_USER
            if not (supervisor and not self.registers.cr0 & X.CR0_WP):
                return None
        size = 1 << 12 + 9 * (level - 1)
        return (entry & P.ADDRESS & -size) + linear % size

    def access(self, linear: int, access: int) -> int | None:
        """One access with what L0 does about it: where it goes, or none where the guest faults."""
        write = bool(access & P.ERROR_WRITE)
        for _ in range(2):
            host_pa = self.mirrored(linear, access)
            if host_pa is not None:
                return host_pa
            found = None
            if self.kind != NONE:
                found = self.allowed(linear, access)
                if found is None:
                    return None
                wp = self.registers.cr0 & X.CR0_WP
                P.set_flags(self.registers, found, write or not wp, self.l1.set_bits64)
            here = self.l1.host_pa(linear & 0xFFFF_FFFF if found is None else found.physical)
            if write and self.tracked(here):
                return here  # L0 does the store
            missing = self.tables.fill(self.root(), linear, found, self.registers, write)
            assert missing >= 0, "nothing changed, and it would fault again"
            if missing:
                return -missing
        raise AssertionError("faults for ever")

    def check(self, linear: int, access: int) -> None:
        """The mirror gives no more than the guest's tables, after a flush."""
        host_pa = self.mirrored(linear, access)
        if host_pa is None:
            return
        if self.kind == NONE:
            assert host_pa == self.l1.host_pa(linear)
            return
        found = self.allowed(linear, access)
        assert found is not None, f"{linear:#x} is in the mirror alone"
        assert self.l1.host_pa(found.physical) == host_pa
        leaf = self.allowed(linear, access & ~P.ERROR_WRITE | access)
        assert leaf is not None and all(step.entry & P.ACCESSED for step in leaf.steps)
        if access & P.ERROR_WRITE:
            assert leaf.steps[-1].entry & P.DIRTY


PAGES = (0, 1, 2, 511, 512, 513, 1024, 5000, 1 << 18, (1 << 18) + 1, 3 << 18)
ADDRESSES = [page * 4096 + offset for page in PAGES for offset in (0, 0x123)]


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    kind=st.sampled_from(FORMATS),
    wp=st.booleans(),
    shift=st.sampled_from([0, 4096, 2 * MIB]),
    tracked=st.booleans(),
)
def test_random_tables_accesses_and_flushes(
    seed: int, kind: str, wp: bool, shift: int, tracked: bool
) -> None:
    rng = random.Random(seed)
    world = World(kind, wp, shift=shift, tracked=tracked)
    for _ in range(50):
        linear = rng.choice(ADDRESSES)
        act = rng.random()
        if act < 0.35 and kind != NONE:
            level = rng.choice([1, 1, 1, 2])
            size = {1: 4096, 2: 4 * MIB if kind == NARROW else 2 * MIB}[level]
            base = rng.choice([0, HIGH_L1, 3 * GIB]) + rng.randrange(4) * size
            flags = rng.choice([7, 7, 3, 5, 1, 0, 2]) | rng.choice([0, P.ACCESSED, P.ACCESSED | P.DIRTY])
            if kind != NARROW:
                flags |= rng.choice([0, 0, P.NO_EXECUTE, 1 << 45])
            world.map(linear & -size, base, flags, level)
            if rng.random() < 0.5:
                world.tables.forget()
                for address in ADDRESSES:
                    for access in EVERY_ACCESS:
                        world.check(address, access)
            else:
                world.tables.invalidate(world.root(), linear)
                for access in EVERY_ACCESS:
                    world.check(linear, access)
        else:
            world.tables.forget()
            access = rng.choice(EVERY_ACCESS)
            host_pa = world.access(linear, access)
            found = world.allowed(linear, access) if kind != NONE else None
            if kind == NONE:
                here = world.l1.host_pa(linear)
                assert host_pa == (here if here >= 0 else -linear)
            elif found is None:
                assert host_pa is None
            else:
                here = world.l1.host_pa(found.physical)
                assert host_pa == (here if here >= 0 else -found.physical)
        if tracked and rng.random() < 0.2:
            world.check_protected()


@pytest.mark.parametrize("kind", [LONG, PAE, NARROW])
def test_a_table_that_stands_still_is_tracked_and_stores_to_it_are_followed_at_once(kind: str) -> None:
    world = World(kind, tracked=True)
    used = P.ACCESSED | P.DIRTY
    size = 4 * MIB if kind == NARROW else 2 * MIB
    world.map(size, 0, 7 | used, level=2)  # the large page holds the tables
    world.map(0x3000, 0x5000, 7 | used)
    leaf = world.next
    assert world.access(0x3123, P.ERROR_WRITE) == 0x5123
    assert world.mirrored(size + leaf, P.ERROR_WRITE) is None or not world.tracked(leaf)
    assert world.access(size + leaf, P.ERROR_WRITE) == leaf
    for _ in range(6):
        world.tables.forget()
        world.root()
    assert world.tracked(leaf) and world.tracked(world.top) == (kind != PAE)
    world.check_protected()
    assert world.mirrored(size + leaf, P.ERROR_WRITE) is None, "the page round it is cut"
    assert world.access(size + leaf, 0) == leaf
    assert world.access(size + 0x7000, P.ERROR_WRITE) == 0x7000
    world.check_protected()
    flushes = world.flushes
    world.map(0x3000, 0x6000, 7 | used)
    assert world.mirrored(0x3123, P.ERROR_WRITE) == 0x6123, "without a flush of the guest's"
    assert world.flushes > flushes, "silicon may know the old one"
    for page in range(8):
        world.map(page << 12, 0x6000, 7 | used)
    assert not world.tracked(leaf), "given up: comparing it costs less"
    assert world.access(size + leaf, P.ERROR_WRITE) == leaf
    world.map(0x3000, 0, 0)
    world.tables.forget()
    assert world.mirrored(0x3123, 0) is None


@pytest.mark.parametrize("kind", [LONG, PAE, NARROW])
def test_a_clean_page_is_read_only_until_it_is_written(kind: str) -> None:
    world = World(kind)
    world.map(0x3000, 0x5000, 7)
    assert world.access(0x3123, 0) == 0x5123
    assert world.mirrored(0x3123, P.ERROR_WRITE) is None
    assert world.access(0x3123, P.ERROR_WRITE) == 0x5123
    found = world.allowed(0x3000, 0)
    assert found is not None and found.steps[-1].entry & P.DIRTY
    # The guest cleans it: with the flush that it must do, the next write is seen again.
    world.map(0x3000, 0x5000, 7 | P.ACCESSED)
    world.tables.forget()
    assert world.mirrored(0x3123, P.ERROR_WRITE) is None


@pytest.mark.parametrize(("kind", "size"), [(LONG, 2 * MIB), (PAE, 2 * MIB), (NARROW, 4 * MIB)])
def test_large_pages_stay_large_where_memory_is_whole(kind: str, size: int) -> None:
    world = World(kind)
    world.map(size, size, 7 | P.ACCESSED | P.DIRTY, level=2)
    assert world.access(size + 0x1234, P.ERROR_WRITE) == size + 0x1234
    left = world.pool.left()
    assert world.access(size + 0x1F_0000, P.ERROR_WRITE) == size + 0x1F_0000
    assert world.pool.left() == left, "one entry maps 2 MiB"
    odd = World(kind, shift=4096)
    odd.map(0, HIGH_L1, 7, level=2)
    assert odd.access(0x5123, P.ERROR_WRITE) == LOW + 4096 + 0x5123


def test_without_write_protection_a_supervisor_writes_anything_and_it_counts_as_dirty() -> None:
    world = World(LONG, wp=False)
    world.map(0, 0x5000, P.PRESENT)
    assert world.access(0, 0) == 0x5000
    assert world.mirrored(0, P.ERROR_WRITE) == 0x5000
    assert world.mirrored(0, P.ERROR_WRITE | P.ERROR_USER) is None
    found = world.allowed(0, 0)
    assert found is not None and found.steps[-1].entry & P.DIRTY


def test_invalidating_a_page_leaves_others_as_they_were() -> None:
    world = World(LONG)
    for page in range(3):
        world.map(page << 12, 0x5000 + (page << 12), 7)
        world.access(page << 12, P.ERROR_WRITE)
    world.map(0, 0, 0)
    world.map(0x1000, 0, 0)
    world.tables.invalidate(world.root(), 0)
    assert world.mirrored(0, 0) is None
    assert world.mirrored(0x1000, 0) == 0x6000, "not flushed yet: a processor may know it still"
    world.tables.forget()
    assert world.mirrored(0x1000, 0) is None
    assert world.mirrored(0x2000, 0) == 0x7000


def test_what_is_used_already_is_mirrored_without_a_fault() -> None:
    world = World(LONG)
    world.map(0, 0x5000, 7)
    world.access(0, 0)
    world.map(0x1000, 0x6000, 7 | P.ACCESSED | P.DIRTY)
    world.map(0x2000, 0x7000, 7)
    world.tables.forget()
    assert world.mirrored(0x1000, P.ERROR_WRITE) == 0x6000
    assert world.mirrored(0x2000, 0) is None, "not accessed: the flag would be missed"


def test_tables_are_shared_between_roots() -> None:
    world = World(LONG)
    world.map(0, 0x5000, 7)
    world.access(0, 0)
    pages = world.tables.pages
    second = world.new()
    world.l1.write(second, world.l1.read(world.top, 4096))
    world.registers = world.registers._replace(cr3=second)
    assert world.access(0, 0) == 0x5000
    assert world.tables.pages == pages + 1, "a second root alone"


def test_a_pool_without_pages_says_so_and_everything_can_be_given_back() -> None:
    world = World(LONG, pool_pages=5)
    world.map(0, 0x5000, 7)
    world.map(1 << 40, 0x6000, 7)
    assert world.access(0, 0) == 0x5000
    with pytest.raises(PoolExhausted):
        world.access(1 << 40, 0)
    world.tables.release()
    assert world.pool.left() == 5
    assert world.access(1 << 40, 0) == 0x6000
