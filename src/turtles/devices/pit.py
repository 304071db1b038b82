"""8254 programmable interval timer, ports 40h to 43h, and the speaker gate of port 61h.

Counters are computed from the clock, not counted down; only channel 0's output has a line, and a timer behind
it. A mode 2 or 3 period shorter than 100 µs raises its interrupt at that pace. No sound comes out.
"""

from __future__ import annotations

from turtles.devices.interfaces import MINIMUM_PERIOD_NS, NANOSECONDS, Clock, Line, Timers, no_line

FREQUENCY_HZ = 1_193_182

LATCH, LOW, HIGH, LOW_THEN_HIGH = 0, 1, 2, 3


def ticks_at(now_ns: int) -> int:
    """Input clock pulses since time zero."""
    return now_ns * FREQUENCY_HZ // NANOSECONDS


def ns_of_tick(ticks: int) -> int:
    """First nanosecond at which `ticks` pulses have happened."""
    return -(-ticks * NANOSECONDS // FREQUENCY_HZ)


def _to_bcd(value: int) -> int:
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 % 10 << 12


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * i & 15) * 10**i for i in range(4))


class Channel:
    """One counter: mode, count, gate and what its two read paths have latched."""

    def __init__(self, clock: Clock, timers: Timers, out: Line = no_line) -> None:
        self._clock = clock
        self._timers = timers
        self._line = out
        self._timer: object | None = None
        self._level = False
        self.mode = 3
        self._access = LOW_THEN_HIGH
        self._bcd = False
        self._gate = True
        self._count = 0x10000  # as loaded; a written 0 means 65536 (or 10000 in BCD)
        self._next_count: int | None = None  # modes 2, 3: takes over at the end of the period
        self._null_count = False
        self._start = 0  # tick at which the count was loaded
        self._armed = False  # a count has been loaded (modes 1 and 5: and triggered)
        self._paused_at: int | None = None  # tick at which a low gate stopped the count
        self._write_low: int | None = None
        self._read_high = False
        self._latched: int | None = None
        self._status: int | None = None

    # --- programming ---

    def control(self, value: int) -> None:
        """A control word for this channel (datasheet, figure 7)."""
        access = value >> 4 & 3
        if access == LATCH:
            self.latch_count()
            return
        mode = value >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self._access = access
        self._bcd = bool(value & 1)
        self._write_low = None
        self._read_high = False
        self._latched = self._status = None
        self._armed = False
        self._next_count = None
        self._null_count = True
        self._paused_at = None
        self._reschedule()

    def latch_count(self) -> None:
        """Counter latch command: hold the count until it is read."""
        if self._latched is None:
            self._latched = self._counter()
            self._read_high = False

    def latch_status(self) -> None:
        """Read-back command for status (datasheet, figure 12)."""
        if self._status is None:
            self._status = (
                (0x80 if self.output() else 0)
                | (0x40 if self._null_count else 0)
                | self._access << 4
                | self.mode << 1
                | int(self._bcd)
            )

    def write(self, value: int) -> None:
        """A byte of the count, low or high as the access mode says."""
        if self._access == LOW:
            self._load(value)
        elif self._access == HIGH:
            self._load(value << 8)
        elif self._write_low is None:
            self._write_low = value
            if self.mode == 0:
                self._armed = False  # writing the first byte stops the count (mode 0)
                self._reschedule()
        else:
            low, self._write_low = self._write_low, None
            self._load(value << 8 | low)

    def read(self) -> int:
        """Status if latched, else a byte of the latched or running count."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        value = self._latched if self._latched is not None else self._counter()
        if self._access == LOW:
            self._latched = None
            return value & 0xFF
        if self._access == HIGH:
            self._latched = None
            return value >> 8
        if self._read_high:
            self._read_high = False
            self._latched = None
            return value >> 8
        self._read_high = True
        return value & 0xFF

    def _load(self, written: int) -> None:
        count = _from_bcd(written) if self._bcd else written
        count = count or (10_000 if self._bcd else 0x10000)
        now = ticks_at(self._clock())
        if self.mode in (1, 5):
            self._next_count = count  # waits for the gate's rising edge
            self._null_count = True
        elif self.mode in (2, 3) and self._armed:
            self._roll(now)
            self._next_count = count
            self._null_count = True
        else:
            self._count = count
            self._null_count = False
            self._armed = True
            self._start = now
            self._paused_at = None if self._gate else now
        self._reschedule()

    @property
    def gate(self) -> bool:
        """The GATE input."""
        return self._gate

    @gate.setter
    def gate(self, level: bool) -> None:
        if level == self._gate:
            return
        self._gate = level
        now = ticks_at(self._clock())
        if self.mode in (1, 5):
            if level:
                if self._next_count is not None:
                    self._count, self._next_count = self._next_count, None
                    self._null_count = False
                    self._armed = True
                self._start = now
        elif self.mode in (2, 3):
            self._roll(now)
            if level:
                self._start = now  # a rising gate reloads the counter
                self._paused_at = None
            else:
                self._paused_at = now
        elif level:
            if self._paused_at is not None:
                self._start += now - self._paused_at
                self._paused_at = None
        else:
            self._paused_at = now
        self._reschedule()

    # --- what the counter shows ---

    def _roll(self, now: int) -> None:
        """Modes 2 and 3: take over a count that waited for the end of its period."""
        if self._next_count is None or not self._armed or self._paused_at is not None:
            return
        periods = (now - self._start) // self._count
        if periods >= 1:
            self._start += self._count  # the new count starts with the period after the one it waited for
            self._count, self._next_count = self._next_count, None
            self._null_count = False

    def _elapsed(self) -> int:
        now = ticks_at(self._clock())
        self._roll(now)
        return max((now if self._paused_at is None else self._paused_at) - self._start, 0)

    def _counter(self) -> int:
        if not self._armed:
            value = 0
        else:
            elapsed = self._elapsed()
            if self.mode == 2:
                value = self._count - elapsed % self._count
            elif self.mode == 3:
                value = self._count - 2 * elapsed % self._count
            else:
                value = self._count - elapsed
        return _to_bcd(value % 10_000) if self._bcd else value & 0xFFFF

    def output(self) -> bool:
        """The OUT pin."""
        if not self._armed:
            return self.mode != 0
        elapsed = self._elapsed()
        if self.mode == 0:
            return elapsed >= self._count
        if self.mode == 1:
            return elapsed >= self._count
        if self.mode == 2:
            return not self._gate or elapsed % self._count != self._count - 1
        if self.mode == 3:
            return not self._gate or elapsed % self._count < (self._count + 1) // 2
        return elapsed != self._count  # modes 4 and 5: one pulse low

    def _fast(self) -> bool:
        """A period too short to follow: the line shows one pulse per minimum period instead."""
        return self.mode in (2, 3) and self._count * NANOSECONDS < MINIMUM_PERIOD_NS * FREQUENCY_HZ

    def _next_edge(self, elapsed: int) -> int | None:
        """Elapsed ticks of the next change of OUT, if any is to come."""
        if self.mode in (0, 1):
            return self._count if elapsed < self._count else None
        if self.mode in (4, 5):
            if elapsed < self._count:
                return self._count
            return self._count + 1 if elapsed == self._count else None
        if self._fast():
            return elapsed + MINIMUM_PERIOD_NS * FREQUENCY_HZ // NANOSECONDS
        base = elapsed - elapsed % self._count
        middle = self._count - 1 if self.mode == 2 else (self._count + 1) // 2
        return base + middle if elapsed - base < middle else base + self._count

    # --- the line ---

    def _reschedule(self) -> None:
        """Drive the line as OUT is now and wake at its next change (channels with a line only)."""
        if self._line is no_line:
            return
        if self._timer is not None:
            self._timers.cancel(self._timer)
            self._timer = None
        level = self.output() or self._fast()
        if level != self._level:
            self._level = level
            self._line(level)
        if self._armed and self._paused_at is None:
            edge = self._next_edge(self._elapsed())
            if edge is not None:
                self._timer = self._timers.at(ns_of_tick(self._start + edge), self._edge)

    def _edge(self) -> None:
        self._timer = None
        if self._level and self._armed and self.mode >= 2:
            # The clock may have passed the whole low phase: show the pulse all the same.
            self._level = False
            self._line(False)
        self._reschedule()


class Pit:
    """The timer chip. `irq` is channel 0's OUT, on a PC interrupt 0."""

    def __init__(self, irq: Line, clock: Clock, timers: Timers) -> None:
        self._clock = clock
        self.channels = (Channel(clock, timers, irq), Channel(clock, timers), Channel(clock, timers))
        self.channels[2].gate = False
        self._speaker_data = False

    def read(self, offset: int, width: int) -> int:
        """Ports 40h to 42h are the counters; 43h cannot be read."""
        return self.channels[offset].read() if offset < 3 else 0xFF

    def write(self, offset: int, width: int, value: int) -> None:
        """Ports 40h to 42h load the counters; 43h takes control words."""
        value &= 0xFF
        if offset < 3:
            self.channels[offset].write(value)
        elif offset == 3:
            if value >> 6 < 3:
                self.channels[value >> 6].control(value)
                return
            for number, channel in enumerate(self.channels):  # read-back command
                if value & 2 << number:
                    if not value & 0x20:
                        channel.latch_count()
                    if not value & 0x10:
                        channel.latch_status()

    def read_port_61(self, offset: int, width: int) -> int:
        """System control port B: gate and speaker bits, the refresh toggle (15 µs), channel 2's OUT."""
        channel = self.channels[2]
        refresh = self._clock() // 15_085 & 1
        return int(channel.gate) | int(self._speaker_data) << 1 | refresh << 4 | int(channel.output()) << 5

    def write_port_61(self, offset: int, width: int, value: int) -> None:
        """System control port B: bit 0 gates channel 2, bit 1 would let it reach the speaker."""
        self.channels[2].gate = bool(value & 1)
        self._speaker_data = bool(value & 2)
