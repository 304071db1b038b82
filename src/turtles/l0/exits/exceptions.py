"""Exceptions, instructions that are refused, and the triple fault.

L0 intercepts no exception for itself, so one that comes here is a defect. A triple fault of L1 ends the
run: on hardware it would be a shutdown, and boards answer that with a reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turtles.l0.outcome import Ending, GuestStop, Outcome
from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


def exception(vcpu: Vcpu) -> None:
    """An exception that nobody asked for."""
    raise GuestStop(f"exception {vcpu.v[F.EXIT_INTERRUPTION_INFO] & 0xFF} exited, which nobody asked for")


def triple_fault(vcpu: Vcpu) -> None:
    """L1 is lost."""
    vcpu.machine.stop(Outcome(Ending.TRIPLE_FAULT, message=f"triple fault in {vcpu.where()}"))


def undefined(vcpu: Vcpu) -> None:
    """#UD: the instruction is not offered."""
    vcpu.inject_exception(X.VECTOR_UD)


def general_protection(vcpu: Vcpu) -> None:
    """#GP(0)."""
    vcpu.inject_exception(X.VECTOR_GP, 0)
