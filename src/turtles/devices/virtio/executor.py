"""Who does a disk's work, and when its completion is seen: a thread of its own, or virtual time.

`work` may block and runs once; `done` runs in the virtual CPU's thread after it. Jobs run in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from turtles.devices.interfaces import Clock, Timers

Work = Callable[[], None]

SEEK_NS = 50_000
BYTES_PER_NS = 2
"""A virtual-time disk answers after 50 µs plus 0.5 ns a byte: what a fast NVMe drive does."""


class Executor(Protocol):
    """Runs jobs."""

    def submit(self, work: Work, done: Work, size: int) -> None:
        """Queue a job that moves `size` bytes."""
        ...

    def abandon(self) -> None:
        """Drop jobs that have not begun and wait for the one that has; no `done` comes any more."""
        ...

    def close(self) -> None:
        """Finish every job that was submitted, without their `done`, and end."""
        ...


class ThreadExecutor:
    """A thread that blocks in the operating system while the processor runs.

    It does nothing but `work` in Python, since it shares one interpreter lock with the virtual CPU.
    """

    def __init__(self, timers: Timers, name: str) -> None:
        self._timers = timers
        self._jobs: SimpleQueue[tuple[int, Work, Work] | None] = SimpleQueue()
        self._finished: deque[Work] = deque()
        self._posted = False
        self._generation = 0
        self._working = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def submit(self, work: Work, done: Work, size: int) -> None:
        """Queue a job; the thread starts with the first one."""
        if self._thread.ident is None:
            self._thread.start()
        self._jobs.put((self._generation, work, done))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            generation, work, done = job
            with self._working:
                if generation != self._generation:
                    continue
                work()
                self._finished.append(done)
            # One post for all jobs that finish before the virtual CPU's thread gets to them.
            if not self._posted:
                self._posted = True
                self._timers.post(self._complete)

    def _complete(self) -> None:
        self._posted = False  # before looking: a job that finishes from here on posts again
        while self._finished:
            self._finished.popleft()()

    def abandon(self) -> None:
        """Wait for the job in hand only."""
        self._generation += 1
        with self._working:
            self._finished.clear()

    def close(self) -> None:
        """Finish all jobs and the thread."""
        self._jobs.put(None)
        if self._thread.ident is not None:
            self._thread.join()
        self._finished.clear()


class VirtualTimeExecutor:
    """Work and completion at one exact virtual time, in the virtual CPU's thread: the same in every run."""

    def __init__(self, clock: Clock, timers: Timers) -> None:
        self._clock = clock
        self._timers = timers
        self._jobs: deque[tuple[object, Work]] = deque()
        self._free_ns = 0

    def submit(self, work: Work, done: Work, size: int) -> None:
        """One job at a time: each begins when the disk is free."""
        self._free_ns = max(self._free_ns, self._clock()) + SEEK_NS + size // BYTES_PER_NS

        def run() -> None:
            self._jobs.popleft()
            work()
            done()

        self._jobs.append((self._timers.at(self._free_ns, run), work))

    def abandon(self) -> None:
        """Jobs that have not run never will."""
        for handle, _ in self._jobs:
            self._timers.cancel(handle)
        self._jobs.clear()
        self._free_ns = 0

    def close(self) -> None:
        """Do the work that is queued: the guest was told nothing of it, but it may be a write."""
        jobs, self._jobs = self._jobs, deque()
        for handle, work in jobs:
            self._timers.cancel(handle)
            work()
