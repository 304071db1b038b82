"""HLT: the virtual CPU sleeps until an event wakes it, in the thread that runs it and without the GIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turtles.l0.vmcs import bits as X
from turtles.silicon import controls as C
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


def hlt(vcpu: Vcpu) -> None:
    """HLT of L1, or of an L2 that L1 lets halt by itself; L1 then sees the activity state if L2 is left."""
    vcpu.advance()
    v = vcpu.v
    if vcpu.level == 2:
        # Whether something ends the sleep at once, a window of L1's say, is for the processor to find out.
        v[F.GUEST_ACTIVITY] = C.ACTIVITY_HLT
        vcpu.core.kick()
    elif not v[F.GUEST_PENDING_DEBUG] & X.PENDING_SINGLE_STEP:  # that trap wakes it
        vcpu.halted = True
        vcpu.attention = True
