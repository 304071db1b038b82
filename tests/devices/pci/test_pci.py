"""PCI configuration mechanisms, BARs with hostile values, MSI-X."""

from __future__ import annotations

import pytest

from turtles.devices.acpi_pm import ResetControl
from turtles.devices.pci import function as pci
from turtles.devices.pci.function import PciFunction
from turtles.devices.pci.host import PciHost
from turtles.devices.pci.msix import Msix

WINDOW = 0xC000_0000


class Scratch:
    """16 bytes behind a BAR."""

    def __init__(self) -> None:
        self.data = bytearray(16)

    def read(self, offset: int, width: int) -> int:
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        self.data[offset : offset + width] = value.to_bytes(width, "little")


class Rig:
    def __init__(self) -> None:
        self.resets = 0
        self.host = PciHost(ResetControl(self._reset))
        self.function = PciFunction(vendor=0x1AF4, device=0x1042, class_code=0x010000)
        self.scratch = Scratch()
        self.function.add_bar(0, 4096, self.scratch)
        self.host.attach(3, self.function)

    def _reset(self) -> None:
        self.resets += 1

    def get(self, device: int, register: int, width: int = 4) -> int:
        self.host.write(0, 4, 1 << 31 | device << 11 | register & 0xFC)
        return self.host.read(4 + (register & 3), width)

    def put(self, device: int, register: int, value: int, width: int = 4) -> None:
        self.host.write(0, 4, 1 << 31 | device << 11 | register & 0xFC)
        self.host.write(4 + (register & 3), width, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_both_mechanisms_see_the_same(rig: Rig) -> None:
    assert rig.get(3, 0) == 0x1042_1AF4 == rig.host.ecam_read(3 << 15, 4)
    rig.host.ecam_write(3 << 15 | pci.INTERRUPT_LINE, 1, 11)
    assert rig.get(3, pci.INTERRUPT_LINE, 1) == 11
    assert rig.get(3, 2, 2) == 0x1042


def test_absent_functions_read_as_ones(rig: Rig) -> None:
    assert rig.get(4, 0) == 0xFFFF_FFFF
    for offset in (4 << 15, 3 << 15 | 1 << 12, 1 << 20, 3 << 15 | 0x100, 3 << 15 | 0xFFE):
        assert rig.host.ecam_read(offset, 4) == 0xFFFF_FFFF
    rig.host.write(0, 4, 3 << 11)  # without the enable bit
    assert rig.host.read(4, 4) == 0xFFFF_FFFF


def test_config_address_takes_only_dwords_and_hides_the_reset_port(rig: Rig) -> None:
    rig.host.write(0, 4, 0x8000_1800)
    rig.host.write(0, 2, 0xFFFF)
    assert rig.host.read(0, 4) == 0x8000_1800
    rig.host.write(1, 1, 6)
    assert rig.resets == 1


def test_identity_is_read_only(rig: Rig) -> None:
    rig.put(3, 0, 0xDEAD_BEEF)
    rig.put(3, 8, 0xFFFF_FFFF)
    assert rig.get(3, 0) == 0x1042_1AF4
    assert rig.get(3, 8) == 0x0100_0000


def test_bar_sizing_and_decoding(rig: Rig) -> None:
    rig.put(3, 0x10, 0xFFFF_FFFF)
    rig.put(3, 0x14, 0xFFFF_FFFF)
    assert rig.get(3, 0x10) == 0xFFFF_F00C
    assert rig.get(3, 0x14) == 0xFFFF_FFFF
    rig.put(3, 0x10, WINDOW)
    rig.put(3, 0x14, 0)
    assert rig.host.memory_read(WINDOW, 4) == 0xFFFF_FFFF  # memory space is off
    rig.put(3, pci.COMMAND, pci.COMMAND_MEMORY, 2)
    rig.host.memory_write(WINDOW + 8, 4, 0x1234_5678)
    assert rig.host.memory_read(WINDOW + 8, 2) == 0x5678
    assert rig.host.memory_read(WINDOW + 4096, 4) == 0xFFFF_FFFF
    assert rig.host.memory_read(WINDOW + 4094, 4) == 0xFFFF_FFFF  # leaves the BAR


@pytest.mark.parametrize("address", [0, 0xFEE0_0000, (1 << 64) - 4096, 0xFFFF_FFFF_0000_0000])
def test_hostile_bars_are_harmless(rig: Rig, address: int) -> None:
    rig.put(3, pci.COMMAND, 0xFFFF, 2)
    rig.put(3, 0x10, address & 0xFFFF_FFFF)
    rig.put(3, 0x14, address >> 32)
    rig.host.memory_write(WINDOW, 8, 1)
    assert rig.host.memory_read(WINDOW, 8) == (1 << 64) - 1
    assert rig.scratch.data == bytes(16)


def test_every_byte_of_config_space_survives_writes(rig: Rig) -> None:
    for offset in range(256):
        rig.function.config_write(offset, 4 if offset < 253 else 1, 0xFFFF_FFFF)
    assert rig.get(3, 0) == 0x1042_1AF4
    assert rig.function.config_read(254, 4) == 0xFFFF_FFFF


def test_device_numbers_are_unique(rig: Rig) -> None:
    for number in (0, 3, 32):
        with pytest.raises(ValueError, match="device number"):
            rig.host.attach(number, PciFunction(vendor=1, device=1, class_code=0))


def test_intx_follows_the_disable_bit(rig: Rig) -> None:
    levels: list[bool] = []
    rig.function.intx = levels.append
    rig.function.set_intx(True)
    rig.put(3, pci.COMMAND, pci.COMMAND_INTX_DISABLE, 2)
    assert rig.get(3, pci.STATUS, 2) & pci.STATUS_INTERRUPT
    rig.put(3, pci.COMMAND, 0, 2)
    rig.function.set_intx(False)
    assert levels == [True, False, True, False]


def test_capabilities_are_chained(rig: Rig) -> None:
    first = rig.function.add_capability(0x11, b"\0" * 10)
    second = rig.function.add_capability(0x09, b"\x01" * 4, b"\0\xff")
    assert rig.get(3, pci.CAPABILITIES, 1) == first
    assert rig.get(3, first + 1, 1) == second
    assert rig.get(3, second + 1, 1) == 0
    rig.put(3, second + 2, 0xABCD, 2)
    assert rig.get(3, second + 2, 2) == 0xAB01
    with pytest.raises(ValueError, match="no room"):
        rig.function.add_capability(0x09, bytes(250))


class MsixRig:
    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.msix = Msix(2, lambda address, data: self.sent.append((address, data)))
        for vector in range(2):
            self.msix.write_table(16 * vector, 8, 0xFEE0_0000)
            self.msix.write_table(16 * vector + 8, 4, 0x40 + vector)


def test_msix_masks_keep_pending_bits() -> None:
    rig = MsixRig()
    rig.msix.notify(0)
    assert rig.sent == []  # not enabled
    rig.msix.set_control(0x8000)
    rig.msix.notify(0)
    assert rig.sent == []  # entries are masked at reset
    assert rig.msix.read_pending(0, 8) == 1
    rig.msix.write_table(12, 4, 0)
    assert rig.sent == [(0xFEE0_0000, 0x40)]
    assert rig.msix.read_pending(0, 8) == 0
    rig.msix.set_control(0xC000)
    rig.msix.notify(0)
    rig.msix.notify(0)
    assert len(rig.sent) == 1
    rig.msix.set_control(0x8000)
    assert len(rig.sent) == 2


def test_msix_out_of_range() -> None:
    rig = MsixRig()
    rig.msix.set_control(0x8000)
    rig.msix.notify(2)
    rig.msix.notify(0xFFFF)
    rig.msix.write_table(32, 4, 1)
    rig.msix.write_table(30, 4, 1)
    rig.msix.write_table(2, 2, 1)
    assert rig.msix.read_table(4000, 4) == 0
    assert rig.sent == []
