"""i8042: what kernels ask of it, and reset."""

from __future__ import annotations

from tests.devices.fakes import FakeLine
from turtles.devices import i8042
from turtles.devices.i8042 import I8042


class Rig:
    def __init__(self) -> None:
        self.line = FakeLine()
        self.resets = 0
        self.device = I8042(self.line, self._reset)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, value: int) -> None:
        self.device.write(4, 1, value)

    def data(self, value: int) -> None:
        self.device.write(0, 1, value)

    def replies(self) -> list[int]:
        result = []
        while self.device.read(4, 1) & i8042.STATUS_OBF:
            result.append(self.device.read(0, 1))
        return result


def test_controller_self_test_and_port_test() -> None:
    rig = Rig()
    rig.command(0xAA)
    assert rig.replies() == [0x55]
    rig.command(0xAB)
    assert rig.replies() == [0]


def test_there_is_no_mouse_port() -> None:
    rig = Rig()
    rig.command(0xA9)
    assert rig.replies() != [0]


def test_command_byte() -> None:
    rig = Rig()
    rig.command(0x60)
    rig.data(0x44)
    rig.command(0x20)
    assert rig.replies() == [0x44]


def test_keyboard_reset_and_identify() -> None:
    rig = Rig()
    rig.data(0xFF)
    assert rig.replies() == [0xFA, 0xAA]
    rig.data(0xF2)
    assert rig.replies() == [0xFA, 0xAB, 0x41]
    rig.command(0x60)
    rig.data(0x05)  # without translation
    rig.data(0xF2)
    assert rig.replies() == [0xFA, 0xAB, 0x83]


def test_keyboard_commands_with_a_parameter() -> None:
    rig = Rig()
    for command in (0xED, 0xF3):
        rig.data(command)
        rig.data(0x02)
    assert rig.replies() == [0xFA] * 4
    rig.data(0xF0)
    rig.data(0)
    assert rig.replies() == [0xFA, 0xFA, 2]


def test_interrupt_for_each_byte() -> None:
    rig = Rig()
    rig.data(0xF2)
    assert rig.line.edges == 1
    rig.device.read(0, 1)
    assert rig.line.edges == 2
    rig.replies()
    assert not rig.line.level


def test_reset_pulse_and_output_port() -> None:
    rig = Rig()
    rig.command(0xFE)
    assert rig.resets == 1
    rig.command(0xFF)  # pulses nothing
    rig.command(0xD1)
    rig.data(0x03)  # reset line stays high
    assert rig.resets == 1
    rig.command(0xD1)
    rig.data(0x02)
    assert rig.resets == 2


def test_every_byte_is_survived_and_the_output_is_bounded() -> None:
    rig = Rig()
    for _ in range(4):
        for value in range(256):
            rig.command(value)
            rig.data(value)
    assert len(rig.device._output) <= i8042.OUTPUT_LIMIT
