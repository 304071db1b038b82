"""L1's VMX instructions but VMLAUNCH and VMRESUME: a function each, named after the instruction (SDM ch. 31).

Silicon has checked operating mode (#UD) before these exits; CR4.VMXE as L1 sees it, VMX operation and CPL
are L0's to check. Entry into L2 lies in `entry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.mmu import ept
from turtles.l0.nested import guest_memory as guest
from turtles.l0.nested.errors import VmError, fail, fail_invalid, succeed
from turtles.l0.nested.guest_memory import Faulted
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import vmcs01, vmcs02
from turtles.l0.vmcs.shadow12 import Shadow12
from turtles.silicon import fields as F
from turtles.silicon import slots as S
from turtles.silicon._silicon import VMCS_FIELDS

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

MSR_FEATURE_CONTROL_LOCKED: Final = 1 << 0
MSR_FEATURE_CONTROL_VMXON: Final = 1 << 2
MISC_VMWRITE_ANY: Final = 1 << 29
KVM_ENOSYS: Final = (1 << 64) - 1000

# Slot of each encoding, and the group of fields that a write to a slot belongs to.
SLOT_OF: Final = {encoding: slot for slot, encoding in VMCS_FIELDS.values()}
_GROUPS: Final = tuple(
    (slots, 1 << number)
    for number, slots in enumerate(
        (
            F.GUEST_EXECUTION_SLOTS,
            F.GUEST_CONTROL_SLOTS,
            F.GUEST_SEGMENTS_SLOTS,
            F.GUEST_OTHER_SLOTS,
            F.HOST_STATE_SLOTS,
            F.CONTROLS_SLOTS,
            F.CONTROL_MASKS_SLOTS,
            F.CONTROL_TIME_SLOTS,
            F.CONTROL_TPR_SLOTS,
            F.CONTROL_EVENT_SLOTS,
            F.EXIT_INFORMATION_SLOTS,
        )
    )
)
_WIDTH_64: Final = 1
ASSIST_POINTER: Final = 6  # assist_kind: silicon has read the operand


def written_bit(slot: int) -> int:
    """The bit of the written-mask for a field."""
    return next(bit for slots, bit in _GROUPS if slots.start <= slot < slots.stop)


def find_field(encoding: int) -> tuple[int, bool] | None:
    """Slot of a VMREAD or VMWRITE operand, and whether it names the high half of a 64-bit field."""
    slot = SLOT_OF.get(encoding)
    if slot is not None:
        return slot, False
    if encoding & 1 and encoding >> 13 & 3 == _WIDTH_64:
        slot = SLOT_OF.get(encoding & ~1)
        if slot is not None:
            return slot, True
    return None


def _width_mask(encoding: int) -> int:
    return (0xFFFF, guest.M64, 0xFFFF_FFFF, guest.M64)[encoding >> 13 & 3]


def permitted(vcpu: Vcpu) -> bool:
    """Whether a VMX instruction may go on: #UD outside VMX operation, #GP(0) above CPL 0."""
    if not vcpu.in_vmx:
        vcpu.inject_exception(X.VECTOR_UD)
        return False
    if vcpu.cpl():
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return False
    return True


def _pointer(vcpu: Vcpu) -> int:
    """The 64-bit memory operand: a physical address."""
    regs = vcpu.regs
    if regs[S.ASSIST_KIND] == ASSIST_POINTER:
        return regs[S.ASSIST_DATA]
    v = vcpu.v
    linear = guest.operand_address(vcpu, v[F.EXIT_INSTRUCTION_INFO], 8, False)
    return int.from_bytes(guest.read(vcpu, linear, 8), "little")


def _bad_address(vcpu: Vcpu, l1_pa: int) -> bool:
    return bool(l1_pa & 0xFFF or l1_pa >> vcpu.machine.physical_bits)


def set_current(vcpu: Vcpu, c: Vmcs12 | Shadow12 | None) -> None:
    """Makes a VMCS of L1's current: its VMREAD and VMWRITE go to it without an exit, where silicon shadows.

    Without one they fail as they should (SDM 31.2: VMfailInvalid where the link pointer names none).
    """
    vcpu.current12 = vcpu.current_shadow = None
    if isinstance(c, Shadow12):
        vcpu.current_shadow = c
    else:
        vcpu.current12 = c
    if vcpu.machine.shadows:
        vcpu.v01[F.GUEST_VMCS_LINK_POINTER] = X.NO_ADDRESS if c is None else c.host_pa


