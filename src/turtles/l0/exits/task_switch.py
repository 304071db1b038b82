"""Task switches of L1: the exit is unconditional, so L0 does what the processor would (SDM vol. 3, 8.3).

Silicon has checked privilege, type and presence of the new TSS before the exit. Here: the old state is
saved, the new one loaded, descriptors are marked busy or free, segments are loaded with their checks. Faults
after the point where the new task counts as entered are raised in it. Not here: the debug trap of a TSS with
T set.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from turtles.l0.exits.cr import read_cr0, write_cr3
from turtles.l0.nested import guest_memory as guest
from turtles.l0.nested.guest_memory import Faulted
from turtles.l0.vmcs import bits as X
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

CALL: Final = 0
IRET: Final = 1
JMP: Final = 2
GATE: Final = 3
BUSY: Final = 2  # of a TSS descriptor's type
TSS_32: Final = 8  # of its type: a 32-bit TSS
_ES, _CS, _SS, _DS, _FS, _GS, _LDTR, _TR = range(8)
_FLAT_16: Final = 0xFFFF


@dataclass(frozen=True)
class Layout:
    """Where a TSS holds what: offsets and the format of the saved registers (SDM figures 8-2 and 8-10)."""

    size: int
    registers: struct.Struct  # IP, FLAGS, eight general registers, segment selectors
    at: int
    segments: int
    ldt: int


TSS32: Final = Layout(104, struct.Struct("<10I6I"), 0x20, 6, 0x60)
TSS16: Final = Layout(44, struct.Struct("<10H4H"), 0x0E, 4, 0x2A)
_CR3_AT: Final = 0x1C


def _layout(access: int) -> Layout:
    return TSS32 if access & TSS_32 else TSS16


def _field(segment: int) -> int:
    return F.GUEST_ES_SELECTOR + 4 * segment


def _fail(vcpu: Vcpu, vector: int, selector: int, external: bool = False) -> None:
    vcpu.inject_exception(vector, selector & 0xFFFC | int(external))
    raise Faulted


def task_switch(vcpu: Vcpu) -> None:
    """A hardware task switch."""
    qualification = vcpu.v[F.EXIT_QUALIFICATION]
    with contextlib.suppress(Faulted):  # the exception is set up
        _switch(vcpu, qualification & 0xFFFF, qualification >> 30 & 3)
    vcpu.attention = True


def _switch(vcpu: Vcpu, selector: int, source: int) -> None:
    v = vcpu.v
    vectoring = v[F.IDT_VECTORING_INFO] if source == GATE else 0
    kind = vectoring & X.TYPE_MASK
    software = kind in (X.TYPE_SOFTWARE_INTERRUPT, X.TYPE_SOFTWARE_EXCEPTION, X.TYPE_PRIVILEGED)
    external = bool(vectoring & X.VALID) and not software

    gdt = v[F.GUEST_GDTR_BASE]
    descriptor_at = gdt + (selector & 0xFFF8) & 0xFFFF_FFFF
    descriptor = int.from_bytes(guest.read(vcpu, descriptor_at, 8, system=True), "little")
    base, limit, access = parse(descriptor)
    new = _layout(access)
    if limit < new.size - 1:
        _fail(vcpu, X.VECTOR_TS, selector, external)
    tss = bytearray(guest.read(vcpu, base, new.size, system=True))

    _save_old(vcpu, source, software or not vectoring & X.VALID)
    if source in (JMP, IRET):
        _mark(vcpu, gdt + (v[_field(_TR)] & 0xFFF8) & 0xFFFF_FFFF, busy=False)
    if source in (CALL, GATE):
        link = v[_field(_TR)].to_bytes(2, "little")
        guest.write(vcpu, base, link, system=True)
    if source != IRET:
        _mark(vcpu, descriptor_at, busy=True)

    # From here on the new task counts as entered.
    tr = _field(_TR)
    v[tr], v[tr + 1], v[tr + 2], v[tr + 3] = selector, base, limit, access & 0xF0FF | BUSY
    v[F.GUEST_CR0] |= X.CR0_TS
    v[F.ENTRY_INTERRUPTION_INFO] = 0
    selectors, ldt = _load_new(vcpu, tss, new, nested=source in (CALL, GATE))
    _load_segments(vcpu, selectors, ldt, external)
    if vectoring & X.VALID and vectoring & X.HAS_ERROR_CODE:
        _push_error(vcpu, v[F.IDT_VECTORING_ERROR], 4 if new is TSS32 else 2)


def _save_old(vcpu: Vcpu, source: int, after_instruction: bool) -> None:
    """The old task's registers into its TSS; RIP behind the instruction that switched, if one did."""
    v, regs = vcpu.v, vcpu.regs
    old = _layout(v[_field(_TR) + 3])
    mask = 0xFFFF_FFFF if old is TSS32 else 0xFFFF
    ip = v[F.GUEST_RIP] + (v[F.EXIT_INSTRUCTION_LENGTH] if after_instruction else 0)
    flags = v[F.GUEST_RFLAGS] & ~(X.RFLAGS_NT if source == IRET else 0)
    general = [regs[S.GPR + n] for n in range(8)]
    general[4] = v[F.GUEST_RSP]
    selectors = [v[_field(segment)] for segment in range(old.segments)]
    data = old.registers.pack(*(value & mask for value in (ip, flags, *general, *selectors)))
    guest.write(vcpu, v[_field(_TR) + 1] + old.at & 0xFFFF_FFFF, data, system=True)


