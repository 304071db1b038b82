"""What a virtio device is to its transport: a type, features, queues, a configuration space.

The transport owns status, feature negotiation and interrupts; a device gets chains and gives them back.
"""

from __future__ import annotations

from collections.abc import Callable

from turtles.devices.interfaces import GuestMemory
from turtles.devices.virtio.queue import QueueError, VirtQueue

FEATURE_INDIRECT, FEATURE_EVENT_INDEX, FEATURE_VERSION_1 = 1 << 28, 1 << 29, 1 << 32


class VirtioDevice:
    """Base of the devices. `kind` is the virtio device id (1 net, 2 block, 4 entropy)."""

    kind = 0
    class_code = 0xFF0000

    def __init__(self, memory: GuestMemory, queues: int, features: int = 0) -> None:
        self.memory = memory
        self.queues = [VirtQueue(memory) for _ in range(queues)]
        self.features = features | FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1
        self.driver_features = 0
        self.active = False
        self.interrupt: Callable[[VirtQueue], None] = lambda queue: None
        self.broken: Callable[[str], None] = lambda reason: None

    def config_bytes(self) -> bytes:
        """The device-specific configuration space."""
        return b""

    def notified(self, queue: VirtQueue) -> None:
        """The driver made chains available on an active device's queue."""

    def reset(self) -> None:
        """Stop all work: afterwards no guest memory is touched until the driver starts the device again."""
        self.active = False
        self.driver_features = 0
        for queue in self.queues:
            queue.reset()

    def close(self) -> None:
        """The machine ends: finish what was promised to the guest, release what the host lent."""

    def complete(self, queue: VirtQueue, chains: list[tuple[int, int]]) -> None:
        """Push (head, written) pairs and interrupt once if the driver wants it."""
        try:
            for head, written in chains:
                queue.push(head, written)
            if queue.wants_interrupt():
                self.interrupt(queue)
        except QueueError as error:
            self.broken(str(error))
