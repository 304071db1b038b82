"""Exits as a tree: under each exit of L2 those that L1 caused while it handled it, its VMRESUME counted.

An exit's handling lasts from the exit until its level runs again, or one above it. Levels above 2 are
inferred: to L0 each is an L2, with another vmcs12 of L1's. Not here: counting and showing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import sub
from typing import Final

from turtles.l0.trace import ExitRecord
from turtles.silicon import ExitReason

LEVELS: Final = 6
"""L0 to L5; deeper ones count as L5."""
_ENTRIES: Final = (int(ExitReason.VMLAUNCH), int(ExitReason.VMRESUME))
_L0, _SWITCHING, _IDLE, _RAN = 0, 1, 2, 3
_RETIRED, _EXITS = _RAN + LEVELS, _RAN + 2 * LEVELS


class Spent(tuple[int, ...]):
    """Where time and instructions went between two moments: L0, switching, idle, then three runs by level."""

    __slots__ = ()

    @property
    def l0_ns(self) -> int:
        """In L0."""
        return self[0]

    @property
    def switching_ns(self) -> int:
        """In VM entries and exits."""
        return self[1]

    @property
    def idle_ns(self) -> int:
        """Asleep."""
        return self[2]

    @property
    def ran_ns(self) -> tuple[int, ...]:
        """In guests, by level."""
        return self[_RAN : _RAN + LEVELS]

    @property
    def retired(self) -> tuple[int, ...]:
        """Instructions by level."""
        return self[_RETIRED : _RETIRED + LEVELS]

    @property
    def exits(self) -> tuple[int, ...]:
        """Exits by level."""
        return self[_EXITS : _EXITS + LEVELS]

    @property
    def total_ns(self) -> int:
        """All of the time."""
        return sum(self[:_RETIRED])


@dataclass(slots=True)
class Exit:
    """An exit with what followed it."""

    number: int
    """Of its record, from 0."""
    level: int
    record: ExitRecord
    ran_retired: int
    """Instructions that the level executed before it, since its last exit."""
    begin: tuple[int, ...]
    """Everything spent up to it, itself counted."""
    handling: Spent | None = None
    """What its handling took; None if its level never ran again."""
    end_ns: int = 0
    children: list[Exit] = field(default_factory=list)

    @property
    def ran_ns(self) -> int:
        """How long the level had run."""
        return self.record.exit_ns - self.record.entry_ns

    @property
    def handled_by(self) -> int:
        """The level that dealt with it: the highest that ran meanwhile, else L0 itself."""
        if not self.record.reflected:
            return 0
        return max((child.level for child in self.children), default=1)

    def walk(self) -> Iterator[Exit]:
        """This exit and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


class Levels:
    """The level that a vmcs12 of L1's stands for, told by what L1 did before it was entered first.

    L1 makes a vmcs12 for its guest L2, and where that is a hypervisor, another for L2's guest, which it
    enters when L2 executes VMLAUNCH or VMRESUME. A hypervisor may use one vmcs12 for all levels above L2, as
    KVM does: then the EPT pointer tells them apart.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[int, int], int] = {}

    def level(self, record: ExitRecord, pending: Iterable[Exit]) -> int:
        """The level that an exit came from. `pending`: the exits that are being handled."""
        if record.level < 2:
            return record.level
        key = record.context, record.ept_pointer
        found = self._of.get(key)
        if found is None:
            entering = [x.level for x in pending if x.record.basic in _ENTRIES and x.record.reflected]
            found = self._of[key] = min(max(entering, default=1) + 1, LEVELS - 1)
        return found


class Forest:
    """Makes trees of the exits of one virtual CPU; `spent` is what all of them took so far."""

    def __init__(self) -> None:
        self._levels = Levels()
        self._counts = [0] * (_EXITS + LEVELS)

    @property
    def spent(self) -> Spent:
        """So far."""
        return Spent(self._counts)

    def grow(self, records: Iterable[ExitRecord]) -> Iterator[Exit]:
        """The exits that are under no other, each when it is complete; at last those that never ended."""
        counts, level_of = self._counts, self._levels.level
        stack: list[Exit] = []
        last: ExitRecord | None = None
        retired = 0
        for number, record in enumerate(records):
            level = level_of(record, stack) if record.level > 1 else 1
            before, entry, exit_, after = record.before_ns, record.entry_ns, record.exit_ns, record.after_ns
            if last is not None:
                counts[_L0] += before - last.after_ns - last.idle_ns
                counts[_IDLE] += last.idle_ns
            counts[_SWITCHING] += entry - before
            while stack and stack[-1].level <= level:
                done = stack.pop()
                done.handling, done.end_ns = Spent(map(sub, counts, done.begin)), entry
                if not stack:
                    yield done
            counts[_RAN + level] += exit_ - entry
            ran = record.retired - retired
            counts[_RETIRED + level] += ran
            retired = record.retired
            counts[_EXITS + level] += 1
            new = Exit(number, level, record, ran, tuple(counts))
            counts[_SWITCHING] += after - exit_
            if stack:
                stack[-1].children.append(new)
            stack.append(new)
            last = record
        if last is not None:
            counts[_IDLE] += last.idle_ns
        if stack:
            yield stack[0]
