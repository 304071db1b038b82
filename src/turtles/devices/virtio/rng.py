"""virtio entropy device (virtio 1.2, section 5.4): fills buffers with random bytes.

Under virtual time the source is seeded, so that every run reads the same. A buffer gets 4 KiB at most, which
the specification allows: the used length says how much.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from turtles.devices.interfaces import GuestMemory, GuestMemoryError
from turtles.devices.virtio.device import VirtioDevice
from turtles.devices.virtio.queue import QueueError, VirtQueue, scatter, total

LIMIT = 4096


class VirtioRng(VirtioDevice):
    """The device. With `seed` None the host's random numbers are used."""

    kind = 4
    class_code = 0x00FF00

    def __init__(self, memory: GuestMemory, seed: int | None = None) -> None:
        super().__init__(memory, 1)
        self._bytes: Callable[[int], bytes] = os.urandom if seed is None else random.Random(seed).randbytes

    def notified(self, queue: VirtQueue) -> None:
        """Fill everything that is available."""
        try:
            chains = queue.pop_all()
            filled = [
                (
                    chain.head,
                    scatter(self.memory, chain.writable, self._bytes(min(total(chain.writable), LIMIT))),
                )
                for chain in chains
            ]
        except (QueueError, GuestMemoryError) as error:
            self.broken(str(error))
            return
        self.complete(queue, filled)
