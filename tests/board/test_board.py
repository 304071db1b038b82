"""The board: that what is wired is what the tables say, from a device to the processor's interrupt."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.board.rig import Rig
from turtles.board import layout
from turtles.board.board import Board, BoardOptions, StopKind
from turtles.board.layout import MIB
from turtles.devices.virtio import pci
from turtles.devices.virtio.image import open_image

APIC_EOI = layout.LOCAL_APIC + 0xB0


def unmask(rig: Rig, pin: int, vector: int, *, level: bool = False) -> None:
    rig.board.mmio.write(layout.IO_APIC, 4, 0x11 + 2 * pin)
    rig.board.mmio.write(layout.IO_APIC + 0x10, 4, 0)
    rig.board.mmio.write(layout.IO_APIC, 4, 0x10 + 2 * pin)
    rig.board.mmio.write(layout.IO_APIC + 0x10, 4, vector | (0x8000 if level else 0))


def start_pics(rig: Rig) -> None:
    for port, base, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        rig.outb(port, 0x11)
        for value in (base, cascade, 1, 0):
            rig.outb(port + 1, value)


def test_timer_interrupt_through_8259_and_lint0() -> None:
    rig = Rig()
    start_pics(rig)
    for value in (0x34, 0x9C, 0x2E):
        rig.outb(0x43 if value == 0x34 else 0x40, value)
    rig.take()  # the line rises once when the mode is set
    rig.outb(0x20, 0x20)
    rig.run(11_000_000)
    assert rig.take() == 0x30
    assert rig.take() == -1


def test_timer_interrupt_through_the_io_apic_is_on_pin_2() -> None:
    rig = Rig()
    unmask(rig, layout.PIN_TIMER, 0x55)
    for value in (0x34, 0x9C, 0x2E):
        rig.outb(0x43 if value == 0x34 else 0x40, value)
    rig.run(11_000_000)
    assert rig.take() == 0x55


def test_console_in_and_out() -> None:
    rig = Rig()
    unmask(rig, layout.IRQ_COM1, 0x44)
    rig.outb(0x3F8 + 4, 8)
    rig.outb(0x3F8 + 1, 1)
    for byte in b"login: ":
        rig.outb(0x3F8, byte)
    rig.run(20_000_000)
    assert rig.console == b"login: "
    rig.board.type(b"r")
    assert rig.kicks == 1
    rig.run(0)
    assert rig.take() == 0x44
    assert rig.inb(0x3F8) == ord("r")


@pytest.mark.parametrize(
    ("port", "width", "value", "kind"),
    [
        (layout.PORT_ACPI_PM + 4, 2, 1 << 13 | 5 << 10, StopKind.POWER_OFF),
        (layout.PORT_RESET_CONTROL, 1, 6, StopKind.RESET),
        (0x64, 1, 0xFE, StopKind.RESET),
        (0xF4, 1, 0x2A, StopKind.DEBUG_EXIT),
    ],
)
def test_ways_to_stop(port: int, width: int, value: int, kind: StopKind) -> None:
    rig = Rig()
    rig.board.ports.write(port, width, value)
    assert [stop.kind for stop in rig.stops] == [kind]
    assert rig.stops[0].value == (0x2A if kind is StopKind.DEBUG_EXIT else 0)


def test_power_button_is_a_level_interrupt_on_the_sci() -> None:
    rig = Rig()
    unmask(rig, layout.IRQ_SCI, 0x49, level=True)
    rig.board.ports.write(layout.PORT_ACPI_PM + 2, 2, 1 << 8)
    rig.board.press_power_button()
    rig.run(0)
    assert rig.take() == 0x49
    rig.board.mmio.write(APIC_EOI, 4, 0)
    assert rig.take() == 0x49  # still asserted
    rig.board.ports.write(layout.PORT_ACPI_PM, 2, 1 << 8)
    rig.board.mmio.write(APIC_EOI, 4, 0)
    assert rig.take() == -1


def test_tables_lie_where_kernels_look() -> None:
    rig = Rig()
    image = rig.ram.data
    found = [at for at in range(0xE0000, 0x100000, 16) if image[at : at + 8] == b"RSD PTR "]
    assert found == [rig.board.rsdp]
    assert struct.unpack_from("<H", image, 0x413)[0] == 639


class Disk:
    """Finds the first virtio disk by ECAM and drives it as a kernel does."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.slot = next(
            slot for slot in range(32) if rig.board.mmio.read(layout.ECAM + (slot << 15), 4) == 0x1042_1AF4
        )
        self.config = layout.ECAM + (self.slot << 15)
        self.bar = rig.board.mmio.read(self.config + 0x10, 4) & ~0xF
        assert layout.PCI_WINDOW <= self.bar < layout.PCI_WINDOW_END

    def put(self, offset: int, width: int, value: int) -> None:
        self.rig.board.mmio.write(self.bar + offset, width, value)

    def start(self) -> None:
        for status in (1, 3):
            self.put(20, 1, status)
        self.put(8, 4, 1)
        self.put(12, 4, 1)
        self.put(20, 1, 11)
        self.put(24, 2, 8)
        for offset, address in ((32, 0x10_0000), (40, 0x10_1000), (48, 0x10_2000)):
            self.put(offset, 4, address)
            self.put(offset + 4, 4, 0)
        self.put(28, 2, 1)
        self.put(20, 1, 15)

    def read_sector(self, sector: int) -> None:
        memory = self.rig.board.memory
        memory.write(0x11_0000, struct.pack("<IIQ", 0, 0, sector))
        chain = ((0x11_0000, 16, 1, 1), (0x12_0000, 512, 3, 2), (0x11_0100, 1, 2, 0))
        for i, descriptor in enumerate(chain):
            memory.write(0x10_0000 + 16 * i, struct.pack("<QIHH", *descriptor))
        memory.write(0x10_1000, struct.pack("<HHH", 0, 1, 0))
        self.put(pci.NOTIFY, 2, 0)


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes((i,)) * 512 for i in range(64)))
    return path


