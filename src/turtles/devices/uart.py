"""16550A UART: the serial port of the PC, with its FIFOs, interrupts and modem lines.

Transmits at once, whatever the divisor says; what is sent is gathered and handed to the sink a line at a time
or after a short pause. Received bytes queue without limit of the wire's speed. No parity or framing errors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from turtles.devices.interfaces import Clock, Line, Timers

# Registers by offset; the first two show the divisor latch while LCR.DLAB = 1.
RBR_THR: Final = 0
IER: Final = 1
IIR_FCR: Final = 2
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7

IER_RDA: Final = 1
IER_THRE: Final = 2
IER_RLS: Final = 4
IER_MS: Final = 8
IIR_NONE: Final = 1
IIR_MS: Final = 0
IIR_THRE: Final = 2
IIR_RDA: Final = 4
IIR_RLS: Final = 6
IIR_TIMEOUT: Final = 0xC
FCR_ENABLE: Final = 1
FCR_CLEAR_RX: Final = 2
FCR_CLEAR_TX: Final = 4
LCR_BREAK: Final = 0x40
LCR_DLAB: Final = 0x80
MCR_DTR: Final = 1
MCR_RTS: Final = 2
MCR_OUT1: Final = 4
MCR_OUT2: Final = 8
MCR_LOOP: Final = 0x10
LSR_DR: Final = 1
LSR_OE: Final = 2
LSR_THRE: Final = 0x20
LSR_TEMT: Final = 0x40
MSR_DELTA: Final = 0x0F
MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80

FIFO_SIZE: Final = 16
TRIGGER_LEVELS: Final = (1, 4, 8, 14)

GATHER_BYTES: Final = 512
GATHER_NS: Final = 10_000_000
QUEUE_LIMIT: Final = 1 << 20
"""Bytes of input that wait at most. Nobody types that; a paste or a file that is longer loses its end."""


class Uart:
    """One 16550A. `sink` gets what the guest sends; feed `receive` with what it is to read."""

    def __init__(self, irq: Line, sink: Callable[[bytes], None], clock: Clock, timers: Timers) -> None:
        self._irq = irq
        self._sink = sink
        self._clock = clock
        self._timers = timers
        self._gathered = bytearray()
        self._gather_timer: object | None = None
        self._input: deque[int] = deque()  # not yet in the receiver FIFO
        self._fifo: deque[int] = deque()
        self._fifo_enabled = False
        self._trigger = 1
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._msr_delta = 0
        self._scratch = 0
        self._divisor = 12  # 9600 baud
        self._overrun = False
        self._thre_pending = False
        self._level = False

    # --- the wire ---

    def receive(self, data: bytes) -> None:
        """Bytes arrive on the wire; they wait until the guest has room in the FIFO."""
        room = QUEUE_LIMIT - len(self._input)
        self._input.extend(data[:room])
        self._refill()
        self._update()

    def flush(self) -> None:
        """Hand everything gathered to the sink now."""
        if self._gather_timer is not None:
            self._timers.cancel(self._gather_timer)
            self._gather_timer = None
        if self._gathered:
            data = bytes(self._gathered)
            self._gathered.clear()
            self._sink(data)

    def _refill(self) -> None:
        """Move input into the FIFO as far as it has room, unless the guest looped the wire back."""
        if self._mcr & MCR_LOOP:
            return
        room = (FIFO_SIZE if self._fifo_enabled else 1) - len(self._fifo)
        for _ in range(min(room, len(self._input))):
            self._fifo.append(self._input.popleft())

    def _transmit(self, value: int) -> None:
        self._thre_pending = True  # the holding register empties again at once
        if self._mcr & MCR_LOOP:
            if len(self._fifo) < (FIFO_SIZE if self._fifo_enabled else 1):
                self._fifo.append(value)
            else:
                self._overrun = True
            return
        self._gathered.append(value)
        if value == 0x0A or len(self._gathered) >= GATHER_BYTES:
            self.flush()
        elif self._gather_timer is None:
            self._gather_timer = self._timers.at(self._clock() + GATHER_NS, self._gather_expired)

    def _gather_expired(self) -> None:
        self._gather_timer = None
        self.flush()

    # --- registers ---

    def read(self, offset: int, width: int) -> int:
        """Read a register. Only byte accesses exist; a wider one gets ones above the first byte."""
        value = self._read_byte(offset & 7)
        return value | (((1 << 8 * width) - 1) & ~0xFF)

    def write(self, offset: int, width: int, value: int) -> None:
        """Write a register (the low byte of the access)."""
        self._write_byte(offset & 7, value & 0xFF)

    def _read_byte(self, register: int) -> int:
        if register == RBR_THR:
            if self._lcr & LCR_DLAB:
                return self._divisor & 0xFF
            value = self._fifo.popleft() if self._fifo else 0
            self._refill()
            self._update()
            return value
        if register == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if register == IIR_FCR:
            source = self._source()
            if source == IIR_THRE:
                self._thre_pending = False
                self._update()
            return source | (0xC0 if self._fifo_enabled else 0)
        if register == LCR:
            return self._lcr
        if register == MCR:
            return self._mcr
        if register == LSR:
            value = LSR_THRE | LSR_TEMT | (LSR_DR if self._fifo else 0)
            if self._overrun:  # else the read changes nothing
                value |= LSR_OE
                self._overrun = False
                self._update()
            return value
        if register == MSR:
            value = self._modem_lines() | self._msr_delta
            self._msr_delta = 0
            self._update()
            return value
        return self._scratch

    def _write_byte(self, register: int, value: int) -> None:
        if register == RBR_THR:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._transmit(value)
        elif register == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                if value & IER_THRE and not self._ier & IER_THRE:
                    self._thre_pending = True  # the register is empty: enabling asks at once
                self._ier = value & 0x0F
        elif register == IIR_FCR:
            self._write_fcr(value)
        elif register == LCR:
            self._lcr = value
        elif register == MCR:
            before = self._modem_lines()
            self._mcr = value & 0x1F
            changed = before ^ self._modem_lines()
            self._msr_delta |= changed >> 4 & 0b1011
            if before & ~self._modem_lines() & MSR_RI:  # RI counts at its trailing edge only
                self._msr_delta |= 0b0100
            self._refill()
        elif register == SCR:
            self._scratch = value
        self._update()

    def _write_fcr(self, value: int) -> None:
        enabled = bool(value & FCR_ENABLE)
        if enabled != self._fifo_enabled or value & FCR_CLEAR_RX:
            self._fifo.clear()
        self._fifo_enabled = enabled
        self._trigger = TRIGGER_LEVELS[value >> 6] if enabled else 1
        if value & FCR_CLEAR_TX:
            self._thre_pending = True
        self._refill()

    def _modem_lines(self) -> int:
        """CTS, DSR, RI, DCD: a terminal that is always ready, or MCR's own outputs in loopback."""
        if not self._mcr & MCR_LOOP:
            return MSR_CTS | MSR_DSR | MSR_DCD
        lines = 0
        for output, line in ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD)):
            if self._mcr & output:
                lines |= line
        return lines

    # --- interrupts ---

    def _source(self) -> int:
        """The pending source of highest priority, as IIR shows it."""
        if self._ier & IER_RLS and self._overrun:
            return IIR_RLS
        if self._ier & IER_RDA and self._fifo:
            # The wire is infinitely fast, so a FIFO below its trigger level is one that has timed out.
            return IIR_RDA if len(self._fifo) >= self._trigger else IIR_TIMEOUT
        if self._ier & IER_THRE and self._thre_pending:
            return IIR_THRE
        if self._ier & IER_MS and self._msr_delta:
            return IIR_MS
        return IIR_NONE

    def _update(self) -> None:
        # On a PC, OUT2 gates the interrupt line; in loopback the outputs are off.
        level = self._source() != IIR_NONE and self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        if level != self._level:
            self._level = level
            self._irq(level)
