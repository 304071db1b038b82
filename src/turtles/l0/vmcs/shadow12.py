"""A shadow VMCS of L1's (SDM 25.10): what L1's guest reads and writes by VMREAD and VMWRITE without an exit.

It is never copied. The format of a VMCS region is L0's to choose, and L0 chose silicon's: L1's own page
serves silicon as the shadow VMCS of vmcs01 while it is L1's current VMCS, and as that of vmcs02 while a
vmcs12 links to it. VMPTRLD and VMCLEAR, which L1 executes for each exit of the third level, move no contents.
"""

from __future__ import annotations

from typing import Final

from turtles.l0.ram import L1Memory
from turtles.silicon import Memory

MOST_KNOWN: Final = 64


class Shadow12:
    """The region at `l1_pa`. Its slots go through `Memory`: it is L1's RAM, and may hold anything."""

    __slots__ = ("_memory", "host_pa", "l1_pa", "v")

    def __init__(self, memory: Memory, l1_pa: int, host_pa: int) -> None:
        self._memory: Final = memory
        self.l1_pa: Final = l1_pa
        self.host_pa: Final = host_pa
        self.v: Final = self  # as a `Vmcs12` has its slots

    def __getitem__(self, slot: int) -> int:
        return self._memory.load(self.host_pa + 8 * slot, 8)

    def __setitem__(self, slot: int, value: int) -> None:
        self._memory.store(self.host_pa + 8 * slot, 8, value)


class Shadow12s:
    """The shadow VMCSs that one virtual CPU has loaded: where they lie, so that any may be forgotten."""

    def __init__(self, memory: Memory, l1: L1Memory) -> None:
        self._memory = memory
        self._l1 = l1
        self._known: dict[int, Shadow12] = {}

    def load(self, l1_pa: int) -> Shadow12:
        """VMPTRLD of one; the page is L1's RAM, as its revision has been read from there."""
        found = self._known.get(l1_pa)
        if found is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[l1_pa] = Shadow12(self._memory, l1_pa, self._l1.host_page(l1_pa))
        return found