def test_disk_read_with_msix(disk_file: Path) -> None:
    rig = Rig(images=[open_image(disk_file)])
    disk = Disk(rig)
    disk.start()
    capability = rig.board.mmio.read(disk.config + 0x34, 1)
    assert rig.board.mmio.read(disk.config + capability, 1) == 0x11
    disk.put(pci.TABLE + 16, 8, 0xFEE0_0000)
    disk.put(pci.TABLE + 24, 4, 0x4077)
    disk.put(pci.TABLE + 28, 4, 0)
    rig.board.mmio.write(disk.config + capability + 2, 2, 0x8000)
    disk.put(26, 2, 1)
    disk.read_sector(9)
    assert rig.take() == -1
    rig.run(1_000_000)
    assert rig.take() == 0x77
    assert rig.board.memory.read(0x12_0000, 512) == bytes((9,)) * 512
    rig.board.close()


def test_disk_read_with_intx_on_the_pin_that_prt_names(disk_file: Path) -> None:
    rig = Rig(images=[open_image(disk_file)])
    disk = Disk(rig)
    pin = layout.PCI_PINS[disk.slot % 4]
    unmask(rig, pin, 0x66, level=True)
    disk.start()
    disk.read_sector(3)
    rig.run(1_000_000)
    assert rig.take() == 0x66
    assert rig.board.mmio.read(disk.bar + pci.ISR, 1) == 1
    rig.board.mmio.write(APIC_EOI, 4, 0)
    assert rig.take() == -1
    rig.board.close()


def test_writes_are_complete_after_close(disk_file: Path) -> None:
    rig = Rig(images=[open_image(disk_file)], virtual_time=False)
    disk = Disk(rig)
    disk.start()
    memory = rig.board.memory
    memory.write(0x12_0000, b"w" * 512)
    memory.write(0x11_0000, struct.pack("<IIQ", 1, 0, 5))
    chain = ((0x11_0000, 16, 1, 1), (0x12_0000, 512, 1, 2), (0x11_0100, 1, 2, 0))
    for i, descriptor in enumerate(chain):
        memory.write(0x10_0000 + 16 * i, struct.pack("<QIHH", *descriptor))
    memory.write(0x10_1000, struct.pack("<HHH", 0, 1, 0))
    disk.put(pci.NOTIFY, 2, 0)
    rig.board.close()
    assert disk_file.read_bytes()[5 * 512 : 6 * 512] == b"w" * 512


