"""The Linux boot protocol, 64-bit entry: a bzImage, its initrds and its command line.

Follows the kernel's Documentation/x86/boot.rst and zero-page.rst. Every header field that decides where
bytes go is checked against the file and the memory. Older kernels without a 64-bit entry are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from turtles.guests.state import (
    CODE_64,
    DATA_32,
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

# Where the loader puts what the kernel reads before it has its own: below the EBDA, above the BIOS data.
GDT_L1_PA: Final = 0x0500
ZERO_PAGE_L1_PA: Final = 0x7000
PAGE_TABLES_L1_PA: Final = 0x9000  # PML4, PDPT, four page directories
PAGE_DIRECTORIES: Final = 4  # each maps 1 GiB with 2 MiB pages
STACK_L1_PA: Final = 0x8000  # grows down over the rest of the zero page's neighbour; the kernel sets its own
COMMAND_LINE_L1_PA: Final = 0x2_0000
LOW_MEMORY_END: Final = 0x9_FC00  # the EBDA begins here

HEADER: Final = 0x1F1  # offset of the setup header in the file and in boot_params
MAGIC: Final = 0x5372_6448  # "HdrS"
MINIMUM_VERSION: Final = 0x020C  # xloadflags came with 2.12
XLF_KERNEL_64: Final = 1 << 0
LOADED_HIGH: Final = 1 << 0
CAN_USE_HEAP: Final = 1 << 7
ENTRY_64: Final = 0x200
BOOT_CS: Final = 0x10
BOOT_DS: Final = 0x18
E820_MAX: Final = 128

CR0_PE_ET_NE_WP_PG: Final = 0x8001_0031
CR4_PAE: Final = 1 << 5
EFER_LME_LMA: Final = 1 << 8 | 1 << 10


@dataclass(frozen=True)
class SetupHeader:
    """The fields of a bzImage's setup header that a 64-bit loader reads (boot.rst, "Details")."""

    setup_sects: int
    syssize: int
    version: int
    loadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: int
    xloadflags: int
    cmdline_size: int
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int
    kernel_version: str

    @property
    def setup_bytes(self) -> int:
        """Length of boot sector and setup code, which the 64-bit entry leaves unused."""
        return (self.setup_sects + 1) * 512


def is_bzimage(image: bytes) -> bool:
    """Whether the file carries the boot sector's and the setup header's magic."""
    return len(image) >= 0x206 and image[0x1FE:0x200] == b"\x55\xaa" and image[0x202:0x206] == b"HdrS"


def parse_header(image: bytes) -> SetupHeader:
    """Read and check the setup header; `GuestError` names the first field that is wrong."""
    if len(image) < 0x268:
        raise GuestError(f"kernel: {len(image)} bytes are too few for a bzImage's setup header")
    if not is_bzimage(image):
        raise GuestError("kernel: no bzImage (magic 'HdrS' is missing)")

    def field(offset: int, code: str) -> int:
        return int(struct.unpack_from("<" + code, image, offset)[0])

    header = SetupHeader(
        setup_sects=field(0x1F1, "B") or 4,  # 0 means 4, for backwards compatibility
        syssize=field(0x1F4, "I"),
        version=field(0x206, "H"),
        loadflags=field(0x211, "B"),
        initrd_addr_max=field(0x22C, "I"),
        kernel_alignment=field(0x230, "I"),
        relocatable=field(0x234, "B"),
        xloadflags=field(0x236, "H"),
        cmdline_size=field(0x238, "I"),
        payload_offset=field(0x248, "I"),
        payload_length=field(0x24C, "I"),
        pref_address=field(0x258, "Q"),
        init_size=field(0x260, "I"),
        kernel_version=_version_string(image, field(0x20E, "H")),
    )
    _check(header, image)
    return header


def _version_string(image: bytes, pointer: int) -> str:
    if not pointer:
        return "unknown version"
    text = image[pointer + 0x200 : pointer + 0x200 + 128].split(b"\0")[0]
    return text.split(b" ")[0].decode("ascii", "replace") or "unknown version"


