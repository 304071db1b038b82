"""L1's RAM as the devices and loaders see it: by guest-physical address, bounds checked.

Implements the devices' `GuestMemory` over silicon's `Memory`. An access may not leave RAM, nor run across the
end of low RAM into the hole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from turtles.board import layout
from turtles.devices.interfaces import GuestMemoryError


class HostMemory(Protocol):
    """What is needed of silicon's `Memory`: bytes by host-physical address."""

    def read(self, pa: int, length: int, /) -> bytes:
        """Bytes at a host-physical address."""
        ...

    def write(self, pa: int, data: bytes, /) -> None:
        """Store bytes; drops decoded code and marks pages dirty."""
        ...


class L1Memory:
    """RAM of a machine with `ram_size` bytes."""

    def __init__(self, memory: HostMemory, ram_size: int) -> None:
        self._memory = memory
        self.ram_size = ram_size
        self._low_end = layout.low_ram(ram_size)
        self._high_end = layout.HIGH_RAM + layout.high_ram(ram_size)
        # Who is told of stores, by address and length, after each: a hypervisor that follows tables in RAM.
        self.on_write: Callable[[int, int], None] | None = None

    def host_pa(self, address: int, length: int) -> int:
        """Host-physical address of a range that lies in RAM; raises `GuestMemoryError` for another."""
        if address >= 0 and address + length <= self._low_end:
            return address
        if address >= layout.HIGH_RAM and address + length <= self._high_end:
            return address - layout.HIGH_RAM + layout.LOW_RAM_LIMIT
        raise GuestMemoryError(f"{length} bytes at {address:#x}")

    def read(self, address: int, length: int) -> bytes:
        """The bytes at a guest-physical address."""
        return self._memory.read(self.host_pa(address, length), length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a guest-physical address, all or none."""
        self._memory.write(self.host_pa(address, len(data)), bytes(data))
        if self.on_write is not None:
            self.on_write(address, len(data))
