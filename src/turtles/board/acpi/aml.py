"""An encoder of ACPI Machine Language (ACPI 6.4, chapter 20): terms as bytes, composed by calling functions.

Only what the DSDT needs. Nothing is checked against the grammar: a term put where it does not belong gives
AML that does not load. The tests hold the result against iasl.
"""

from __future__ import annotations

import struct

ZERO, ONE = b"\x00", b"\x01"


def arg(number: int) -> bytes:
    """ArgX of a method."""
    return bytes((0x68 + number,))


def package_length(content: bytes) -> bytes:
    """PkgLength: counts itself and the content (20.2.4)."""
    for extra in range(4):
        length = len(content) + 1 + extra
        if extra == 0 and length < 0x40:
            return bytes((length,))
        if extra and length < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little")
    raise ValueError(f"AML package of {len(content)} bytes")


def name_string(path: str) -> bytes:
    """NameString: `\\_SB_.PCI0`; segments are padded to four characters."""
    prefix = b""
    while path[:1] in ("\\", "^"):
        prefix += path[:1].encode()
        path = path[1:]
    segments = [segment.ljust(4, "_").encode() for segment in path.split(".")] if path else []
    if not segments:
        return prefix + b"\0"
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + b"\x2f" + bytes((len(segments),)) + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant."""
    if value < 2:
        return ONE if value else ZERO
    for opcode, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * width:
            return bytes((opcode,)) + value.to_bytes(width, "little")
    raise ValueError(f"AML integer {value:#x}")


def string(text: str) -> bytes:
    """A string constant."""
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA identifier such as PNP0A03 (19.3.4)."""
    letters = [ord(c) - 0x40 & 31 for c in text[:3]]
    high = letters[0] << 10 | letters[1] << 5 | letters[2]
    return integer(int.from_bytes(high.to_bytes(2, "big") + bytes.fromhex(text[3:]), "little"))


def buffer(data: bytes) -> bytes:
    """Buffer (len) {data}."""
    content = integer(len(data)) + data
    return b"\x11" + package_length(content) + content


def package(*elements: bytes) -> bytes:
    """Package (count) {elements}."""
    content = bytes((len(elements),)) + b"".join(elements)
    return b"\x12" + package_length(content) + content


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name_string(path) + value


def _block(opcode: bytes, head: bytes, terms: tuple[bytes, ...]) -> bytes:
    content = head + b"".join(terms)
    return opcode + package_length(content) + content


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) {terms}."""
    return _block(b"\x10", name_string(path), terms)


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) {terms}."""
    return _block(b"\x5b\x82", name_string(path), terms)


def method(path: str, arguments: int, *terms: bytes) -> bytes:
    """Method (path, arguments) {terms}."""
    return _block(b"\x14", name_string(path) + bytes((arguments,)), terms)


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) {terms}."""
    return _block(b"\xa0", condition, terms)


def store(source: bytes, target: bytes) -> bytes:
    """Store (source, target)."""
    return b"\x70" + source + target


def return_(value: bytes) -> bytes:
    """Return (value)."""
    return b"\xa4" + value


# --- resource descriptors (6.4) ---


def resources(*descriptors: bytes) -> bytes:
    """A resource template."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, count: int) -> bytes:
    """Fixed I/O ports, 16-bit decode."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq(number: int) -> bytes:
    """An edge-triggered, active-high ISA interrupt."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32(base: int, size: int) -> bytes:
    """A fixed range of 32-bit addresses, read-write."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


_FIXED_PRODUCER = 0x0C  # minimum and maximum are fixed; the bridge passes the range on to its bus


def bus_numbers(first: int, last: int) -> bytes:
    """Bus numbers that a bridge passes on."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, _FIXED_PRODUCER, 0, 0, first, last, 0, last - first + 1)


def io_window(first: int, last: int) -> bytes:
    """I/O ports that a bridge passes on, ISA aliases included."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 1, _FIXED_PRODUCER, 3, 0, first, last, 0, last - first + 1)


def memory_window32(first: int, last: int) -> bytes:
    """32-bit memory that a bridge passes on, read-write, not cacheable."""
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, _FIXED_PRODUCER, 1, 0, first, last, 0, last - first + 1)


def memory_window64(first: int, last: int) -> bytes:
    """64-bit memory that a bridge passes on, read-write, not cacheable."""
    return struct.pack("<BHBBBQQQQQ", 0x8A, 43, 0, _FIXED_PRODUCER, 1, 0, first, last, 0, last - first + 1)
