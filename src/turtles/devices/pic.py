"""8259A interrupt controllers: the pair of a PC, slave on the master's input 2, with ELCR.

Each knows initialisation, rotating priorities, special mask, polling, AEOI and special fully nested mode. The
8080 mode (ICW4 bit 0 clear) is accepted and behaves like the 8086 mode.
"""

from __future__ import annotations

from turtles.devices.interfaces import Line, no_line

CASCADE = 2
SPURIOUS = 7


class Pic:
    """One 8259A. `output` is its INT pin."""

    def __init__(self, output: Line = no_line, *, level_mask: int) -> None:
        self._output = output
        self._level_mask = level_mask  # inputs that ELCR may make level-triggered
        self.elcr = 0
        self._lines = 0
        self._int = False
        self._reset()

    def _reset(self) -> None:
        self._irr = 0
        self._imr = 0
        self._isr = 0
        self._base = 0
        self._lowest = 7  # input of lowest priority
        self._special_mask = False
        self._special_nested = False
        self._auto_eoi = False
        self._rotate_on_auto_eoi = False
        self._read_isr = False
        self._poll = False
        self._icw = 0  # number of the ICW that comes next; 0 = initialised
        self._icw4_needed = False
        self._single = False

    @property
    def pending(self) -> bool:
        """The INT pin."""
        return self._int

    def set_input(self, number: int, level: bool) -> None:
        """An input pin changes."""
        bit = 1 << number
        if level:
            if not self._lines & bit or self.elcr & bit:
                self._irr |= bit
            self._lines |= bit
        else:
            self._lines &= ~bit
            if self.elcr & bit or not self._isr & bit:
                # An edge that goes away before it is acknowledged was a glitch; a level follows the pin.
                self._irr &= ~bit
        self.update()

    # --- priorities ---

    def _rank(self, bits: int) -> int:
        """Rank of the bit of highest priority (0 = highest); 8 when none is set."""
        if not bits:
            return 8
        start = self._lowest + 1 & 7
        rotated = (bits >> start | bits << 8 - start) & 0xFF
        return (rotated & -rotated).bit_length() - 1

    def _number(self, rank: int) -> int:
        return self._lowest + 1 + rank & 7

    def request(self) -> int:
        """The input that would be acknowledged now; -1 none."""
        requests = self._irr & ~self._imr
        rank = self._rank(requests)
        if rank == 8:
            return -1
        blocking = self._isr
        if self._special_mask:
            blocking &= ~self._imr
        if self._special_nested:
            blocking &= ~(1 << CASCADE)  # the slave may interrupt itself with a higher one
        return self._number(rank) if rank < self._rank(blocking) else -1

    def update(self) -> None:
        """Drive INT as requests and priorities are now."""
        level = self.request() >= 0
        if level != self._int:
            self._int = level
            self._output(level)

    def peek(self) -> int:
        """Vector that an acknowledge would give."""
        number = self.request()
        return self._base + (SPURIOUS if number < 0 else number)

    def acknowledge(self) -> int:
        """INTA cycle: returns the input number; 7 without an in-service bit when it was spurious."""
        number = self.request()
        if number < 0:
            return SPURIOUS
        bit = 1 << number
        if not self.elcr & bit:
            self._irr &= ~bit
        if self._auto_eoi:
            if self._rotate_on_auto_eoi:
                self._lowest = number
        else:
            self._isr |= bit
        self.update()
        return number

    @property
    def base(self) -> int:
        """Vector of input 0 (ICW2)."""
        return self._base

    # --- ports ---

    def read(self, offset: int, width: int) -> int:
        """Offset 0: IRR or ISR, or the poll word; offset 1: IMR, or the poll word."""
        if self._poll:
            self._poll = False
            number = self.request()
            if number < 0:
                return 0
            self.acknowledge()
            return 0x80 | number
        if offset & 1:
            return self._imr
        return self._isr if self._read_isr else self._irr

    def write(self, offset: int, width: int, value: int) -> None:
        """Offset 0: ICW1, OCW2, OCW3; offset 1: ICW2 to ICW4, OCW1."""
        value &= 0xFF
        if offset & 1:
            self._write_data(value)
        elif value & 0x10:
            self._icw1(value)
        elif value & 0x08:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self.update()

    def _icw1(self, value: int) -> None:
        self._reset()
        # Edge sense restarts: a line that is high must go low first; a level counts at once.
        self._irr = self._lines & self.elcr
        self._icw = 2
        self._icw4_needed = bool(value & 1)
        self._single = bool(value & 2)

    def _write_data(self, value: int) -> None:
        if self._icw == 2:
            self._base = value & 0xF8
            self._icw = 3 if not self._single else 4 if self._icw4_needed else 0
        elif self._icw == 3:
            self._icw = 4 if self._icw4_needed else 0
        elif self._icw == 4:
            self._special_nested = bool(value & 0x10)
            self._auto_eoi = bool(value & 2)
            self._icw = 0
        else:
            self._imr = value

    def _ocw2(self, value: int) -> None:
        command, number = value >> 5, value & 7
        if command in (1, 5):  # non-specific EOI, then with rotation
            served = self._isr & ~self._imr if self._special_mask else self._isr
            rank = self._rank(served)
            if rank < 8:
                number = self._number(rank)
                self._isr &= ~(1 << number)
                if command == 5:
                    self._lowest = number
        elif command in (3, 7):  # specific EOI, then with rotation
            self._isr &= ~(1 << number)
            if command == 7:
                self._lowest = number
        elif command == 6:
            self._lowest = number
        elif command in (0, 4):
            self._rotate_on_auto_eoi = command == 4

    def _ocw3(self, value: int) -> None:
        if value & 4:
            self._poll = True
        if value & 2:
            self._read_isr = bool(value & 1)
        if value & 0x40:
            self._special_mask = bool(value & 0x20)

    def write_elcr(self, value: int) -> None:
        """Edge/level control register of this chip."""
        self.elcr = value & self._level_mask
        self._irr |= self._lines & self.elcr
        self.update()


class PicPair:
    """Master and slave as a PC wires them. `output` is the master's INT pin, to the processor or LINT0."""

    def __init__(self, output: Line = no_line) -> None:
        # ELCR cannot make IRQ 0, 1, 2, 8 and 13 level-triggered.
        self.master = Pic(output, level_mask=0xF8)
        self.slave = Pic(lambda level: self.master.set_input(CASCADE, level), level_mask=0xDE)

    def set_irq(self, number: int, level: bool) -> None:
        """Interrupt line 0 to 15 changes; 2 is the cascade and has no line."""
        if number >= 8:
            self.slave.set_input(number - 8, level)
        elif number != CASCADE:
            self.master.set_input(number, level)

    def peek(self) -> int:
        """Vector that the next acknowledge gives; -1 while INT is low."""
        if not self.master.pending:
            return -1
        return self.slave.peek() if self.master.request() == CASCADE else self.master.peek()

    def acknowledge(self) -> int:
        """INTA cycles of the processor: the vector of the request, or of spurious interrupt 7 or 15."""
        number = self.master.acknowledge()
        if number == CASCADE:
            return self.slave.base + self.slave.acknowledge()
        return self.master.base + number

    def read_elcr(self, offset: int, width: int) -> int:
        """Ports 4D0h and 4D1h."""
        return (self.slave if offset & 1 else self.master).elcr

    def write_elcr(self, offset: int, width: int, value: int) -> None:
        """Ports 4D0h and 4D1h."""
        (self.slave if offset & 1 else self.master).write_elcr(value & 0xFF)
