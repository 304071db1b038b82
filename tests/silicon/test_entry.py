"""VM entry: failures, guest state, MSR loading, event injection, activity states (SDM volume 3, 27)."""

import pytest

from tests.silicon.machine import CODE, DATA, STACK, Machine
from turtles.silicon import ENTRY_FAILURE, ExitReason, check_entry, controls, encodings, slots
from turtles.silicon import fields as f

EXTERNAL, NMI, HARDWARE, SOFTWARE, PRIVILEGED, SOFTWARE_EXCEPTION, OTHER = 0, 2, 3, 4, 5, 6, 7
VMCALL = bytes.fromhex("0f 01 c1")
CPUID = bytes.fromhex("0f a2")


def test_failures_are_told_apart() -> None:
    """SDM 27.2 and 27.8: error 7 for controls, 8 for host state, exit reason 33 for guest state."""
    machine = Machine()
    for field, value, result, rule in (
        (f.CR3_TARGET_COUNT, 5, -7, "cr3_target_count"),
        (f.HOST_CR3, 1 << 45, -8, "host_cr3"),
        (f.GUEST_CR3, 1 << 45, ExitReason.ENTRY_GUEST_STATE | ENTRY_FAILURE, "guest_cr3"),
        (f.GUEST_ACTIVITY, 9, ExitReason.ENTRY_GUEST_STATE | ENTRY_FAILURE, "guest_activity"),
    ):
        old = machine.slots[field]
        machine.slots[field] = value
        assert machine.run() == result
        broken = machine.core.broken_rule
        assert broken is not None
        assert broken.name == rule
        found = check_entry(machine.vmcs, machine.model)
        assert found is not None
        assert found.name == rule
        assert machine.slots[f.VM_INSTRUCTION_ERROR if result < 0 else f.EXIT_REASON] == (
            -result if result < 0 else result
        )
        machine.slots[field] = old
    assert machine.run() == ExitReason.HLT
    assert machine.core.broken_rule is None


def test_failed_entry_changes_nothing_else() -> None:
    """SDM 27.8: the guest state stays, the valid bit of the injected event too."""
    machine = Machine()
    machine.inject(6, HARDWARE)
    machine.slots[f.GUEST_VMCS_LINK_POINTER] = 0x123
    before = bytes(machine.slots[f.GUEST_AREA])
    assert machine.run() == ExitReason.ENTRY_GUEST_STATE | ENTRY_FAILURE
    assert machine.slots[f.EXIT_QUALIFICATION] == 4
    assert bytes(machine.slots[f.GUEST_AREA]) == before
    assert machine.slots[f.ENTRY_INTERRUPTION_INFO] >> 31
    assert machine.state[slots.RETIRED] == 0


def test_skipped_checks_notice_every_area() -> None:
    """A VMCS that passed is checked again where it changed, field by field, whatever was skipped before."""
    machine = Machine()
    assert machine.run() == ExitReason.HLT
    for field, value in (
        (f.GUEST_TR_ACCESS, 0x82),
        (f.GUEST_IDTR_LIMIT, 1 << 16),
        (f.GUEST_PAT, 2),
        (f.GUEST_EFER, 0xFFFF),
        (f.GUEST_CR4, 1 << 31),
        (f.GUEST_RFLAGS, 0),
        (f.GUEST_RFLAGS, 2 | 1 << 17),
        (f.GUEST_INTERRUPTIBILITY, 3),
        (f.GUEST_PENDING_DEBUG, 1 << 20),
        (f.HOST_RIP, 1 << 60),
        (f.HOST_CR0, 0),
        (f.EXIT_CONTROLS, 0),
        (f.CR3_TARGET_COUNT, 9),
        (f.ENTRY_INTERRUPTION_INFO, 1 << 31 | 1 << 8),
    ):
        old = machine.slots[field]
        machine.slots[field] = value
        assert machine.run() != ExitReason.HLT, f"slot {field}"
        machine.slots[field] = old
        assert machine.run() == ExitReason.HLT


