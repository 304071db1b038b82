"""The APIC bus: carries messages from I/O APIC pins, MSIs and IPIs to the local APICs they name.

Lowest-priority delivery picks the first APIC with the lowest processor priority. Nothing is lost or delayed.
"""

from __future__ import annotations

from turtles.devices.interfaces import LOWEST_PRIORITY, InterruptMessage, message_of_msi
from turtles.devices.lapic import SHORTHAND_ALL, SHORTHAND_OTHERS, LocalApic


class ApicBus:
    """All local APICs of a machine."""

    def __init__(self) -> None:
        self._apics: list[LocalApic] = []

    def attach(self, apic: LocalApic) -> None:
        """Another processor."""
        self._apics.append(apic)

    def send(self, message: InterruptMessage) -> None:
        """Deliver to every APIC that the destination matches (or to one, in lowest-priority mode)."""
        targets = [apic for apic in self._apics if apic.matches(message)]
        if message.delivery == LOWEST_PRIORITY and targets:
            targets = [min(targets, key=LocalApic.processor_priority)]
        for apic in targets:
            apic.accept(message)

    def ipi(self, source: LocalApic, shorthand: int, message: InterruptMessage) -> None:
        """An interprocessor interrupt by destination or shorthand (SDM 11.6.1)."""
        if shorthand in (SHORTHAND_ALL, SHORTHAND_OTHERS):
            for apic in self._apics:
                if shorthand == SHORTHAND_ALL or apic is not source:
                    apic.accept(message)
        else:
            self.send(message)

    def msi(self, address: int, data: int) -> None:
        """A device writes a message-signalled interrupt."""
        message = message_of_msi(address, data)
        if message is not None:
            self.send(message)
