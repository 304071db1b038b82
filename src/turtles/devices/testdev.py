"""QEMU's pc-testdev: a register to read back, interrupt lines to pull, memory whose accesses exit.

Programs that test processors use it. Its port that makes an emulator drop cached translations is not there:
there is nothing to drop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from turtles.devices.interfaces import Line


class TestDevice:
    """The device; `lines` are the interrupt lines that it may pull."""

    __test__ = False  # for pytest: a device, not a test
    SIZE: Final = 0x1_0000

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self._register = bytearray(4)
        self._memory = bytearray(self.SIZE)

    def read(self, offset: int, width: int) -> int:
        """The register, from a byte of it on."""
        at = offset & 3
        return int.from_bytes(self._register[at : at + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """The same for a write."""
        at = offset & 3
        end = min(at + width, 4)
        self._register[at:end] = value.to_bytes(width, "little")[: end - at]

    def set_line(self, offset: int, width: int, value: int) -> None:
        """Pull interrupt line `offset`, or let go of it."""
        self._lines[offset](bool(value))

    def read_memory(self, offset: int, width: int) -> int:
        """A load."""
        return int.from_bytes(self._memory[offset : offset + width], "little")

    def write_memory(self, offset: int, width: int, value: int) -> None:
        """A store."""
        self._memory[offset : offset + width] = value.to_bytes(width, "little")
