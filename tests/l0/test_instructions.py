"""L1's VMX instructions: results, error numbers and exceptions as the SDM's operation sections give them."""

from __future__ import annotations

import pytest

from tests.l0.helpers import RAM, Rig, minimal_vmcs12
from turtles.l0.nested.errors import VmError
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs import bits as X
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F
from turtles.silicon import slots as S

REGION = 0x10_0000
OTHER = 0x11_0000
INSTRUCTIONS = [
    "VMCLEAR",
    "VMLAUNCH",
    "VMPTRLD",
    "VMPTRST",
    "VMREAD",
    "VMRESUME",
    "VMWRITE",
    "VMXOFF",
    "INVEPT",
    "INVVPID",
]


@pytest.fixture
def rig() -> Rig:
    return Rig(tactics=Tactics(shadow_vmcs=False))


@pytest.fixture
def root() -> Rig:
    rig = Rig(tactics=Tactics(shadow_vmcs=False))
    rig.enter_vmx()
    assert rig.vmx_result() == "success"
    return rig


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_undefined_outside_vmx_operation(rig: Rig, name: str) -> None:
    rig.call(name)
    assert rig.injected() == X.VECTOR_UD


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_general_protection_above_cpl_0(root: Rig, name: str) -> None:
    root.v[F.GUEST_SS_ACCESS] |= 3 << 5
    rip = root.v[F.GUEST_RIP]
    root.call(name)
    assert root.injected() == X.VECTOR_GP
    assert root.v[F.GUEST_RIP] == rip


def test_success_moves_on_and_clears_the_status_flags(root: Rig) -> None:
    rip = root.v[F.GUEST_RIP]
    root.v[F.GUEST_RFLAGS] |= X.RFLAGS_STATUS
    root.put64(0x800, REGION)
    root.memory_operand(0x800)
    root.call("VMCLEAR")
    assert root.v[F.GUEST_RFLAGS] & X.RFLAGS_STATUS == 0
    assert root.v[F.GUEST_RIP] == rip + 4


# --- VMXON, VMXOFF ---


def test_vmxon_needs_cr4_vmxe(rig: Rig) -> None:
    rig.call("VMXON")
    assert rig.injected() == X.VECTOR_UD


@pytest.mark.parametrize("missing", ["paging", "lock"])
def test_vmxon_needs_fixed_bits_and_feature_control(rig: Rig, missing: str) -> None:
    rig.enter_vmx()
    assert rig.vcpu.in_vmx
    rig.call("VMXOFF")
    if missing == "paging":
        rig.v[F.GUEST_CR0] &= ~X.CR0_PG
    else:
        rig.regs[S.FEATURE_CONTROL] = 0
    rig.memory_operand(0x800)
    rig.call("VMXON")
    assert rig.injected() == X.VECTOR_GP
    assert not rig.vcpu.in_vmx


@pytest.mark.parametrize("pointer", [0x1008, 1 << 40, 0x5000, 3 << 30])
def test_vmxon_with_a_bad_region(rig: Rig, pointer: int) -> None:
    """Not aligned, out of range, wrong revision, not RAM."""
    rig.enter_vmx()
    rig.call("VMXOFF")
    rig.put64(0x800, pointer)
    rig.memory_operand(0x800)
    rig.call("VMXON")
    assert rig.vmx_result() == "invalid"
    assert not rig.vcpu.in_vmx


def test_vmxon_in_root_operation(root: Rig) -> None:
    root.vmptrld(REGION)
    root.memory_operand(0x800)
    root.call("VMXON")
    assert root.vmx_result() == VmError.VMXON_IN_ROOT


def test_cr0_bits_are_fixed_between_vmxon_and_vmxoff(root: Rig) -> None:
    assert root.v[F.CR0_MASK] & X.CR0_PG
    root.call("VMXOFF")
    assert not root.v[F.CR0_MASK] & X.CR0_PG
    assert not root.vcpu.in_vmx


# --- VMCLEAR, VMPTRLD, VMPTRST ---


