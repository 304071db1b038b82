"""CPUID as L1 sees it: silicon's model, what depends on registers, and L0's own leaves.

L1 is told that it runs below a hypervisor, with KVM's signature and only the features that L0 has: Linux
trusts x2APIC without interrupt remapping only then. Answers are remembered; of the leaves whose contents
move, only those bits are worked out anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

Registers = tuple[int, int, int, int]

HYPERVISOR_BASE: Final = 0x4000_0000
HYPERVISOR_FEATURES: Final = 0x4000_0001
_LEAF1_HYPERVISOR: Final = 1 << 31
_LEAF1_OSXSAVE: Final = 1 << 27
_LEAF1_APIC: Final = 1 << 9
# KVM_FEATURE_NOP_IO_DELAY: no write to port 80H after each port access.
_KVM_FEATURES: Final = 1 << 1
_SIGNATURE: Final[Registers] = (
    HYPERVISOR_FEATURES,
    int.from_bytes(b"KVMK", "little"),
    int.from_bytes(b"VMKV", "little"),
    int.from_bytes(b"M\0\0\0", "little"),
)
MOST_KNOWN: Final = 4096
_XSAVE: Final = 0xD
_TOPOLOGY: Final = 0xB
# Leaves whose contents depend on registers.
_MOVING: Final = frozenset((1, _TOPOLOGY, _XSAVE))


class CpuidSource(Protocol):
    """Silicon's Model, as far as it matters here."""

    def cpuid(self, leaf: int, subleaf: int = 0, xcr0: int = 7) -> Registers:
        """EAX, EBX, ECX, EDX."""
        ...


class CpuidTable:
    """Answers that depend on leaf and subleaf alone, made when first asked for; all virtual CPUs share it."""

    def __init__(self, source: CpuidSource) -> None:
        self._source = source
        self.known: dict[int, Registers] = {}  # by leaf << 32 | subleaf

    def make(self, leaf: int, subleaf: int) -> Registers:
        """What L1 reads, but for what depends on registers."""
        if len(self.known) >= MOST_KNOWN:  # ECX is the guest's: the table must not grow with it
            self.known.clear()
        answer = self.known[leaf << 32 | subleaf] = self._make(leaf, subleaf)
        return answer

    def _make(self, leaf: int, subleaf: int) -> Registers:
        if leaf == HYPERVISOR_BASE:
            return _SIGNATURE
        if leaf == HYPERVISOR_FEATURES:
            return (_KVM_FEATURES, 0, 0, 0)
        if HYPERVISOR_BASE <= leaf < HYPERVISOR_BASE + 0x1000_0000:
            return (0, 0, 0, 0)
        a, b, c, d = self._source.cpuid(leaf, subleaf, 1)
        if leaf == 1:
            c |= _LEAF1_HYPERVISOR
        return (a, b, c, d)


def cpuid(vcpu: Vcpu) -> None:
    """CPUID of L1. (L2's is always reflected.)"""
    regs = vcpu.regs
    leaf, subleaf = regs[S.RAX] & 0xFFFF_FFFF, regs[S.RCX] & 0xFFFF_FFFF
    table = vcpu.machine.cpuid
    answer = table.known.get(leaf << 32 | subleaf)
    if answer is None:
        answer = table.make(leaf, subleaf)
    if leaf in _MOVING:
        answer = _moved(vcpu, leaf, subleaf, answer)
    regs[S.RAX], regs[S.RBX], regs[S.RCX], regs[S.RDX] = answer
    vcpu.advance()


def _moved(vcpu: Vcpu, leaf: int, subleaf: int, answer: Registers) -> Registers:
    """The parts that depend on CR4, XCR0 and the local APIC."""
    if leaf == _XSAVE:
        return vcpu.machine.l1_model.cpuid(leaf, subleaf, vcpu.regs[S.XCR0])
    a, b, c, d = answer
    if leaf == _TOPOLOGY:
        return (a, b, c, vcpu.identity)
    b = b & 0xFF_FFFF | vcpu.identity << 24
    if vcpu.v[F.GUEST_CR4] & X.CR4_OSXSAVE:
        c |= _LEAF1_OSXSAVE
    if not vcpu.apic.enabled:  # as if there were none (SDM 11.4.3)
        d &= ~_LEAF1_APIC
    return (a, b, c, d)
