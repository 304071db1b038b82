"""APIC virtualization: what vmcs12 asks of it, in vmcs02 (SDM chapter 30).

The virtual-APIC page, the APIC-access page and the posted-interrupt descriptor stay L1's own: vmcs02 names
them by host_pa, and silicon works on them in L1's memory, so that TPR, EOI and self-IPIs of L2 cost no exit.
Where L1 named what is not RAM, the control is left out and L2's accesses exit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from turtles.silicon import controls as C
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

_CR8: Final = C.PRIMARY_CR8_LOAD | C.PRIMARY_CR8_STORE
# What has no virtual-APIC page to work on without a TPR shadow (SDM 27.2.1.1).
_NEEDS_SHADOW: Final = C.SECONDARY_X2APIC | C.SECONDARY_APIC_REGISTER | C.SECONDARY_VIRTUAL_INTERRUPT
_EOI_BITMAPS: Final = (F.EOI_EXIT_BITMAP0, F.EOI_EXIT_BITMAP1, F.EOI_EXIT_BITMAP2, F.EOI_EXIT_BITMAP3)
# MSRs of x2APIC mode that silicon virtualizes: always, and writes with virtual-interrupt delivery (SDM 30.5).
_TPR: Final = frozenset((0x808,))
_WITH_DELIVERY: Final = frozenset((0x808, 0x80B, 0x83F))
_ALL: Final = frozenset(range(0x800, 0x900))


class Merged(NamedTuple):
    """Control fields of vmcs02."""

    pin: int
    primary: int
    secondary: int


def merge(vcpu: Vcpu, c: Vmcs12, pin02: int, primary02: int, secondary02: int) -> Merged:
    """Sets the addresses and bitmaps of vmcs02; the controls, less what cannot be had."""
    v, v02, l1 = c.v, c.v02, vcpu.machine.l1
    if primary02 & C.PRIMARY_TPR_SHADOW:
        virtual_apic = l1.host_page(v[F.VIRTUAL_APIC_ADDRESS])
        if virtual_apic < 0:
            # No such page can stand for the TPR. CR8 then goes to L0, as without a shadow.
            primary02 = primary02 & ~C.PRIMARY_TPR_SHADOW | _CR8
        else:
            v02[F.VIRTUAL_APIC_ADDRESS] = virtual_apic
    if not primary02 & C.PRIMARY_TPR_SHADOW:
        secondary02 &= ~_NEEDS_SHADOW
    if secondary02 & C.SECONDARY_APIC_ACCESSES:
        c.apic_access_l1_pa = v[F.APIC_ACCESS_ADDRESS]
        host_pa = l1.host_page(c.apic_access_l1_pa)
        v02[F.APIC_ACCESS_ADDRESS] = vcpu.machine.apic_stand_in if host_pa < 0 else host_pa
    else:
        c.apic_access_l1_pa = -1
    c.delivers = bool(secondary02 & C.SECONDARY_VIRTUAL_INTERRUPT)
    c.posted_vector = -1
    if c.delivers:
        for slot in _EOI_BITMAPS:
            v02[slot] = v[slot]
    if pin02 & C.PIN_POSTED_INTERRUPTS:
        descriptor = l1.host_pa(v[F.POSTED_INTERRUPT_DESCRIPTOR])
        if c.delivers and descriptor >= 0:
            c.posted_vector = v02[F.POSTED_INTERRUPT_VECTOR] = v[F.POSTED_INTERRUPT_VECTOR]
            v02[F.POSTED_INTERRUPT_DESCRIPTOR] = descriptor
        else:
            pin02 &= ~C.PIN_POSTED_INTERRUPTS
    return Merged(pin02, primary02, secondary02)


def x2apic_msrs(secondary02: int) -> tuple[frozenset[int], frozenset[int]]:
    """MSRs of x2APIC mode that need no exit where L1 asks for none: reads and writes."""
    if not secondary02 & C.SECONDARY_X2APIC:
        return frozenset(), frozenset()
    return (
        _ALL if secondary02 & C.SECONDARY_APIC_REGISTER else _TPR,
        _WITH_DELIVERY if secondary02 & C.SECONDARY_VIRTUAL_INTERRUPT else _TPR,
    )


def interrupt_pending(vcpu: Vcpu) -> bool:
    """Whether a halted L2 has a virtual interrupt to take as soon as it is entered (SDM 30.1.3, 30.2.1)."""
    v = vcpu.v
    requesting, servicing = v[F.GUEST_INTERRUPT_STATUS] & 0xF0, v[F.GUEST_INTERRUPT_STATUS] >> 8 & 0xF0
    vtpr = vcpu.machine.memory.load(v[F.VIRTUAL_APIC_ADDRESS] + 0x80, 4) & 0xF0
    return requesting > max(vtpr, servicing)
