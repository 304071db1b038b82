"""ACPI fixed hardware, reset control, debug ports, fw_cfg."""

from __future__ import annotations

import struct

import pytest

from tests.devices.fakes import FakeLine, FakeMemory, FakeTime
from turtles.devices import acpi_pm, fw_cfg
from turtles.devices.acpi_pm import AcpiPm, ResetControl
from turtles.devices.debug import DebugConsole, DebugExit, PostCode
from turtles.devices.fw_cfg import FwCfg
from turtles.devices.interfaces import NANOSECONDS


class PmRig:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.line = FakeLine()
        self.off = 0
        self.pm = AcpiPm(self.line, self.time, self.time, self._off)

    def _off(self) -> None:
        self.off += 1


def test_pm_timer_runs_at_its_frequency_and_wraps() -> None:
    rig = PmRig()
    rig.time.advance(NANOSECONDS)
    assert rig.pm.read(acpi_pm.TIMER, 4) == 3_579_545
    rig.time.advance(1300 * NANOSECONDS)
    assert rig.pm.read(acpi_pm.TIMER, 4) == 3_579_545 * 1301 % (1 << 32)


def test_power_off_by_s5_only() -> None:
    rig = PmRig()
    assert rig.pm.read(acpi_pm.CONTROL, 2) & 1
    rig.pm.write(acpi_pm.CONTROL, 2, 1 << 13 | 3 << 10)
    assert rig.off == 0
    rig.pm.write(acpi_pm.CONTROL, 2, acpi_pm.S5_TYPE << 10)
    assert rig.off == 0
    rig.pm.write(acpi_pm.CONTROL, 2, 1 << 13 | acpi_pm.S5_TYPE << 10)
    assert rig.off == 1


def test_power_button_raises_sci_until_cleared() -> None:
    rig = PmRig()
    rig.pm.write(acpi_pm.ENABLE, 2, acpi_pm.POWER_BUTTON_STS)
    rig.pm.press_power_button()
    assert rig.line.level
    assert rig.pm.read(acpi_pm.STATUS, 2) == acpi_pm.POWER_BUTTON_STS
    rig.pm.write(acpi_pm.STATUS, 2, acpi_pm.POWER_BUTTON_STS)
    assert not rig.line.level


def test_every_fixed_event_can_be_enabled() -> None:
    rig = PmRig()
    for bit in (0, 5, 8, 9, 10):
        rig.pm.write(acpi_pm.ENABLE, 2, 1 << bit)
        assert rig.pm.read(acpi_pm.ENABLE, 2) == 1 << bit


def test_pm_timer_carry_interrupt() -> None:
    rig = PmRig()
    rig.pm.write(acpi_pm.ENABLE, 2, acpi_pm.TIMER_STS)
    rig.time.advance(601 * NANOSECONDS)  # 2^31 ticks take 599.9 s
    assert rig.line.level


def test_reset_control_needs_a_rising_edge() -> None:
    resets: list[int] = []
    control = ResetControl(lambda: resets.append(1))
    control.write(0, 1, 2)
    assert control.read(0, 1) == 2
    control.write(0, 1, 6)
    assert len(resets) == 1


def test_debug_exit_console_and_post() -> None:
    values: list[int] = []
    DebugExit(values.append).write(0, 4, 0x31)
    assert values == [0x31]
    lines: list[bytes] = []
    console = DebugConsole(lines.append)
    assert console.read(0, 1) == 0xE9
    for byte in b"ab\nc":
        console.write(0, 1, byte)
    console.flush()
    assert lines == [b"ab\n", b"c"]
    post = PostCode()
    post.write(0, 1, 0x42)
    assert post.read(0, 1) == 0x42


@pytest.fixture
def config() -> tuple[FwCfg, FakeMemory]:
    memory = FakeMemory()
    return FwCfg(memory), memory


def read_item(device: FwCfg, key: int, length: int) -> bytes:
    device.write(0, 2, key)
    return bytes(device.read(1, 1) for _ in range(length))


def dma(device: FwCfg, memory: FakeMemory, control: int, length: int, target: int) -> int:
    memory.write(0x1000, struct.pack(">IIQ", control, length, target))
    device.write_dma(0, 4, 0)
    device.write_dma(4, 4, int.from_bytes((0x1000).to_bytes(4, "big"), "little"))
    return int(struct.unpack(">I", memory.read(0x1000, 4))[0])


def test_fw_cfg_signature_items_and_end(config: tuple[FwCfg, FakeMemory]) -> None:
    device, _ = config
    assert read_item(device, fw_cfg.SIGNATURE, 4) == b"QEMU"
    assert read_item(device, fw_cfg.ID, 5) == b"\x03\0\0\0\0"
    assert read_item(device, 0x3FFF, 2) == b"\0\0"


def test_fw_cfg_file_directory(config: tuple[FwCfg, FakeMemory]) -> None:
    device, _ = config
    device.add_file("etc/e820", b"12345")
    device.add_file("bootorder", b"1")
    directory = read_item(device, fw_cfg.FILE_DIRECTORY, 4 + 2 * 64)
    assert struct.unpack(">I", directory[:4])[0] == 2
    size, key, _, name = struct.unpack(">IHH56s", directory[68:132])
    assert (size, name.rstrip(b"\0")) == (5, b"etc/e820")
    assert read_item(device, key, 5) == b"12345"
    with pytest.raises(ValueError, match="longer"):
        device.add_file("x" * 60, b"")


def test_fw_cfg_dma(config: tuple[FwCfg, FakeMemory]) -> None:
    device, memory = config
    assert device.read_dma(0, 4) | device.read_dma(4, 4) << 32 == int.from_bytes(b"QEMU CFG", "little")
    device.add(0x40, bytes(range(32)))
    assert dma(device, memory, 0x40 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_SKIP, 4, 0) == 0
    assert dma(device, memory, fw_cfg.DMA_READ, 8, 0x2000) == 0
    assert memory.read(0x2000, 8) == bytes(range(4, 12))


@pytest.mark.parametrize(
    ("control", "length", "target"),
    [
        (fw_cfg.DMA_READ, 16, 1 << 40),
        (fw_cfg.DMA_READ, 0xFFFF_FFFF, 0),
        (fw_cfg.DMA_WRITE, 4, 0x2000),
        (fw_cfg.DMA_READ, 16, (1 << 64) - 8),
    ],
)
def test_fw_cfg_dma_refuses(config: tuple[FwCfg, FakeMemory], control: int, length: int, target: int) -> None:
    assert dma(*config, control, length, target) == fw_cfg.DMA_ERROR


def test_fw_cfg_dma_request_outside_ram_is_ignored(config: tuple[FwCfg, FakeMemory]) -> None:
    device, memory = config
    before = bytes(memory.data)
    device.write_dma(0, 4, 0xFFFF_FFFF)
    device.write_dma(4, 4, 0xFFFF_FFFF)
    assert bytes(memory.data) == before