@pytest.mark.parametrize(
    ("name", "pointer", "error"),
    [
        ("VMCLEAR", REGION + 8, VmError.VMCLEAR_ADDRESS),
        ("VMCLEAR", 1 << 40, VmError.VMCLEAR_ADDRESS),
        ("VMCLEAR", 0x1000, VmError.VMCLEAR_VMXON_POINTER),
        ("VMPTRLD", REGION + 8, VmError.VMPTRLD_ADDRESS),
        ("VMPTRLD", 1 << 40, VmError.VMPTRLD_ADDRESS),
        ("VMPTRLD", 0x1000, VmError.VMPTRLD_VMXON_POINTER),
        ("VMPTRLD", 0x5000, VmError.VMPTRLD_REVISION),
        ("VMPTRLD", 3 << 30, VmError.VMPTRLD_REVISION),
    ],
)
def test_pointer_errors(root: Rig, name: str, pointer: int, error: VmError) -> None:
    root.put64(0x800, pointer)
    root.memory_operand(0x800)
    root.call(name)
    assert root.vmx_result() == "invalid", "without a current VMCS there is no place for the number"
    root.vmptrld(REGION)
    root.put64(0x800, pointer)
    root.memory_operand(0x800)
    root.call(name)
    assert root.vmx_result() == error


def test_a_shadow_vmcs_cannot_be_loaded_without_the_feature() -> None:
    root = Rig(tactics=Tactics(shadow_vmcs=False, offer_shadow_vmcs=False))
    root.enter_vmx()
    assert not root.machine.l1_model.has("vmcs_shadowing")
    load_shadow(root)
    assert root.vmx_result() == "invalid"


def load_shadow(root: Rig) -> None:
    root.put64(REGION, root.machine.revision | X.SHADOW_VMCS)
    root.put64(0x800, REGION)
    root.memory_operand(0x800)
    root.call("VMPTRLD")


def test_a_shadow_vmcs_can_be_loaded_and_written_but_not_entered(root: Rig) -> None:
    """SDM 25.10, 27.1: its contents are L1's page, VMLAUNCH of it is VMfailInvalid."""
    load_shadow(root)
    assert root.vmx_result() == "success"
    vmwrite(root, E.GUEST_RIP, 0x1234)
    assert root.machine.l1.load64(REGION + 8 * F.GUEST_RIP) == 0x1234
    root.call("VMLAUNCH")
    assert root.vmx_result() == "invalid"
    root.memory_operand(0x900)
    root.call("VMPTRST")
    assert root.machine.l1.load64(0x900) == REGION
    root.memory_operand(0x800)
    root.call("VMCLEAR")
    assert root.vmx_result() == "success"
    root.memory_operand(0x900)
    root.call("VMPTRST")
    assert root.machine.l1.load64(0x900) == X.NO_ADDRESS


def test_vmptrst_stores_the_pointer(root: Rig) -> None:
    root.memory_operand(0x900)
    root.call("VMPTRST")
    assert root.machine.l1.load64(0x900) == X.NO_ADDRESS
    root.vmptrld(REGION)
    root.memory_operand(0x900)
    root.call("VMPTRST")
    assert root.machine.l1.load64(0x900) == REGION


def test_an_operand_in_a_page_that_is_not_mapped(root: Rig) -> None:
    root.machine.l1.write(0x2000 + 4 * 5, bytes(4))
    root.memory_operand(5 << 22)
    root.call("VMPTRLD")
    assert root.injected() == X.VECTOR_PF
    assert root.regs[S.CR2] == 5 << 22


def test_an_operand_beyond_a_segment_limit(root: Rig) -> None:
    root.v[F.GUEST_DS_LIMIT] = 0x803
    root.memory_operand(0x800)
    root.call("VMPTRLD")
    assert root.injected() == X.VECTOR_GP


def test_contents_and_launch_state_survive_a_vmclear(root: Rig) -> None:
    root.vmptrld(REGION)
    c = root.vcpu.current12
    assert c is not None
    c.v[F.GUEST_RIP] = 0x1234_5678_9ABC
    c.v[F.LAUNCH_STATE] = 1
    root.vmptrld(OTHER)
    root.put64(0x800, REGION)
    root.memory_operand(0x800)
    root.call("VMPTRLD")
    again = root.vcpu.current12
    assert again is c, "cached"
    root.call("VMCLEAR")
    assert root.vcpu.current12 is None
    root.memory_operand(0x800)
    root.call("VMPTRLD")
    fresh = root.vcpu.current12
    assert fresh is not None and fresh is not c
    assert (fresh.v[F.GUEST_RIP], fresh.v[F.LAUNCH_STATE]) == (0x1234_5678_9ABC, 0)


def test_nonsense_in_a_region_is_cut_to_the_width_of_its_fields(root: Rig) -> None:
    root.machine.l1.write(REGION, b"\xff" * 4096)
    root.put64(REGION, root.machine.revision)
    root.put64(0x800, REGION)
    root.memory_operand(0x800)
    root.call("VMPTRLD")
    c = root.vcpu.current12
    assert c is not None
    assert c.v[F.PIN_CONTROLS] == 0xFFFF_FFFF
    assert c.v[F.VPID] == 0xFFFF
    assert c.v[F.LAUNCH_STATE] == 0


