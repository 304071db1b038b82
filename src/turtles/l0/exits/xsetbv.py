"""XSETBV: XCR0 is the core's; L0 checks the value, since the instruction always exits (SDM vol. 1, 13.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.vmcs import bits as X
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

X87: Final = 1 << 0
SSE: Final = 1 << 1
AVX: Final = 1 << 2


def valid_xcr0(value: int, offered: int) -> bool:
    """x87 is always on, AVX needs SSE, and nothing that is not offered."""
    return bool(value & X87) and not value & ~offered and (not value & AVX or bool(value & SSE))


def xsetbv(vcpu: Vcpu) -> None:
    """XSETBV of L1."""
    regs = vcpu.regs
    value = regs[S.RAX] & 0xFFFF_FFFF | (regs[S.RDX] & 0xFFFF_FFFF) << 32
    if vcpu.cpl() or regs[S.RCX] & 0xFFFF_FFFF or not valid_xcr0(value, vcpu.machine.l1_model.xcr0_bits):
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return
    regs[S.XCR0] = value
    vcpu.advance()