def _load_new(vcpu: Vcpu, tss: bytearray, layout: Layout, nested: bool) -> tuple[list[int], int]:
    """CR3, instruction pointer, flags and registers; the selectors are for `_load_segments`."""
    v, regs = vcpu.v, vcpu.regs
    if layout is TSS32 and read_cr0(vcpu) & X.CR0_PG:
        cr3 = int.from_bytes(tss[_CR3_AT : _CR3_AT + 4], "little")
        if vcpu.shadow is not None:
            if not write_cr3(vcpu, cr3):
                _fail(vcpu, X.VECTOR_GP, 0)
        else:
            if v[F.GUEST_CR4] & X.CR4_PAE and not vcpu.load_pdptes(v, cr3):
                _fail(vcpu, X.VECTOR_GP, 0)
            v[F.GUEST_CR3] = cr3
            vcpu.flush_tlb()
    ip, flags, *rest = layout.registers.unpack_from(tss, layout.at)
    v[F.GUEST_RIP] = ip
    v[F.GUEST_RFLAGS] = flags & 0x3F_7FD5 | 2 | (X.RFLAGS_NT if nested else 0)
    for number in range(8):
        # A 16-bit TSS leaves the upper halves undefined; zero is as good as anything.
        regs[S.GPR + number] = rest[number]
    v[F.GUEST_RSP] = rest[4]
    ldt = int.from_bytes(tss[layout.ldt : layout.ldt + 2], "little")
    return [selector & 0xFFFF for selector in rest[8:]], ldt


def _load_segments(vcpu: Vcpu, selectors: list[int], ldt: int, external: bool) -> None:
    v = vcpu.v
    selectors = selectors + [0] * (6 - len(selectors))  # a 16-bit TSS has no FS and GS
    # First the selectors, with everything unusable: a fault is raised in the new task.
    for segment, selector in enumerate(selectors):
        v[_field(segment)], v[_field(segment) + 3] = selector, X.ACCESS_UNUSABLE
    v[_field(_LDTR)], v[_field(_LDTR) + 3] = ldt, X.ACCESS_UNUSABLE
    if v[F.GUEST_RFLAGS] & X.RFLAGS_VM:
        for segment, selector in enumerate(selectors):
            at = _field(segment)
            v[at + 1], v[at + 2], v[at + 3] = selector << 4, _FLAT_16, 0xF3
        return
    # CPL is that of CS; the others are checked against it.
    cpl = selectors[_CS] & 3
    at = _field(_SS)
    v[at + 3] = X.ACCESS_UNUSABLE | cpl << 5
    if ldt & 0xFFFC:
        base, limit, access = _descriptor(vcpu, ldt, X.VECTOR_TS, external, in_gdt=True)
        if access & 0x1F != 2 or not access & 0x80:
            _fail(vcpu, X.VECTOR_TS, ldt, external)
        at = _field(_LDTR)
        v[at + 1], v[at + 2], v[at + 3] = base, limit, access
    for segment in (_CS, _SS, _DS, _ES, _FS, _GS):
        _load_segment(vcpu, segment, selectors[segment], cpl, external)


