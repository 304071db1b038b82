"""The routing rules of the paper and of KVM, each as a row: which exits of L2 are L0's, L1's, and when."""

from __future__ import annotations

import pytest

from turtles.l0.nested import routing
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason as R
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

SLOTS = 512


def slots(**fields: int) -> memoryview[int]:
    view = memoryview(bytearray(8 * SLOTS)).cast("Q")
    for name, value in fields.items():
        view[getattr(F, name)] = value
    return view


def registers(**named: int) -> memoryview[int]:
    view = memoryview(bytearray(8 * SLOTS)).cast("Q")
    for name, value in named.items():
        view[getattr(S, name)] = value
    return view


def l1(
    reason: int,
    v02: memoryview[int] | None = None,
    v12: memoryview[int] | None = None,
    regs: memoryview[int] | None = None,
    bitmap: dict[int, int] | None = None,
) -> bool:
    found = bitmap or {}
    return routing.l1_wants(
        reason, v02 or slots(), v12 or slots(), regs or registers(), lambda at: found.get(at, 0)
    )


@pytest.mark.parametrize(
    "reason",
    [
        R.TRIPLE_FAULT,
        R.TASK_SWITCH,
        R.CPUID,
        R.INVD,
        R.XSETBV,
        R.TPR_BELOW_THRESHOLD,
        R.ENTRY_GUEST_STATE,
        R.ENTRY_MSR_LOAD,
        R.VMCALL,
        R.VMCLEAR,
        R.VMLAUNCH,
        R.VMPTRLD,
        R.VMPTRST,
        R.VMREAD,
        R.VMRESUME,
        R.VMWRITE,
        R.VMXOFF,
        R.VMXON,
        R.INVEPT,
        R.INVVPID,
    ],
)
def test_always_l1(reason: R) -> None:
    assert not routing.l0_wants(reason, slots())
    assert l1(reason)


@pytest.mark.parametrize(
    "reason", [R.EXTERNAL_INTERRUPT, R.ENTRY_MACHINE_CHECK, R.EPT_VIOLATION, R.EPT_MISCONFIGURATION]
)
def test_always_l0(reason: R) -> None:
    assert routing.l0_wants(reason, slots())


def test_an_nmi_is_l0s_and_an_exception_is_not() -> None:
    nmi = slots(EXIT_INTERRUPTION_INFO=X.VALID | X.TYPE_NMI | 2)
    breakpoint_ = slots(EXIT_INTERRUPTION_INFO=X.VALID | X.TYPE_SOFTWARE_EXCEPTION | 3)
    assert routing.l0_wants(R.EXCEPTION_OR_NMI, nmi)
    assert not routing.l0_wants(R.EXCEPTION_OR_NMI, breakpoint_)


@pytest.mark.parametrize(
    ("reason", "bit"),
    [
        (R.INTERRUPT_WINDOW, C.PRIMARY_INTERRUPT_WINDOW),
        (R.NMI_WINDOW, C.PRIMARY_NMI_WINDOW),
        (R.HLT, C.PRIMARY_HLT),
        (R.INVLPG, C.PRIMARY_INVLPG),
        (R.MWAIT, C.PRIMARY_MWAIT),
        (R.RDPMC, C.PRIMARY_RDPMC),
        (R.RDTSC, C.PRIMARY_RDTSC),
        (R.RDTSCP, C.PRIMARY_RDTSC),
        (R.MOV_DR, C.PRIMARY_MOV_DR),
        (R.MONITOR, C.PRIMARY_MONITOR),
        (R.PAUSE, C.PRIMARY_PAUSE),
    ],
)
def test_by_a_primary_control(reason: R, bit: int) -> None:
    assert l1(reason, v12=slots(PRIMARY_CONTROLS=bit))
    assert not l1(reason, v12=slots(PRIMARY_CONTROLS=0xFFFF_FFFF & ~bit, SECONDARY_CONTROLS=0))


@pytest.mark.parametrize(
    ("reason", "bit"),
    [
        (R.WBINVD, C.SECONDARY_WBINVD),
        (R.GDTR_IDTR, C.SECONDARY_DESCRIPTOR_TABLE),
        (R.LDTR_TR, C.SECONDARY_DESCRIPTOR_TABLE),
        (R.RDRAND, C.SECONDARY_RDRAND),
        (R.RDSEED, C.SECONDARY_RDSEED),
        (R.PAUSE, C.SECONDARY_PAUSE_LOOP),
    ],
)
def test_by_a_secondary_control_that_is_activated(reason: R, bit: int) -> None:
    assert l1(reason, v12=slots(PRIMARY_CONTROLS=C.PRIMARY_SECONDARY, SECONDARY_CONTROLS=bit))
    assert not l1(reason, v12=slots(PRIMARY_CONTROLS=0, SECONDARY_CONTROLS=bit))
    assert not l1(
        reason, v12=slots(PRIMARY_CONTROLS=C.PRIMARY_SECONDARY, SECONDARY_CONTROLS=~bit & 0xFFFF_FFFF)
    )


