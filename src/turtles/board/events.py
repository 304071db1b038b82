"""The event queue: timers, and work that other threads post; all of it runs in the virtual CPU's thread.

Order is by deadline, then by age, so that it is the same in every run of virtual time. Nothing here sleeps:
L0 asks for the next deadline, runs the processor up to it, and calls `run`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

RUN_LIMIT: Final = 10_000
"""Callbacks that one `run` executes at most, so that the processor, and a stop request, get their turn."""

FOREVER: Final = 1 << 62
"""A later deadline (146 years) is no deadline: it would not fit into the processor's clock."""


class Timer:
    """A callback at a time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback  # None: run or cancelled


class EventQueue:
    """One virtual CPU's events. `kick` ends its run from another thread."""

    def __init__(self, kick: Callable[[], None]) -> None:
        self._kick = kick
        self._heap: list[tuple[int, int, Timer]] = []  # deadline, age, timer: compared without Python code
        self._cancelled = 0
        self._sequence = 0
        self._posted: deque[Callable[[], None]] = deque()

    def at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the clock shows `deadline_ns`."""
        self._sequence += 1
        timer = Timer(callback)
        heapq.heappush(self._heap, (deadline_ns, self._sequence, timer))
        return timer

    def cancel(self, handle: object) -> None:
        """Forget a timer; one that has run is ignored."""
        if isinstance(handle, Timer) and handle.callback is not None:
            handle.callback = None
            self._cancelled += 1
            if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].callback is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0

    def post(self, callback: Callable[[], None]) -> None:
        """Call `callback` at the next `run`. From any thread."""
        self._posted.append(callback)
        self._kick()

    def next_deadline(self) -> int | None:
        """When `run` has something to do next; 0 while posted work waits, None if nothing is planned."""
        if self._posted:
            return 0
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._cancelled -= 1
        if not heap or heap[0][0] >= FOREVER:
            return None
        return heap[0][0]

    def run(self, now_ns: int) -> None:
        """Run posted work and every timer that is due."""
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        heap = self._heap
        for _ in range(RUN_LIMIT):
            if not heap or heap[0][0] > now_ns:
                return
            timer = heapq.heappop(heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()
                heap = self._heap  # a callback may have compacted it
