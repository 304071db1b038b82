"""Records of exits made by hand, with times that add up."""

from __future__ import annotations

from turtles.l0.trace import ExitRecord
from turtles.silicon import ExitReason

SWITCH, RUN, HANDLE = 1, 10, 100
"""Nanoseconds of an entry or an exit, of a guest's run, of L0's work on one exit."""


class Story:
    """Tells exits one after the other. A guest retires 7 instructions in each run."""

    def __init__(self) -> None:
        self.records: list[ExitRecord] = []
        self._now = 0
        self._retired = 0

    def exit(
        self, level: int, reason: ExitReason, context: int = 0, pointer: int = 0, *, reflected: bool = False
    ) -> Story:
        """One exit of L1, or of what runs with the vmcs12 `context`."""
        before = self._now
        entry = before + SWITCH
        self._retired += 7
        self.records.append(
            ExitRecord(
                reason=reason,
                level=level,
                context=context,
                rip=0x1000,
                qualification=0,
                guest_physical=0,
                rax=0,
                rcx=0,
                retired=self._retired,
                before_ns=before,
                entry_ns=entry,
                exit_ns=entry + RUN,
                after_ns=entry + RUN + SWITCH,
                ept_pointer=pointer,
                as_reason=reason if reflected else -1,
                idle_ns=0,
            )
        )
        self._now = entry + RUN + SWITCH + HANDLE
        return self

    def l1(self, *reasons: ExitReason) -> Story:
        """Exits of L1."""
        for reason in reasons:
            self.exit(1, reason)
        return self

    def l2(self, reason: ExitReason, context: int = 0xA000, pointer: int = 0) -> Story:
        """An exit that L1 is given."""
        return self.exit(2, reason, context, pointer, reflected=True)
