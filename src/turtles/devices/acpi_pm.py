"""ACPI fixed hardware: PM1a event and control blocks, the power-management timer, and the reset register.

The machine is always in ACPI mode (SCI_EN reads one, there is no SMI command port). Sleep states other than
S5 are ignored. There are no general-purpose events; the status bits of sleep button and RTC are never set.
"""

from __future__ import annotations

from collections.abc import Callable

from turtles.devices.interfaces import NANOSECONDS, Clock, Line, Timers

PM_TIMER_HZ = 3_579_545

STATUS, ENABLE, CONTROL, TIMER = 0x00, 0x02, 0x04, 0x08
BLOCK_SIZE = 0x0C

TIMER_STS, GLOBAL_STS, POWER_BUTTON_STS, SLEEP_BUTTON_STS = 1 << 0, 1 << 5, 1 << 8, 1 << 9
RTC_STS, WAKE_STS = 1 << 10, 1 << 15
ENABLE_BITS = TIMER_STS | GLOBAL_STS | POWER_BUTTON_STS | SLEEP_BUTTON_STS | RTC_STS
STATUS_BITS = ENABLE_BITS | WAKE_STS
SCI_ENABLED, SLEEP_ENABLE = 1 << 0, 1 << 13

S5_TYPE = 5
"""SLP_TYPa of S5, as the DSDT's \\_S5 object says."""

_HALF_PERIOD = 1 << 31  # TMR_STS is set when the timer's top bit changes


class AcpiPm:
    """The fixed hardware. `power_off` is called when the guest enters S5."""

    def __init__(self, sci: Line, clock: Clock, timers: Timers, power_off: Callable[[], None]) -> None:
        self._sci = sci
        self._clock = clock
        self._timers = timers
        self._power_off = power_off
        self._status = 0
        self._enable = 0
        self._control = SCI_ENABLED
        self._level = False
        self._timer: object | None = None
        self._seen_half = 0

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._status |= POWER_BUTTON_STS
        self._update()

    def _ticks(self) -> int:
        return self._clock() * PM_TIMER_HZ // NANOSECONDS

    def read(self, offset: int, width: int) -> int:
        """Any width at any offset of the block."""
        self._note_carry()
        registers = (
            self._status | self._enable << 16 | self._control << 32 | (self._ticks() & 0xFFFF_FFFF) << 64
        )
        return registers >> 8 * offset & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """Status bits clear where ones are written; the control register may put the machine to sleep."""
        self._note_carry()
        for i in range(width):
            self._write_byte(offset + i, value >> 8 * i & 0xFF)
        self._update()
        if self._control & SLEEP_ENABLE:
            self._control &= ~SLEEP_ENABLE
            if self._control >> 10 & 7 == S5_TYPE:
                self._power_off()

    def _write_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        keep = 0xFF00 >> shift
        if offset & ~1 == STATUS:
            self._status &= ~(value << shift)
        elif offset & ~1 == ENABLE:
            self._enable = (self._enable & keep | value << shift) & ENABLE_BITS
        elif offset & ~1 == CONTROL:
            self._control = self._control & keep | value << shift | SCI_ENABLED

    def _note_carry(self) -> None:
        half = self._ticks() // _HALF_PERIOD
        if half != self._seen_half:
            self._seen_half = half
            self._status |= TIMER_STS

    def _update(self) -> None:
        level = bool(self._status & self._enable & ENABLE_BITS)
        if level != self._level:
            self._level = level
            self._sci(level)
        if self._enable & TIMER_STS and self._timer is None:
            edge = (self._ticks() // _HALF_PERIOD + 1) * _HALF_PERIOD
            self._timer = self._timers.at(-(-edge * NANOSECONDS // PM_TIMER_HZ), self._carry)

    def _carry(self) -> None:
        self._timer = None
        self._note_carry()
        self._update()


class ResetControl:
    """Reset control register, port CF9h: a rising RST_CPU (bit 2) resets the machine."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        self._value = 0

    def read(self, offset: int, width: int) -> int:
        """What was written."""
        return self._value

    def write(self, offset: int, width: int, value: int) -> None:
        """Bit 1 chooses hard or soft, bit 2 does it; there is one kind of reset here."""
        rising = value & ~self._value & 4
        self._value = value & 0x0A
        if rising:
            self._reset()
