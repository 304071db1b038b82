"""Where an exit from L2 goes: two questions, two pure functions, after the paper and the SDM (26.1).

`l0_wants`: is it L0's own business, which L1 must not see? `l1_wants`: did L1 ask for it, by the
architecture or by vmcs12's controls? What neither wants L0 handles as it would for L1. They read, and
change nothing; an EPT violation is L0's first and is reflected by the memory mode where ept12 is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from turtles.l0.ports import Slots
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason as R
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

ReadByte = Callable[[int], int]  # a byte of L1's physical memory; outside RAM it is FFH
Decision = Callable[[Slots, Slots, Slots, ReadByte], bool]

# Every one of these is L1's, whatever its controls say (unconditional exits, and those only L1 can cause).
ALWAYS_L1: Final = frozenset(
    {
        R.TRIPLE_FAULT, R.TASK_SWITCH, R.CPUID, R.GETSEC, R.INVD, R.RSM,
        R.VMCALL, R.VMCLEAR, R.VMLAUNCH, R.VMPTRLD, R.VMPTRST, R.VMREAD, R.VMRESUME, R.VMWRITE, R.VMXOFF,
        R.VMXON, R.INVEPT, R.INVVPID, R.VMFUNC, R.XSETBV, R.TPR_BELOW_THRESHOLD, R.PREEMPTION_TIMER,
        R.ENTRY_GUEST_STATE, R.ENTRY_MSR_LOAD, R.MONITOR_TRAP, R.VIRTUALIZED_EOI, R.APIC_WRITE, R.APIC_ACCESS,
        R.XSAVES, R.XRSTORS, R.ENCLS, R.PML_FULL, R.INIT, R.SIPI,
    }
)  # fmt: skip
ALWAYS_L0: Final = frozenset(
    {
        R.EXTERNAL_INTERRUPT, R.ENTRY_MACHINE_CHECK, R.EPT_VIOLATION, R.EPT_MISCONFIGURATION,
        R.IO_SMI, R.OTHER_SMI,
    }
)  # fmt: skip

# By one bit of vmcs12's controls.
BY_PRIMARY: Final[dict[int, int]] = {
    R.INTERRUPT_WINDOW: C.PRIMARY_INTERRUPT_WINDOW,
    R.NMI_WINDOW: C.PRIMARY_NMI_WINDOW,
    R.HLT: C.PRIMARY_HLT,
    R.INVLPG: C.PRIMARY_INVLPG,
    R.MWAIT: C.PRIMARY_MWAIT,
    R.RDPMC: C.PRIMARY_RDPMC,
    R.RDTSC: C.PRIMARY_RDTSC,
    R.RDTSCP: C.PRIMARY_RDTSC,
    R.MOV_DR: C.PRIMARY_MOV_DR,
    R.MONITOR: C.PRIMARY_MONITOR,
}
BY_SECONDARY: Final[dict[int, int]] = {
    R.GDTR_IDTR: C.SECONDARY_DESCRIPTOR_TABLE,
    R.LDTR_TR: C.SECONDARY_DESCRIPTOR_TABLE,
    R.WBINVD: C.SECONDARY_WBINVD,
    R.RDRAND: C.SECONDARY_RDRAND,
    R.RDSEED: C.SECONDARY_RDSEED,
}

_LEGACY_MSRS: Final = 0x2000  # MSRs that one quarter of the bitmap covers
_HIGH_MSRS: Final = 0xC000_0000


def l0_wants(reason: int, v02: Slots) -> bool:
    """Whether an exit from L2 is L0's own, before L1 is asked."""
    if reason == R.EXCEPTION_OR_NMI:
        # A physical NMI; L0 itself intercepts no exception.
        return v02[F.EXIT_INTERRUPTION_INFO] & X.TYPE_MASK == X.TYPE_NMI
    return reason in ALWAYS_L0


