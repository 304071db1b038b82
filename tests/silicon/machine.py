"""A bare machine for tests of silicon: one core, identity-mapped EPT, a valid VMCS, code given as bytes."""

from __future__ import annotations

from typing import Literal

from turtles.silicon import Core, ExitReason, Memory, Model, Vmcs, controls, slots
from turtles.silicon import fields as f

RAM = 16 << 20
CODE = 0x10000
STACK = 0x20000
GUEST_TABLES = 0x1000
IDT = 0x4000
GDT = 0x5000
TSS = 0x6000
DATA = 0x30000

CODE64 = 0xA09B
DATA64 = 0xC093

MODEL = Model()


class Machine:
    """Memory, model, core and VMCS; 64-bit mode at CPL 0 unless changed before `run`."""

    def __init__(
        self,
        code: bytes = b"\xf4",
        *,
        model: Model = MODEL,
        ept: bool = True,
        clock: Literal["host", "virtual"] = "virtual",
        engine: Literal["interpreter", "translator"] = "translator",
    ) -> None:
        self.memory = Memory(RAM, 1 << 20)
        self.model = model
        self.core = Core(self.memory, model, clock, engine=engine)
        self._next_page = self.memory.size
        self.vmcs = Vmcs(self.memory, self.page())
        self.slots = self.vmcs.slots
        self.state = self.core.slots
        self.memory.write(CODE, code)
        self._paging()
        self._valid_vmcs()
        if ept:
            self._ept()

    def page(self) -> int:
        """A zeroed page of the pool."""
        pa = self._next_page
        self._next_page += 4096
        return pa

    def _paging(self) -> None:
        """IA-32e paging: identity for the first 512 GiB in 1-GiB pages."""
        self.memory.store(GUEST_TABLES, 8, GUEST_TABLES + 0x1000 | 7)
        for n in range(512):
            self.memory.store(GUEST_TABLES + 0x1000 + 8 * n, 8, n << 30 | 0x87)

    def _ept(self) -> None:
        self.ept_top, self.ept_1g, self.ept_2m, self.ept_4k = (self.page() for _ in range(4))
        self.memory.store(self.ept_top, 8, self.ept_1g | 7)
        self.memory.store(self.ept_1g, 8, self.ept_2m | 7)
        self.memory.store(self.ept_2m, 8, self.ept_4k | 7)
        for n in range(512):
            self.memory.store(self.ept_4k + 8 * n, 8, n << 12 | 0x37)
        for n in range(1, RAM >> 21):
            self.memory.store(self.ept_2m + 8 * n, 8, n << 21 | 0xB7)
        self.slots[f.EPT_POINTER] = self.ept_top | 0x1E
        self.secondary(controls.SECONDARY_EPT)

    def _valid_vmcs(self) -> None:
        vmcs, s = self.vmcs, self.vmcs.slots
        vmcs.clear()

        def ones(msr: int) -> int:
            value = self.model.vmx_msr(msr)
            assert value is not None
            return value & 0xFFFFFFFF

        s[f.PIN_CONTROLS] = ones(0x48D) | controls.PIN_EXTERNAL_INTERRUPT
        s[f.PRIMARY_CONTROLS] = ones(0x48E) | controls.PRIMARY_HLT | controls.PRIMARY_UNCONDITIONAL_IO
        s[f.EXIT_CONTROLS] = (
            ones(0x48F)
            | controls.EXIT_HOST_64
            | controls.EXIT_SAVE_DEBUG
            | controls.EXIT_SAVE_EFER
            | controls.EXIT_SAVE_PAT
        )
        s[f.ENTRY_CONTROLS] = (
            ones(0x490)
            | controls.ENTRY_IA32E
            | controls.ENTRY_LOAD_EFER
            | controls.ENTRY_LOAD_DEBUG
            | controls.ENTRY_LOAD_PAT
        )
        s[f.HOST_CR0] = 0x80050033
        s[f.HOST_CR3] = 0x1000
        s[f.HOST_CR4] = 0x2020
        s[f.HOST_CS_SELECTOR] = 0x10
        s[f.HOST_TR_SELECTOR] = 0x40
        s[f.GUEST_CR0] = 0x80050033
        s[f.GUEST_CR3] = GUEST_TABLES
        s[f.GUEST_CR4] = 0x2620
        s[f.GUEST_EFER] = 0xD01
        s[f.GUEST_PAT] = 0x0007040600070406
        s[f.GUEST_DR7] = 0x400
        s[f.GUEST_RFLAGS] = 2
        s[f.GUEST_RIP] = CODE
        s[f.GUEST_RSP] = STACK
        for n, name in enumerate(["ES", "CS", "SS", "DS", "FS", "GS"]):
            at = f.GUEST_ES_SELECTOR + 4 * n
            s[at] = 0x08 if name == "CS" else 0x10
            s[at + 2] = 0xFFFFFFFF
            s[at + 3] = CODE64 if name == "CS" else DATA64
        s[f.GUEST_LDTR_ACCESS] = 0x10000
        s[f.GUEST_TR_SELECTOR] = 0x18
        s[f.GUEST_TR_BASE] = TSS
        s[f.GUEST_TR_LIMIT] = 0x67
        s[f.GUEST_TR_ACCESS] = 0x8B
        s[f.GUEST_GDTR_BASE] = GDT
        s[f.GUEST_GDTR_LIMIT] = 0xFFF
        s[f.GUEST_IDTR_BASE] = IDT
        s[f.GUEST_IDTR_LIMIT] = 0xFFF
        self.memory.store(GDT + 8, 8, 0x00AF9B000000FFFF)
        self.memory.store(GDT + 16, 8, 0x00CF93000000FFFF)

    def handler(self, vector: int, code: bytes) -> int:
        """An interrupt gate for `vector` with this code behind it; its address."""
        at = CODE + 0x1000 + 0x40 * vector
        self.memory.write(at, code)
        self.memory.store(IDT + 16 * vector, 8, at & 0xFFFF | 0x08 << 16 | 0x8E00 << 32 | (at >> 16) << 48)
        self.memory.store(IDT + 16 * vector + 8, 8, at >> 32)
        return at

    def primary(self, bits: int) -> None:
        """Sets primary controls."""
        self.slots[f.PRIMARY_CONTROLS] |= bits

    def secondary(self, bits: int) -> None:
        """Sets secondary controls."""
        self.slots[f.PRIMARY_CONTROLS] |= controls.PRIMARY_SECONDARY
        self.slots[f.SECONDARY_CONTROLS] |= bits

    def pin(self, bits: int) -> None:
        """Sets pin-based controls."""
        self.slots[f.PIN_CONTROLS] |= bits

    def run(self, deadline: int | None = None) -> int:
        """Enters; the exit reason. The deadline is relative and generous."""
        reason = self.core.enter(self.vmcs, self.core.now() + (1_000_000 if deadline is None else deadline))
        return ExitReason(reason) if 0 <= reason < 1 << 16 else reason

    @property
    def rip(self) -> int:
        """Guest RIP."""
        return self.slots[f.GUEST_RIP]

    def advance(self) -> None:
        """Moves RIP past the instruction that exited."""
        self.slots[f.GUEST_RIP] += self.slots[f.EXIT_INSTRUCTION_LENGTH]

    def inject(self, vector: int, kind: int, error: int | None = None, length: int = 0) -> None:
        """Asks for event injection."""
        self.slots[f.ENTRY_INTERRUPTION_INFO] = (
            vector | kind << 8 | (1 << 11 if error is not None else 0) | 1 << 31
        )
        self.slots[f.ENTRY_ERROR_CODE] = error or 0
        self.slots[f.ENTRY_INSTRUCTION_LENGTH] = length

    def gpr(self, name: str) -> int:
        """A general-purpose register."""
        value = self.state[getattr(slots, name)]
        assert isinstance(value, int)
        return value