def _check(h: SetupHeader, image: bytes) -> None:
    if h.version < MINIMUM_VERSION:
        major, minor = divmod(h.version, 256)
        raise GuestError(f"kernel: boot protocol {major}.{minor:02} is too old, 2.12 is needed (Linux 3.8)")
    if not h.loadflags & LOADED_HIGH:
        raise GuestError("kernel: a zImage (loadflags without LOADED_HIGH); only bzImages are supported")
    if not h.xloadflags & XLF_KERNEL_64:
        raise GuestError("kernel: no 64-bit entry (xloadflags); a 32-bit kernel is not supported")
    if h.setup_bytes >= len(image):
        raise GuestError(f"kernel: truncated: setup_sects asks for {h.setup_bytes} of {len(image)} bytes")
    needed = h.setup_bytes + h.syssize * 16
    # Signed kernels carry a certificate table behind; build tools round the last paragraph up.
    if len(image) + 15 < needed:
        raise GuestError(f"kernel: truncated: syssize asks for {needed} bytes, the file has {len(image)}")
    if h.syssize * 16 <= ENTRY_64:
        raise GuestError(f"kernel: syssize of {h.syssize * 16} bytes ends before the 64-bit entry")
    if h.kernel_alignment == 0 or h.kernel_alignment & (h.kernel_alignment - 1):
        raise GuestError(f"kernel: kernel_alignment {h.kernel_alignment:#x} is no power of two")
    if h.pref_address % h.kernel_alignment or h.pref_address < MIB:
        raise GuestError(f"kernel: pref_address {h.pref_address:#x} is unaligned or below 1 MiB")
    if h.init_size < h.syssize * 16:
        raise GuestError(f"kernel: init_size {h.init_size:#x} is smaller than the kernel itself")
    if h.payload_offset + h.payload_length > h.syssize * 16:
        raise GuestError("kernel: the compressed payload lies outside of the image")


def load_linux(image: bytes, platform: Platform, command_line: str, initrds: Sequence[bytes]) -> InitialState:
    """The state in which a boot loader leaves the machine at the kernel's 64-bit entry."""
    h = parse_header(image)
    if h.pref_address + h.init_size > PAGE_DIRECTORIES << 30:
        raise GuestError(f"kernel: wants {h.pref_address:#x}, beyond the first 4 GiB")
    if not platform.fits(h.pref_address, h.init_size):
        need = (h.pref_address + h.init_size + MIB - 1) // MIB
        raise GuestError(f"kernel: needs {need} MiB of memory to unpack itself (-m is too small)")

    line = _command_line(command_line, h)
    initrd, initrd_l1_pa = _place_initrds(initrds, h, platform)
    kernel = image[h.setup_bytes : h.setup_bytes + h.syssize * 16]
    writes = [
        MemoryWrite(GDT_L1_PA, struct.pack("<4Q", 0, 0, descriptor(CODE_64), descriptor(DATA_32))),
        MemoryWrite(ZERO_PAGE_L1_PA, _boot_params(image, h, platform, initrd_l1_pa, len(initrd), len(line))),
        MemoryWrite(PAGE_TABLES_L1_PA, identity_page_tables(PAGE_TABLES_L1_PA)),
        MemoryWrite(COMMAND_LINE_L1_PA, line + b"\0"),
        MemoryWrite(h.pref_address, kernel),
    ]
    if initrd:
        writes.append(MemoryWrite(initrd_l1_pa, initrd))
    major, minor = divmod(h.version, 256)
    return InitialState(
        what=f"Linux {h.kernel_version}, boot protocol {major}.{minor:02}, 64-bit entry",
        registers={
            "rip": h.pref_address + ENTRY_64,
            "rsi": ZERO_PAGE_L1_PA,
            "rsp": STACK_L1_PA + PAGE,
            "rflags": 2,
            "cr0": CR0_PE_ET_NE_WP_PG,
            "cr3": PAGE_TABLES_L1_PA,
            "cr4": CR4_PAE,
            "efer": EFER_LME_LMA,
        },
        segments=flat_segments(CODE_64, BOOT_CS, BOOT_DS),
        gdtr=DescriptorTable(GDT_L1_PA, 4 * 8 - 1),
        idtr=DescriptorTable(0, 0),
        memory=tuple(writes),
    )


