"""Write tracking: pages that are read-only in ept01, so that L1's writes to them exit, and who follows them.

The paper's way to keep ept02 in step: L1's pages that hold ept12 are tracked, and L1's write changes ept02 at
once. Stores of L1 exit before they are made; of what devices and L0 store, followers are told afterwards
(`stored`). It decides nothing about tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from turtles.l0.mmu.ept01 import Ept01

_PAGE: Final = ~0xFFF


class Follower(Protocol):
    """Who wants to know of writes to a page."""

    def written(self, l1_pa: int, width: int, data: int) -> None:
        """L1 is about to store the low `width` bytes of `data` at `l1_pa`, or more behind it."""
        ...

    def stored(self, l1_pa: int) -> None:
        """Something on the page at `l1_pa` has been written by a device or by L0."""
        ...

    def untracked(self, l1_pa: int) -> None:
        """From now on writes to this page go unnoticed."""
        ...


class WriteTracking:
    """The tracked pages. `invalidate` is silicon's INVEPT for an EPT pointer."""

    def __init__(self, ept01: Ept01, invalidate: Callable[[int], None]) -> None:
        self._ept01 = ept01
        self._invalidate = invalidate
        self._followers: dict[int, list[Follower]] = {}
        self._stale = False  # a page lost its write right, and TLBs do not know yet

    def __contains__(self, l1_pa: int) -> bool:
        return l1_pa & _PAGE in self._followers

    def add(self, l1_pa: int, follower: Follower) -> None:
        """Tracks the page at `l1_pa` for one more follower. `settle` must come before L1 runs."""
        followers = self._followers.get(l1_pa)
        if followers is None:
            self._ept01.set_writable(l1_pa, False)
            self._followers[l1_pa] = followers = []
            self._stale = True
        followers.append(follower)

    def remove(self, l1_pa: int, follower: Follower) -> None:
        """Ends it for one follower (once for each `add`); a page that nobody follows is writable again."""
        followers = self._followers.get(l1_pa)
        if followers is None:
            return
        followers.remove(follower)
        if not followers:
            self._release(l1_pa)

    def _release(self, l1_pa: int) -> None:
        del self._followers[l1_pa]
        self._ept01.set_writable(l1_pa, True)

    def settle(self) -> None:
        """Makes silicon forget the write rights that were taken."""
        if self._stale:
            self._stale = False
            self._invalidate(self._ept01.eptp)

    def written(self, l1_pa: int, width: int, data: int) -> None:
        """L1 stores to a tracked page: whoever follows it is told before."""
        for follower in tuple(self._followers[l1_pa & _PAGE]):
            follower.written(l1_pa, width, data)

    def stored(self, l1_pa: int, length: int) -> None:
        """A device or L0 has stored `length` bytes, by DMA: no exit tells of that."""
        if not self._followers:
            return
        for page in range(l1_pa & _PAGE, l1_pa + length, ~_PAGE + 1):
            for follower in self._followers.get(page, ()):
                follower.stored(page)

    def give_up(self, l1_pa: int) -> None:
        """A write that cannot be told beforehand (event delivery, a page walk): the page is left alone."""
        page = l1_pa & _PAGE
        followers = self._followers[page]
        self._release(page)
        for follower in followers:
            follower.untracked(page)