def _load_segment(vcpu: Vcpu, segment: int, selector: int, cpl: int, external: bool) -> None:
    """SDM table 8-1: what is checked of each segment register."""
    v = vcpu.v
    if not selector & 0xFFFC:
        if segment in (_CS, _SS):
            _fail(vcpu, X.VECTOR_TS, selector, external)
        return
    base, limit, access = _descriptor(vcpu, selector, X.VECTOR_TS, external)
    kind, dpl, rpl = access & 0x1F, access >> 5 & 3, selector & 3
    if segment == _CS:
        good = kind >= 0x18 and (dpl <= rpl if kind & 4 else dpl == rpl)
    elif segment == _SS:
        good = kind & 0x1A == 0x12 and dpl == cpl and rpl == cpl
    else:
        readable = kind >= 0x10 and (not kind & 8 or bool(kind & 2))
        good = readable and (kind & 0xC == 0xC or dpl >= max(cpl, rpl))
    if not good:
        _fail(vcpu, X.VECTOR_TS, selector, external)
    if not access & 0x80:
        _fail(vcpu, X.VECTOR_SS if segment == _SS else X.VECTOR_NP, selector, external)
    if not access & 1:
        access |= 1  # accessed
        table = v[F.GUEST_GDTR_BASE] if not selector & 4 else v[_field(_LDTR) + 1]
        at = table + (selector & 0xFFF8) + 5 & 0xFFFF_FFFF
        guest.write(vcpu, at, bytes([access & 0xFF]), system=True)
    at = _field(segment)
    v[at + 1], v[at + 2], v[at + 3] = base, limit, access


def _descriptor(
    vcpu: Vcpu, selector: int, vector: int, external: bool, in_gdt: bool = False
) -> tuple[int, int, int]:
    """Base, limit and access rights of a selector's descriptor."""
    v = vcpu.v
    local = bool(selector & 4)
    if local and (in_gdt or v[_field(_LDTR) + 3] & X.ACCESS_UNUSABLE):
        _fail(vcpu, vector, selector, external)
    base, limit = (
        (v[_field(_LDTR) + 1], v[_field(_LDTR) + 2])
        if local
        else (v[F.GUEST_GDTR_BASE], v[F.GUEST_GDTR_LIMIT])
    )
    if selector | 7 > limit:
        _fail(vcpu, vector, selector, external)
    data = guest.read(vcpu, base + (selector & 0xFFF8) & 0xFFFF_FFFF, 8, system=True)
    return parse(int.from_bytes(data, "little"))


def parse(descriptor: int) -> tuple[int, int, int]:
    """Base, limit in bytes, and access rights in the VMCS format, of a descriptor (SDM 3.4.5)."""
    base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF) << 24
    limit = descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16
    access = descriptor >> 40 & 0xF0FF
    if access >> 15 & 1:
        limit = limit << 12 | 0xFFF
    return base, limit, access


def _mark(vcpu: Vcpu, descriptor_at: int, busy: bool) -> None:
    """Sets or clears the busy bit of a TSS descriptor."""
    at = descriptor_at + 5 & 0xFFFF_FFFF
    kind = guest.read(vcpu, at, 1, system=True)[0]
    guest.write(vcpu, at, bytes([kind | BUSY if busy else kind & ~BUSY]), system=True)


def _push_error(vcpu: Vcpu, error: int, size: int) -> None:
    """The error code of the exception that came through a task gate, on the new task's stack."""
    v = vcpu.v
    wide = v[_field(_SS) + 3] & X.ACCESS_DB
    mask = 0xFFFF_FFFF if wide else 0xFFFF
    rsp = v[F.GUEST_RSP]
    offset = rsp - size & mask
    data = (error & (1 << 8 * size) - 1).to_bytes(size, "little")
    guest.write(vcpu, v[_field(_SS) + 1] + offset & 0xFFFF_FFFF, data)
    v[F.GUEST_RSP] = rsp & ~mask | offset
