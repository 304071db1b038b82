"""Task switches of L1: the exit is unconditional, so L0 does what the processor would (SDM 8.3).

Not done yet: the run ends with a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turtles.l0.outcome import GuestStop
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


def task_switch(vcpu: Vcpu) -> None:
    """A hardware task switch."""
    raise GuestStop(f"hardware task switch to selector {vcpu.v[F.EXIT_QUALIFICATION] & 0xFFFF:#x}")
