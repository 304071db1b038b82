"""The board: makes the devices, puts them on the buses, and connects interrupt lines, clocks and memory.

It holds no behaviour of its own beyond that, and it stands in for firmware: ACPI tables, BIOS data area, PCI
addresses and the local APIC's pins are as a PC's firmware leaves them. One board has one virtual CPU.
"""

from __future__ import annotations

import enum
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from turtles.board import layout
from turtles.board.acpi.tables import Tables, build
from turtles.board.bus import MmioBus, PortBus, ones
from turtles.board.events import EventQueue
from turtles.board.memory import HostMemory, L1Memory
from turtles.devices import fw_cfg, lapic
from turtles.devices.acpi_pm import BLOCK_SIZE, AcpiPm, ResetControl
from turtles.devices.apic_bus import ApicBus
from turtles.devices.debug import DebugConsole, DebugExit, PostCode
from turtles.devices.i8042 import I8042
from turtles.devices.interfaces import EXTINT, NMI, Clock, Line
from turtles.devices.ioapic import IoApic
from turtles.devices.lapic import LocalApic
from turtles.devices.pci.function import PciFunction
from turtles.devices.pci.host import PciHost
from turtles.devices.pic import CASCADE, PicPair
from turtles.devices.pit import Pit
from turtles.devices.rtc import CENTURY, Rtc
from turtles.devices.testdev import TestDevice
from turtles.devices.uart import Uart
from turtles.devices.virtio.block import VirtioBlock
from turtles.devices.virtio.device import VirtioDevice
from turtles.devices.virtio.executor import Executor, ThreadExecutor, VirtualTimeExecutor
from turtles.devices.virtio.image import Image
from turtles.devices.virtio.pci import BAR_SIZE, VirtioPci
from turtles.devices.virtio.rng import VirtioRng

VIRTUAL_EPOCH_S = 1_735_689_600
"""What the clock shows at the start under virtual time: 2025-01-01 00:00:00 UTC, always."""

PROCESSORS = 1


class StopKind(enum.Enum):
    """How a guest ends its machine."""

    POWER_OFF = "power off"
    RESET = "reset"
    DEBUG_EXIT = "debug exit"


class StopReason(NamedTuple):
    """Why the machine stops; `value` is what was written to the debug-exit port."""

    kind: StopKind
    value: int = 0


def discard(data: bytes) -> None:
    """A sink for output that nobody wants."""


@dataclass(frozen=True)
class BoardOptions:
    """What differs between machines."""

    ram_size: int
    command_line: str = ""
    """Kernel command line as fw_cfg shows it."""
    virtual_time: bool = False
    """Everything that is random or asynchronous becomes a function of virtual time and `seed`."""
    seed: int = 1
    debug_exit: tuple[int, int] | None = None
    """Port and width of isa-debug-exit; None: there is none."""
    images: Sequence[Image] = field(default_factory=tuple)
    """Disks, opened; the board closes them."""


