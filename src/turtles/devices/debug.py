"""Small ports for tests and firmware: debug exit, debug console, POST code.

They have no counterpart in real chipsets except the POST port; QEMU and Bochs made the others customary.
"""

from __future__ import annotations

from collections.abc import Callable


class DebugExit:
    """isa-debug-exit: a write of V ends the machine with status (V << 1) | 1."""

    def __init__(self, stop: Callable[[int], None]) -> None:
        self._stop = stop

    def read(self, offset: int, width: int) -> int:
        """Reads are zero, as QEMU's."""
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """End the machine; `stop` gets the value V."""
        self._stop(value)


class DebugConsole:
    """Port E9h: bytes written appear at the sink, gathered to lines; reads give E9h, by which it is known."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._line = bytearray()

    def read(self, offset: int, width: int) -> int:
        """The signature."""
        return 0xE9

    def write(self, offset: int, width: int, value: int) -> None:
        """One character."""
        self._line.append(value & 0xFF)
        if value & 0xFF == 0x0A or len(self._line) >= 256:
            self.flush()

    def flush(self) -> None:
        """Hand over an unfinished line."""
        if self._line:
            line = bytes(self._line)
            self._line.clear()
            self._sink(line)


class PostCode:
    """Port 80h: the last code a power-on self test showed. Kernels write it to wait a microsecond."""

    def __init__(self) -> None:
        self.code = 0

    def read(self, offset: int, width: int) -> int:
        """The last code."""
        return self.code & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """Show a code."""
        self.code = value
