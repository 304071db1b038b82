"""Small parts alone: L1's physical memory, ept01, page walks, VPIDs, bitmaps, statistics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turtles.l0.exits import msr, xsetbv
from turtles.l0.machine import MODES, l1_model
from turtles.l0.mmu import ept
from turtles.l0.mmu.ept01 import Ept01
from turtles.l0.mmu.paging import PageFault, Registers, translate
from turtles.l0.nested.shadowing import make_shadow_bitmaps
from turtles.l0.nested.vpids import FIRST, Vpids
from turtles.l0.pool import PagePool
from turtles.l0.ports import RamRegion
from turtles.l0.ram import L1Memory
from turtles.l0.stats import HANDLED, REFLECTED, Stats
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason, Memory, Model
from turtles.silicon import encodings as E

MIB, GIB = 1 << 20, 1 << 30


# --- L1's physical memory ---


@pytest.fixture
def l1() -> L1Memory:
    memory = Memory(4 * MIB, pool=MIB)
    return L1Memory(memory, [RamRegion(0, 2 * MIB, 0), RamRegion(GIB, 2 * MIB, 2 * MIB)])


def test_addresses_outside_ram(l1: L1Memory) -> None:
    assert l1.host_pa(2 * MIB) == -1
    assert l1.load64(GIB - 8) == (1 << 64) - 1
    assert l1.load8(3 * GIB) == 0xFF
    assert l1.read(2 * MIB - 2, 4) == b"\0\0\xff\xff"
    l1.write(2 * MIB - 2, b"abcd")
    assert l1.read(2 * MIB - 2, 4) == b"ab\xff\xff"
    assert l1.memory.read(2 * MIB, 2) == b"\0\0", "what falls outside must not land in the next region"
    l1.set_bits64(3 * GIB, 1)


def test_the_second_region_lies_where_it_is_said_to(l1: L1Memory) -> None:
    l1.write(GIB + 0x1234, b"xyz")
    assert l1.memory.read(2 * MIB + 0x1234, 3) == b"xyz"
    assert l1.contiguous(GIB, 2 * MIB) == 2 * MIB
    assert l1.contiguous(GIB, 2 * MIB + 1) == -1


def test_regions_are_whole_pages() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        L1Memory(Memory(MIB, pool=MIB), [RamRegion(0, 100, 0)])


# --- ept01 ---


@pytest.mark.parametrize(
    ("region", "level"),
    [
        (RamRegion(0, 2 * GIB, 0), 3),
        (RamRegion(0, 2 * MIB, 0), 2),
        (RamRegion(0, 2 * GIB, 2 * MIB), 2),
        (RamRegion(0, 2 * MIB, 4096), 1),
    ],
)
def test_ept01_uses_the_largest_pages(region: RamRegion, level: int) -> None:
    memory = Memory(MIB, pool=16 * MIB)
    ept01 = Ept01(PagePool(memory, memory.size, memory.total), (region,))
    for offset in (0, region.size - 1):
        table, depth = ept01.eptp & ept.ADDRESS, 4
        while True:
            entry = memory.load(table + (region.l1_pa + offset >> ept.SHIFT[depth] & 511) * 8)
            assert entry & 7 == 7
            if ept.is_leaf(entry, depth):
                break
            table, depth = entry & ept.ADDRESS, depth - 1
        assert depth == level
        size = ept.SIZE[depth]
        assert (entry & ept.ADDRESS & -size) + offset % size == region.host_pa + offset


def test_ept01_maps_nothing_beyond_ram() -> None:
    memory = Memory(MIB, pool=MIB)
    ept01 = Ept01(PagePool(memory, memory.size, memory.total), (RamRegion(0, MIB, 0),))
    top = memory.load(ept01.eptp & ept.ADDRESS)
    directory = memory.load(top & ept.ADDRESS)
    table = memory.load(directory & ept.ADDRESS)
    assert memory.load((table & ept.ADDRESS) + 8 * 255) & 7 == 7
    assert memory.load((table & ept.ADDRESS) + 8 * 256) == 0


# --- page walks ---


class Tables:
    """A guest's page tables in a dictionary of 64-bit words."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def load(self, at: int) -> int:
        return self.words.get(at, 0)

    def set_bits(self, at: int, bits: int) -> None:
        self.words[at] = self.words.get(at, 0) | bits

    def walk(self, r: Registers, linear: int, write: bool = False) -> int:
        return translate(r, linear, write, self.load, self.set_bits)