def test_guest_state_makes_the_round_trip() -> None:
    """SDM 27.3.2, 28.3: what entry loads, exit saves."""
    machine = Machine(CPUID)
    values = {
        f.GUEST_RSP: 0x1234,
        f.GUEST_FS_BASE: 0x7FFF_1234_5678,
        f.GUEST_GS_BASE: 0xFFFF_8800_0000_0000,
        f.GUEST_DR7: 0x455,
        f.GUEST_DEBUGCTL: 2,
        f.GUEST_SYSENTER_CS: 0x10,
        f.GUEST_SYSENTER_ESP: 0x1111,
        f.GUEST_SYSENTER_EIP: 0x2222,
        f.GUEST_PAT: 0x0706050401000706,
        f.GUEST_INTERRUPTIBILITY: controls.BLOCKING_NMI,
        f.GUEST_LDTR_SELECTOR: 0x28,
        f.GUEST_IDTR_LIMIT: 0x123,
    }
    for field, value in values.items():
        machine.slots[field] = value
    assert machine.run() == ExitReason.CPUID
    assert {field: machine.slots[field] for field in values} == values
    assert machine.state[slots.DR7] == 0x455
    assert machine.state[slots.SEG + 4 * slots.FS + slots.BASE] == 0x7FFF_1234_5678


def test_cr0_bits_that_entry_does_not_load() -> None:
    """SDM 27.3.2.1: CD, NW and ET are the processor's."""
    machine = Machine(CPUID)
    machine.slots[f.GUEST_CR0] = machine.slots[f.GUEST_CR0] & ~0x10 | 3 << 29
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_CR0] & (3 << 29 | 0x10) == 0x10


def test_entry_without_load_efer() -> None:
    """SDM 27.3.2.1: LMA and LME follow the IA-32e mode guest control; the other bits stay."""
    machine = Machine(CPUID)
    machine.slots[f.ENTRY_CONTROLS] &= ~controls.ENTRY_LOAD_EFER
    machine.state[slots.EFER] = 1
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_EFER] == 0x501


def test_exit_stores_lma_into_the_entry_control() -> None:
    """SDM 28.2.5 and IA32_VMX_MISC bit 5."""
    machine = Machine(CPUID)
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.ENTRY_CONTROLS] & controls.ENTRY_IA32E


def test_unrestricted_guest_starts_in_real_mode() -> None:
    """SDM 27.6: PE = PG = 0 with EPT; a far jump to the reset vector's code works."""
    machine = Machine()
    machine.secondary(controls.SECONDARY_UNRESTRICTED)
    machine.slots[f.ENTRY_CONTROLS] &= ~controls.ENTRY_IA32E
    machine.slots[f.GUEST_EFER] = 0
    machine.slots[f.GUEST_CR0] = 0x30
    machine.slots[f.GUEST_CR4] = 0x2000
    for n in range(6):
        at = f.GUEST_ES_SELECTOR + 4 * n
        machine.slots[at] = machine.slots[at + 1] = 0
        machine.slots[at + 2] = 0xFFFF
        machine.slots[at + 3] = 0x9B if n == 1 else 0x93
    machine.slots[f.GUEST_RIP] = 0x7C00
    machine.memory.write(0x7C00, bytes.fromhex("b8 34 12 ea 00 80 00 00"))  # mov ax; ljmp 0:8000
    machine.memory.write(0x8000, bytes.fromhex("f4"))
    assert machine.run() == ExitReason.HLT
    assert machine.rip == 0x8000
    assert machine.gpr("RAX") == 0x1234


# --- MSR areas ---


def test_msr_load_and_store() -> None:
    """SDM 27.4, 28.4."""
    machine = Machine(CPUID)
    load, store = machine.page(), machine.page()
    machine.memory.store(load, 8, 0xC0000082)
    machine.memory.store(load + 8, 8, 0x1234)
    machine.slots[f.ENTRY_MSR_LOAD_COUNT], machine.slots[f.ENTRY_MSR_LOAD_ADDRESS] = 1, load
    machine.memory.store(store, 8, 0xC0000082)
    machine.slots[f.EXIT_MSR_STORE_COUNT], machine.slots[f.EXIT_MSR_STORE_ADDRESS] = 1, store
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slots.LSTAR] == 0x1234
    assert machine.memory.load(store + 8) == 0x1234


@pytest.mark.parametrize("entry", [0xC0000100, 0x800, 0x79, 1 << 32, 0x4000_0000], ids=hex)
def test_msr_load_failure(entry: int) -> None:
    """SDM 27.4, 27.8: exit reason 34, the number of the entry as qualification."""
    machine = Machine(CPUID)
    load = machine.page()
    machine.memory.store(load, 8, 0xC0000082)
    machine.memory.store(load + 16, 8, entry)
    machine.slots[f.ENTRY_MSR_LOAD_COUNT], machine.slots[f.ENTRY_MSR_LOAD_ADDRESS] = 2, load
    assert machine.run() == ExitReason.ENTRY_MSR_LOAD | ENTRY_FAILURE
    assert machine.slots[f.EXIT_QUALIFICATION] == 2


