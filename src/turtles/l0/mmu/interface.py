"""The one interface of memory virtualization; behind it multi-dimensional paging and the two shadow ways.

An implementation owns what silicon's EPT pointer (or CR3) refers to while L1 and L2 run. It is told of
faults and invalidations and answers with a `Resolution`; it never injects or reflects itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from turtles.l0.mmu.ept02 import Resolution

if TYPE_CHECKING:
    from turtles.l0.vmcs.vmcs12 import Vmcs12


class MemoryMode(Protocol):
    """How guests' addresses become host-physical ones."""

    @property
    def name(self) -> str:
        """As `--mmu` names it."""
        ...

    @property
    def eptp01(self) -> int:
        """EPT pointer of vmcs01."""
        ...

    def attach(self, c: Vmcs12) -> None:
        """Sets what vmcs02 translates with, after vmcs12's controls changed or its tables were dropped."""
        ...

    def resolve(self, c: Vmcs12, pa: int, access: int) -> Resolution:
        """Answers a fault of L2 at `pa` (an l2_pa with ept12, else an l1_pa)."""
        ...

    def before_l2(self, c: Vmcs12) -> None:
        """L1's VMLAUNCH or VMRESUME is about to enter L2."""
        ...

    def tracks(self, l1_pa: int) -> bool:
        """Whether L1's writes to the page exit, because L0 follows what lies there."""
        ...

    def tracked_write(self, l1_pa: int, width: int, data: int) -> None:
        """L1 is about to store `data` on such a page; the caller permits the store."""
        ...

    def stored(self, l1_pa: int, length: int) -> None:
        """A device or L0 has stored to L1's memory."""
        ...

    def untrack(self, l1_pa: int) -> None:
        """The page becomes writable: a write there cannot be told beforehand."""
        ...

    def map_l1(self, l1_pa: int, host_pa: int) -> None:
        """Maps a page of L1's device space to one of L0's, for fetches and walks that no device answers."""
        ...

    def map_l2(self, c: Vmcs12, pa: int, host_pa: int) -> None:
        """The same for L2, after `resolve` said DEVICE."""
        ...

    def invept(self, eptp12: int | None) -> None:
        """L1 executed INVEPT for one EPT pointer, or for all."""
        ...
