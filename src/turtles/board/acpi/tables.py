"""The ACPI tables (ACPI 6.4, chapter 5), complete with addresses and checksums, as one image.

RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, MCFG. The machine is in ACPI mode from the start (no SMI command
port) and is not hardware-reduced.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from turtles.board import layout
from turtles.board.acpi.dsdt import definition_block
from turtles.devices.acpi_pm import CONTROL, STATUS, TIMER
from turtles.devices.ioapic import PINS

OEM_ID, OEM_TABLE_ID, CREATOR = b"TURTLE", b"TURTLES ", b"TRTL"
HEADER_BYTES = 36

# FADT flags (table 5.10).
_WBINVD, _PROC_C1, _SLEEP_BUTTON_NOT_FIXED, _RTC_NOT_FIXED = 1 << 0, 1 << 2, 1 << 5, 1 << 6
_TIMER_32BIT, _RESET_REGISTER = 1 << 8, 1 << 10
# IA-PC boot architecture flags (table 5.11).
_LEGACY_DEVICES, _I8042, _NO_VGA = 1 << 0, 1 << 1, 1 << 2

RESET_VALUE = 0x06


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (5.2.6)."""
    data = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            signature,
            HEADER_BYTES + len(body),
            revision,
            0,
            OEM_ID,
            OEM_TABLE_ID,
            1,
            CREATOR,
            1,
        )
        + body
    )
    data[9] = _checksum(data)
    return bytes(data)


def _io_register(port: int, bits: int) -> bytes:
    """Generic Address Structure of I/O ports (5.2.3.2); all zero for none."""
    if not bits:
        return bytes(12)
    access = {8: 1, 16: 2, 32: 3}[bits]
    return struct.pack("<BBBBQ", 1, bits, 0, access, port)


def fadt(facs: int, dsdt: int) -> bytes:
    """Fixed ACPI Description Table, revision 3 (5.2.9)."""
    events, control, timer = (layout.PORT_ACPI_PM + offset for offset in (STATUS, CONTROL, TIMER))
    flags = _WBINVD | _PROC_C1 | _SLEEP_BUTTON_NOT_FIXED | _RTC_NOT_FIXED | _TIMER_32BIT | _RESET_REGISTER
    body = struct.pack("<IIBBHIBBBB", facs, dsdt, 0, 0, layout.IRQ_SCI, 0, 0, 0, 0, 0)
    body += struct.pack("<8I", events, 0, control, 0, 0, timer, 0, 0)
    body += struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0)
    # Latencies above 100 and 1000 µs: no C2, no C3. CMOS byte 32h holds the century.
    body += struct.pack("<HHHHBBBBB", 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, 0x32)
    body += struct.pack("<HBI", _LEGACY_DEVICES | _I8042 | _NO_VGA, 0, flags)
    body += _io_register(layout.PORT_RESET_CONTROL, 8) + bytes((RESET_VALUE, 0, 0, 0))
    body += struct.pack("<QQ", 0, dsdt)
    for port, bits in ((events, 32), (0, 0), (control, 16), (0, 0), (0, 0), (timer, 32), (0, 0), (0, 0)):
        body += _io_register(port, bits)
    return _table(b"FACP", 3, body)


def madt(processors: int) -> bytes:
    """Multiple APIC Description Table (5.2.12)."""
    body = struct.pack("<II", layout.LOCAL_APIC, 1)  # 1: the 8259 pair is there too
    for number in range(processors):
        body += struct.pack("<BBBBI", 0, 8, number, number, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, layout.IO_APIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, layout.IRQ_TIMER, layout.PIN_TIMER, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, layout.IRQ_SCI, layout.IRQ_SCI, 0xD)  # level, active high
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI is on every processor's LINT1
    assert max(layout.PCI_PINS) < PINS
    return _table(b"APIC", 3, body)


def mcfg() -> bytes:
    """PCI Express memory-mapped configuration (PCI Firmware 3.0, 4.1.2)."""
    return _table(b"MCFG", 1, bytes(8) + struct.pack("<QHBBI", layout.ECAM, 0, 0, layout.ECAM_BUSES - 1, 0))


def facs() -> bytes:
    """Firmware ACPI Control Structure (5.2.10): no checksum, 64-byte aligned."""
    return struct.pack("<4sI", b"FACS", 64) + bytes(24) + b"\x01" + bytes(31)


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """Root System Description Pointer, revision 2 (5.2.5.3)."""
    data = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM_ID, 2, rsdt))
    data[8] = _checksum(data)
    data += struct.pack("<IQB3x", 36, xsdt, 0)
    data[32] = _checksum(data)
    return bytes(data)


@dataclass(frozen=True)
class Tables:
    """All tables as they lie in memory from `base` on, the RSDP first."""

    base: int
    image: bytes
    parts: dict[str, tuple[int, int]]
    """Address and size of each table, by signature."""

    def part(self, signature: str) -> bytes:
        """One table's bytes."""
        address, size = self.parts[signature]
        return self.image[address - self.base : address - self.base + size]


def build(processors: int = 1, base: int = layout.ACPI_TABLES) -> Tables:
    """Lay out the tables at `base`, in the area in which software looks for them."""
    image = bytearray(64)  # the RSDP's place
    parts: dict[str, tuple[int, int]] = {}

    def place(signature: str, data: bytes) -> int:
        image.extend(bytes(-len(image) % 64))
        address = base + len(image)
        image.extend(data)
        parts[signature] = (address, len(data))
        return address

    facs_at = place("FACS", facs())
    dsdt_at = place("DSDT", _table(b"DSDT", 2, definition_block(processors)))
    entries = [place("FACP", fadt(facs_at, dsdt_at)), place("APIC", madt(processors)), place("MCFG", mcfg())]
    rsdt_at = place("RSDT", _table(b"RSDT", 1, struct.pack(f"<{len(entries)}I", *entries)))
    xsdt_at = place("XSDT", _table(b"XSDT", 1, struct.pack(f"<{len(entries)}Q", *entries)))
    pointer = rsdp(rsdt_at, xsdt_at)
    image[: len(pointer)] = pointer
    parts["RSDP"] = (base, len(pointer))
    if base + len(image) > layout.LEGACY_END:
        raise ValueError(f"ACPI tables of {len(image)} bytes do not fit below 1 MiB")
    return Tables(base, bytes(image), parts)