# --- event injection ---


def test_injected_interrupt() -> None:
    """SDM 27.6.1: delivered before the first instruction; the valid bit is cleared at the exit."""
    machine = Machine()
    machine.handler(0x30, CPUID)
    machine.slots[f.GUEST_RFLAGS] |= 1 << 9
    machine.inject(0x30, EXTERNAL)
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slots.RETIRED] == 0
    assert machine.slots[f.GUEST_RSP] == STACK - 40
    assert machine.memory.load(STACK - 40) == CODE
    assert machine.slots[f.GUEST_RFLAGS] & 1 << 9 == 0
    assert machine.slots[f.ENTRY_INTERRUPTION_INFO] >> 31 == 0


def test_injected_exception_with_error_code() -> None:
    """SDM 27.6.1: the error code is pushed; an injected #PF leaves CR2 alone."""
    machine = Machine()
    machine.handler(14, CPUID)
    machine.state[slots.CR2] = 0x1234
    machine.inject(14, HARDWARE, error=2)
    assert machine.run() == ExitReason.CPUID
    assert machine.memory.load(machine.slots[f.GUEST_RSP]) == 2
    assert machine.state[slots.CR2] == 0x1234


@pytest.mark.parametrize(
    ("vector", "kind", "length"), [(0x80, SOFTWARE, 2), (3, SOFTWARE_EXCEPTION, 1), (1, PRIVILEGED, 1)]
)
def test_injected_software_event(vector: int, kind: int, length: int) -> None:
    """SDM 27.6.1.1: the return address is RIP plus the instruction length."""
    machine = Machine()
    machine.handler(vector, CPUID)
    machine.inject(vector, kind, length=length)
    assert machine.run() == ExitReason.CPUID
    assert machine.memory.load(machine.slots[f.GUEST_RSP]) == CODE + length


def test_injected_nmi_blocks_nmis() -> None:
    """SDM 27.7.1: blocking by NMI until IRET."""
    machine = Machine(CPUID)
    machine.pin(controls.PIN_NMI | controls.PIN_VIRTUAL_NMIS)
    machine.handler(2, bytes.fromhex("48 cf"))
    machine.memory.store(machine.slots[f.GUEST_GDTR_BASE] + 8, 8, 0x00AF9B000000FFFF)
    machine.inject(2, NMI)
    machine.primary(controls.PRIMARY_MONITOR_TRAP)
    assert machine.run() == ExitReason.MONITOR_TRAP  # before the handler's first instruction
    assert machine.slots[f.GUEST_INTERRUPTIBILITY] & controls.BLOCKING_NMI
    machine.slots[f.PRIMARY_CONTROLS] &= ~controls.PRIMARY_MONITOR_TRAP
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_INTERRUPTIBILITY] & controls.BLOCKING_NMI == 0


def test_injected_events_do_not_exit_by_the_bitmap() -> None:
    """SDM 27.6.1.2: but what their delivery raises does, with IDT-vectoring information."""
    machine = Machine()
    machine.handler(6, CPUID)
    machine.slots[f.EXCEPTION_BITMAP] = 0xFFFFFFFF
    machine.inject(6, HARDWARE)
    assert machine.run() == ExitReason.CPUID
    machine.slots[f.GUEST_IDTR_LIMIT] = 0
    machine.inject(6, HARDWARE)
    assert machine.run() == ExitReason.EXCEPTION_OR_NMI
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] & 0xFF == 13
    assert machine.slots[f.IDT_VECTORING_INFO] == 6 | HARDWARE << 8 | 1 << 31


def test_injected_monitor_trap() -> None:
    """SDM 27.6.2: a pending MTF exit, before any instruction."""
    machine = Machine()
    machine.inject(0, OTHER)
    assert machine.run() == ExitReason.MONITOR_TRAP
    assert machine.rip == CODE
    assert machine.state[slots.RETIRED] == 0


# --- windows, blocking, activity ---


def test_interrupt_window() -> None:
    """SDM 26.2: as soon as IF = 1 and nothing blocks; STI blocks for one instruction."""
    machine = Machine(bytes.fromhex("fb 90 f4"))  # sti; nop; hlt
    machine.primary(controls.PRIMARY_INTERRUPT_WINDOW)
    assert machine.run() == ExitReason.INTERRUPT_WINDOW
    assert machine.rip == CODE + 2
    machine.slots[f.GUEST_INTERRUPTIBILITY] = controls.BLOCKING_STI
    machine.slots[f.GUEST_RIP] = CODE + 1
    assert machine.run() == ExitReason.INTERRUPT_WINDOW
    assert machine.rip == CODE + 2
    machine.slots[f.GUEST_RIP] = CODE + 1
    assert machine.run() == ExitReason.INTERRUPT_WINDOW
    assert machine.rip == CODE + 1


