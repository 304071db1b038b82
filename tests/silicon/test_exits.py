"""VM exits: one tiny guest per behaviour, with the exit information of SDM volume 3, chapter 28."""

import pytest

from tests.silicon.machine import CODE, DATA, GDT, STACK, Machine
from turtles.silicon import ExitReason, Model, controls, encodings, slots
from turtles.silicon import fields as f

HW, SW, NMI, EXTERNAL, SOFTWARE_EXCEPTION, PRIVILEGED, OTHER = 3, 4, 2, 0, 6, 5, 7


def hexa(text: str) -> bytes:
    return bytes.fromhex(text)


UNCONDITIONAL = [
    ("0f a2", ExitReason.CPUID),
    ("0f 08", ExitReason.INVD),
    ("0f 01 d1", ExitReason.XSETBV),
    ("0f 01 c1", ExitReason.VMCALL),
    ("0f 01 c2", ExitReason.VMLAUNCH),
    ("0f 01 c3", ExitReason.VMRESUME),
    ("0f 01 c4", ExitReason.VMXOFF),
    ("f4", ExitReason.HLT),
]


@pytest.mark.parametrize(("code", "reason"), UNCONDITIONAL, ids=lambda v: getattr(v, "name", None))
def test_instructions_that_always_exit(code: str, reason: ExitReason) -> None:
    """SDM 26.1.2; instruction length in 28.2.5, no qualification."""
    machine = Machine(hexa("90") + hexa(code))
    machine.slots[f.GUEST_CR4] |= 1 << 18
    assert machine.run() == reason
    assert machine.rip == CODE + 1
    assert machine.slots[f.EXIT_INSTRUCTION_LENGTH] == len(hexa(code))
    assert machine.slots[f.EXIT_QUALIFICATION] == 0
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 0
    assert machine.slots[f.IDT_VECTORING_INFO] == 0


PRIMARY = [
    (controls.PRIMARY_INVLPG, "0f 01 3f", ExitReason.INVLPG),
    (controls.PRIMARY_RDPMC, "0f 33", ExitReason.RDPMC),
    (controls.PRIMARY_RDTSC, "0f 31", ExitReason.RDTSC),
    (controls.PRIMARY_MOV_DR, "0f 21 f8", ExitReason.MOV_DR),
    (controls.PRIMARY_MONITOR, "0f 01 c8", ExitReason.MONITOR),
    (controls.PRIMARY_MWAIT, "0f 01 c9", ExitReason.MWAIT),
    (controls.PRIMARY_PAUSE, "f3 90", ExitReason.PAUSE),
    (controls.PRIMARY_CR3_LOAD, "0f 22 d8", ExitReason.CR_ACCESS),
    (controls.PRIMARY_CR3_STORE, "0f 20 d9", ExitReason.CR_ACCESS),
    (controls.PRIMARY_CR8_LOAD, "44 0f 22 c1", ExitReason.CR_ACCESS),
    (controls.PRIMARY_CR8_STORE, "44 0f 20 c1", ExitReason.CR_ACCESS),
]


@pytest.mark.parametrize(("bit", "code", "reason"), PRIMARY, ids=lambda v: v if isinstance(v, str) else None)
def test_primary_controls(bit: int, code: str, reason: ExitReason) -> None:
    """SDM 26.1.3: the instruction exits with the control, and does not without it."""
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.state[slots.RAX] = machine.slots[f.GUEST_CR3]
    machine.primary(bit)
    assert machine.run() == reason
    assert machine.rip == CODE
    assert machine.slots[f.EXIT_INSTRUCTION_LENGTH] == len(hexa(code))
    machine.slots[f.PRIMARY_CONTROLS] &= ~bit
    if reason is ExitReason.RDPMC:
        machine.handler(13, b"\x0f\xa2")  # no counters: #GP
    assert machine.run() == ExitReason.CPUID


SECONDARY = [
    (controls.SECONDARY_DESCRIPTOR_TABLE, "0f 01 17", ExitReason.GDTR_IDTR),
    (controls.SECONDARY_DESCRIPTOR_TABLE, "0f 01 07", ExitReason.GDTR_IDTR),
    (controls.SECONDARY_DESCRIPTOR_TABLE, "0f 00 07", ExitReason.LDTR_TR),
    (controls.SECONDARY_DESCRIPTOR_TABLE, "0f 00 d0", ExitReason.LDTR_TR),
    (controls.SECONDARY_WBINVD, "0f 09", ExitReason.WBINVD),
    (controls.SECONDARY_RDRAND, "0f c7 f1", ExitReason.RDRAND),
    (controls.SECONDARY_RDSEED, "0f c7 f9", ExitReason.RDSEED),
]


@pytest.mark.parametrize(("bit", "code", "reason"), SECONDARY)
def test_secondary_controls(bit: int, code: str, reason: ExitReason) -> None:
    """SDM 26.1.3."""
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.state[slots.RDI] = DATA
    machine.secondary(bit)
    assert machine.run() == reason
    machine.slots[f.SECONDARY_CONTROLS] &= ~bit
    machine.memory.write(DATA, (0xFFF).to_bytes(2, "little") + GDT.to_bytes(8, "little"))
    assert machine.run() == ExitReason.CPUID