class Board:
    """A machine without its processor.

    `ports`, `mmio`, `apic` and `events` are what L0 takes. `memory` is silicon's RAM; `clock` and `kick` are
    the core's; `serial` gets console output; `stop` hears, in the virtual CPU's thread, that the guest ended
    the machine.
    """

    def __init__(
        self,
        options: BoardOptions,
        *,
        memory: HostMemory,
        clock: Clock,
        kick: Callable[[], None],
        stop: Callable[[StopReason], None],
        serial: Callable[[bytes], None] = discard,
        debug_console: Callable[[bytes], None] = discard,
    ) -> None:
        if not layout.MIB <= options.ram_size <= layout.MAX_RAM:
            raise ValueError(f"{options.ram_size} bytes of RAM: the board takes 1 MiB to {layout.MAX_RAM}")
        self.options = options
        self.memory = L1Memory(memory, options.ram_size)
        self.tables: Tables = build(PROCESSORS)
        self.ports = PortBus()
        self.mmio = MmioBus()
        self.events = EventQueue(kick)
        self._clock = clock
        self._stop = stop
        self._virtio: list[VirtioDevice] = []
        self._pci_asserted = [0, 0, 0, 0]  # for each of the four wires, the devices that pull it

        self._build_interrupt_controllers()
        self._build_timers()
        self._build_legacy(serial, debug_console)
        self._build_power()
        self._build_pci()
        self._build_fw_cfg()

    # --- construction, a part of the machine each ---

    def _build_interrupt_controllers(self) -> None:
        self.apic_bus = ApicBus()
        self.pics = PicPair(lambda level: self.apic.set_lint(0, level))
        self.apic = LocalApic(
            0,
            self._clock,
            self.events,
            address_bits=layout.ADDRESS_BITS,
            ipi=lambda shorthand, message: self.apic_bus.ipi(self.apic, shorthand, message),
            eoi=lambda vector: self.ioapic.eoi(vector),
            extint=self.pics.peek,
            extint_acknowledge=self.pics.acknowledge,
            on_move=self._place_apic,
        )
        self.apic_bus.attach(self.apic)
        self.ioapic = IoApic(self.apic_bus.send)
        self.ports.attach_device(layout.PORT_PIC_MASTER, 2, self.pics.master)
        self.ports.attach_device(layout.PORT_PIC_SLAVE, 2, self.pics.slave)
        self.ports.attach(layout.PORT_ELCR, 2, self.pics.read_elcr, self.pics.write_elcr)
        self.mmio.attach(layout.IO_APIC, layout.IO_APIC_SIZE, self.ioapic.read, self.ioapic.write)
        self._apic_at: int | None = None
        self._place_apic()

    def _place_apic(self) -> None:
        """The local APIC's page follows IA32_APIC_BASE. Over RAM or another device it is not reached."""
        if self._apic_at is not None:
            self.mmio.detach(self._apic_at)
        try:
            self.mmio.attach(self.apic.base, layout.LOCAL_APIC_SIZE, self.apic.read, self.apic.write)
            self._apic_at = self.apic.base
        except ValueError:
            self._apic_at = None

    def irq(self, number: int) -> Line:
        """ISA interrupt line `number`: to the 8259s, and to the I/O APIC pin of that interrupt."""
        pin = layout.PIN_TIMER if number == layout.IRQ_TIMER else number

        def line(level: bool) -> None:
            self.pics.set_irq(number, level)
            self.ioapic.set_pin(pin, level)

        return line

    def _build_timers(self) -> None:
        self.pit = Pit(self.irq(layout.IRQ_TIMER), self._clock, self.events)
        self.ports.attach_device(layout.PORT_PIT, 4, self.pit)
        self.ports.attach(layout.PORT_SYSTEM_CONTROL_B, 1, self.pit.read_port_61, self.pit.write_port_61)
        epoch = VIRTUAL_EPOCH_S if self.options.virtual_time else int(time.time())
        self.rtc = Rtc(self.irq(layout.IRQ_RTC), self._clock, self.events, epoch)
        self.ports.attach_device(layout.PORT_RTC, 2, self.rtc)
        self._fill_cmos()

    def _fill_cmos(self) -> None:
        """Memory sizes where firmware leaves them; old kernels look there."""
        low = layout.low_ram(self.options.ram_size)
        above_1m = min((low - layout.MIB) // layout.KIB, 0xFFFF)
        above_16m = min(max(low - 16 * layout.MIB, 0) // (64 * layout.KIB), 0xFFFF)
        for index, value in ((0x15, 640), (0x17, above_1m), (0x30, above_1m), (0x34, above_16m)):
            self.rtc.set_cmos(index, value)
            self.rtc.set_cmos(index + 1, value >> 8)
        self.rtc.set_cmos(0x14, 0x06)  # equipment: mathematics coprocessor, PS/2 port
        self.rtc.set_cmos(CENTURY, 0x20)

    def _build_legacy(self, serial: Callable[[bytes], None], debug_console: Callable[[bytes], None]) -> None:
        self.uart = Uart(self.irq(layout.IRQ_COM1), serial, self._clock, self.events)
        self.ports.attach_device(layout.PORT_COM1, 8, self.uart)
        self.i8042 = I8042(self.irq(layout.IRQ_KEYBOARD), self._reset)
        self.ports.attach(layout.PORT_KEYBOARD, 1, self.i8042.read, self.i8042.write)
        self.ports.attach(
            layout.PORT_KEYBOARD + 4,
            1,
            lambda offset, width: self.i8042.read(4, width),
            lambda offset, width, value: self.i8042.write(4, width, value),
        )
        self.debug_console = DebugConsole(debug_console)
        self.ports.attach_device(layout.PORT_DEBUG_CONSOLE, 1, self.debug_console)
        self.post = PostCode()
        self.ports.attach_device(layout.PORT_POST, 1, self.post)
        if self.options.debug_exit is not None:
            self._add_test_device()
            port, width = self.options.debug_exit
            try:
                self.ports.attach_device(
                    port, width, DebugExit(lambda value: self._stop(StopReason(StopKind.DEBUG_EXIT, value)))
                )
            except ValueError as error:
                raise ValueError(f"debug-exit port {port:#x}: {error}; choose another") from error

    def _add_test_device(self) -> None:
        """What programs that test processors expect beside a debug exit."""
        self.test_device = TestDevice([self.irq(number) for number in range(layout.ISA_IRQS)])
        device = self.test_device
        self.ports.attach(layout.PORT_TEST, 4, device.read, device.write)
        self.ports.attach(layout.PORT_TEST + 8, 1, device.read, device.write)
        self.ports.attach(
            layout.PORT_TEST_LINES, layout.ISA_IRQS, lambda offset, width: ones(width), device.set_line
        )
        self.mmio.attach(layout.TEST_MEMORY, device.SIZE, device.read_memory, device.write_memory)

    def _build_power(self) -> None:
        self.pm = AcpiPm(
            self.irq(layout.IRQ_SCI),
            self._clock,
            self.events,
            lambda: self._stop(StopReason(StopKind.POWER_OFF)),
        )
        self.ports.attach_device(layout.PORT_ACPI_PM, BLOCK_SIZE, self.pm)

    def _build_pci(self) -> None:
        self.pci = PciHost(ResetControl(self._reset))
        self.ports.attach_device(layout.PORT_PCI_CONFIG, 8, self.pci)
        self.mmio.attach(layout.ECAM, layout.ECAM_SIZE, self.pci.ecam_read, self.pci.ecam_write)
        for base, size in (
            (layout.PCI_WINDOW, layout.PCI_WINDOW_END - layout.PCI_WINDOW),
            (layout.PCI_WINDOW_64, layout.PCI_WINDOW_64_SIZE),
        ):
            self._attach_pci_window(base, size)
        self._next_bar = layout.PCI_WINDOW
        for number, image in enumerate(self.options.images):
            executor: Executor
            if self.options.virtual_time:
                executor = VirtualTimeExecutor(self._clock, self.events)
            else:
                executor = ThreadExecutor(self.events, f"disk{number}")
            self.add_virtio(VirtioBlock(self.memory, image, executor, f"turtles-disk{number}"))
        self.add_virtio(VirtioRng(self.memory, self.options.seed if self.options.virtual_time else None))

    def _attach_pci_window(self, base: int, size: int) -> None:
        self.mmio.attach(
            base,
            size,
            lambda offset, width: self.pci.memory_read(base + offset, width),
            lambda offset, width, value: self.pci.memory_write(base + offset, width, value),
        )

    def add_virtio(self, device: VirtioDevice) -> VirtioPci:
        """Put a virtio device into the next free PCI slot, with addresses as firmware assigns them."""
        function = VirtioPci(device, self.apic_bus.msi)
        self._virtio.append(device)
        slot = next(slot for slot in range(1, layout.PCI_DEVICES) if slot not in self.pci.functions)
        self.pci.attach(slot, function)
        wire = slot % 4  # INTA# of device n is on wire n mod 4: the rotation that _PRT tells
        function.use_interrupt_pin(1, layout.PCI_IRQS[wire])
        function.intx = self._pci_wire(slot, wire)
        for bar in function.bars:
            function.place_bar(bar, self._next_bar)
            self._next_bar += max(bar.size, BAR_SIZE)
        return function

    def _pci_wire(self, slot: int, wire: int) -> Line:
        """The slot's pull on one of the four shared PCI interrupt wires."""

        def line(level: bool) -> None:
            pulled = self._pci_asserted
            pulled[wire] = pulled[wire] | 1 << slot if level else pulled[wire] & ~(1 << slot)
            self.ioapic.set_pin(layout.PCI_PINS[wire], bool(pulled[wire]))
            irq = layout.PCI_IRQS[wire]
            shared = any(pulled[i] for i in range(4) if layout.PCI_IRQS[i] == irq)
            self.pics.set_irq(irq, shared)

        return line

    def functions(self) -> list[PciFunction]:
        """Every PCI function, in device order."""
        return [function for _, function in sorted(self.pci.functions.items())]

    def _build_fw_cfg(self) -> None:
        device = self.fw_cfg = fw_cfg.FwCfg(self.memory)
        command_line = self.options.command_line.encode() + b"\0"
        device.add(fw_cfg.RAM_SIZE, struct.pack("<Q", self.options.ram_size))
        device.add(fw_cfg.NOGRAPHIC, struct.pack("<H", 1))
        device.add(fw_cfg.NB_CPUS, struct.pack("<H", PROCESSORS))
        device.add(fw_cfg.MAX_CPUS, struct.pack("<H", PROCESSORS))
        device.add(fw_cfg.BOOT_MENU, struct.pack("<H", 0))
        device.add(fw_cfg.CMDLINE_SIZE, struct.pack("<I", len(command_line)))
        device.add(fw_cfg.CMDLINE_DATA, command_line)
        device.add_file("etc/e820", b"".join(struct.pack("<QQI", *entry) for entry in self.e820()))
        device.add_file("etc/acpi/rsdp", self.tables.part("RSDP"))
        device.add_file("etc/acpi/tables", self.tables.image)
        self.ports.attach_device(layout.PORT_FW_CFG, 2, device)
        self.ports.attach(layout.PORT_FW_CFG_DMA, 8, device.read_dma, device.write_dma)

    # --- what firmware would do ---

    @property
    def rsdp(self) -> int:
        """l1_pa of the ACPI root pointer."""
        return self.tables.base

    def e820(self) -> list[layout.E820Entry]:
        """The memory map to tell the guest."""
        return layout.e820(self.options.ram_size)

    def place_firmware(self) -> None:
        """Write BIOS data area and ACPI tables; set up the 8259s, all masked, and virtual wire mode."""
        area = bytearray(256)
        struct.pack_into("<H", area, 0x00, layout.PORT_COM1)
        struct.pack_into("<H", area, 0x0E, layout.EBDA >> 4)
        struct.pack_into("<H", area, 0x13, layout.EBDA // layout.KIB)
        self.memory.write(layout.BIOS_DATA, bytes(area))
        self.memory.write(layout.EBDA, b"\x01")  # its size in KiB
        self.memory.write(self.tables.base, self.tables.image)
        for chip, vector, cascade in (
            (self.pics.master, 0x08, 1 << CASCADE),
            (self.pics.slave, 0x70, CASCADE),
        ):
            chip.write(0, 1, 0x11)
            for value in (vector, cascade, 0x01, 0xFF):
                chip.write(1, 1, value)
        for register, value in (
            (lapic.SVR, lapic.SVR_ENABLE | 0xFF),
            (lapic.LVT_LINT0, EXTINT << 8),
            (lapic.LVT_LINT1, NMI << 8),
        ):
            self.apic.write(register << 4, 4, value)

    # --- from outside; any thread ---

    def type(self, data: bytes) -> None:
        """Console input."""
        self.events.post(lambda: self.uart.receive(data))

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self.events.post(self.pm.press_power_button)

    # --- the end ---

    def _reset(self) -> None:
        self._stop(StopReason(StopKind.RESET))

    def flush(self) -> None:
        """Hand over console output that waits for its line's end."""
        self.uart.flush()
        self.debug_console.flush()

    def close(self) -> None:
        """The processor has stopped: finish disk writes, release files. The first error is raised."""
        self.flush()
        errors: list[OSError] = []
        for device in self._virtio:
            try:
                device.close()
            except OSError as error:
                errors.append(error)
        self._virtio.clear()
        if errors:
            raise errors[0]
