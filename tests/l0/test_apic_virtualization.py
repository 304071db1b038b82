"""APIC virtualization offered to L1 (SDM chapter 30): L2's registers and interrupts, without exits."""

from __future__ import annotations

import pytest

from tests.l0.guest import CPUID, DONE, RDMSR, STI, WRMSR, mov
from tests.l0.nested_guest import L1_BASE, NestedGuest
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs.virtual_apic import interrupt_pending
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F

APIC_PAGE, BITMAP, DESCRIPTOR = 0x33_0000, 0x33_1000, 0x33_2040
REASON = b"\xb8" + E.EXIT_REASON.to_bytes(4, "little") + b"\x0f\x78\xc3" + b"\x89\xd8" + DONE
TPR, EOI, SELF_IPI, ID = 0x808, 0x80B, 0x83F, 0x802
NOTIFICATION = 0xF2
IDT = 0x6000
HLT = b"\xf4"


def wrmsr(msr: int, value: int) -> bytes:
    return mov(1, msr) + mov(0, value) + mov(2, 0) + WRMSR


def status(requesting: int, servicing: int) -> int:
    return requesting | servicing << 8


class Virtualized(NestedGuest):
    """L2 in x2APIC mode, as KVM sets it up with enable_apicv. Each of L2's vectors executes a VMCALL."""

    def __init__(self, l2: bytes, *, handler: bytes = REASON, delivery: bool = True) -> None:
        super().__init__(l2, handler)
        v12 = self.c.v
        v12[F.PRIMARY_CONTROLS] |= C.PRIMARY_TPR_SHADOW | C.PRIMARY_MSR_BITMAPS
        v12[F.SECONDARY_CONTROLS] |= C.SECONDARY_X2APIC
        v12[F.VIRTUAL_APIC_ADDRESS], v12[F.MSR_BITMAP] = APIC_PAGE, BITMAP
        if delivery:
            v12[F.SECONDARY_CONTROLS] |= C.SECONDARY_APIC_REGISTER | C.SECONDARY_VIRTUAL_INTERRUPT
            v12[F.PIN_CONTROLS] |= C.PIN_POSTED_INTERRUPTS
            v12[F.POSTED_INTERRUPT_VECTOR], v12[F.POSTED_INTERRUPT_DESCRIPTOR] = NOTIFICATION, DESCRIPTOR
        memory = self.machine.l1
        memory.write(L1_BASE + 0x5F00, b"\x0f\x01\xc1")
        gate = (0x5F00 | 8 << 16 | 0x8E << 40).to_bytes(8, "little")
        memory.write(L1_BASE + IDT, gate * 256)
        v12[F.GUEST_IDTR_BASE], v12[F.GUEST_IDTR_LIMIT] = IDT, 0x7FF
        memory.write(L1_BASE + 0x6800 + 8, (0x00CF_9B00_0000_FFFF).to_bytes(8, "little"))
        v12[F.GUEST_GDTR_BASE], v12[F.GUEST_GDTR_LIMIT] = 0x6800, 0x17

    def page(self, offset: int) -> int:
        return self.machine.l1.load64(APIC_PAGE + offset) & 0xFFFF_FFFF

    def exits(self, reason: ExitReason) -> int:
        """How often L2 exited for it, whoever handled it."""
        counts = self.vcpu.stats.counts[2]
        return counts[reason] + counts[reason + len(counts) // 2]


def test_tpr_and_self_ipi_of_l2_do_not_exit() -> None:
    guest = Virtualized(wrmsr(TPR, 0x70) + wrmsr(SELF_IPI, 0x45) + CPUID)
    assert guest.result() == ExitReason.CPUID
    assert guest.exits(ExitReason.WRMSR) == 0
    assert (guest.page(0x80), guest.page(0xA0), guest.page(0x220)) == (0x70, 0x70, 1 << 5)
    assert guest.c.v[F.GUEST_INTERRUPT_STATUS] == status(0x45, 0)


def test_registers_are_read_from_l1s_page() -> None:
    guest = Virtualized(mov(1, ID) + RDMSR + DONE)
    guest.put64(APIC_PAGE + 0x20, 0x1234)
    assert guest.result() == 0x1234


def test_an_interrupt_that_l1_requests_is_delivered_by_the_processor() -> None:
    guest = Virtualized(STI + b"\x90\x90" + CPUID)
    guest.c.v[F.GUEST_INTERRUPT_STATUS] = status(0x41, 0)
    guest.put64(APIC_PAGE + 0x220, 2)
    assert guest.result() == ExitReason.VMCALL
    assert guest.c.v[F.GUEST_INTERRUPT_STATUS] == status(0, 0x41)
    assert (guest.page(0x120), guest.page(0x220)) == (2, 0)
    assert guest.exits(ExitReason.INTERRUPT_WINDOW) == 0


@pytest.mark.parametrize("asked", [False, True])
def test_eoi_of_l2_exits_to_l1_only_where_it_asked(asked: bool) -> None:
    guest = Virtualized(wrmsr(EOI, 0) + CPUID)
    guest.c.v[F.GUEST_INTERRUPT_STATUS] = status(0, 0x41)
    guest.put64(APIC_PAGE + 0x120, 2)
    guest.c.v[F.EOI_EXIT_BITMAP1] = 2 if asked else 0
    assert guest.result() == (ExitReason.VIRTUALIZED_EOI if asked else ExitReason.CPUID)
    assert guest.c.v[F.EXIT_QUALIFICATION] == (0x41 if asked else 0)
    assert guest.c.v[F.GUEST_INTERRUPT_STATUS] == 0


def test_a_register_that_is_not_virtualized_is_the_one_of_l1s_apic() -> None:
    """Neither L1's bitmap nor its controls name the EOI register: the access reaches L1's local APIC."""
    guest = Virtualized(wrmsr(EOI, 0) + CPUID, delivery=False)
    guest.apic.msrs[EOI] = 0x77
    assert guest.result() == ExitReason.CPUID
    assert guest.apic.msrs[EOI] == 0
    assert guest.exits(ExitReason.WRMSR) == 1


def test_l1s_notification_vector_has_what_was_posted_processed() -> None:
    guest = Virtualized(STI + b"\x90" * 8 + CPUID)
    guest.put64(DESCRIPTOR + 8, 1 << (0x51 - 64))
    guest.put64(DESCRIPTOR + 32, 1)
    guest.apic.vectors = [NOTIFICATION]
    guest.vcpu.attention = False
    guest.machine.on_exit(ExitReason.VMLAUNCH, level=1)(lambda vcpu: setattr(vcpu, "waiting", True))
    assert guest.result() == ExitReason.VMCALL
    assert guest.c.v[F.GUEST_INTERRUPT_STATUS] == status(0, 0x51)
    assert guest.machine.l1.load64(DESCRIPTOR + 32) == 0
    assert (guest.apic.acknowledged, guest.apic.ended) == ([NOTIFICATION], 1)


def test_another_vector_of_l1_exits_to_it() -> None:
    guest = Virtualized(b"\x90" * 8 + CPUID)
    guest.apic.vectors = [NOTIFICATION - 1]
    guest.vcpu.attention = False
    guest.machine.on_exit(ExitReason.VMLAUNCH, level=1)(lambda vcpu: setattr(vcpu, "waiting", True))
    assert guest.result() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.c.v[F.EXIT_INTERRUPTION_INFO] & 0xFF == NOTIFICATION - 1


def test_a_virtual_interrupt_ends_hlt_that_l1_does_not_intercept() -> None:
    guest = Virtualized(STI + HLT + CPUID)
    guest.c.v[F.PRIMARY_CONTROLS] &= ~C.PRIMARY_HLT
    guest.c.v[F.GUEST_INTERRUPT_STATUS] = status(0x41, 0)
    guest.put64(APIC_PAGE + 0x220, 2)
    assert guest.result() == ExitReason.VMCALL


@pytest.mark.parametrize(
    ("rvi", "svi", "vtpr", "wakes"), [(0x41, 0, 0, True), (0x41, 0x40, 0, False), (0x41, 0, 0x4F, False)]
)
def test_what_a_halted_l2_waits_for(rvi: int, svi: int, vtpr: int, wakes: bool) -> None:
    guest = Virtualized(CPUID)
    guest.result()
    guest.put64(APIC_PAGE + 0x80, vtpr)
    guest.c.v02[F.GUEST_INTERRUPT_STATUS] = status(rvi, svi)
    guest.vcpu.switch_to_l2(guest.c)
    assert interrupt_pending(guest.vcpu) is wakes


@pytest.mark.parametrize("field", ["VIRTUAL_APIC_ADDRESS", "POSTED_INTERRUPT_DESCRIPTOR"])
def test_pages_outside_ram_take_the_control_away(field: str) -> None:
    guest = Virtualized(CPUID)
    guest.c.v[getattr(F, field)] = 0xD000_0000
    guest.c.v[F.TPR_THRESHOLD] = 0
    assert guest.result() == ExitReason.CPUID
    assert not guest.c.v02[F.PIN_CONTROLS] & C.PIN_POSTED_INTERRUPTS


def test_the_features_are_offered_unless_withheld() -> None:
    names = {"vapic_reg", "vid", "posted_intr"}
    assert names <= Virtualized(CPUID).machine.l1_model.features
    without = NestedGuest(CPUID, REASON, tactics=Tactics(offer_apicv=False)).machine
    assert not names & without.l1_model.features
    assert not (without.l1_model.vmx_msr(0x48B) or 0) >> 32 & C.SECONDARY_VIRTUAL_INTERRUPT
