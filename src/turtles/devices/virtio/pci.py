"""virtio over PCI, modern interface only (virtio 1.2, section 4.1): capabilities, registers, interrupts.

One 64-bit BAR holds common configuration, ISR, device configuration, notifications and the MSI-X table. A
driver that breaks the rules gets DEVICE_NEEDS_RESET, and the device stops until it is reset.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from turtles.devices.pci.function import PciFunction
from turtles.devices.pci.msix import CAPABILITY as MSIX_CAPABILITY
from turtles.devices.pci.msix import Msix
from turtles.devices.virtio.device import (
    FEATURE_EVENT_INDEX,
    FEATURE_INDIRECT,
    FEATURE_VERSION_1,
    VirtioDevice,
)
from turtles.devices.virtio.queue import MAXIMUM_SIZE, VirtQueue

VENDOR = 0x1AF4
DEVICE_BASE = 0x1040
VENDOR_CAPABILITY = 0x09

# The BAR's pages.
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING, BAR_SIZE = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000
COMMON_BYTES = 56
NOTIFY_MULTIPLIER = 4

CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI_CONFIG = 1, 2, 3, 4, 5

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
ISR_QUEUE, ISR_CONFIG = 1, 2
NO_VECTOR = 0xFFFF


class VirtioPci(PciFunction):
    """A virtio device as a PCI function. `send_msi(address, data)` performs a message's memory write."""

    def __init__(self, device: VirtioDevice, send_msi: Callable[[int, int], None]) -> None:
        super().__init__(
            vendor=VENDOR,
            device=DEVICE_BASE + device.kind,
            class_code=device.class_code,
            revision=1,
            subsystem_vendor=VENDOR,
            subsystem=0x1100,
        )
        self.virtio = device
        device.interrupt = self._interrupt
        device.broken = self._broken
        self.last_error = ""
        self._status = 0
        self._isr = 0
        self._generation = 0
        self._config_vector = NO_VECTOR
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._queue_select = 0
        self.msix = Msix(len(device.queues) + 1, send_msi)
        self.add_bar(0, BAR_SIZE, self)
        self._msix_offset = self.add_capability(
            MSIX_CAPABILITY,
            struct.pack("<HII", self.msix.vectors - 1, TABLE, PENDING),
            struct.pack("<H", 0xC000),
        )
        self._add_virtio_capability(CAP_COMMON, COMMON, COMMON_BYTES)
        self._add_virtio_capability(CAP_ISR, ISR, 1)
        self._add_virtio_capability(CAP_DEVICE, DEVICE, max(len(device.config_bytes()), 4))
        self._add_virtio_capability(
            CAP_NOTIFY,
            NOTIFY,
            NOTIFY_MULTIPLIER * len(device.queues),
            struct.pack("<I", NOTIFY_MULTIPLIER),
        )
        self._window = self._add_virtio_capability(CAP_PCI_CONFIG, 0, 0, bytes(4), writable=True)

    def _add_virtio_capability(
        self, kind: int, offset: int, length: int, extra: bytes = b"", *, writable: bool = False
    ) -> int:
        body = struct.pack("<BBBBHII", 16 + len(extra), kind, 0, 0, 0, offset, length) + extra
        # Of the PCI configuration access capability the driver chooses BAR, offset, length and data.
        mask = b"\0\0\xff\0\0\0" + b"\xff" * 12 if writable else b""
        return self.add_capability(VENDOR_CAPABILITY, body, mask)

    # --- configuration space: MSI-X control, and the window into the BAR (4.1.4.9) ---

    def config_read(self, offset: int, width: int) -> int:
        """As every function, except for the window's data field."""
        if self._window + 16 <= offset < self._window + 20:
            target = self._window_target()
            if target is not None:
                return self.read(target[0], target[1]) >> 8 * (offset - self._window - 16)
        return super().config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        """As every function; writes to MSI-X control and to the window take effect at once."""
        super().config_write(offset, width, value)
        if self._window + 16 <= offset < self._window + 20:
            target = self._window_target()
            if target is not None:
                self.write(target[0], target[1], self._get(self._window + 16, target[1]))
        elif offset < self._msix_offset + 4 and offset + width > self._msix_offset + 2:
            self.msix.set_control(self._get(self._msix_offset + 2, 2))
            self._update_intx()

    def _window_target(self) -> tuple[int, int] | None:
        bar = self.config[self._window + 4]
        offset, length = self._get(self._window + 8, 4), self._get(self._window + 12, 4)
        if bar or length not in (1, 2, 4) or offset % length or offset + length > BAR_SIZE:
            return None
        return offset, length

    # --- the BAR ---

    def read(self, offset: int, width: int) -> int:
        """Read in the BAR."""
        page, offset = offset & ~0xFFF, offset & 0xFFF
        if page == COMMON:
            return int.from_bytes(self._common()[offset : offset + width], "little")
        if page == ISR:
            value, self._isr = self._isr, 0
            self._update_intx()
            return value
        if page == DEVICE:
            return int.from_bytes(self.virtio.config_bytes()[offset : offset + width], "little")
        if page == TABLE:
            return self.msix.read_table(offset, width)
        if page == PENDING:
            return self.msix.read_pending(offset, width)
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """Write in the BAR."""
        page, offset = offset & ~0xFFF, offset & 0xFFF
        if page == NOTIFY:
            self._notify(offset // NOTIFY_MULTIPLIER)
        elif page == COMMON:
            self._write_common(offset, width, value)
        elif page == TABLE:
            self.msix.write_table(offset, width, value)

    def _queue(self) -> VirtQueue | None:
        queues = self.virtio.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _common(self) -> bytes:
        """The common configuration structure (4.1.4.3)."""
        queue = self._queue()
        device, driver = self._device_feature_select, self._driver_feature_select
        return struct.pack(
            "<IIIIHHBBHHHHHQQQ",
            device,
            self.virtio.features >> 32 * device & 0xFFFF_FFFF if device < 2 else 0,
            driver,
            self.virtio.driver_features >> 32 * driver & 0xFFFF_FFFF if driver < 2 else 0,
            self._config_vector,
            len(self.virtio.queues),
            self._status,
            self._generation,
            self._queue_select,
            queue.size if queue else 0,
            queue.vector if queue else NO_VECTOR,
            int(queue.enabled) if queue else 0,
            self._queue_select if queue else 0,
            queue.descriptors if queue else 0,
            queue.driver if queue else 0,
            queue.device if queue else 0,
        )

    def _write_common(self, offset: int, width: int, value: int) -> None:
        if width == 8 and offset in (32, 40, 48):
            self._write_common(offset, 4, value & 0xFFFF_FFFF)
            self._write_common(offset + 4, 4, value >> 32)
            return
        value &= (1 << 8 * width) - 1
        match offset, width:
            case 0, 4:
                self._device_feature_select = value
            case 8, 4:
                self._driver_feature_select = value
            case 12, 4:
                if not self._status & FEATURES_OK and self._driver_feature_select < 2:
                    shift = 32 * self._driver_feature_select
                    kept = self.virtio.driver_features & ~(0xFFFF_FFFF << shift)
                    self.virtio.driver_features = kept | value << shift
            case 16, 2:
                self._config_vector = value if value < self.msix.vectors else NO_VECTOR
            case 20, 1:
                self._write_status(value)
            case 22, 2:
                self._queue_select = value
            case _:
                queue = self._queue()
                if queue is not None:
                    self._write_queue(queue, offset, width, value)

    def _write_queue(self, queue: VirtQueue, offset: int, width: int, value: int) -> None:
        if (offset, width) == (26, 2):
            queue.vector = value if value < self.msix.vectors else NO_VECTOR
            return
        if queue.enabled:
            return  # an enabled queue is not to be changed (4.1.4.3.2)
        match offset, width:
            case 24, 2:
                queue.size = value
            case 28, 2:
                if value == 1:
                    self._enable(queue)
            case 32, 4:
                queue.descriptors = queue.descriptors & ~0xFFFF_FFFF | value
            case 36, 4:
                queue.descriptors = queue.descriptors & 0xFFFF_FFFF | value << 32
            case 40, 4:
                queue.driver = queue.driver & ~0xFFFF_FFFF | value
            case 44, 4:
                queue.driver = queue.driver & 0xFFFF_FFFF | value << 32
            case 48, 4:
                queue.device = queue.device & ~0xFFFF_FFFF | value
            case 52, 4:
                queue.device = queue.device & 0xFFFF_FFFF | value << 32

    def _enable(self, queue: VirtQueue) -> None:
        if not 0 < queue.size <= MAXIMUM_SIZE or queue.size & queue.size - 1:
            self._broken(f"queue size {queue.size}")
            return
        queue.indirect = bool(self.virtio.driver_features & FEATURE_INDIRECT)
        queue.event_index = bool(self.virtio.driver_features & FEATURE_EVENT_INDEX)
        queue.enabled = True

    # --- life ---

    def _write_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        if value & FEATURES_OK and not self._status & FEATURES_OK:
            wanted = self.virtio.driver_features
            if wanted & ~self.virtio.features or not wanted & FEATURE_VERSION_1:
                value &= ~FEATURES_OK  # refused: the driver reads the bit back
        self._status = value & ~NEEDS_RESET | self._status & NEEDS_RESET
        self.virtio.active = self._status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) == FEATURES_OK | DRIVER_OK

    def reset(self) -> None:
        """Device reset: the driver wrote zero to the status."""
        self.virtio.reset()
        self._status = 0
        self._isr = 0
        self._config_vector = NO_VECTOR
        self._device_feature_select = self._driver_feature_select = 0
        self._queue_select = 0
        self._update_intx()

    def _notify(self, number: int) -> None:
        if self.virtio.active and number < len(self.virtio.queues):
            self.virtio.notified(self.virtio.queues[number])

    def _broken(self, reason: str) -> None:
        """The driver broke the rules: stop, and tell it (2.1.2)."""
        if self._status & NEEDS_RESET:
            return
        self.last_error = reason
        self._status |= NEEDS_RESET
        self.virtio.active = False
        self._generation = self._generation + 1 & 0xFF
        if self._status & DRIVER_OK:
            self._signal(ISR_CONFIG, self._config_vector)

    # --- interrupts ---

    def _interrupt(self, queue: VirtQueue) -> None:
        self._signal(ISR_QUEUE, queue.vector)

    def _signal(self, bit: int, vector: int) -> None:
        if self.msix.enabled:
            self.msix.notify(vector)
        else:
            self._isr |= bit
            self._update_intx()

    def _update_intx(self) -> None:
        self.set_intx(bool(self._isr) and not self.msix.enabled)
