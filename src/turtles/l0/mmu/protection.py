"""Write tracking for shadow paging: guests' tables that no mirror maps writable, so that stores to them exit.

Shared by the families of mirrors, since a guest writes the tables of one through the pages of another. It
knows where each page of RAM is mapped writable (the reverse map), takes the right away when a page becomes
tracked, and tells who mirrors it of each store. A large page round a tracked one cannot stay large. A page
that is written again and again is given up: its mirror is then compared at flushes, until it stands still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.mmu import paging as P

if TYPE_CHECKING:
    from turtles.l0.mmu.mirror import Table

MOST_STORES: Final = 4
"""A table that gets more stores than this while it is tracked costs more exits than comparing it would."""

Place = tuple["Table", int]
"""A table of a mirror, and the index of an entry in it."""


class Protection:
    """Tracked pages by host-physical address. A leaf of a mirror is known by its address and level."""

    def __init__(self) -> None:
        self._holds = True
        self._followers: dict[int, list[Table]] = {}
        self._stores: dict[int, int] = {}
        # By level of the large page: its address, and how many tracked pages lie in it.
        self._within: tuple[dict[int, int], ...] = ({}, {}, {}, {})
        # By a leaf's address and level: where mirrors have it, writable.
        self._places: dict[int, dict[Place, None]] = {}

    def __contains__(self, host_pa: int) -> bool:
        return host_pa & ~0xFFF in self._followers

    def splits(self, host_pa: int, level: int) -> bool:
        """Whether the large page at `host_pa` holds a tracked one."""
        return host_pa in self._within[level]

    def rights(self, leaf: int, level: int) -> int:
        """A leaf as it may stand in a mirror: read-only where the page is tracked."""
        return leaf & ~P.WRITABLE if level == 1 and leaf & P.ADDRESS in self._followers else leaf

    # --- the reverse map ---

    def mapped(self, table: Table, index: int, leaf: int) -> None:
        """A writable leaf has been put into a mirror."""
        key = leaf & P.ADDRESS | table.level
        places = self._places.get(key)
        if places is None:
            self._places[key] = {(table, index): None}
        else:
            places[table, index] = None

    def unmapped(self, table: Table, index: int, leaf: int) -> None:
        """It is there no more."""
        key = leaf & P.ADDRESS | table.level
        places = self._places.get(key)
        if places is not None:
            places.pop((table, index), None)
            if not places:
                del self._places[key]

    # --- tracking ---

    def follow_wp(self, wp: bool) -> None:
        """What runs next has CR0.WP set or not: without, a supervisor writes read-only pages, unseen."""
        if wp != self._holds:
            self._holds = wp
            for page in () if wp else tuple(self._followers):
                self.give_up(page)

    def track(self, table: Table) -> None:
        """From now on stores to the guest's table that `table` mirrors exit."""
        if not self._holds:
            return
        page = table.source & ~0xFFF
        table.tracked = True
        followers = self._followers.get(page)
        if followers is not None:
            followers.append(table)
            return
        self._followers[page] = [table]
        self._stores[page] = 0
        for place, index in self._places.pop(page | 1, ()):
            place.entries[index] &= ~P.WRITABLE
            place.family.reduced()
        for level in (2, 3):
            large = page & -P.SIZE[level]
            self._within[level][large] = self._within[level].get(large, 0) + 1
            for place, index in self._places.pop(large | level, ()):
                place.entries[index] = 0  # filled again by what is used, with smaller pages
                place.family.reduced()

    def give_up(self, host_pa: int) -> None:
        """Stores to the page pass from now on; what it holds is compared at the next flush."""
        page = host_pa & ~0xFFF
        for table in self._followers.pop(page, ()):
            table.tracked = False
            table.still = 0
        if self._stores.pop(page, None) is not None:
            for level in (2, 3):
                large = page & -P.SIZE[level]
                within = self._within[level]
                within[large] -= 1
                if not within[large]:
                    del within[large]

    def stored(self, host_pa: int, width: int) -> None:
        """The guest has stored to a tracked page: its mirrors follow, or it is given up."""
        page = host_pa & ~0xFFF
        self._stores[page] += 1
        if self._stores[page] > MOST_STORES:
            self.give_up(page)
            return
        for table in tuple(self._followers[page]):
            table.family.follow_store(table, host_pa, width)

    def clear(self) -> None:
        """No mirror is left."""
        self._followers.clear()
        self._stores.clear()
        self._places.clear()
        for within in self._within:
            within.clear()
