"""A bare machine for one tiny guest: RAM, EPT, page tables, GDT, IDT, one VMCS. No L0.

A guest is a `.S` file whose `#?` lines say how the VMCS is set up and which VM exits are expected, in order.
See `script.py` for the language.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Literal

from turtles.silicon import Core, Memory, Model, Vmcs
from turtles.silicon._silicon import STATE_SLOTS, VMCS_FIELDS

RAM = 16 << 20
CODE = 0x8000
STACK = 0x7000
GDT, IDT, HANDLERS, TSS, PML4 = 0x1000, 0x2000, 0x4000, 0x6000, 0x10000
HANDLER_SIZE = 4

SLOT_OF = {encoding: slot for slot, encoding in VMCS_FIELDS.values()}

# Encodings (SDM appendix B) of what the set-up writes.
PIN, PRIMARY, SECONDARY, EXIT_CONTROLS, ENTRY_CONTROLS = 0x4000, 0x4002, 0x401E, 0x400C, 0x4012
RIP, RSP, RFLAGS, CR0, CR3, CR4 = 0x681E, 0x681C, 0x6820, 0x6800, 0x6802, 0x6804
CAPABILITY = {PIN: 0x48D, PRIMARY: 0x48E, SECONDARY: 0x48B, EXIT_CONTROLS: 0x48F, ENTRY_CONTROLS: 0x490}


def assemble(source: Path, work: Path) -> tuple[bytes, dict[str, int]]:
    """Assembles a guest at CODE; returns its bytes and its symbols."""
    obj, linked, flat = work / "g.o", work / "g.elf", work / "g.bin"
    subprocess.run(["cc", "-m64", "-c", "-x", "assembler-with-cpp", str(source), "-o", str(obj)], check=True)
    subprocess.run(
        ["ld", "-m", "elf_x86_64", "--no-warn-rwx-segments", f"-Ttext={CODE:#x}", "-e", "0"]
        + ["-o", str(linked), str(obj)],
        check=True,
    )
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(linked), str(flat)], check=True)
    names = subprocess.run(["nm", str(linked)], check=True, capture_output=True, text=True).stdout
    symbols = {}
    for line in names.splitlines():
        value, _, name = line.split()
        symbols[name] = int(value, 16)
    return flat.read_bytes(), symbols


def descriptor(base: int, limit: int, access: int) -> int:
    """An 8-byte segment descriptor; `access` has the VMCS access-rights format."""
    return (
        (limit & 0xFFFF)
        | (base & 0xFFFFFF) << 16
        | (access & 0xFF) << 40
        | (limit >> 16 & 0xF) << 48
        | (access >> 12 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


class VtxMachine:
    """One core with one VMCS over a few megabytes, identity-mapped at every level."""

    def __init__(self, clock: Literal["host", "virtual"] = "virtual") -> None:
        self.memory = Memory(RAM, pool=1 << 20)
        self.model = Model()
        self.core = Core(self.memory, self.model, clock)
        self.pool_next = RAM
        self.vmcs_pa = self.page()
        self.ept_root = self.page()
        self.io_bitmaps = [self.page(), self.page()]
        self.msr_bitmap = self.page()
        self.host_areas = {"entrymsr": self.page(), "exitmsr": self.page(), "vapic": self.page()}
        self.host_areas["descriptor"] = self.page()
        self.shadow_pa, self.vmread_bitmap, self.vmwrite_bitmap = self.page(), self.page(), self.page()
        self.vmcs = Vmcs(self.memory, self.vmcs_pa)
        self.slots = self.vmcs.slots
        self._fill_memory()
        self._fill_ept()

    def page(self) -> int:
        """One page of the pool."""
        self.pool_next += 4096
        return self.pool_next - 4096

    # --- fields and state -----------------------------------------------------------------------

    def read(self, encoding: int) -> int:
        return int(self.slots[SLOT_OF[encoding]])

    def write(self, encoding: int, value: int) -> None:
        self.slots[SLOT_OF[encoding]] = value & (1 << 64) - 1

    def state(self, name: str) -> int:
        return int(self.core.slots[STATE_SLOTS[name][0]])

    def set_state(self, name: str, value: int) -> None:
        self.core.slots[STATE_SLOTS[name][0]] = value

    def gpr(self, number: int) -> int:
        return int(self.core.slots[STATE_SLOTS["gpr"][0] + number])

    def set_gpr(self, number: int, value: int) -> None:
        self.core.slots[STATE_SLOTS["gpr"][0] + number] = value

    def capability(self, msr: int) -> int:
        """A capability MSR."""
        value = self.model.vmx_msr(msr)
        assert value is not None, f"{msr:#x} is not offered"
        return value

    def control(self, field: int, want: int) -> None:
        """Writes a control field with the bits that the capability MSR demands."""
        allowed = self.capability(CAPABILITY[field])
        low, high = allowed & 0xFFFFFFFF, allowed >> 32
        assert want & ~high == 0, f"control {want & ~high:#x} of field {field:#x} is not offered"
        self.write(field, want | low)

    # --- memory ---------------------------------------------------------------------------------

    def poke64(self, pa: int, value: int) -> None:
        self.memory.write(pa, struct.pack("<Q", value))

    def peek64(self, pa: int) -> int:
        return int(struct.unpack_from("<Q", bytes(self.memory.read(pa, 8)))[0])

    def map_2m(self, gpa: int, permissions: int) -> None:
        self.poke64(self.ept_pd + (gpa >> 21) * 8, gpa | permissions | 6 << 3 | 0x80 if permissions else 0)

    def map_1g(self, gpa: int, permissions: int) -> None:
        """A page of 1 GiB at `gpa` (not the first) shows memory from its beginning."""
        self.poke64(self.ept_pdpt + (gpa >> 30) * 8, permissions | 6 << 3 | 0x80)

    def ept_entry(self, gpa: int) -> int:
        return self.peek64(self.ept_pd + (gpa >> 21) * 8)

    def _fill_ept(self) -> None:
        pdpt = self.ept_pdpt = self.page()
        self.ept_pd = self.page()
        self.poke64(self.ept_root, pdpt | 7)
        self.poke64(pdpt, self.ept_pd | 7)
        for gpa in range(0, RAM, 2 << 20):
            self.map_2m(gpa, 7)

    def _fill_memory(self) -> None:
        self.poke64(PML4, PML4 + 0x1007)
        self.poke64(PML4 + 0x1000, PML4 + 0x2007)
        for i in range(512):
            self.poke64(PML4 + 0x2000 + 8 * i, i << 21 | 0xE7)
        for vector in range(256):
            handler = HANDLERS + HANDLER_SIZE * vector
            self.memory.write(handler, b"\x0f\x01\xc1\xf4")  # vmcall; hlt
            self.poke64(IDT + 16 * vector, handler & 0xFFFF | 8 << 16 | 0x8E << 40)
            self.poke64(IDT + 16 * vector + 8, 0)
        self.memory.write(0x5FF0, b"\x48\xcf")  # iretq, for the script's `do iret`
        self.memory.write(TSS, bytes(104))
        self.poke64(TSS + 4, STACK - 0x800)

    # --- modes ----------------------------------------------------------------------------------

    def _gdt(self, entries: list[int]) -> None:
        self.memory.write(GDT, b"".join(struct.pack("<Q", e) for e in entries))
        self.write(0x6816, GDT)
        self.write(0x4810, 8 * len(entries) - 1)

    def _segment(self, number: int, selector: int, limit: int, access: int, base: int = 0) -> None:
        self.write(0x0800 + 2 * number, selector)
        self.write(0x6806 + 2 * number, base)
        self.write(0x4800 + 2 * number, limit)
        self.write(0x4814 + 2 * number, access)

    def set_up(self, mode: str) -> None:
        """Writes a valid VMCS for `mode`: long, protected or real."""
        self.slots[0] = self.capability(0x480) & 0x7FFFFFFF
        self.control(PIN, 1)
        self.control(PRIMARY, 1 << 7 | 1 << 31 | 1 << 28)
        self.control(SECONDARY, 1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 12)
        self.control(EXIT_CONTROLS, 1 << 9 | 1 << 2 | 1 << 18 | 1 << 20)
        self.control(ENTRY_CONTROLS, 1 << 15 | 1 << 2 | (1 << 9 if mode == "long" else 0))
        self.write(0x0000, 1)
        self.write(0x201A, self.ept_root | 3 << 3 | 6)
        self.write(0x2000, self.io_bitmaps[0])
        self.write(0x2002, self.io_bitmaps[1])
        self.write(0x2004, self.msr_bitmap)
        self.write(0x2800, (1 << 64) - 1)
        self._host_state()
        self.write(RFLAGS, 2)
        self.write(RIP, CODE)
        self.write(RSP, STACK)
        self.write(0x681A, 0x400)
        self.write(0x6818, IDT)
        self.write(0x4812, 0xFFF)
        for number in (0, 2, 3, 4, 5):
            self._segment(number, 0x10, 0xFFFFFFFF, 0xC093)
        self._segment(6, 0, 0, 0x10082)
        getattr(self, f"_set_up_{mode}")()

    def _set_up_long(self) -> None:
        code64, data, code32 = 0xA09B, 0xC093, 0xC09B
        user_data, user_code = 0xC0F3, 0xA0FB
        flat = [0] + [descriptor(0, 0xFFFFF, a) for a in (code64, data, code32, data, user_code, user_data)]
        self._gdt([*flat, descriptor(TSS, 103, 0x89), 0])
        self._segment(1, 8, 0xFFFFFFFF, code64)
        self._segment(7, 0x38, 103, 0x8B, TSS)
        self.write(CR0, 0x8005_0033)
        self.write(CR3, PML4)
        self.write(CR4, 0x2000 | 0x620)
        self.write(0x2806, 0x501)

    def _set_up_protected(self) -> None:
        code, data = 0xC09B, 0xC093
        tss = [descriptor(TSS, 103, 0x89), descriptor(TSS + 0x200, 103, 0x89)]
        self._gdt([0, descriptor(0, 0xFFFFF, code), descriptor(0, 0xFFFFF, data), 0, tss[0], tss[1]])
        self._segment(1, 8, 0xFFFFFFFF, code)
        self._segment(7, 0x20, 103, 0x8B, TSS)
        self.write(CR0, 0x31)
        self.write(CR4, 0x2000)

    def _set_up_real(self) -> None:
        for number in range(6):
            self._segment(number, 0, 0xFFFF, 0x9B if number == 1 else 0x93)
        self._segment(7, 0, 0xFFFF, 0x8B)
        self.write(CR0, 0x30)
        self.write(CR4, 0x2000)

    def _host_state(self) -> None:
        self.write(0x6C00, 0x8005_0033)
        self.write(0x6C02, PML4)
        self.write(0x6C04, 0x2020)
        self.write(0x0C02, 8)
        for encoding in (0x0C00, 0x0C04, 0x0C06, 0x0C08, 0x0C0A):
            self.write(encoding, 0x10)
        self.write(0x0C0C, 0x38)
        self.write(0x6C16, CODE)
        self.write(0x2C02, 0x501)
