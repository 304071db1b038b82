"""A split virtqueue, device side (virtio 1.2, section 2.7), with indirect descriptors and event index.

Everything in the rings is the guest's word and is checked; a `QueueError` means that the driver broke the
rules and the device must ask for a reset. Work per call is bounded by the queue's size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from turtles.devices.interfaces import GuestMemory, GuestMemoryError

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
DESCRIPTOR_BYTES = 16
MAXIMUM_SIZE = 256

_DESCRIPTOR = struct.Struct("<QIHH")


class QueueError(Exception):
    """The driver broke the rules of the queue."""


class Segment(NamedTuple):
    """A piece of guest memory."""

    address: int
    length: int


class Chain(NamedTuple):
    """A descriptor chain: what the device may read, then what it may write."""

    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]


def total(segments: tuple[Segment, ...]) -> int:
    """Bytes in a list of segments."""
    return sum(length for _, length in segments)


def split(segments: tuple[Segment, ...], at: int) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """The first `at` bytes, and the rest."""
    first: list[Segment] = []
    for i, (address, length) in enumerate(segments):
        if at < length:
            if at:
                first.append(Segment(address, at))
            return tuple(first), (Segment(address + at, length - at), *segments[i + 1 :])
        first.append(Segment(address, length))
        at -= length
    return tuple(first), ()


def gather(memory: GuestMemory, segments: tuple[Segment, ...]) -> bytes:
    """The bytes of all segments."""
    return b"".join(memory.read(address, length) for address, length in segments)


def scatter(memory: GuestMemory, segments: tuple[Segment, ...], data: bytes) -> int:
    """Write `data` over the segments in order; returns how many bytes found room."""
    view = memoryview(data)
    done = 0
    for address, length in segments:
        piece = view[done : done + length]
        if not piece:
            break
        memory.write(address, piece)
        done += len(piece)
    return done


class VirtQueue:
    """One queue. The transport sets its addresses; the device pops chains and pushes them back."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """State after a device reset."""
        self.size = MAXIMUM_SIZE
        self.descriptors = self.driver = self.device = 0  # addresses of table, available and used ring
        self.enabled = False
        self.vector = 0xFFFF
        self.indirect = False
        self.event_index = False
        self._next_available = 0
        self._next_used = 0
        self._signalled_used = 0
        self._in_flight = 0

    def _read_u16(self, address: int) -> int:
        return int.from_bytes(self._read(address, 2), "little")

    def _read(self, address: int, length: int) -> bytes:
        try:
            return self._memory.read(address, length)
        except GuestMemoryError as error:
            raise QueueError(f"ring outside RAM: {error}") from error

    def _write(self, address: int, data: bytes) -> None:
        try:
            self._memory.write(address, data)
        except GuestMemoryError as error:
            raise QueueError(f"ring outside RAM: {error}") from error

    def pop_all(self) -> list[Chain]:
        """Every chain that the driver has made available since the last call: at most the queue's size."""
        if not self.enabled:
            return []
        chains: list[Chain] = []
        while True:
            available = self._read_u16(self.driver + 2) - self._next_available & 0xFFFF
            if available + self._in_flight > self.size:
                raise QueueError(
                    f"{available} chains available, {self._in_flight} in flight, size {self.size}"
                )
            for _ in range(available):
                slot = self._next_available % self.size
                chains.append(self._chain(self._read_u16(self.driver + 4 + 2 * slot)))
                self._next_available = self._next_available + 1 & 0xFFFF
            self._in_flight += available
            if self.event_index:
                self._write(self.device + 4 + 8 * self.size, self._next_available.to_bytes(2, "little"))
            if not available or not self.event_index:
                return chains

    def _chain(self, head: int) -> Chain:
        if head >= self.size:
            raise QueueError(f"descriptor {head} of {self.size}")
        table = None
        address, length, flags, following = _DESCRIPTOR.unpack(
            self._read(self.descriptors + DESCRIPTOR_BYTES * head, DESCRIPTOR_BYTES)
        )
        limit = self.size
        if flags & INDIRECT:
            limit = length // DESCRIPTOR_BYTES
            if not self.indirect or flags & NEXT or length % DESCRIPTOR_BYTES or not 0 < limit <= self.size:
                raise QueueError(f"indirect table of {length} bytes with flags {flags:#x}")
            table = self._read(address, length)
            address, length, flags, following = _DESCRIPTOR.unpack_from(table)
        readable: list[Segment] = []
        writable: list[Segment] = []
        for _ in range(limit):
            if flags & INDIRECT:
                raise QueueError("indirect descriptor inside a chain")
            if flags & WRITE:
                writable.append(Segment(address, length))
            elif writable:
                raise QueueError("device-readable descriptor after a writable one")
            else:
                readable.append(Segment(address, length))
            if not flags & NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            if following >= limit:
                raise QueueError(f"descriptor {following} of {limit}")
            if table is None:
                raw = self._read(self.descriptors + DESCRIPTOR_BYTES * following, DESCRIPTOR_BYTES)
                address, length, flags, following = _DESCRIPTOR.unpack(raw)
            else:
                address, length, flags, following = _DESCRIPTOR.unpack_from(
                    table, DESCRIPTOR_BYTES * following
                )
        raise QueueError("descriptor chain with a loop")

    def push(self, head: int, written: int) -> None:
        """Give a chain back, with the number of bytes that the device wrote into it."""
        slot = self._next_used % self.size
        self._write(self.device + 4 + 8 * slot, struct.pack("<II", head, written))
        self._next_used = self._next_used + 1 & 0xFFFF
        self._write(self.device + 2, self._next_used.to_bytes(2, "little"))
        self._in_flight -= 1

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last time this was asked."""
        old, new = self._signalled_used, self._next_used
        self._signalled_used = new
        if old == new:
            return False
        if self.event_index:
            event = self._read_u16(self.driver + 4 + 2 * self.size)
            return (new - event - 1 & 0xFFFF) < (new - old & 0xFFFF)
        return not self._read_u16(self.driver) & NO_INTERRUPT