def test_the_cache_is_bounded_and_loses_nothing(root: Rig) -> None:
    left = root.machine.pool.left()
    for n in range(200):
        root.vmptrld(0x20_0000 + 4096 * n)
        c = root.vcpu.current12
        assert c is not None
        c.v[F.GUEST_RIP] = n
    assert left - root.machine.pool.left() <= 64 * 3
    for n in range(200):
        root.put64(0x800, 0x20_0000 + 4096 * n)
        root.memory_operand(0x800)
        root.call("VMPTRLD")
        c = root.vcpu.current12
        assert c is not None and c.v[F.GUEST_RIP] == n


# --- VMREAD, VMWRITE ---


def vmwrite(rig: Rig, encoding: int, value: int) -> None:
    rig.v[F.EXIT_INSTRUCTION_INFO] = 1 << 10 | S.RCX << 3 | S.RDX << 28
    rig.v[F.EXIT_INSTRUCTION_LENGTH] = 3
    rig.regs[S.RCX], rig.regs[S.RDX] = value, encoding
    rig.call("VMWRITE")


def vmread(rig: Rig, encoding: int) -> int:
    rig.v[F.EXIT_INSTRUCTION_INFO] = 1 << 10 | S.RCX << 3 | S.RDX << 28
    rig.regs[S.RDX] = encoding
    rig.call("VMREAD")
    return rig.regs[S.RCX]


def test_without_a_current_vmcs(root: Rig) -> None:
    vmwrite(root, E.GUEST_RIP, 1)
    assert root.vmx_result() == "invalid"
    vmread(root, E.GUEST_RIP)
    assert root.vmx_result() == "invalid"


@pytest.mark.parametrize("encoding", [0x7FFF, 0x6C01, 0x4401 | 1, 0xFFFF_FFFF, 0x1_6820])
def test_unsupported_fields(root: Rig, encoding: int) -> None:
    root.vmptrld(REGION)
    vmread(root, encoding)
    assert root.vmx_result() == VmError.UNSUPPORTED_FIELD
    vmwrite(root, encoding, 0)
    assert root.vmx_result() == VmError.UNSUPPORTED_FIELD


def test_read_only_fields_where_the_processor_says_so(root: Rig) -> None:
    root.vmptrld(REGION)
    root.machine.l1_misc &= ~(1 << 29)
    vmwrite(root, E.EXIT_REASON, 1)
    assert root.vmx_result() == VmError.READ_ONLY_FIELD


def test_widths_and_high_halves(root: Rig) -> None:
    root.vmptrld(REGION)
    root.v[F.GUEST_CS_ACCESS] |= X.ACCESS_LONG
    root.regs[S.EFER] |= X.EFER_LMA
    vmwrite(root, E.GUEST_ES_SELECTOR, 0x12_3456)
    assert vmread(root, E.GUEST_ES_SELECTOR) == 0x3456
    vmwrite(root, E.EXCEPTION_BITMAP, 0x1_2345_6789)
    assert vmread(root, E.EXCEPTION_BITMAP) == 0x2345_6789
    vmwrite(root, E.TSC_OFFSET, 0x1111_2222_3333_4444)
    assert vmread(root, E.TSC_OFFSET | 1) == 0x1111_2222
    vmwrite(root, E.TSC_OFFSET | 1, 0x9999_AAAA_BBBB)
    assert vmread(root, E.TSC_OFFSET) == 0xAAAA_BBBB_3333_4444


def test_a_write_is_seen_at_the_next_entry(root: Rig) -> None:
    root.vmptrld(REGION)
    c = root.vcpu.current12
    assert c is not None
    c.v[F.WRITTEN] = 0
    vmwrite(root, E.HOST_RIP, 0x1000)
    assert c.v[F.WRITTEN] == F.WRITTEN_HOST_STATE
    vmwrite(root, E.TSC_OFFSET, 1)
    assert c.v[F.WRITTEN] == F.WRITTEN_HOST_STATE | F.WRITTEN_CONTROL_TIME


# --- VMLAUNCH, VMRESUME ---


def test_entry_without_a_vmcs(root: Rig) -> None:
    root.call("VMLAUNCH")
    assert root.vmx_result() == "invalid"


def test_entry_under_mov_ss_blocking(root: Rig) -> None:
    root.vmptrld(REGION)
    root.v[F.GUEST_INTERRUPTIBILITY] = C.BLOCKING_MOV_SS
    root.call("VMLAUNCH")
    assert root.vmx_result() == VmError.ENTRY_BLOCKED_BY_MOV_SS


