"""Port I/O: silicon left port, width and data in the core; L0 does the access, silicon ends the instruction.

That holds for IN and OUT as for each iteration of INS and OUTS. L2's accesses that L1 did not intercept
reach L1's ports in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

PORT_IN: Final = 1


def port_io(vcpu: Vcpu) -> None:
    """One access."""
    regs = vcpu.regs
    if regs[S.ASSIST_KIND] == PORT_IN:
        regs[S.ASSIST_RESULT] = vcpu.machine.ports.read(regs[S.ASSIST_ADDRESS], regs[S.ASSIST_WIDTH])
    else:
        vcpu.machine.ports.write(regs[S.ASSIST_ADDRESS], regs[S.ASSIST_WIDTH], regs[S.ASSIST_DATA])
    regs[S.ASSIST_DONE] = 1
    vcpu.replan = True  # a device may have set a timer; an interrupt it raised has woken the virtual CPU
