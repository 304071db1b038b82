"""8254: the six modes, latches and read-back of its datasheet."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeLine, FakeTime
from turtles.devices.interfaces import MINIMUM_PERIOD_NS, NANOSECONDS
from turtles.devices.pit import FREQUENCY_HZ, Pit, ns_of_tick

MILLISECOND = 1_000_000


class Rig:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.line = FakeLine()
        self.pit = Pit(self.line, self.time, self.time)

    def program(self, channel: int, mode: int, count: int, bcd: int = 0) -> None:
        self.pit.write(3, 1, channel << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(channel, 1, count & 0xFF)
        self.pit.write(channel, 1, count >> 8)

    def count(self, channel: int) -> int:
        self.pit.write(3, 1, channel << 6)
        return self.pit.read(channel, 1) | self.pit.read(channel, 1) << 8

    def out2(self) -> bool:
        return bool(self.pit.read_port_61(0, 1) & 0x20)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_rate_generator_interrupts_at_its_rate(rig: Rig) -> None:
    rig.program(0, 2, 11932)  # 100 Hz
    edges = rig.line.edges
    rig.time.advance(NANOSECONDS)
    assert 99 <= rig.line.edges - edges <= 100


def test_square_wave_interrupts_at_its_rate(rig: Rig) -> None:
    rig.program(0, 3, 0)  # 65536: 18.2 Hz
    edges = rig.line.edges
    rig.time.advance(10 * NANOSECONDS)
    assert 181 <= rig.line.edges - edges <= 183


@pytest.mark.parametrize("mode", [0, 4])
def test_one_shot_interrupts_once(rig: Rig, mode: int) -> None:
    rig.program(0, mode, 11932)
    edges = rig.line.edges
    rig.time.advance(9 * MILLISECOND)
    assert rig.line.edges == edges
    rig.time.advance(2 * MILLISECOND)
    assert rig.line.edges == edges + 1
    rig.time.advance(NANOSECONDS)
    assert rig.line.edges == edges + 1


@pytest.mark.parametrize("mode", [0, 2, 4])
def test_late_timers_lose_no_edge(rig: Rig, mode: int) -> None:
    rig.program(0, mode, 1193)
    edges = rig.line.edges
    rig.time.jump(50 * MILLISECOND)
    assert rig.line.edges == edges + 1


def test_counting_down(rig: Rig) -> None:
    rig.program(0, 2, 10000)
    rig.time.now += ns_of_tick(1000)
    assert rig.count(0) == 9000
    rig.program(1, 3, 10000)  # counts by two
    rig.time.now += ns_of_tick(1000)
    assert rig.count(1) in (8000, 8002)


def test_bcd_counts_in_decimal(rig: Rig) -> None:
    rig.program(0, 2, 0x5000, bcd=1)
    rig.time.now += ns_of_tick(1)
    assert rig.count(0) == 0x4999


def test_latched_count_holds_while_counting_goes_on(rig: Rig) -> None:
    rig.program(0, 2, 10000)
    rig.pit.write(3, 1, 0)
    rig.time.now += ns_of_tick(5000)
    rig.pit.write(3, 1, 0)  # a second latch is ignored until the first is read
    assert rig.pit.read(0, 1) | rig.pit.read(0, 1) << 8 == 10000
    assert rig.pit.read(0, 1) | rig.pit.read(0, 1) << 8 <= 5000


def test_single_byte_access(rig: Rig) -> None:
    rig.pit.write(3, 1, 0x14)  # channel 0, low byte only, mode 2
    rig.pit.write(0, 1, 200)
    rig.time.now += ns_of_tick(50)
    assert rig.pit.read(0, 1) == 150
    rig.pit.write(3, 1, 0x24)  # high byte only
    rig.pit.write(0, 1, 0x10)
    assert rig.pit.read(0, 1) == 0x10


def test_read_back_of_status_then_count(rig: Rig) -> None:
    rig.program(0, 2, 1000)
    rig.pit.write(3, 1, 0xC2)  # status and count of channel 0
    assert rig.pit.read(0, 1) == 0xB4  # OUT high, count loaded, both bytes, mode 2
    assert rig.pit.read(0, 1) | rig.pit.read(0, 1) << 8 == 1000
    rig.pit.write(3, 1, 0x36)  # a control word without a count
    rig.pit.write(3, 1, 0xE2)
    assert rig.pit.read(0, 1) & 0x40  # null count


def test_channel_2_gate_and_output_as_kernels_calibrate_with_it(rig: Rig) -> None:
    rig.pit.write_port_61(0, 1, 0)
    rig.program(2, 0, 11932)
    rig.time.now += 20 * MILLISECOND
    assert not rig.out2()  # the gate is closed
    rig.pit.write_port_61(0, 1, 1)
    rig.time.now += 9 * MILLISECOND
    assert not rig.out2()
    rig.time.now += 2 * MILLISECOND
    assert rig.out2()


def test_closing_the_gate_pauses_mode_0(rig: Rig) -> None:
    rig.pit.write_port_61(0, 1, 1)
    rig.program(2, 0, 10000)
    rig.time.now += ns_of_tick(1000)
    rig.pit.write_port_61(0, 1, 0)
    rig.time.now += NANOSECONDS
    assert rig.count(2) == 9000
    rig.pit.write_port_61(0, 1, 1)
    rig.time.now += ns_of_tick(1000)
    assert 7999 <= rig.count(2) <= 8001


def test_mode_1_is_triggered_by_the_gate(rig: Rig) -> None:
    rig.program(2, 1, 1000)
    assert rig.out2()
    rig.time.now += ns_of_tick(5000)
    rig.pit.write_port_61(0, 1, 1)
    assert not rig.out2()
    rig.time.now += ns_of_tick(1001)
    assert rig.out2()


def test_a_new_count_of_mode_2_waits_for_the_period(rig: Rig) -> None:
    rig.program(0, 2, 10000)
    rig.time.now += ns_of_tick(4000)
    rig.pit.write(0, 1, 0x88)
    rig.pit.write(0, 1, 0x13)  # 5000
    assert 5990 <= rig.count(0) <= 6000
    rig.time.now += ns_of_tick(7000)
    assert 3990 <= rig.count(0) <= 4000


def test_a_period_of_one_tick_does_not_stop_the_machine(rig: Rig) -> None:
    rig.program(0, 2, 2)
    edges = rig.line.edges
    rig.time.advance(NANOSECONDS // 10)
    # One percent of slack: a pulse is due at a whole tick.
    assert 0 < rig.line.edges - edges <= NANOSECONDS // 10 // MINIMUM_PERIOD_NS * 1.01
    assert FREQUENCY_HZ > NANOSECONDS // MINIMUM_PERIOD_NS


def test_refresh_toggles(rig: Rig) -> None:
    seen = set()
    for _ in range(10):
        rig.time.now += 15_085
        seen.add(rig.pit.read_port_61(0, 1) & 0x10)
    assert len(seen) == 2
