"""Control-register accesses that L0 traps: CR0 and CR4 bits that VMX operation fixes, and CR8, the APIC's.

The rules are SDM 2.5 and 4.1: what MOV to CR0 or CR4 checks, and what changes with paging. CR3 exits for L0
in shadow-on-shadow alone, where the processor's is not the guest's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.nested.guest_memory import gpr, set_gpr
from turtles.l0.outcome import GuestStop
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import vmcs01
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

MOV_TO: Final = 0
MOV_FROM: Final = 1
CLTS: Final = 2
LMSW: Final = 3
_PAGING_BITS: Final = X.CR0_PG | X.CR0_WP
_CR4_FLUSH: Final = X.CR4_PSE | X.CR4_PAE | X.CR4_PGE | X.CR4_PCIDE | X.CR4_SMEP | X.CR4_SMAP


def cr_access(vcpu: Vcpu) -> None:
    """Dispatch by the qualification (SDM table 28-3)."""
    v = vcpu.v
    qualification = v[F.EXIT_QUALIFICATION]
    number, kind = qualification & 15, qualification >> 4 & 3
    register = qualification >> 8 & 15
    if kind == MOV_TO:
        value = gpr(vcpu, register)
        if not vcpu.long_mode():
            value &= 0xFFFF_FFFF
        if number == 8:
            _write_cr8(vcpu, value)
        elif number == 3:
            _finish(vcpu, write_cr3(vcpu, value))
        elif vcpu.level == 1 and number in (0, 4):
            done = write_cr0(vcpu, value) if number == 0 else write_cr4(vcpu, value)
            _finish(vcpu, done)
        else:
            raise GuestStop(f"MOV to CR{number} exited, which nobody asked for")
    elif kind == MOV_FROM and number == 8:
        set_gpr(vcpu, register, vcpu.apic.cr8)
        vcpu.advance()
    elif kind == MOV_FROM and number == 3:
        set_gpr(vcpu, register, vcpu.cr3 if vcpu.level == 1 else vcpu.entered12.cr3)
        vcpu.advance()
    elif kind == LMSW and vcpu.level == 1:
        cr0 = read_cr0(vcpu)
        # LMSW loads bits 3:0 and cannot clear PE.
        _finish(vcpu, write_cr0(vcpu, cr0 & ~0xE | qualification >> 16 & 0xF))
    elif kind == CLTS and vcpu.level == 1:
        _finish(vcpu, write_cr0(vcpu, read_cr0(vcpu) & ~X.CR0_TS))
    else:
        raise GuestStop(f"control-register access {qualification:#x} exited, which nobody asked for")


def _finish(vcpu: Vcpu, done: bool) -> None:
    if done:
        vcpu.advance()
    else:
        vcpu.inject_exception(X.VECTOR_GP, 0)


def _write_cr8(vcpu: Vcpu, value: int) -> None:
    if value > 15:
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return
    vcpu.apic.cr8 = value
    vcpu.attention = True
    vcpu.advance()


def read_cr0(vcpu: Vcpu) -> int:
    """CR0 as the context reads it."""
    v = vcpu.v
    return v[F.GUEST_CR0] & ~v[F.CR0_MASK] | v[F.CR0_READ_SHADOW] & v[F.CR0_MASK]


def read_cr4(vcpu: Vcpu) -> int:
    """CR4 as the context reads it."""
    v = vcpu.v
    return v[F.GUEST_CR4] & ~v[F.CR4_MASK] | v[F.CR4_READ_SHADOW] & v[F.CR4_MASK]


def write_cr0(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR0 of L1; false is #GP(0)."""
    v, regs = vcpu.v, vcpu.regs
    old = read_cr0(vcpu)
    value |= X.CR0_ET
    if value >> 32 or value & (X.CR0_NW | X.CR0_CD) == X.CR0_NW or value & (X.CR0_PG | X.CR0_PE) == X.CR0_PG:
        return False
    if vcpu.in_vmx and ~value & vmcs01.CR0_OWNED_IN_VMX:
        return False  # CR0_FIXED0 in VMX operation (SDM 24.8)
    pg_on = value & ~old & X.CR0_PG
    pg_off = old & ~value & X.CR0_PG
    efer, cr4 = vcpu.efer(), read_cr4(vcpu)
    if pg_on and efer & X.EFER_LME:
        if not cr4 & X.CR4_PAE or v[F.GUEST_CS_ACCESS] & X.ACCESS_LONG:
            return False
    elif pg_off and (cr4 & X.CR4_PCIDE or vcpu.long_mode()):
        return False
    pae_without_long = cr4 & X.CR4_PAE and not efer & X.EFER_LME
    changed = (value ^ old) & (_PAGING_BITS | X.CR0_CD | X.CR0_NW)
    if value & X.CR0_PG and pae_without_long and changed and not vcpu.load_pdptes(v, l1_cr3(vcpu)):
        return False
    if pg_on and efer & X.EFER_LME:
        _set_lma(vcpu, True)
    elif pg_off and efer & X.EFER_LMA:
        _set_lma(vcpu, False)
    vmcs01.set_cr0(v, value)
    # VM entry does not load CD and NW (SDM 27.3.2.1): they are the core's.
    cache_bits = X.CR0_CD | X.CR0_NW
    regs[S.CR0] = regs[S.CR0] & ~cache_bits | value & cache_bits
    if changed:
        vcpu.flush_tlb()
    if vcpu.shadow is not None:
        vcpu.shadow.apply1(vcpu)
    return True