def test_launch_states(root: Rig) -> None:
    root.vmptrld(REGION)
    root.call("VMRESUME")
    assert root.vmx_result() == VmError.VMRESUME_NOT_LAUNCHED
    c = root.vcpu.current12
    assert c is not None
    c.v[F.LAUNCH_STATE] = 1
    root.call("VMLAUNCH")
    assert root.vmx_result() == VmError.VMLAUNCH_NOT_CLEAR


def test_bad_controls_and_bad_host_state(root: Rig) -> None:
    root.vmptrld(REGION)
    c = root.vcpu.current12
    assert c is not None
    root.call("VMLAUNCH")
    assert root.vmx_result() == VmError.ENTRY_CONTROLS
    assert root.vcpu.level == 1
    minimal_vmcs12(c.v, root.v)
    c.v[F.HOST_CR4] = 0
    c.v[F.WRITTEN] = 0x3FF
    root.call("VMLAUNCH")
    assert root.vmx_result() in (VmError.ENTRY_HOST, VmError.ENTRY_CONTROLS)
    assert root.vcpu.broken_rule


# --- INVEPT, INVVPID ---


def descriptor(rig: Rig, kind: int, low: int, high: int = 0) -> None:
    rig.put64(0x900, low)
    rig.put64(0x908, high)
    rig.regs[S.RDX] = kind
    rig.memory_operand(0x900, register2=S.RDX)


@pytest.mark.parametrize(
    ("kind", "eptp"), [(0, 0x1E), (3, 0x1E), (1, 0x1F), (1, 1 << 40 | 0x1E), (1 << 31, 0)]
)
def test_invept_with_bad_operands(root: Rig, kind: int, eptp: int) -> None:
    root.vmptrld(REGION)
    descriptor(root, kind, eptp)
    root.call("INVEPT")
    assert root.vmx_result() == VmError.INVALID_OPERAND


@pytest.mark.parametrize(("kind", "eptp"), [(1, 0x10_001E), (2, 0)])
def test_invept(root: Rig, kind: int, eptp: int) -> None:
    root.vmptrld(REGION)
    descriptor(root, kind, eptp)
    root.call("INVEPT")
    assert root.vmx_result() == "success"


@pytest.mark.parametrize(
    ("kind", "vpid", "linear"),
    [(4, 1, 0), (1, 0, 0), (0, 0, 0), (3, 0, 0), (1, 0x1_0001, 0), (0, 1, 1 << 47)],
)
def test_invvpid_with_bad_operands(root: Rig, kind: int, vpid: int, linear: int) -> None:
    root.vmptrld(REGION)
    descriptor(root, kind, vpid, linear)
    root.call("INVVPID")
    assert root.vmx_result() == VmError.INVALID_OPERAND


@pytest.mark.parametrize(("kind", "vpid"), [(0, 1), (1, 1), (2, 0), (3, 1)])
def test_invvpid(root: Rig, kind: int, vpid: int) -> None:
    root.vmptrld(REGION)
    descriptor(root, kind, vpid)
    root.call("INVVPID")
    assert root.vmx_result() == "success"


# --- VMCALL ---


def test_vmcall_in_root_operation(root: Rig) -> None:
    root.vmptrld(REGION)
    root.call("VMCALL")
    assert root.vmx_result() == VmError.VMCALL_IN_ROOT


def test_vmcall_outside_vmx_operation_is_an_unknown_hypercall(rig: Rig) -> None:
    rig.call("VMCALL")
    assert rig.regs[S.RAX] == (1 << 64) - 1000


def test_hostile_operands_never_fail_inside_l0(root: Rig) -> None:
    """Any instruction information and qualification: an answer of the SDM's, no traceback."""
    import random

    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(3000):
        root.v[F.EXIT_INSTRUCTION_INFO] = rng.getrandbits(32)
        root.v[F.EXIT_QUALIFICATION] = rng.choice([rng.getrandbits(64), rng.randrange(RAM)])
        root.v[F.ENTRY_INTERRUPTION_INFO] = 0
        for register in range(16):
            root.regs[S.GPR + register] = rng.choice(
                [rng.getrandbits(64), rng.randrange(RAM), rng.randrange(8)]
            )
        root.call(rng.choice(["VMCLEAR", "VMPTRLD", "VMREAD", "VMWRITE", "INVEPT", "INVVPID", "VMXON"]))
        assert root.vcpu.level == 1
