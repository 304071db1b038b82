"""Misconfiguration and EPT-pointer rules of SDM 29.3.3.1 and 27.2.1.1, case by case."""

from __future__ import annotations

import pytest

from turtles.l0.mmu import ept

WB = 6 << 3


@pytest.mark.parametrize(
    ("entry", "level", "execute_only", "bad"),
    [
        (0x3000 | 7 | WB, 1, True, False),
        (0x3000 | 2 | WB, 1, True, True),  # write without read
        (0x3000 | 6 | WB, 1, True, True),
        (0x3000 | 4 | WB, 1, True, False),  # execute-only
        (0x3000 | 4 | WB, 1, False, True),
        (0x3000 | 7 | 2 << 3, 1, True, True),  # memory types 2, 3, 7
        (0x3000 | 7 | 3 << 3, 1, True, True),
        (0x3000 | 7 | 7 << 3, 1, True, True),
        (0x3000 | 7 | 4 << 3, 1, True, False),
        (1 << 40 | 7 | WB, 1, True, True),  # beyond the physical-address width
        (0x3000 | 7, 4, True, False),
        (0x3000 | 7 | 1 << 7, 4, True, True),  # PML4E bits 7:3
        (0x3000 | 7 | 1 << 3, 4, True, True),
        (0x3000 | 7 | 1 << 6, 3, True, True),  # PDPTE that references a table: bits 6:3
        (0x4000_0000 | 7 | WB | ept.LARGE, 3, True, False),
        (0x4000_1000 | 7 | WB | ept.LARGE, 3, True, True),  # 1 GiB not aligned
        (0x20_0000 | 7 | WB | ept.LARGE, 2, True, False),
        (0x20_1000 | 7 | WB | ept.LARGE, 2, True, True),
    ],
)
def test_misconfigurations(entry: int, level: int, execute_only: bool, bad: bool) -> None:
    assert ept.misconfigured(entry, level, 40, execute_only) is bad


@pytest.mark.parametrize(
    ("eptp", "valid"),
    [
        (0x1000 | 3 << 3 | 6, True),
        (0x1000 | 3 << 3, True),
        (0x1000 | 3 << 3 | 6 | 1 << 6, True),
        (0x1000 | 3 << 3 | 5, False),
        (0x1000 | 4 << 3 | 6, False),
        (0x1000 | 3 << 3 | 6 | 1 << 7, False),
        (1 << 40 | 3 << 3 | 6, False),
    ],
)
def test_ept_pointers(eptp: int, valid: bool) -> None:
    assert ept.valid_eptp(eptp, 40, accessed_dirty=True) is valid


def test_accessed_and_dirty_flags_only_where_offered() -> None:
    assert not ept.valid_eptp(0x1000 | 3 << 3 | 6 | 1 << 6, 40, accessed_dirty=False)
