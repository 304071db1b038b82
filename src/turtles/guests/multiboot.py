"""Multiboot 1 (specification 0.6.96): ELF or address-field kernels with modules and command line.

The machine is left in 32-bit protected mode with EAX = 2BADB002h and EBX at the information structure.
Not here: video modes (a kernel that insists on one is refused), boot device, drives, APM, symbols.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from turtles.guests.elf import is_elf, parse_elf
from turtles.guests.state import (
    CODE_32,
    DATA_32,
    GIB,
    MIB,
    PAGE,
    DescriptorTable,
    GuestError,
    InitialState,
    MemoryWrite,
    Platform,
    descriptor,
    flat_segments,
)

HEADER_MAGIC: Final = 0x1BAD_B002
LOADER_MAGIC: Final = 0x2BAD_B002
SEARCH: Final = 8192  # the header lies within the first 8192 bytes, on a multiple of four

WANTS_PAGE_ALIGNED_MODULES: Final = 1 << 0
WANTS_MEMORY: Final = 1 << 1
WANTS_VIDEO: Final = 1 << 2
HAS_ADDRESSES: Final = 1 << 16
REQUIRED: Final = 0xFFFF  # of these bits an unknown one must stop the loader

# Below the EBDA, out of the way of kernels, which live from 1 MiB up.
GDT_L1_PA: Final = 0x0500
INFO_L1_PA: Final = 0x9000
INFO_END: Final = 0x9_F000
LOADER_NAME: Final = b"turtles\0"
BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18
CR0_PE_ET_NE: Final = 0x31


@dataclass(frozen=True)
class Module:
    """A boot module: its bytes and its own command line."""

    data: bytes
    line: str


@dataclass(frozen=True)
class Header:
    """A Multiboot header (specification 3.1.1); the address fields only with flag 16."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


@dataclass(frozen=True)
class _Kernel:
    entry: int
    ranges: tuple[tuple[int, int], ...]  # (first, behind the last) in memory
    writes: tuple[MemoryWrite, ...]
    what: str


