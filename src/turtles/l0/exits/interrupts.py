"""External-interrupt exits (a deadline or a kick from another thread) and the windows that L0 asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turtles.l0.interrupts import delivery
from turtles.silicon import controls as C
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


def external_interrupt(vcpu: Vcpu) -> None:
    """Timers that are due and what other threads posted; then a look at what they made pending."""
    vcpu.events.run(vcpu.core.now())
    vcpu.attention = True
    if vcpu.v[F.GUEST_ACTIVITY] != C.ACTIVITY_ACTIVE:
        vcpu.halted = True  # an L2 that sleeps: in `Vcpu`, without the GIL
    elif vcpu.level == 2:
        # Here and not before the next entry, so that an interrupt of L1's counts as an exit that L1 handled.
        vcpu.attention = False
        delivery.deliver(vcpu)
        vcpu.replan = True


def window(vcpu: Vcpu) -> None:
    """Interrupts or NMIs are open now; the window closes when the next entry is prepared."""
    vcpu.attention = True
