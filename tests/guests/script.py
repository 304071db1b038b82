"""The language of the `#?` lines in a tiny guest: set-up, expected exits, what to do after each.

Before an entry:  mode M | set AREA BIT | clear AREA BIT | field ENC [|]= V | inject INFO [ERROR] | kick
                  interrupt VECTOR | vapic OFFSET = V | pidescriptor VECTOR… | eoiexit VECTOR
                  vmwritebitmap ENC
                  iobitmap PORT | msrbitmap read|write MSR | map GPA PERMS | unmap GPA | poke GPA HEX
                  eptad | shadow | shadowfield ENC = V | vmreadbitmap ENC | virtualapic [VTPR]
                  apicaccess GPA | entrymsr MSR V | exitmsr MSR
                  map1g GPA PERMS | invvpid TYPE [VPID [LINEAR]]
An exit:          expect REASON [key=value …]
After an exit:    do skip N | do rip = LABEL | do reg NAME = V | do iret | do skiphandler N | check …
An instruction-caused exit is skipped by its reported length unless a `do` says otherwise.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.guests.vtx_machine import (
    CODE,
    ENTRY_CONTROLS,
    EXIT_CONTROLS,
    HANDLER_SIZE,
    HANDLERS,
    PIN,
    PRIMARY,
    RFLAGS,
    RIP,
    RSP,
    SECONDARY,
    VtxMachine,
    assemble,
)
from turtles.silicon.reasons import ExitReason

GPRS = {n: i for i, n in enumerate("rax rcx rdx rbx rsp rbp rsi rdi".split())}
AREAS = {
    "pin": PIN,
    "primary": PRIMARY,
    "secondary": SECONDARY,
    "exit": EXIT_CONTROLS,
    "entry": ENTRY_CONTROLS,
}
NOT_SKIPPED = {
    "EXCEPTION_OR_NMI",
    "EXTERNAL_INTERRUPT",
    "TRIPLE_FAULT",
    "INTERRUPT_WINDOW",
    "NMI_WINDOW",
    "TASK_SWITCH",
    "ENTRY_GUEST_STATE",
    "ENTRY_MSR_LOAD",
    "MONITOR_TRAP",
    "TPR_BELOW_THRESHOLD",
    "APIC_ACCESS",
    "APIC_WRITE",
    "VIRTUALIZED_EOI",
    "EPT_VIOLATION",
    "EPT_MISCONFIGURATION",
    "PREEMPTION_TIMER",
}
EXIT_FIELDS = {
    "length": 0x440C,
    "qual": 0x6400,
    "info": 0x4404,
    "error": 0x4406,
    "idt": 0x4408,
    "gpa": 0x2400,
    "linear": 0x640A,
    "interruptibility": 0x4824,
    "activity": 0x4826,
}
MASKED_FIELDS = {"infomask": 0x440E, "qualmask": 0x6400}
MASK64 = (1 << 64) - 1


class Script:
    """Runs one guest against its own expectations."""

    def __init__(self, source: Path, work: Path) -> None:
        lines = source.read_text().splitlines()
        self.lines = [line[2:].strip() for line in lines if line.startswith("#?")]
        code, self.symbols = assemble(source, work)
        self.machine = VtxMachine()
        mode = next((line.split()[1] for line in self.lines if line.startswith("mode ")), "long")
        self.machine.set_up(mode)
        self.machine.memory.write(CODE, code)
        self.reason: str | None = None
        self.skip = False
        self.exits = 0

    def run(self) -> int:
        """Carries out every line; returns how many exits were checked."""
        for line in self.lines:
            verb, *words = line.split()
            getattr(self, f"_{verb}")(*words)
        return self.exits

    def value(self, text: str) -> int:
        return self.symbols[text] if text in self.symbols else int(text, 0)

    # --- set-up ---------------------------------------------------------------------------------

    def _mode(self, _mode: str) -> None:
        pass

    def _set(self, area: str, bit: str) -> None:
        self._finish()
        m = self.machine
        if area in AREAS:
            m.control(AREAS[area], m.read(AREAS[area]) | 1 << int(bit))

    def _clear(self, area: str, bit: str) -> None:
        self._finish()
        m = self.machine
        m.write(AREAS[area], m.read(AREAS[area]) & ~(1 << int(bit)))

    def _field(self, encoding: str, operator: str, value: str) -> None:
        self._finish()
        old = self.machine.read(int(encoding, 0)) if operator == "|=" else 0
        self.machine.write(int(encoding, 0), old | self.value(value))

    def _inject(self, info: str, error: str = "0") -> None:
        self._finish()
        self.machine.write(0x4016, int(info, 0))
        self.machine.write(0x4018, int(error, 0))

    def _kick(self) -> None:
        def later() -> None:
            time.sleep(0.05)
            self.machine.core.kick()

        threading.Thread(target=later, daemon=True).start()

    def _interrupt(self, vector: str) -> None:
        """An external interrupt, pending when the guest is entered."""
        self._finish()
        self.machine.core.interrupt(int(vector, 0))

    def _vapic(self, offset: str, _operator: str, value: str) -> None:
        self._finish()
        self.machine.memory.store(self.machine.host_areas["vapic"] + int(offset, 0), 4, int(value, 0))

    def _pidescriptor(self, *vectors: str) -> None:
        """A posted-interrupt descriptor with these requests and an outstanding notification."""
        m = self.machine
        for vector in vectors:
            self._set_bit(m.host_areas["descriptor"], int(vector, 0))
        self._set_bit(m.host_areas["descriptor"], 256)
        m.write(0x2016, m.host_areas["descriptor"])

    def _eoiexit(self, vector: str) -> None:
        number = int(vector, 0)
        self._field(f"{0x201C + 2 * (number // 64):#x}", "|=", f"{1 << number % 64:#x}")

    def _set_bit(self, page: int, bit: int) -> None:
        pa = page + bit // 64 * 8
        self.machine.poke64(pa, self.machine.peek64(pa) | 1 << bit % 64)

    def _iobitmap(self, port: str) -> None:
        number = int(port, 0)
        self._set_bit(self.machine.io_bitmaps[number >> 15], number & 0x7FFF)

    def _msrbitmap(self, access: str, msr: str) -> None:
        number = int(msr, 0)
        quarter = (0x400 if number >= 0xC0000000 else 0) + (0x800 if access == "write" else 0)
        self._set_bit(self.machine.msr_bitmap + quarter, number & 0x1FFF)

    def _map(self, gpa: str, permissions: str) -> None:
        self._finish()
        self.machine.map_2m(int(gpa, 0), int(permissions, 0))
        self.machine.memory.invept()

    def _map1g(self, gpa: str, permissions: str) -> None:
        self._finish()
        self.machine.map_1g(int(gpa, 0), int(permissions, 0))
        self.machine.memory.invept()

    def _invvpid(self, kind: str, vpid: str = "0", linear: str = "0") -> None:
        self.machine.memory.invvpid(int(kind), int(vpid, 0), int(linear, 0))

    def _unmap(self, gpa: str) -> None:
        self._map(gpa, "0")

    def _poke(self, gpa: str, data: str) -> None:
        self.machine.memory.write(int(gpa, 0), bytes.fromhex(data))

    def _eptad(self) -> None:
        self.machine.write(0x201A, self.machine.read(0x201A) | 1 << 6)

    def _shadow(self) -> None:
        m = self.machine
        m.poke64(m.shadow_pa, m.capability(0x480) & 0x7FFFFFFF | 1 << 31)
        m.write(0x2800, m.shadow_pa)
        m.write(0x2026, m.vmread_bitmap)
        m.write(0x2028, m.vmwrite_bitmap)

    def _shadow_slot(self, encoding: str) -> int:
        from tests.guests.vtx_machine import SLOT_OF

        return self.machine.shadow_pa + 8 * SLOT_OF[int(encoding, 0)]

    def _shadowfield(self, encoding: str, _operator: str, value: str) -> None:
        self.machine.poke64(self._shadow_slot(encoding), int(value, 0))

    def _vmreadbitmap(self, encoding: str) -> None:
        self._set_bit(self.machine.vmread_bitmap, int(encoding, 0) & 0x7FFF)

    def _vmwritebitmap(self, encoding: str) -> None:
        self._set_bit(self.machine.vmwrite_bitmap, int(encoding, 0) & 0x7FFF)

    def _virtualapic(self, vtpr: str = "0") -> None:
        m = self.machine
        m.poke64(m.host_areas["vapic"] + 0x80, int(vtpr, 0))
        m.write(0x2012, m.host_areas["vapic"])

    def _apicaccess(self, gpa: str) -> None:
        self.machine.write(0x2014, int(gpa, 0))

    def _entrymsr(self, msr: str, value: str) -> None:
        self._finish()
        m = self.machine
        m.poke64(m.host_areas["entrymsr"], int(msr, 0))
        m.poke64(m.host_areas["entrymsr"] + 8, int(value, 0))
        m.write(0x200A, m.host_areas["entrymsr"])
        m.write(0x4014, 1)

    def _exitmsr(self, msr: str) -> None:
        m = self.machine
        m.poke64(m.host_areas["exitmsr"], int(msr, 0))
        m.write(0x2006, m.host_areas["exitmsr"])
        m.write(0x400E, 1)

    # --- an exit --------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Skips the instruction of the last exit, once, where that is due."""
        if self.skip:
            self.skip = False
            m = self.machine
            m.write(RIP, m.read(RIP) + m.read(0x440C))
            m.write(0x4824, m.read(0x4824) & ~3)

    def _expect(self, reason: str, *checks: str) -> None:
        self._finish()
        m = self.machine
        code = m.core.enter(m.vmcs, m.core.now() + 2_000_000_000)
        assert code >= 0, f"VM entry failed with error {-code}"
        self.reason = ExitReason(code & 0xFFFF).name
        where = f"rip {m.read(RIP):#x} qualification {m.read(0x6400):#x} info {m.read(0x4404):#x}"
        assert self.reason == reason, f"{self.reason} instead of {reason}: {where}"
        for check in checks:
            key, _, text = check.partition("=")
            self._check_exit(key, text)
        self.skip = reason not in NOT_SKIPPED
        self.exits += 1

    def _check_exit(self, key: str, text: str) -> None:
        m = self.machine
        if key in MASKED_FIELDS:
            mask, want = (int(t, 0) for t in text.split(":"))
            actual = m.read(MASKED_FIELDS[key]) & mask
        elif key == "vector":
            want, actual = int(text, 0), (m.read(RIP) - HANDLERS) // HANDLER_SIZE
        elif key == "cpl":
            want, actual = int(text, 0), m.read(0x4818) >> 5 & 3
        elif key == "rip":
            want, actual = self.symbols.get(text, CODE if text == "start" else -1), m.read(RIP)
        elif key == "stack0":
            want, actual = self.value(text), m.peek64(m.read(RSP))
        elif key == "entryinfo_valid":
            want, actual = int(text, 0), m.read(0x4016) >> 31 & 1
        elif key in GPRS:
            want, actual = int(text, 0), m.gpr(GPRS[key])
        else:
            want, actual = int(text, 0), m.read(EXIT_FIELDS[key])
        assert actual == want, f"{self.reason}: {key} is {actual:#x}, expected {want:#x}"

    # --- after an exit --------------------------------------------------------------------------

    def _do(self, what: str, *words: str) -> None:
        m = self.machine
        if what == "reg":
            value = self.value(words[2])
            if words[0] == "rsp":
                m.write(RSP, value)
            elif words[0] in GPRS:
                m.set_gpr(GPRS[words[0]], value)
            else:
                m.set_state(words[0], value)
            return
        self.skip = False
        if what == "skip":
            m.write(RIP, m.read(RIP) + int(words[0]))
        elif what == "rip":
            m.write(RIP, self.value(words[1]))
        elif what == "iret":
            m.write(RIP, 0x5FF0)
        elif what == "skiphandler":  # return from an exception with an error code, past the instruction
            frame = m.read(RSP)
            m.write(RIP, m.peek64(frame + 8) + int(words[0]))
            m.write(RSP, m.peek64(frame + 32))
            m.write(RFLAGS, m.peek64(frame + 24))
        else:
            raise AssertionError(f"unknown verb: do {what}")

    def _check(self, what: str, *words: str) -> None:
        m = self.machine
        if what == "ept":
            mask, want = (int(t, 0) for t in words[1].split(":"))
            actual = m.ept_entry(int(words[0], 0)) & mask
        elif what == "field":
            parts = words[1].split(":")
            mask, want = MASK64 if len(parts) == 1 else int(parts[0], 0), int(parts[-1], 0)
            actual = m.read(int(words[0], 0)) & mask
        elif what == "shadow":
            want, actual = int(words[1], 0), m.peek64(self._shadow_slot(words[0]))
            assert m.peek64(m.shadow_pa + 16), "the written mask is empty"
        elif what == "vapic":
            want = int(words[1], 0)
            actual = m.peek64(m.host_areas["vapic"] + int(words[0], 0)) & 0xFFFFFFFF
        elif what == "descriptor":
            want, actual = int(words[1], 0), m.peek64(m.host_areas["descriptor"] + int(words[0], 0))
        elif what == "gpa8":
            want, actual = int(words[1], 0), m.peek64(int(words[0], 0))
        elif what == "state":
            want, actual = int(words[1], 0), m.state(words[0])
        elif what == "exitmsr":
            want, actual = int(words[0], 0), m.peek64(m.host_areas["exitmsr"] + 8)
        else:
            raise AssertionError(f"unknown verb: check {what}")
        assert actual == want, f"{what} {' '.join(words)}: is {actual:#x}"
