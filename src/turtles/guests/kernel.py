"""`--kernel` and `--initrd`: which loader takes the file, told by its content.

Reads the files, so that loaders see bytes only. Not here: how each protocol lays out memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from turtles.guests.elf import is_elf
from turtles.guests.linux import is_bzimage, load_linux
from turtles.guests.multiboot import Module, find_header, load_multiboot
from turtles.guests.state import GuestError, InitialState, MemoryWrite, Platform, read_file

GZIP: Final = b"\x1f\x8b\x08"
MAX_UNPACKED: Final = 1 << 30


def load_kernel(path: str, initrds: Sequence[str], command_line: str, platform: Platform) -> InitialState:
    """Load a Linux bzImage or a Multiboot kernel; for the latter an initrd is `FILE[ arguments]`.

    A file compressed with gzip is unpacked first. With Multiboot, as QEMU does,
    each initrd is a module whose command line is its path and arguments.
    """
    image = _unpacked(path, read_file(path, "kernel"))
    if is_bzimage(image):
        archives = [read_file(name, "initrd") for name in initrds]
        state = load_linux(image, platform, command_line, archives)
    elif find_header(image) is not None:
        modules = [Module(read_file(name.split(" ", 1)[0], "module"), name) for name in initrds]
        line = f"{path} {command_line}".rstrip()
        state = load_multiboot(image, platform, line, modules)
    elif is_elf(image):
        raise GuestError(f"kernel {path}: an ELF without a Multiboot 1 header cannot be booted")
    else:
        raise GuestError(f"kernel {path}: neither a Linux bzImage nor a Multiboot kernel")
    _check_overlap(state.memory)
    return state


def _unpacked(path: str, data: bytes) -> bytes:
    """As boot loaders do: a kernel may be compressed as a whole (Xen's is)."""
    if not data.startswith(GZIP):
        return data
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        image = unpacker.decompress(data, MAX_UNPACKED)
    except zlib.error as e:
        raise GuestError(f"kernel {path}: damaged gzip file ({e})") from None
    if not unpacker.eof:
        raise GuestError(f"kernel {path}: gzip file is truncated, or larger than 1 GiB unpacked")
    return image


def _check_overlap(writes: Sequence[MemoryWrite]) -> None:
    """Two parts on one address would be a guest that fails later without a word."""
    end = 0
    for w in sorted(writes, key=lambda w: w.l1_pa):
        if w.l1_pa < end:
            raise GuestError(f"kernel: two parts of it want the memory at {w.l1_pa:#x}")
        end = w.l1_pa + len(w.data)
