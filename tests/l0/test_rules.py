"""The merge rules of the paper, held against the functions that apply them; the tables name real areas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from turtles.l0.vmcs import rules
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon._silicon import VMCS_FIELDS

u32 = st.integers(0, 0xFFFF_FFFF)
u64 = st.integers(0, 0xFFFF_FFFF_FFFF_FFFF)


@given(u32, u32)
def test_pin_controls_or_but_for_the_timer(pin01: int, pin12: int) -> None:
    merged = rules.merge_pin(pin01, pin12)
    own = C.PIN_PREEMPTION_TIMER | C.PIN_POSTED_INTERRUPTS
    assert merged & ~own == (pin01 | pin12) & ~own
    assert merged & C.PIN_PREEMPTION_TIMER == pin12 & C.PIN_PREEMPTION_TIMER
    assert merged & C.PIN_POSTED_INTERRUPTS == pin12 & C.PIN_POSTED_INTERRUPTS


@given(u32, u32)
def test_primary_controls(primary01: int, primary12: int) -> None:
    merged = rules.merge_primary(primary01, primary12)
    # L0's windows, TPR shadow and trap flag are never inherited; what L1 traps is trapped.
    for bit in (
        C.PRIMARY_INTERRUPT_WINDOW,
        C.PRIMARY_NMI_WINDOW,
        C.PRIMARY_TPR_SHADOW,
        C.PRIMARY_MONITOR_TRAP,
    ):
        assert merged & bit == primary12 & bit
    exiting = C.PRIMARY_HLT | C.PRIMARY_INVLPG | C.PRIMARY_MWAIT | C.PRIMARY_RDTSC | C.PRIMARY_MOV_DR
    assert merged & exiting == (primary01 | primary12) & exiting
    # Every port exits; MSR bitmaps only where both have them.
    assert merged & C.PRIMARY_UNCONDITIONAL_IO
    assert not merged & C.PRIMARY_IO_BITMAPS
    assert bool(merged & C.PRIMARY_MSR_BITMAPS) == bool(primary12 & C.PRIMARY_MSR_BITMAPS)


def test_cr8_is_l0s_without_a_tpr_shadow_of_l1() -> None:
    cr8 = C.PRIMARY_CR8_LOAD | C.PRIMARY_CR8_STORE
    assert rules.merge_primary(cr8, 0) & cr8 == cr8
    assert rules.merge_primary(cr8, C.PRIMARY_TPR_SHADOW) & cr8 == 0
    assert rules.merge_primary(cr8, C.PRIMARY_TPR_SHADOW | C.PRIMARY_CR8_LOAD) & cr8 == C.PRIMARY_CR8_LOAD


@given(u32, u32)
def test_secondary_controls(secondary01: int, secondary12: int) -> None:
    merged = rules.merge_secondary(secondary01, secondary12)
    for bit in (
        C.SECONDARY_RDTSCP,
        C.SECONDARY_INVPCID,
        C.SECONDARY_XSAVES,
        C.SECONDARY_UNRESTRICTED,
        C.SECONDARY_X2APIC,
        C.SECONDARY_APIC_ACCESSES,
        C.SECONDARY_VPID,
        C.SECONDARY_VMCS_SHADOWING,
    ):
        assert merged & bit == secondary12 & bit
    for bit in (C.SECONDARY_WBINVD, C.SECONDARY_DESCRIPTOR_TABLE, C.SECONDARY_RDRAND, C.SECONDARY_PAUSE_LOOP):
        assert merged & bit == (secondary01 | secondary12) & bit
    assert not merged & (C.SECONDARY_PML | C.SECONDARY_VMFUNC)
    assert merged & C.SECONDARY_EPT == secondary01 & C.SECONDARY_EPT


@given(u64, u64)
def test_tsc_offsets_add(offset01: int, offset12: int) -> None:
    assert rules.merge_tsc(offset01, None, offset12) == (offset01 + offset12) % (1 << 64)
    assert rules.merge_tsc(offset01, 1 << 48, offset12) == (offset01 + offset12) % (1 << 64)


def test_tsc_offset_is_scaled_by_l1s_multiplier() -> None:
    assert rules.merge_tsc(1000, 3 << 47, 5) == 1505
    assert rules.merge_tsc((1 << 64) - 1000, 3 << 47, 5) == (1 << 64) - 1495


def test_what_is_copied_whole_is_guest_state() -> None:
    names = {slot: name for name, (slot, _) in VMCS_FIELDS.items()}
    copied = [names[slot] for slot in range(rules.GUEST_STATE.start, rules.GUEST_STATE.stop)]
    assert all(name.startswith("GUEST_") for name in copied)
    rest = set(range(F.GUEST_AREA.start, F.GUEST_AREA.stop)) - set(
        range(rules.GUEST_STATE.start, rules.GUEST_STATE.stop)
    )
    assert {names[slot] for slot in rest} == {
        "GUEST_SMBASE",
        "GUEST_VMCS_LINK_POINTER",
        "GUEST_PREEMPTION_TIMER",
        "GUEST_INTERRUPT_STATUS",
    }


def test_exit_information_leaves_the_instruction_error_alone() -> None:
    area = range(rules.EXIT_INFORMATION.start, rules.EXIT_INFORMATION.stop)
    assert F.VM_INSTRUCTION_ERROR not in area
    for slot in (
        F.EXIT_REASON,
        F.EXIT_QUALIFICATION,
        F.GUEST_PHYSICAL_ADDRESS,
        F.GUEST_LINEAR_ADDRESS,
        F.EXIT_INTERRUPTION_INFO,
        F.EXIT_INTERRUPTION_ERROR,
        F.IDT_VECTORING_INFO,
        F.IDT_VECTORING_ERROR,
        F.EXIT_INSTRUCTION_LENGTH,
        F.EXIT_INSTRUCTION_INFO,
    ):
        assert slot in area


def test_every_host_field_reaches_l1() -> None:
    """PAT and EFER live in the core, by the VM-exit controls; all else of the host area is in the table."""
    mapped = {host for _, host in rules.HOST_TO_GUEST} | {F.HOST_PAT, F.HOST_EFER}
    assert mapped == set(range(F.HOST_AREA.start, F.HOST_AREA.stop))


def test_the_host_area_ends_with_rsp_and_rip() -> None:
    assert F.HOST_AREA.stop == F.HOST_RIP + 1 == F.HOST_RSP + 2
    assert slice(F.HOST_AREA.start, F.HOST_RSP) == rules.HOST_BUT_STACK


def test_every_control_is_accounted_for() -> None:
    """A control field is copied, merged by code of its own, or known to stay out of vmcs02."""
    merged = {
        "PIN_CONTROLS", "PRIMARY_CONTROLS", "SECONDARY_CONTROLS", "EXIT_CONTROLS", "ENTRY_CONTROLS",
        "EXCEPTION_BITMAP", "MSR_BITMAP", "VIRTUAL_APIC_ADDRESS", "APIC_ACCESS_ADDRESS", "EPT_POINTER",
        "VPID",
        "TSC_OFFSET", "TSC_MULTIPLIER", "TPR_THRESHOLD", "VMREAD_BITMAP", "VMWRITE_BITMAP",
        "POSTED_INTERRUPT_VECTOR", "POSTED_INTERRUPT_DESCRIPTOR",
        "EOI_EXIT_BITMAP0", "EOI_EXIT_BITMAP1", "EOI_EXIT_BITMAP2", "EOI_EXIT_BITMAP3",
    }  # fmt: skip
    left_out = {
        "IO_BITMAP_A", "IO_BITMAP_B", "EXIT_MSR_STORE_COUNT", "EXIT_MSR_STORE_ADDRESS", "EXIT_MSR_LOAD_COUNT",
        "EXIT_MSR_LOAD_ADDRESS", "ENTRY_MSR_LOAD_COUNT", "ENTRY_MSR_LOAD_ADDRESS", "EXECUTIVE_VMCS_POINTER",
    }  # fmt: skip
    copied = set(rules.CONTROLS_COPIED) | set(rules.MASKS_COPIED) | set(rules.EVENT_COPIED)
    names = {
        name
        for name, (slot, _) in VMCS_FIELDS.items()
        if slot in range(F.CONTROL_AREA.start, F.CONTROL_AREA.stop)
    }
    copied_names = {name for name, (slot, _) in VMCS_FIELDS.items() if slot in copied}
    assert names == merged | left_out | copied_names
    assert not (merged & copied_names or left_out & copied_names)
