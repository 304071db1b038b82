"""Exits that only shadow paging asks for: page faults, CR3, INVLPG, of L1 and of L2.

A page fault is the guest's own where its tables say so; then L1 gets it (or L2, or L1 as an exit of L2). Else
the mirror lacked it, and the memory mode has filled it, or it is an access to a device of L1's, for which
silicon left address, width and data as with EPT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.exits import memory
from turtles.l0.exits.exceptions import triple_fault
from turtles.l0.mmu.ept02 import Resolve
from turtles.l0.mmu.paging import PageFault
from turtles.l0.nested import routing
from turtles.l0.nested.reflect import reflect
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason as R
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.mmu.shadow_on_shadow import ShadowOnShadow
    from turtles.l0.vcpu import Handler, Vcpu

# Exceptions that make a page fault in their delivery a double fault (SDM table 6-5).
_CONTRIBUTORY: Final = frozenset((0, 10, 11, 12, 13, X.VECTOR_PF))


def adapt(handlers: list[list[Handler]], mode: ShadowOnShadow) -> None:
    """Puts these handlers into the lists of a virtual CPU."""

    def exception(others: Handler) -> Handler:
        def handle(vcpu: Vcpu) -> None:
            v = vcpu.v
            if v[F.EXIT_INTERRUPTION_INFO] & 0x7FF == X.TYPE_HARDWARE | X.VECTOR_PF:
                _page_fault(vcpu, mode)
            else:
                others(vcpu)

        return handle

    def invlpg(vcpu: Vcpu) -> None:
        mode.invalidate_page(vcpu, vcpu.v[F.EXIT_QUALIFICATION])
        vcpu.advance()

    def invlpg_l2(vcpu: Vcpu) -> None:
        if vcpu.entered12.v[F.PRIMARY_CONTROLS] & C.PRIMARY_INVLPG:
            reflect(vcpu)
        else:
            invlpg(vcpu)

    for of_level in handlers[1:]:
        of_level[R.EXCEPTION_OR_NMI] = exception(of_level[R.EXCEPTION_OR_NMI])
    handlers[1][R.INVLPG], handlers[2][R.INVLPG] = invlpg, invlpg_l2


def _page_fault(vcpu: Vcpu, mode: ShadowOnShadow) -> None:
    v, regs = vcpu.v, vcpu.regs
    linear, error = v[F.EXIT_QUALIFICATION], v[F.EXIT_INTERRUPTION_ERROR]
    try:
        what, l1_pa = mode.page_fault(vcpu, linear, error)
    except PageFault as fault:
        _guests_own(vcpu, linear, fault.error)
        return
    if v[F.IDT_VECTORING_INFO] & X.VALID:
        vcpu.reinject()
    elif v[F.EXIT_INTERRUPTION_INFO] & X.NMI_UNBLOCKED_BY_IRET:
        v[F.GUEST_INTERRUPTIBILITY] |= C.BLOCKING_NMI
    if what is Resolve.MAPPED:
        memory.keep_replayed(vcpu)
        return
    if what is Resolve.TRACKED:
        _store(vcpu, mode, l1_pa & ~0xFFF | regs[S.ASSIST_ADDRESS] & 0xFFF)
        return
    if vcpu.level == 2:
        c = vcpu.entered12
        if c.apic_access_l1_pa >= 0 and l1_pa & ~0xFFF == c.apic_access_l1_pa:
            mode.map_nothing(vcpu, linear, error, vcpu.machine.apic_stand_in)
            return
    at = l1_pa & ~0xFFF | regs[S.ASSIST_ADDRESS] & 0xFFF
    if not memory.device(vcpu, at):
        mode.map_nothing(vcpu, linear, error, vcpu.machine.nothing_host_pa)


def _store(vcpu: Vcpu, mode: ShadowOnShadow, l1_pa: int) -> None:
    """A store to a table that is mirrored, or the read before it: L0 does it in the instruction's place."""
    regs = vcpu.regs
    kind, width = regs[S.ASSIST_KIND], regs[S.ASSIST_WIDTH]
    if vcpu.v[F.IDT_VECTORING_INFO] & X.VALID or kind not in (memory.MMIO_READ, memory.MMIO_WRITE):
        # Event delivery, or no single access of an instruction: it is done again, and passes.
        mode.untrack(l1_pa)
        memory.keep_replayed(vcpu)
        return
    if kind == memory.MMIO_WRITE:
        mode.tracked_write(l1_pa, width, regs[S.ASSIST_DATA])
    else:
        regs[S.ASSIST_RESULT] = int.from_bytes(vcpu.machine.l1.read(l1_pa, width), "little")
    regs[S.ASSIST_DONE] = 1


def _guests_own(vcpu: Vcpu, linear: int, error: int) -> None:
    """The fault is in the context's tables: it gets it, with its own error code."""
    v = vcpu.v
    v[F.EXIT_INTERRUPTION_ERROR] = error
    if vcpu.level == 2 and routing.l1_wants(
        R.EXCEPTION_OR_NMI, v, vcpu.entered12.v, vcpu.regs, vcpu.machine.l1.load8
    ):
        reflect(vcpu)
        return
    vectoring = v[F.IDT_VECTORING_INFO]
    first = vectoring & 0xFF
    if vectoring & X.VALID and vectoring & X.TYPE_MASK == X.TYPE_HARDWARE:
        if first == X.VECTOR_DF:
            _triple_fault(vcpu)
            return
        if first in _CONTRIBUTORY:
            vcpu.regs[S.CR2] = linear
            vcpu.inject_exception(X.VECTOR_DF, 0)
            return
    if v[F.EXIT_INTERRUPTION_INFO] & X.NMI_UNBLOCKED_BY_IRET:
        v[F.GUEST_INTERRUPTIBILITY] |= C.BLOCKING_NMI
    vcpu.regs[S.CR2] = linear
    v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | X.TYPE_HARDWARE | X.HAS_ERROR_CODE | X.VECTOR_PF
    v[F.ENTRY_ERROR_CODE] = error


def _triple_fault(vcpu: Vcpu) -> None:
    """A page fault while a double fault is delivered."""
    vcpu.v[F.EXIT_REASON] = R.TRIPLE_FAULT
    vcpu.v[F.EXIT_INTERRUPTION_INFO] = 0
    if vcpu.level == 2:
        reflect(vcpu)
    else:
        triple_fault(vcpu)
