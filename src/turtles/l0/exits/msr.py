"""RDMSR and WRMSR: which exit, and what L0 answers. Silicon has most MSRs itself and they never come here.

L0's own are the local APIC's, the VT-x capabilities that L1 is offered, and writes that move the time-stamp
counter (an armed APIC timer moves with it). What no bitmap covers always exits and is refused. `read` and
`write` reach every MSR, for the MSR areas of a vmcs12.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.ram import PAGE
from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

TSC: Final = 0x10
APIC_BASE: Final = 0x1B
TSC_ADJUST: Final = 0x3B
VMX_FIRST: Final = 0x480
VMX_LAST: Final = 0x493
PAT: Final = 0x277
TSC_DEADLINE: Final = 0x6E0
X2APIC_FIRST: Final = 0x800
X2APIC_LAST: Final = 0x8FF
EFER: Final = 0xC000_0080
M64: Final = 0xFFFF_FFFF_FFFF_FFFF
_QUARTER: Final = 1024

# MSRs that silicon keeps, by the slot of the core's state or the field of the VMCS in force that holds them.
IN_CORE: Final = {
    0x3A: S.FEATURE_CONTROL,
    TSC_ADJUST: S.TSC_ADJUST,
    0x48: S.SPEC_CTRL,
    0x1A0: S.MISC_ENABLE,
    PAT: S.PAT,
    0x2FF: S.MTRR_DEF_TYPE,
    0xDA0: S.XSS,
    EFER: S.EFER,
    0xC000_0081: S.STAR,
    0xC000_0082: S.LSTAR,
    0xC000_0083: S.CSTAR,
    0xC000_0084: S.FMASK,
    0xC000_0102: S.KERNEL_GS_BASE,
    0xC000_0103: S.TSC_AUX,
}
IN_VMCS: Final = {
    0x174: F.GUEST_SYSENTER_CS,
    0x175: F.GUEST_SYSENTER_ESP,
    0x176: F.GUEST_SYSENTER_EIP,
    0x1D9: F.GUEST_DEBUGCTL,
    0xC000_0100: F.GUEST_FS_BASE,
    0xC000_0101: F.GUEST_GS_BASE,
}
# MTRRs: first MSR, last, slot of the first.
_MTRRS: Final = (
    (0x200, 0x20F, S.MTRR_VAR),
    (0x250, 0x250, S.MTRR_FIXED),
    (0x258, 0x259, S.MTRR_FIXED + 1),
    (0x268, 0x26F, S.MTRR_FIXED + 3),
)
ARCH_CAPABILITIES: Final = 0x10A
# IA32_PLATFORM_ID, BIOS_SIGN_ID, MTRRCAP, MCG_CAP, MCG_STATUS: as silicon answers them.
_CONSTANT: Final = {0x17: 0, 0x8B: 1 << 32, 0xFE: 0x508, 0x179: 0, 0x17A: 0}
_CANONICAL: Final = frozenset((0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102))
_COMMANDS: Final = frozenset((0x49, 0x10B))  # PRED_CMD, FLUSH_CMD: nothing to flush
# Bits that a value may have, where L0 checks it (others: any).
_BITS: Final = {0x48: 0x407, EFER: 0xD01, 0x2FF: 0xCFF, 0x3A: 0, 0xDA0: 0, 0x174: 0xFFFF_FFFF, 0x1D9: 3}


def make_bitmap(
    reads: frozenset[int] = frozenset(), writes: frozenset[int] = frozenset(), efer: bool = False
) -> bytes:
    """The MSR bitmap of vmcs01 (SDM 25.6.9); `reads` and `writes` of x2APIC mode that it lets through.

    With `efer`, for shadow paging: what it says decides how tables are read.
    """
    bitmap = bytearray(PAGE)
    for msr in (APIC_BASE, TSC_DEADLINE, *range(VMX_FIRST, VMX_LAST + 1), *((EFER,) if efer else ())):
        _set(bitmap, msr, read=True, write=True)
    for msr in range(X2APIC_FIRST, X2APIC_LAST + 1):
        _set(bitmap, msr, read=msr not in reads, write=msr not in writes)
    for msr in (TSC, TSC_ADJUST):
        _set(bitmap, msr, read=False, write=True)
    return bytes(bitmap)


def _set(bitmap: bytearray, msr: int, *, read: bool, write: bool) -> None:
    at = (msr & 0x1FFF) >> 3
    if msr >= 0xC000_0000:
        at += _QUARTER
    bit = 1 << (msr & 7)
    if read:
        bitmap[at] |= bit
    if write:
        bitmap[at + 2 * _QUARTER] |= bit


def rdmsr(vcpu: Vcpu) -> None:
    """RDMSR."""
    regs = vcpu.regs
    value = read(vcpu, regs[S.RCX] & 0xFFFF_FFFF)
    if value is None:
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return
    regs[S.RAX] = value & 0xFFFF_FFFF
    regs[S.RDX] = value >> 32
    vcpu.advance()


def wrmsr(vcpu: Vcpu) -> None:
    """WRMSR."""
    regs = vcpu.regs
    value = regs[S.RAX] & 0xFFFF_FFFF | (regs[S.RDX] & 0xFFFF_FFFF) << 32
    if write(vcpu, regs[S.RCX] & 0xFFFF_FFFF, value):
        vcpu.advance()
    else:
        vcpu.inject_exception(X.VECTOR_GP, 0)
    vcpu.attention = True


def _is_apic(msr: int) -> bool:
    return X2APIC_FIRST <= msr <= X2APIC_LAST or msr in (APIC_BASE, TSC_DEADLINE)


def read(vcpu: Vcpu, msr: int) -> int | None:
    """An MSR of L1's processor; none where RDMSR is #GP(0)."""
    if _is_apic(msr):
        try:
            return vcpu.apic.read_msr(msr)
        except ValueError:
            return None
    if VMX_FIRST <= msr <= VMX_LAST:
        machine = vcpu.machine
        return machine.l1_model.vmx_msr(msr) if machine.l1_has_vmx else None
    if msr == TSC:
        return tsc(vcpu)
    if msr == EFER:
        return vcpu.efer()
    slot = IN_CORE.get(msr)
    if slot is not None:
        return vcpu.regs[slot]
    field = IN_VMCS.get(msr)
    if field is not None:
        return vcpu.v[field]
    if msr == ARCH_CAPABILITIES:
        return vcpu.machine.model.arch_capabilities
    at = _mtrr(msr)
    return _CONSTANT.get(msr) if at < 0 else vcpu.regs[at]


