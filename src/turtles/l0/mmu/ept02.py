"""ept02: one ept12 composed with ept01, filled on L2's EPT violations, huge pages kept where both have them.

It follows ept12 at INVEPT: each table remembers the entries it was made from, and only what differs is made
anew. Which tables INVEPT looks at is the tactic's: all, or those that are not tracked (`tracking`). With
accessed and dirty flags in ept12, a page that is not dirty there is mapped read-only here, so that the first
write comes back. It knows no VMCS: the caller reflects or resumes by the `Resolution`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Final, NamedTuple

from turtles.l0.mmu import ept
from turtles.l0.mmu.ept12 import Ept12Walker, Found, Walk12
from turtles.l0.mmu.tracking import WriteTracking
from turtles.l0.pool import PagePool, PoolExhausted
from turtles.l0.ports import Slots
from turtles.l0.ram import PAGE, L1Memory

_SPLIT: Final = -1  # l1_pa of a table that stands for a part of one ept12 leaf
_LEAF_BITS: Final = ept.MEMORY_TYPE | ept.IGNORE_PAT


class Tactic(Enum):
    """How ept02 learns of what L1 writes to ept12."""

    INVEPT = "invept"  # at INVEPT every table is compared
    EAGER = "eager"  # the paper: every table is tracked, each write of L1's changes ept02 at once
    UNSYNC = "unsync"  # later KVM: last-level tables are left writable and compared at INVEPT, others tracked


class Resolve(IntEnum):
    """What is to be done about an EPT violation of L2."""

    MAPPED = 0  # ept02 has the page now: resume
    DEVICE = 1  # `value` is an l1_pa that is not RAM
    REFLECT_VIOLATION = 2  # ept12 is at fault; `value` is the rights that it gives
    REFLECT_MISCONFIGURATION = 3
    TRACKED = 4  # a store to a page that holds tables which L0 mirrors; `value` is the l1_pa


class Resolution(NamedTuple):
    """`Resolve` and the value that belongs to it."""

    what: Resolve
    value: int = 0


_MAPPED: Final = Resolution(Resolve.MAPPED)
_MISCONFIGURED: Final = Resolution(Resolve.REFLECT_MISCONFIGURATION)


class Table:
    """One table of ept02 and the table of ept12 that it follows."""

    __slots__ = ("children", "entries", "host_pa", "image", "l1_pa", "level", "origins", "owner", "tracked")

    def __init__(self, owner: Ept02, host_pa: int, entries: Slots, level: int, l1_pa: int) -> None:
        self.owner = owner
        self.tracked = False
        self.host_pa = host_pa
        self.entries = entries
        self.level = level
        self.l1_pa = l1_pa
        self.children: dict[int, Table] = {}
        # ept12's table as last looked at; `origins` are its 512 entries.
        self.image = bytearray(PAGE if l1_pa != _SPLIT else 0)
        self.origins = memoryview(self.image).cast("Q")

    def written(self, l1_pa: int, width: int, data: int) -> None:
        """See Follower."""
        self.owner.written(self, l1_pa, width, data)

    def stored(self, l1_pa: int) -> None:
        """See Follower: L1's INVEPT says when it must show, as for a store of its own."""
        self.owner.doubtful[self] = None

    def untracked(self, l1_pa: int) -> None:
        """See Follower."""
        self.tracked = False
        self.owner.doubtful[self] = None


