"""A clock that moves when told, a memory that is a bytearray, lines that remember."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from turtles.devices.interfaces import GuestMemoryError


class FakeTime:
    """Clock and timers. `advance` runs what falls due, at its time."""

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._cancelled: set[int] = set()
        self.posted: list[Callable[[], None]] = []

    def __call__(self) -> int:
        return self.now

    def at(self, deadline_ns: int, callback: Callable[[], None]) -> object:
        self._sequence += 1
        heapq.heappush(self._heap, (deadline_ns, self._sequence, callback))
        return self._sequence

    def cancel(self, handle: object) -> None:
        assert isinstance(handle, int)
        self._cancelled.add(handle)

    def post(self, callback: Callable[[], None]) -> None:
        self.posted.append(callback)

    def run_posted(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    def deadlines(self) -> list[int]:
        return sorted(when for when, sequence, _ in self._heap if sequence not in self._cancelled)

    def advance(self, ns: int) -> None:
        end = self.now + ns
        while self._heap and self._heap[0][0] <= end:
            when, sequence, callback = heapq.heappop(self._heap)
            if sequence not in self._cancelled:
                self.now = max(self.now, when)
                callback()
        self.now = end

    def jump(self, ns: int) -> None:
        """As a busy host does: time passes, and only then everything that is due runs."""
        self.now += ns
        while self._heap and self._heap[0][0] <= self.now:
            _, sequence, callback = heapq.heappop(self._heap)
            if sequence not in self._cancelled:
                callback()


class FakeLine:
    """An interrupt line that counts its rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0

    def __call__(self, level: bool) -> None:
        if level and not self.level:
            self.edges += 1
        self.level = level


class FakeMemory:
    """RAM from address zero."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.data = bytearray(size)

    def _check(self, address: int, length: int) -> None:
        if address < 0 or address + length > len(self.data):
            raise GuestMemoryError(f"{length} bytes at {address:#x}")

    def read(self, address: int, length: int) -> bytes:
        self._check(address, length)
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self._check(address, len(data))
        self.data[address : address + len(data)] = data
