"""From vmcs12 to vmcs02 and back: what L2 starts with, what L1 finds after an exit, where interrupts go."""

from __future__ import annotations

import pytest

from tests.l0.helpers import Rig, minimal_vmcs12
from turtles.l0.interrupts import delivery
from turtles.l0.mmu import ept
from turtles.l0.nested.errors import VmError
from turtles.l0.outcome import GuestStop
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs.vmcs12 import Vmcs12
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

REGION = 0x10_0000
TOP12 = 0x20_0000
EPTP12 = TOP12 | ept.EPTP_WALK_4 | ept.WRITE_BACK


@pytest.fixture
def root() -> Rig:
    rig = Rig()
    rig.enter_vmx()
    rig.vmptrld(REGION)
    minimal_vmcs12(current(rig).v, rig.v, EPTP12)
    # The host state asks for a 64-bit host, which is what L1 has to be in then (SDM 27.2.4).
    rig.regs[S.EFER] |= X.EFER_LMA | X.EFER_LME
    # ept12: 4 GiB onto itself.
    rig.put64(TOP12, 0x20_1000 | 7)
    for n in range(4):
        rig.put64(0x20_1000 + 8 * n, n << 30 | 7 | 6 << 3 | ept.LARGE)
    return rig


def current(rig: Rig) -> Vmcs12:
    c = rig.vcpu.current12
    assert c is not None
    return c


def enter(rig: Rig, name: str = "VMLAUNCH") -> Vmcs12:
    """L1 executes VMLAUNCH or VMRESUME, and the entry succeeds."""
    rig.v[F.EXIT_INSTRUCTION_LENGTH] = 3
    rig.call(name)
    assert rig.vcpu.level == 2, rig.vcpu.broken_rule or rig.vmx_result()
    rig.vcpu.entry_pending = False
    return current(rig)


def l2_exit(rig: Rig, reason: str, **fields: int) -> None:
    """Silicon left L2 with these fields."""
    v02 = rig.vcpu.v
    v02[F.EXIT_REASON] = ExitReason[reason]
    v02[F.IDT_VECTORING_INFO] = 0
    for name, value in fields.items():
        v02[getattr(F, name)] = value
    rig.call(reason)


def test_guest_state_goes_in_and_comes_back(root: Rig) -> None:
    c = current(root)
    c.v[F.GUEST_RIP], c.v[F.GUEST_RSP], c.v[F.GUEST_FS_BASE] = 0x1234, 0x5678, 0x9ABC
    enter(root)
    v02 = root.vcpu.v
    assert (v02[F.GUEST_RIP], v02[F.GUEST_RSP], v02[F.GUEST_FS_BASE]) == (0x1234, 0x5678, 0x9ABC)
    v02[F.GUEST_RIP], v02[F.GUEST_CR3] = 0x2222, 0x3333
    l2_exit(root, "CPUID", EXIT_INSTRUCTION_LENGTH=2, EXIT_QUALIFICATION=7)
    assert root.vcpu.level == 1
    assert (c.v[F.GUEST_RIP], c.v[F.GUEST_CR3]) == (0x2222, 0x3333)
    assert (c.v[F.EXIT_REASON], c.v[F.EXIT_INSTRUCTION_LENGTH]) == (ExitReason.CPUID, 2)
    assert c.v[F.LAUNCH_STATE] == 1


