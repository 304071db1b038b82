"""virtio block device (virtio 1.2, section 5.2): read, write, flush, get-id over an image.

Requests run in order in an executor, beside the processor. A request that is malformed, out of the disk's
range or too long fails alone, with its status byte; one without room for a status byte breaks the device.
"""

from __future__ import annotations

import struct

from turtles.devices.interfaces import GuestMemory, GuestMemoryError
from turtles.devices.virtio.device import VirtioDevice
from turtles.devices.virtio.executor import Executor
from turtles.devices.virtio.image import SECTOR, Image
from turtles.devices.virtio.queue import (
    MAXIMUM_SIZE,
    Chain,
    QueueError,
    Segment,
    VirtQueue,
    gather,
    scatter,
    split,
    total,
)

FEATURE_SEGMENTS_MAX, FEATURE_READ_ONLY, FEATURE_BLOCK_SIZE, FEATURE_FLUSH = 1 << 2, 1 << 5, 1 << 6, 1 << 9

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IO_ERROR, UNSUPPORTED = b"\0", b"\1", b"\2"

HEADER_BYTES = 16
ID_BYTES = 20
REQUEST_LIMIT = 64 << 20
"""Longest request in bytes. Drivers stay far below; without it 256 segments of all RAM would be one."""


class VirtioBlock(VirtioDevice):
    """The disk. `serial` is what get-id answers (20 bytes at most)."""

    kind = 2
    class_code = 0x010000

    def __init__(self, memory: GuestMemory, image: Image, executor: Executor, serial: str = "") -> None:
        features = FEATURE_SEGMENTS_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH
        super().__init__(memory, 1, features | (FEATURE_READ_ONLY if image.read_only else 0))
        self._image = image
        self._executor = executor
        self._serial = serial.encode("ascii", "replace")[:ID_BYTES].ljust(ID_BYTES, b"\0")
        # capacity, size_max, seg_max, geometry, blk_size: seg_max leaves room for header and status
        self._config = struct.pack(
            "<QIIHBBI", image.size // SECTOR, 0, MAXIMUM_SIZE - 2, 0, 0, 0, SECTOR
        ) + bytes(36)

    def config_bytes(self) -> bytes:
        """struct virtio_blk_config."""
        return self._config

    def notified(self, queue: VirtQueue) -> None:
        """Hand every new request to the executor."""
        try:
            chains = queue.pop_all()
            for chain in chains:
                if total(chain.writable) < 1:
                    raise QueueError("block request without a status byte")
        except QueueError as error:
            self.broken(str(error))
            return
        for chain in chains:
            request = _Request(self, queue, chain)
            self._executor.submit(request.work, request.done, request.size)

    def reset(self) -> None:
        """Wait until nothing of this device is under way."""
        self._executor.abandon()
        super().reset()

    def close(self) -> None:
        """Finish all requests, bring the image to stable storage and release it."""
        self._executor.close()
        try:
            if not self._image.read_only:
                self._image.flush()
        finally:
            self._image.close()

    def perform(self, chain: Chain) -> int:
        """Do a request; returns the bytes written to the guest, status included."""
        data_in, status_place = split(chain.writable, total(chain.writable) - 1)
        header, data_out = split(chain.readable, HEADER_BYTES)
        written = 0
        try:
            status, written = self._operate(gather(self.memory, header), data_out, data_in)
        except (GuestMemoryError, OSError):
            status = IO_ERROR
        try:
            return written + scatter(self.memory, status_place, status)
        except GuestMemoryError:
            return 0  # the driver asked for its answer where there is no memory

    def _operate(
        self, header: bytes, data_out: tuple[Segment, ...], data_in: tuple[Segment, ...]
    ) -> tuple[bytes, int]:
        """The status byte, and how many bytes were written before it."""
        if len(header) < HEADER_BYTES:
            return IO_ERROR, 0
        kind, _, sector = struct.unpack("<IIQ", header)
        image = self._image
        if kind in (IN, OUT):
            length = total(data_in if kind == IN else data_out)
            offset = sector * SECTOR
            if length % SECTOR or length > REQUEST_LIMIT or offset + length > image.size:
                return IO_ERROR, 0
            if kind == IN:
                return OK, scatter(self.memory, data_in, image.read(offset, length)) if length else 0
            if image.read_only:
                return IO_ERROR, 0
            if length:
                image.write(offset, gather(self.memory, data_out))
            return OK, 0
        if kind == FLUSH:
            image.flush()
            return OK, 0
        if kind == GET_ID:
            return OK, scatter(self.memory, data_in, self._serial)
        return UNSUPPORTED, 0


class _Request:
    """One request on its way through the executor."""

    def __init__(self, device: VirtioBlock, queue: VirtQueue, chain: Chain) -> None:
        self._device = device
        self._queue = queue
        self._chain = chain
        self._written = 0
        self.size = min(total(chain.readable) + total(chain.writable), REQUEST_LIMIT)

    def work(self) -> None:
        """In the executor."""
        self._written = self._device.perform(self._chain)

    def done(self) -> None:
        """In the virtual CPU's thread."""
        if self._device.active:
            self._device.complete(self._queue, [(self._chain.head, self._written)])
