"""Pages for L0's own tables (VMCSs, EPT tables, bitmaps), out of the pool behind the guests' RAM.

No guest's tables map the pool. Pages are handed out zeroed and seen as 512 slots of 64 bits. It does not
decide what to throw away when it is empty: `PoolExhausted` tells the owner of something big to do so.
"""

from __future__ import annotations

from typing import Final

from turtles.l0.ports import Slots
from turtles.silicon import Memory

PAGE: Final = 4096
_ZERO_PAGE: Final = bytes(PAGE)


class PoolExhausted(Exception):
    """No page is left."""


class PagePool:
    """A stack of free pages in `[first, end)` of host-physical memory."""

    def __init__(self, memory: Memory, first: int, end: int) -> None:
        self.memory = memory
        self._free: list[int] = []
        self._next = first
        self._end = end

    def allocate(self) -> int:
        """Host address of a zeroed page."""
        if self._free:
            host_pa = self._free.pop()
            self.memory.write(host_pa, _ZERO_PAGE)
            return host_pa
        host_pa = self._next
        if host_pa + PAGE > self._end:
            raise PoolExhausted
        self._next += PAGE
        return host_pa

    def free(self, host_pa: int) -> None:
        """Gives a page back; nothing may refer to it any more, silicon's caches included."""
        self._free.append(host_pa)

    def left(self) -> int:
        """Pages that can still be handed out."""
        return len(self._free) + (self._end - self._next) // PAGE

    def slots(self, host_pa: int) -> Slots:
        """A page as 512 slots, shared with silicon."""
        return self.memory.pool_view(host_pa)
