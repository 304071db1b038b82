"""The DSDT's definition block: sleep state S5, the PCI root bridge, the ISA devices, the processors.

PCI interrupts are wired to I/O APIC pins, or to ISA interrupts for an operating system that says (by \\_PIC)
that it uses the 8259s. There are no power resources, no thermal zones and no general-purpose events.
"""

from __future__ import annotations

from turtles.board import layout
from turtles.board.acpi import aml
from turtles.devices.acpi_pm import BLOCK_SIZE, S5_TYPE


def _routing(table: tuple[int, ...]) -> bytes:
    """_PRT: device and pin to interrupt, rotated by the device number as PC boards do."""
    return aml.package(
        *(
            aml.package(
                aml.integer(device << 16 | 0xFFFF),
                aml.integer(pin),
                aml.ZERO,
                aml.integer(table[(device + pin) % 4]),
            )
            for device in range(layout.PCI_DEVICES)
            for pin in range(4)
        )
    )


def _root_bridge() -> bytes:
    window64_end = layout.PCI_WINDOW_64 + layout.PCI_WINDOW_64_SIZE
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, layout.ECAM_BUSES - 1),
                aml.io(layout.PORT_PCI_CONFIG, 8),
                aml.io_window(0, layout.PORT_PCI_CONFIG - 1),
                aml.io_window(layout.PORT_PCI_CONFIG + 8, 0xFFFF),
                aml.memory_window32(layout.PCI_WINDOW, layout.PCI_WINDOW_END - 1),
                aml.memory_window64(layout.PCI_WINDOW_64, window64_end - 1),
            ),
        ),
        aml.name("PRTA", _routing(layout.PCI_PINS)),
        aml.name("PRTP", _routing(layout.PCI_IRQS)),
        aml.method(
            "_PRT",
            0,
            aml.if_(aml.name_string("PICF"), aml.return_(aml.name_string("PRTA"))),
            aml.return_(aml.name_string("PRTP")),
        ),
    )


def _isa(name: str, identity: bytes, *resources: bytes, uid: int = 0) -> bytes:
    return aml.device(
        name,
        aml.name("_HID", identity),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CRS", aml.resources(*resources)),
    )


def definition_block(processors: int) -> bytes:
    """The AML of the DSDT."""
    return b"".join(
        (
            aml.name("\\_S5", aml.package(aml.integer(S5_TYPE), aml.integer(S5_TYPE), aml.ZERO, aml.ZERO)),
            aml.name("\\PICF", aml.ZERO),
            aml.method("\\_PIC", 1, aml.store(aml.arg(0), aml.name_string("\\PICF"))),
            aml.scope(
                "\\_SB",
                _root_bridge(),
                _isa("RTC", aml.eisa_id("PNP0B00"), aml.io(layout.PORT_RTC, 2), aml.irq(layout.IRQ_RTC)),
                _isa(
                    "KBD",
                    aml.eisa_id("PNP0303"),
                    aml.io(layout.PORT_KEYBOARD, 1),
                    aml.io(layout.PORT_KEYBOARD + 4, 1),
                    aml.irq(layout.IRQ_KEYBOARD),
                ),
                _isa(
                    "COM1",
                    aml.eisa_id("PNP0501"),
                    aml.io(layout.PORT_COM1, 8),
                    aml.irq(layout.IRQ_COM1),
                    uid=1,
                ),
                _isa("FWCF", aml.string("QEMU0002"), aml.io(layout.PORT_FW_CFG, 12)),
                # What no other device claims: an operating system uses ECAM only where it is reserved here.
                _isa(
                    "MRES",
                    aml.eisa_id("PNP0C02"),
                    aml.io(layout.PORT_ACPI_PM, BLOCK_SIZE),
                    aml.io(layout.PORT_ELCR, 2),
                    aml.memory32(layout.ECAM, layout.ECAM_SIZE),
                ),
                *(
                    aml.device(
                        f"C{number:03X}",
                        aml.name("_HID", aml.string("ACPI0007")),
                        aml.name("_UID", aml.integer(number)),
                    )
                    for number in range(processors)
                ),
            ),
        )
    )
