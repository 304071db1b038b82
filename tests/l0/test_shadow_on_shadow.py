"""Shadow-on-shadow run for real: L1's modes of paging, what is refused, L2 on a shadow table of L1's."""

from __future__ import annotations

import pytest

from tests.l0.guest import DONE, Guest, load, mov, mov_from_cr, mov_to_cr, store
from tests.l0.helpers import Rig
from tests.l0.nested_guest import L1_BASE, SHADOW_PD, SHADOW_PDPT, NestedGuest, skip_and_resume
from turtles.l0.outcome import Ending, GuestStop
from turtles.l0.stats import REFLECTED
from turtles.l0.tactics import ALL, Tactics
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason, Memory
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F

TABLES = 0x2_0000
PF_HANDLER = 0x1800
EAX_FROM_CR2 = b"\x0f\x20\xd0"
INVLPG_MIB = b"\x0f\x01\x3d" + (0x40_0000).to_bytes(4, "little")


@pytest.fixture(autouse=True)
def without_ept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rig, "mode", "shadow-on-shadow")


def paging_on(pae: bool) -> bytes:
    cr4 = X.CR4_PAE if pae else X.CR4_PSE
    on = mov(0, cr4) + mov_to_cr(4) + mov(0, TABLES) + mov_to_cr(3)
    return on + mov_from_cr(0) + b"\x0d" + X.CR0_PG.to_bytes(4, "little") + mov_to_cr(0)


def paged(code: bytes, pae: bool = False) -> Guest:
    """L1 turns paging on: 4 MiB at linear 0 in place, nothing else but what tests put there."""
    guest = Guest(paging_on(pae) + code)
    if pae:
        guest.put64(TABLES, TABLES + 0x1000 | 1)
        for n in range(2):
            guest.put64(TABLES + 0x1000 + 8 * n, n << 21 | 0x87)
    else:
        guest.machine.l1.write(TABLES, (0x87).to_bytes(4, "little"))
    guest.interrupt_gate(14, PF_HANDLER)
    return guest


@pytest.mark.parametrize("pae", [False, True])
def test_l1_turns_paging_on_and_reads_what_it_wrote(pae: bool) -> None:
    guest = paged(mov(0, 0x1234) + store(0x2000) + load(0x2000) + DONE, pae)
    assert guest.result() == 0x1234
    assert guest.machine.l1.load64(0x2000) & 0xFFFF_FFFF == 0x1234
    assert guest.machine.l1.load64(TABLES + (0x1000 if pae else 0)) & 0x60 == 0x60, "accessed and dirty"


@pytest.mark.parametrize("pae", [False, True])
def test_a_page_fault_is_l1s_own_with_address_and_error_code(pae: bool) -> None:
    guest = paged(load(0x40_0123), pae)
    guest.machine.l1.write(PF_HANDLER, EAX_FROM_CR2 + DONE)
    assert guest.result() == 0x40_0123
    guest = paged(store(0x40_0123), pae)
    guest.machine.l1.write(PF_HANDLER, b"\x58" + DONE)  # pop eax
    assert guest.result() == 2


def test_invlpg_and_a_write_of_cr3_make_a_change_seen() -> None:
    for flush in (INVLPG_MIB, mov_from_cr(3) + mov_to_cr(3)):
        entry = TABLES + 4
        move = b"\xc7\x05" + entry.to_bytes(4, "little") + (0x80_0087).to_bytes(4, "little")
        guest = paged(load(0x40_0000) + move + flush + load(0x40_0000) + DONE)
        guest.machine.l1.write(entry, (0x40_0087).to_bytes(4, "little"))
        guest.put64(0x40_0000, 1)
        guest.put64(0x80_0000, 2)
        assert guest.result() == 2


def test_l1_reads_the_cr3_that_it_wrote() -> None:
    assert paged(mov_from_cr(3) + DONE).result() == TABLES


def test_devices_are_reached_through_l1s_tables() -> None:
    guest = paged(load(0x40_0010) + store(0x40_0020) + DONE)
    guest.machine.l1.write(TABLES + 4, (0xFEC0_0087).to_bytes(4, "little"))
    guest.mmio.values[0xFEC0_0010] = 0x77
    assert guest.result() == 0x77
    assert guest.mmio.writes == [(0xFEC0_0020, 4, 0x77)]


def test_a_double_fault_in_a_page_fault_and_the_end_of_l1() -> None:
    guest = paged(load(0x40_0000))
    guest.interrupt_gate(14, 0x50_0000)
    guest.machine.l1.write(0x4000 + 8 * 14, bytes(8))  # no gate: #GP in #PF is #DF, and it has no gate either
    assert guest.run().ending is Ending.TRIPLE_FAULT


def test_real_mode_is_refused_with_a_line() -> None:
    outcome = Guest(mov_from_cr(0) + b"\x83\xe0\xfe" + mov_to_cr(0)).run()
    assert outcome.ending is Ending.ERROR
    assert "real mode" in outcome.message


def test_too_much_memory_is_refused() -> None:
    from turtles.l0.machine import Machine
    from turtles.l0.ports import RamRegion

    guest = Guest(DONE)
    memory = Memory(4 << 30, pool=1 << 20)
    with pytest.raises(GuestStop, match="below 4 GiB"):
        Machine(memory, guest.model, [RamRegion(0, 1 << 20, 0)], guest.ports, guest.mmio, mode=Rig.mode)


# --- L2 ---


def report(encoding: int) -> bytes:
    """L1's exit handler: the field, out."""
    return mov(0, encoding) + b"\x0f\x78\xc3\x89\xd8" + DONE  # vmread rbx, rax; mov eax, ebx