def l1_wants(reason: int, v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """Whether L1 asked for an exit that L0 does not want. `regs`: the core's state; `byte` reads L1's RAM."""
    return decision(reason)(v02, v12, regs, byte)


def decision(reason: int) -> Decision:
    """The function that answers `l1_wants` for one reason, to be asked at each exit without a look-up."""
    if reason in ALWAYS_L1:
        return _always
    bit = BY_PRIMARY.get(reason)
    if bit is not None:
        return _by_primary(bit)
    bit = BY_SECONDARY.get(reason)
    if bit is not None:
        return _by_secondary(bit)
    return _DECIDE.get(reason, _never)


def _always(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    return True


def _never(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    return False


def _by_primary(bit: int) -> Decision:
    return lambda v02, v12, regs, byte: bool(v12[F.PRIMARY_CONTROLS] & bit)


def _by_secondary(bit: int) -> Decision:
    return lambda v02, v12, regs, byte: bool(_secondary(v12) & bit)


def _secondary(v12: Slots) -> int:
    """Secondary controls of vmcs12; they count as 0 where the primary ones do not activate them."""
    return v12[F.SECONDARY_CONTROLS] if v12[F.PRIMARY_CONTROLS] & C.PRIMARY_SECONDARY else 0


def _invpcid(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """INVPCID exits by "INVLPG exiting" where it is enabled at all (SDM 26.1.3)."""
    return bool(_secondary(v12) & C.SECONDARY_INVPCID and v12[F.PRIMARY_CONTROLS] & C.PRIMARY_INVLPG)


def _pause(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """PAUSE exiting, or PAUSE-loop exiting."""
    return bool(v12[F.PRIMARY_CONTROLS] & C.PRIMARY_PAUSE or _secondary(v12) & C.SECONDARY_PAUSE_LOOP)


def _exception(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """Exception bitmap; #PF by mask and match of the error code (SDM 26.2)."""
    vector = v02[F.EXIT_INTERRUPTION_INFO] & 0xFF
    in_bitmap = bool(v12[F.EXCEPTION_BITMAP] >> (vector & 31) & 1)
    if vector != X.VECTOR_PF:
        return in_bitmap
    matches = v02[F.EXIT_INTERRUPTION_ERROR] & v12[F.PF_ERROR_MASK] == v12[F.PF_ERROR_MATCH]
    return in_bitmap == matches


def _io(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """I/O bitmaps, or unconditional exiting without them (SDM 26.1.3)."""
    primary12 = v12[F.PRIMARY_CONTROLS]
    if not primary12 & C.PRIMARY_IO_BITMAPS:
        return bool(primary12 & C.PRIMARY_UNCONDITIONAL_IO)
    qualification = v02[F.EXIT_QUALIFICATION]
    first = qualification >> 16 & 0xFFFF
    last = first + (qualification & 7)
    if last > 0xFFFF:
        return True  # an access that wraps round exits
    a, b = v12[F.IO_BITMAP_A], v12[F.IO_BITMAP_B]
    return any(
        byte((b if port & 0x8000 else a) + (port >> 3 & 0xFFF)) >> (port & 7) & 1
        for port in range(first, last + 1)
    )


def _msr(v12: Slots, regs: Slots, byte: ReadByte, quarter: int) -> bool:
    """MSR bitmap: read low, read high, write low, write high, of 1024 bytes each (SDM 25.6.9)."""
    if not v12[F.PRIMARY_CONTROLS] & C.PRIMARY_MSR_BITMAPS:
        return True
    msr = regs[S.RCX] & 0xFFFF_FFFF
    if msr >= _HIGH_MSRS:
        msr -= _HIGH_MSRS
        quarter += 1
    if msr >= _LEGACY_MSRS:
        return True
    return bool(byte(v12[F.MSR_BITMAP] + 1024 * quarter + (msr >> 3)) >> (msr & 7) & 1)


def _cr(v02: Slots, v12: Slots, regs: Slots, byte: ReadByte) -> bool:
    """Control-register accesses: masks and shadows, CR3 targets, CR8 (SDM 26.1.3, table 28-3)."""
    qualification = v02[F.EXIT_QUALIFICATION]
    number = qualification & 15
    kind = qualification >> 4 & 3
    primary12 = v12[F.PRIMARY_CONTROLS]
    if kind == 2:  # CLTS
        return bool(v12[F.CR0_MASK] & v12[F.CR0_READ_SHADOW] & X.CR0_TS)
    if kind == 3:  # LMSW: PE can only be set
        value = qualification >> 16 & 0xFFFF
        mask, shadow = v12[F.CR0_MASK], v12[F.CR0_READ_SHADOW]
        changed = mask & 0xE & (value ^ shadow)
        return bool(changed or mask & ~shadow & value & X.CR0_PE)
    if kind == 1:  # MOV from CR3 or CR8
        return bool(primary12 & (C.PRIMARY_CR3_STORE if number == 3 else C.PRIMARY_CR8_STORE))
    register = qualification >> 8 & 15
    value = v02[F.GUEST_RSP] if register == 4 else regs[S.GPR + register]
    if number == 0:
        return bool(v12[F.CR0_MASK] & (value ^ v12[F.CR0_READ_SHADOW]))
    if number == 4:
        return bool(v12[F.CR4_MASK] & (value ^ v12[F.CR4_READ_SHADOW]))
    if number == 3:
        if not primary12 & C.PRIMARY_CR3_LOAD:
            return False
        return all(v12[F.CR3_TARGET0 + n] != value for n in range(min(v12[F.CR3_TARGET_COUNT], 4)))
    return bool(primary12 & C.PRIMARY_CR8_LOAD)


_DECIDE: Final[dict[int, Decision]] = {
    R.EXCEPTION_OR_NMI: _exception,
    R.IO: _io,
    R.RDMSR: lambda v02, v12, regs, byte: _msr(v12, regs, byte, 0),
    R.WRMSR: lambda v02, v12, regs, byte: _msr(v12, regs, byte, 2),
    R.CR_ACCESS: _cr,
    R.INVPCID: _invpcid,
    R.PAUSE: _pause,
}