class Ept02:
    """The tables for one value of EPTP12. `invalidate` is silicon's INVEPT for an EPT pointer."""

    # `tracking` is needed for every tactic but INVEPT.

    def __init__(
        self,
        pool: PagePool,
        l1: L1Memory,
        walker: Ept12Walker,
        eptp12: int,
        invalidate: Callable[[int], None],
        tactic: Tactic = Tactic.INVEPT,
        tracking: WriteTracking | None = None,
    ) -> None:
        self._tracking = tracking if tactic is not Tactic.INVEPT else None
        self._lowest_tracked = 2 if tactic is Tactic.UNSYNC else 1
        # Tables that may differ from ept12, for the next INVEPT to look at; without tracking, all may.
        self.doubtful: dict[Table, None] = {}
        self.expected = -1  # l2_pa of a violation that L1 is handling
        self._pool = pool
        self._l1 = l1
        self._walker = walker
        self._walk = Walk12()
        self._invalidate = invalidate
        self._garbage: list[int] = []
        self.eptp12: Final = eptp12
        self.tracks_dirty: Final = bool(eptp12 & ept.EPTP_ACCESSED_DIRTY)
        self.alive = True
        self.pages = 0
        self._top = self._new_table(ept.TOP, eptp12 & ept.ADDRESS)
        self.eptp: Final = (
            self._top.host_pa | ept.EPTP_WALK_4 | ept.WRITE_BACK | (eptp12 & ept.EPTP_ACCESSED_DIRTY)
        )

    # --- faults ---

    def resolve(self, l2_pa: int, access: int) -> Resolution:
        """Answers an EPT violation at `l2_pa`; `access` is bits 2:0 of its qualification.

        Raises PoolExhausted where no page is left for a table.
        """
        walk = self._walker.walk(self._walk, self.eptp12, l2_pa, access)
        if walk.found is Found.MISCONFIGURATION:
            return _MISCONFIGURED
        if walk.found is Found.VIOLATION:
            return Resolution(Resolve.REFLECT_VIOLATION, walk.rights)
        if self.tracks_dirty:
            self._set_accessed_dirty(walk, l2_pa, bool(access & ept.WRITE))
        l1_pa = walk.l1_pa(l2_pa)
        level = self._largest(walk, l1_pa, l2_pa)
        if not level:
            return Resolution(Resolve.DEVICE, l1_pa)
        self._map(walk, l2_pa, l1_pa, level)
        self._collect()
        return _MAPPED

    def answer_expected(self) -> None:
        """L1 has handled the violation that it was given: what it mapped is taken over before L2 asks again.

        As for a read, so that nothing counts as dirty that L2 may never write.
        """
        l2_pa, self.expected = self.expected, -1
        self.resolve(l2_pa, ept.READ)

    def map_device(self, l2_pa: int, host_pa: int) -> None:
        """Maps one page of L1's device space, after `resolve` said DEVICE, to a page of L0's."""
        self._descend(self._walk, l2_pa, 1).entries[l2_pa >> 12 & 511] = host_pa | self._rights()
        self._collect()

    def _set_accessed_dirty(self, walk: Walk12, l2_pa: int, write: bool) -> None:
        """SDM 29.3.5: accessed in every entry used, dirty in the last where the access writes."""
        entries = walk.entries
        leaf = walk.leaf_level
        for level in range(ept.TOP, leaf - 1, -1):
            wanted = ept.ACCESSED | (ept.DIRTY if write and level == leaf else 0)
            if wanted & ~entries[level]:
                self._l1.set_bits64(walk.tables[level] + (l2_pa >> ept.SHIFT[level] & 511) * 8, wanted)
                entries[level] |= wanted

    def _largest(self, walk: Walk12, l1_pa: int, l2_pa: int) -> int:
        """The largest level at which the page round `l2_pa` is one piece of RAM; 0 if it is not RAM."""
        for level in range(min(walk.leaf_level, 3), 0, -1):
            size = ept.SIZE[level]
            host_pa = self._l1.contiguous(l1_pa & -size, size)
            if host_pa >= 0 and not host_pa & (size - 1):
                return level
        return 0

    def _rights(self) -> int:
        """Rights and memory type for the leaf of the last walk."""
        return self._leaf_bits(self._walk.leaf)

    def _leaf_bits(self, leaf: int) -> int:
        """What an ept02 leaf takes from ept12: rights (no writing while it is clean) and memory type."""
        if self.tracks_dirty and not leaf & ept.DIRTY:
            leaf &= ~ept.WRITE
        return leaf & (ept.RIGHTS | _LEAF_BITS)

    def _map(self, walk: Walk12, l2_pa: int, l1_pa: int, level: int) -> None:
        table = self._descend(walk, l2_pa, level)
        index = l2_pa >> ept.SHIFT[level] & 511
        if index in table.children:
            self._drop(table.children.pop(index))
        host_pa = self._l1.host_pa(l1_pa & -ept.SIZE[level])
        table.entries[index] = host_pa | self._rights() | (ept.LARGE if level > 1 else 0)

    def _descend(self, walk: Walk12, l2_pa: int, stop: int) -> Table:
        """The table at level `stop` for `l2_pa`, with all above it made to follow the walk's entries."""
        table = self._top
        leaf = walk.leaf_level
        for level in range(ept.TOP, stop - 1, -1):
            index = l2_pa >> ept.SHIFT[level] & 511
            if level >= leaf:
                origin = walk.entries[level]
                table.origins[index] = origin
                rights = ept.RIGHTS if level == leaf else origin & ept.RIGHTS
                follows = _SPLIT if level == leaf else origin & ept.ADDRESS
            else:
                rights, follows = ept.RIGHTS, _SPLIT
            if level == stop:
                break
            child = table.children.get(index)
            if child is None or child.l1_pa != follows:
                if child is not None:
                    table.entries[index] = 0
                    self._drop(table.children.pop(index))
                child = self._new_table(level - 1, follows)
                table.children[index] = child
            table.entries[index] = child.host_pa | rights
            table = child
        return table

    # --- following ept12 ---

    def resync(self) -> None:
        """Honours INVEPT: whatever ept12 says otherwise by now is changed or dropped here."""
        if self._tracking is None:
            self._compare_all()
        else:
            for table in tuple(self.doubtful):
                if table in self.doubtful:  # none of those before has dropped it
                    self._compare(table)
                    if table.tracked:
                        del self.doubtful[table]
        self._invalidate(self.eptp)
        self._collect(flushed=True)

    def _compare_all(self) -> None:
        pending = [self._top]
        while pending:
            table = pending.pop()
            if table.l1_pa != _SPLIT:
                self._compare(table)
            if table.level > 1:
                pending.extend(table.children.values())

    def _compare(self, table: Table) -> None:
        """Takes over the entries that differ from what this table was made from."""
        now = self._l1.read(table.l1_pa, PAGE)
        if now == table.image:
            return
        entries = table.entries
        for index, (new, old) in enumerate(zip(memoryview(now).cast("Q"), table.origins, strict=True)):
            if new != old and entries[index]:
                self._follow(table, index, new, old)
        table.image[:] = now

    def written(self, table: Table, l1_pa: int, width: int, data: int) -> None:
        """L1 is about to write to a tracked table: ept02 has the new entry at once.

        An instruction may store more than it was seen to (its first eight bytes are), so that the table is
        compared at the next INVEPT all the same.
        """
        self.doubtful[table] = None
        shift = 8 * (l1_pa & 7)
        if shift + 8 * width > 64:
            return
        index = l1_pa >> 3 & 511
        mask = (1 << 8 * width) - 1
        new = self._l1.load64(l1_pa & ~7) & ~(mask << shift) | (data & mask) << shift
        old = table.origins[index]
        if not table.entries[index]:
            self._take(table, index, new)
        elif new != old:
            self._follow(table, index, new, old)
        table.origins[index] = new
        self._collect()

    def _take(self, table: Table, index: int, new: int) -> None:
        """Maps the page of a leaf that L1 writes where nothing was, if it counts as used already."""
        level = table.level
        if not ept.is_leaf(new, level) or not self._usable(new, level):
            return
        size = ept.SIZE[level]
        host_pa = self._l1.contiguous(new & ept.ADDRESS & -size, size)
        if host_pa < 0 or host_pa & (size - 1):
            return
        table.entries[index] = host_pa | self._leaf_bits(new) | (ept.LARGE if level > 1 else 0)
        self.expected = -1

    def _follow(self, table: Table, index: int, new: int, old: int) -> None:
        """Brings one entry that was made from `old` in line with `new`."""
        entries = table.entries
        child = table.children.get(index)
        if child is None:
            entries[index] = self._remade_leaf(entries[index], new, old, table.level)
        elif child.l1_pa != _SPLIT and self._same_table(new, old, table.level):
            entries[index] = child.host_pa | new & ept.RIGHTS
        else:
            entries[index] = 0
            self._drop(table.children.pop(index))

    def _same_table(self, new: int, old: int, level: int) -> bool:
        """Whether an entry that references a table still does, with other rights at most."""
        return not (new ^ old) & (ept.ADDRESS | ept.LARGE) and self._usable(new, level)

    def _usable(self, new: int, level: int) -> bool:
        """Whether an entry may stand in ept02 before L2's next access: present, sound, and used already."""
        return (
            bool(new & ept.RIGHTS)
            and bool(new & ept.ACCESSED or not self.tracks_dirty)
            and not ept.misconfigured(new, level, self._walker.physical_bits, self._walker.execute_only)
        )

    def _remade_leaf(self, entry: int, new: int, old: int, level: int) -> int:
        """The ept02 leaf for a changed ept12 leaf: other rights or flags, or nothing (filled when used)."""
        if (new ^ old) & (ept.ADDRESS | ept.LARGE) or not self._usable(new, level):
            return 0
        return entry & ~(ept.RIGHTS | _LEAF_BITS) | self._leaf_bits(new)

    # --- pages ---

    def _new_table(self, level: int, l1_pa: int) -> Table:
        host_pa = self._pool.allocate()
        self.pages += 1
        table = Table(self, host_pa, self._pool.slots(host_pa), level, l1_pa)
        if self._tracking is not None and l1_pa != _SPLIT:
            if level >= self._lowest_tracked and self._l1.host_pa(l1_pa) >= 0:
                try:
                    self._tracking.add(l1_pa, table)
                except PoolExhausted:
                    self._garbage.append(host_pa)
                    raise
                table.tracked = True
            else:
                self.doubtful[table] = None
        return table

    def _drop(self, table: Table) -> None:
        """Takes a subtree out; its pages are free once no processor can walk them."""
        self._garbage.append(table.host_pa)
        if self._tracking is not None:
            self.doubtful.pop(table, None)
            if table.tracked:
                self._tracking.remove(table.l1_pa, table)
        for child in table.children.values():
            self._drop(child)

    def _collect(self, flushed: bool = False) -> None:
        if not self._garbage:
            return
        if not flushed:
            self._invalidate(self.eptp)
        for host_pa in self._garbage:
            self._pool.free(host_pa)
        self.pages -= len(self._garbage)
        self._garbage.clear()

    def release(self) -> None:
        """Gives every page back; the object is dead from here on."""
        self.alive = False
        self._drop(self._top)
        self._top.children.clear()
        self._collect()
