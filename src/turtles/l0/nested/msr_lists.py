"""The MSR areas of vmcs12: loaded at entry, stored and loaded at exit, by L0 (SDM 27.4, 28.4, 28.6).

vmcs02 has no MSR areas: silicon would touch its own MSRs, and some of L1's are L0's. KVM leaves these lists
empty where the controls for EFER and PAT exist, so that this path is seldom taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.exits import msr
from turtles.silicon import ExitReason
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

# Never by a list (SDM 27.4, 28.4), as x2APIC registers: FS and GS base, microcode update, SMM monitor
# control are not loaded, SMBASE is not stored.
_FORBIDDEN_LOAD: Final = frozenset((0xC000_0100, 0xC000_0101, 0x79, 0x8B, 0x9B))
_FORBIDDEN_STORE: Final = frozenset((0x9E,))
_ENTRY: Final = 16
MOST: Final = 512  # as IA32_VMX_MISC recommends at most; a longer list fails


def _of_x2apic(number: int) -> bool:
    return 0x800 <= number <= 0x8FF


def load(vcpu: Vcpu, l1_pa: int, count: int) -> int:
    """Loads `count` MSRs; 0, or the number (from 1) of the entry that cannot be loaded."""
    if count > MOST:
        return MOST + 1
    data = vcpu.machine.l1.read(l1_pa, count * _ENTRY)
    for number in range(count):
        entry = data[number * _ENTRY : (number + 1) * _ENTRY]
        index = int.from_bytes(entry[:4], "little")
        reserved = int.from_bytes(entry[4:8], "little")
        value = int.from_bytes(entry[8:], "little")
        if reserved or _of_x2apic(index) or index in _FORBIDDEN_LOAD or not msr.write(vcpu, index, value):
            return number + 1
    return 0


def _tsc_at_exit(vcpu: Vcpu) -> int:
    """The time-stamp counter when the processor left L2, without vmcs12's offset and multiplier."""
    regs = vcpu.regs
    # What L0 reflects by itself may come long after the processor's last exit.
    made_by_l0 = vcpu.entered12.v[F.EXIT_REASON] == ExitReason.EXTERNAL_INTERRUPT
    now = vcpu.core.now() if made_by_l0 else regs[S.EXIT_TIME]
    return now + regs[S.TSC_BASE] + regs[S.TSC_ADJUST] & msr.M64


def store(vcpu: Vcpu, l1_pa: int, count: int) -> bool:
    """Stores `count` MSRs; false is a VMX abort."""
    if count > MOST:
        return False
    for number in range(count):
        at = l1_pa + number * _ENTRY
        entry = vcpu.machine.l1.read(at, 8)
        index = int.from_bytes(entry[:4], "little")
        if int.from_bytes(entry[4:8], "little") or _of_x2apic(index) or index in _FORBIDDEN_STORE:
            return False
        value = _tsc_at_exit(vcpu) if index == msr.TSC else msr.read(vcpu, index)
        if value is None:
            return False
        vcpu.machine.l1.write(at + 8, value.to_bytes(8, "little"))
    return True
