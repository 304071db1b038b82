"""virtio block device (virtio 1.2, section 5.2): read, write, flush, get-id over an image.

Requests run in order in an executor, beside the processor; guest memory is touched in the processor's thread
only. A request that is malformed, out of the disk's
range or too long fails alone, with its status byte; one without room for a status byte breaks the device.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable

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
Operation = Callable[[], tuple[bytes, bytes]]
"""What blocks: gives the status byte and the data for the guest."""

REQUEST_LIMIT = 64 << 20
"""Longest request in bytes. Drivers stay far below; without it 256 segments of all RAM would be one."""

IN_FLIGHT_LIMIT = REQUEST_LIMIT
"""Bytes of requests that the executor holds; more than that waits in the queue's descriptors."""


class VirtioBlock(VirtioDevice):
    """The disk. `serial` is what get-id answers (20 bytes at most)."""

    kind = 2
    class_code = 0x010000

    def __init__(self, memory: GuestMemory, image: Image, executor: Executor, serial: str = "") -> None:
        features = FEATURE_SEGMENTS_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH
        super().__init__(memory, 1, features | (FEATURE_READ_ONLY if image.read_only else 0))
        self._image = image
        self._executor = executor
        self._waiting: deque[tuple[VirtQueue, Chain]] = deque()
        self._in_flight = 0
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
        self._waiting.extend((queue, chain) for chain in chains)
        self._start()

    def _start(self) -> None:
        while self._waiting:
            queue, chain = self._waiting[0]
            size = min(total(chain.readable) + total(chain.writable), REQUEST_LIMIT)
            if self._in_flight and self._in_flight + size > IN_FLIGHT_LIMIT:
                return
            self._waiting.popleft()
            self._in_flight += size
            request = _Request(self, queue, chain, size)
            self._executor.submit(request.work, request.done, size)

    def finished(self, size: int) -> None:
        """A request of `size` bytes has left the executor."""
        self._in_flight -= size
        self._start()

    def reset(self) -> None:
        """Wait until nothing of this device is under way."""
        self._executor.abandon()
        self._waiting.clear()
        self._in_flight = 0
        super().reset()

    def close(self) -> None:
        """Finish all requests, bring the image to stable storage and release it."""
        self._executor.close()
        try:
            if not self._image.read_only:
                self._image.flush()
        finally:
            self._image.close()

    def image_operation(self, header: bytes, chain: Chain, data_in: tuple[Segment, ...]) -> Operation | None:
        """What a request asks of the image; None when it is refused. Write data is fetched here and now."""
        if len(header) < HEADER_BYTES:
            return None
        kind, _, sector = struct.unpack("<IIQ", header)
        image = self._image
        offset = sector * SECTOR
        if kind == IN:
            length = total(data_in)
            if length % SECTOR or length > REQUEST_LIMIT or offset + length > image.size:
                return None
            return lambda: (OK, image.read(offset, length) if length else b"")
        if kind == OUT:
            data_out = split(chain.readable, HEADER_BYTES)[1]
            length = total(data_out)
            if length % SECTOR or length > REQUEST_LIMIT or offset + length > image.size or image.read_only:
                return None
            data = gather(self.memory, data_out)

            def write() -> tuple[bytes, bytes]:
                if data:
                    image.write(offset, data)
                return OK, b""

            return write
        if kind == FLUSH:

            def flush() -> tuple[bytes, bytes]:
                image.flush()
                return OK, b""

            return flush
        if kind == GET_ID:
            return lambda: (OK, self._serial)
        return lambda: (UNSUPPORTED, b"")


class _Request:
    """One request on its way through the executor: only `work` runs there, and it touches only the image."""

    def __init__(self, device: VirtioBlock, queue: VirtQueue, chain: Chain, size: int) -> None:
        self._device = device
        self._queue = queue
        self._head = chain.head
        self._data_in, self._status_place = split(chain.writable, total(chain.writable) - 1)
        self._status = IO_ERROR
        self._data = b""
        self._size = size
        self._operation: Operation | None
        try:
            header = gather(device.memory, split(chain.readable, HEADER_BYTES)[0])
            self._operation = device.image_operation(header, chain, self._data_in)
        except GuestMemoryError:
            self._operation = None

    def work(self) -> None:
        """In the executor: what may block."""
        if self._operation is not None:
            with contextlib.suppress(OSError):
                self._status, self._data = self._operation()

    def done(self) -> None:
        """In the virtual CPU's thread: the answer."""
        device = self._device
        if not device.active:
            return
        written = 0
        try:
            written = scatter(device.memory, self._data_in, self._data)
        except GuestMemoryError:
            self._status = IO_ERROR
        try:
            written += scatter(device.memory, self._status_place, self._status)
        except GuestMemoryError:
            written = 0  # the driver wants its answer where there is no memory
        device.complete(self._queue, [(self._head, written)])
        device.finished(self._size)
