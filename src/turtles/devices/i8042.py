"""i8042 keyboard controller, ports 60h and 64h, with a keyboard that never types.

It answers the controller and keyboard commands that kernels probe with, so that none waits for a timeout, and
pulses reset. There is no mouse port, and A20 is always on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from turtles.devices.interfaces import Line

STATUS_OBF, STATUS_SYSTEM, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
COMMAND_IRQ, COMMAND_SYSTEM, COMMAND_DISABLE, COMMAND_TRANSLATE = 0x01, 0x04, 0x10, 0x40

ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
OUTPUT_LIMIT = 16

_WITH_PARAMETER = frozenset((0xED, 0xF0, 0xF3))
"""Keyboard commands that take a byte: LEDs, scan code set, typematic rate."""


class I8042:
    """The controller and its keyboard. `reset` is called when the guest pulses the processor's reset line."""

    def __init__(self, irq: Line, reset: Callable[[], None]) -> None:
        self._irq = irq
        self._reset = reset
        self._command_byte = COMMAND_IRQ | COMMAND_SYSTEM | COMMAND_TRANSLATE  # as firmware leaves it
        self._output: deque[int] = deque()
        self._ram = bytearray(32)
        self._expecting: int | None = None  # controller command whose data byte comes next
        self._keyboard_expecting: int | None = None
        self._last_write_command = False
        self._level = False

    def read(self, offset: int, width: int) -> int:
        """Offset 0 is port 60h (data), offset 4 is port 64h (status)."""
        if offset & 4:
            status = STATUS_UNLOCKED | self._command_byte & STATUS_SYSTEM
            status |= STATUS_OBF if self._output else 0
            return status | (STATUS_COMMAND if self._last_write_command else 0)
        value = self._output.popleft() if self._output else 0
        # One byte, one edge: drop the line before the next byte raises it again.
        self._set_line(False)
        self._update()
        return value

    def write(self, offset: int, width: int, value: int) -> None:
        """Offset 0 is port 60h (data), offset 4 is port 64h (command)."""
        value &= 0xFF
        self._last_write_command = bool(offset & 4)
        if offset & 4:
            self._command(value)
        else:
            self._data(value)
        self._update()

    def _reply(self, *values: int) -> None:
        for value in values:
            if len(self._output) < OUTPUT_LIMIT:
                self._output.append(value)

    def _command(self, command: int) -> None:
        self._expecting = None
        if 0x20 <= command <= 0x3F:
            self._reply(self._command_byte if command == 0x20 else self._ram[command & 31])
        elif 0x60 <= command <= 0x7F or command in (0xD1, 0xD2, 0xD3, 0xD4):
            self._expecting = command
        elif command == 0xAA:
            self._output.clear()
            self._command_byte |= COMMAND_SYSTEM
            self._reply(0x55)
        elif command == 0xAB:
            self._reply(0x00)  # keyboard lines are fine
        elif command == 0xA9:
            self._reply(0x02)  # no mouse port: its clock line is stuck high
        elif command == 0xAD:
            self._command_byte |= COMMAND_DISABLE
        elif command == 0xAE:
            self._command_byte &= ~COMMAND_DISABLE
        elif command == 0xC0:
            self._reply(0x80)  # input port: keyboard not locked
        elif command == 0xD0:
            self._reply(0x03 | (0x10 if self._output else 0))  # output port: A20 on, not in reset
        elif command >= 0xF0 and not command & 1:
            self._reset()  # pulse output lines: bit 0 low is the processor's reset

    def _data(self, value: int) -> None:
        command, self._expecting = self._expecting, None
        if command is None:
            self._keyboard(value)
        elif command == 0x60:
            self._command_byte = value
        elif command < 0x80:
            self._ram[command & 31] = value
        elif command == 0xD1:
            if not value & 1:
                self._reset()
        elif command == 0xD2:
            self._reply(value)
        # D3h and D4h feed the mouse port that is not there.

    def _keyboard(self, value: int) -> None:
        command, self._keyboard_expecting = self._keyboard_expecting, None
        if command is not None and value < 0x80:
            self._reply(ACK)
            if command == 0xF0 and value == 0:
                self._reply(2)  # scan code set in use
        elif value in _WITH_PARAMETER:
            self._keyboard_expecting = value
            self._reply(ACK)
        elif value == 0xFF:
            self._output.clear()
            self._reply(ACK, SELF_TEST_PASSED)
        elif value == 0xF2:
            # MF2 keyboard; the second byte is a scan code to the translation.
            self._reply(ACK, 0xAB, 0x41 if self._command_byte & COMMAND_TRANSLATE else 0x83)
        elif value == 0xEE:
            self._reply(0xEE)  # echo
        elif value in (0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA):
            self._reply(ACK)
        else:
            self._reply(RESEND)

    def _update(self) -> None:
        self._set_line(bool(self._output) and bool(self._command_byte & COMMAND_IRQ))

    def _set_line(self, level: bool) -> None:
        if level != self._level:
            self._level = level
            self._irq(level)
