"""Layout, buses, event queue and memory of the board."""

from __future__ import annotations

import itertools
import threading

import pytest

from tests.board.rig import HostRam
from turtles.board import layout
from turtles.board.bus import MmioBus, PortBus
from turtles.board.events import FOREVER, RUN_LIMIT, EventQueue
from turtles.board.layout import GIB, MIB, MemoryKind
from turtles.board.memory import L1Memory
from turtles.devices.interfaces import GuestMemoryError

SIZES = (1 * MIB, 64 * MIB, 3 * GIB, 3 * GIB + MIB, 8 * GIB)


@pytest.mark.parametrize("size", SIZES)
def test_memory_map_is_sorted_disjoint_and_complete(size: int) -> None:
    entries = sorted(layout.e820(size))
    for before, after in itertools.pairwise(entries):
        assert before.start + before.size <= after.start
    usable = sum(entry.size for entry in entries if entry.kind is MemoryKind.RAM)
    firmware = layout.LEGACY_END - layout.EBDA
    assert usable == size - firmware


@pytest.mark.parametrize("size", SIZES)
def test_host_pa_is_a_bijection_of_ram(size: int) -> None:
    covered = 0
    for l1_pa, host, length in layout.ram_ranges(size):
        assert layout.host_pa(l1_pa, size) == host == covered
        assert layout.host_pa(l1_pa + length - 1, size) == host + length - 1
        assert layout.host_pa(l1_pa + length, size) is None
        covered += length
    assert covered == size


def test_device_areas_do_not_overlap() -> None:
    areas = sorted(
        [
            (layout.PCI_WINDOW, layout.PCI_WINDOW_END),
            (layout.ECAM, layout.ECAM + layout.ECAM_SIZE),
            (layout.IO_APIC, layout.IO_APIC + layout.IO_APIC_SIZE),
            (layout.LOCAL_APIC, layout.LOCAL_APIC + layout.LOCAL_APIC_SIZE),
            (layout.PCI_WINDOW_64, layout.PCI_WINDOW_64 + layout.PCI_WINDOW_64_SIZE),
        ]
    )
    for (_, end), (start, _) in itertools.pairwise(areas):
        assert end <= start
    assert areas[0][0] >= layout.LOW_RAM_LIMIT
    assert areas[-1][1] <= 1 << layout.ADDRESS_BITS