def test_nmi_window() -> None:
    """SDM 26.2: when there is no virtual-NMI blocking."""
    machine = Machine(bytes.fromhex("90 f4"))
    machine.pin(controls.PIN_NMI | controls.PIN_VIRTUAL_NMIS)
    machine.primary(controls.PRIMARY_NMI_WINDOW)
    machine.slots[f.GUEST_INTERRUPTIBILITY] = controls.BLOCKING_NMI
    assert machine.run() == ExitReason.HLT
    machine.slots[f.GUEST_INTERRUPTIBILITY] = 0
    machine.slots[f.GUEST_RIP] = CODE
    assert machine.run() == ExitReason.NMI_WINDOW
    assert machine.rip == CODE


def test_entry_into_hlt() -> None:
    """SDM 27.7.2: nothing executes; an injected event wakes; virtual time warps to the deadline."""
    machine = Machine(bytes.fromhex("0f 0b"))
    machine.slots[f.GUEST_ACTIVITY] = controls.ACTIVITY_HLT
    assert machine.run(deadline=5000) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.core.now() == 5000
    assert machine.state[slots.RETIRED] == 0
    assert machine.slots[f.GUEST_ACTIVITY] == controls.ACTIVITY_HLT
    machine.handler(0x30, CPUID)
    machine.slots[f.GUEST_RFLAGS] |= 1 << 9
    machine.inject(0x30, EXTERNAL)
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_ACTIVITY] == controls.ACTIVITY_ACTIVE


def test_hlt_without_exiting() -> None:
    """The guest sleeps in HLT until the host ends the run."""
    machine = Machine(bytes.fromhex("f4 0f a2"))
    machine.slots[f.PRIMARY_CONTROLS] &= ~controls.PRIMARY_HLT
    assert machine.run(deadline=5000) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.slots[f.GUEST_ACTIVITY] == controls.ACTIVITY_HLT
    assert machine.rip == CODE + 1


def test_pending_debug_exception() -> None:
    """SDM 27.7.3: delivered after entry, unless MOV SS blocks it."""
    machine = Machine(bytes.fromhex("90"))
    machine.handler(1, CPUID)
    machine.slots[f.GUEST_PENDING_DEBUG] = 1 << 14
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slots.DR6] & 1 << 14
    assert machine.slots[f.GUEST_PENDING_DEBUG] == 0
    assert machine.memory.load(machine.slots[f.GUEST_RSP]) == CODE


def test_replay_survives_a_deadline() -> None:
    """An instruction that has made a device access completes even when the deadline is over."""
    machine = Machine(bytes.fromhex("8b 07 0f a2"))  # mov eax, [rdi]
    machine.state[slots.RDI] = DATA
    machine.memory.store(machine.ept_4k + 8 * (DATA >> 12), 8, 0)
    assert machine.run() == ExitReason.EPT_VIOLATION
    machine.state[slots.ASSIST_DONE], machine.state[slots.ASSIST_RESULT] = 1, 7
    assert machine.core.enter(machine.vmcs, 0) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.rip == CODE + 2
    assert machine.gpr("RAX") == 7


def test_vmread_encodings_agree_with_slots() -> None:
    machine = Machine()
    machine.vmcs.write(encodings.TSC_OFFSET, 0x1122334455667788)
    assert machine.slots[f.TSC_OFFSET] == 0x1122334455667788
    assert machine.vmcs.read(encodings.TSC_OFFSET | 1) == 0x11223344
    machine.vmcs.write(encodings.TSC_OFFSET | 1, 1)
    assert machine.slots[f.TSC_OFFSET] == 0x155667788
    with pytest.raises(KeyError):
        machine.vmcs.read(0x9999)


def test_exit_in_the_shadow_of_sti() -> None:
    """SDM 28.3.4: HLT behind STI exits with blocking by STI."""
    machine = Machine(bytes.fromhex("fb f4"))
    assert machine.run() == ExitReason.HLT
    assert machine.slots[f.GUEST_INTERRUPTIBILITY] == controls.BLOCKING_STI
    assert machine.rip == CODE + 1
