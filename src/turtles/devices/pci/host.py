"""PCI host bridge: both configuration mechanisms, and the way of memory accesses to the BARs of bus 0.

There is one bus. Memory accesses come here only for the bridge's windows, so a BAR that a guest puts on top
of RAM or of an interrupt controller is simply not reached. Where BARs overlap the lowest device wins.
"""

from __future__ import annotations

from typing import Protocol

from turtles.devices.pci.function import PciFunction

ADDRESS_ENABLE = 1 << 31


class _Ports(Protocol):
    def read(self, offset: int, width: int) -> int: ...
    def write(self, offset: int, width: int, value: int) -> None: ...


class HostBridge(PciFunction):
    """Function 00:00.0: a bridge without registers of its own."""

    def __init__(self) -> None:
        super().__init__(vendor=0x1B36, device=0x0008, class_code=0x060000, subsystem_vendor=0x1AF4)


class PciHost:
    """Bus 0. `reset_control` gets the byte accesses to port CF9h, which lies inside CONFIG_ADDRESS."""

    def __init__(self, reset_control: _Ports) -> None:
        self._reset_control = reset_control
        self.functions: dict[int, PciFunction] = {}  # by device number; all are function 0
        self._address = 0
        self.attach(0, HostBridge())

    def attach(self, device: int, function: PciFunction) -> None:
        """Put a function at device `device` of bus 0."""
        if device in self.functions or not 0 <= device < 32:
            raise ValueError(f"PCI device number {device} is taken or out of range")
        self.functions[device] = function

    # --- mechanism 1: ports CF8h to CFFh ---

    def read(self, offset: int, width: int) -> int:
        """Offsets 0 to 3 are CONFIG_ADDRESS, 4 to 7 CONFIG_DATA."""
        if offset < 4:
            if width == 4 and offset == 0:
                return self._address
            if width == 1 and offset == 1:
                return self._reset_control.read(0, 1)
            return (1 << 8 * width) - 1
        target = self._config_target(offset, width)
        if target is None:
            return (1 << 8 * width) - 1
        function, register = target
        return function.config_read(register, width)

    def write(self, offset: int, width: int, value: int) -> None:
        """As `read`; only a 32-bit write reaches CONFIG_ADDRESS."""
        if offset < 4:
            if width == 4 and offset == 0:
                self._address = value & 0x80FF_FFFC
            elif width == 1 and offset == 1:
                self._reset_control.write(0, 1, value)
            return
        target = self._config_target(offset, width)
        if target is not None:
            target[0].config_write(target[1], width, value)

    def _config_target(self, offset: int, width: int) -> tuple[PciFunction, int] | None:
        address = self._address
        if not address & ADDRESS_ENABLE or address >> 16 & 0xFF or address >> 8 & 7 or offset + width > 8:
            return None
        function = self.functions.get(address >> 11 & 0x1F)
        return None if function is None else (function, (address & 0xFC) + offset - 4)

    # --- mechanism 2: ECAM, 1 MiB a bus, 4 KiB a function ---

    def ecam_read(self, offset: int, width: int) -> int:
        """Memory-mapped configuration read."""
        function = self._ecam_function(offset)
        if function is None or width == 8:
            return (1 << 8 * width) - 1
        return function.config_read(offset & 0xFFF, width)

    def ecam_write(self, offset: int, width: int, value: int) -> None:
        """Memory-mapped configuration write."""
        function = self._ecam_function(offset)
        if function is not None and width != 8:
            function.config_write(offset & 0xFFF, width, value)

    def _ecam_function(self, offset: int) -> PciFunction | None:
        if offset >> 20 or offset >> 12 & 7:
            return None
        return self.functions.get(offset >> 15 & 0x1F)

    # --- memory ---

    def memory_read(self, address: int, width: int) -> int:
        """An access in one of the bridge's windows."""
        for function in self.functions.values():
            for bar in function.bars:
                base = function.bar_address(bar)
                if base >= 0 and base <= address and address + width <= base + bar.size:
                    return bar.region.read(address - base, width)
        return (1 << 8 * width) - 1

    def memory_write(self, address: int, width: int, value: int) -> None:
        """An access in one of the bridge's windows."""
        for function in self.functions.values():
            for bar in function.bars:
                base = function.bar_address(bar)
                if base >= 0 and base <= address and address + width <= base + bar.size:
                    bar.region.write(address - base, width, value)
                    return