LONG = Registers(X.CR0_PG | X.CR0_PE | X.CR0_WP, 0x1000, X.CR4_PAE, X.EFER_LMA, 2, 0)


def long_tables(leaf_flags: int, level: int = 1) -> Tables:
    """One page at linear address 4000_2000_1000H style: index 1 at each level."""
    tables = Tables()
    for number in range(4, level, -1):
        tables.words[0x1000 * (5 - number) + 8] = 0x1000 * (6 - number) | 7
    frame = 0x7F_C000_0000 if level > 1 else 0x7F_C000_5000
    tables.words[0x1000 * (5 - level) + 8] = frame | leaf_flags | (0x80 if level > 1 else 0)
    return tables


LINEAR = 1 << 39 | 1 << 30 | 1 << 21 | 1 << 12 | 0x123


@pytest.mark.parametrize(
    ("level", "expected"),
    [(1, 0x7F_C000_5123), (2, 0x7F_C000_1123), (3, 0x7F_C020_1123)],
)
def test_four_level_walks(level: int, expected: int) -> None:
    assert long_tables(3, level).walk(LONG, LINEAR) == expected


def test_accessed_and_dirty_flags_are_set() -> None:
    tables = long_tables(3)
    tables.walk(LONG, LINEAR)
    assert tables.words[0x4008] & 0x60 == 0x20
    assert all(tables.words[at] & 0x20 for at in (0x1008, 0x2008, 0x3008))
    tables.walk(LONG, LINEAR, write=True)
    assert tables.words[0x4008] & 0x60 == 0x60
    assert not tables.words[0x3008] & 0x40


@pytest.mark.parametrize(
    ("flags", "write", "registers", "error"),
    [
        (0, False, LONG, 0),
        (0, True, LONG._replace(cpl=3), 6),
        (1, True, LONG, 3),
        (1, False, LONG._replace(cpl=3), 5),
        (7, False, LONG._replace(cr4=X.CR4_PAE | X.CR4_SMAP), 1),
    ],
)
def test_page_faults(flags: int, write: bool, registers: Registers, error: int) -> None:
    with pytest.raises(PageFault) as caught:
        long_tables(flags).walk(registers, LINEAR, write)
    assert (caught.value.linear, caught.value.error) == (LINEAR, error)


def test_smap_is_lifted_by_ac_and_write_protection_by_wp() -> None:
    smap = LONG._replace(cr4=X.CR4_PAE | X.CR4_SMAP, rflags=X.RFLAGS_AC)
    assert long_tables(7).walk(smap, LINEAR)
    assert long_tables(1).walk(LONG._replace(cr0=X.CR0_PG | X.CR0_PE), LINEAR, write=True)


def test_two_level_walks_with_pse36() -> None:
    r = Registers(X.CR0_PG | X.CR0_PE, 0x1000, X.CR4_PSE, 0, 2, 0)
    tables = Tables()
    tables.words[0x1000] = (0x2000 | 3) << 32 | (0x0080_0000 | 0x1 << 13 | 0x83)  # index 1 and index 0
    tables.words[0x2008] = 0x5003 << 32
    assert tables.walk(r, 0x0000_1234) == 0x1_0080_1234
    assert tables.walk(r, 0x0040_3456, write=True) == 0x5456
    assert tables.words[0x2008] >> 32 & 0x60 == 0x60


def test_pae_walks_begin_at_the_pdptes() -> None:
    r = Registers(X.CR0_PG | X.CR0_PE, 0, X.CR4_PAE, 0, 2, 0, (0, 0x1001, 0, 0))
    tables = Tables()
    tables.words[0x1000] = 0x20_0083
    assert tables.walk(r, 0x4000_0123) == 0x20_0123
    with pytest.raises(PageFault):
        tables.walk(r, 0x123)