def _mtrr(msr: int) -> int:
    """The slot of a range MTRR; -1: it is none."""
    return next((slot + msr - first for first, last, slot in _MTRRS if first <= msr <= last), -1)


def write(vcpu: Vcpu, msr: int, value: int) -> bool:
    """Writes an MSR of L1's processor; false where WRMSR is #GP(0)."""
    if _is_apic(msr):
        try:
            vcpu.apic.write_msr(msr, value)
        except ValueError:
            return False
        return True
    regs = vcpu.regs
    if msr == TSC:
        # A write moves IA32_TSC_ADJUST by as much (SDM 18.17.3).
        regs[S.TSC_ADJUST] = (regs[S.TSC_ADJUST] + value - tsc(vcpu)) & M64
        vcpu.apic.tsc_changed()
        return True
    if msr in _COMMANDS:
        return not value & ~1
    if value & ~_BITS.get(msr, M64) or (msr in _CANONICAL and value >> 47 not in (0, 0x1FFFF)):
        return False
    if msr == PAT and not _pat_valid(value):
        return False
    slot = IN_CORE.get(msr)
    if slot is not None:
        if msr == EFER:
            return _write_efer(vcpu, value)
        regs[slot] = value
        if msr == TSC_ADJUST:
            vcpu.apic.tsc_changed()
        return True
    field = IN_VMCS.get(msr)
    if field is not None:
        vcpu.v[field] = value
        return True
    at = _mtrr(msr)
    if at >= 0 and _mtrr_valid(msr, value, vcpu.machine.physical_bits):
        regs[at] = value
        return True
    return False


def _mtrr_valid(msr: int, value: int, physical_bits: int) -> bool:
    """Memory types, and no reserved bits (SDM 12.11.2)."""
    addresses = (1 << physical_bits) - 0x1000
    if msr > 0x20F:
        return all(entry in (0, 1, 4, 5, 6) for entry in value.to_bytes(8, "little"))
    if msr & 1:
        return not value & ~(addresses | 0x800)
    return not value & ~(addresses | 0xFF) and value & 0xFF in (0, 1, 4, 5, 6)


def _pat_valid(value: int) -> bool:
    """Eight memory types (SDM table 12-10)."""
    return all(entry in (0, 1, 4, 5, 6, 7) for entry in value.to_bytes(8, "little"))


def _write_efer(vcpu: Vcpu, value: int) -> bool:
    """LME does not change while paging is on, and LMA only by CR0.PG (SDM 4.1.1)."""
    regs, v = vcpu.regs, vcpu.v
    cr0 = v[F.GUEST_CR0] & ~v[F.CR0_MASK] | v[F.CR0_READ_SHADOW] & v[F.CR0_MASK]
    if cr0 & X.CR0_PG and (value ^ vcpu.efer()) & X.EFER_LME:
        return False
    regs[S.EFER] = value & ~X.EFER_LMA | regs[S.EFER] & X.EFER_LMA
    if vcpu.level == 2:
        v[F.GUEST_EFER] = regs[S.EFER]  # vmcs02 may load it at the next entry
    if vcpu.level == 1:
        vcpu.lme = value & X.EFER_LME
    if vcpu.shadow is not None:
        vcpu.flush_tlb()
        if vcpu.level == 1:
            vcpu.shadow.apply1(vcpu)
        else:
            vcpu.shadow.apply2(vcpu, vcpu.entered12)
    return True


def tsc(vcpu: Vcpu) -> int:
    """The time-stamp counter as L1 reads it."""
    regs = vcpu.regs
    return (vcpu.core.now() + regs[S.TSC_BASE] + regs[S.TSC_ADJUST]) & M64
