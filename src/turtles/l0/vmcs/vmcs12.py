"""vmcs12: the VMCS that L1 made for L2, in the pool from VMPTRLD until VMCLEAR, and the vmcs02 beside it.

Owner: the virtual CPU that loaded it. L1's VMREAD and VMWRITE reach the pool page through silicon's VMCS
shadowing; L1's own page gets the contents back, with the launch state, at VMCLEAR (or when the cache is
full). The format of the page is L0's private matter: what L1 put there is taken as field values, whatever
they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from turtles.l0.mmu.ept02 import Ept02
from turtles.l0.pool import PagePool
from turtles.l0.ports import Slots
from turtles.l0.ram import PAGE, L1Memory
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import rules
from turtles.silicon import Memory, Vmcs
from turtles.silicon import fields as F
from turtles.silicon._silicon import VMCS_FIELDS

MOST_CACHED: Final = 64
# Fields of 16 and 32 bits, by slot, with the bits that they have (width: bits 14:13 of the encoding).
NARROW: Final = tuple(
    (slot, 0xFFFF if encoding >> 13 & 3 == 0 else 0xFFFF_FFFF)
    for slot, encoding in VMCS_FIELDS.values()
    if encoding >> 13 & 3 in (0, 2)
)
CLEAR: Final = 0
LAUNCHED: Final = 1


Move = Callable[[], int]


def _nothing() -> int:
    return 0


class Vmcs12:
    """A cached vmcs12 and what L0 derived from it."""

    __slots__ = (
        "apic_access_l1_pa",
        "bitmap12",
        "bitmap12_host_pa",
        "bitmap_host_pa",
        "cr3",
        "delivers",
        "enter",
        "ept02",
        "event_given",
        "exit_controls",
        "has_msr_lists",
        "host12",
        "host_64",
        "host_image",
        "host_pa",
        "host_rip",
        "host_seen",
        "kept",
        "l1_pa",
        "leave",
        "leaves_more",
        "link_fails",
        "load_host",
        "loads_debug",
        "loads_more",
        "pin12",
        "posted_vector",
        "region",
        "shadows",
        "shares_nmi_blocking",
        "uses_ept",
        "uses_timer",
        "uses_vpid",
        "v",
        "v02",
        "vmcs02",
    )

    def __init__(self, memory: Memory, pool: PagePool, l1_pa: int) -> None:
        self.l1_pa = l1_pa
        self.host_pa = pool.allocate()
        self.region = Vmcs(memory, self.host_pa)
        self.v: Slots = self.region.slots
        self.vmcs02 = Vmcs(memory, pool.allocate())
        self.v02: Slots = self.vmcs02.slots
        self.bitmap_host_pa = pool.allocate()
        self.host12 = self.v[rules.HOST_BUT_STACK]
        # The copies of an entry, of an exit, and of L1's host state: made when controls are merged
        # (moves.make). What they return is which of their comparisons found a difference.
        self.enter: Move = _nothing
        self.leave: Move = _nothing
        self.load_host: Move = _nothing
        self.leaves_more = self.loads_more = False  # an exit, or loading host state, takes more than these
        self.event_given = False  # vmcs02 got an event to inject since the last exit
        # L1's guest state after an exit, ready to be copied into vmcs01 (rules.HOST_TO_GUEST).
        self.host_image = memoryview(bytearray(8 * (rules.GUEST_COPY_END - rules.GUEST_FIRST))).cast("Q")
        self.ept02: Ept02 | None = None
        self.cr3 = 0  # L2's CR3 as L1 set it, where vmcs02 has another (shadow-on-shadow)
        self.bitmap12 = b""  # L1's MSR bitmap as last merged, if it is RAM
        self.bitmap12_host_pa = -1  # where it lies; -1 outside RAM
        self.apic_access_l1_pa = -1
        self.kept: tuple[int, ...] = ()
        # What entry and exit ask of vmcs12's controls, as of the last merge.
        self.pin12 = 0
        self.exit_controls = 0
        self.host_seen = b""  # host state up to RSP, and RIP, as last checked
        self.host_rip = 0
        self.link_fails = False
        self.shadows = False
        self.shares_nmi_blocking = True  # with L1: L2 has no virtual NMIs
        self.delivers = False  # virtual interrupts, by the processor
        self.posted_vector = -1
        self.uses_ept = False
        self.uses_timer = False
        self.uses_vpid = False
        self.loads_debug = True
        self.has_msr_lists = False
        self.host_64 = True

    def pages(self) -> tuple[int, ...]:
        """Its pages in the pool."""
        return self.host_pa, self.vmcs02.host_pa, self.bitmap_host_pa

    def load(self, l1: L1Memory, revision: int) -> None:
        """Takes L1's page over."""
        image = memoryview(l1.read(self.l1_pa, PAGE)).cast("Q")
        v = self.v
        v[rules.GUEST_FIRST :] = image[rules.GUEST_FIRST :]
        for slot, mask in NARROW:
            v[slot] &= mask
        v[F.REVISION] = revision | X.SHADOW_VMCS
        v[F.LAUNCH_STATE] = LAUNCHED if image[F.LAUNCH_STATE] == LAUNCHED else CLEAR
        v[F.WRITTEN] = rules.WRITTEN_ALL

    def store(self, l1: L1Memory, revision: int) -> None:
        """Writes the contents back to L1's page; the shadow indicator is L0's and stays out of it."""
        image = bytearray(self.v)
        image[0:4] = revision.to_bytes(4, "little")
        l1.write(self.l1_pa, bytes(image))


class Vmcs12Cache:
    """The vmcs12s of one virtual CPU, in order of use, the latest last."""

    def __init__(self, memory: Memory, pool: PagePool, l1: L1Memory, revision: int) -> None:
        self._memory = memory
        self._pool = pool
        self._l1 = l1
        self._revision = revision
        self._cached: dict[int, Vmcs12] = {}

    def load(self, l1_pa: int) -> Vmcs12:
        """VMPTRLD: the cached one, or L1's page taken over."""
        c = self._cached.pop(l1_pa, None)
        if c is None:
            if len(self._cached) >= MOST_CACHED:
                self._release(next(iter(self._cached)))
            c = Vmcs12(self._memory, self._pool, l1_pa)
            c.load(self._l1, self._revision)
        self._cached[l1_pa] = c
        return c

    def clear(self, l1_pa: int) -> None:
        """VMCLEAR: written back, launch state clear; a page that is not cached only gets its launch state."""
        c = self._cached.get(l1_pa)
        if c is None:
            self._l1.write(l1_pa + 8 * F.LAUNCH_STATE, bytes(8))
            return
        c.v[F.LAUNCH_STATE] = CLEAR
        self._release(l1_pa)

    def _release(self, l1_pa: int) -> None:
        c = self._cached.pop(l1_pa)
        c.store(self._l1, self._revision)
        for host_pa in c.pages():
            self._pool.free(host_pa)

    def discard(self) -> None:
        """Forgets all without writing back: L1 left VMX operation, its pages may hold other things by now."""
        for c in self._cached.values():
            for host_pa in c.pages():
                self._pool.free(host_pa)
        self._cached.clear()

    def __contains__(self, l1_pa: int) -> bool:
        return l1_pa in self._cached

    def __len__(self) -> int:
        return len(self._cached)