class Recorder:
    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.log: list[tuple[int, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        return self.value

    def write(self, offset: int, width: int, value: int) -> None:
        self.log.append((offset, width, value))


def test_ports_without_a_device_read_as_ones() -> None:
    bus = PortBus()
    assert [bus.read(0x1234, width) for width in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
    assert bus.read(0xFFFF, 4) == 0xFFFF_FFFF
    bus.write(0x1234, 4, 1)


def test_ports_split_between_devices() -> None:
    bus, low, high = PortBus(), Recorder(0x11), Recorder(0x22)
    bus.attach_device(0x40, 2, low)
    bus.attach_device(0x42, 1, high)
    assert bus.read(0x40, 4) == 0xFF22_1111
    bus.write(0x41, 2, 0xBBAA)
    assert low.log == [(1, 1, 0xAA)]
    assert high.log == [(0, 1, 0xBB)]
    bus.write(0x40, 2, 0x1234)
    assert low.log[-1] == (0, 2, 0x1234)
    with pytest.raises(ValueError, match="taken"):
        bus.attach_device(0x41, 1, high)
    bus.detach(0x42, 1)
    assert bus.read(0x42, 1) == 0xFF


def test_memory_bus() -> None:
    bus, device = MmioBus(), Recorder((1 << 64) - 1)
    bus.attach(0x2000, 0x1000, device.read, device.write)
    bus.attach(0x1000, 0x1000, device.read, device.write)
    assert bus.read(0x2FFC, 4) == 0xFFFF_FFFF
    device.value = 5
    assert bus.read(0x2FFC, 4) == 5
    assert bus.read(0x2FFE, 4) == 0xFFFF_FFFF  # leaves the device
    assert bus.read(0x3000, 8) == bus.read(0, 8) == (1 << 64) - 1
    bus.write(0x1004, 4, 7)
    bus.write(0x2FFE, 4, 7)
    assert device.log == [(4, 4, 7)]
    for base, size in ((0x1800, 16), (0xF00, 0x200), (0x2800, 0x1000)):
        with pytest.raises(ValueError, match="taken"):
            bus.attach(base, size, device.read, device.write)


def test_events_run_by_deadline_then_age() -> None:
    queue, order = EventQueue(lambda: None), list[str]()
    queue.at(20, lambda: order.append("c"))
    queue.at(10, lambda: order.append("a"))
    queue.at(10, lambda: order.append("b"))
    assert queue.next_deadline() == 10
    queue.run(9)
    assert order == []
    queue.run(20)
    assert order == ["a", "b", "c"]
    assert queue.next_deadline() is None


def test_cancelled_events_do_not_run_and_do_not_pile_up() -> None:
    queue, order = EventQueue(lambda: None), list[str]()
    keep = queue.at(5, lambda: order.append("kept"))
    for _ in range(10_000):
        queue.cancel(queue.at(1 << 40, lambda: order.append("never")))
    assert len(queue._heap) < 200
    queue.run(1 << 41)
    assert order == ["kept"]
    queue.cancel(keep)
    queue.cancel(keep)
    queue.cancel("not a timer")
    assert queue.next_deadline() is None


def test_a_deadline_beyond_all_clocks_is_none() -> None:
    queue = EventQueue(lambda: None)
    queue.at(1 << 64, lambda: None)
    assert queue.next_deadline() is None
    queue.at(FOREVER - 1, lambda: None)
    assert queue.next_deadline() == FOREVER - 1


def test_posting_kicks_and_runs_first() -> None:
    kicks, order = list[int](), list[str]()
    queue = EventQueue(lambda: kicks.append(1))
    queue.at(0, lambda: order.append("timer"))
    thread = threading.Thread(target=lambda: queue.post(lambda: order.append("posted")))
    thread.start()
    thread.join()
    assert kicks == [1]
    assert queue.next_deadline() == 0
    queue.run(0)
    assert order == ["posted", "timer"]


def test_a_timer_that_always_comes_back_does_not_hold_the_machine() -> None:
    queue, count = EventQueue(lambda: None), list[int]()

    def again() -> None:
        count.append(1)
        queue.at(0, again)

    queue.at(0, again)
    queue.run(10)
    assert len(count) == RUN_LIMIT


def test_who_follows_memory_is_told_of_stores() -> None:
    memory = L1Memory(HostRam(MIB), MIB)
    memory.write(0x1000, b"12")
    told: list[tuple[int, int]] = []
    memory.on_write = lambda address, length: told.append((address, length))
    memory.write(0x2FFF, b"345")
    assert told == [(0x2FFF, 3)]


def test_memory_translates_and_checks() -> None:
    class Sparse(HostRam):
        """Only remembers where it was written."""

        def __init__(self) -> None:
            self.writes: list[tuple[int, int]] = []

        def write(self, pa: int, data: bytes, /) -> None:
            self.writes.append((pa, len(data)))

    ram = Sparse()
    memory = L1Memory(ram, 4 * GIB)
    memory.write(4 * GIB, b"1234")
    memory.write(5 * GIB - 2, b"12")
    assert ram.writes == [(3 * GIB, 4), (4 * GIB - 2, 2)]
    for address, length in (
        (3 * GIB - 1, 2),
        (3 * GIB, 1),
        (4 * GIB - 1, 2),
        (5 * GIB - 1, 2),
        (-1, 1),
        (0, 1 << 40),
        ((1 << 64) - 1, 2),
    ):
        with pytest.raises(GuestMemoryError):
            memory.read(address, length)
