"""QEMU's firmware configuration device: items by selector, a file directory, and its DMA interface.

Everything is read-only. The DMA interface refuses transfers longer than it could ever need to serve.
"""

from __future__ import annotations

import struct

from turtles.devices.interfaces import GuestMemory, GuestMemoryError

SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
KERNEL_SIZE, INITRD_SIZE, BOOT_DEVICE, BOOT_MENU, MAX_CPUS = 0x08, 0x0B, 0x0C, 0x0E, 0x0F
CMDLINE_ADDR, CMDLINE_SIZE, CMDLINE_DATA = 0x13, 0x14, 0x15
FILE_DIRECTORY, FIRST_FILE = 0x19, 0x20

FEATURE_TRADITIONAL, FEATURE_DMA = 1, 2
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
DMA_SIGNATURE = 0x51454D5520434647  # "QEMU CFG"
DMA_LIMIT = 256 << 20
FILE_NAME_BYTES = 56


class FwCfg:
    """The device. Add items before the guest runs."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._items: dict[int, bytes] = {}
        self._files: list[tuple[str, int]] = []
        self._key = SIGNATURE
        self._offset = 0
        self._dma_address = 0
        self.add(SIGNATURE, b"QEMU")
        self.add(ID, struct.pack("<I", FEATURE_TRADITIONAL | FEATURE_DMA))
        self.add(FILE_DIRECTORY, struct.pack(">I", 0))

    def add(self, key: int, data: bytes) -> None:
        """An item by its key."""
        self._items[key] = data

    def add_file(self, name: str, data: bytes) -> None:
        """A named file; it gets the next free key and a line in the directory."""
        encoded = name.encode("ascii")
        if len(encoded) >= FILE_NAME_BYTES:
            raise ValueError(f"fw_cfg file name is longer than {FILE_NAME_BYTES - 1} characters: {name}")
        key = FIRST_FILE + len(self._files)
        self._files.append((name, key))
        self._items[key] = data
        directory = struct.pack(">I", len(self._files))
        for file, file_key in sorted(self._files):
            size = len(self._items[file_key])
            directory += struct.pack(">IHH56s", size, file_key, 0, file.encode("ascii"))
        self._items[FILE_DIRECTORY] = directory

    # --- selector (port 510h) and data (port 511h) ---

    def read(self, offset: int, width: int) -> int:
        """Offset 1 streams the item's bytes, zeros after its end; the selector cannot be read."""
        if offset != 1:
            return 0
        return int.from_bytes(self._take(width), "little")

    def write(self, offset: int, width: int, value: int) -> None:
        """Offset 0 selects an item and rewinds it; writing data is not supported any more, as in QEMU."""
        if offset == 0:
            self._select(value & 0xFFFF)

    def _select(self, key: int) -> None:
        self._key = key & 0x3FFF  # bits 14 and 15: write channel and architecture-local keys
        self._offset = 0

    def _take(self, length: int) -> bytes:
        data = self._items.get(self._key, b"")[self._offset : self._offset + length]
        self._offset += length
        return data.ljust(length, b"\0")

    # --- DMA (port 514h, big-endian) ---

    def read_dma(self, offset: int, width: int) -> int:
        """The signature "QEMU CFG", by which the interface is known."""
        return int.from_bytes(DMA_SIGNATURE.to_bytes(8, "big")[offset : offset + width], "little")

    def write_dma(self, offset: int, width: int, value: int) -> None:
        """The address of a request: its high half at offset 0, then its low half, which starts it."""
        half = int.from_bytes((value & 0xFFFF_FFFF).to_bytes(4, "little"), "big")
        if width != 4:
            return
        if offset == 0:
            self._dma_address = half << 32
        elif offset == 4:
            address, self._dma_address = self._dma_address | half, 0
            self._run_dma(address)

    def _run_dma(self, address: int) -> None:
        try:
            control, length, target = struct.unpack(">IIQ", self._memory.read(address, 16))
            if control & DMA_SELECT:
                self._select(control >> 16)
            failed = bool(control & DMA_WRITE) or length > DMA_LIMIT
            if not failed and control & DMA_READ:
                try:
                    self._memory.write(target, self._take(length))
                except GuestMemoryError:
                    failed = True
            elif not failed and control & DMA_SKIP:
                self._offset += length
            self._memory.write(address, struct.pack(">I", DMA_ERROR if failed else 0))
        except GuestMemoryError:
            return  # not even the answer has a place