def vmxon(vcpu: Vcpu) -> None:
    """VMXON."""
    v = vcpu.v
    if not v[F.CR4_READ_SHADOW] & X.CR4_VMXE:
        vcpu.inject_exception(X.VECTOR_UD)
        return
    if vcpu.cpl():
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return
    if vcpu.in_vmx:
        fail(vcpu, VmError.VMXON_IN_ROOT)
        return
    enabled = MSR_FEATURE_CONTROL_LOCKED | MSR_FEATURE_CONTROL_VMXON
    fixed = vmcs01.CR0_OWNED_IN_VMX
    cr0 = v[F.GUEST_CR0] & ~v[F.CR0_MASK] | v[F.CR0_READ_SHADOW] & v[F.CR0_MASK]
    if cr0 & fixed != fixed or vcpu.regs[S.FEATURE_CONTROL] & enabled != enabled:
        vcpu.inject_exception(X.VECTOR_GP, 0)
        return
    try:
        l1_pa = _pointer(vcpu)
    except Faulted:
        return
    if _bad_address(vcpu, l1_pa) or vcpu.machine.l1.load64(l1_pa) & 0xFFFF_FFFF != vcpu.machine.revision:
        fail_invalid(vcpu)
        return
    vcpu.enter_vmx(l1_pa)
    v[F.CR0_MASK] |= fixed
    v[F.CR0_READ_SHADOW] |= fixed
    succeed(vcpu)


def vmxoff(vcpu: Vcpu) -> None:
    """VMXOFF. vmcs12s that L1 did not clear are lost, as the SDM allows."""
    if not permitted(vcpu):
        return
    vcpu.leave_vmx()
    succeed(vcpu)


def _vmcs_pointer(vcpu: Vcpu, bad_address: VmError, vmxon_pointer: VmError) -> int | None:
    """The VMCS address that VMCLEAR or VMPTRLD names; none when the instruction has ended with an error."""
    if not permitted(vcpu):
        return None
    try:
        l1_pa = _pointer(vcpu)
    except Faulted:
        return None
    if _bad_address(vcpu, l1_pa):
        fail(vcpu, bad_address)
        return None
    if l1_pa == vcpu.vmxon_l1_pa:
        fail(vcpu, vmxon_pointer)
        return None
    return l1_pa


def vmclear(vcpu: Vcpu) -> None:
    """VMCLEAR."""
    l1_pa = _vmcs_pointer(vcpu, VmError.VMCLEAR_ADDRESS, VmError.VMCLEAR_VMXON_POINTER)
    if l1_pa is None:
        return
    current = vcpu.current12 or vcpu.current_shadow
    if current is not None and current.l1_pa == l1_pa:
        set_current(vcpu, None)
    vcpu.vmcs12s.clear(l1_pa)
    succeed(vcpu)


def vmptrld(vcpu: Vcpu) -> None:
    """VMPTRLD."""
    l1_pa = _vmcs_pointer(vcpu, VmError.VMPTRLD_ADDRESS, VmError.VMPTRLD_VMXON_POINTER)
    if l1_pa is None:
        return
    machine = vcpu.machine
    revision = machine.l1.load64(l1_pa) & 0xFFFF_FFFF
    # Bit 31, the shadow indicator, must be clear unless L1 is offered VMCS shadowing.
    if revision != machine.revision:
        if revision != machine.revision | X.SHADOW_VMCS or not machine.l1_has_shadowing:
            fail(vcpu, VmError.VMPTRLD_REVISION)
            return
        if l1_pa not in vcpu.vmcs12s:  # what L1 changes of an active VMCS counts for nothing
            set_current(vcpu, vcpu.shadow12s.load(l1_pa))
            succeed(vcpu)
            return
    c = vcpu.vmcs12s.load(l1_pa)
    if not c.v02[F.REVISION]:
        vmcs02.prepare(vcpu, c)
    set_current(vcpu, c)
    succeed(vcpu)


def vmptrst(vcpu: Vcpu) -> None:
    """VMPTRST."""
    if not permitted(vcpu):
        return
    c = vcpu.current12 or vcpu.current_shadow
    value = X.NO_ADDRESS if c is None else c.l1_pa
    try:
        linear = guest.operand_address(vcpu, vcpu.v[F.EXIT_INSTRUCTION_INFO], 8, True)
        guest.write(vcpu, linear, value.to_bytes(8, "little"))
    except Faulted:
        return
    succeed(vcpu)


def vmread(vcpu: Vcpu) -> None:
    """VMREAD that shadowing did not answer."""
    if not permitted(vcpu):
        return
    c = vcpu.current12 or vcpu.current_shadow
    if c is None:
        fail_invalid(vcpu)
        return
    information = vcpu.v[F.EXIT_INSTRUCTION_INFO]
    size = 8 if vcpu.long_mode() else 4
    mask = (1 << 8 * size) - 1
    found = find_field(guest.gpr(vcpu, information >> 28 & 15) & mask)
    if found is None:
        fail(vcpu, VmError.UNSUPPORTED_FIELD)
        return
    slot, high = found
    value = (c.v[slot] >> 32 if high else c.v[slot]) & mask
    if information >> 10 & 1:
        guest.set_gpr(vcpu, information >> 3 & 15, value)
    else:
        try:
            linear = guest.operand_address(vcpu, information, size, True)
            guest.write(vcpu, linear, value.to_bytes(size, "little"))
        except Faulted:
            return
    succeed(vcpu)


