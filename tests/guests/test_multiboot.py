from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guests.samples import PLATFORM, elf32, elf64, multiboot_header, multiboot_kernel
from turtles.guests.multiboot import INFO_L1_PA, Module, load_multiboot
from turtles.guests.state import MIB, GuestError, InitialState


def memory(state: InitialState, l1_pa: int, size: int) -> bytes:
    for w in state.memory:
        if w.l1_pa <= l1_pa < w.l1_pa + len(w.data):
            return w.data[l1_pa - w.l1_pa : l1_pa - w.l1_pa + size]
    raise AssertionError(f"nothing at {l1_pa:#x}")


def text(state: InitialState, l1_pa: int) -> bytes:
    return memory(state, l1_pa, 100).split(b"\0")[0]


@pytest.mark.parametrize("make", [elf32, elf64])
def test_entry_state(make: Any) -> None:
    state = load_multiboot(multiboot_kernel(make), PLATFORM, "k a=b", [])
    assert state.registers["rax"] == 0x2BADB002
    assert state.registers["rip"] == MIB + 32
    assert state.registers["cr0"] & 0x80000001 == 1, "protected mode without paging"
    assert state.segments["cs"].access & 0x6000 == 0x4000, "32-bit code"
    info = state.registers["rbx"]
    flags, lower, upper = struct.unpack("<III", memory(state, info, 12))
    assert flags == 0x24D
    assert (lower, upper) == (639, 127 * 1024)
    assert text(state, struct.unpack("<I", memory(state, info + 16, 4))[0]) == b"k a=b"


def test_kernel_linked_high_enters_low() -> None:
    state = load_multiboot(multiboot_kernel(elf64, vaddr=0xFFFFFFFF80100000), PLATFORM, "", [])
    assert state.registers["rip"] == MIB + 32


def test_modules() -> None:
    modules = [Module(b"one", "a.bin first"), Module(b"", "empty"), Module(b"x" * 5000, "b.bin")]
    state = load_multiboot(multiboot_kernel(bss=0x5000), PLATFORM, "", modules)
    count, at = struct.unpack("<II", memory(state, INFO_L1_PA + 20, 8))
    assert count == 3
    end = MIB + 0x5000
    for i, m in enumerate(modules):
        first, behind, line, reserved = struct.unpack("<4I", memory(state, at + 16 * i, 16))
        assert first % 4096 == 0 and first >= end and behind - first == len(m.data) and reserved == 0
        assert text(state, line) == m.line.encode()
        if m.data:
            assert memory(state, first, len(m.data)) == m.data
        end = behind


def test_memory_map() -> None:
    state = load_multiboot(multiboot_kernel(), PLATFORM, "", [])
    length, at = struct.unpack("<II", memory(state, INFO_L1_PA + 44, 8))
    assert length == 24 * len(PLATFORM.memory_map)
    for i, r in enumerate(PLATFORM.memory_map):
        assert struct.unpack("<IQQI", memory(state, at + 24 * i, 24)) == (20, *r)


def test_address_fields_decide_over_the_file_format() -> None:
    head = multiboot_header(3, (MIB + 64, MIB, 0, MIB + 0x8000, MIB + 96)).ljust(32, b"\0")
    image = bytes(64) + head + b"\xf4" * 100
    state = load_multiboot(image, PLATFORM, "", [])
    assert state.registers["rip"] == MIB + 96
    assert memory(state, MIB, 200) == image


def test_a_kernel_in_low_memory() -> None:
    state = load_multiboot(
        multiboot_header(3, (0x4000, 0x4000, 0, 0xC123, 0x4000)) + bytes(64), PLATFORM, "", []
    )
    assert state.gdtr.base == 0xD000
    assert state.registers["rbx"] == 0xE000
    assert struct.unpack("<I", memory(state, 0xE000, 4))[0] & 1


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ((MIB, MIB + 64, 0, 0, MIB), "load_addr lies before"),
        ((MIB + 4096, MIB, 0, 0, MIB), "load_addr lies before"),
        ((MIB, MIB, MIB + 0x10000, 0, MIB), "load_end_addr lies behind"),
        ((MIB, MIB, 0, MIB + 1, MIB), "bss_end_addr lies inside"),
        ((MIB, MIB, 0, 0, 2 * MIB), "entry .* lies outside"),
        ((0x800, 0x800, 0, 0x9E800, 0x800), "leaves no room for boot information"),
        ((0xC0000000, 0xC0000000, 0, 0, 0xC0000000), "is not RAM"),
    ],
)
def test_wrong_addresses(addresses: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(GuestError, match=message):
        load_multiboot(multiboot_header(3, addresses) + bytes(64), PLATFORM, "", [])


@pytest.mark.parametrize(("flags", "message"), [(4, "video mode"), (0x8001, "unknown"), (8, "unknown")])
def test_requirements_that_are_not_met(flags: int, message: str) -> None:
    with pytest.raises(GuestError, match=message):
        load_multiboot(multiboot_kernel(flags=flags), PLATFORM, "", [])


def test_module_that_does_not_fit() -> None:
    with pytest.raises(GuestError, match="do not fit"):
        load_multiboot(multiboot_kernel(), PLATFORM, "", [Module(bytes(128 * MIB), "m")])


@pytest.mark.parametrize("make", [elf32, elf64])
def test_truncated_elf(make: Any) -> None:
    with pytest.raises(GuestError, match="truncated"):
        load_multiboot(multiboot_kernel(make)[:-1], PLATFORM, "", [])


@given(st.sampled_from([elf32, elf64]), st.integers(0, 4200), st.binary(max_size=8), st.integers(0, 120))
@settings(max_examples=400, deadline=None)
def test_damaged_files_load_or_are_refused(make: Any, length: int, patch: bytes, at: int) -> None:
    image = bytearray(multiboot_kernel(make))
    image[at : at + len(patch)] = patch
    try:
        state = load_multiboot(bytes(image[:length]), PLATFORM, "line", [Module(b"m", "m")])
    except GuestError as e:
        assert "\n" not in str(e)
        return
    assert all(PLATFORM.fits(w.l1_pa, len(w.data)) for w in state.memory)


@given(st.binary(min_size=12, max_size=64))
def test_any_address_fields_load_or_are_refused(body: bytes) -> None:
    flags = 1 << 16
    head = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    try:
        state = load_multiboot(head + body, PLATFORM, "", [])
    except GuestError:
        return
    assert all(PLATFORM.fits(w.l1_pa, len(w.data)) for w in state.memory)
