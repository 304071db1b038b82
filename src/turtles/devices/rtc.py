"""MC146818 real-time clock and CMOS RAM, ports 70h and 71h.

Date and time derive from the machine's clock plus a base, so under virtual time they are the same in every
run. Periodic, alarm and update-ended interrupts work; daylight saving and the square-wave pin do not exist.
"""

from __future__ import annotations

import calendar
import time

from turtles.devices.interfaces import MINIMUM_PERIOD_NS, NANOSECONDS, Clock, Line, Timers

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = 0, 1, 2, 3, 4, 5
WEEKDAY, DAY, MONTH, YEAR = 6, 7, 8, 9
REG_A, REG_B, REG_C, REG_D = 0x0A, 0x0B, 0x0C, 0x0D
CENTURY = 0x32

A_UIP = 0x80
B_SET, B_PIE, B_AIE, B_UIE, B_BINARY, B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80

UPDATE_NS = 244_000
"""UIP is raised this long before the second changes (datasheet: 244 µs)."""

_TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))


class Rtc:
    """The clock chip. `epoch_s` is what the clock shows (Unix time) when the machine's clock is zero."""

    def __init__(self, irq: Line, clock: Clock, timers: Timers, epoch_s: int) -> None:
        self._irq = irq
        self._clock = clock
        self._timers = timers
        self._base_ns = epoch_s * NANOSECONDS
        self._index = 0
        self._ram = bytearray(128)
        self._ram[REG_A] = 0x26  # 32,768 Hz, 1,024 Hz periodic rate
        self._ram[REG_B] = B_24H
        self._held: list[int] | None = None  # time registers while SET = 1 stops the updates
        self._periodic_timer: object | None = None
        self._second_timer: object | None = None
        self._level = False

    def set_cmos(self, index: int, value: int) -> None:
        """What firmware left in a byte of CMOS RAM."""
        self._ram[index & 0x7F] = value & 0xFF

    # --- ports ---

    def read(self, offset: int, width: int) -> int:
        """Port 70h reads as ones; port 71h is the register that 70h chose."""
        if offset & 1 == 0:
            return 0xFF
        index = self._index
        if index in _TIME_REGISTERS:
            return self._fields()[index]
        if index == REG_A:
            return self._ram[REG_A] & ~A_UIP | (A_UIP if self._updating() else 0)
        if index == REG_C:
            value = self._ram[REG_C]
            self._ram[REG_C] = 0
            self._update_line()
            self._arm_second()
            return value
        if index == REG_D:
            return D_VALID
        return self._ram[index]

    def write(self, offset: int, width: int, value: int) -> None:
        """Port 70h chooses (its bit 7 masks NMI, which this machine has no source of); 71h writes."""
        value &= 0xFF
        if offset & 1 == 0:
            self._index = value & 0x7F
            return
        index = self._index
        if index in _TIME_REGISTERS:
            fields = self._fields()
            fields[index] = value
            if self._held is not None:
                self._held = fields
            else:
                self._set_time(fields)
        elif index == REG_A:
            self._ram[REG_A] = value & ~A_UIP
            self._arm_periodic()
        elif index == REG_B:
            self._write_b(value)
        elif index not in (REG_C, REG_D):
            self._ram[index] = value

    def _write_b(self, value: int) -> None:
        before = self._ram[REG_B]
        if value & B_SET and not before & B_SET:
            self._held = self._fields()
            value &= ~B_UIE  # SET clears UIE (datasheet, register B)
        held = self._held
        self._ram[REG_B] = value
        if held is not None and not value & B_SET:
            self._held = None
            self._set_time(held)
        self._update_line()
        self._arm_periodic()
        self._arm_second()

    # --- time of day ---

    def _now_ns(self) -> int:
        return self._base_ns + self._clock()

    def _running(self) -> bool:
        return self._held is None and self._ram[REG_A] & 0x60 != 0x60

    def _updating(self) -> bool:
        return self._running() and self._now_ns() % NANOSECONDS >= NANOSECONDS - UPDATE_NS

    def _encode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[REG_B] & B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self._ram[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode((hour - 1) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._ram[REG_B] & B_24H:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _fields(self) -> list[int]:
        """All registers, the time ones as the guest sees them now."""
        if self._held is not None:
            return list(self._held)
        fields = list(self._ram)
        try:
            t = time.gmtime(self._now_ns() // NANOSECONDS)
        except (OverflowError, ValueError, OSError):
            return fields
        fields[SECONDS] = self._encode(min(t.tm_sec, 59))
        fields[MINUTES] = self._encode(t.tm_min)
        fields[HOURS] = self._encode_hour(t.tm_hour)
        fields[WEEKDAY] = self._encode((t.tm_wday + 1) % 7 + 1)  # Sunday is 1
        fields[DAY] = self._encode(t.tm_mday)
        fields[MONTH] = self._encode(t.tm_mon)
        fields[YEAR] = self._encode(t.tm_year % 100)
        fields[CENTURY] = self._encode(t.tm_year // 100)
        return fields

    def _set_time(self, fields: list[int]) -> None:
        """Move the base so that the clock shows these registers; nonsense leaves the time alone."""
        year = self._decode(fields[CENTURY]) * 100 + self._decode(fields[YEAR])
        month, day = self._decode(fields[MONTH]), self._decode(fields[DAY])
        hour = self._decode_hour(fields[HOURS])
        minute, second = self._decode(fields[MINUTES]), self._decode(fields[SECONDS])
        if not (1970 <= year <= 9999 and 1 <= month <= 12 and 1 <= day <= 31):
            return
        if hour > 23 or minute > 59 or second > 59:
            return
        day = min(day, calendar.monthrange(year, month)[1])
        seconds = calendar.timegm((year, month, day, hour, minute, second))
        fraction = self._now_ns() % NANOSECONDS
        self._base_ns = seconds * NANOSECONDS + fraction - self._clock()
        self._arm_second()

    # --- interrupts ---

    def _period_ns(self) -> int:
        """Period of PF; 0 = none (rate select 0, or the divider is held in reset)."""
        rate = self._ram[REG_A] & 0x0F
        if rate == 0 or self._ram[REG_A] & 0x70 != 0x20:
            return 0
        if rate <= 2:
            rate += 7
        return max((NANOSECONDS << (rate - 1)) // 32768, MINIMUM_PERIOD_NS)

    def _arm_periodic(self) -> None:
        if self._periodic_timer is not None:
            self._timers.cancel(self._periodic_timer)
            self._periodic_timer = None
        period = self._period_ns()
        if period and self._ram[REG_B] & B_PIE:
            now = self._clock()
            self._periodic_timer = self._timers.at(now - now % period + period, self._periodic)

    def _periodic(self) -> None:
        self._periodic_timer = None
        self._flag(C_PF)
        self._arm_periodic()

    def _arm_second(self) -> None:
        """Wake at the next second while somebody waits for an update or an alarm."""
        if self._second_timer is not None:
            self._timers.cancel(self._second_timer)
            self._second_timer = None
        if self._running() and self._ram[REG_B] & (B_UIE | B_AIE):
            self._second_timer = self._timers.at(
                self._clock() + NANOSECONDS - self._now_ns() % NANOSECONDS, self._second
            )

    def _second(self) -> None:
        self._second_timer = None
        flags = C_UF
        fields = self._fields()
        alarms = ((SECONDS, SECONDS_ALARM), (MINUTES, MINUTES_ALARM), (HOURS, HOURS_ALARM))
        # An alarm byte of 11xxxxxx matches any value.
        if all(self._ram[alarm] in (fields[now],) or self._ram[alarm] >= 0xC0 for now, alarm in alarms):
            flags |= C_AF
        self._flag(flags)
        self._arm_second()

    def _flag(self, flags: int) -> None:
        self._ram[REG_C] |= flags
        self._update_line()

    def _update_line(self) -> None:
        # PF, AF and UF line up with PIE, AIE and UIE.
        level = bool(self._ram[REG_C] & self._ram[REG_B] & (C_PF | C_AF | C_UF))
        self._ram[REG_C] = self._ram[REG_C] & ~C_IRQF | (C_IRQF if level else 0)
        if level != self._level:
            self._level = level
            self._irq(level)