def test_exceptions_by_bitmap() -> None:
    for vector in range(32):
        if vector == X.VECTOR_PF:
            continue
        v02 = slots(EXIT_INTERRUPTION_INFO=X.VALID | X.TYPE_HARDWARE | vector)
        assert l1(R.EXCEPTION_OR_NMI, v02, slots(EXCEPTION_BITMAP=1 << vector))
        assert not l1(R.EXCEPTION_OR_NMI, v02, slots(EXCEPTION_BITMAP=0xFFFF_FFFF & ~(1 << vector)))


@pytest.mark.parametrize("in_bitmap", [False, True])
@pytest.mark.parametrize(("mask", "match", "error"), [(0, 0, 7), (1, 0, 1), (1, 1, 1), (0, 1, 0), (4, 4, 3)])
def test_page_faults_by_mask_and_match(in_bitmap: bool, mask: int, match: int, error: int) -> None:
    v02 = slots(EXIT_INTERRUPTION_INFO=X.VALID | X.TYPE_HARDWARE | X.VECTOR_PF, EXIT_INTERRUPTION_ERROR=error)
    v12 = slots(EXCEPTION_BITMAP=(1 << X.VECTOR_PF) * in_bitmap, PF_ERROR_MASK=mask, PF_ERROR_MATCH=match)
    matches = error & mask == match
    assert l1(R.EXCEPTION_OR_NMI, v02, v12) is (in_bitmap if matches else not in_bitmap)


def io_exit(port: int, width: int) -> memoryview[int]:
    return slots(EXIT_QUALIFICATION=port << 16 | width - 1)


def test_ports_without_bitmaps() -> None:
    assert l1(R.IO, io_exit(0x80, 1), slots(PRIMARY_CONTROLS=C.PRIMARY_UNCONDITIONAL_IO))
    assert not l1(R.IO, io_exit(0x80, 1), slots())


def test_ports_by_bitmap() -> None:
    v12 = slots(PRIMARY_CONTROLS=C.PRIMARY_IO_BITMAPS, IO_BITMAP_A=0x1000, IO_BITMAP_B=0x2000)
    assert l1(R.IO, io_exit(0x3F8, 1), v12, bitmap={0x1000 + (0x3F8 >> 3): 1})
    assert not l1(R.IO, io_exit(0x3F9, 1), v12, bitmap={0x1000 + (0x3F8 >> 3): 1})
    # Any byte of a wide access; ports from 8000H up are in bitmap B; a wrap always exits.
    assert l1(R.IO, io_exit(0x3F6, 4), v12, bitmap={0x1000 + (0x3F8 >> 3): 1})
    assert l1(R.IO, io_exit(0x8001, 1), v12, bitmap={0x2000: 2})
    assert l1(R.IO, io_exit(0x7FFF, 2), v12, bitmap={0x2000: 1})
    assert l1(R.IO, io_exit(0xFFFF, 2), v12)


@pytest.mark.parametrize(
    ("msr", "offset"), [(0x174, 0), (0x1FFF, 0), (0xC000_0080, 1024), (0xC000_1FFF, 1024)]
)
@pytest.mark.parametrize(("reason", "half"), [(R.RDMSR, 0), (R.WRMSR, 2048)])
def test_msrs_by_quarter(msr: int, offset: int, reason: R, half: int) -> None:
    v12 = slots(PRIMARY_CONTROLS=C.PRIMARY_MSR_BITMAPS, MSR_BITMAP=0x5000)
    at = 0x5000 + half + offset + ((msr & 0x1FFF) >> 3)
    regs = registers(RCX=msr)
    assert l1(reason, v12=v12, regs=regs, bitmap={at: 1 << (msr & 7)})
    everything_else = {n: 0xFF for n in range(0x5000, 0x6000)} | {at: 0xFF & ~(1 << (msr & 7))}
    assert not l1(reason, v12=v12, regs=regs, bitmap=everything_else)


