"""L1 for real: small programs on silicon, through the loop and the handlers, and how a run ends."""

from __future__ import annotations

import threading
import time

import pytest

from tests.l0.guest import (
    CODE,
    CPUID,
    DONE,
    HLT,
    IDT,
    IRET,
    LOOP_FOREVER,
    RDMSR,
    STI,
    UD2,
    WRMSR,
    XSETBV,
    Guest,
    load,
    mov,
    mov_from_cr,
    mov_to_cr,
    store,
)
from tests.l0.helpers import Recording, Rig
from turtles.l0.outcome import STOPPED, Ending
from turtles.l0.vcpu import Vcpu
from turtles.silicon import ExitReason, Model
from turtles.silicon import fields as F
from turtles.silicon import slots as S

EAX_FROM_EBX, EAX_FROM_ECX, EAX_FROM_EDX = b"\x89\xd8", b"\x89\xc8", b"\x89\xd0"
GP_HANDLER = 0x1800


def with_gp_handler(code: bytes) -> Guest:
    """A guest whose #GP handler reports 0DEADH."""
    guest = Guest(code)
    guest.interrupt_gate(13, GP_HANDLER)
    guest.machine.l1.write(GP_HANDLER, mov(0, 0xDEAD) + DONE)
    return guest


@pytest.fixture(autouse=True, params=["multidim", "shadow-on-shadow"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here runs with and without EPT."""
    monkeypatch.setattr(Rig, "mode", request.param)
    return str(request.param)


# --- CPUID ---


def test_cpuid_tells_of_the_hypervisor() -> None:
    assert Guest(mov(0, 0x4000_0000) + CPUID + EAX_FROM_EBX + DONE).result() == int.from_bytes(
        b"KVMK", "little"
    )
    assert Guest(mov(0, 1) + CPUID + EAX_FROM_ECX + DONE).result() >> 31
    assert Guest(mov(0, 0x4000_0002) + CPUID + DONE).result() == 0


def test_cpuid_osxsave_follows_cr4() -> None:
    ask = mov(0, 1) + CPUID + EAX_FROM_ECX + DONE
    assert not Guest(ask).result() >> 27 & 1
    assert Guest(mov(0, 1 << 18) + mov_to_cr(4) + ask).result() >> 27 & 1


def test_what_l0_does_not_nest_is_not_offered(mode: str) -> None:
    assert not Guest(mov(0, 1) + CPUID + EAX_FROM_ECX + DONE).result() >> 3 & 1, "MONITOR"
    secondary = Guest(mov(1, 0x48B) + RDMSR + EAX_FROM_EDX + DONE).result()
    assert (secondary >> 1 & 1, secondary >> 7 & 1) == ((1, 1) if mode == "multidim" else (0, 0)), "EPT"


# --- MSRs ---


def test_msrs_of_the_apic_are_the_boards() -> None:
    assert Guest(mov(1, 0x1B) + RDMSR + DONE).result() == 0xFEE0_0900


def test_an_msr_that_nobody_has_is_refused() -> None:
    assert with_gp_handler(mov(1, 0x4B56_4D00) + RDMSR + DONE).result() == 0xDEAD
    assert with_gp_handler(mov(1, 0x480) + WRMSR + DONE).result() == 0xDEAD


def test_without_vmx_there_are_no_capability_msrs() -> None:
    model = Model("max", disable=["vmx"])
    with pytest.raises(Exception, match="VT-x controls"):
        # L0 itself needs VT-x: silicon without it cannot be run at all.
        Guest(mov(1, 0x480) + RDMSR + DONE, model=model)


def test_writing_the_tsc_moves_the_apics_timer() -> None:
    guest = Guest(mov(0, 0) + mov(2, 0x1000) + mov(1, 0x10) + WRMSR + b"\x0f\x31" + EAX_FROM_EDX + DONE)
    assert guest.result() == 0x1000
    assert guest.apic.tsc_moves == 1
    assert guest.apic.tsc() >> 32 == 0x1000


# --- control registers ---


def test_cr0_ne_and_cr4_vmxe_are_l1s_to_see() -> None:
    assert not Guest(mov_from_cr(4) + DONE).result() >> 13 & 1
    assert Guest(mov(0, 1 << 13) + mov_to_cr(4) + mov_from_cr(4) + DONE).result() == 1 << 13
    assert Guest(mov(0, 0x11) + mov_to_cr(0) + mov_from_cr(0) + DONE).result() == 0x11
    guest = Guest(mov(0, 0x11) + mov_to_cr(0) + DONE)
    guest.result()
    assert guest.v[F.GUEST_CR0] >> 5 & 1, "VMX operation fixes NE"


@pytest.mark.parametrize(
    ("register", "value"),
    [(0, 0x2000_0001), (0, 0x8000_0000), (4, 1 << 30), (4, 1 << 17)],
    ids=["NW without CD", "PG without PE", "reserved", "PCIDE outside IA-32e mode"],
)
def test_control_register_values_that_are_refused(register: int, value: int) -> None:
    assert with_gp_handler(mov(0, value) + mov_to_cr(register) + mov(0, 1) + DONE).result() == 0xDEAD


def test_paging_goes_on_together_with_ne() -> None:
    """One write that L0 has to emulate, since it also sets NE."""
    guest = Guest(
        mov(0, 0x11)
        + mov_to_cr(0)
        + mov(0, 0x2000)
        + mov_to_cr(3)
        + mov(0, 0x10)
        + mov_to_cr(4)
        + mov(0, 0x8000_0031)
        + mov_to_cr(0)
        + mov_from_cr(0)
        + DONE
    )
    directory = b"".join((n << 22 | 0x87).to_bytes(4, "little") for n in range(1024))
    guest.machine.l1.write(0x2000, directory)
    assert guest.result() == 0x8000_0031


def test_long_mode_is_entered_by_a_cr0_write_that_l0_emulates() -> None:
    code = (
        mov(0, 0x11)
        + mov_to_cr(0)
        + mov(0, 0x20)
        + mov_to_cr(4)
        + mov(0, 0x2000)
        + mov_to_cr(3)
        + mov(1, 0xC000_0080)
        + mov(0, 0x100)
        + mov(2, 0)
        + WRMSR
        + mov(0, 0x8000_0031)
        + mov_to_cr(0)
        + mov(1, 0xC000_0080)
        + RDMSR
        + DONE
    )
    guest = Guest(code)
    guest.put64(0x2000, 0x3000 | 3)
    guest.put64(0x3000, 0x83)
    guest.put64(0x3000 + 24, 0xC000_0083)
    assert guest.result() == 0x500


def test_xsetbv() -> None:
    code = mov(0, 1 << 18) + mov_to_cr(4) + mov(1, 0) + mov(2, 0)
    assert Guest(code + mov(0, 7) + XSETBV + DONE).result() == 7
    for bad in (0, 2, 5, 9):
        assert with_gp_handler(code + mov(0, bad) + XSETBV + DONE).result() == 0xDEAD


# --- ports and devices ---


def test_ports() -> None:
    guest = Guest(b"\xe4\x71" + mov(2, 0x3F8) + b"\x66\xef" + b"\x0f\xb6\xc0" + DONE)
    guest.ports.values[0x71] = 0x5A
    assert guest.result() == 0x5A
    assert guest.ports.reads == [(0x71, 1)]
    assert guest.ports.writes == [(0x3F8, 2, guest.ports.writes[0][2])]


def test_string_ports_exit_once_for_each_iteration() -> None:
    guest = Guest(mov(6, 0x3000) + mov(1, 4) + mov(2, 0x3F8) + b"\xf3\x6e" + EAX_FROM_ECX + DONE)
    guest.machine.l1.write(0x3000, b"abcd")
    assert guest.result() == 0
    assert guest.ports.writes == [(0x3F8, 1, n) for n in b"abcd"]


def test_mmio_read_write_and_both_in_one_instruction() -> None:
    guest = Guest(
        load(0xFEC0_0010)
        + store(0xFEC0_0000)
        + b"\x83\x0d"
        + (0xFEC0_0020).to_bytes(4, "little")
        + b"\x40"
        + DONE
    )
    guest.mmio.values.update({0xFEC0_0010: 0x1234, 0xFEC0_0020: 0x3})
    assert guest.result() == 0x1234
    assert guest.mmio.reads == [(0xFEC0_0010, 4), (0xFEC0_0020, 4)]
    assert guest.mmio.writes == [(0xFEC0_0000, 4, 0x1234), (0xFEC0_0020, 4, 0x43)]


def test_code_where_there_is_no_memory_is_ones() -> None:
    """The bytes FFH FFH are #UD; without a handler that is a triple fault, reported with level and RIP."""
    guest = Guest(mov(0, 0xD000_0000) + b"\xff\xe0")
    outcome = guest.run()
    assert outcome.ending is Ending.TRIPLE_FAULT
    assert "L1 at RIP 0xd0000000" in outcome.message


# --- interrupts and sleep ---


def test_hlt_sleeps_until_a_timer_raises_an_interrupt() -> None:
    guest = Guest(mov(0, 1) + STI + HLT + mov(0, 2) + DONE)
    guest.interrupt_gate(0x40, 0x1900)
    guest.machine.l1.write(0x1900, b"\xb3\x01" + IRET)
    guest.events.deadline = guest.core.now() + 20_000_000
    guest.events.callbacks.append(lambda: guest.apic.vectors.append(0x40))
    begin = time.process_time()
    assert guest.result() == 2
    assert guest.apic.acknowledged == [0x40]
    assert time.process_time() - begin < 0.5


def test_an_interrupt_waits_for_its_window() -> None:
    guest = Guest(mov(0, 1) + mov(3, 0) + STI + b"\x90\x90" + b"\x89\xd8" + DONE)
    guest.interrupt_gate(0x40, 0x1900)
    guest.machine.l1.write(0x1900, mov(3, 7) + IRET)
    guest.apic.vectors.append(0x40)
    assert guest.result() == 7


def test_a_sleep_that_nothing_can_end_under_virtual_time_is_reported() -> None:
    outcome = Guest(HLT, clock="virtual").run()
    assert outcome.ending is Ending.ERROR
    assert "nothing is planned" in outcome.message


# --- how a run ends ---


def test_a_triple_fault_is_reported() -> None:
    outcome = Guest(UD2).run()
    assert outcome.ending is Ending.TRIPLE_FAULT
    assert f"RIP {CODE:#x}" in outcome.message


@pytest.mark.parametrize("code", [LOOP_FOREVER, HLT])
def test_a_stop_is_obeyed_within_a_second(code: bytes) -> None:
    guest = Guest(code)
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()
    time.sleep(0.1)
    guest.machine.stop(STOPPED)
    thread.join(1)
    assert not thread.is_alive()
    assert guest.machine.outcome is STOPPED


def test_the_first_outcome_stands() -> None:
    guest = Guest(DONE)
    guest.result()
    guest.machine.stop(STOPPED)
    assert guest.machine.outcome is not STOPPED


def test_a_defect_of_a_handler_is_a_report_and_no_traceback() -> None:
    guest = Guest(CPUID + DONE)

    @guest.machine.on_exit(ExitReason.CPUID)
    def broken(vcpu: Vcpu) -> bool:
        raise KeyError("oops")

    outcome = guest.run()
    assert outcome.ending is Ending.ERROR
    assert "KeyError" in outcome.message
    assert f"L1 at RIP {CODE:#x}, last exit CPUID" in outcome.message


def test_a_user_handler_comes_first_and_may_pass_on() -> None:
    guest = Guest(mov(0, 0x4000_0000) + CPUID + EAX_FROM_EBX + DONE)
    seen: list[int] = []

    @guest.machine.on_exit(ExitReason.CPUID, level=1)
    def passing(vcpu: Vcpu) -> None:
        seen.append(vcpu.regs[S.RAX])

    assert guest.result() == int.from_bytes(b"KVMK", "little")
    assert seen == [0x4000_0000]


def test_a_user_handler_may_answer() -> None:
    guest = Guest(CPUID + EAX_FROM_EBX + DONE)

    @guest.machine.on_exit(ExitReason.CPUID, level=1)
    def answer(vcpu: Vcpu) -> bool:
        vcpu.regs[S.RBX] = 0x1234
        vcpu.advance()
        return True

    assert guest.result() == 0x1234


def test_stats_and_trace_count_the_same() -> None:
    guest = Guest((mov(0, 0) + CPUID) * 5 + DONE)
    recording = Recording(guest.vcpu)
    guest.result()
    rows = {(row.level, row.reason, row.handled_by): row.count for row in guest.vcpu.stats.rows()}
    faults = rows.pop((1, "EXCEPTION_OR_NMI", "L0"), 0)  # shadow paging: the first fetch
    assert rows == {(1, "CPUID", "L0"): 5, (1, "IO", "L0"): 1}
    records = recording.records()
    assert [r.reason for r in records[:faults]] == [ExitReason.EXCEPTION_OR_NMI] * faults
    records = records[faults:]
    assert [r.reason for r in records] == [ExitReason.CPUID] * 5 + [ExitReason.IO]
    assert [r.rip for r in records[:2]] == [CODE + 5, CODE + 12]
    assert all(r.before_ns <= r.entry_ns <= r.exit_ns <= r.after_ns for r in records)


# --- task switches ---


def tss32(eip: int, cr3: int = 0) -> bytes:
    """A TSS whose task starts at `eip` with flat segments."""
    fields = [0] * 26
    fields[7], fields[8], fields[9] = cr3, eip, 2
    fields[10] = 0x1111  # EAX
    fields[14] = 0x8F0  # ESP
    fields[18], fields[19], fields[20], fields[21] = 0x10, 8, 0x10, 0x10  # ES, CS, SS, DS
    return b"".join(value.to_bytes(4, "little") for value in fields)


def task_guest(code: bytes, task: bytes) -> Guest:
    guest = Guest(code)
    guest.machine.l1.write(0x500 + 0x20, (0x0000_8900_0B00_0067).to_bytes(8, "little"))
    guest.machine.l1.write(0xB00, tss32(0x1A00))
    guest.machine.l1.write(0x1A00, task)
    return guest


def test_a_far_jump_switches_tasks() -> None:
    guest = task_guest(mov(0, 0x2222) + b"\xea\0\0\0\0\x20\0", DONE)
    assert guest.result() == 0x1111
    assert guest.v[F.GUEST_TR_SELECTOR] == 0x20
    assert guest.machine.l1.load8(0x500 + 0x1D) & 2 == 0, "the old task is free"
    assert guest.machine.l1.load8(0x500 + 0x25) & 2, "the new one is busy"
    saved_eax = guest.machine.l1.load64(0x728) & 0xFFFF_FFFF
    assert saved_eax == 0x2222
    assert guest.v[F.GUEST_CR0] >> 3 & 1, "TS"


def test_a_call_and_an_iret_come_back() -> None:
    code = mov(0, 0x2222) + b"\x9a\0\0\0\0\x20\0" + DONE
    guest = task_guest(code, IRET)
    assert guest.result() == 0x2222
    assert guest.v[F.GUEST_TR_SELECTOR] == 0x18


def test_an_exception_through_a_task_gate_pushes_its_error_code() -> None:
    guest = task_guest(mov(0, 0x2000_0001) + mov_to_cr(0), b"\x58" + DONE)
    guest.machine.l1.write(IDT + 8 * 13, (0x20 << 16 | 0x8500 << 32).to_bytes(8, "little"))
    assert guest.result() == 0, "error code 0, popped"
    assert guest.v[F.GUEST_RFLAGS] >> 14 & 1, "NT: the task is nested"


def test_a_tss_that_is_too_small_is_refused() -> None:
    guest = task_guest(b"\xea\0\0\0\0\x20\0", DONE)
    guest.machine.l1.write(0x500 + 0x20, (0x0000_8900_0B00_0066).to_bytes(8, "little"))
    guest.interrupt_gate(10, 0x1900)
    guest.machine.l1.write(0x1900, b"\x58" + DONE)
    assert guest.result() == 0x20