def _command_line(text: str, h: SetupHeader) -> bytes:
    line = text.encode("utf-8", "surrogateescape")
    if b"\0" in line:
        raise GuestError("--append: the command line contains a NUL character")
    room = min(h.cmdline_size, LOW_MEMORY_END - COMMAND_LINE_L1_PA - 1)
    if len(line) > room:
        raise GuestError(f"--append: {len(line)} characters, the kernel takes {room}")
    return line


def _place_initrds(initrds: Sequence[bytes], h: SetupHeader, platform: Platform) -> tuple[bytes, int]:
    """Several archives one behind the other, each from a multiple of four, as high as allowed."""
    joined = bytearray()
    for archive in initrds:
        joined += bytes(-len(joined) % 4) + archive
    if not joined:
        return b"", 0
    address = platform.highest(len(joined), min(h.initrd_addr_max + 1, PAGE_DIRECTORIES << 30))
    if address is None or address < h.pref_address + h.init_size:
        raise GuestError(f"initrd: {len(joined) // MIB + 1} MiB do not fit in memory behind the kernel")
    return bytes(joined), address


def identity_page_tables(l1_pa: int) -> bytes:
    """PML4, PDPT and page directories that map the first 4 GiB to themselves with 2 MiB pages."""
    entries = [0] * (512 * (2 + PAGE_DIRECTORIES))
    entries[0] = (l1_pa + PAGE) | 3
    for i in range(PAGE_DIRECTORIES):
        entries[512 + i] = (l1_pa + (2 + i) * PAGE) | 3
        for j in range(512):
            entries[512 * (2 + i) + j] = (i << 30 | j << 21) | 0x83
    return struct.pack(f"<{len(entries)}Q", *entries)


def _boot_params(
    image: bytes, h: SetupHeader, platform: Platform, initrd_l1_pa: int, initrd_size: int, line_size: int
) -> bytes:
    """The zero page: the setup header as found in the file, and what a boot loader fills in."""
    page = bytearray(PAGE)
    # The header ends where the jump at 0x200 lands; its second byte is the length from 0x202.
    end = min(0x202 + image[0x201], 0x290)
    page[HEADER:end] = image[HEADER:end]
    put = struct.pack_into
    put("<H", page, 0x1FA, 0xFFFF)  # vid_mode: normal
    put("<B", page, 0x210, 0xFF)  # type_of_loader: undefined
    put("<B", page, 0x211, h.loadflags & ~CAN_USE_HEAP)
    put("<I", page, 0x214, h.pref_address)  # code32_start
    put("<II", page, 0x218, initrd_l1_pa, initrd_size)
    put("<I", page, 0x228, COMMAND_LINE_L1_PA)
    put("<I", page, 0x238, max(h.cmdline_size, line_size))
    if platform.rsdp_l1_pa is not None:
        put("<Q", page, 0x070, platform.rsdp_l1_pa)
    put("<I", page, 0x1E0, min(platform.ram_above_1m() // 1024, 0xFFFF_FFFF))  # alt_mem_k
    ranges = platform.memory_map
    if len(ranges) > E820_MAX:
        raise GuestError(f"memory map: {len(ranges)} ranges, the boot protocol takes {E820_MAX}")
    put("<B", page, 0x1E8, len(ranges))
    for i, r in enumerate(ranges):
        put("<QQI", page, 0x2D0 + 20 * i, *r)
    return bytes(page)
