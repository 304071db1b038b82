from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guests.samples import PLATFORM, bzimage, elf64, multiboot_kernel
from turtles.guests.kernel import load_kernel
from turtles.guests.state import GuestError


def test_told_apart_by_content(tmp_path: Path) -> None:
    linux, multiboot, initrd = tmp_path / "a", tmp_path / "b", tmp_path / "m"
    linux.write_bytes(bzimage())
    multiboot.write_bytes(multiboot_kernel())
    initrd.write_bytes(b"module")
    assert "Linux" in load_kernel(str(linux), [str(initrd)], "", PLATFORM).what
    state = load_kernel(str(multiboot), [f"{initrd} with arguments"], "line", PLATFORM)
    assert "Multiboot ELF32" in state.what
    assert any(f"{initrd} with arguments".encode() in w.data for w in state.memory)


def test_compressed(tmp_path: Path) -> None:
    file = tmp_path / "k.gz"
    packed = gzip.compress(multiboot_kernel())
    file.write_bytes(packed)
    assert "Multiboot ELF32" in load_kernel(str(file), [], "", PLATFORM).what
    file.write_bytes(packed[:-9])
    with pytest.raises(GuestError, match="truncated"):
        load_kernel(str(file), [], "", PLATFORM)
    file.write_bytes(packed[:20] + b"\xff" * 20 + packed[40:])
    with pytest.raises(GuestError, match="damaged"):
        load_kernel(str(file), [], "", PLATFORM)


def test_elf_without_multiboot(tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_bytes(elf64(b"\xf4" * 64))
    with pytest.raises(GuestError, match="without a Multiboot"):
        load_kernel(str(file), [], "", PLATFORM)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"kernel .*nothing: No such file"):
        load_kernel(str(tmp_path / "nothing"), [], "", PLATFORM)
    kernel = tmp_path / "k"
    kernel.write_bytes(bzimage())
    with pytest.raises(GuestError, match=r"initrd .*nothing: No such file"):
        load_kernel(str(kernel), [str(tmp_path / "nothing")], "", PLATFORM)
    with pytest.raises(GuestError, match="directory"):
        load_kernel(str(tmp_path), [], "", PLATFORM)


@given(st.binary(max_size=600))
@settings(deadline=None)
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("k") / "k"
    file.write_bytes(data)
    with pytest.raises(GuestError):
        load_kernel(str(file), [], "", PLATFORM)
