"""EPT violations and misconfigurations: device accesses, ept02's faults, and those that are L1's.

Silicon left address, width and data of a device access in the core and ends the instruction when L0 has
done it. Where the access is none that a device could answer (a fetch, a page walk), a page of ones is
mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.mmu import ept
from turtles.l0.mmu.ept02 import Resolve
from turtles.l0.nested.reflect import reflect_as
from turtles.l0.outcome import GuestStop
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

MMIO_READ: Final = 3
MMIO_WRITE: Final = 4
TRACKED_WRITE: Final = 5
PERMIT: Final = 2  # assist_done: silicon does this access itself
_KEPT: Final = ept.QUAL_ACCESS | ept.QUAL_LINEAR_VALID | ept.QUAL_FINAL | ept.QUAL_NMI_UNBLOCKED


def violation(vcpu: Vcpu) -> None:
    """EPT violation of L1: a write to a tracked page, a device, or nothing."""
    v = vcpu.v
    l1_pa = v[F.GUEST_PHYSICAL_ADDRESS]
    if vcpu.machine.l1.host_pa(l1_pa) >= 0:
        _tracked(vcpu, l1_pa)
        return
    if v[F.IDT_VECTORING_INFO] & X.VALID or v[F.EXIT_QUALIFICATION] & X.NMI_UNBLOCKED_BY_IRET:
        vcpu.reinject()
    if not device(vcpu, l1_pa):
        vcpu.machine.mmu.map_l1(l1_pa, vcpu.machine.nothing_host_pa)


def _tracked(vcpu: Vcpu, l1_pa: int) -> None:
    """A write to a page that ept01 has read-only, since L0 follows what lies there: permitted this once."""
    v, regs, mmu = vcpu.v, vcpu.regs, vcpu.machine.mmu
    if not mmu.tracks(l1_pa):
        raise GuestStop(f"EPT violation in L1's RAM at {l1_pa:#x}")
    if v[F.IDT_VECTORING_INFO] & X.VALID or regs[S.ASSIST_KIND] != TRACKED_WRITE:
        # Event delivery, or the accessed flag of a page-table entry: no single store of an instruction.
        mmu.untrack(l1_pa)
        vcpu.reinject()
        keep_replayed(vcpu)
        return
    mmu.tracked_write(l1_pa, regs[S.ASSIST_WIDTH], regs[S.ASSIST_DATA])
    regs[S.ASSIST_DONE] = PERMIT


def keep_replayed(vcpu: Vcpu) -> None:
    """In the middle of an instruction whose earlier accesses are done: keep those."""
    if vcpu.regs[S.REPLAY_COUNT]:
        vcpu.regs[S.ASSIST_DONE] = PERMIT


def device(vcpu: Vcpu, l1_pa: int) -> bool:
    """Does a device access for the instruction that exited; false if it is none that a device can answer."""
    regs = vcpu.regs
    kind = regs[S.ASSIST_KIND]
    if kind == MMIO_WRITE:
        vcpu.machine.mmio.write(l1_pa, regs[S.ASSIST_WIDTH], regs[S.ASSIST_DATA])
    elif kind == MMIO_READ:
        regs[S.ASSIST_RESULT] = vcpu.machine.mmio.read(l1_pa, regs[S.ASSIST_WIDTH])
    else:
        return False
    regs[S.ASSIST_DONE] = 1
    vcpu.attention = True
    return True


def violation_l2(vcpu: Vcpu) -> None:
    """EPT violation of L2: ept02 is filled, L1's device is accessed, or the fault is ept12's, so L1's."""
    v = vcpu.v
    qualification = v[F.EXIT_QUALIFICATION]
    pa = v[F.GUEST_PHYSICAL_ADDRESS]
    c = vcpu.entered12
    machine = vcpu.machine
    if c.ept02 is None and machine.l1.host_pa(pa) >= 0:
        _tracked(vcpu, pa)
        return
    what, value = machine.mmu.resolve(c, pa, qualification & ept.QUAL_ACCESS)
    if what is Resolve.REFLECT_VIOLATION:
        reflect_as(vcpu, ExitReason.EPT_VIOLATION, qualification & _KEPT | value << ept.QUAL_RIGHTS_SHIFT)
        return
    if what is Resolve.REFLECT_MISCONFIGURATION:
        reflect_as(vcpu, ExitReason.EPT_MISCONFIGURATION)
        return
    if v[F.IDT_VECTORING_INFO] & X.VALID or qualification & X.NMI_UNBLOCKED_BY_IRET:
        vcpu.reinject()
    if what is Resolve.MAPPED:
        keep_replayed(vcpu)
        return
    if c.apic_access_l1_pa >= 0 and value & ~0xFFF == c.apic_access_l1_pa:
        # L1's APIC-access page is not RAM: what silicon compares with is a page that stands for it.
        machine.mmu.map_l2(c, pa, machine.apic_stand_in)
    elif not device(vcpu, value):
        machine.mmu.map_l2(c, pa, machine.nothing_host_pa)


def misconfiguration(vcpu: Vcpu) -> None:
    """ept01 is L0's own."""
    raise GuestStop(f"EPT misconfiguration in L1 at {vcpu.v[F.GUEST_PHYSICAL_ADDRESS]:#x}")


def misconfiguration_l2(vcpu: Vcpu) -> None:
    """ept02 never holds a misconfigured entry: those of ept12 are found while ept02 has none."""
    raise GuestStop(f"EPT misconfiguration in L2 at {vcpu.v[F.GUEST_PHYSICAL_ADDRESS]:#x}")
