"""I/O APIC (82093AA with the EOI register of its successors): 24 pins, a redirection entry each.

Turns line levels into messages on the APIC bus. Polarity is stored but a line's level here always means
asserted; the delivery-status bit always reads idle, since a message arrives at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from turtles.devices.interfaces import EXTINT, FIXED, LOWEST_PRIORITY, InterruptMessage

PINS: Final = 24
IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
EOI: Final = 0x40
ID: Final = 0x00
VERSION: Final = 0x01
ARBITRATION: Final = 0x02
REDIRECTION: Final = 0x10

REMOTE_IRR: Final = 1 << 14
LEVEL: Final = 1 << 15
MASKED: Final = 1 << 16
READ_ONLY: Final = REMOTE_IRR | 1 << 12
ENTRY_BITS: Final = 0xFF00_0000_0001_FFFF


class IoApic:
    """The controller. `send` puts a message on the APIC bus."""

    def __init__(self, send: Callable[[InterruptMessage], None], identity: int = 0) -> None:
        self._send = send
        self._id = identity
        self._select = 0
        self._entries = [MASKED] * PINS
        self._lines = 0

    def set_pin(self, pin: int, level: bool) -> None:
        """An input pin changes."""
        bit = 1 << pin
        rising = level and not self._lines & bit
        if level:
            self._lines |= bit
        else:
            self._lines &= ~bit
        entry = self._entries[pin]
        if entry & LEVEL:
            self._service_level(pin)
        elif rising and not entry & MASKED:
            self._deliver(pin)

    def eoi(self, vector: int) -> None:
        """A local APIC's EOI broadcast, or a write to the EOI register."""
        for pin, entry in enumerate(self._entries):
            if entry & 0xFF == vector and entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR:
                self._entries[pin] = entry & ~REMOTE_IRR
                self._service_level(pin)

    def _service_level(self, pin: int) -> None:
        """A level pin delivers once, then waits for the EOI (Remote IRR)."""
        if self._lines >> pin & 1 and not self._entries[pin] & (MASKED | REMOTE_IRR):
            if self._entries[pin] >> 8 & 7 in (FIXED, LOWEST_PRIORITY):
                self._entries[pin] |= REMOTE_IRR
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        entry = self._entries[pin]
        delivery = entry >> 8 & 7
        self._send(
            InterruptMessage(
                vector=entry & 0xFF,
                delivery=delivery,
                destination=entry >> 56,
                logical=bool(entry & 1 << 11),
                level=bool(entry & LEVEL) and delivery != EXTINT,
            )
        )

    # --- registers ---

    def read(self, offset: int, width: int) -> int:
        """IOREGSEL and IOWIN, 32 bits each."""
        offset &= 0xFF
        if offset == IOREGSEL:
            return self._select
        if offset != IOWIN:
            return 0
        index = self._select
        if index in (ID, ARBITRATION):
            return self._id << 24
        if index == VERSION:
            return (PINS - 1) << 16 | 0x20
        pin = index - REDIRECTION >> 1
        if 0 <= pin < PINS:
            return self._entries[pin] >> (32 if index & 1 else 0) & 0xFFFF_FFFF
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """IOREGSEL, IOWIN and EOI, 32 bits each."""
        offset &= 0xFF
        value &= 0xFFFF_FFFF
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == EOI:
            self.eoi(value & 0xFF)
        elif offset == IOWIN:
            if self._select == ID:
                self._id = value >> 24 & 0x0F
            elif self._select >= REDIRECTION:
                self._write_entry(self._select - REDIRECTION >> 1, bool(self._select & 1), value)

    def _write_entry(self, pin: int, high: bool, value: int) -> None:
        if pin >= PINS:
            return
        entry = self._entries[pin]
        if high:
            entry = entry & 0xFFFF_FFFF | value << 32
        else:
            entry = entry & ~0xFFFF_FFFF | value & ~READ_ONLY | entry & READ_ONLY
            if not entry & LEVEL:
                entry &= ~REMOTE_IRR
        self._entries[pin] = entry & ENTRY_BITS
        if entry & LEVEL:
            self._service_level(pin)