def test_l1_continues_at_its_host_state(root: Rig) -> None:
    c = current(root)
    c.v[F.HOST_FS_BASE], c.v[F.HOST_SYSENTER_EIP], c.v[F.HOST_SS_SELECTOR] = 0x1111, 0x2222, 0x18
    root.vcpu.v01[F.GUEST_RFLAGS] |= X.RFLAGS_IF
    root.vcpu.v01[F.GUEST_DR7] = 0x455
    enter(root)
    l2_exit(root, "CPUID")
    v = root.vcpu.v
    assert v is root.vcpu.v01
    assert (v[F.GUEST_RIP], v[F.GUEST_RSP], v[F.GUEST_RFLAGS]) == (0x7000, 0x8000, 2)
    assert (v[F.GUEST_CR3], v[F.GUEST_DR7], v[F.GUEST_DEBUGCTL]) == (0x2000, 0x400, 0)
    assert v[F.GUEST_CR0] & (X.CR0_PE | X.CR0_PG | X.CR0_NE) == X.CR0_PE | X.CR0_PG | X.CR0_NE
    assert v[F.GUEST_CR4] & (X.CR4_PAE | X.CR4_VMXE) == X.CR4_PAE | X.CR4_VMXE
    assert (v[F.GUEST_CS_SELECTOR], v[F.GUEST_CS_ACCESS], v[F.GUEST_CS_LIMIT]) == (8, 0xA09B, 0xFFFF_FFFF)
    assert (v[F.GUEST_SS_SELECTOR], v[F.GUEST_SS_ACCESS]) == (0x18, 0xC093)
    assert v[F.GUEST_DS_ACCESS] & X.ACCESS_UNUSABLE, "a null selector leaves the segment unusable"
    assert (v[F.GUEST_TR_SELECTOR], v[F.GUEST_TR_ACCESS], v[F.GUEST_TR_LIMIT]) == (0x10, 0x8B, 0x67)
    assert v[F.GUEST_LDTR_ACCESS] & X.ACCESS_UNUSABLE
    assert (v[F.GUEST_FS_BASE], v[F.GUEST_SYSENTER_EIP]) == (0x1111, 0x2222)
    assert (v[F.GUEST_GDTR_LIMIT], v[F.GUEST_IDTR_LIMIT]) == (0xFFFF, 0xFFFF)
    assert root.regs[S.EFER] & (X.EFER_LMA | X.EFER_LME) == X.EFER_LMA | X.EFER_LME
    # What is L0's in vmcs01 is not L1's to change: it still shadows the same vmcs12.
    assert v[F.GUEST_VMCS_LINK_POINTER] == c.host_pa


@pytest.mark.parametrize("fields", [["RSP"], ["RIP"], ["FS_BASE"], ["RSP", "GS_BASE"]])
def test_a_host_field_written_between_exits_counts(root: Rig, fields: list[str]) -> None:
    c = enter(root)
    l2_exit(root, "CPUID")
    for field in fields:
        c.v[getattr(F, "HOST_" + field)] = 0x9990
    c.v[F.WRITTEN] = F.WRITTEN_HOST_STATE
    enter(root, "VMRESUME")
    l2_exit(root, "CPUID")
    assert [root.vcpu.v[getattr(F, "GUEST_" + field)] for field in fields] == [0x9990] * len(fields)


@pytest.mark.parametrize(
    ("field", "value"), [(F.HOST_CR4, 0), (F.HOST_RIP, 1 << 63), (F.HOST_TR_SELECTOR, 0)]
)
def test_host_state_that_becomes_bad_is_refused(root: Rig, field: int, value: int) -> None:
    c = enter(root)
    l2_exit(root, "CPUID")
    c.v[field] = value
    c.v[F.WRITTEN] = F.WRITTEN_HOST_STATE
    root.call("VMRESUME")
    assert root.vmx_result() == VmError.ENTRY_HOST


def test_fields_are_saved_only_by_the_exit_controls(root: Rig) -> None:
    c = current(root)
    c.v[F.GUEST_EFER], c.v[F.GUEST_PAT] = 0xAA, 0xBB
    enter(root)
    v02 = root.vcpu.v
    v02[F.GUEST_EFER], v02[F.GUEST_PAT] = 1, 2
    l2_exit(root, "CPUID")
    assert (c.v[F.GUEST_EFER], c.v[F.GUEST_PAT]) == (0xAA, 0xBB)
    c.v[F.EXIT_CONTROLS] |= C.EXIT_SAVE_EFER
    c.v[F.WRITTEN] = F.WRITTEN_CONTROLS
    enter(root, "VMRESUME")
    v02 = root.vcpu.v
    v02[F.GUEST_EFER], v02[F.GUEST_PAT] = 1, 2
    l2_exit(root, "CPUID")
    assert (c.v[F.GUEST_EFER], c.v[F.GUEST_PAT]) == (1, 0xBB)


