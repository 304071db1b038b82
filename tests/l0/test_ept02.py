"""ept02 against a reference walker: random ept12s, faults, changes by L1, INVEPT.

Nothing may be mapped that ept12 and ept01 together do not allow, and every fault that ept12 allows must end
with a mapping.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turtles.l0.mmu import ept
from turtles.l0.mmu.ept01 import Ept01
from turtles.l0.mmu.ept02 import Ept02, Resolve, Tactic
from turtles.l0.mmu.ept12 import Ept12Walker
from turtles.l0.mmu.tracking import WriteTracking
from turtles.l0.pool import PagePool, PoolExhausted
from turtles.l0.ports import RamRegion
from turtles.l0.ram import L1Memory
from turtles.silicon import Memory

MIB, GIB = 1 << 20, 1 << 30
LOW = 8 * MIB
HIGH = 4 * MIB
HIGH_L1 = 1 * GIB
PHYSICAL_BITS = 40
WB = ept.WRITE_BACK << 3
TABLES = 0x10_0000  # L1 keeps its ept12 here


class Page(NamedTuple):
    l1_pa: int
    rights: int
    dirty: bool


class World:
    """Memory, an ept12 under L1's hands, and the ept02 made from it."""

    def __init__(
        self,
        tracks_dirty: bool,
        pool_pages: int = 512,
        shift: int = 0,
        tactic: Tactic = Tactic.INVEPT,
    ) -> None:
        self.memory = Memory(LOW + HIGH + 2 * MIB, pool=pool_pages * 4096)
        # `shift` puts the second region where host-physical and L1-physical alignment differ.
        regions = (RamRegion(0, LOW, 0), RamRegion(HIGH_L1, HIGH, LOW + shift))
        self.l1 = L1Memory(self.memory, regions)
        self.pool = PagePool(self.memory, self.memory.size, self.memory.total)
        self.walker = Ept12Walker(self.l1, PHYSICAL_BITS, execute_only=True)
        self.next_table = TABLES
        self.top = self.new_table()
        self.flushes: list[int] = []
        eptp12 = self.top | (ept.EPTP_ACCESSED_DIRTY if tracks_dirty else 0)
        self.ept01 = Ept01(self.pool, regions)
        self.tracking = WriteTracking(self.ept01, self.flushes.append)
        self.ept02 = Ept02(
            self.pool, self.l1, self.walker, eptp12, self.flushes.append, tactic, self.tracking
        )

    def new_table(self) -> int:
        at = self.next_table
        self.next_table += 4096
        return at

    def map12(self, l2_pa: int, l1_pa: int, level: int = 1, flags: int = ept.RIGHTS) -> None:
        """L1 maps a page of a level, making tables on the way (over leaves, if need be)."""
        table = self.top
        for above in range(ept.TOP, level, -1):
            at = table + (l2_pa >> ept.SHIFT[above] & 511) * 8
            entry = self.l1.load64(at)
            if not entry & ept.RIGHTS or (above < ept.TOP and entry & ept.LARGE):
                entry = self.new_table() | ept.RIGHTS
                self.put(at, entry)
            table = entry & ept.ADDRESS
        self.put(
            table + (l2_pa >> ept.SHIFT[level] & 511) * 8,
            l1_pa | flags | WB | (ept.LARGE if level > 1 else 0),
        )

    def put(self, at: int, entry: int) -> None:
        """L1's store, which exits where the page is tracked."""
        assert self.writable01(at) == (at not in self.tracking)
        if at in self.tracking:
            self.tracking.written(at, 8, entry)
        self.l1.write(at, entry.to_bytes(8, "little"))

    def writable01(self, l1_pa: int) -> bool:
        """Whether ept01 lets L1 write there."""
        entry = self.ept01.eptp & ept.ADDRESS
        for level in range(4, 0, -1):
            entry = self.memory.load((entry & ept.ADDRESS) + (l1_pa >> ept.SHIFT[level] & 511) * 8)
            assert entry & ept.READ
            if ept.is_leaf(entry, level):
                break
        assert (entry & ept.ADDRESS & -ept.SIZE[level]) + l1_pa % ept.SIZE[level] == self.l1.host_pa(l1_pa)
        return bool(entry & ept.WRITE)

    def reference(self, l2_pa: int) -> Page | None:
        """What ept12 says, by a walk written on its own; none where it says nothing valid."""
        table, rights = self.top, ept.RIGHTS
        for level in range(4, 0, -1):
            entry = self.l1.load64(table + (l2_pa >> (12 + 9 * (level - 1)) & 511) * 8)
            if not entry & 7 or ept.misconfigured(entry, level, PHYSICAL_BITS):
                return None
            rights &= entry
            size = 1 << (12 + 9 * (level - 1))
            if level == 1 or (level < 4 and entry & ept.LARGE):
                return Page(
                    (entry & ept.ADDRESS) // size * size + l2_pa % size, rights & 7, bool(entry & ept.DIRTY)
                )
            table = entry & ept.ADDRESS
        raise AssertionError

    def composed(self, l2_pa: int) -> tuple[int, int, int] | None:
        """What silicon would find in ept02: host address, rights, level of the leaf."""
        table, rights = self.ept02.eptp & ept.ADDRESS, ept.RIGHTS
        for level in range(4, 0, -1):
            entry = self.memory.load(table + (l2_pa >> (12 + 9 * (level - 1)) & 511) * 8, 8)
            if not entry & 7:
                return None
            assert not ept.misconfigured(entry, level, PHYSICAL_BITS), f"ept02 misconfigured: {entry:#x}"
            rights &= entry
            size = 1 << (12 + 9 * (level - 1))
            if level == 1 or (level < 4 and entry & ept.LARGE):
                return (entry & ept.ADDRESS) // size * size + l2_pa % size, rights & 7, level
            assert entry & ept.ADDRESS >= self.memory.size, "a table of ept02 outside the pool"
            table = entry & ept.ADDRESS
        raise AssertionError

    def check(self, l2_pa: int) -> None:
        """ept02 allows nothing that ept12 and ept01 do not."""
        found = self.composed(l2_pa)
        if found is None:
            return
        host_pa, rights, _ = found
        page = self.reference(l2_pa)
        assert page is not None, f"{l2_pa:#x} is mapped in ept02 alone"
        assert self.l1.host_pa(page.l1_pa) == host_pa
        assert not rights & ~page.rights
        if self.ept02.tracks_dirty:
            assert page.dirty or not rights & ept.WRITE


