"""L1 and L2 for real: exits reflected and handled, ept02 followed, events, timers, failed entries."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.l0.guest import CPUID, DONE, HLT, LOOP_FOREVER, STI, UD2, load, mov, store
from tests.l0.helpers import Recording
from tests.l0.nested_guest import (
    L1_BASE,
    L2_CODE,
    PD12,
    PT12,
    REGION,
    TOP12,
    VMLAUNCH,
    WB,
    NestedGuest,
    skip_and_resume,
)
from turtles.l0.mmu import ept
from turtles.l0.outcome import STOPPED, Ending
from turtles.l0.stats import REFLECTED
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F


def report(encoding: int) -> bytes:
    """An exit handler of L1's that ends the run with the value of a field."""
    return b"\xb8" + encoding.to_bytes(4, "little") + b"\x0f\x78\xc3" + b"\x89\xd8" + DONE


REASON = report(E.EXIT_REASON)


def test_a_cpuid_of_l2_is_l1s() -> None:
    guest = NestedGuest(CPUID, REASON)
    assert guest.result() == ExitReason.CPUID
    assert guest.c.v[F.EXIT_INSTRUCTION_LENGTH] == 2
    assert guest.c.v[F.GUEST_RIP] == L2_CODE


@pytest.mark.parametrize("shadowing", [True, False])
def test_l2_goes_on_after_each_exit(shadowing: bool) -> None:
    """With VMCS shadowing L1's VMREADs and VMWRITEs do not exit; without it L0 does the same by hand."""
    loop = b"\xbf" + (20).to_bytes(4, "little") + CPUID + b"\x4f\x75\xfb" + mov(0, 0x77) + DONE
    guest = NestedGuest(loop, skip_and_resume(2), tactics=Tactics(shadow_vmcs=shadowing))
    assert guest.result() == 0x77
    rows = {(r.level, r.reason, r.handled_by): r.count for r in guest.vcpu.stats.rows()}
    assert rows[2, "CPUID", "L1"] == 20
    assert rows[1, "VMRESUME", "L0"] == 20
    assert rows.get((1, "VMREAD", "L0"), 0) == (0 if shadowing else 20)


def test_l2_runs_in_l1s_memory_through_a_huge_page() -> None:
    guest = NestedGuest(mov(0, 0x1234) + store(0x1_0000) + load(0x1_0000) + DONE, REASON)
    assert guest.result() == 0x1234
    assert guest.machine.l1.load64(L1_BASE + 0x1_0000) == 0x1234
    assert guest.vcpu.stats.counts[2][ExitReason.EPT_VIOLATION] == 1, "2 MiB at once"


def test_a_page_that_ept12_lacks_is_l1s() -> None:
    guest = NestedGuest(load(0x20_0000), report(E.GUEST_PHYSICAL_ADDRESS))
    assert guest.result() == 0x20_0000
    assert guest.c.v[F.EXIT_REASON] == ExitReason.EPT_VIOLATION
    assert guest.c.v[F.EXIT_QUALIFICATION] & 0x1BF == 0x181


def test_a_write_to_what_ept12_makes_readonly_is_l1s() -> None:
    guest = NestedGuest(store(0x20_0000), report(E.EXIT_QUALIFICATION))
    guest.put64(PD12 + 8, PT12 | 7)
    guest.put64(PT12, 0x50_0000 | ept.READ | WB)
    assert guest.result() & 0x1BF == 0x18A


def test_invept_makes_l2_see_the_change() -> None:
    """L1 moves a page under L2 that silicon has in its TLB, executes INVEPT and resumes."""
    invept = (
        b"\xb8\x02\0\0\0" + b"\x66\x0f\x38\x80\x04\x25" + (0x800).to_bytes(4, "little")
    )  # invept rax, [800h]
    move = b"\x48\xc7\x04\x25" + PT12.to_bytes(4, "little") + (0x51_0000 | 7 | WB).to_bytes(4, "little")
    guest = NestedGuest(load(0x20_0000) + CPUID + load(0x20_0000) + DONE, move + invept + skip_and_resume(2))
    guest.put64(PD12 + 8, PT12 | 7)
    guest.put64(PT12, 0x50_0000 | 7 | WB)
    guest.put64(0x50_0000, 0x1111)
    guest.put64(0x51_0000, 0x2222)
    assert guest.result() == 0x2222