def test_the_link_pointer_of_vmcs12_never_reaches_vmcs02(root: Rig) -> None:
    c = enter(root)
    assert root.vcpu.v[F.GUEST_VMCS_LINK_POINTER] == X.NO_ADDRESS
    l2_exit(root, "CPUID")
    assert c.v[F.GUEST_VMCS_LINK_POINTER] == X.NO_ADDRESS


def test_a_bad_link_pointer_fails_the_entry(root: Rig) -> None:
    c = current(root)
    c.v[F.GUEST_VMCS_LINK_POINTER] = 0x123
    root.call("VMLAUNCH")
    assert root.vcpu.level == 1
    assert c.v[F.EXIT_REASON] == ExitReason.ENTRY_GUEST_STATE | X.ENTRY_FAILURE
    assert c.v[F.EXIT_QUALIFICATION] == 4
    assert c.v[F.LAUNCH_STATE] == 0
    assert root.v[F.GUEST_RIP] == 0x7000


def test_an_event_of_l1_is_injected_once(root: Rig) -> None:
    c = current(root)
    c.v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | 0x30
    enter(root)
    v02 = root.vcpu.v
    assert v02[F.ENTRY_INTERRUPTION_INFO] == X.VALID | 0x30
    v02[F.ENTRY_INTERRUPTION_INFO] &= ~X.VALID  # silicon delivered it
    l2_exit(root, "CPUID")
    assert not c.v[F.ENTRY_INTERRUPTION_INFO] & X.VALID


def test_the_instruction_error_survives_exits(root: Rig) -> None:
    c = current(root)
    c.v[F.VM_INSTRUCTION_ERROR] = 12
    enter(root)
    l2_exit(root, "CPUID")
    assert c.v[F.VM_INSTRUCTION_ERROR] == 12


def test_what_l1_did_not_ask_for_l0_handles(root: Rig) -> None:
    enter(root)
    rip = root.vcpu.v[F.GUEST_RIP]
    l2_exit(root, "PAUSE", EXIT_INSTRUCTION_LENGTH=2)
    assert root.vcpu.level == 2
    assert root.vcpu.v[F.GUEST_RIP] == rip + 2


def test_an_ept_violation_fills_ept02(root: Rig) -> None:
    c = enter(root)
    l2_exit(root, "EPT_VIOLATION", GUEST_PHYSICAL_ADDRESS=0x5000, EXIT_QUALIFICATION=0x181)
    assert root.vcpu.level == 2
    assert c.ept02 is not None and c.ept02.pages == 3


def test_a_violation_that_is_ept12s_goes_to_l1_with_its_rights(root: Rig) -> None:
    c = enter(root)
    l2_exit(
        root,
        "EPT_VIOLATION",
        GUEST_PHYSICAL_ADDRESS=5 << 30,
        GUEST_LINEAR_ADDRESS=0x77,
        EXIT_QUALIFICATION=0x1BA,
    )
    assert root.vcpu.level == 1
    assert c.v[F.EXIT_REASON] == ExitReason.EPT_VIOLATION
    assert (c.v[F.GUEST_PHYSICAL_ADDRESS], c.v[F.GUEST_LINEAR_ADDRESS]) == (5 << 30, 0x77)
    assert c.v[F.EXIT_QUALIFICATION] == 0x182, "rights are ept12's: none"


