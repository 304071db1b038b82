"""virtio over PCI: capabilities, negotiation, interrupts, reset (virtio 1.2, chapters 3 and 4.1)."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeMemory
from tests.devices.virtio.driver import BUFFERS, FEATURES, Driver
from turtles.devices.virtio import pci
from turtles.devices.virtio.device import FEATURE_EVENT_INDEX
from turtles.devices.virtio.queue import NO_INTERRUPT
from turtles.devices.virtio.rng import VirtioRng


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory()


def rng(memory: FakeMemory, **options: int) -> Driver:
    return Driver(VirtioRng(memory, seed=7), memory, **options)


def fill(driver: Driver, length: int = 16) -> None:
    driver.chain((BUFFERS, length, True))
    driver.offer(0)


def test_identity_and_capabilities(memory: FakeMemory) -> None:
    function = rng(memory).function
    assert function.config_read(0, 4) == 0x1044_1AF4
    assert function.config_read(8, 1) >= 1
    kinds = {}
    offset = function.config_read(0x34, 1)
    while offset:
        if function.config_read(offset, 1) == 0x09:
            kinds[function.config_read(offset + 3, 1)] = offset
        offset = function.config_read(offset + 1, 1)
    assert set(kinds) == {1, 2, 3, 4, 5}
    for offset in kinds.values():
        assert function.config_read(offset + 2, 1) >= 16


def test_version_1_is_required(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.put(20, 1, 0)
    driver.features = 0
    driver.negotiate()
    assert not driver.status & pci.FEATURES_OK
    driver.features = FEATURES | 1 << 5  # a feature that was not offered
    driver.negotiate()
    assert not driver.status & pci.FEATURES_OK


def test_buffers_are_filled_the_same_for_a_seed(memory: FakeMemory) -> None:
    first, second = rng(memory), rng(other := FakeMemory())
    fill(first, 64)
    fill(second, 64)
    assert first.used(0) == (0, 64)
    assert memory.read(BUFFERS, 64) == other.read(BUFFERS, 64) != bytes(64)


def test_intx_until_isr_is_read(memory: FakeMemory) -> None:
    driver = rng(memory)
    levels: list[bool] = []
    driver.function.intx = levels.append
    fill(driver)
    assert levels == [True]
    assert driver.get(pci.ISR, 1) == pci.ISR_QUEUE
    assert driver.get(pci.ISR, 1) == 0
    assert levels == [True, False]


def test_msix_instead_of_intx(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.enable_msix()
    fill(driver)
    assert driver.messages == [(0xFEE0_0000, 0x41)]
    assert driver.get(pci.ISR, 1) == 0


def test_vectors_out_of_range_read_back_as_none(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.put(16, 2, 9)
    driver.put(26, 2, 9)
    assert driver.get(16, 2) == driver.get(26, 2) == 0xFFFF


def test_no_interrupt_flag(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.enable_msix()
    memory.write(0x3000, NO_INTERRUPT.to_bytes(2, "little"))
    fill(driver)
    assert driver.used_index == 1
    assert driver.messages == []


def test_event_index_in_both_directions(memory: FakeMemory) -> None:
    driver = rng(memory, features=FEATURES | FEATURE_EVENT_INDEX)
    driver.enable_msix()
    memory.write(0x3000 + 4 + 2 * 16, (1).to_bytes(2, "little"))  # used_event: after the second
    fill(driver)
    assert driver.messages == []
    fill(driver)
    assert len(driver.messages) == 1
    assert memory.read(0x4000 + 4 + 8 * 16, 2) == (2).to_bytes(2, "little")  # avail_event


def test_rings_wrap(memory: FakeMemory) -> None:
    driver = rng(memory, size=4)
    for count in range(1, 200):
        fill(driver)
        assert driver.used_index == count
    driver.chain((BUFFERS, 4, True), first=1)
    driver.offer(0, 1)
    assert driver.used_index == 201


def test_reset_forgets_everything(memory: FakeMemory) -> None:
    driver = rng(memory)
    fill(driver)
    driver.put(20, 1, 0)
    assert driver.status == 0
    assert (driver.get(28, 2), driver.get(32, 8), driver.get(pci.ISR, 1)) == (0, 0, 0)
    driver.put(pci.NOTIFY, 2, 0)
    assert driver.used_index == 1
    driver.start()
    fill(driver)
    assert driver.used_index == 1


def test_a_notification_before_driver_ok_is_ignored(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.put(20, 1, 0)
    driver.negotiate()
    fill(driver)
    assert driver.used_index == 0


@pytest.mark.parametrize("size", [0, 3, 257, 512, 0xFFFF])
def test_bad_queue_sizes_need_a_reset(memory: FakeMemory, size: int) -> None:
    driver = rng(memory)
    driver.put(20, 1, 0)
    driver.size = size
    driver.start()
    assert driver.status & pci.NEEDS_RESET
    driver.put(20, 1, 0)
    driver.size = 16
    driver.start()
    fill(driver)
    assert driver.used_index == 1


def test_enabled_queues_do_not_move(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.put(32, 8, 0xDEAD_0000)
    driver.put(24, 2, 8)
    assert driver.get(32, 8) == 0x1000
    assert driver.get(24, 2) == 16


def test_queues_that_do_not_exist(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.put(22, 2, 77)
    assert driver.get(24, 2) == 0
    driver.put(28, 2, 1)
    driver.put(pci.NOTIFY + 4 * 77, 2, 77)
    assert driver.status & pci.DRIVER_OK
    assert not driver.status & pci.NEEDS_RESET


def test_window_in_configuration_space(memory: FakeMemory) -> None:
    function = rng(memory).function
    window = function._window
    function.config_write(window + 4, 1, 0)
    function.config_write(window + 8, 4, 18)  # num_queues
    function.config_write(window + 12, 4, 2)
    assert function.config_read(window + 16, 2) == 1
    function.config_write(window + 8, 4, 20)  # status
    function.config_write(window + 12, 4, 1)
    function.config_write(window + 16, 1, 0)
    assert function.read(20, 1) == 0
    for bad in (0xFFFF_FFFF, 0x7FFF):
        function.config_write(window + 8, 4, bad)
        function.config_write(window + 12, 4, 4)
        function.config_write(window + 16, 4, 0)


def test_needs_reset_interrupts_as_a_configuration_change(memory: FakeMemory) -> None:
    driver = rng(memory)
    driver.enable_msix()
    driver.chain((1 << 40, 16, True))
    driver.offer(0)
    assert driver.status & pci.NEEDS_RESET
    assert driver.messages == [(0xFEE0_0000, 0x40)]
    assert driver.function.last_error