def test_without_paging_the_address_is_physical() -> None:
    assert Tables().walk(Registers(1, 0, 0, 0, 2, 0), 0x1_2345_6789) == 0x2345_6789


# --- VPIDs ---


@given(st.lists(st.integers(1, 0xFFFF), min_size=1, max_size=60))
def test_vpids_never_meet(wanted: list[int]) -> None:
    flushed: list[int] = []
    vpids = Vpids(flushed.append, last=20)
    for vpid12 in wanted:
        before = vpids.find(vpid12)
        mapped = vpids.map(vpid12)
        assert FIRST <= mapped <= 20
        assert before in (None, mapped)
        # No other VPID of L1's has the same one now.
        assert [v for v in set(wanted) if vpids.find(v) == mapped] == [vpid12]


def test_a_vpid_used_again_was_flushed() -> None:
    flushed: list[int] = []
    vpids = Vpids(flushed.append, last=FIRST + 1)
    assert [vpids.map(v) for v in (10, 20)] == [FIRST, FIRST + 1]
    assert vpids.map(30) == FIRST
    assert sorted(flushed) == [FIRST, FIRST + 1]


# --- bitmaps, XCR0, statistics ---


def test_the_msr_bitmap_traps_what_is_l0s() -> None:
    bitmap = msr.make_bitmap()

    def traps(number: int, write: bool) -> bool:
        at = (number & 0x1FFF) // 8 + (1024 if number >= 0xC000_0000 else 0) + (2048 if write else 0)
        return bool(bitmap[at] >> (number & 7) & 1)

    for number in (0x1B, 0x480, 0x493, 0x6E0, 0x800, 0x8FF):
        assert traps(number, False) and traps(number, True)
    for number in (0x10, 0x3B):
        assert not traps(number, False) and traps(number, True)
    for number in (0xC000_0080, 0xC000_0100, 0xC000_0102, 0x174, 0x48, 0x277):
        assert not traps(number, False) and not traps(number, True)


def test_shadow_bitmaps_let_every_field_through_but_read_only_writes() -> None:
    reads, writes = make_shadow_bitmaps(0)

    def exits(bitmap: bytes, encoding: int) -> bool:
        return bool(bitmap[encoding >> 3] >> (encoding & 7) & 1)

    assert not exits(reads, E.GUEST_RIP) and not exits(writes, E.GUEST_RIP)
    assert not exits(reads, E.TSC_OFFSET | 1)
    assert not exits(reads, E.EXIT_REASON) and exits(writes, E.EXIT_REASON)
    assert exits(reads, 0x7FFE) and exits(writes, 0x0010)
    assert not exits(make_shadow_bitmaps(1 << 29)[1], E.EXIT_REASON)


@pytest.mark.parametrize(
    ("value", "valid"), [(1, True), (3, True), (7, True), (0, False), (2, False), (5, False), (0x17, False)]
)
def test_xcr0(value: int, valid: bool) -> None:
    assert xsetbv.valid_xcr0(value, 7) is valid


def test_statistics_rows() -> None:
    stats = Stats()
    stats.counts[1][ExitReason.CPUID + HANDLED] = 2
    stats.total_ns[1][ExitReason.CPUID + HANDLED] = 10
    stats.counts[2][ExitReason.CPUID + REFLECTED] = 1
    rows = stats.rows()
    assert [(r.level, r.reason, r.handled_by, r.count) for r in rows] == [
        (1, "CPUID", "L0", 2),
        (2, "CPUID", "L1", 1),
    ]


def test_memory_modes_differ_in_what_l1_is_offered() -> None:
    model = Model("max")
    assert l1_model(model, MODES["multidim"]).has("ept")
    without = l1_model(model, MODES["shadow-on-ept"])
    assert not without.has("ept") and not without.has("unrestricted_guest")
    assert without.has("vpid") and without.has("vmx")