def test_a_misconfiguration_of_ept12_is_reflected_as_one(root: Rig) -> None:
    c = enter(root)
    root.put64(0x20_1000 + 8 * 5, 6)
    l2_exit(root, "EPT_VIOLATION", GUEST_PHYSICAL_ADDRESS=5 << 30, EXIT_QUALIFICATION=0x181)
    assert c.v[F.EXIT_REASON] == ExitReason.EPT_MISCONFIGURATION


def test_l2_reaches_l1s_devices_where_ept12_maps_them(root: Rig) -> None:
    enter(root)
    root.mmio.values[0xFEE0_0020] = 0xABCD
    root.regs[S.ASSIST_KIND], root.regs[S.ASSIST_WIDTH] = 3, 4
    l2_exit(root, "EPT_VIOLATION", GUEST_PHYSICAL_ADDRESS=0xFEE0_0020, EXIT_QUALIFICATION=0x181)
    assert root.vcpu.level == 2
    assert (root.regs[S.ASSIST_DONE], root.regs[S.ASSIST_RESULT]) == (1, 0xABCD)


def test_an_event_cut_short_is_injected_again(root: Rig) -> None:
    enter(root)
    info = X.VALID | X.TYPE_HARDWARE | X.HAS_ERROR_CODE | X.VECTOR_PF
    v02 = root.vcpu.v
    v02[F.EXIT_REASON] = ExitReason.EPT_VIOLATION
    v02[F.GUEST_PHYSICAL_ADDRESS], v02[F.EXIT_QUALIFICATION] = 0x5000, 0x181
    v02[F.IDT_VECTORING_INFO], v02[F.IDT_VECTORING_ERROR] = info, 3
    root.call("EPT_VIOLATION")
    assert (v02[F.ENTRY_INTERRUPTION_INFO], v02[F.ENTRY_ERROR_CODE]) == (info, 3)


@pytest.mark.parametrize("intercepted", [False, True])
def test_an_exception_that_l0_raises_in_l2(root: Rig, intercepted: bool) -> None:
    """L1 lets L2 read an MSR that its own processor does not have."""
    c = current(root)
    c.v[F.PRIMARY_CONTROLS] |= C.PRIMARY_MSR_BITMAPS
    c.v[F.MSR_BITMAP] = 0x30_0000
    c.v[F.EXCEPTION_BITMAP] = (1 << X.VECTOR_GP) * intercepted
    enter(root)
    root.regs[S.RCX] = 0x8FF
    l2_exit(root, "RDMSR")
    gp = X.VALID | X.TYPE_HARDWARE | X.HAS_ERROR_CODE | X.VECTOR_GP
    if intercepted:
        assert root.vcpu.level == 1
        assert (c.v[F.EXIT_REASON], c.v[F.EXIT_INTERRUPTION_INFO]) == (ExitReason.EXCEPTION_OR_NMI, gp)
    else:
        assert root.vcpu.level == 2
        assert root.vcpu.v[F.ENTRY_INTERRUPTION_INFO] == gp


# --- interrupts ---


def test_an_interrupt_for_l1_leaves_l2(root: Rig) -> None:
    c = enter(root)
    root.apic.vectors = [0x40]
    delivery.deliver(root.vcpu)
    assert root.vcpu.level == 1
    assert c.v[F.EXIT_REASON] == ExitReason.EXTERNAL_INTERRUPT
    assert c.v[F.EXIT_INTERRUPTION_INFO] == X.VALID | 0x40, "acknowledged on exit"
    assert root.apic.acknowledged == [0x40]


