"""The handlers by basic exit reason: for L1 directly, for L2 by the two routing questions.

A user's handlers go in front of these (`Machine.on_exit`). A reason without a handler ends the run with a
report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.exits import (
    cpuid,
    cr,
    exceptions,
    halt,
    interrupts,
    io,
    memory,
    msr,
    simple,
    task_switch,
    xsetbv,
)
from turtles.l0.nested import entry, instructions, routing
from turtles.l0.nested.reflect import reflect
from turtles.l0.outcome import GuestStop
from turtles.l0.stats import REASONS, reason_name
from turtles.silicon import ExitReason as R
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Handler, Vcpu

# How L0 handles an exit itself: of L1, or of L2 where L1 did not ask for it.
OWN: Final[dict[int, Handler]] = {
    R.EXCEPTION_OR_NMI: exceptions.exception,
    R.EXTERNAL_INTERRUPT: interrupts.external_interrupt,
    R.TRIPLE_FAULT: exceptions.triple_fault,
    R.INTERRUPT_WINDOW: interrupts.window,
    R.NMI_WINDOW: interrupts.window,
    R.TASK_SWITCH: task_switch.task_switch,
    R.CPUID: cpuid.cpuid,
    R.GETSEC: exceptions.undefined,
    R.HLT: halt.hlt,
    R.INVD: simple.nothing,
    R.RDPMC: exceptions.general_protection,
    R.RSM: exceptions.undefined,
    R.VMCALL: instructions.vmcall,
    R.VMCLEAR: instructions.vmclear,
    R.VMLAUNCH: entry.vmlaunch,
    R.VMPTRLD: instructions.vmptrld,
    R.VMPTRST: instructions.vmptrst,
    R.VMREAD: instructions.vmread,
    R.VMRESUME: entry.vmresume,
    R.VMWRITE: instructions.vmwrite,
    R.VMXOFF: instructions.vmxoff,
    R.VMXON: instructions.vmxon,
    R.CR_ACCESS: cr.cr_access,
    R.IO: io.port_io,
    R.RDMSR: msr.rdmsr,
    R.WRMSR: msr.wrmsr,
    R.MWAIT: simple.nothing,
    R.MONITOR: simple.nothing,
    R.PAUSE: simple.nothing,
    R.EPT_VIOLATION: memory.violation,
    R.EPT_MISCONFIGURATION: memory.misconfiguration,
    R.INVEPT: instructions.invept,
    R.INVVPID: instructions.invvpid,
    R.WBINVD: simple.nothing,
    R.XSETBV: xsetbv.xsetbv,
    R.VMFUNC: exceptions.undefined,
    R.ENCLS: exceptions.undefined,
}

# What L0 does about exits of L2 that are its own, where that differs from what it does for L1.
OWN_L2: Final[dict[int, Handler]] = {
    R.EPT_VIOLATION: memory.violation_l2,
    R.EPT_MISCONFIGURATION: memory.misconfiguration_l2,
}


def unexpected(vcpu: Vcpu) -> None:
    """An exit that L0 did not ask for."""
    raise GuestStop(f"unexpected exit {reason_name(vcpu.v[F.EXIT_REASON] & 0xFFFF)}")


def _routed(reason: int, own: Handler) -> Handler:
    """A handler that asks the two questions at each exit."""
    l1_wants = routing.decision(reason)

    def route(vcpu: Vcpu) -> None:
        if l1_wants(vcpu.v, vcpu.entered12.v, vcpu.regs, vcpu.machine.l1.load8):
            reflect(vcpu)
        else:
            own(vcpu)

    def route_after_l0(vcpu: Vcpu) -> None:
        if routing.l0_wants(reason, vcpu.v):
            own(vcpu)
        else:
            route(vcpu)

    # Only of exceptions and NMIs is it not known beforehand that L0 does not want them.
    return route_after_l0 if reason == R.EXCEPTION_OR_NMI else route


def default_handlers() -> tuple[list[Handler], list[Handler]]:
    """Handlers of L1 and of L2, each a list by basic reason."""
    level1 = [OWN.get(reason, unexpected) for reason in range(REASONS)]
    level2: list[Handler] = []
    for reason in range(REASONS):
        own = OWN_L2.get(reason) or level1[reason]
        if reason in routing.ALWAYS_L1:
            level2.append(reflect)  # the answer depends on nothing: no question at each exit
        elif reason in routing.ALWAYS_L0:
            level2.append(own)
        else:
            level2.append(_routed(reason, own))
    return level1, level2
