"""L1's VPIDs remapped to silicon's: L1 may use any, and must not meet the one that it runs under itself.

A mapping lives until the numbers run out; then all are given up, with a flush of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

FIRST: Final = 2  # 0 means "no VPID", 1 is vmcs01's
LAST: Final = 0xFFFF


class Vpids:
    """The mapping of one virtual CPU. `flush` invalidates everything tagged with one of silicon's VPIDs."""

    def __init__(self, flush: Callable[[int], None], last: int = LAST) -> None:
        self._flush = flush
        self._last = last
        self._of: dict[int, int] = {}

    def map(self, vpid12: int) -> int:
        """Silicon's VPID for L1's, made where there is none."""
        vpid02 = self._of.get(vpid12)
        if vpid02 is None:
            vpid02 = FIRST + len(self._of)
            if vpid02 > self._last:
                for old in self._of.values():
                    self._flush(old)
                self._of.clear()
                vpid02 = FIRST
            self._of[vpid12] = vpid02
        return vpid02

    def find(self, vpid12: int) -> int | None:
        """Silicon's VPID for L1's, if there is one."""
        return self._of.get(vpid12)

    def all(self) -> Iterable[int]:
        """Every VPID of silicon's in use for L1's guests."""
        return self._of.values()
