"""MC146818: registers and interrupts by its datasheet."""

from __future__ import annotations

import calendar

import pytest

from tests.devices.fakes import FakeLine, FakeTime
from turtles.devices import rtc
from turtles.devices.interfaces import NANOSECONDS
from turtles.devices.rtc import Rtc

EPOCH = calendar.timegm((2024, 2, 28, 23, 59, 58))  # a Wednesday


class Rig:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.line = FakeLine()
        self.rtc = Rtc(self.line, self.time, self.time, EPOCH)

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def date(self) -> tuple[int, ...]:
        names = (rtc.CENTURY, rtc.YEAR, rtc.MONTH, rtc.DAY, rtc.HOURS, rtc.MINUTES, rtc.SECONDS)
        return tuple(self.get(name) for name in names)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_bcd_time_rolls_over_into_a_leap_day(rig: Rig) -> None:
    assert rig.date() == (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58)
    assert rig.get(rtc.WEEKDAY) == 4
    rig.time.advance(2 * NANOSECONDS)
    assert rig.date() == (0x20, 0x24, 0x02, 0x29, 0, 0, 0)
    assert rig.get(rtc.WEEKDAY) == 5


def test_binary_and_twelve_hour_formats(rig: Rig) -> None:
    rig.put(rtc.REG_B, rtc.B_BINARY | rtc.B_24H)
    assert rig.date() == (20, 24, 2, 28, 23, 59, 58)
    rig.put(rtc.REG_B, 0)
    assert rig.get(rtc.HOURS) == 0x80 | 0x11
    rig.time.advance(2 * NANOSECONDS)
    assert rig.get(rtc.HOURS) == 0x12  # midnight is 12 AM


def test_setting_the_time_with_set_held(rig: Rig) -> None:
    rig.put(rtc.REG_B, rtc.B_SET | rtc.B_24H)
    new = ((rtc.CENTURY, 0x19), (rtc.YEAR, 0x99), (rtc.MONTH, 0x12), (rtc.DAY, 0x31))
    for index, value in (*new, (rtc.HOURS, 0x10), (rtc.MINUTES, 0x20), (rtc.SECONDS, 0x30)):
        rig.put(index, value)
    rig.time.advance(5 * NANOSECONDS)
    assert rig.get(rtc.SECONDS) == 0x30  # no updates while SET
    rig.put(rtc.REG_B, rtc.B_24H)
    rig.time.advance(NANOSECONDS)
    assert rig.date() == (0x19, 0x99, 0x12, 0x31, 0x10, 0x20, 0x31)


@pytest.mark.parametrize("index", [rtc.CENTURY, rtc.YEAR, rtc.MONTH, rtc.DAY, rtc.HOURS, rtc.MINUTES])
@pytest.mark.parametrize("value", [0, 0x7F, 0xFF, 0xAA])
def test_nonsense_in_a_time_register_is_harmless(rig: Rig, index: int, value: int) -> None:
    rig.put(index, value)
    rig.time.advance(NANOSECONDS)
    assert all(0 <= part <= 0xFF for part in rig.date())


def test_update_in_progress_before_each_second(rig: Rig) -> None:
    assert not rig.get(rtc.REG_A) & rtc.A_UIP
    rig.time.advance(NANOSECONDS - rtc.UPDATE_NS)
    assert rig.get(rtc.REG_A) & rtc.A_UIP
    rig.time.advance(rtc.UPDATE_NS)
    assert not rig.get(rtc.REG_A) & rtc.A_UIP


def test_periodic_interrupt_at_1024_hz(rig: Rig) -> None:
    rig.put(rtc.REG_B, rtc.B_24H | rtc.B_PIE)
    for _ in range(1024):
        rig.time.advance(NANOSECONDS // 1024 + 1)
        rig.get(rtc.REG_C)
    assert 1023 <= rig.line.edges <= 1025


def test_register_c_says_why_and_clears(rig: Rig) -> None:
    rig.put(rtc.REG_B, rtc.B_24H | rtc.B_UIE)
    rig.time.advance(NANOSECONDS)
    assert rig.line.level
    assert rig.get(rtc.REG_C) == rtc.C_IRQF | rtc.C_UF
    assert not rig.line.level
    assert rig.get(rtc.REG_C) == 0


def test_alarm_at_a_time_and_with_wildcards(rig: Rig) -> None:
    for index, value in ((rtc.HOURS_ALARM, 0), (rtc.MINUTES_ALARM, 0), (rtc.SECONDS_ALARM, 1)):
        rig.put(index, value)
    rig.put(rtc.REG_B, rtc.B_24H | rtc.B_AIE)
    rig.time.advance(2 * NANOSECONDS)
    assert not rig.line.level
    rig.time.advance(NANOSECONDS)
    assert rig.line.level
    assert rig.get(rtc.REG_C) & rtc.C_AF
    for index in (rtc.HOURS_ALARM, rtc.MINUTES_ALARM, rtc.SECONDS_ALARM):
        rig.put(index, 0xC0)
    for _ in range(3):
        rig.time.advance(NANOSECONDS)
        assert rig.get(rtc.REG_C) & rtc.C_AF


def test_register_d_is_valid_and_the_rest_is_ram(rig: Rig) -> None:
    assert rig.get(rtc.REG_D) == rtc.D_VALID
    rig.put(0x5F, 0x77)
    assert rig.get(0x5F) == 0x77
    rig.put(0x80 | 0x5F, 0x78)  # bit 7 is the NMI mask
    assert rig.get(0x5F) == 0x78


def test_no_timer_runs_when_nobody_waits(rig: Rig) -> None:
    assert rig.time.deadlines() == []
    rig.put(rtc.REG_B, rtc.B_24H | rtc.B_PIE | rtc.B_UIE)
    assert len(rig.time.deadlines()) == 2
    rig.put(rtc.REG_B, rtc.B_24H)
    assert rig.time.deadlines() == []
