"""A virtio driver for tests: finds the capabilities, negotiates, and fills rings in fake memory."""

from __future__ import annotations

import struct

from tests.devices.fakes import FakeMemory
from turtles.devices.virtio import pci
from turtles.devices.virtio.device import VirtioDevice
from turtles.devices.virtio.pci import VirtioPci
from turtles.devices.virtio.queue import INDIRECT, NEXT, WRITE

DESCRIPTORS, AVAILABLE, USED, INDIRECT_TABLE, BUFFERS = 0x1000, 0x3000, 0x4000, 0x6000, 0x1_0000
FEATURES = 1 << 32


class Driver:
    """Drives queue 0 of a device."""

    def __init__(
        self, device: VirtioDevice, memory: FakeMemory, *, features: int = FEATURES, size: int = 16
    ) -> None:
        self.memory = memory
        self.device = device
        self.messages: list[tuple[int, int]] = []
        self.function = VirtioPci(device, lambda address, data: self.messages.append((address, data)))
        self.size = size
        self.features = features
        self.available = 0
        self.start()

    def put(self, offset: int, width: int, value: int) -> None:
        self.function.write(offset, width, value)

    def get(self, offset: int, width: int) -> int:
        return self.function.read(offset, width)

    @property
    def status(self) -> int:
        return self.get(20, 1)

    def negotiate(self) -> None:
        self.put(20, 1, pci.ACKNOWLEDGE | pci.DRIVER)
        for half in range(2):
            self.put(8, 4, half)
            self.put(12, 4, self.features >> 32 * half & 0xFFFF_FFFF)
        self.put(20, 1, pci.ACKNOWLEDGE | pci.DRIVER | pci.FEATURES_OK)

    def start(self) -> None:
        self.available = 0
        self.memory.write(AVAILABLE, bytes(0x1000))
        self.memory.write(USED, bytes(0x1000))
        self.negotiate()
        self.put(22, 2, 0)
        self.put(24, 2, self.size)
        for offset, address in ((32, DESCRIPTORS), (40, AVAILABLE), (48, USED)):
            self.put(offset, 8, address)
        self.put(28, 2, 1)
        self.put(20, 1, pci.ACKNOWLEDGE | pci.DRIVER | pci.FEATURES_OK | pci.DRIVER_OK)

    def enable_msix(self) -> None:
        """Vector 0 for configuration changes (data 40h), 1 for queue 0 (data 41h)."""
        for vector in range(2):
            self.put(pci.TABLE + 16 * vector, 8, 0xFEE0_0000)
            self.put(pci.TABLE + 16 * vector + 8, 4, 0x40 + vector)
            self.put(pci.TABLE + 16 * vector + 12, 4, 0)
        self.function.config_write(self.function._msix_offset + 2, 2, 0x8000)
        self.put(16, 2, 0)
        self.put(22, 2, 0)
        self.put(26, 2, 1)

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        self.memory.write(DESCRIPTORS + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def chain(self, *buffers: tuple[int, int, bool], first: int = 0, indirect: bool = False) -> None:
        """Describe (address, length, device-writes) buffers from descriptor `first` on."""
        if indirect:
            table = b""
            for i, (address, length, write) in enumerate(buffers):
                flags = (WRITE if write else 0) | (NEXT if i < len(buffers) - 1 else 0)
                table += struct.pack("<QIHH", address, length, flags, i + 1)
            self.memory.write(INDIRECT_TABLE, table)
            self.descriptor(first, INDIRECT_TABLE, len(table), INDIRECT, 0)
            return
        for i, (address, length, write) in enumerate(buffers):
            flags = (WRITE if write else 0) | (NEXT if i < len(buffers) - 1 else 0)
            self.descriptor(first + i, address, length, flags, first + i + 1)

    def offer(self, *heads: int, notify: bool = True) -> None:
        for head in heads:
            self.memory.write(AVAILABLE + 4 + 2 * (self.available % self.size), struct.pack("<H", head))
            self.available = self.available + 1 & 0xFFFF
        self.memory.write(AVAILABLE + 2, struct.pack("<H", self.available))
        if notify:
            self.put(pci.NOTIFY, 2, 0)

    @property
    def used_index(self) -> int:
        return int(struct.unpack("<H", self.memory.read(USED + 2, 2))[0])

    def used(self, index: int) -> tuple[int, int]:
        head, length = struct.unpack("<II", self.memory.read(USED + 4 + 8 * (index % self.size), 8))
        return head, length
