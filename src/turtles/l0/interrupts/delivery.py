"""Which pending interrupt or NMI goes where: into L1, into L2, or to L1 as an exit from L2.

Called before an entry when something may have changed. An event for L1 that cannot leave L2 yet (an entry
of L1's is pending, or an event is being injected) makes L2 run and exit at its first instruction boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.nested import reflect
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs.virtual_apic import interrupt_pending
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

_SHADOW: Final = C.BLOCKING_STI | C.BLOCKING_MOV_SS


def deliver(vcpu: Vcpu) -> None:
    """Injects or reflects what is pending, or asks for the window in which that becomes possible."""
    apic = vcpu.apic
    vcpu.waiting = False
    if vcpu.level == 2:
        if vcpu.v[F.GUEST_ACTIVITY] > C.ACTIVITY_HLT:
            _deliver_inactive(vcpu)
            return
        if apic.nmi_pending and vcpu.entered12.pin12 & C.PIN_NMI and not _nmis_blocked(vcpu):
            if _busy(vcpu):
                _leave_soon(vcpu)
                return
            apic.take_nmi()
            _exit_for_nmi(vcpu)
        elif vcpu.entered12.pin12 & C.PIN_EXTERNAL_INTERRUPT:
            vector = apic.pending()
            if vector >= 0:
                if _busy(vcpu):
                    _leave_soon(vcpu)
                    return
                if vector == vcpu.entered12.posted_vector:
                    _post(vcpu, vector)
                    vector = apic.pending()
                if vector >= 0:
                    _exit_for_interrupt(vcpu, vector)
    _inject(vcpu)


def _deliver_inactive(vcpu: Vcpu) -> None:
    """In shutdown only NMIs are taken, in wait-for-SIPI nothing; the rest stays pending (SDM 26.2)."""
    v, apic = vcpu.v, vcpu.apic
    windows = C.PRIMARY_INTERRUPT_WINDOW | C.PRIMARY_NMI_WINDOW
    primary12 = vcpu.entered12.v[F.PRIMARY_CONTROLS]
    v[F.PRIMARY_CONTROLS] = v[F.PRIMARY_CONTROLS] & ~windows | primary12 & windows
    if not (apic.nmi_pending or apic.pending() >= 0):
        return
    if _busy(vcpu):
        _leave_soon(vcpu)
        return
    if v[F.GUEST_ACTIVITY] == C.ACTIVITY_SHUTDOWN and apic.nmi_pending and not _nmis_blocked(vcpu):
        apic.take_nmi()
        if vcpu.entered12.pin12 & C.PIN_NMI:
            _exit_for_nmi(vcpu)
        else:
            _inject_nmi(vcpu)
        return
    vcpu.waiting = True


def _exit_for_nmi(vcpu: Vcpu) -> None:
    """The exit to L1 for an NMI, which leaves NMIs blocked (SDM 28.5.5)."""
    reflect.reflect_interrupt(vcpu, ExitReason.EXCEPTION_OR_NMI, X.VALID | X.TYPE_NMI | X.VECTOR_NMI)
    vcpu.v01[F.GUEST_INTERRUPTIBILITY] |= C.BLOCKING_NMI


def _inject_nmi(vcpu: Vcpu) -> None:
    vcpu.v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | X.TYPE_NMI | X.VECTOR_NMI
    vcpu.v[F.GUEST_ACTIVITY] = C.ACTIVITY_ACTIVE


def _nmis_blocked(vcpu: Vcpu) -> bool:
    """Blocking by NMI; with virtual NMIs L2's blocking is that of its virtual ones (SDM 25.3, table 25-3)."""
    if vcpu.level == 2 and vcpu.entered12.pin12 & C.PIN_VIRTUAL_NMIS:
        return False
    return bool(vcpu.v[F.GUEST_INTERRUPTIBILITY] & C.BLOCKING_NMI)


def _busy(vcpu: Vcpu) -> bool:
    """Whether L2 cannot be left for an interrupt yet."""
    return vcpu.entry_pending or bool(vcpu.v[F.ENTRY_INTERRUPTION_INFO] & X.VALID) or _unfinished(vcpu)


