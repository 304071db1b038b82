from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guests.samples import PLATFORM, bzimage
from turtles.guests.linux import (
    COMMAND_LINE_L1_PA,
    ZERO_PAGE_L1_PA,
    identity_page_tables,
    load_linux,
    parse_header,
)
from turtles.guests.state import MIB, GuestError, InitialState


def memory(state: InitialState, l1_pa: int) -> bytes:
    return next(w.data for w in state.memory if w.l1_pa == l1_pa)


def test_entry_state_is_what_the_boot_protocol_asks_for() -> None:
    state = load_linux(bzimage(), PLATFORM, "quiet", [])
    assert state.registers["rip"] == 0x1000200
    assert state.registers["rsi"] == ZERO_PAGE_L1_PA
    assert state.registers["cr0"] & 0x80000001 == 0x80000001
    assert state.registers["cr4"] == 1 << 5
    assert state.registers["efer"] == 0x500
    assert state.registers["rflags"] & 1 << 9 == 0
    assert (state.segments["cs"].selector, state.segments["ds"].selector) == (0x10, 0x18)
    assert state.segments["cs"].access & 1 << 13, "64-bit code"
    assert memory(state, COMMAND_LINE_L1_PA) == b"quiet\0"
    assert "6.1.0-test" in state.what


def test_zero_page() -> None:
    page = memory(load_linux(bzimage(), PLATFORM, "", [b"abc", b"defgh"]), ZERO_PAGE_L1_PA)
    assert page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<Q", page, 0x70) == (0xF0000,)
    initrd, size = struct.unpack_from("<II", page, 0x218)
    assert size == 9 and initrd % 4096 == 0 and initrd + size <= 128 * MIB
    count = page[0x1E8]
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(count)]
    assert entries == [tuple(r) for r in PLATFORM.memory_map]


def test_initrds_are_joined_at_multiples_of_four() -> None:
    state = load_linux(bzimage(), PLATFORM, "", [b"abc", b"defgh", b"i"])
    assert state.memory[-1].data == b"abc\0defgh\0\0\0i"


def test_page_tables_map_4_gib_to_themselves() -> None:
    tables = identity_page_tables(0x9000)
    entries: tuple[int, ...] = struct.unpack(f"<{len(tables) // 8}Q", tables)

    def walk(address: int) -> int:
        pml4e = entries[address >> 39 & 511]
        pdpte = entries[((pml4e & ~0xFFF) - 0x9000) // 8 + (address >> 30 & 511)]
        pde = entries[((pdpte & ~0xFFF) - 0x9000) // 8 + (address >> 21 & 511)]
        assert pde & 0x83 == 0x83
        return (pde & ~0x1FFFFF) | (address & 0x1FFFFF)

    for address in (0, 0x12345, 0x1000200, 0xC0000000, 0xFFFFFFFF):
        assert walk(address) == address


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 0x0206}, "boot protocol 2.06 is too old"),
        ({"loadflags": 0}, "zImage"),
        ({"xloadflags": 0}, "no 64-bit entry"),
        ({"setup_sects": 64}, "truncated"),
        ({"syssize": 0x10000}, "truncated"),
        ({"syssize": 16}, "before the 64-bit entry"),
        ({"kernel_alignment": 0}, "no power of two"),
        ({"kernel_alignment": 0x30000}, "no power of two"),
        ({"pref_address": 0x1000}, "unaligned or below"),
        ({"init_size": 16}, "smaller than the kernel"),
        ({"payload_offset": 8000}, "payload"),
        ({"init_size": 0x10000000}, "-m is too small"),
        ({"pref_address": 1 << 40}, "beyond the first 4 GiB"),
        ({"cmdline_size": 3}, "the kernel takes 3"),
    ],
)
def test_each_wrong_field_has_its_line(fields: dict[str, int], message: str) -> None:
    with pytest.raises(GuestError, match=message) as error:
        load_linux(bzimage(b"\xf4" * 4096, **fields), PLATFORM, "quiet", [])
    assert "\n" not in str(error.value)


def test_initrd_that_does_not_fit() -> None:
    with pytest.raises(GuestError, match="do not fit"):
        load_linux(bzimage(), PLATFORM, "", [bytes(200 * MIB)])


def test_nul_in_command_line() -> None:
    with pytest.raises(GuestError, match="NUL"):
        load_linux(bzimage(), PLATFORM, "a\0b", [])


@given(st.integers(0, 5120), st.binary(max_size=16), st.integers(0x1F0, 0x268))
@settings(max_examples=400, deadline=None)
def test_damaged_files_load_or_are_refused(length: int, patch: bytes, at: int) -> None:
    image = bytearray(bzimage())
    image[at : at + len(patch)] = patch
    try:
        state = load_linux(bytes(image[:length]), PLATFORM, "quiet", [b"x" * 100])
    except GuestError as e:
        assert "\n" not in str(e)
        return
    assert all(PLATFORM.fits(w.l1_pa, len(w.data)) for w in state.memory)


@given(st.binary(max_size=2048))
def test_garbage_is_refused(image: bytes) -> None:
    with pytest.raises(GuestError):
        parse_header(image)