ENABLING = [
    (controls.SECONDARY_RDTSCP, "0f 01 f9"),
    (controls.SECONDARY_INVPCID, "66 0f 38 82 07"),
    (controls.SECONDARY_XSAVES, "48 0f c7 2f"),
]


@pytest.mark.parametrize(("bit", "code"), ENABLING, ids=["rdtscp", "invpcid", "xsaves"])
def test_enabling_controls(bit: int, code: str) -> None:
    """SDM 26.3: without its control the instruction is #UD."""
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.handler(6, b"\x0f\x01\xc1")
    machine.slots[f.GUEST_CR4] |= 1 << 18
    machine.state[slots.RDI] = DATA
    assert machine.run() == ExitReason.VMCALL
    machine.slots[f.GUEST_RIP] = CODE
    machine.slots[f.GUEST_RFLAGS] = 2
    machine.secondary(bit)
    assert machine.run() == ExitReason.CPUID


def test_invlpg_qualification() -> None:
    """SDM 28.2.1: the linear address."""
    machine = Machine(hexa("0f 01 7f 10"))  # invlpg [rdi+16]
    machine.primary(controls.PRIMARY_INVLPG)
    machine.state[slots.RDI] = 0x123456
    assert machine.run() == ExitReason.INVLPG
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x123466


def test_cr_access_qualification() -> None:
    """SDM table 28-3: register number, access type, general register."""
    machine = Machine(hexa("41 0f 22 d9"))  # mov cr3, r9
    machine.primary(controls.PRIMARY_CR3_LOAD)
    assert machine.run() == ExitReason.CR_ACCESS
    assert machine.slots[f.EXIT_QUALIFICATION] == 3 | 0 << 4 | 9 << 8
    machine = Machine(hexa("0f 20 db"))  # mov rbx, cr3
    machine.primary(controls.PRIMARY_CR3_STORE)
    assert machine.run() == ExitReason.CR_ACCESS
    assert machine.slots[f.EXIT_QUALIFICATION] == 3 | 1 << 4 | 3 << 8


def test_cr3_targets() -> None:
    """SDM 26.1.3: a CR3-target value does not exit."""
    machine = Machine(hexa("0f 22 d8 0f a2"))
    machine.primary(controls.PRIMARY_CR3_LOAD)
    machine.state[slots.RAX] = machine.slots[f.GUEST_CR3]
    machine.slots[f.CR3_TARGET1] = machine.slots[f.GUEST_CR3]
    machine.slots[f.CR3_TARGET_COUNT] = 1
    assert machine.run() == ExitReason.CR_ACCESS
    machine.slots[f.CR3_TARGET_COUNT] = 2
    assert machine.run() == ExitReason.CPUID


def test_cr0_mask_and_shadow() -> None:
    """SDM 25.6.6: a write that differs from the shadow in a host-owned bit exits; reads see the shadow."""
    machine = Machine(hexa("0f 20 c1 0f 22 c0 0f a2"))  # mov rcx, cr0; mov cr0, rax; cpuid
    machine.slots[f.CR0_MASK] = 1 << 3  # TS
    machine.slots[f.CR0_READ_SHADOW] = 1 << 3
    machine.state[slots.RAX] = 0x80050033
    assert machine.run() == ExitReason.CR_ACCESS
    assert machine.gpr("RCX") == 0x8005003B
    assert machine.slots[f.EXIT_QUALIFICATION] == 0
    machine.state[slots.RAX] = 0x8005003B
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_CR0] == 0x80050033  # the host-owned TS stays 0


def test_clts_and_lmsw() -> None:
    """SDM 26.1.3 and 26.3: exits by mask and shadow; CLTS may do nothing."""
    machine = Machine(hexa("0f 06 0f a2"))
    machine.slots[f.CR0_MASK] = 8
    machine.slots[f.GUEST_CR0] |= 8
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_CR0] & 8
    machine.slots[f.CR0_READ_SHADOW] = 8
    machine.slots[f.GUEST_RIP] = CODE
    assert machine.run() == ExitReason.CR_ACCESS
    assert machine.slots[f.EXIT_QUALIFICATION] == 2 << 4
    machine = Machine(hexa("0f 01 f0"))  # lmsw ax
    machine.slots[f.CR0_MASK] = 8
    machine.state[slots.RAX] = 0xB
    assert machine.run() == ExitReason.CR_ACCESS
    assert machine.slots[f.EXIT_QUALIFICATION] == 3 << 4 | 0xB << 16


def test_fixed_control_register_bits() -> None:
    """SDM 24.8: the guest cannot clear CR0.NE or CR4.VMXE; unrestricted it can clear PG."""
    for code, register in (("0f 22 c0", "80050013"), ("0f 22 e0", "00000620")):
        machine = Machine(hexa(code))
        machine.handler(13, b"\x0f\xa2")
        machine.state[slots.RAX] = int(register, 16)
        assert machine.run() == ExitReason.CPUID