def test_dirty_flags_of_ept12_are_set_when_l2_writes() -> None:
    guest = NestedGuest(
        load(0x20_0000) + store(0x20_1000) + DONE, REASON, eptp12=TOP12 | 0x1E | ept.EPTP_ACCESSED_DIRTY
    )
    guest.put64(PD12 + 8, PT12 | 7)
    for page in range(3):
        guest.put64(PT12 + 8 * page, 0x50_0000 + 4096 * page | 7 | WB)
    guest.run()
    flags = [guest.machine.l1.load64(PT12 + 8 * page) >> 8 & 3 for page in range(3)]
    assert flags == [1, 3, 0]


def test_l2_uses_l1s_devices_that_ept12_maps() -> None:
    guest = NestedGuest(load(0x20_0020) + store(0x20_0000) + DONE, REASON)
    guest.put64(PD12 + 8, PT12 | 7)
    guest.put64(PT12, 0xFEC0_0000 | 7 | WB)
    guest.mmio.values[0xFEC0_0020] = 0x4321
    assert guest.result() == 0x4321
    assert guest.mmio.writes == [(0xFEC0_0000, 4, 0x4321)]


def test_without_ept12_l2_runs_on_l1s_memory() -> None:
    """L1 shadows L2's page tables itself: L2's physical addresses are L1's."""
    code = mov(0, 0x5151) + DONE
    guest = NestedGuest(code, REASON, eptp12=None)
    guest.machine.l1.write(L2_CODE, code)
    # Without unrestricted guest L2 must page: identity tables, as a shadow of L1's would be.
    directory = b"".join((n << 22 | 0x87).to_bytes(4, "little") for n in range(1024))
    guest.machine.l1.write(0x2_0000, directory)
    v12 = guest.c.v
    v12[F.GUEST_CR0] |= X.CR0_PG
    v12[F.GUEST_CR3] = 0x2_0000
    v12[F.GUEST_CR4] |= X.CR4_PSE
    v12[F.WRITTEN] = 0x3FF
    assert guest.result() == 0x5151


@pytest.mark.parametrize(
    ("code", "reason"),
    [(UD2, ExitReason.TRIPLE_FAULT), (HLT, ExitReason.HLT), (b"\x0f\x01\xc1", ExitReason.VMCALL)],
)
def test_exits_that_are_l1s(code: bytes, reason: ExitReason) -> None:
    assert NestedGuest(code, REASON).result() == reason


def test_an_exception_in_l1s_bitmap() -> None:
    guest = NestedGuest(UD2, REASON)
    guest.c.v[F.EXCEPTION_BITMAP] = 1 << X.VECTOR_UD
    assert guest.result() == ExitReason.EXCEPTION_OR_NMI
    assert guest.c.v[F.EXIT_INTERRUPTION_INFO] == X.VALID | X.TYPE_HARDWARE | X.VECTOR_UD


def test_ports_that_l1_does_not_intercept_are_l0s() -> None:
    guest = NestedGuest(b"\xe4\x71" + b"\x0f\xb6\xc0" + DONE, REASON)
    guest.ports.values[0x71] = 0x42
    assert guest.result() == 0x42


def test_ports_that_l1_intercepts() -> None:
    guest = NestedGuest(b"\xe4\x71" + DONE, report(E.EXIT_QUALIFICATION))
    guest.c.v[F.PRIMARY_CONTROLS] |= C.PRIMARY_IO_BITMAPS
    guest.c.v[F.IO_BITMAP_A], guest.c.v[F.IO_BITMAP_B] = 0x33_0000, 0x33_1000
    guest.machine.l1.write(0x33_0000 + (0x71 >> 3), bytes([2]))
    assert guest.result() == 0x71 << 16 | 1 << 3 | 1 << 6


