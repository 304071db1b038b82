"""Every control that a capability MSR offers has a test that shows it (SDM volume 3, appendix A)."""

from types import ModuleType

import pytest

from tests.silicon import test_entry, test_exits
from tests.silicon.machine import CODE, DATA, GUEST_TABLES, Machine
from turtles.silicon import ExitReason, Model, controls, slots
from turtles.silicon import fields as f

CPUID = bytes.fromhex("0f a2")
BUSY = bytes.fromhex("eb fe")


def test_vpid_keeps_linear_mappings() -> None:
    """SDM 29.4.3.1: with VPID an entry flushes nothing, without it the translations of VPID 0 go."""
    for vpid in (True, False):
        machine = Machine(bytes.fromhex("8a 07 0f a2"))  # mov al, [rdi]
        if vpid:
            machine.secondary(controls.SECONDARY_VPID)
            machine.slots[f.VPID] = 7
        machine.memory.store(GUEST_TABLES, 8, 0x3000 | 7)  # linear 0..512 GiB: another PDPT
        machine.memory.store(0x3000, 8, 0x87)
        machine.memory.store(0x3008, 8, 0x87)  # 1 GiB: the same memory
        machine.memory.write(DATA, b"\x11")
        machine.state[slots.RDI] = (1 << 30) + DATA
        assert machine.run() == ExitReason.CPUID
        machine.memory.store(0x3008, 8, 0)  # no INVLPG
        machine.slots[f.GUEST_RIP] = CODE
        machine.slots[f.EXCEPTION_BITMAP] = 1 << 14
        assert machine.run() == (ExitReason.CPUID if vpid else ExitReason.EXCEPTION_OR_NMI)
        machine.slots[f.GUEST_RIP] = CODE
        machine.memory.invvpid(1, 7)
        assert machine.run() == ExitReason.EXCEPTION_OR_NMI


def test_acknowledge_interrupt_on_exit() -> None:
    """SDM 28.2.2: interruption information is valid with the control only."""
    machine = Machine(BUSY)
    assert machine.run(deadline=10) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 0
    machine.slots[f.EXIT_CONTROLS] |= controls.EXIT_ACKNOWLEDGE
    assert machine.run(deadline=10) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 0xFF | 1 << 31


@pytest.mark.parametrize(
    ("save", "load", "field", "slot", "value"),
    [
        (controls.EXIT_SAVE_PAT, controls.ENTRY_LOAD_PAT, f.GUEST_PAT, slots.PAT, 0x0606060606060606),
        (controls.EXIT_SAVE_DEBUG, controls.ENTRY_LOAD_DEBUG, f.GUEST_DR7, slots.DR7, 0x401),
        (controls.EXIT_SAVE_DEBUG, controls.ENTRY_LOAD_DEBUG, f.GUEST_DEBUGCTL, slots.DEBUGCTL, 2),
        (controls.EXIT_SAVE_EFER, controls.ENTRY_LOAD_EFER, f.GUEST_EFER, slots.EFER, 0xD00),
    ],
)
def test_save_and_load_controls(save: int, load: int, field: int, slot: int, value: int) -> None:
    """SDM 27.3.2.1, 28.3.1: loaded and saved with their controls only."""
    machine = Machine(CPUID)
    old = machine.slots[field]
    machine.slots[field] = value
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slot] == value
    machine.slots[f.EXIT_CONTROLS] &= ~save
    machine.slots[field] = old
    assert machine.run() == ExitReason.CPUID
    machine.state[slot] = value  # as if the guest had changed it
    machine.slots[f.ENTRY_CONTROLS] &= ~load
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slot] == value, "not loaded"
    assert machine.slots[field] == old, "not saved"


def test_host_state_controls_are_checked() -> None:
    """SDM 27.2.2: host state is never loaded, but the checks that the controls ask for are made."""
    for control, field in (
        (controls.EXIT_LOAD_PAT, f.HOST_PAT),
        (controls.EXIT_LOAD_EFER, f.HOST_EFER),
    ):
        machine = Machine(CPUID)
        machine.slots[field] = 2
        assert machine.run() == ExitReason.CPUID
        machine.slots[f.EXIT_CONTROLS] |= control
        assert machine.run() == -8


def test_external_interrupt_exiting() -> None:
    """A kick is an external-interrupt exit."""
    test_exits.test_kick_is_sticky()


