"""Multi-dimensional paging: ept02 = ept12 composed with ept01. Where vmcs12 uses no EPT, L2 runs on ept01.

The second case is shadow-on-EPT: L1 shadows L2's page tables itself, and L0 has nothing to compose.
The number of ept02s is bounded; the least recently used one goes when L1 brings a new EPT pointer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from turtles.l0.mmu import ept
from turtles.l0.mmu.ept01 import Ept01
from turtles.l0.mmu.ept02 import Ept02, Resolution, Resolve, Tactic
from turtles.l0.mmu.ept12 import Ept12Walker
from turtles.l0.mmu.tracking import WriteTracking
from turtles.l0.outcome import GuestStop
from turtles.l0.pool import PagePool, PoolExhausted
from turtles.l0.ram import L1Memory
from turtles.l0.vmcs.vmcs12 import Vmcs12
from turtles.silicon import fields as F

MOST_EPT02: Final = 32
_KEY: Final = ept.ADDRESS | ept.EPTP_ACCESSED_DIRTY


class MultiDimensional:
    """EPT for L1, ept02 for L2."""

    name = "multidim"

    def __init__(
        self,
        pool: PagePool,
        l1: L1Memory,
        walker: Ept12Walker,
        invalidate: Callable[[int], None],
        tactic: Tactic,
    ) -> None:
        self._pool = pool
        self._l1 = l1
        self._walker = walker
        self._invalidate = invalidate
        self._ept01 = Ept01(pool, l1.regions)
        self.eptp01 = self._ept01.eptp
        self._tactic = tactic
        self._tracking = WriteTracking(self._ept01, invalidate)
        # By EPTP12's address and A/D flag; in order of use, the latest last.
        self._ept02s: dict[int, Ept02] = {}

    def attach(self, c: Vmcs12) -> None:
        """See MemoryMode."""
        if not c.uses_ept:
            c.ept02 = None
            c.v02[F.EPT_POINTER] = self.eptp01
            return
        key = c.v[F.EPT_POINTER] & _KEY
        ept02 = self._ept02s.pop(key, None)
        if ept02 is None:
            while len(self._ept02s) >= MOST_EPT02:
                self._release_oldest()
            ept02 = self._new(key)
        self._ept02s[key] = ept02
        c.ept02 = ept02
        c.v02[F.EPT_POINTER] = ept02.eptp

    def _new(self, eptp12: int) -> Ept02:
        while True:
            try:
                ept02 = Ept02(
                    self._pool,
                    self._l1,
                    self._walker,
                    eptp12,
                    self._invalidate,
                    self._tactic,
                    self._tracking,
                )
            except PoolExhausted:
                self._release_oldest()
            else:
                self._tracking.settle()
                return ept02

    def _release_oldest(self) -> None:
        if not self._ept02s:
            raise GuestStop("the pool has no page left for an EPT table")
        self._ept02s.pop(next(iter(self._ept02s))).release()

    def resolve(self, c: Vmcs12, pa: int, access: int) -> Resolution:
        """See MemoryMode."""
        if c.ept02 is None:
            return Resolution(Resolve.DEVICE, pa)
        try:
            resolution = c.ept02.resolve(pa, access)
        except PoolExhausted:
            self._start_afresh(c)
            try:
                resolution = c.ept02.resolve(pa, access)
            except PoolExhausted:
                raise GuestStop("the pool is too small for one translation of L2") from None
        if resolution.what is Resolve.REFLECT_VIOLATION:
            c.ept02.expected = pa
        self._tracking.settle()
        return resolution

    def before_l2(self, c: Vmcs12) -> None:
        """See MemoryMode."""
        ept02 = c.ept02
        if ept02 is None:
            return
        if not ept02.alive:
            self.attach(c)
        elif ept02.expected >= 0:
            with contextlib.suppress(PoolExhausted):  # L2's own fault will make room
                ept02.answer_expected()
            self._tracking.settle()

    def tracks(self, l1_pa: int) -> bool:
        """See MemoryMode."""
        return l1_pa in self._tracking

    def tracked_write(self, l1_pa: int, width: int, data: int) -> None:
        """See MemoryMode."""
        self._tracking.written(l1_pa, width, data)

    def stored(self, l1_pa: int, length: int) -> None:
        """See MemoryMode."""
        self._tracking.stored(l1_pa, length)

    def untrack(self, l1_pa: int) -> None:
        """See MemoryMode."""
        self._tracking.give_up(l1_pa)

    def _start_afresh(self, c: Vmcs12) -> None:
        """Empties every ept02; each context attaches again before it is entered next."""
        for ept02 in self._ept02s.values():
            ept02.release()
        self._ept02s.clear()
        self.attach(c)

    def map_l1(self, l1_pa: int, host_pa: int) -> None:
        """See MemoryMode."""
        self._ept01.map_page(l1_pa, host_pa)

    def map_l2(self, c: Vmcs12, pa: int, host_pa: int) -> None:
        """See MemoryMode."""
        if c.ept02 is None:
            self._ept01.map_page(pa, host_pa)
        else:
            c.ept02.map_device(pa, host_pa)

    def invept(self, eptp12: int | None) -> None:
        """See MemoryMode. Single-context INVEPT goes by the address bits of the pointer (SDM 29.4.3.1)."""
        for key, ept02 in self._ept02s.items():
            if eptp12 is None or not (key ^ eptp12) & ept.ADDRESS:
                ept02.resync()