def test_mov_dr_qualification() -> None:
    """SDM table 28-4."""
    machine = Machine(hexa("41 0f 23 f9"))  # mov dr7, r9
    machine.primary(controls.PRIMARY_MOV_DR)
    assert machine.run() == ExitReason.MOV_DR
    assert machine.slots[f.EXIT_QUALIFICATION] == 7 | 9 << 8
    machine = Machine(hexa("0f 21 f3"))  # mov rbx, dr6
    machine.primary(controls.PRIMARY_MOV_DR)
    assert machine.run() == ExitReason.MOV_DR
    assert machine.slots[f.EXIT_QUALIFICATION] == 6 | 1 << 4 | 3 << 8


IO = [
    ("e4 71", 0x71, 1, "in", 1 << 3 | 1 << 6, 1, 0),
    ("ec", 0x3F8, 1, "in", 1 << 3, 1, 0),
    ("ef", 0x3F8, 4, "out", 0, 2, 0x11223344),
    ("66 ef", 0x3F8, 2, "out", 0, 2, 0x3344),
]


@pytest.mark.parametrize(("code", "port", "width", "name", "bits", "kind", "data"), IO)
def test_port_exits(code: str, port: int, width: int, name: str, bits: int, kind: int, data: int) -> None:
    """SDM table 28-5, and the decode assist."""
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.state[slots.RAX] = 0x11223344
    machine.state[slots.RDX] = 0x3F8
    assert machine.run() == ExitReason.IO, name
    assert machine.slots[f.EXIT_QUALIFICATION] == (width - 1) | bits | port << 16
    state = machine.state
    assert state[slots.ASSIST_KIND] == kind
    assert state[slots.ASSIST_ADDRESS] == port
    assert state[slots.ASSIST_WIDTH] == width
    assert state[slots.ASSIST_DATA] == data
    state[slots.ASSIST_DONE] = 1
    state[slots.ASSIST_RESULT] = 0xAABBCCDD
    assert machine.run() == ExitReason.CPUID
    if kind == 1:
        assert machine.gpr("RAX") == 0x112233DD


def test_string_io() -> None:
    """SDM 28.2.1 and table 28-8: REP OUTSB one element at a time, with linear address and segment."""
    machine = Machine(hexa("f3 6e 0f a2"))
    machine.state[slots.RSI] = DATA
    machine.state[slots.RCX] = 3
    machine.state[slots.RDX] = 0xE9
    machine.memory.write(DATA, b"abc")
    out: list[int] = []
    while machine.run() == ExitReason.IO:
        assert machine.rip == CODE
        assert machine.slots[f.EXIT_QUALIFICATION] == 1 << 4 | 1 << 5 | 0xE9 << 16
        assert machine.slots[f.GUEST_LINEAR_ADDRESS] == DATA + len(out)
        assert machine.slots[f.EXIT_INSTRUCTION_INFO] == 2 << 7 | 3 << 15
        out.append(machine.state[slots.ASSIST_DATA])
        machine.state[slots.ASSIST_DONE] = 1
    assert bytes(out) == b"abc"
    assert machine.gpr("RCX") == 0


