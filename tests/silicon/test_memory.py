"""`Memory` as Python sees it: bounds, atomics, DMA windows, pool views."""

from __future__ import annotations

from typing import Any

import pytest

from turtles.silicon import Memory

PAGE = 4096
RAM = 1 << 20
POOL = 64 << 10


@pytest.fixture
def memory() -> Memory:
    return Memory(RAM, POOL)


def test_sizes(memory: Memory) -> None:
    assert (memory.size, memory.total, len(memory)) == (RAM, RAM + POOL, RAM + POOL)
    assert Memory(1, 0).size == PAGE


def test_bytes(memory: Memory) -> None:
    assert memory.read(100, 3) == b"\0\0\0"
    memory.write(PAGE - 2, b"abcd")
    memory.write(PAGE + 2, bytearray(b"ef"))
    memory.write(PAGE + 4, memoryview(b"--gh--")[2:4])
    assert memory.read(PAGE - 2, 8) == b"abcdefgh"
    memory.copy(PAGE, PAGE - 2, 8)
    assert memory.read(PAGE, 8) == b"abcdefgh"
    memory.fill(PAGE + 1, 2, 0x2E)
    assert memory.read(PAGE, 4) == b"a..d"
    assert memory.read(RAM + POOL, 0) == b""


def test_a_readonly_buffer(memory: Memory) -> None:
    memory.write(5, b"xyz")
    buffer: Any = memory  # the buffer protocol has a name from Python 3.12 on
    view = memoryview(buffer)
    assert view.readonly and len(view) == RAM + POOL
    assert bytes(view[5:8]) == b"xyz"
    memory.write(5, b"X")
    assert view[5] == ord("X")


@pytest.mark.parametrize("pa", [RAM + POOL - 3, RAM + POOL, 1 << 40, (1 << 64) - 1])
def test_outside_is_an_error(memory: Memory, pa: int) -> None:
    for call in (
        lambda: memory.read(pa, 4),
        lambda: memory.write(pa, b"1234"),
        lambda: memory.fill(pa, 4),
        lambda: memory.copy(0, pa, 4),
        lambda: memory.copy(pa, 0, 4),
        lambda: memory.load(pa, 4),
        lambda: memory.dma(pa, 4),
        lambda: memory.pool_view(pa, 8),
    ):
        with pytest.raises(ValueError):
            call()


def test_negative_addresses_are_an_error(memory: Memory) -> None:
    with pytest.raises(OverflowError):
        memory.read(-1, 4)


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_atomics(memory: Memory, width: int) -> None:
    ones = (1 << 8 * width) - 1
    memory.store(64, width, 0x1122334455667788 & ones)
    assert memory.load(64, width) == 0x1122334455667788 & ones
    memory.store(64, width, 1)
    assert memory.fetch_or(64, width, 6) == 1
    assert memory.fetch_and(64, width, 3) == 7
    assert memory.cmpxchg(64, width, 9, 5) == 3
    assert memory.cmpxchg(64, width, 3, ones) == 3
    assert memory.load(64, 8) == ones | (memory.load(64, 8) & ~ones)
    if width > 1:
        with pytest.raises(ValueError):
            memory.load(65, width)


@pytest.mark.parametrize("width", [0, 3, 16])
def test_odd_widths_are_an_error(memory: Memory, width: int) -> None:
    with pytest.raises(ValueError):
        memory.load(64, width)


def test_dma_window(memory: Memory) -> None:
    memory.take_dirty()
    with memory.dma(2 * PAGE - 1, 2) as view:
        assert not view.readonly
        view[:] = b"ab"
        assert memory.take_dirty() == []
    assert memory.read(2 * PAGE - 1, 2) == b"ab"
    assert memory.take_dirty() == [1, 2]
    with pytest.raises(ValueError):
        view[0] = 1
    window = memory.dma(0, 16)
    assert window.view is window.view
    window.close()
    window.close()
    with pytest.raises(ValueError):
        _ = window.view


def test_a_window_in_use_does_not_close(memory: Memory) -> None:
    window = memory.dma(0, 16)
    part = window.view[2:4]
    with pytest.raises(BufferError):
        window.close()
    part.release()
    window.close()


def test_pool_view(memory: Memory) -> None:
    view = memory.pool_view(RAM + PAGE)
    assert (view.format, len(view), view.readonly) == ("Q", 512, False)
    view[3] = 0xFFFF_FFFF_FFFF_FFFF
    assert memory.load(RAM + PAGE + 24) == 0xFFFF_FFFF_FFFF_FFFF
    assert len(memory.pool_view(RAM, 2 * PAGE)) == 1024
    with pytest.raises(ValueError):
        memory.pool_view(0)
    with pytest.raises(ValueError):
        memory.pool_view(RAM + 4)


def test_views_keep_memory_alive() -> None:
    view = Memory(PAGE, PAGE).pool_view(PAGE)
    view[0] = 7
    assert view[0] == 7


def test_dirty_pages(memory: Memory) -> None:
    assert memory.take_dirty() == []
    memory.store(3 * PAGE, 1, 1)
    memory.write(5 * PAGE - 1, b"12")
    assert memory.page_flags(3 * PAGE) & 1
    assert memory.take_dirty() == [3, 4, 5]
    assert memory.take_dirty() == []


def test_invalidation_without_cores_returns(memory: Memory) -> None:
    memory.invept()
    memory.invept(0x1000 | 0x1E)
    for kind in range(4):
        memory.invvpid(kind, 1, 0x1000)
    with pytest.raises(ValueError):
        memory.invvpid(4)


def test_too_much_memory_is_refused() -> None:
    with pytest.raises(MemoryError):
        Memory(1 << 50)