def test_without_acknowledge_the_interrupt_stays_pending(root: Rig) -> None:
    current(root).v[F.EXIT_CONTROLS] &= ~C.EXIT_ACKNOWLEDGE
    c = enter(root)
    root.apic.vectors = [0x40]
    delivery.deliver(root.vcpu)
    assert c.v[F.EXIT_REASON] == ExitReason.EXTERNAL_INTERRUPT
    assert not c.v[F.EXIT_INTERRUPTION_INFO] & X.VALID
    assert root.apic.acknowledged == []
    # L1's host state has IF = 0: it waits for the window.
    assert root.v[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW


@pytest.mark.parametrize("pending", ["entry", "event"])
def test_an_interrupt_waits_while_l2_cannot_be_left(root: Rig, pending: str) -> None:
    enter(root)
    if pending == "entry":
        root.vcpu.entry_pending = True
    else:
        root.vcpu.v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | X.TYPE_HARDWARE | X.VECTOR_GP
    root.apic.vectors = [0x40]
    delivery.deliver(root.vcpu)
    assert root.vcpu.level == 2
    assert root.apic.acknowledged == []


def test_an_interrupt_that_l1_does_not_intercept_goes_into_l2(root: Rig) -> None:
    c = current(root)
    c.v[F.PIN_CONTROLS] &= ~C.PIN_EXTERNAL_INTERRUPT
    c.v[F.EXIT_CONTROLS] &= ~C.EXIT_ACKNOWLEDGE
    c.v[F.GUEST_RFLAGS] = 2
    enter(root)
    root.apic.vectors = [0x40]
    delivery.deliver(root.vcpu)
    v02 = root.vcpu.v
    assert v02[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW
    l2_exit(root, "INTERRUPT_WINDOW", GUEST_RFLAGS=0x202)
    assert root.vcpu.level == 2, "the window was L0's"
    delivery.deliver(root.vcpu)
    assert v02[F.ENTRY_INTERRUPTION_INFO] == X.VALID | 0x40
    assert not v02[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW


def test_an_nmi_for_l1_leaves_l2_and_blocks_further_ones(root: Rig) -> None:
    c = enter(root)
    root.apic.nmi_pending = True
    delivery.deliver(root.vcpu)
    assert root.vcpu.level == 1
    assert c.v[F.EXIT_REASON] == ExitReason.EXCEPTION_OR_NMI
    assert c.v[F.EXIT_INTERRUPTION_INFO] == X.VALID | X.TYPE_NMI | 2
    assert root.v[F.GUEST_INTERRUPTIBILITY] & C.BLOCKING_NMI


def test_interrupts_of_l1_itself() -> None:
    rig = Rig()
    rig.apic.vectors = [0x31, 0x55]
    delivery.deliver(rig.vcpu)
    assert rig.v[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW
    assert not rig.v[F.ENTRY_INTERRUPTION_INFO]
    rig.v[F.GUEST_RFLAGS] |= X.RFLAGS_IF
    delivery.deliver(rig.vcpu)
    assert rig.v[F.ENTRY_INTERRUPTION_INFO] == X.VALID | 0x55
    assert not rig.v[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW


@pytest.mark.parametrize("blocking", [C.BLOCKING_STI, C.BLOCKING_MOV_SS])
def test_an_interrupt_shadow_delays(blocking: int) -> None:
    rig = Rig()
    rig.v[F.GUEST_RFLAGS] |= X.RFLAGS_IF
    rig.v[F.GUEST_INTERRUPTIBILITY] = blocking
    rig.apic.vectors = [0x31]
    delivery.deliver(rig.vcpu)
    assert rig.v[F.PRIMARY_CONTROLS] & C.PRIMARY_INTERRUPT_WINDOW
    assert rig.apic.acknowledged == []


# --- MSR bitmap and MSR areas ---


def test_msr_bitmaps_are_merged_and_followed(root: Rig) -> None:
    c = current(root)
    c.v[F.PRIMARY_CONTROLS] |= C.PRIMARY_MSR_BITMAPS
    c.v[F.MSR_BITMAP] = 0x30_0000
    root.machine.l1.write(0x30_0000 + (0x174 >> 3), bytes([1 << 4]))
    enter(root)
    bitmap = root.memory.read(root.vcpu.v[F.MSR_BITMAP], 4096)
    assert bitmap[0x174 >> 3] >> 4 & 1, "L1's"
    assert bitmap[0x6E0 >> 3] & 1, "L0's"
    assert not bitmap[0x175 >> 3] >> 5 & 1
    l2_exit(root, "CPUID")
    root.machine.l1.write(0x30_0000 + (0x175 >> 3), bytes([1 << 5]))
    enter(root, "VMRESUME")
    assert root.memory.read(root.vcpu.v[F.MSR_BITMAP], 4096)[0x175 >> 3] >> 5 & 1


def msr_entry(msr: int, value: int, reserved: int = 0) -> bytes:
    return msr.to_bytes(4, "little") + reserved.to_bytes(4, "little") + value.to_bytes(8, "little")


def test_msr_areas(root: Rig) -> None:
    c = current(root)
    root.machine.l1.write(0x30_0000, msr_entry(0xC000_0102, 0x1111))
    root.machine.l1.write(0x30_1000, msr_entry(0xC000_0102, 0))
    root.machine.l1.write(0x30_2000, msr_entry(0xC000_0102, 0x3333))
    c.v[F.ENTRY_MSR_LOAD_COUNT], c.v[F.ENTRY_MSR_LOAD_ADDRESS] = 1, 0x30_0000
    c.v[F.EXIT_MSR_STORE_COUNT], c.v[F.EXIT_MSR_STORE_ADDRESS] = 1, 0x30_1000
    c.v[F.EXIT_MSR_LOAD_COUNT], c.v[F.EXIT_MSR_LOAD_ADDRESS] = 1, 0x30_2000
    enter(root)
    assert root.regs[S.KERNEL_GS_BASE] == 0x1111
    root.regs[S.KERNEL_GS_BASE] = 0x2222
    l2_exit(root, "CPUID")
    assert root.machine.l1.load64(0x30_1008) == 0x2222
    assert root.regs[S.KERNEL_GS_BASE] == 0x3333


@pytest.mark.parametrize(
    "bad",
    [
        msr_entry(0xC000_0100, 0),
        msr_entry(0x808, 0),
        msr_entry(0xC000_0102, 0, 1),
        msr_entry(0xC000_0102, 1 << 47),
    ],
)
def test_an_msr_that_cannot_be_loaded_fails_the_entry(root: Rig, bad: bytes) -> None:
    c = current(root)
    root.machine.l1.write(0x30_0000, msr_entry(0xC000_0102, 0) + bad)
    c.v[F.ENTRY_MSR_LOAD_COUNT], c.v[F.ENTRY_MSR_LOAD_ADDRESS] = 2, 0x30_0000
    root.call("VMLAUNCH")
    assert root.vcpu.level == 1
    assert c.v[F.EXIT_REASON] == ExitReason.ENTRY_MSR_LOAD | X.ENTRY_FAILURE
    assert c.v[F.EXIT_QUALIFICATION] == 2


def test_a_hostile_vmcs12_gets_an_answer(root: Rig) -> None:
    """Random fields on top of good ones: VMfail, a failed entry, L2, or a VMX abort; never a Python error."""
    import random

    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    good = current(root).v.tolist()
    for _ in range(400):
        c = current(root)
        for slot in range(8, 146):
            c.v[slot] = good[slot]
        for _ in range(rng.randrange(1, 6)):
            c.v[rng.randrange(8, 146)] = rng.choice([rng.getrandbits(64), rng.getrandbits(12), (1 << 64) - 1])
        c.v[F.LAUNCH_STATE] = 0
        c.v[F.WRITTEN] = 0x7FF
        try:
            root.call("VMLAUNCH")
            if root.vcpu.level == 2:
                l2_exit(root, "CPUID")
        except GuestStop as abort:
            assert "VMX abort" in str(abort)  # an MSR area that cannot be stored or loaded at the exit
            root.vcpu.switch_to_l1()
        root.supervisor()
        root.v[F.ENTRY_INTERRUPTION_INFO] = 0
