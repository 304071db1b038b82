"""The buses: which device answers at an I/O port or a physical address. Where none does, all bits are ones.

An access is wholly one device's or nobody's; one that straddles two devices' ports is split into bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]


class Device(Protocol):
    """What can sit on a bus."""

    def read(self, offset: int, width: int) -> int:
        """Read `width` bytes at an offset from the device's base."""
        ...

    def write(self, offset: int, width: int, value: int) -> None:
        """Write `width` bytes at an offset from the device's base."""
        ...


def ones(width: int) -> int:
    """What an undriven bus reads as."""
    return (1 << 8 * width) - 1


class PortBus:
    """The 65,536 I/O ports."""

    def __init__(self) -> None:
        self._ports: dict[int, tuple[int, Read, Write]] = {}

    def attach(self, base: int, count: int, read: Read, write: Write) -> None:
        """Give ports `base` … `base` + `count` - 1 to a device's read and write."""
        for port in range(base, base + count):
            if port in self._ports:
                raise ValueError(f"port {port:#x} is taken")
            self._ports[port] = (base, read, write)

    def attach_device(self, base: int, count: int, device: Device) -> None:
        """The same for a device that has one range."""
        self.attach(base, count, device.read, device.write)

    def detach(self, base: int, count: int) -> None:
        """Free ports."""
        for port in range(base, base + count):
            self._ports.pop(port, None)

    def read(self, port: int, width: int) -> int:
        """IN."""
        entry = self._ports.get(port)
        if width == 1:
            return 0xFF if entry is None else entry[1](port - entry[0], 1) & 0xFF
        if entry is not None and self._ports.get(port + width - 1) == entry:
            return entry[1](port - entry[0], width) & ones(width)
        if entry is None and all(port + i not in self._ports for i in range(width)):
            return ones(width)
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(width))

    def write(self, port: int, width: int, value: int) -> None:
        """OUT."""
        entry = self._ports.get(port)
        if width == 1:
            if entry is not None:
                entry[2](port - entry[0], 1, value & 0xFF)
        elif entry is not None and self._ports.get(port + width - 1) == entry:
            entry[2](port - entry[0], width, value & ones(width))
        else:
            for i in range(width):
                self.write(port + i & 0xFFFF, 1, value >> 8 * i & 0xFF)


class MmioBus:
    """Physical addresses outside RAM."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[tuple[int, Read, Write]] = []  # end, read, write; sorted like _starts

    def attach(self, base: int, size: int, read: Read, write: Write) -> None:
        """Give `size` bytes at `base` to a device's read and write."""
        i = bisect_right(self._starts, base)
        if (i and self._regions[i - 1][0] > base) or (
            i < len(self._starts) and self._starts[i] < base + size
        ):
            raise ValueError(f"addresses {base:#x} to {base + size - 1:#x} are taken")
        self._starts.insert(i, base)
        self._regions.insert(i, (base + size, read, write))

    def detach(self, base: int) -> None:
        """Free the addresses that were attached at `base`."""
        i = self._starts.index(base)
        del self._starts[i], self._regions[i]

    def read(self, l1_pa: int, width: int) -> int:
        """Load."""
        i = bisect_right(self._starts, l1_pa) - 1
        if i >= 0:
            end, read, _ = self._regions[i]
            if l1_pa + width <= end:
                return read(l1_pa - self._starts[i], width) & ones(width)
        return ones(width)

    def write(self, l1_pa: int, width: int, value: int) -> None:
        """Store."""
        i = bisect_right(self._starts, l1_pa) - 1
        if i >= 0:
            end, _, write = self._regions[i]
            if l1_pa + width <= end:
                write(l1_pa - self._starts[i], width, value & ones(width))