ADDRESSES = [
    page * 4096 + offset
    for page in (0, 1, 2, 511, 512, 513, 1024, 5000, 1 << 18, (1 << 18) + 1, 1 << 27)
    for offset in (0, 0x123)
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    tracks_dirty=st.booleans(),
    shift=st.sampled_from([0, 4096, 2 * MIB]),
    tactic=st.sampled_from(Tactic),
)
def test_random_tables_faults_changes_and_invept(
    seed: int, tracks_dirty: bool, shift: int, tactic: Tactic
) -> None:
    rng = random.Random(seed)
    world = World(tracks_dirty, shift=shift, tactic=tactic)
    for _ in range(60):
        act = rng.random()
        l2_pa = rng.choice(ADDRESSES)
        if act < 0.35:  # L1 maps something, huge pages and nonsense included
            level = rng.choice([1, 1, 1, 2, 2, 3])
            size = ept.SIZE[level]
            base = rng.choice([0, HIGH_L1, 3 * GIB, LOW - 4096])
            flags = rng.choice([7, 7, 7, 5, 1, 4, 3, 2, 0])
            if tracks_dirty:
                flags |= rng.choice([0, ept.ACCESSED, ept.ACCESSED | ept.DIRTY])
            world.map12(l2_pa & -size, (base + rng.randrange(4) * size) & -size, level, flags)
            world.ept02.resync()
            for address in ADDRESSES:
                world.check(address)
        elif act < 0.4:  # without INVEPT the old mapping may live on, until the next INVEPT
            world.map12(l2_pa & ~0xFFF, rng.randrange(LOW // 4096) * 4096)
        else:
            access = rng.choice([1, 2, 4, 3])
            resolution = world.ept02.resolve(l2_pa, access)
            page = world.reference(l2_pa)
            if resolution.what is Resolve.MAPPED:
                assert page is not None and not access & ~page.rights
                found = world.composed(l2_pa)
                assert found is not None
                assert not access & ~found[1], "resumed, and would fault again"
                world.check(l2_pa)
                if tracks_dirty and access & ept.WRITE:
                    assert page.dirty
            elif resolution.what is Resolve.DEVICE:
                assert page is not None and world.l1.host_pa(page.l1_pa) < 0
                assert resolution.value == page.l1_pa
            elif resolution.what is Resolve.REFLECT_VIOLATION:
                assert page is None or access & ~page.rights
            else:
                assert page is None


@pytest.mark.parametrize(("level", "size"), [(1, 4096), (2, 2 * MIB)])
def test_huge_pages_stay_huge(level: int, size: int) -> None:
    world = World(False)
    world.map12(0x4000_0000, 0 if level == 1 else 2 * MIB, level)
    assert world.ept02.resolve(0x4000_0123, ept.WRITE).what is Resolve.MAPPED
    found = world.composed(0x4000_0123)
    assert found == ((0 if level == 1 else 2 * MIB) + 0x123, 7, level)


def test_a_huge_page_over_split_memory_is_cut() -> None:
    """2 MiB of L1 that lie at an odd host address become 4-KiB pages."""
    world = World(False, shift=4096)
    world.map12(0, HIGH_L1, 2)
    assert world.ept02.resolve(0x5123, ept.READ).what is Resolve.MAPPED
    assert world.composed(0x5123) == (LOW + 4096 + 0x5123, 7, 1)
    assert world.composed(0x6000) is None


def test_the_rights_of_a_reflected_violation_are_ept12s() -> None:
    world = World(False)
    world.map12(0, 0x3000, flags=ept.READ | ept.EXECUTE)
    assert world.ept02.resolve(0, ept.WRITE) == (Resolve.REFLECT_VIOLATION, ept.READ | ept.EXECUTE)
    assert world.ept02.resolve(0x1000, ept.READ) == (Resolve.REFLECT_VIOLATION, 0)


def test_a_misconfigured_entry_is_reflected() -> None:
    """As KVM marks MMIO: write and execute without read."""
    world = World(False)
    world.map12(0, 0x3000, flags=ept.WRITE | ept.EXECUTE)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.REFLECT_MISCONFIGURATION


def test_accessed_and_dirty_flags_of_ept12() -> None:
    world = World(True)
    world.map12(0, 0x3000)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.MAPPED
    leaf = world.walker.walk(world.ept02._walk, world.ept02.eptp12, 0, 0).leaf
    assert leaf & (ept.ACCESSED | ept.DIRTY) == ept.ACCESSED
    found = world.composed(0)
    assert found is not None and not found[1] & ept.WRITE, "a clean page must not be writable"
    assert world.ept02.resolve(0, ept.WRITE).what is Resolve.MAPPED
    leaf = world.walker.walk(world.ept02._walk, world.ept02.eptp12, 0, 0).leaf
    assert leaf & ept.DIRTY
    assert world.composed(0) == (0x3000, 7, 1)


def test_l1_cleaning_a_page_makes_it_readonly_at_invept() -> None:
    world = World(True)
    world.map12(0, 0x3000)
    world.ept02.resolve(0, ept.WRITE)
    world.map12(0, 0x3000, flags=ept.RIGHTS | ept.ACCESSED)
    world.ept02.resync()
    assert world.composed(0) == (0x3000, ept.READ | ept.EXECUTE, 1)


@pytest.mark.parametrize("tactic", Tactic)
def test_invept_keeps_what_did_not_change(tactic: Tactic) -> None:
    world = World(False, tactic=tactic)
    for page in range(8):
        world.map12(page << 12, 0x8000 + (page << 12))
        world.ept02.resolve(page << 12, ept.READ)
    world.map12(3 << 12, 0x3000)
    world.ept02.resync()
    mapped = [page for page in range(8) if world.composed(page << 12) is not None]
    assert set(mapped) >= {0, 1, 2, 4, 5, 6, 7}
    assert world.composed(3 << 12) in (None, (0x3000, 7, 1))
    assert world.flushes[-1] == world.ept02.eptp


def test_tables_are_given_back_only_after_a_flush() -> None:
    world = World(False)
    world.map12(0, 0x3000)
    world.ept02.resolve(0, ept.READ)
    left, flushes = world.pool.left(), len(world.flushes)
    world.put(world.top, 0)
    world.ept02.resync()
    assert world.composed(0) is None
    assert world.pool.left() == left + 3
    assert len(world.flushes) > flushes


def test_a_pool_without_pages_says_so_and_stays_sound() -> None:
    world = World(False, pool_pages=5 + 4)  # four are ept01
    world.map12(0, 0x3000)
    world.map12(1 << 39, 0x4000)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.MAPPED
    with pytest.raises(PoolExhausted):
        world.ept02.resolve(1 << 39, ept.READ)
    world.check(0)
    world.check(1 << 39)


def test_addresses_beyond_four_levels_are_violations() -> None:
    world = World(False)
    assert world.ept02.resolve(1 << 48, ept.READ) == (Resolve.REFLECT_VIOLATION, 0)


def test_an_ept12_outside_ram_reads_as_ones_and_is_misconfigured() -> None:
    world = World(False)
    ept02 = Ept02(world.pool, world.l1, world.walker, 3 * GIB, world.flushes.append)
    assert ept02.resolve(0, ept.READ).what is Resolve.REFLECT_MISCONFIGURATION


def test_the_papers_way_changes_ept02_without_invept() -> None:
    """Eager: a change, a right taken away, and a new page are in ept02 once L1 has stored them."""
    world = World(False, tactic=Tactic.EAGER)
    world.map12(0, 0x3000)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.MAPPED
    world.map12(0, 0x3000, flags=ept.READ)
    assert world.composed(0) == (0x3000, ept.READ, 1)
    world.map12(0, 0x5000)
    assert world.composed(0) is None
    world.map12(0x1000, 0x6000)
    assert world.composed(0x1000) == (0x6000, 7, 1), "a new page is there before L2 asks for it"
    world.put(world.top, 0)
    assert world.composed(0x1000) is None


def test_unsynchronised_leaves_are_writable_and_upper_tables_are_not() -> None:
    world = World(False, tactic=Tactic.UNSYNC)
    world.map12(0, 0x3000)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.MAPPED
    tables = [TABLES + n * 4096 for n in range(4)]  # from the top down
    assert [table in world.tracking for table in tables] == [True, True, True, False]
    world.map12(0, 0x3000, flags=ept.READ)
    assert world.composed(0) == (0x3000, 7, 1)
    world.ept02.resync()
    assert world.composed(0) == (0x3000, ept.READ, 1)


@pytest.mark.parametrize("tactic", [Tactic.EAGER, Tactic.UNSYNC])
def test_a_page_given_up_is_compared_at_invept(tactic: Tactic) -> None:
    world = World(False, tactic=tactic)
    world.map12(0, 0x3000)
    world.ept02.resolve(0, ept.READ)
    world.tracking.give_up(world.top + 0x18)
    assert world.writable01(world.top)
    world.put(world.top, 0)
    assert world.composed(0) is not None
    world.ept02.resync()
    assert world.composed(0) is None


@pytest.mark.parametrize("tactic", [Tactic.EAGER, Tactic.UNSYNC])
def test_tables_that_are_dropped_are_tracked_no_more(tactic: Tactic) -> None:
    world = World(False, tactic=tactic)
    world.map12(0, 0x3000)
    world.ept02.resolve(0, ept.READ)
    world.put(world.top, 0)
    assert [TABLES + n * 4096 in world.tracking for n in range(4)] == [True, False, False, False]
    assert world.writable01(TABLES + 4096)
    world.ept02.release()
    assert TABLES not in world.tracking


def test_a_store_of_more_than_eight_bytes_is_seen_at_invept() -> None:
    """Silicon tells the first eight bytes of a longer store."""
    world = World(False, tactic=Tactic.EAGER)
    for page in (0, 1):
        world.map12(page << 12, 0x3000 + (page << 12))
        world.ept02.resolve(page << 12, ept.READ)
    leaf = TABLES + 3 * 4096
    world.tracking.written(leaf, 8, 0)
    world.l1.write(leaf, bytes(16))
    assert world.composed(0) is None
    world.ept02.resync()
    assert world.composed(0x1000) is None


@pytest.mark.parametrize("tactic", Tactic)
def test_what_l1_mapped_for_a_violation_is_there_when_l2_comes_back(tactic: Tactic) -> None:
    world = World(False, tactic=tactic)
    world.map12(0x1000, 0x4000)
    world.ept02.resolve(0x1000, ept.READ)
    assert world.ept02.resolve(0, ept.READ).what is Resolve.REFLECT_VIOLATION
    world.ept02.expected = 0
    world.map12(0, 0x3000)
    if world.ept02.expected >= 0:
        world.ept02.answer_expected()
    assert world.composed(0) == (0x3000, 7, 1)


@pytest.mark.parametrize("tactic", [Tactic.EAGER, Tactic.UNSYNC])
def test_what_a_device_stores_into_ept12_shows_at_invept(tactic: Tactic) -> None:
    """DMA exits nowhere: the tables stay tracked, and those that were hit are compared."""
    world = World(False, tactic=tactic)
    world.map12(0, 0x3000)
    world.ept02.resolve(0, ept.READ)
    world.l1.on_write = world.tracking.stored
    world.l1.write(world.top - 8, bytes(16))  # from the page before into the top table
    assert world.composed(0) is not None and world.top in world.tracking
    world.ept02.resync()
    assert world.composed(0) is None