def _unfinished(vcpu: Vcpu) -> bool:
    """A device access was made for an instruction that has yet to complete: an event now would repeat it."""
    return bool(vcpu.regs[S.ASSIST_DONE] | vcpu.regs[S.REPLAY_COUNT])


def _leave_soon(vcpu: Vcpu) -> None:
    """L2 runs, and exits at its first instruction boundary."""
    vcpu.waiting = True
    vcpu.core.kick()


def _post(vcpu: Vcpu, vector: int) -> None:
    """L1's notification vector while its L2 runs: the local APIC is done with it, silicon processes what was
    posted at L2's first instruction boundary (SDM 30.6)."""
    vcpu.apic.acknowledge(vector)
    vcpu.apic.end_of_interrupt()
    vcpu.core.interrupt(vector)


def _exit_for_interrupt(vcpu: Vcpu, vector: int) -> None:
    """External-interrupt exit to L1; with acknowledge-on-exit it carries the vector (SDM 28.2.2)."""
    info = 0
    if vcpu.entered12.v[F.EXIT_CONTROLS] & C.EXIT_ACKNOWLEDGE:
        vcpu.apic.acknowledge(vector)
        info = X.VALID | X.TYPE_EXTERNAL | vector
    reflect.reflect_interrupt(vcpu, ExitReason.EXTERNAL_INTERRUPT, info)


def _inject(vcpu: Vcpu) -> None:
    """Into the context that runs next. Where L1 intercepts an event of L2, it does not come here."""
    v, apic = vcpu.v, vcpu.apic
    intercepted = vcpu.entered12.pin12 if vcpu.level == 2 else 0
    wanted = v[F.PRIMARY_CONTROLS] & ~(C.PRIMARY_INTERRUPT_WINDOW | C.PRIMARY_NMI_WINDOW)
    free = not v[F.ENTRY_INTERRUPTION_INFO] & X.VALID and not _unfinished(vcpu)
    blocking = v[F.GUEST_INTERRUPTIBILITY]
    if apic.nmi_pending and not intercepted & C.PIN_NMI:
        if free and not blocking & (_SHADOW | C.BLOCKING_NMI):
            apic.take_nmi()
            _inject_nmi(vcpu)
            free = False
        else:
            wanted |= C.PRIMARY_NMI_WINDOW
            vcpu.waiting = True
    if not intercepted & C.PIN_EXTERNAL_INTERRUPT:
        vector = apic.pending()
        if vector >= 0:
            if free and v[F.GUEST_RFLAGS] & X.RFLAGS_IF and not blocking & _SHADOW:
                apic.acknowledge(vector)
                v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | X.TYPE_EXTERNAL | vector
                v[F.GUEST_ACTIVITY] = C.ACTIVITY_ACTIVE
            else:
                wanted |= C.PRIMARY_INTERRUPT_WINDOW
                vcpu.waiting = True
    if vcpu.level == 2:
        # L1's own windows stay open beside L0's.
        primary12 = vcpu.entered12.v[F.PRIMARY_CONTROLS]
        wanted |= primary12 & (C.PRIMARY_INTERRUPT_WINDOW | C.PRIMARY_NMI_WINDOW)
    if wanted != v[F.PRIMARY_CONTROLS]:
        v[F.PRIMARY_CONTROLS] = wanted


def wakes(vcpu: Vcpu) -> bool:
    """Whether a halted context has something to wake for."""
    apic = vcpu.apic
    activity = vcpu.v[F.GUEST_ACTIVITY]
    if activity != C.ACTIVITY_WAIT_FOR_SIPI and apic.nmi_pending and not _nmis_blocked(vcpu):
        return True
    if activity > C.ACTIVITY_HLT:
        return False
    if vcpu.level == 2 and vcpu.entered12.pin12 & C.PIN_EXTERNAL_INTERRUPT:
        return apic.pending() >= 0 or (vcpu.entered12.delivers and _virtual_interrupt(vcpu))
    return bool(vcpu.v[F.GUEST_RFLAGS] & X.RFLAGS_IF) and apic.pending() >= 0


def _virtual_interrupt(vcpu: Vcpu) -> bool:
    """Whether silicon delivers a virtual interrupt as soon as L2 is entered, which ends its HLT."""
    return bool(vcpu.v[F.GUEST_RFLAGS] & X.RFLAGS_IF) and interrupt_pending(vcpu)