@pytest.mark.parametrize("msr", [0x2000, 0xBFFF_FFFF, 0xC000_2000, 0x4B56_4D00])
def test_msrs_outside_the_bitmap_are_l1s(msr: int) -> None:
    v12 = slots(PRIMARY_CONTROLS=C.PRIMARY_MSR_BITMAPS, MSR_BITMAP=0x5000)
    assert l1(R.RDMSR, v12=v12, regs=registers(RCX=msr))


def test_msrs_without_bitmap_are_l1s() -> None:
    assert l1(R.WRMSR, regs=registers(RCX=0x174))


def cr_exit(number: int, kind: int = 0, register: int = 0, data: int = 0) -> memoryview[int]:
    return slots(EXIT_QUALIFICATION=number | kind << 4 | register << 8 | data << 16)


@pytest.mark.parametrize(
    ("number", "mask", "shadow"), [(0, "CR0_MASK", "CR0_READ_SHADOW"), (4, "CR4_MASK", "CR4_READ_SHADOW")]
)
def test_mov_to_cr0_and_cr4_by_mask_and_shadow(number: int, mask: str, shadow: str) -> None:
    v12 = slots(**{mask: 0x8, shadow: 0x8})
    assert l1(R.CR_ACCESS, cr_exit(number), v12, registers(RAX=0x0))
    assert not l1(R.CR_ACCESS, cr_exit(number), v12, registers(RAX=0xF8))


def test_mov_to_cr3_by_targets() -> None:
    targets = {"CR3_TARGET_COUNT": 2, "CR3_TARGET0": 0x1000, "CR3_TARGET1": 0x2000, "CR3_TARGET2": 0x3000}
    v12 = slots(PRIMARY_CONTROLS=C.PRIMARY_CR3_LOAD, **targets)
    assert not l1(R.CR_ACCESS, cr_exit(3), v12, registers(RAX=0x2000))
    assert l1(R.CR_ACCESS, cr_exit(3), v12, registers(RAX=0x3000))
    assert not l1(R.CR_ACCESS, cr_exit(3), slots(**targets), registers(RAX=0x3000))


def test_the_stack_pointer_as_source_comes_from_the_vmcs() -> None:
    v02 = cr_exit(3, register=4)
    v02[F.GUEST_RSP] = 0x1000
    v12 = slots(PRIMARY_CONTROLS=C.PRIMARY_CR3_LOAD, CR3_TARGET_COUNT=1, CR3_TARGET0=0x1000)
    assert not l1(R.CR_ACCESS, v02, v12, registers(RSP=0x9999))


def test_cr3_store_and_cr8() -> None:
    assert l1(R.CR_ACCESS, cr_exit(3, kind=1), slots(PRIMARY_CONTROLS=C.PRIMARY_CR3_STORE))
    assert l1(R.CR_ACCESS, cr_exit(8, kind=1), slots(PRIMARY_CONTROLS=C.PRIMARY_CR8_STORE))
    assert l1(R.CR_ACCESS, cr_exit(8), slots(PRIMARY_CONTROLS=C.PRIMARY_CR8_LOAD))
    assert not l1(R.CR_ACCESS, cr_exit(8), slots(PRIMARY_CONTROLS=C.PRIMARY_CR8_STORE))


def test_clts_and_lmsw() -> None:
    assert l1(R.CR_ACCESS, cr_exit(0, kind=2), slots(CR0_MASK=8, CR0_READ_SHADOW=8))
    assert not l1(R.CR_ACCESS, cr_exit(0, kind=2), slots(CR0_MASK=8, CR0_READ_SHADOW=0))
    # LMSW cannot clear PE, so that a clear bit 0 in its operand is no reason.
    assert not l1(R.CR_ACCESS, cr_exit(0, kind=3, data=0), slots(CR0_MASK=1, CR0_READ_SHADOW=1))
    assert l1(R.CR_ACCESS, cr_exit(0, kind=3, data=1), slots(CR0_MASK=1, CR0_READ_SHADOW=0))
    assert l1(R.CR_ACCESS, cr_exit(0, kind=3, data=8), slots(CR0_MASK=8, CR0_READ_SHADOW=0))


def test_invpcid_needs_both_controls() -> None:
    both = {
        "SECONDARY_CONTROLS": C.SECONDARY_INVPCID,
        "PRIMARY_CONTROLS": C.PRIMARY_SECONDARY | C.PRIMARY_INVLPG,
    }
    assert l1(R.INVPCID, v12=slots(**both))
    assert not l1(R.INVPCID, v12=slots(**(both | {"PRIMARY_CONTROLS": C.PRIMARY_SECONDARY})))
