"""`Copies`: what is copied and compared in one call, and what it refuses."""

from __future__ import annotations

import pytest

from turtles.silicon import Copies, Memory, Vmcs
from turtles.silicon import fields as F

PAGE = 4096


@pytest.fixture
def memory() -> Memory:
    return Memory(16 * PAGE, 16 * PAGE)


def slots(*values: int) -> memoryview[int]:
    return memoryview(bytearray(b"".join(v.to_bytes(8, "little") for v in values))).cast("Q")


def test_copies_are_made_in_order_between_all_kinds_of_arrays(memory: Memory) -> None:
    vmcs = Vmcs(memory, 0)
    there, back = slots(1, 2, 3), slots(0, 0)
    copies = Copies(
        memory, [(vmcs.slots[F.GUEST_RIP : F.GUEST_RIP + 2], there[1:]), (back, vmcs.slots[8:10])]
    )
    assert copies.run() == 0
    assert (vmcs.slots[F.GUEST_RIP], vmcs.slots[F.GUEST_RSP], list(back)) == (2, 3, [2, 3])
    there[1] = 7
    copies.run()
    assert list(back) == [7, 3]


def test_a_comparison_tells_what_differs_before_the_copies(memory: Memory) -> None:
    vmcs = Vmcs(memory, PAGE)
    compared = [(PAGE + 8 * F.GUEST_RIP, bytes(8)), (0, b"\1"), (2 * PAGE, bytes(PAGE))]
    copies = Copies(memory, [(vmcs.slots[F.GUEST_RIP : F.GUEST_RIP + 1], slots(5))], compared)
    assert copies.run() == 1 << 1
    memory.write(3 * PAGE - 1, b"\1")
    memory.write(0, b"\1")
    assert copies.run() == 1 << 0 | 1 << 2


def test_what_cannot_be_copied_or_compared_is_refused(memory: Memory) -> None:
    with pytest.raises(ValueError, match="2 slots cannot become 1"):
        Copies(memory, [(slots(0), slots(0, 0))])
    with pytest.raises(BufferError):
        Copies(memory, [(memoryview(bytes(8)).cast("Q"), slots(0))])
    with pytest.raises(BufferError):
        Copies(memory, [(slots(0, 0), slots(1, 2, 3, 4)[::2])])
    with pytest.raises(ValueError, match="outside of memory"):
        Copies(memory, [], [(32 * PAGE - 1, b"\1\2")])
    with pytest.raises(ValueError, match="more than 30"):
        Copies(memory, [], [(0, b"\1")] * 31)