X, E = test_exits, test_entry
SHOWN_BY: dict[str, object] = {
    "PIN_EXTERNAL_INTERRUPT": test_external_interrupt_exiting,
    "PIN_NMI": E.test_injected_nmi_blocks_nmis,
    "PIN_VIRTUAL_NMIS": E.test_nmi_window,
    "PIN_PREEMPTION_TIMER": X.test_preemption_timer,
    "PRIMARY_INTERRUPT_WINDOW": E.test_interrupt_window,
    "PRIMARY_TSC_OFFSETTING": X.test_tsc_offset_and_scaling,
    "PRIMARY_HLT": E.test_hlt_without_exiting,
    "PRIMARY_INVLPG": X.test_primary_controls,
    "PRIMARY_MWAIT": X.test_primary_controls,
    "PRIMARY_RDPMC": X.test_primary_controls,
    "PRIMARY_RDTSC": X.test_primary_controls,
    "PRIMARY_CR3_LOAD": X.test_primary_controls,
    "PRIMARY_CR3_STORE": X.test_primary_controls,
    "PRIMARY_CR8_LOAD": X.test_primary_controls,
    "PRIMARY_CR8_STORE": X.test_primary_controls,
    "PRIMARY_TPR_SHADOW": X.test_tpr_shadow,
    "PRIMARY_NMI_WINDOW": E.test_nmi_window,
    "PRIMARY_MOV_DR": X.test_primary_controls,
    "PRIMARY_UNCONDITIONAL_IO": X.test_port_exits,
    "PRIMARY_IO_BITMAPS": X.test_io_bitmaps,
    "PRIMARY_MONITOR_TRAP": X.test_monitor_trap_flag,
    "PRIMARY_MSR_BITMAPS": X.test_msr_bitmaps,
    "PRIMARY_MONITOR": X.test_primary_controls,
    "PRIMARY_PAUSE": X.test_primary_controls,
    "PRIMARY_SECONDARY": X.test_secondary_controls,
    "SECONDARY_APIC_ACCESSES": X.test_virtualized_apic_accesses,
    "SECONDARY_EPT": X.test_ept_violation,
    "SECONDARY_DESCRIPTOR_TABLE": X.test_secondary_controls,
    "SECONDARY_RDTSCP": X.test_enabling_controls,
    "SECONDARY_X2APIC": X.test_virtualized_x2apic,
    "SECONDARY_APIC_REGISTER": X.test_apic_registers,
    "SECONDARY_VIRTUAL_INTERRUPT": X.test_virtual_interrupts,
    "PIN_POSTED_INTERRUPTS": X.test_posted_interrupts,
    "SECONDARY_VPID": test_vpid_keeps_linear_mappings,
    "SECONDARY_WBINVD": X.test_secondary_controls,
    "SECONDARY_UNRESTRICTED": E.test_unrestricted_guest_starts_in_real_mode,
    "SECONDARY_RDRAND": X.test_secondary_controls,
    "SECONDARY_INVPCID": X.test_enabling_controls,
    "SECONDARY_VMCS_SHADOWING": X.test_shadowed_vmread_and_vmwrite,
    "SECONDARY_RDSEED": X.test_secondary_controls,
    "SECONDARY_XSAVES": X.test_enabling_controls,
    "SECONDARY_TSC_SCALING": X.test_tsc_offset_and_scaling,
    "EXIT_SAVE_DEBUG": test_save_and_load_controls,
    "EXIT_HOST_64": test_host_state_controls_are_checked,
    "EXIT_ACKNOWLEDGE": test_acknowledge_interrupt_on_exit,
    "EXIT_SAVE_PAT": test_save_and_load_controls,
    "EXIT_LOAD_PAT": test_host_state_controls_are_checked,
    "EXIT_SAVE_EFER": test_save_and_load_controls,
    "EXIT_LOAD_EFER": test_host_state_controls_are_checked,
    "EXIT_SAVE_TIMER": X.test_preemption_timer,
    "ENTRY_LOAD_DEBUG": test_save_and_load_controls,
    "ENTRY_IA32E": E.test_exit_stores_lma_into_the_entry_control,
    "ENTRY_LOAD_PAT": test_save_and_load_controls,
    "ENTRY_LOAD_EFER": E.test_entry_without_load_efer,
}


def offered(module: ModuleType, prefix: str, msr: int) -> dict[str, int]:
    """Controls that may be 1 and need not be."""
    value = Model().vmx_msr(msr)
    assert value is not None
    optional = value >> 32 & ~value & 0xFFFFFFFF
    names = {name: bit for name, bit in vars(module).items() if name.startswith(prefix)}
    covered = 0
    for bit in names.values():
        covered |= bit
    assert optional & ~covered == 0, f"{prefix}: a control without a name: {optional & ~covered:#x}"
    return {name: bit for name, bit in names.items() if bit & optional}


@pytest.mark.parametrize(
    ("prefix", "msr"),
    [("PIN_", 0x48D), ("PRIMARY_", 0x48E), ("SECONDARY_", 0x48B), ("EXIT_", 0x48F), ("ENTRY_", 0x490)],
)
def test_each_offered_control_is_shown(prefix: str, msr: int) -> None:
    names = set(offered(controls, prefix, msr))
    assert names == {name for name in SHOWN_BY if name.startswith(prefix)}
    assert all(callable(SHOWN_BY[name]) for name in names)
