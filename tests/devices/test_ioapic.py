"""I/O APIC: redirection, edge and level, Remote IRR by the 82093AA datasheet."""

from __future__ import annotations

import pytest

from turtles.devices.interfaces import InterruptMessage
from turtles.devices.ioapic import IoApic


class Rig:
    def __init__(self) -> None:
        self.sent: list[InterruptMessage] = []
        self.ioapic = IoApic(self.sent.append)

    def register(self, index: int) -> int:
        self.ioapic.write(0, 4, index)
        return self.ioapic.read(0x10, 4)

    def put(self, index: int, value: int) -> None:
        self.ioapic.write(0, 4, index)
        self.ioapic.write(0x10, 4, value)

    def entry(self, pin: int, low: int, high: int = 0) -> None:
        self.put(0x11 + 2 * pin, high)
        self.put(0x10 + 2 * pin, low)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_identity_and_version(rig: Rig) -> None:
    rig.put(0, 0x0500_0000)
    assert rig.register(0) == 0x0500_0000
    assert rig.register(1) == 0x0017_0020


def test_pins_are_masked_at_reset(rig: Rig) -> None:
    for pin in range(24):
        assert rig.register(0x10 + 2 * pin) == 0x1_0000
        rig.ioapic.set_pin(pin, True)
    assert rig.sent == []


def test_edge_delivers_once_per_edge(rig: Rig) -> None:
    rig.entry(4, 0x0031, 0x0200_0000)
    rig.ioapic.set_pin(4, True)
    rig.ioapic.set_pin(4, True)
    assert rig.sent == [InterruptMessage(0x31, 0, 2)]
    rig.ioapic.set_pin(4, False)
    rig.ioapic.set_pin(4, True)
    assert len(rig.sent) == 2


def test_edge_on_a_masked_pin_is_lost(rig: Rig) -> None:
    rig.ioapic.set_pin(4, True)
    rig.entry(4, 0x31)
    assert rig.sent == []


def test_level_waits_for_the_eoi(rig: Rig) -> None:
    rig.entry(16, 0x8000 | 0x41)
    rig.ioapic.set_pin(16, True)
    assert rig.sent == [InterruptMessage(0x41, 0, 0, level=True)]
    assert rig.register(0x10 + 32) & 0x4000
    rig.ioapic.eoi(0x41)  # still asserted: again
    assert len(rig.sent) == 2
    rig.ioapic.set_pin(16, False)
    rig.ioapic.eoi(0x41)
    assert len(rig.sent) == 2
    assert not rig.register(0x10 + 32) & 0x4000


def test_eoi_register_and_other_vectors(rig: Rig) -> None:
    rig.entry(16, 0x8041)
    rig.ioapic.set_pin(16, True)
    rig.ioapic.eoi(0x42)
    assert rig.register(0x30) & 0x4000
    rig.ioapic.write(0x40, 4, 0x41)
    assert len(rig.sent) == 2


def test_unmasking_an_asserted_level_pin_delivers(rig: Rig) -> None:
    rig.ioapic.set_pin(16, True)
    rig.entry(16, 0x8041)
    assert len(rig.sent) == 1


def test_switching_to_edge_clears_remote_irr(rig: Rig) -> None:
    # How software without an EOI register gets rid of it.
    rig.entry(16, 0x8041)
    rig.ioapic.set_pin(16, True)
    rig.put(0x30, 0x1_0041)
    assert not rig.register(0x30) & 0x4000


def test_modes_travel_in_the_message(rig: Rig) -> None:
    rig.entry(1, 0x0D31, 0x0100_0000)  # logical, reserved delivery mode 5: INIT
    rig.ioapic.set_pin(1, True)
    assert rig.sent == [InterruptMessage(0x31, 5, 1, logical=True)]


def test_registers_that_do_not_exist(rig: Rig) -> None:
    for index in (3, 0x0F, 0x40, 0xFF):
        rig.put(index, 0xFFFF_FFFF)
        assert rig.register(index) == 0
    assert rig.ioapic.read(0x20, 4) == 0
