"""16550A: registers by the PC16550D datasheet."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeLine, FakeTime
from turtles.devices import uart
from turtles.devices.uart import Uart


class Rig:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.line = FakeLine()
        self.sent: list[bytes] = []
        self.uart = Uart(self.line, self.sent.append, self.time, self.time)

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, 1, value)

    def get(self, register: int) -> int:
        return self.uart.read(register, 1)


@pytest.fixture
def rig() -> Rig:
    r = Rig()
    r.put(uart.MCR, uart.MCR_OUT2)
    return r


def test_output_is_gathered_to_lines(rig: Rig) -> None:
    for byte in b"hello\nwor":
        rig.put(uart.RBR_THR, byte)
    assert rig.sent == [b"hello\n"]
    rig.time.advance(uart.GATHER_NS)
    assert rig.sent == [b"hello\n", b"wor"]


def test_output_without_newlines_is_not_held_forever(rig: Rig) -> None:
    for _ in range(uart.GATHER_BYTES):
        rig.put(uart.RBR_THR, 0x41)
    assert rig.sent == [b"A" * uart.GATHER_BYTES]


def test_flush_cancels_the_timer(rig: Rig) -> None:
    rig.put(uart.RBR_THR, 0x41)
    rig.uart.flush()
    assert rig.sent == [b"A"]
    assert rig.time.deadlines() == []


def test_divisor_latch_hides_data_and_ier(rig: Rig) -> None:
    rig.put(uart.LCR, uart.LCR_DLAB | 3)
    rig.put(uart.RBR_THR, 0x34)
    rig.put(uart.IER, 0x12)
    assert (rig.get(uart.RBR_THR), rig.get(uart.IER)) == (0x34, 0x12)
    rig.put(uart.LCR, 3)
    assert rig.get(uart.IER) == 0
    assert rig.sent == []


def test_fifo_is_detected_as_16550a(rig: Rig) -> None:
    assert rig.get(uart.IIR_FCR) >> 6 == 0
    rig.put(uart.IIR_FCR, uart.FCR_ENABLE)
    assert rig.get(uart.IIR_FCR) >> 6 == 3


def test_input_beyond_the_fifo_waits_for_room(rig: Rig) -> None:
    rig.put(uart.IIR_FCR, uart.FCR_ENABLE)
    text = bytes(range(100))
    rig.uart.receive(text)
    got = bytearray()
    while rig.get(uart.LSR) & uart.LSR_DR:
        got.append(rig.get(uart.RBR_THR))
    assert got == text
    assert not rig.get(uart.LSR) & uart.LSR_OE


def test_receive_interrupt_by_trigger_level(rig: Rig) -> None:
    rig.put(uart.IIR_FCR, uart.FCR_ENABLE | 0x80)  # 8 bytes
    rig.put(uart.IER, uart.IER_RDA)
    rig.uart.receive(b"1234567")
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_TIMEOUT
    rig.uart.receive(b"8")
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_RDA
    assert rig.line.level
    for _ in range(8):
        rig.get(uart.RBR_THR)
    assert not rig.line.level
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_NONE


def test_thre_interrupt_comes_when_enabled_and_goes_when_read(rig: Rig) -> None:
    rig.put(uart.IER, uart.IER_THRE)
    assert rig.line.level
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_THRE
    assert not rig.line.level
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_NONE
    rig.put(uart.RBR_THR, 0x41)
    assert rig.line.level
    # Linux tests for a broken THRE by turning it off and on again.
    rig.get(uart.IIR_FCR)
    rig.put(uart.IER, 0)
    rig.put(uart.IER, uart.IER_THRE)
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_THRE


def test_receiving_has_priority_over_transmitting(rig: Rig) -> None:
    rig.put(uart.IER, uart.IER_THRE | uart.IER_RDA)
    rig.uart.receive(b"x")
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_RDA
    rig.get(uart.RBR_THR)
    assert rig.get(uart.IIR_FCR) & 0xF == uart.IIR_THRE


def test_out2_gates_the_line(rig: Rig) -> None:
    rig.put(uart.IER, uart.IER_THRE)
    rig.put(uart.MCR, 0)
    assert not rig.line.level
    rig.put(uart.MCR, uart.MCR_OUT2)
    assert rig.line.level


def test_loopback_of_data_and_modem_lines(rig: Rig) -> None:
    rig.put(uart.MCR, uart.MCR_LOOP | uart.MCR_OUT2 | uart.MCR_RTS)
    assert rig.get(uart.MSR) & 0xF0 == uart.MSR_DCD | uart.MSR_CTS
    rig.uart.receive(b"from outside")
    rig.put(uart.RBR_THR, 0x5A)
    assert rig.get(uart.RBR_THR) == 0x5A
    assert not rig.get(uart.LSR) & uart.LSR_DR
    rig.time.advance(uart.GATHER_NS)
    assert rig.sent == []
    rig.put(uart.MCR, uart.MCR_OUT2)
    assert rig.get(uart.RBR_THR) == ord("f")


def test_loopback_overrun_is_reported_once(rig: Rig) -> None:
    rig.put(uart.MCR, uart.MCR_LOOP)
    rig.put(uart.RBR_THR, 1)
    rig.put(uart.RBR_THR, 2)
    assert rig.get(uart.LSR) & uart.LSR_OE
    assert not rig.get(uart.LSR) & uart.LSR_OE


def test_modem_deltas(rig: Rig) -> None:
    rig.get(uart.MSR)
    rig.put(uart.MCR, uart.MCR_LOOP | uart.MCR_OUT1)
    # CTS, DSR and DCD fell; RI rose, which does not count.
    assert rig.get(uart.MSR) == uart.MSR_RI | 0b1011
    rig.put(uart.MCR, uart.MCR_LOOP)
    assert rig.get(uart.MSR) == 0b0100
    assert rig.get(uart.MSR) == 0


def test_scratch_and_wide_reads(rig: Rig) -> None:
    rig.put(uart.SCR, 0xA5)
    assert rig.get(uart.SCR) == 0xA5
    assert rig.uart.read(uart.SCR, 2) == 0xFFA5


def test_input_is_bounded(rig: Rig) -> None:
    rig.uart.receive(bytes(uart.QUEUE_LIMIT + 1000))
    assert len(rig.uart._input) <= uart.QUEUE_LIMIT
