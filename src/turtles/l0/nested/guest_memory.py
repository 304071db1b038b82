"""L1's linear memory, for the operands of instructions that L0 emulates for it.

A fault becomes the exception that L1's instruction would have met; it is injected, and `Faulted` tells the
caller to leave. Not for L2: L0 emulates no instruction of L2 that has a memory operand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.mmu.paging import PageFault, Registers, translate
from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

_SELECTOR: Final = F.GUEST_ES_SELECTOR
# Segment numbers in instruction information: ES, CS, SS, DS, FS, GS, as in the VMCS.
_SS: Final = 2
_FS: Final = 4
_ADDRESS_MASK: Final = (0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
M64: Final = 0xFFFF_FFFF_FFFF_FFFF


class Faulted(Exception):
    """The instruction ends with the exception that was injected."""


def registers(vcpu: Vcpu, system: bool = False) -> Registers:
    """What L1's translations depend on now; `system` is for accesses to descriptor tables and TSSs."""
    if vcpu.shadow is not None:
        r = vcpu.shadow.registers1(vcpu)
        return r._replace(cpl=0) if system else r
    v = vcpu.v
    return Registers(
        cr0=v[F.GUEST_CR0],
        cr3=v[F.GUEST_CR3],
        cr4=v[F.GUEST_CR4],
        efer=vcpu.regs[S.EFER],
        rflags=v[F.GUEST_RFLAGS],
        cpl=0 if system else v[F.GUEST_SS_ACCESS] >> 5 & 3,
        pdptes=(v[F.GUEST_PDPTE0], v[F.GUEST_PDPTE1], v[F.GUEST_PDPTE2], v[F.GUEST_PDPTE3]),
    )


def gpr(vcpu: Vcpu, number: int) -> int:
    """A general-purpose register; RSP lives in the VMCS."""
    return vcpu.v[F.GUEST_RSP] if number == 4 else vcpu.regs[S.GPR + number]


def set_gpr(vcpu: Vcpu, number: int, value: int) -> None:
    """Writes a general-purpose register."""
    if number == 4:
        vcpu.v[F.GUEST_RSP] = value
    else:
        vcpu.regs[S.GPR + number] = value


def operand_address(vcpu: Vcpu, information: int, size: int, write: bool) -> int:
    """Linear address of the memory operand that VM-exit instruction information describes (SDM table 28-13).

    Segment checks of SDM vol. 3, 5.3 to 5.5; raises Faulted after injecting #GP or #SS.
    """
    v = vcpu.v
    offset = v[F.EXIT_QUALIFICATION]  # the displacement
    if not information >> 27 & 1:
        offset += gpr(vcpu, information >> 23 & 15)
    if not information >> 22 & 1:
        offset += gpr(vcpu, information >> 18 & 15) << (information & 3)
    offset &= _ADDRESS_MASK[information >> 7 & 3]
    segment = min(information >> 15 & 7, 5)
    base = v[_SELECTOR + 4 * segment + 1]
    vector = X.VECTOR_SS if segment == _SS else X.VECTOR_GP
    if vcpu.long_mode():
        linear = (offset + base if segment >= _FS else offset) & M64
        if (linear >> 47) not in (0, 0x1FFFF):
            _raise(vcpu, vector)
        return linear
    if not _segment_permits(vcpu, segment, offset, size, write):
        _raise(vcpu, vector)
    return (base + offset) & 0xFFFF_FFFF


def _segment_permits(vcpu: Vcpu, segment: int, offset: int, size: int, write: bool) -> bool:
    """Type and limit of a data segment in protected mode."""
    v = vcpu.v
    access = v[_SELECTOR + 4 * segment + 3]
    limit = v[_SELECTOR + 4 * segment + 2]
    if access & X.ACCESS_UNUSABLE:
        return False
    kind = access & 15
    if kind & 8:  # code: never written, read only if bit 1
        if write or not kind & 2:
            return False
    elif write and not kind & 2:
        return False
    last = offset + size - 1
    if not kind & 8 and kind & 4:  # expand down
        top = 0xFFFF_FFFF if access & X.ACCESS_DB else 0xFFFF
        return offset > limit and last <= top
    return last <= limit


def _raise(vcpu: Vcpu, vector: int) -> None:
    vcpu.inject_exception(vector, 0)
    raise Faulted


def _physical(vcpu: Vcpu, r: Registers, linear: int, write: bool) -> int:
    l1 = vcpu.machine.l1
    try:
        return translate(r, linear, write, l1.load64, l1.set_bits64)
    except PageFault as fault:
        vcpu.regs[S.CR2] = fault.linear
        vcpu.inject_exception(X.VECTOR_PF, fault.error)
        raise Faulted from None


def read(vcpu: Vcpu, linear: int, size: int, system: bool = False) -> bytes:
    """`size` bytes (at most a page) of L1's linear memory."""
    r = registers(vcpu, system)
    first = min(size, 4096 - (linear & 4095))
    data = vcpu.machine.l1.read(_physical(vcpu, r, linear, False), first)
    if first < size:
        data += vcpu.machine.l1.read(_physical(vcpu, r, linear + first & M64, False), size - first)
    return data


def write(vcpu: Vcpu, linear: int, data: bytes, system: bool = False) -> None:
    """Stores `data` (at most a page); both pages are translated before the first byte is stored."""
    r = registers(vcpu, system)
    first = min(len(data), 4096 - (linear & 4095))
    at = _physical(vcpu, r, linear, True)
    then = _physical(vcpu, r, linear + first & M64, True) if first < len(data) else -1
    vcpu.machine.l1.write(at, data[:first])
    if then >= 0:
        vcpu.machine.l1.write(then, data[first:])