def vmwrite(vcpu: Vcpu) -> None:
    """VMWRITE that shadowing did not take."""
    if not permitted(vcpu):
        return
    c = vcpu.current12 or vcpu.current_shadow
    if c is None:
        fail_invalid(vcpu)
        return
    information = vcpu.v[F.EXIT_INSTRUCTION_INFO]
    size = 8 if vcpu.long_mode() else 4
    mask = (1 << 8 * size) - 1
    if information >> 10 & 1:
        value = guest.gpr(vcpu, information >> 3 & 15) & mask
    else:
        try:
            linear = guest.operand_address(vcpu, information, size, False)
            value = int.from_bytes(guest.read(vcpu, linear, size), "little")
        except Faulted:
            return
    encoding = guest.gpr(vcpu, information >> 28 & 15) & mask
    found = find_field(encoding)
    if found is None:
        fail(vcpu, VmError.UNSUPPORTED_FIELD)
        return
    slot, high = found
    if encoding >> 10 & 3 == 1 and not vcpu.machine.l1_misc & MISC_VMWRITE_ANY:
        fail(vcpu, VmError.READ_ONLY_FIELD)
        return
    v = c.v
    if high:
        v[slot] = v[slot] & 0xFFFF_FFFF | (value & 0xFFFF_FFFF) << 32
    elif size == 4 and encoding >> 13 & 3 == _WIDTH_64:
        v[slot] = v[slot] & ~0xFFFF_FFFF | value
    else:
        v[slot] = value & _width_mask(encoding)
    v[F.WRITTEN] |= written_bit(slot)
    succeed(vcpu)


def vmcall(vcpu: Vcpu) -> None:
    """VMCALL: in VMX root operation there is no SMM monitor to call; else a hypercall, and L0 has none."""
    if vcpu.in_vmx:
        if vcpu.cpl():
            vcpu.inject_exception(X.VECTOR_GP, 0)
        else:
            fail(vcpu, VmError.VMCALL_IN_ROOT)
        return
    vcpu.regs[S.GPR] = KVM_ENOSYS
    vcpu.advance()


def _descriptor(vcpu: Vcpu) -> tuple[int, int, int]:
    """Type, and the two halves of the 128-bit descriptor, of INVEPT and INVVPID."""
    information = vcpu.v[F.EXIT_INSTRUCTION_INFO]
    kind = guest.gpr(vcpu, information >> 28 & 15)
    if not vcpu.long_mode():
        kind &= 0xFFFF_FFFF
    linear = guest.operand_address(vcpu, information, 16, False)
    data = guest.read(vcpu, linear, 16)
    return kind, int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


def invept(vcpu: Vcpu) -> None:
    """INVEPT."""
    capabilities = vcpu.machine.l1_ept_vpid
    if not capabilities >> 20 & 1:
        vcpu.inject_exception(X.VECTOR_UD)
        return
    if not permitted(vcpu):
        return
    try:
        kind, eptp12, _ = _descriptor(vcpu)
    except Faulted:
        return
    machine = vcpu.machine
    # Bit 25: single-context, type 1; bit 26: all contexts, type 2 (SDM appendix A.10).
    if kind not in (1, 2) or not capabilities >> 24 + kind & 1:
        fail(vcpu, VmError.INVALID_OPERAND)
        return
    if kind == 1 and not ept.valid_eptp(eptp12, machine.physical_bits, bool(capabilities >> 21 & 1)):
        fail(vcpu, VmError.INVALID_OPERAND)
        return
    machine.mmu.invept(eptp12 if kind == 1 else None)
    succeed(vcpu)


def invvpid(vcpu: Vcpu) -> None:
    """INVVPID, for the VPID that L1's was mapped to."""
    capabilities = vcpu.machine.l1_ept_vpid
    if not capabilities >> 32 & 1:
        vcpu.inject_exception(X.VECTOR_UD)
        return
    if not permitted(vcpu):
        return
    try:
        kind, vpid12, linear = _descriptor(vcpu)
    except Faulted:
        return
    # Bits 40 to 43: individual address, single context, all contexts, single context retaining globals.
    if kind > 3 or not capabilities >> 40 + kind & 1 or vpid12 >> 16:
        fail(vcpu, VmError.INVALID_OPERAND)
        return
    if kind != 2 and not vpid12:
        fail(vcpu, VmError.INVALID_OPERAND)
        return
    if kind == 0 and (linear >> 47) not in (0, 0x1FFFF):
        fail(vcpu, VmError.INVALID_OPERAND)
        return
    if vcpu.shadow is not None:
        # Which mirrors serve one VPID is not told apart: all are compared before their next use.
        vcpu.shadow.flushed(2)
    elif kind == 2:
        for vpid02 in vcpu.vpids.all():
            vcpu.machine.memory.invvpid(1, vpid02, 0)
    else:
        mapped = vcpu.vpids.find(vpid12)
        if mapped is not None:
            vcpu.machine.memory.invvpid(kind, mapped, linear)
    succeed(vcpu)
