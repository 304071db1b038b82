"""8259A pair: initialisation, priorities, EOI, ELCR, spurious interrupts by its datasheet."""

from __future__ import annotations

import pytest

from turtles.devices.pic import PicPair

MASTER, SLAVE = 0, 1


@pytest.fixture
def pics() -> PicPair:
    pair = PicPair()
    for chip, base, cascade in ((pair.master, 0x20, 4), (pair.slave, 0x28, 2)):
        chip.write(0, 1, 0x11)
        chip.write(1, 1, base)
        chip.write(1, 1, cascade)
        chip.write(1, 1, 1)
    return pair


def test_nothing_pending_after_initialisation(pics: PicPair) -> None:
    assert pics.peek() == -1


def test_priority_and_nesting(pics: PicPair) -> None:
    pics.set_irq(4, True)
    pics.set_irq(1, True)
    assert pics.peek() == pics.acknowledge() == 0x21
    assert pics.peek() == -1  # 4 is below 1, which is in service
    pics.set_irq(0, True)
    assert pics.acknowledge() == 0x20
    pics.master.write(0, 1, 0x20)  # EOI of 0
    assert pics.peek() == -1
    pics.master.write(0, 1, 0x20)  # EOI of 1
    assert pics.acknowledge() == 0x24


def test_slave_through_the_cascade(pics: PicPair) -> None:
    pics.set_irq(8, True)
    assert pics.peek() == pics.acknowledge() == 0x28
    pics.set_irq(3, True)  # below the cascade input 2
    assert pics.peek() == -1
    pics.slave.write(0, 1, 0x20)
    pics.master.write(0, 1, 0x20)
    assert pics.acknowledge() == 0x23


def test_mask_and_registers(pics: PicPair) -> None:
    pics.master.write(1, 1, 0x10)
    assert pics.master.read(1, 1) == 0x10
    pics.set_irq(4, True)
    assert pics.peek() == -1
    pics.master.write(0, 1, 0x0A)  # read IRR
    assert pics.master.read(0, 1) == 0x10
    pics.master.write(1, 1, 0)
    assert pics.acknowledge() == 0x24
    pics.master.write(0, 1, 0x0B)  # read ISR
    assert pics.master.read(0, 1) == 0x10


def test_edge_needs_a_new_edge_and_level_does_not(pics: PicPair) -> None:
    pics.write_elcr(0, 1, 0x20)  # interrupt 5
    for number in (4, 5):
        pics.set_irq(number, True)
        assert pics.acknowledge() == 0x20 + number
        pics.master.write(0, 1, 0x20)
        assert pics.peek() == (0x25 if number == 5 else -1)
    pics.set_irq(5, False)
    assert pics.peek() == -1


def test_elcr_keeps_the_system_interrupts_edge_triggered(pics: PicPair) -> None:
    pics.write_elcr(0, 1, 0xFF)
    pics.write_elcr(1, 1, 0xFF)
    assert (pics.read_elcr(0, 1), pics.read_elcr(1, 1)) == (0xF8, 0xDE)


def test_vanished_request_is_spurious_7(pics: PicPair) -> None:
    pics.set_irq(4, True)
    pics.set_irq(4, False)
    assert pics.acknowledge() == 0x27
    pics.master.write(0, 1, 0x0B)
    assert pics.master.read(0, 1) == 0


def test_specific_eoi_and_rotation(pics: PicPair) -> None:
    pics.set_irq(4, True)
    pics.acknowledge()
    pics.master.write(0, 1, 0xE4)  # specific EOI of 4 with rotation: 4 is lowest now
    pics.set_irq(4, False)
    pics.set_irq(4, True)
    pics.set_irq(5, True)
    assert pics.acknowledge() == 0x25


def test_special_mask_mode_lets_lower_ones_in(pics: PicPair) -> None:
    pics.set_irq(1, True)
    pics.acknowledge()
    pics.set_irq(6, True)
    assert pics.peek() == -1
    pics.master.write(1, 1, 0x02)
    pics.master.write(0, 1, 0x68)
    assert pics.acknowledge() == 0x26


def test_automatic_eoi() -> None:
    pair = PicPair()
    for value, port in ((0x11, 0), (0x40, 1), (4, 1), (3, 1)):
        pair.master.write(port, 1, value)
    pair.set_irq(0, True)
    assert pair.acknowledge() == 0x40
    pair.set_irq(1, True)
    assert pair.acknowledge() == 0x41


def test_poll_acknowledges(pics: PicPair) -> None:
    pics.set_irq(3, True)
    pics.master.write(0, 1, 0x0C)
    assert pics.master.read(0, 1) == 0x83
    pics.master.write(0, 1, 0x0C)
    assert pics.master.read(0, 1) == 0
    assert pics.peek() == -1


def test_linux_probe_of_the_mask_register(pics: PicPair) -> None:
    # Linux writes FBh to the slave's mask and reads it back to see whether there is an 8259.
    pics.slave.write(1, 1, 0xFF)
    pics.master.write(1, 1, 0xFB)
    assert pics.master.read(1, 1) == 0xFB
