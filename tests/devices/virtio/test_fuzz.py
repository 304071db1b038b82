"""Hostile drivers: whatever lies in the rings and registers, no exception, no write where none is allowed."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.fakes import FakeMemory, FakeTime
from tests.devices.virtio.driver import AVAILABLE, BUFFERS, DESCRIPTORS, FEATURES, USED, Driver
from turtles.devices.virtio import pci
from turtles.devices.virtio.block import VirtioBlock
from turtles.devices.virtio.device import FEATURE_EVENT_INDEX, FEATURE_INDIRECT
from turtles.devices.virtio.executor import VirtualTimeExecutor
from turtles.devices.virtio.rng import VirtioRng

RAM = 1 << 18
DISK = 1 << 16

addresses = st.one_of(
    st.integers(0, RAM + 64),
    st.sampled_from(
        [DESCRIPTORS, AVAILABLE, USED, BUFFERS, RAM - 1, RAM, (1 << 64) - 1, (1 << 64) - 16, 1 << 63]
    ),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(
    st.integers(0, 4096),
    st.sampled_from([0, 1, 15, 16, 32, 512, 0xFFFF_FFFF, RAM]),
    st.integers(0, 0xFFFF_FFFF),
)
descriptors = st.tuples(
    addresses, lengths, st.integers(0, 7), st.one_of(st.integers(0, 17), st.integers(0, 0xFFFF))
)
headers = st.tuples(
    st.sampled_from([0, 1, 4, 8, 11, 13, 0xFFFF_FFFF]),
    st.integers(0, 3),
    st.one_of(st.integers(0, 200), st.integers(0, (1 << 64) - 1)),
)


class MemoryImage:
    """A disk in memory that checks what it is asked."""

    def __init__(self, size: int = DISK) -> None:
        self.size = size
        self.read_only = False
        self.data = bytearray(size)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        assert offset >= 0 and offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def block(features: int) -> tuple[Driver, FakeTime]:
    memory, time = FakeMemory(RAM), FakeTime()
    device = VirtioBlock(memory, MemoryImage(), VirtualTimeExecutor(time, time))
    return Driver(device, memory, features=features), time


@settings(max_examples=400, deadline=None)
@given(
    st.lists(descriptors, min_size=1, max_size=16),
    st.lists(st.one_of(st.integers(0, 15), st.integers(0, 0xFFFF)), min_size=1, max_size=16),
    headers,
    st.one_of(st.integers(0, 17), st.integers(0, 0xFFFF)),
    st.booleans(),
)
def test_block_ring_contents(
    table: list[tuple[int, int, int, int]],
    heads: list[int],
    header: tuple[int, int, int],
    index: int,
    extended: bool,
) -> None:
    driver, time = block(FEATURES | (FEATURE_INDIRECT | FEATURE_EVENT_INDEX if extended else 0))
    for at in (BUFFERS, 0, DESCRIPTORS + 0x800):
        driver.memory.write(at, struct.pack("<IIQ", *header))
    for i, descriptor in enumerate(table):
        driver.descriptor(i, *descriptor)
    for i, head in enumerate(heads):
        driver.memory.write(AVAILABLE + 4 + 2 * i, struct.pack("<H", head))
    driver.memory.write(AVAILABLE + 2, struct.pack("<H", index))
    driver.put(pci.NOTIFY, 2, 0)
    time.advance(10**12)
    driver.put(20, 1, 0)  # and it always comes back
    driver.start()
    assert not driver.status & pci.NEEDS_RESET
    driver.memory.write(BUFFERS, struct.pack("<IIQ", 0, 0, 1))
    driver.chain((BUFFERS, 16, False), (BUFFERS + 512, 512, True), (BUFFERS + 1024, 1, True))
    driver.offer(0)
    time.advance(10**12)
    assert driver.used(0) == (0, 513)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 60), st.integers(0, pci.BAR_SIZE - 8)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_register_accesses(accesses: list[tuple[int, int, int, bool]]) -> None:
    driver, time = block(FEATURES)
    for offset, width, value, write in accesses:
        if write:
            driver.function.write(offset, width, value & (1 << 8 * width) - 1)
        else:
            assert driver.function.read(offset, width) >= 0
    time.advance(10**12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 255), st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFF_FFFF), st.booleans()
        ),
        max_size=60,
    )
)
def test_configuration_accesses(accesses: list[tuple[int, int, int, bool]]) -> None:
    driver, time = block(FEATURES)
    for offset, width, value, write in accesses:
        if write:
            driver.function.config_write(offset, width, value & (1 << 8 * width) - 1)
        else:
            assert driver.function.config_read(offset, width) >= 0
    time.advance(10**12)
    assert driver.function.config_read(0, 4) == 0x1042_1AF4


@settings(max_examples=100, deadline=None)
@given(st.lists(descriptors, min_size=1, max_size=16), st.integers(0, 16))
def test_rng_ring_contents(table: list[tuple[int, int, int, int]], count: int) -> None:
    memory = FakeMemory(RAM)
    driver = Driver(VirtioRng(memory, seed=1), memory)
    for i, descriptor in enumerate(table):
        driver.descriptor(i, *descriptor)
    driver.offer(*range(count))
    driver.put(20, 1, 0)
    driver.start()
    driver.chain((BUFFERS, 64, True))
    driver.offer(0)
    assert driver.used(0) == (0, 64)


def test_a_loop_of_descriptors_ends() -> None:
    driver, _ = block(FEATURES)
    driver.descriptor(0, BUFFERS, 16, 1, 1)
    driver.descriptor(1, BUFFERS, 16, 1, 0)
    driver.offer(0)
    assert driver.status & pci.NEEDS_RESET
    assert "loop" in driver.function.last_error
