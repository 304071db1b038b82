"""MSI-X (PCI 3.0, section 6.8.2): the table of messages, the pending bits, the capability's control word.

A message is sent at once, or kept as a pending bit while its vector or the function is masked. What lies in a
table entry is the guest's affair: an address that is not the APICs' reaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable

ENTRY_BYTES = 16
CONTROL_ENABLE, CONTROL_MASK_ALL = 0x8000, 0x4000
CAPABILITY = 0x11


class Msix:
    """Table and pending bits of one function. `send(address, data)` performs the memory write."""

    def __init__(self, vectors: int, send: Callable[[int, int], None]) -> None:
        self.vectors = vectors
        self._send = send
        self._table = bytearray(ENTRY_BYTES * vectors)
        for vector in range(vectors):
            self._table[ENTRY_BYTES * vector + 12] = 1  # masked at reset
        self._pending = 0
        self._enabled = False
        self._all_masked = False

    @property
    def enabled(self) -> bool:
        """MSI-X is on (INTx is not used then)."""
        return self._enabled

    def set_control(self, control: int) -> None:
        """The message control word of the capability changed."""
        self._enabled = bool(control & CONTROL_ENABLE)
        self._all_masked = bool(control & CONTROL_MASK_ALL)
        self._send_pending()

    def notify(self, vector: int) -> None:
        """Send the message of a vector; one out of range (0xFFFF: none) does nothing."""
        if not self._enabled or vector >= self.vectors:
            return
        base = ENTRY_BYTES * vector
        if self._all_masked or self._table[base + 12] & 1:
            self._pending |= 1 << vector
            return
        self._pending &= ~(1 << vector)
        address = int.from_bytes(self._table[base : base + 8], "little")
        self._send(address, int.from_bytes(self._table[base + 8 : base + 12], "little"))

    def _send_pending(self) -> None:
        if not self._enabled or self._all_masked or not self._pending:
            return
        for vector in range(self.vectors):
            if self._pending >> vector & 1 and not self._table[ENTRY_BYTES * vector + 12] & 1:
                self.notify(vector)

    def read_table(self, offset: int, width: int) -> int:
        """The table, zero beyond its end."""
        return int.from_bytes(self._table[offset : offset + width], "little")

    def write_table(self, offset: int, width: int, value: int) -> None:
        """Entries take 32- and 64-bit accesses; others have no defined effect and none here."""
        if width not in (4, 8) or offset % width or offset + width > len(self._table):
            return
        self._table[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        self._send_pending()

    def read_pending(self, offset: int, width: int) -> int:
        """The pending bit array."""
        return self._pending >> 8 * offset & (1 << 8 * width) - 1