def test_io_bitmaps() -> None:
    """SDM 25.6.4, 26.1.3: bitmaps replace unconditional exiting; any touched port counts; wrapping exits."""
    machine = Machine(hexa("ed 0f a2"))  # in eax, dx
    a, b = machine.page(), machine.page()
    machine.primary(controls.PRIMARY_IO_BITMAPS)
    machine.slots[f.IO_BITMAP_A], machine.slots[f.IO_BITMAP_B] = a, b
    machine.memory.store(a + 0x3F8 // 8, 1, 1)
    machine.memory.store(b + (0x9000 - 0x8000) // 8, 1, 1)
    expected = {
        0x3F8: True,
        0x3F5: True,
        0x3F4: False,
        0x3F9: False,
        0x9000: True,
        0x8FFC: False,
        0xFFFD: True,
    }
    for port, exits in expected.items():
        machine.slots[f.GUEST_RIP] = CODE
        machine.state[slots.RDX] = port
        assert (machine.run() == ExitReason.IO) is exits, hex(port)


def test_msr_bitmaps() -> None:
    """SDM 25.6.9: quarters for reads and writes of low and high MSRs; others always exit."""
    machine = Machine(hexa("0f 32 0f a2"))
    machine.state[slots.RCX] = 0xC0000082
    assert machine.run() == ExitReason.RDMSR  # no bitmaps
    bitmap = machine.page()
    machine.primary(controls.PRIMARY_MSR_BITMAPS)
    machine.slots[f.MSR_BITMAP] = bitmap
    for msr, offset in ((0x174, 0x174 // 8), (0xC0000082, 1024 + 0x82 // 8)):
        machine.slots[f.GUEST_RIP] = CODE
        machine.state[slots.RCX] = msr
        assert machine.run() == ExitReason.CPUID
        machine.memory.store(bitmap + offset, 1, 1 << (msr & 7))
        machine.slots[f.GUEST_RIP] = CODE
        machine.state[slots.RCX] = msr
        assert machine.run() == ExitReason.RDMSR
    machine.slots[f.GUEST_RIP] = CODE
    machine.state[slots.RCX] = 0x4000_0000
    assert machine.run() == ExitReason.RDMSR
    machine.memory.write(CODE, hexa("0f 30 0f a2"))
    machine.state[slots.RCX], machine.state[slots.RAX], machine.state[slots.RDX] = 0xC0000082, 5, 0
    machine.slots[f.GUEST_RIP] = CODE
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slots.LSTAR] == 5
    machine.memory.store(bitmap + 3072 + 0x82 // 8, 1, 4)
    machine.slots[f.GUEST_RIP] = CODE
    machine.state[slots.RCX] = 0xC0000082
    assert machine.run() == ExitReason.WRMSR


# --- exceptions ---


def test_exception_bitmap() -> None:
    """SDM 26.2, table 28-17: #UD with and without its bit; nothing is delivered when it exits."""
    machine = Machine(hexa("90 0f 0b"))
    machine.handler(6, b"\xf4")
    machine.slots[f.EXCEPTION_BITMAP] = 1 << 6
    assert machine.run() == ExitReason.EXCEPTION_OR_NMI
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 6 | HW << 8 | 1 << 31
    assert machine.rip == CODE + 1
    assert machine.slots[f.GUEST_RSP] == STACK
    assert machine.slots[f.GUEST_RFLAGS] & 1 << 16, "RF as its delivery would push it"
    machine.slots[f.EXCEPTION_BITMAP] = 0
    assert machine.run() == ExitReason.HLT


def test_software_exceptions() -> None:
    """SDM 28.2.2: INT3 and INT1 report type and instruction length; INT n never exits by the bitmap."""
    for code, vector, kind, length in (("cc", 3, SOFTWARE_EXCEPTION, 1), ("f1", 1, PRIVILEGED, 1)):
        machine = Machine(hexa(code))
        machine.slots[f.EXCEPTION_BITMAP] = 0xFFFFFFFF
        assert machine.run() == ExitReason.EXCEPTION_OR_NMI
        assert machine.slots[f.EXIT_INTERRUPTION_INFO] == vector | kind << 8 | 1 << 31
        assert machine.slots[f.EXIT_INSTRUCTION_LENGTH] == length
        assert machine.rip == CODE
    machine = Machine(hexa("cd 03"))
    machine.handler(3, b"\x0f\xa2")
    machine.slots[f.EXCEPTION_BITMAP] = 0xFFFFFFFF
    assert machine.run() == ExitReason.CPUID


def test_page_fault_exit() -> None:
    """SDM 26.2, 28.2.1: error code against mask and match; the address is the qualification."""
    machine = Machine(hexa("48 a3 00 00 00 00 00 40 00 00"), ept=False)  # mov [0x4000_00000000], rax
    machine.handler(14, b"\x0f\xa2")
    machine.slots[f.EXCEPTION_BITMAP] = 1 << 14
    assert machine.run() == ExitReason.EXCEPTION_OR_NMI
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 14 | HW << 8 | 1 << 11 | 1 << 31
    assert machine.slots[f.EXIT_INTERRUPTION_ERROR] == 2
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x4000_0000_0000
    assert machine.state[slots.CR2] == 0
    machine.slots[f.PF_ERROR_MASK], machine.slots[f.PF_ERROR_MATCH] = 2, 0
    assert machine.run() == ExitReason.CPUID
    assert machine.state[slots.CR2] == 0x4000_0000_0000
    machine.slots[f.EXCEPTION_BITMAP] = 0  # the bit at 0 turns the match round
    machine.slots[f.GUEST_RIP], machine.slots[f.GUEST_RFLAGS] = CODE, 2
    assert machine.run() == ExitReason.EXCEPTION_OR_NMI


def test_triple_fault() -> None:
    """SDM 26.2: an exception while #DF is delivered."""
    machine = Machine(hexa("0f 0b"))
    machine.slots[f.GUEST_IDTR_LIMIT] = 0
    assert machine.run() == ExitReason.TRIPLE_FAULT
    assert machine.slots[f.IDT_VECTORING_INFO] & 1 << 31 == 0
    assert machine.rip == CODE


def test_idt_vectoring_information() -> None:
    """SDM 28.2.4: an EPT violation while INT 80H pushes its frame reports the event and the length."""
    machine = Machine(hexa("cd 80"))
    machine.handler(0x80, b"\xf4")
    machine.memory.store(machine.ept_4k + 8 * ((STACK - 8) >> 12), 8, 0)
    assert machine.run() == ExitReason.EPT_VIOLATION
    assert machine.slots[f.IDT_VECTORING_INFO] == 0x80 | SW << 8 | 1 << 31
    assert machine.slots[f.EXIT_INSTRUCTION_LENGTH] == 2
    assert machine.rip == CODE


def test_nested_exception_exit() -> None:
    """SDM 28.2.4: #GP during delivery of #UD exits with #UD as the vectored event."""
    machine = Machine(hexa("0f 0b"))
    machine.slots[f.GUEST_IDTR_LIMIT] = 0x20
    machine.slots[f.EXCEPTION_BITMAP] = 1 << 13
    assert machine.run() == ExitReason.EXCEPTION_OR_NMI
    assert machine.slots[f.EXIT_INTERRUPTION_INFO] == 13 | HW << 8 | 1 << 11 | 1 << 31
    assert machine.slots[f.EXIT_INTERRUPTION_ERROR] == 6 * 8 + 2 + 1
    assert machine.slots[f.IDT_VECTORING_INFO] == 6 | HW << 8 | 1 << 31


def test_task_switch() -> None:
    """SDM 26.2, table 28-2: CALL to a TSS always exits."""
    machine = Machine(hexa("ff 1d 00 00 03 00"))  # call far [0x30000]
    machine.slots[f.ENTRY_CONTROLS] &= ~controls.ENTRY_IA32E
    machine.slots[f.GUEST_EFER] = 0
    machine.slots[f.GUEST_CR4] = 0x2610
    machine.slots[f.GUEST_CS_ACCESS] = 0xC09B
    machine.slots[f.GUEST_CR0] = 1 << 31 | 0x33
    # 32-bit paging, one 4-MiB page.
    machine.memory.store(0x1000, 8, 0x87)
    machine.memory.write(DATA, hexa("00 00 00 00 20 00"))
    machine.memory.store(GDT + 0x20, 8, 0x0000890000000067)
    assert machine.run() == ExitReason.TASK_SWITCH
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x20
    assert machine.slots[f.EXIT_INSTRUCTION_LENGTH] == 6


# --- EPT ---


def test_ept_violation() -> None:
    """SDM table 28-7: access, permissions, linear address valid, translation; both addresses."""
    machine = Machine(hexa("88 07"))  # mov [rdi], al
    machine.state[slots.RDI] = DATA + 5
    machine.memory.store(machine.ept_4k + 8 * (DATA >> 12), 8, DATA | 0x31)
    assert machine.run() == ExitReason.EPT_VIOLATION
    assert machine.slots[f.EXIT_QUALIFICATION] & 0x1BF == 1 << 1 | 1 << 3 | 1 << 7 | 1 << 8
    assert machine.slots[f.GUEST_PHYSICAL_ADDRESS] == DATA + 5
    assert machine.slots[f.GUEST_LINEAR_ADDRESS] == DATA + 5
    assert machine.state[slots.ASSIST_KIND] == 5
    machine.state[slots.ASSIST_DONE] = 2  # the one-shot permit
    machine.memory.write(CODE + 2, b"\x0f\xa2")
    machine.state[slots.RAX] = 0x77
    assert machine.run() == ExitReason.CPUID
    assert machine.memory.load(DATA + 5, 1) == 0x77


def test_mmio_assist() -> None:
    """A read and a write of nothing: the assist says what, L0 answers, the instruction completes."""
    machine = Machine(hexa("8b 07 89 47 04 0f a2"))  # mov eax, [rdi]; mov [rdi+4], eax; cpuid
    machine.state[slots.RDI] = DATA
    machine.memory.store(machine.ept_4k + 8 * (DATA >> 12), 8, 0)
    assert machine.run() == ExitReason.EPT_VIOLATION
    assert [machine.state[slots.ASSIST_KIND], machine.state[slots.ASSIST_WIDTH]] == [3, 4]
    machine.state[slots.ASSIST_DONE], machine.state[slots.ASSIST_RESULT] = 1, 0xCAFEBABE
    assert machine.run() == ExitReason.EPT_VIOLATION
    assert [machine.state[slots.ASSIST_KIND], machine.state[slots.ASSIST_DATA]] == [4, 0xCAFEBABE]
    assert machine.state[slots.ASSIST_ADDRESS] == DATA + 4
    machine.state[slots.ASSIST_DONE] = 1
    assert machine.run() == ExitReason.CPUID


def test_ept_misconfiguration() -> None:
    """SDM 29.3.3.1: writable but not readable."""
    machine = Machine(hexa("8a 07"))
    machine.state[slots.RDI] = DATA
    machine.memory.store(machine.ept_4k + 8 * (DATA >> 12), 8, DATA | 0x32)
    assert machine.run() == ExitReason.EPT_MISCONFIGURATION
    assert machine.slots[f.GUEST_PHYSICAL_ADDRESS] == DATA


# --- instruction information ---


def test_vmread_instruction_information() -> None:
    """SDM table 28-14: memory operand with base, index, scale, segment; register operand."""
    machine = Machine(hexa("65 42 0f 78 54 88 20"))  # vmread gs:[rax+r9*4+0x20], rdx
    assert machine.run() == ExitReason.VMREAD
    info = machine.slots[f.EXIT_INSTRUCTION_INFO]
    assert info == 2 | 2 << 7 | 5 << 15 | 9 << 18 | 0 << 23 | 2 << 28
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x20
    machine = Machine(hexa("44 0f 79 c9"))  # vmwrite r9, rcx
    assert machine.run() == ExitReason.VMWRITE
    info = machine.slots[f.EXIT_INSTRUCTION_INFO]
    assert info & 0xF0000478 == 1 << 10 | 1 << 3 | 9 << 28


def test_vmptrld_instruction_information() -> None:
    """SDM table 28-13; a RIP-relative operand's qualification is the address (28.2.1)."""
    machine = Machine(hexa("0f c7 35 00 01 00 00"))  # vmptrld [rip+0x100]
    assert machine.run() == ExitReason.VMPTRLD
    assert machine.slots[f.EXIT_QUALIFICATION] == CODE + 7 + 0x100
    info = machine.slots[f.EXIT_INSTRUCTION_INFO]
    assert info & 1 << 22
    assert info & 1 << 27
    machine = Machine(hexa("0f c7 77 f8"))  # vmptrld [rdi-8]
    assert machine.run() == ExitReason.VMPTRLD
    assert machine.slots[f.EXIT_QUALIFICATION] == 2**64 - 8
    assert machine.slots[f.EXIT_INSTRUCTION_INFO] == 2 << 7 | 3 << 15 | 1 << 22 | 7 << 23


def test_invept_instruction_information() -> None:
    """SDM table 28-9."""
    machine = Machine(hexa("66 0f 38 80 1f"))  # invept rbx, [rdi]
    assert machine.run() == ExitReason.INVEPT
    assert machine.slots[f.EXIT_INSTRUCTION_INFO] == 2 << 7 | 3 << 15 | 1 << 22 | 7 << 23 | 3 << 28


def test_rdrand_instruction_information() -> None:
    """SDM table 28-12: destination and operand size."""
    for code, expected in (
        ("66 0f c7 f1", 1 << 3),
        ("0f c7 f1", 1 << 3 | 1 << 11),
        ("49 0f c7 f1", 9 << 3 | 2 << 11),
    ):
        machine = Machine(hexa(code))
        machine.secondary(controls.SECONDARY_RDRAND)
        assert machine.run() == ExitReason.RDRAND
        assert machine.slots[f.EXIT_INSTRUCTION_INFO] == expected


def test_lgdt_instruction_information() -> None:
    """SDM tables 28-10 and 28-11: which instruction it was."""
    for code, identity in (("0f 01 07", 0), ("0f 01 0f", 1), ("0f 01 17", 2), ("0f 01 1f", 3)):
        machine = Machine(hexa(code))
        machine.secondary(controls.SECONDARY_DESCRIPTOR_TABLE)
        assert machine.run() == ExitReason.GDTR_IDTR
        assert machine.slots[f.EXIT_INSTRUCTION_INFO] >> 28 & 3 == identity
    for code, identity in (("0f 00 c1", 0), ("0f 00 c9", 1), ("0f 00 d1", 2), ("0f 00 d9", 3)):
        machine = Machine(hexa(code))
        machine.secondary(controls.SECONDARY_DESCRIPTOR_TABLE)
        assert machine.run() == ExitReason.LDTR_TR
        info = machine.slots[f.EXIT_INSTRUCTION_INFO]
        assert info >> 28 & 3 == identity
        assert info & 0x478 == 1 << 10 | 1 << 3


# --- VMCS shadowing ---


def shadowed(code: str) -> tuple[Machine, memoryview]:
    """A machine with a shadow VMCS and bitmaps that let everything pass."""
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.secondary(controls.SECONDARY_VMCS_SHADOWING)
    shadow = machine.page()
    machine.slots[f.GUEST_VMCS_LINK_POINTER] = shadow
    machine.slots[f.VMREAD_BITMAP], machine.slots[f.VMWRITE_BITMAP] = machine.page(), machine.page()
    slots_of = machine.memory.pool_view(shadow)
    slots_of[f.REVISION] = machine.slots[f.REVISION] | 1 << 31
    return machine, slots_of


def test_shadowed_vmread_and_vmwrite() -> None:
    """SDM 25.10, 26.1.3: the shadow VMCS is accessed without an exit; the written-mask says what changed."""
    machine, shadow = shadowed("0f 79 d8 0f 78 d9")  # vmwrite rbx, rax; vmread rcx, rbx
    machine.state[slots.RBX], machine.state[slots.RAX] = encodings.GUEST_RIP, 0x1234567890
    assert machine.run() == ExitReason.CPUID
    assert shadow[f.GUEST_RIP] == 0x1234567890
    assert machine.gpr("RCX") == 0x1234567890
    assert shadow[f.WRITTEN] == f.WRITTEN_GUEST_EXECUTION
    assert machine.slots[f.GUEST_RFLAGS] & 0x8D5 == 0
    bitmap = machine.slots[f.VMWRITE_BITMAP]
    machine.memory.store(bitmap + encodings.GUEST_RIP // 8, 1, 1 << (encodings.GUEST_RIP & 7))
    machine.slots[f.GUEST_RIP] = CODE
    machine.state[slots.RBX] = encodings.GUEST_RIP
    assert machine.run() == ExitReason.VMWRITE


def test_shadowed_field_widths() -> None:
    """SDM 25.11.2: a 32-bit field keeps 32 bits, the high access the upper half."""
    machine, shadow = shadowed("0f 79 d8")
    machine.state[slots.RBX], machine.state[slots.RAX] = encodings.EXCEPTION_BITMAP, 0x1_2345_6789
    assert machine.run() == ExitReason.CPUID
    assert shadow[f.EXCEPTION_BITMAP] == 0x23456789
    machine, shadow = shadowed("0f 79 d8")
    shadow[f.TSC_OFFSET] = 0x1111111122222222
    machine.state[slots.RBX], machine.state[slots.RAX] = encodings.TSC_OFFSET | 1, 0x33333333
    assert machine.run() == ExitReason.CPUID
    assert shadow[f.TSC_OFFSET] == 0x3333333322222222


def test_shadowed_failures() -> None:
    """SDM 31.2: no linked VMCS is VMfailInvalid, a field that does not exist VMfailValid with error 12."""
    machine, shadow = shadowed("0f 78 d9")
    machine.state[slots.RBX] = 0x2044
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_RFLAGS] & 0x8D5 == 1 << 6
    assert (machine.slots[f.VM_INSTRUCTION_ERROR], shadow[f.VM_INSTRUCTION_ERROR]) == (12, 0)
    machine, _ = shadowed("0f 78 d9")
    machine.slots[f.GUEST_VMCS_LINK_POINTER] = 2**64 - 1
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_RFLAGS] & 0x8D5 == 1
    machine, _ = shadowed("0f 78 d9")
    machine.state[slots.RBX] = 1 << 15
    assert machine.run() == ExitReason.VMREAD


# --- virtual APIC ---


def virtual_apic(code: str, *, accesses: bool = False, x2apic: bool = False) -> Machine:
    machine = Machine(hexa(code) + b"\x0f\xa2")
    machine.primary(controls.PRIMARY_TPR_SHADOW)
    machine.slots[f.VIRTUAL_APIC_ADDRESS] = machine.page()
    if accesses:
        machine.secondary(controls.SECONDARY_APIC_ACCESSES)
        machine.slots[f.APIC_ACCESS_ADDRESS] = DATA
    if x2apic:
        machine.secondary(controls.SECONDARY_X2APIC)
    return machine


def test_tpr_shadow() -> None:
    """SDM 30.3: MOV CR8 works on VTPR; below the threshold it exits after the instruction."""
    machine = virtual_apic("44 0f 22 c0 44 0f 20 c1")  # mov cr8, rax; mov rcx, cr8
    machine.state[slots.RAX] = 9
    assert machine.run() == ExitReason.CPUID
    assert machine.gpr("RCX") == 9
    assert machine.memory.load(machine.slots[f.VIRTUAL_APIC_ADDRESS] + 0x80, 4) == 0x90
    machine.slots[f.GUEST_RIP] = CODE
    machine.slots[f.TPR_THRESHOLD] = 5
    machine.state[slots.RAX] = 4
    assert machine.run() == ExitReason.TPR_BELOW_THRESHOLD
    assert machine.rip == CODE + 4


def test_virtualized_apic_accesses() -> None:
    """SDM 30.4: TPR is virtualized, all else exits with offset and access type (table 28-6)."""
    machine = virtual_apic("c7 87 80 00 00 00 50 00 00 00 8b 8f 80 00 00 00 8b 47 20", accesses=True)
    machine.state[slots.RDI] = DATA
    assert machine.run() == ExitReason.APIC_ACCESS
    assert machine.gpr("RCX") == 0x50
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x20 | 0 << 12
    assert machine.rip == CODE + 16
    machine = virtual_apic("89 47 30", accesses=True)
    machine.state[slots.RDI] = DATA
    assert machine.run() == ExitReason.APIC_ACCESS
    assert machine.slots[f.EXIT_QUALIFICATION] == 0x30 | 1 << 12


def test_tpr_threshold_at_entry() -> None:
    """SDM 27.7.7: with virtualized APIC accesses the exit comes right after VM entry."""
    machine = virtual_apic("90", accesses=True)
    machine.slots[f.TPR_THRESHOLD] = 1
    assert machine.run() == ExitReason.TPR_BELOW_THRESHOLD
    assert machine.rip == CODE


def test_virtualized_x2apic() -> None:
    """SDM 30.5: RDMSR and WRMSR of 808H work on VTPR where the bitmap lets them."""
    machine = virtual_apic("0f 30 31 c0 0f 32", x2apic=True)  # wrmsr; xor eax, eax; rdmsr
    machine.primary(controls.PRIMARY_MSR_BITMAPS)
    machine.slots[f.MSR_BITMAP] = machine.page()
    machine.state[slots.RCX], machine.state[slots.RAX], machine.state[slots.RDX] = 0x808, 0x70, 0
    assert machine.run() == ExitReason.CPUID
    assert machine.gpr("RAX") == 0x70
    assert machine.memory.load(machine.slots[f.VIRTUAL_APIC_ADDRESS] + 0x80, 4) == 0x70


def test_apic_registers() -> None:
    """SDM 30.5: with APIC-register virtualization RDMSR reads any register from the virtual-APIC page."""
    machine = virtual_apic("0f 32", x2apic=True)
    machine.primary(controls.PRIMARY_MSR_BITMAPS)
    machine.secondary(controls.SECONDARY_APIC_REGISTER)
    machine.slots[f.MSR_BITMAP] = machine.page()
    machine.memory.store(machine.slots[f.VIRTUAL_APIC_ADDRESS] + 0x20, 4, 0x1234)
    machine.state[slots.RCX] = 0x802
    assert machine.run() == ExitReason.CPUID
    assert machine.gpr("RAX") == 0x1234


def test_virtual_interrupts() -> None:
    """SDM 30.1.5: a self-IPI while RFLAGS.IF is 0 is requested in RVI and VIRR."""
    machine = virtual_apic("0f 30", x2apic=True)
    machine.primary(controls.PRIMARY_MSR_BITMAPS)
    machine.secondary(controls.SECONDARY_VIRTUAL_INTERRUPT)
    machine.slots[f.MSR_BITMAP] = machine.page()
    machine.state[slots.RCX], machine.state[slots.RAX], machine.state[slots.RDX] = 0x83F, 0x45, 0
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_INTERRUPT_STATUS] == 0x45
    assert machine.memory.load(machine.slots[f.VIRTUAL_APIC_ADDRESS] + 0x220, 4) == 1 << 5


def test_posted_interrupts() -> None:
    """SDM 30.6: the notification vector moves requests to VIRR and RVI, without an exit."""
    machine = virtual_apic("90")
    machine.secondary(controls.SECONDARY_VIRTUAL_INTERRUPT)
    machine.slots[f.PIN_CONTROLS] |= controls.PIN_POSTED_INTERRUPTS
    machine.slots[f.EXIT_CONTROLS] |= controls.EXIT_ACKNOWLEDGE
    machine.slots[f.POSTED_INTERRUPT_VECTOR] = 0xF2
    machine.slots[f.POSTED_INTERRUPT_DESCRIPTOR] = descriptor = machine.page()
    machine.memory.store(descriptor + 8, 8, 1 << 6)
    machine.memory.store(descriptor + 32, 8, 0xF2_0001)
    machine.core.interrupt(0xF2)
    assert machine.run() == ExitReason.CPUID
    assert machine.slots[f.GUEST_INTERRUPT_STATUS] == 70
    assert [machine.memory.load(descriptor + at, 8) for at in (8, 32)] == [0, 0xF2_0000]


# --- time ---


def test_tsc_offset_and_scaling() -> None:
    """SDM 26.3: offset is added; with scaling the product is shifted by 48."""
    machine = Machine(hexa("0f 31 0f a2"))
    machine.primary(controls.PRIMARY_TSC_OFFSETTING)
    machine.slots[f.TSC_OFFSET] = 1_000_000
    assert machine.run() == ExitReason.CPUID
    assert 1_000_000 <= machine.gpr("RAX") < 1_000_100
    machine.slots[f.GUEST_RIP] = CODE
    machine.secondary(controls.SECONDARY_TSC_SCALING)
    machine.slots[f.TSC_MULTIPLIER] = 3 << 48
    machine.slots[f.TSC_OFFSET] = 0
    before = machine.core.now()
    assert machine.run() == ExitReason.CPUID
    assert machine.gpr("RAX") == 3 * before


def test_preemption_timer() -> None:
    """SDM 26.5.1, 27.7.4: counts at the rate of IA32_VMX_MISC, is saved, and zero exits at once."""
    machine = Machine(hexa("eb fe"))
    machine.pin(controls.PIN_PREEMPTION_TIMER)
    machine.slots[f.EXIT_CONTROLS] |= controls.EXIT_SAVE_TIMER
    machine.slots[f.GUEST_PREEMPTION_TIMER] = 10
    start = machine.core.now()
    assert machine.run() == ExitReason.PREEMPTION_TIMER
    assert 9 * 32 <= machine.core.now() - start <= 10 * 32
    assert machine.slots[f.GUEST_PREEMPTION_TIMER] == 0
    start = machine.core.now()
    assert machine.run() == ExitReason.PREEMPTION_TIMER
    assert machine.core.now() == start
    machine.slots[f.GUEST_PREEMPTION_TIMER] = 1000
    assert machine.run(deadline=320) == ExitReason.EXTERNAL_INTERRUPT
    assert 989 <= machine.slots[f.GUEST_PREEMPTION_TIMER] <= 991


def test_monitor_trap_flag() -> None:
    """SDM 26.5.2: one instruction, then an exit."""
    machine = Machine(hexa("90 90 90"))
    machine.primary(controls.PRIMARY_MONITOR_TRAP)
    for n in range(1, 4):
        assert machine.run() == ExitReason.MONITOR_TRAP
        assert machine.rip == CODE + n


# --- host events ---


def test_deadline_is_exact_under_virtual_time() -> None:
    machine = Machine(hexa("eb fe"))
    assert machine.run(deadline=12345) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.core.now() == 12345
    assert machine.state[slots.RETIRED] == 12345


def test_kick_is_sticky() -> None:
    machine = Machine(hexa("eb fe"))
    machine.core.kick()
    assert machine.run() == ExitReason.EXTERNAL_INTERRUPT
    assert machine.state[slots.RETIRED] == 0
    assert machine.run(deadline=5) == ExitReason.EXTERNAL_INTERRUPT
    assert machine.state[slots.RETIRED] == 5


def test_stop_is_for_good() -> None:
    machine = Machine(hexa("eb fe"))
    machine.core.stop()
    for _ in range(2):
        assert machine.run() == ExitReason.EXTERNAL_INTERRUPT
        assert machine.state[slots.RETIRED] == 0


def test_an_ablation_is_another_processor() -> None:
    """A control that the model does not offer fails the entry."""
    machine = Machine(model=Model(disable=["mtf"]))
    machine.primary(controls.PRIMARY_MONITOR_TRAP)
    assert machine.run() == -7
    rule = machine.core.broken_rule
    assert rule is not None
    assert rule.name == "primary_reserved"