def nested(l2: bytes, handler: bytes, tactics: Tactics = ALL) -> NestedGuest:
    guest = NestedGuest(l2, handler, eptp12=None, tactics=tactics)
    guest.shadow_l2()
    return guest


def test_l2_runs_on_the_fold_of_l1s_shadow_table() -> None:
    guest = nested(mov(0, 0x5151) + store(0x1_0000) + load(0x1_0000) + DONE, report(E.EXIT_REASON))
    assert guest.result() == 0x5151
    assert guest.machine.l1.load64(L1_BASE + 0x1_0000) & 0xFFFF_FFFF == 0x5151
    assert guest.machine.l1.load64(SHADOW_PD) & 0x60 == 0x60


@pytest.mark.parametrize("tactics", [ALL, Tactics.none()])
def test_l2_goes_on_after_each_exit(tactics: Tactics) -> None:
    loop = mov(1, 100) + b"\x0f\xa2" + mov(1, 0x77) + b"\x89\xc8" + DONE  # cpuid; mov eax, ecx
    guest = nested((b"\x0f\xa2" * 20) + loop, skip_and_resume(2), tactics)
    assert guest.result() == 0x77
    assert guest.vcpu.stats.counts[2][ExitReason.CPUID + REFLECTED] == 21


def test_l1_finds_the_cr3_that_it_gave_l2() -> None:
    assert nested(b"\x0f\xa2", report(E.GUEST_CR3)).result() == SHADOW_PDPT


def test_a_page_fault_of_l2_is_l1s_if_it_asked_for_it() -> None:
    guest = nested(load(0x40_0123), report(E.EXIT_QUALIFICATION))
    guest.c.v[F.EXCEPTION_BITMAP] = 1 << X.VECTOR_PF
    assert guest.result() == 0x40_0123
    guest = nested(store(0x40_0123), report(E.EXIT_INTERRUPTION_ERROR))
    guest.c.v[F.EXCEPTION_BITMAP] = 1 << X.VECTOR_PF
    assert guest.result() == 2


def test_a_page_fault_of_l2_that_l1_did_not_ask_for_is_l2s() -> None:
    """L2 has no IDT: its fault ends as a triple fault, which is L1's."""
    guest = nested(load(0x40_0123), report(E.EXIT_REASON))
    assert guest.result() == ExitReason.TRIPLE_FAULT


def test_l2_reaches_a_device_that_l1_maps() -> None:
    guest = nested(load(0x20_0010) + DONE, report(E.EXIT_REASON))
    guest.put64(SHADOW_PD + 8, 0xFEC0_0087)
    guest.mmio.values[0xFEC0_0010] = 0x99
    assert guest.result() == 0x99


def test_l2_writes_cr3_where_l1_lets_it() -> None:
    guest = nested(mov(0, SHADOW_PDPT + 0x2000) + mov_to_cr(3) + load(0x1_0000) + DONE, report(E.EXIT_REASON))
    guest.c.v[F.PRIMARY_CONTROLS] &= ~(C.PRIMARY_CR3_LOAD | C.PRIMARY_CR3_STORE)
    guest.put64(SHADOW_PDPT + 0x2000, SHADOW_PD + 0x2000 | 1)
    guest.put64(SHADOW_PD + 0x2000, L1_BASE | 0x87)
    guest.put64(L1_BASE + 0x1_0000, 0x4242)
    assert guest.result() == 0x4242


def test_32_bit_tables_in_vmcs12_are_refused_with_a_line() -> None:
    guest = nested(DONE, report(E.EXIT_REASON))
    guest.c.v[F.GUEST_CR4] &= ~X.CR4_PAE
    outcome = guest.run()
    assert outcome.ending is Ending.ERROR and "32-bit paging" in outcome.message


# --- write tracking ---

RELOAD: bytes = mov_from_cr(3) + mov_to_cr(3)


WRITE_PROTECT: bytes = mov_from_cr(0) + b"\x0d" + X.CR0_WP.to_bytes(4, "little") + mov_to_cr(0)


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("pae", [False, True])
def test_a_tracked_table_is_written_by_l0_in_l1s_place(pae: bool, protected: bool) -> None:
    """A locked addition to an entry, whose read and write both exit; without CR0.WP nothing is tracked."""
    entry = TABLES + (0x1008 if pae else 4)
    table = entry & ~0xFFF
    size = 0x20_0000 if pae else 0x40_0000
    add = b"\xf0\x81\x05" + entry.to_bytes(4, "little") + size.to_bytes(4, "little")

    def run(more: bytes) -> Guest:
        begin = WRITE_PROTECT if protected else b""
        guest = paged(begin + load(size) + RELOAD * 6 + more + RELOAD + load(size) + DONE, pae)
        guest.machine.l1.write(entry, (size | 0x87).to_bytes(4, "little"))
        guest.put64(size, 1)
        guest.put64(2 * size, 2)
        return guest

    guest = run(add)
    assert guest.result() == 2
    assert guest.machine.mmu.tracks(table) == protected
    fill = mov(0, 0) + b"\xbf" + (table + 0x800).to_bytes(4, "little") + mov(1, 64) + b"\xf3\xab"  # rep stosd
    guest = run(fill + add)
    assert guest.result() == 2
    assert not guest.machine.mmu.tracks(table), "too many stores"


def test_without_the_tactic_nothing_is_tracked() -> None:
    guest = nested(DONE, report(E.EXIT_REASON), Tactics(track_tables=False))
    assert guest.machine.l1.on_write is None and not guest.machine.mmu.tracks(SHADOW_PDPT)
