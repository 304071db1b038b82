"""What devices need from outside: lines, clocks, timers, guest memory, as structural types.

Nothing here does anything; the board supplies the real ones and tests supply fakes. A device that cannot
reach guest memory gets a `GuestMemoryError`, which it must turn into its own way of failing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

Line = Callable[[bool], None]
"""An interrupt line: called with the new level (True = asserted, whatever the electrical polarity)."""

Clock = Callable[[], int]
"""Nanoseconds since the machine's time zero; one TSC tick is one nanosecond."""

NANOSECONDS = 1_000_000_000

MINIMUM_PERIOD_NS = 100_000
"""Shortest period of a repeating timer. A guest that programs a shorter one gets this one: each expiry costs
the machine a VM exit, and a period of nanoseconds would leave no time to run the guest at all."""


def no_line(level: bool) -> None:
    """A line that leads nowhere."""


class Timers(Protocol):
    """Callbacks at a time. They run in the thread that runs the virtual CPU, as every device method does."""

    def at(self, deadline_ns: int, callback: Callable[[], None]) -> object:
        """Call `callback` once the clock shows `deadline_ns`; returns a handle for `cancel`."""
        ...

    def cancel(self, handle: object) -> None:
        """Forget a callback. One that has run or was cancelled already is ignored."""
        ...

    def post(self, callback: Callable[[], None]) -> None:
        """Call `callback` soon in the virtual CPU's thread. The only method that other threads may use."""
        ...


class GuestMemoryError(Exception):
    """A device was told to access physical addresses where there is no RAM."""


class GuestMemory(Protocol):
    """RAM as a bus-mastering device sees it. Both methods raise `GuestMemoryError` outside RAM."""

    def read(self, address: int, length: int) -> bytes:
        """The bytes at a physical address."""
        ...

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a physical address: all of them or, when any lies outside RAM, none."""
        ...


class InterruptMessage(NamedTuple):
    """What travels on the APIC bus, from an I/O APIC pin, as an MSI, or as an IPI (SDM 11.6.1, 11.11)."""

    vector: int
    delivery: int
    """Delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 start-up, 7 ExtINT."""
    destination: int
    logical: bool = False
    level: bool = False
    """Level-triggered: the local APIC sets TMR and broadcasts its EOI."""


FIXED: Final = 0
LOWEST_PRIORITY: Final = 1
SMI: Final = 2
NMI: Final = 4
INIT: Final = 5
STARTUP: Final = 6
EXTINT: Final = 7


def message_of_msi(address: int, data: int) -> InterruptMessage | None:
    """Decode an MSI write (SDM 11.11); None when it is not aimed at the APICs at all."""
    if address >> 32 or address >> 20 != 0xFEE:
        return None
    return InterruptMessage(
        vector=data & 0xFF,
        delivery=data >> 8 & 7,
        destination=address >> 12 & 0xFF,
        logical=bool(address & 4),
        level=bool(data & 0x8000),
    )