def test_an_event_that_l1_injects() -> None:
    guest = NestedGuest(LOOP_FOREVER, REASON)
    memory = guest.machine.l1
    memory.write(L1_BASE + 0x600, (0x5800 | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
    memory.write(L1_BASE + 0x500 + 8, (0x00CF_9B00_0000_FFFF).to_bytes(8, "little"))
    memory.write(L1_BASE + 0x500 + 16, (0x00CF_9300_0000_FFFF).to_bytes(8, "little"))
    memory.write(L1_BASE + 0x5800, mov(0, 0x99) + DONE)
    v12 = guest.c.v
    v12[F.GUEST_IDTR_BASE], v12[F.GUEST_IDTR_LIMIT] = 0x600 - 8 * 0x20, 0x7FF
    v12[F.GUEST_GDTR_BASE], v12[F.GUEST_GDTR_LIMIT] = 0x500, 0x7F
    v12[F.GUEST_RFLAGS] = 0x202
    v12[F.ENTRY_INTERRUPTION_INFO] = X.VALID | 0x20
    assert guest.result() == 0x99
    assert not guest.c.v02[F.ENTRY_INTERRUPTION_INFO] & X.VALID


# --- interrupts and timers ---


def interrupt_after(guest: NestedGuest, nanoseconds: int) -> None:
    guest.events.deadline = guest.core.now() + nanoseconds
    guest.events.callbacks.append(lambda: guest.apic.vectors.append(0x55))


@pytest.mark.parametrize("l2", [LOOP_FOREVER, STI + LOOP_FOREVER], ids=["IF=0", "IF=1"])
def test_an_interrupt_takes_l2_off_the_processor(l2: bytes) -> None:
    guest = NestedGuest(l2, REASON)
    interrupt_after(guest, 5_000_000)
    assert guest.result() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.c.v[F.EXIT_INTERRUPTION_INFO] == X.VALID | 0x55
    assert guest.apic.acknowledged == [0x55]
    assert guest.vcpu.stats.counts[2][ExitReason.EXTERNAL_INTERRUPT + REFLECTED] == 1, "it was L1's"


def test_an_interrupt_that_is_pending_at_the_entry_comes_after_it() -> None:
    """VMLAUNCH succeeds, L2 executes nothing, and L1 gets the interrupt as an exit."""
    guest = NestedGuest(CPUID, REASON)
    guest.apic.vectors.append(0x55)
    assert guest.result() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.c.v[F.GUEST_RIP] == L2_CODE
    assert guest.c.v[F.LAUNCH_STATE] == 1


def test_an_l2_that_halts_by_itself_sleeps_and_wakes_l1() -> None:
    guest = NestedGuest(HLT, report(E.GUEST_ACTIVITY))
    guest.c.v[F.PRIMARY_CONTROLS] &= ~C.PRIMARY_HLT
    interrupt_after(guest, 200_000_000)  # on a busy host L2 takes its time to get to HLT
    assert guest.result() == C.ACTIVITY_HLT
    assert guest.c.v[F.EXIT_REASON] == ExitReason.EXTERNAL_INTERRUPT
    assert guest.c.v[F.GUEST_RIP] == L2_CODE + 1


@pytest.mark.parametrize("pending_at_entry", [True, False])
def test_an_l2_that_is_entered_halted(pending_at_entry: bool) -> None:
    guest = NestedGuest(CPUID, report(E.GUEST_ACTIVITY))
    guest.c.v[F.GUEST_ACTIVITY] = C.ACTIVITY_HLT
    if pending_at_entry:
        guest.apic.vectors.append(0x55)
    else:
        interrupt_after(guest, 20_000_000)
    assert guest.result() == C.ACTIVITY_HLT
    assert guest.c.v[F.EXIT_REASON] == ExitReason.EXTERNAL_INTERRUPT
    assert guest.c.v[F.GUEST_RIP] == L2_CODE, "it executed nothing"


@pytest.mark.parametrize("l2", [LOOP_FOREVER, HLT])
def test_the_preemption_timer_of_l1(l2: bytes) -> None:
    guest = NestedGuest(l2, REASON)
    v12 = guest.c.v
    v12[F.PIN_CONTROLS] |= C.PIN_PREEMPTION_TIMER
    v12[F.PRIMARY_CONTROLS] &= ~C.PRIMARY_HLT
    v12[F.GUEST_PREEMPTION_TIMER] = 10_000_000 >> guest.machine.timer_shift
    begin = guest.core.now()
    assert guest.result() == ExitReason.PREEMPTION_TIMER
    assert guest.core.now() - begin >= 10_000_000


def test_an_l2_that_loops_can_be_stopped() -> None:
    guest = NestedGuest(LOOP_FOREVER, REASON)
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()
    time.sleep(0.1)
    guest.machine.stop(STOPPED)
    thread.join(1)
    assert not thread.is_alive()


# --- the APIC ---


@pytest.mark.parametrize("page", [0x50_0000, 0xFEE0_0000], ids=["RAM", "not RAM"])
def test_the_apic_access_page_of_l1(page: int) -> None:
    guest = NestedGuest(load(0x20_0020) + DONE, report(E.EXIT_QUALIFICATION))
    guest.put64(PD12 + 8, PT12 | 7)
    guest.put64(PT12, page | 7 | WB)
    v12 = guest.c.v
    v12[F.SECONDARY_CONTROLS] |= C.SECONDARY_APIC_ACCESSES
    v12[F.APIC_ACCESS_ADDRESS] = page
    assert guest.result() == 0x20
    assert guest.c.v[F.EXIT_REASON] == ExitReason.APIC_ACCESS
    assert guest.mmio.reads == []


def test_the_virtual_apic_page_holds_l2s_tpr() -> None:
    # mov eax, 50h; mov [200080h], eax; mov eax, [200080h]
    guest = NestedGuest(mov(0, 0x50) + store(0x20_0080) + load(0x20_0080) + DONE, REASON)
    guest.put64(PD12 + 8, PT12 | 7)
    guest.put64(PT12, 0x50_0000 | 7 | WB)
    v12 = guest.c.v
    v12[F.SECONDARY_CONTROLS] |= C.SECONDARY_APIC_ACCESSES
    v12[F.PRIMARY_CONTROLS] |= C.PRIMARY_TPR_SHADOW
    v12[F.APIC_ACCESS_ADDRESS], v12[F.VIRTUAL_APIC_ADDRESS] = 0x50_0000, 0x51_0000
    assert guest.result() == 0x50
    assert guest.machine.l1.load8(0x51_0080) == 0x50
    assert guest.machine.l1.load8(0x50_0080) == 0


def test_cr8_is_the_apics() -> None:
    # mov eax, 5; mov cr8, rax; mov rax, cr8
    guest = NestedGuest(
        b"", REASON, l1=mov(0, 5) + b"\x44\x0f\x22\xc0" + mov(0, 0) + b"\x44\x0f\x20\xc0" + DONE
    )
    assert guest.result() == 5
    assert guest.apic.cr8 == 5


# --- entries that fail ---


def test_guest_state_that_silicon_refuses_is_a_failed_entry_for_l1() -> None:
    guest = NestedGuest(CPUID, REASON)
    guest.c.v[F.GUEST_RFLAGS] = 0
    recording = Recording(guest.vcpu)
    assert guest.result() == ExitReason.ENTRY_GUEST_STATE | X.ENTRY_FAILURE
    assert guest.c.v[F.LAUNCH_STATE] == 0
    failed = recording.records()[1]
    assert failed.refused and failed.level == 2 and failed.context == REGION
    assert failed.as_reason == ExitReason.ENTRY_GUEST_STATE
    assert "rflags" in recording.notes[1].lower(), "the trace names the rule"


def test_controls_that_only_the_merge_breaks_are_vmfail() -> None:
    """A virtual-APIC page outside RAM: L0 gives up the TPR shadow in place of failing."""
    guest = NestedGuest(CPUID, REASON)
    guest.c.v[F.PRIMARY_CONTROLS] |= C.PRIMARY_TPR_SHADOW
    guest.c.v[F.VIRTUAL_APIC_ADDRESS] = 0xD000_0000
    assert guest.result() == ExitReason.CPUID


def test_random_vmcs12s_end_in_an_answer() -> None:
    """Whatever L1 writes, the run goes on or ends with a report; never with a defect."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    endings = set()
    for _ in range(150):
        guest = NestedGuest(CPUID + DONE, REASON, l1=VMLAUNCH + mov(0, 0xFA11) + DONE)
        v12 = guest.c.v
        for _ in range(rng.randrange(1, 8)):
            slot = rng.randrange(8, 131)
            v12[slot] = rng.choice(
                [rng.getrandbits(64), rng.getrandbits(16), v12[slot] ^ 1 << rng.randrange(64), 0]
            )
        timer = threading.Timer(1, guest.machine.stop, [STOPPED])
        timer.start()
        outcome = guest.vcpu.run()
        timer.cancel()
        endings.add(outcome.ending)
        if outcome.ending is Ending.ERROR:
            assert "L0 failed" not in outcome.message, outcome.message
            assert "defect" not in outcome.message, outcome.message
    assert Ending.DEBUG_EXIT in endings


def test_l0_follows_the_pool_when_many_translations_come_and_go() -> None:
    """With a small pool ept02 is thrown away and filled again; L2 notices nothing."""
    touch = b"".join(load(0x20_0000 + 0x20_0000 * n) for n in range(24))
    guest = NestedGuest(touch + touch + mov(0, 7) + DONE, REASON)
    for n in range(24):
        table = 0x60_0000 + 4096 * n
        guest.put64(PD12 + 8 * (n + 1), table | 7)
        guest.put64(table, 0x50_0000 | 7 | WB)
    while guest.machine.pool.left() > 12:
        guest.machine.pool.allocate()
    assert guest.result() == 7
