"""The address map of the machine: every number here once, with the line that derives it.

Guest-physical addresses of L1 (`l1_pa`) and I/O ports. Which device sits behind them is wired in `board.py`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# --- below 1 MiB: as a PC's firmware leaves it ---

BIOS_DATA = 0x400
"""BIOS data area: fixed by the PC."""
EBDA = 0x9_FC00
"""Extended BIOS data area: the last KiB below 640 KiB."""
LEGACY_HOLE = 0xA_0000
"""640 KiB: where RAM ends for real-mode software; VGA memory and option ROMs on a PC."""
ACPI_TABLES = 0xE_0000
"""Start of the area in which software looks for the RSDP (ACPI 6.4, 5.2.5.1)."""
LEGACY_END = 0x10_0000
"""1 MiB: end of the area for firmware and ACPI tables, RAM again from here."""

# --- below 4 GiB ---

LOW_RAM_LIMIT = 3 * GIB
"""RAM below 4 GiB ends here at the latest; the rest of the space is for devices."""
PCI_WINDOW = LOW_RAM_LIMIT
"""Window for PCI BARs: right above the low RAM …"""
ECAM = 0xE000_0000
"""… up to PCI configuration space, …"""
ECAM_BUSES = 1
ECAM_SIZE = ECAM_BUSES * MIB
"""… with 1 MiB for a bus. There are no bridges, and of further buses Linux would ask each slot, by port."""
PCI_WINDOW_END = ECAM
IO_APIC = 0xFEC0_0000
"""I/O APIC: its customary place (82093AA, 3.0)."""
IO_APIC_SIZE = 0x1000
LOCAL_APIC = 0xFEE0_0000
"""Local APIC and MSI area: IA32_APIC_BASE at reset (SDM 11.4.1)."""
LOCAL_APIC_SIZE = 0x1000
TEST_MEMORY = 0xFF00_0000
"""Memory of QEMU's pc-testdev."""
HIGH_RAM = 4 * GIB
"""RAM that does not fit below LOW_RAM_LIMIT goes on here."""

# --- above RAM ---

ADDRESS_BITS = 40
"""MAXPHYADDR of the processor (CPUID 80000008H)."""
PCI_WINDOW_64 = 1 << (ADDRESS_BITS - 1)
"""Window for 64-bit BARs: the upper half of the address space (512 GiB) …"""
PCI_WINDOW_64_SIZE = 64 * GIB
"""… of which 64 GiB are plenty."""
MAX_RAM = PCI_WINDOW_64 - HIGH_RAM + LOW_RAM_LIMIT
"""RAM above 4 GiB ends where the window begins."""

# --- I/O ports: the PC's, unless a line says otherwise ---

PORT_PIC_MASTER, PORT_PIC_SLAVE, PORT_ELCR = 0x20, 0xA0, 0x4D0
PORT_PIT, PORT_SYSTEM_CONTROL_B = 0x40, 0x61
PORT_KEYBOARD = 0x60
"""i8042 data; its command and status port is 4 above."""
PORT_RTC = 0x70
PORT_POST = 0x80
PORT_DEBUG_CONSOLE = 0xE9
PORT_DEBUG_EXIT = 0xF4
"""isa-debug-exit: customary in QEMU test set-ups; the command line can move it."""
PORT_TEST, PORT_TEST_LINES = 0xE0, 0x2000
"""QEMU's pc-testdev: a register (and, 8 above, one of a byte), and a port for each interrupt line."""
PORT_COM1 = 0x3F8
PORT_FW_CFG, PORT_FW_CFG_DMA = 0x510, 0x514
"""QEMU's fw_cfg on x86."""
PORT_ACPI_PM = 0x600
"""ACPI PM1a event and control blocks and the PM timer: anywhere above the ISA ports; the FADT tells."""
PORT_PCI_CONFIG = 0xCF8
PORT_RESET_CONTROL = 0xCF9

# --- interrupts: global system interrupt numbers = I/O APIC pins ---

IRQ_TIMER, IRQ_KEYBOARD, IRQ_COM1, IRQ_RTC, IRQ_SCI = 0, 1, 4, 8, 9
PIN_TIMER = 2
ISA_IRQS = 16
"""The 8254 is on pin 2 (pin 0 is for the 8259's output): said by an override in the MADT."""
PCI_PINS = (16, 17, 18, 19)
"""INTA# to INTD# after the slots' rotation: the first pins above the ISA interrupts."""
PCI_IRQS = (10, 11, 10, 11)
"""The same four as ISA interrupts, for software that uses the 8259s."""
PCI_DEVICES = 32


class MemoryKind(enum.IntEnum):
    """Types of an e820 entry (ACPI 6.4, table 15.3)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class E820Entry(NamedTuple):
    """A range of guest-physical addresses and what is there."""

    start: int
    size: int
    kind: MemoryKind


def low_ram(ram_size: int) -> int:
    """Bytes of RAM below the hole."""
    return min(ram_size, LOW_RAM_LIMIT)


def high_ram(ram_size: int) -> int:
    """Bytes of RAM above 4 GiB."""
    return ram_size - low_ram(ram_size)


def host_pa(l1_pa: int, ram_size: int) -> int | None:
    """Where a byte of L1's RAM lies in the machine's memory: low RAM first, then high; None outside RAM."""
    if 0 <= l1_pa < low_ram(ram_size):
        return l1_pa
    if HIGH_RAM <= l1_pa < HIGH_RAM + high_ram(ram_size):
        return l1_pa - HIGH_RAM + LOW_RAM_LIMIT
    return None


def ram_ranges(ram_size: int) -> list[tuple[int, int, int]]:
    """(l1_pa, host_pa, size) of each piece of RAM: what ept01 maps."""
    ranges = [(0, 0, low_ram(ram_size))]
    if high_ram(ram_size):
        ranges.append((HIGH_RAM, LOW_RAM_LIMIT, high_ram(ram_size)))
    return ranges


def e820(ram_size: int) -> list[E820Entry]:
    """The memory map that firmware would report."""
    entries = [
        E820Entry(0, EBDA, MemoryKind.RAM),
        E820Entry(EBDA, LEGACY_HOLE - EBDA, MemoryKind.RESERVED),
        E820Entry(ACPI_TABLES, LEGACY_END - ACPI_TABLES, MemoryKind.RESERVED),
        E820Entry(LEGACY_END, low_ram(ram_size) - LEGACY_END, MemoryKind.RAM),
        E820Entry(ECAM, ECAM_SIZE, MemoryKind.RESERVED),
        E820Entry(IO_APIC, IO_APIC_SIZE, MemoryKind.RESERVED),
        E820Entry(LOCAL_APIC, LOCAL_APIC_SIZE, MemoryKind.RESERVED),
    ]
    if high_ram(ram_size):
        entries.append(E820Entry(HIGH_RAM, high_ram(ram_size), MemoryKind.RAM))
    return [entry for entry in entries if entry.size]