def find_header(image: bytes) -> Header | None:
    """The header with a valid checksum, or None where the file is no Multiboot kernel."""
    for at in range(0, min(len(image), SEARCH) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", image, at)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFF_FFFF == 0:
            if not flags & HAS_ADDRESSES:
                return Header(at, flags)
            if at + 32 > len(image):
                raise GuestError("kernel: truncated: the Multiboot header's address fields are cut off")
            return Header(at, flags, *struct.unpack_from("<5I", image, at + 12))
    return None


def load_multiboot(
    image: bytes, platform: Platform, command_line: str, modules: Sequence[Module]
) -> InitialState:
    """The state that the specification's section 3.2 promises to the kernel."""
    header = find_header(image)
    if header is None:
        raise GuestError("kernel: no Multiboot header in the first 8192 bytes")
    unknown = header.flags & REQUIRED & ~(WANTS_PAGE_ALIGNED_MODULES | WANTS_MEMORY | WANTS_VIDEO)
    if unknown:
        raise GuestError(f"kernel: Multiboot header requires features that are unknown (flags {unknown:#x})")
    if header.flags & WANTS_VIDEO:
        raise GuestError("kernel: Multiboot header requires a video mode; there is no display")
    if header.flags & HAS_ADDRESSES:
        kernel = _by_addresses(image, header)
    elif is_elf(image):
        kernel = _by_elf(image)
    else:
        raise GuestError("kernel: Multiboot header without addresses in a file that is no ELF")
    for first, end in kernel.ranges:
        if end > 4 * GIB or not platform.fits(first, end - first):
            raise GuestError(f"kernel: its memory {first:#x}-{end:#x} is not RAM of this machine (-m?)")
    gdt_at, info_at = _free_low_memory(kernel)
    module_writes, placed = _place_modules(modules, kernel, platform)
    info = _information(info_at, platform, command_line, placed, modules)
    gdt = struct.pack("<4Q", 0, 0, descriptor(CODE_32), descriptor(DATA_32))
    return InitialState(
        what=kernel.what,
        registers={
            "rip": kernel.entry,
            "rax": LOADER_MAGIC,
            "rbx": info_at,
            "rflags": 2,
            "cr0": CR0_PE_ET_NE,
        },
        segments=flat_segments(CODE_32, BOOT_CS, BOOT_DS),
        gdtr=DescriptorTable(gdt_at, len(gdt) - 1),
        idtr=DescriptorTable(0, 0),
        memory=(
            MemoryWrite(gdt_at, gdt),
            MemoryWrite(info_at, info),
            *kernel.writes,
            *module_writes,
        ),
    )


def _by_addresses(image: bytes, h: Header) -> _Kernel:
    """The header says where the file's bytes go (specification 3.1.3), whatever format the file has."""
    if h.load_addr > h.header_addr or h.header_addr - h.load_addr > h.offset:
        raise GuestError("kernel: Multiboot load_addr lies before the beginning of the file")
    start = h.offset - (h.header_addr - h.load_addr)
    size = h.load_end_addr - h.load_addr if h.load_end_addr else len(image) - start
    if size <= 0 or start + size > len(image):
        raise GuestError("kernel: truncated: Multiboot load_end_addr lies behind the end of the file")
    end = h.load_addr + size
    if h.bss_end_addr and h.bss_end_addr < end:
        raise GuestError("kernel: Multiboot bss_end_addr lies inside of the loaded bytes")
    end = h.bss_end_addr or end
    if not h.load_addr <= h.entry_addr < end:
        raise GuestError(f"kernel: Multiboot entry {h.entry_addr:#x} lies outside of what is loaded")
    return _Kernel(
        h.entry_addr,
        ((h.load_addr, end),),
        (MemoryWrite(h.load_addr, image[start : start + size]),),
        "Multiboot kernel by address fields, 32-bit entry",
    )


def _by_elf(image: bytes) -> _Kernel:
    elf = parse_elf(image)
    entry = elf.physical_entry()
    ranges = tuple((s.paddr, s.paddr + s.memory_size) for s in elf.segments)
    if not any(first <= entry < end for first, end in ranges):
        raise GuestError(f"kernel: ELF entry {entry:#x} lies outside of what is loaded")
    return _Kernel(
        entry,
        ranges,
        tuple(MemoryWrite(s.paddr, s.data) for s in elf.segments if s.data),
        f"Multiboot ELF{elf.bits}, 32-bit entry",
    )


def _place_modules(
    modules: Sequence[Module], kernel: _Kernel, platform: Platform
) -> tuple[list[MemoryWrite], list[int]]:
    """Modules page-aligned behind the kernel, one behind the other."""
    at = max([MIB, *(end for _, end in kernel.ranges)])
    writes, placed = [], []
    for m in modules:
        at = (at + PAGE - 1) & -PAGE
        size = max(len(m.data), 1)
        if at + size > 4 * GIB or not platform.fits(at, size):
            raise GuestError(f"module: {len(m.data)} bytes do not fit in memory behind the kernel (-m?)")
        if m.data:
            writes.append(MemoryWrite(at, m.data))
        placed.append(at)
        at += size
    return writes, placed


def _free_low_memory(kernel: _Kernel) -> tuple[int, int]:
    """Where descriptor table and boot information go: as usual, or behind a kernel that lies there."""
    low = [r for r in kernel.ranges if r[0] < INFO_END and r[1] > GDT_L1_PA]
    if not low:
        return GDT_L1_PA, INFO_L1_PA
    gdt_at = (max(end for _, end in low) + PAGE - 1) & -PAGE
    if gdt_at + 2 * PAGE > INFO_END:
        first, end = low[0]
        raise GuestError(
            f"kernel: its memory {first:#x}-{end:#x} leaves no room for boot information below {INFO_END:#x}"
        )
    return gdt_at, gdt_at + PAGE


def _information(
    info_at: int, platform: Platform, command_line: str, placed: Sequence[int], modules: Sequence[Module]
) -> bytes:
    """The information structure of section 3.3, followed by everything that it points to."""
    body = bytearray(120)

    def append(data: bytes) -> int:
        body.extend(bytes(-len(body) % 4))
        at = info_at + len(body)
        body.extend(data)
        return at

    def text(line: str) -> bytes:
        data = line.encode("utf-8", "surrogateescape")
        if b"\0" in data:
            raise GuestError("--append: the command line contains a NUL character")
        return data + b"\0"

    line_at = append(text(command_line))
    name_at = append(LOADER_NAME)
    lines_at = [append(text(m.line)) for m in modules]
    modules_at = append(
        b"".join(
            struct.pack("<4I", at, at + len(m.data), line, 0)
            for at, m, line in zip(placed, modules, lines_at, strict=True)
        )
    )
    memory_map = b"".join(struct.pack("<IQQI", 20, *r) for r in platform.memory_map)
    map_at = append(memory_map)
    flags = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    upper = min(platform.ram_above_1m() // 1024, 0xFFFF_FFFF)
    struct.pack_into("<III", body, 0, flags, 639, upper)
    struct.pack_into("<III", body, 16, line_at, len(modules), modules_at)
    struct.pack_into("<II", body, 44, len(memory_map), map_at)
    struct.pack_into("<I", body, 64, name_at)
    if info_at + len(body) > INFO_END:
        raise GuestError("--append: command lines too long for Multiboot's low memory")
    return bytes(body)