def test_fw_cfg_tells_the_command_line() -> None:
    rig = Rig()

    def item(key: int, length: int) -> bytes:
        rig.board.ports.write(layout.PORT_FW_CFG, 2, key)
        return bytes(rig.inb(layout.PORT_FW_CFG + 1) for _ in range(length))

    assert item(0, 4) == b"QEMU"
    size = struct.unpack("<I", item(0x14, 4))[0]
    assert item(0x15, size) == b"console=ttyS0\0"
    assert struct.unpack("<Q", item(3, 8))[0] == 16 * MIB
    assert rig.board.ports.read(layout.PORT_FW_CFG_DMA, 4) == int.from_bytes(b"QEMU", "little")


def test_virtual_time_is_the_same_in_every_run() -> None:
    def story() -> tuple[int, ...]:
        rig = Rig()
        rig.outb(0x70, 0)
        rig.run(5_000_000_000)
        return tuple(rig.board.ports.read(port, 1) for port in (0x71, 0x608, 0x609, 0x40, 0x61))

    assert story() == story()


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="RAM"):
        Rig(ram=4096)
    with pytest.raises(ValueError, match=r"debug-exit port 0x3f8: .* taken"):
        Rig(debug_exit=(0x3F8, 4))


def test_no_access_anywhere_harms_the_board(disk_file: Path) -> None:
    """Random reads and writes at every port and device address; the guest may only hurt itself."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    before = disk_file.read_bytes()
    rig = Rig(images=[open_image(disk_file, read_only=True)])
    ports = sorted(rig.board.ports._ports)
    regions = [layout.IO_APIC, layout.LOCAL_APIC, layout.ECAM, layout.ECAM + (1 << 15), layout.PCI_WINDOW]
    registers = [0x1B, 0x6E0, *range(0x800, 0x840)]
    for _ in range(20_000):
        width = rng.choice((1, 2, 4))
        value = rng.choice((0, 1, 0xFF, (1 << 64) - 1, rng.getrandbits(64), rng.getrandbits(8)))
        choice = rng.random()
        if choice < 0.4:
            port = rng.choice(ports)
            if rng.random() < 0.5:
                rig.board.ports.write(port, width, value & (1 << 8 * width) - 1)
            else:
                assert 0 <= rig.board.ports.read(port, width) < 1 << 8 * width
        elif choice < 0.85:
            width = rng.choice((1, 2, 4, 8))
            address = rng.choice(regions) + rng.choice((rng.randrange(0x100), rng.randrange(0x8000)))
            if rng.random() < 0.6:
                rig.board.mmio.write(address, width, value & (1 << 8 * width) - 1)
            else:
                assert 0 <= rig.board.mmio.read(address, width) < 1 << 8 * width
        elif choice < 0.95:
            msr = rng.choice(registers)
            try:
                if rng.random() < 0.5:
                    rig.board.apic.write_msr(msr, value)
                else:
                    rig.board.apic.read_msr(msr)
            except ValueError:
                pass  # #GP
        else:
            rig.take()
            rig.board.apic.take_nmi()
            rig.run(rng.choice((1000, 1_000_000)))
    rig.board.close()
    assert disk_file.read_bytes() == before


def test_board_satisfies_what_l0_asks_for() -> None:
    """Structural: mypy checks the assignments where l0.ports is there; here the members exist."""
    board: Board = Rig().board
    for name in ("pending", "acknowledge", "take_nmi", "read_msr", "write_msr", "nmi_pending"):
        assert hasattr(board.apic, name)
    for name in ("next_deadline", "run"):
        assert hasattr(board.events, name)
    assert BoardOptions(ram_size=MIB).images == ()
