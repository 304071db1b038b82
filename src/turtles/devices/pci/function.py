"""A PCI function: its 256 bytes of configuration space, base address registers and capabilities.

A BAR holds whatever the guest writes; whether an access reaches it is the host bridge's business. There is no
PCI Express capability, so extended configuration space reads as ones. Bus mastering is always possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from turtles.devices.interfaces import Line, no_line

VENDOR, DEVICE, COMMAND, STATUS, REVISION, CLASS = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
HEADER_TYPE, BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM, CAPABILITIES = 0x0E, 0x10, 0x2C, 0x2E, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1, 2, 4, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x08, 0x10

BAR_64BIT, BAR_PREFETCHABLE = 4, 8
FIRST_CAPABILITY = 0x40
SPACE = 256


class Region(Protocol):
    """What lies behind a BAR."""

    def read(self, offset: int, width: int) -> int:
        """Read 1 to 8 bytes."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write 1 to 8 bytes."""
        ...


@dataclass
class Bar:
    """A 64-bit memory BAR: two registers from `index` on."""

    index: int
    size: int
    region: Region


class PciFunction:
    """Configuration header type 0. Subclasses add BARs and capabilities in their constructors."""

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
    ) -> None:
        self.config = bytearray(SPACE)
        self._writable = bytearray(SPACE)
        self.bars: list[Bar] = []
        self.intx: Line = no_line
        self._intx_asserted = False
        self._intx_level = False
        self._last_capability = 0
        self._next_capability = FIRST_CAPABILITY
        self._put(VENDOR, 2, vendor)
        self._put(DEVICE, 2, device)
        self._put(REVISION, 1, revision)
        self._put(CLASS, 3, class_code)
        self._put(SUBSYSTEM_VENDOR, 2, subsystem_vendor)
        self._put(SUBSYSTEM, 2, subsystem)
        self._allow(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE)
        self._allow(INTERRUPT_LINE, 1, 0xFF)
        self._allow(0x0C, 1, 0xFF)  # cache line size

    # --- construction ---

    def _put(self, offset: int, width: int, value: int) -> None:
        self.config[offset : offset + width] = value.to_bytes(width, "little")

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self.config[offset : offset + width], "little")

    def _allow(self, offset: int, width: int, mask: int) -> None:
        self._writable[offset : offset + width] = mask.to_bytes(width, "little")

    def add_bar(self, index: int, size: int, region: Region) -> None:
        """A 64-bit prefetchable memory BAR in registers `index` and `index` + 1; `size` is a power of two."""
        self.bars.append(Bar(index, size, region))
        offset = BAR0 + 4 * index
        self._put(offset, 8, BAR_64BIT | BAR_PREFETCHABLE)
        self._allow(offset, 8, (1 << 64) - size)

    def add_capability(self, identity: int, body: bytes, writable: bytes = b"") -> int:
        """Append to the capability list; `writable` masks the bytes of `body`. Returns its offset."""
        offset = self._next_capability
        if offset + 2 + len(body) > SPACE:
            raise ValueError("PCI configuration space has no room for another capability")
        self.config[offset] = identity
        self.config[offset + 2 : offset + 2 + len(body)] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self.config[self._last_capability + 1 if self._last_capability else CAPABILITIES] = offset
        self.config[STATUS] |= STATUS_CAPABILITIES
        self._last_capability = offset
        self._next_capability = (offset + 2 + len(body) + 3) & ~3
        return offset

    def use_interrupt_pin(self, pin: int, line: int) -> None:
        """INTA# = 1 … INTD# = 4, and the line register as firmware leaves it."""
        self._put(INTERRUPT_PIN, 1, pin)
        self._put(INTERRUPT_LINE, 1, line)

    # --- configuration space ---

    def config_read(self, offset: int, width: int) -> int:
        """Read 1, 2 or 4 bytes; beyond 256 bytes there is nothing, which reads as ones."""
        if offset + width > SPACE:
            return (1 << 8 * width) - 1
        return self._get(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """Write the bits that are writable."""
        if offset + width > SPACE:
            return
        for i in range(width):
            mask = self._writable[offset + i]
            new = value >> 8 * i & 0xFF
            self.config[offset + i] = self.config[offset + i] & ~mask | new & mask
        self._drive_intx()

    def bar_address(self, bar: Bar) -> int:
        """Where a BAR decodes; -1 while memory space is off."""
        if not self.config[COMMAND] & COMMAND_MEMORY:
            return -1
        return self._get(BAR0 + 4 * bar.index, 8) & ~0xF

    def place_bar(self, bar: Bar, address: int) -> None:
        """Give a BAR its address, as firmware does, and turn memory space and bus mastering on."""
        self._put(BAR0 + 4 * bar.index, 8, address | BAR_64BIT | BAR_PREFETCHABLE)
        self.config[COMMAND] |= COMMAND_MEMORY | COMMAND_MASTER

    # --- INTx ---

    def set_intx(self, asserted: bool) -> None:
        """The function wants its interrupt pin so."""
        self._intx_asserted = asserted
        self._drive_intx()

    def _drive_intx(self) -> None:
        if self._intx_asserted:
            self.config[STATUS] |= STATUS_INTERRUPT
        else:
            self.config[STATUS] &= ~STATUS_INTERRUPT
        level = self._intx_asserted and not self._get(COMMAND, 2) & COMMAND_INTX_DISABLE
        if level != self._intx_level:
            self._intx_level = level
            self.intx(level)
