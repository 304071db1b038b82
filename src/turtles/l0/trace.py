"""What a trace hook gets for each exit: one flat record, made only while a hook is set.

The hook is any callable; writing files is the tools' matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class ExitRecord(NamedTuple):
    """An exit, after it was handled."""

    level: int
    reason: int
    rip: int
    qualification: int
    guest_physical: int
    retired: int
    entry_ns: int
    exit_ns: int
    reflected: bool
    context: int
    """The l1_pa of the vmcs12 that L2 ran with; 0 for L1."""
    note: str = ""
    """For an entry of L1's that failed: the rule it broke, with its SDM section."""


TraceHook = Callable[[ExitRecord], None]
