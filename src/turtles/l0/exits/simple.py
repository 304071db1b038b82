"""Instructions that exit and need nothing: INVD, WBINVD (no caches to write back), MONITOR, MWAIT, PAUSE."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


def nothing(vcpu: Vcpu) -> None:
    """On to the next instruction."""
    vcpu.advance()
