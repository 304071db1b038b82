"""VM-instruction errors (SDM 31.4) and the three ways a VMX instruction ends (SDM 31.2).

Only numbers and flags. Which check gives which number lies with the instruction.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu


class VmError(IntEnum):
    """VM-instruction error numbers."""

    VMCALL_IN_ROOT = 1
    VMCLEAR_ADDRESS = 2
    VMCLEAR_VMXON_POINTER = 3
    VMLAUNCH_NOT_CLEAR = 4
    VMRESUME_NOT_LAUNCHED = 5
    ENTRY_CONTROLS = 7
    ENTRY_HOST = 8
    VMPTRLD_ADDRESS = 9
    VMPTRLD_VMXON_POINTER = 10
    VMPTRLD_REVISION = 11
    UNSUPPORTED_FIELD = 12
    READ_ONLY_FIELD = 13
    VMXON_IN_ROOT = 15
    ENTRY_BLOCKED_BY_MOV_SS = 26
    INVALID_OPERAND = 28  # INVEPT, INVVPID


def succeed(vcpu: Vcpu) -> None:
    """VMsucceed: all status flags clear; on to the next instruction."""
    v = vcpu.v
    flags = v[F.GUEST_RFLAGS]
    if flags & X.RFLAGS_STATUS:
        v[F.GUEST_RFLAGS] = flags & ~X.RFLAGS_STATUS
    vcpu.advance()


def fail_invalid(vcpu: Vcpu) -> None:
    """VMfailInvalid: CF set."""
    v = vcpu.v
    v[F.GUEST_RFLAGS] = v[F.GUEST_RFLAGS] & ~X.RFLAGS_STATUS | X.RFLAGS_CF
    vcpu.advance()


def fail(vcpu: Vcpu, error: VmError) -> None:
    """VMfail: VMfailValid with the number in the current VMCS, VMfailInvalid where there is none."""
    c = vcpu.current12 or vcpu.current_shadow
    if c is None:
        fail_invalid(vcpu)
        return
    c.v[F.VM_INSTRUCTION_ERROR] = error
    v = vcpu.v
    v[F.GUEST_RFLAGS] = v[F.GUEST_RFLAGS] & ~X.RFLAGS_STATUS | X.RFLAGS_ZF
    vcpu.advance()
