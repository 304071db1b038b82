"""A board with a fake processor round it: memory, clock, stop requests."""

from __future__ import annotations

from collections.abc import Sequence

from turtles.board.board import Board, BoardOptions, StopReason
from turtles.board.layout import MIB
from turtles.devices.virtio.image import Image


class HostRam:
    """Host-physical memory as silicon offers it."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def read(self, pa: int, length: int, /) -> bytes:
        assert pa >= 0 and pa + length <= len(self.data)
        return bytes(self.data[pa : pa + length])

    def write(self, pa: int, data: bytes, /) -> None:
        assert pa >= 0 and pa + len(data) <= len(self.data)
        self.data[pa : pa + len(data)] = data


class Rig:
    """`run` lets time pass as L0 would: to each deadline in turn."""

    def __init__(
        self,
        *,
        ram: int = 16 * MIB,
        images: Sequence[Image] = (),
        virtual_time: bool = True,
        debug_exit: tuple[int, int] | None = (0xF4, 1),
    ) -> None:
        self.now = 0
        self.kicks = 0
        self.stops: list[StopReason] = []
        self.console = bytearray()
        self.ram = HostRam(ram)
        self.board = Board(
            BoardOptions(
                ram_size=ram,
                command_line="console=ttyS0",
                virtual_time=virtual_time,
                images=images,
                debug_exit=debug_exit,
            ),
            memory=self.ram,
            clock=lambda: self.now,
            kick=self._kick,
            stop=self.stops.append,
            serial=self.console.extend,
        )
        self.board.place_firmware()

    def _kick(self) -> None:
        self.kicks += 1

    def run(self, ns: int) -> None:
        end = self.now + ns
        while (deadline := self.board.events.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.board.events.run(self.now)
        self.now = end

    def outb(self, port: int, value: int) -> None:
        self.board.ports.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.board.ports.read(port, 1)

    def take(self) -> int:
        """Take an interrupt as the processor would: its vector, -1 none."""
        vector = self.board.apic.pending()
        if vector >= 0:
            self.board.apic.acknowledge(vector)
        return vector