def l1_cr3(vcpu: Vcpu) -> int:
    """L1's CR3."""
    return vcpu.v01[F.GUEST_CR3] if vcpu.shadow is None else vcpu.cr3


def write_cr3(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR3 of the context, which exits with shadow paging; false is #GP(0)."""
    v, shadow = vcpu.v, vcpu.shadow
    if shadow is None:
        raise GuestStop("MOV to CR3 exited, which nobody asked for")
    if value >> vcpu.machine.physical_bits:
        return False
    cr0 = read_cr0(vcpu)
    pae = read_cr4(vcpu) & X.CR4_PAE and cr0 & X.CR0_PG and not vcpu.regs[S.EFER] & X.EFER_LMA
    if pae and not vcpu.load_pdptes(v, value):
        return False
    if vcpu.level == 1:
        vcpu.cr3 = value
    else:
        vcpu.entered12.cr3 = value
    vcpu.flush_tlb()
    if vcpu.level == 1:
        shadow.apply1(vcpu)
    else:
        shadow.apply2(vcpu, vcpu.entered12)
    return True


def _set_lma(vcpu: Vcpu, on: bool) -> None:
    """IA-32e mode is entered or left (SDM 10.8.5)."""
    v, regs = vcpu.v, vcpu.regs
    if on:
        regs[S.EFER] |= X.EFER_LMA | X.EFER_LME
        v[F.ENTRY_CONTROLS] |= C.ENTRY_IA32E
        # VM entry wants a 64-bit busy TSS in IA-32e mode; a 16-bit one may linger in TR (SDM 27.3.1.2).
        if v[F.GUEST_TR_ACCESS] & 0xF != 0xB:
            v[F.GUEST_TR_ACCESS] = v[F.GUEST_TR_ACCESS] & ~0xF | 0xB
    else:
        vcpu.lme = X.EFER_LME
        regs[S.EFER] &= ~X.EFER_LMA
        v[F.ENTRY_CONTROLS] &= ~C.ENTRY_IA32E


def write_cr4(vcpu: Vcpu, value: int) -> bool:
    """MOV to CR4 of L1; false is #GP(0)."""
    v, regs = vcpu.v, vcpu.regs
    old = read_cr4(vcpu)
    if value & ~vcpu.machine.l1_model.cr4_bits:
        return False
    if vcpu.in_vmx and not value & X.CR4_VMXE:
        return False
    long = regs[S.EFER] & X.EFER_LMA
    if long and not value & X.CR4_PAE:
        return False
    if value & ~old & X.CR4_PCIDE and (not long or l1_cr3(vcpu) & 0xFFF):
        return False
    changed = value ^ old
    reload = changed & (X.CR4_PSE | X.CR4_PAE | X.CR4_PGE | X.CR4_SMEP)
    pae = value & X.CR4_PAE and read_cr0(vcpu) & X.CR0_PG and not long
    if pae and reload and not vcpu.load_pdptes(v, l1_cr3(vcpu)):
        return False
    vmcs01.set_cr4(v, value)
    if changed & _CR4_FLUSH:
        vcpu.flush_tlb()
    if vcpu.shadow is not None:
        vcpu.shadow.apply1(vcpu)
    return True
