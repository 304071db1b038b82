"""Kernels made for the loaders' tests: smallest files that a loader accepts, with every field settable."""

from __future__ import annotations

import struct
from typing import Any

from turtles.board.layout import E820Entry, MemoryKind
from turtles.guests.state import MIB, Platform

PLATFORM = Platform(
    (
        E820Entry(0, 0x9FC00, MemoryKind.RAM),
        E820Entry(0x9FC00, 0x400, MemoryKind.RESERVED),
        E820Entry(0xF0000, 0x10000, MemoryKind.RESERVED),
        E820Entry(MIB, 127 * MIB, MemoryKind.RAM),
    ),
    rsdp_l1_pa=0xF0000,
)


def bzimage(code: bytes = b"\xf4" * 4096, **fields: int) -> bytes:
    """A bzImage of protocol 2.15 whose 64-bit entry is at the code's offset 0x200."""
    f: dict[str, Any] = {
        "setup_sects": 1,
        "syssize": (len(code) + 15) // 16,
        "version": 0x20F,
        "loadflags": 1,
        "initrd_addr_max": 0x7FFFFFFF,
        "kernel_alignment": 0x200000,
        "relocatable": 1,
        "xloadflags": 1,
        "cmdline_size": 2047,
        "pref_address": 0x1000000,
        "init_size": 0x400000,
        "payload_offset": 0,
        "payload_length": 0,
        **fields,
    }
    head = bytearray(512 * 2)
    put = struct.pack_into
    put("<B", head, 0x1F1, f["setup_sects"])
    put("<I", head, 0x1F4, f["syssize"])
    head[0x1FE:0x206] = b"\x55\xaa\xeb\x66HdrS"
    put("<H", head, 0x206, f["version"])
    put("<H", head, 0x20E, 0x300 - 0x200)
    put("<B", head, 0x211, f["loadflags"])
    put("<I", head, 0x22C, f["initrd_addr_max"])
    put("<I", head, 0x230, f["kernel_alignment"])
    put("<B", head, 0x234, f["relocatable"])
    put("<H", head, 0x236, f["xloadflags"])
    put("<I", head, 0x238, f["cmdline_size"])
    put("<II", head, 0x248, f["payload_offset"], f["payload_length"])
    put("<Q", head, 0x258, f["pref_address"])
    put("<I", head, 0x260, f["init_size"])
    head[0x300:0x30B] = b"6.1.0-test\0"
    return bytes(head) + code


def multiboot_header(flags: int = 3, addresses: tuple[int, int, int, int, int] | None = None) -> bytes:
    """A Multiboot 1 header with a valid checksum."""
    if addresses is not None:
        flags |= 1 << 16
    head = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    return head + (struct.pack("<5I", *addresses) if addresses else b"")


def elf32(
    code: bytes, paddr: int = MIB, vaddr: int | None = None, entry: int | None = None, bss: int = 0
) -> bytes:
    """An ELF32 executable with one segment that begins at the file's offset 0x1000."""
    vaddr = paddr if vaddr is None else vaddr
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry or vaddr + 32, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<8I", 1, 0x1000, vaddr, paddr, len(code), len(code) + bss, 5, 0x1000)
    return head.ljust(0x1000, b"\0") + code


def elf64(
    code: bytes, paddr: int = MIB, vaddr: int | None = None, entry: int | None = None, bss: int = 0
) -> bytes:
    """The same as an ELF64 executable."""
    vaddr = paddr if vaddr is None else vaddr
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry or vaddr + 32, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    head += struct.pack("<IIQQQQQQ", 1, 5, 0x1000, vaddr, paddr, len(code), len(code) + bss, 0x1000)
    return head.ljust(0x1000, b"\0") + code


def multiboot_kernel(make: Any = elf32, flags: int = 3, **kw: Any) -> bytes:
    """A Multiboot ELF whose header lies at the start of its segment and whose entry is 32 bytes behind."""
    return bytes(make(multiboot_header(flags).ljust(32, b"\0") + b"\xf4" * 64, **kw))
