"""The test device."""

from __future__ import annotations

from turtles.devices.testdev import TestDevice


def test_register_in_parts() -> None:
    device = TestDevice([])
    device.write(0, 4, 0x12345678)
    device.write(2, 1, 0xAA)
    assert device.read(0, 4) == 0x12AA5678
    assert device.read(1, 2) == 0xAA56
    device.write(8, 1, 0x11)  # the byte port is the same register
    assert device.read(0, 1) == 0x11


def test_an_access_that_leaves_the_register() -> None:
    device = TestDevice([])
    device.write(3, 4, 0x11223344)
    assert device.read(0, 4) == 0x44000000
    assert device.read(3, 4) == 0x44


def test_lines_and_memory() -> None:
    levels: list[tuple[int, bool]] = []
    device = TestDevice([lambda level, n=n: levels.append((n, level)) for n in range(2)])  # type: ignore[misc]
    device.set_line(1, 1, 1)
    device.set_line(1, 1, 0)
    assert levels == [(1, True), (1, False)]
    device.write_memory(0xFFFC, 4, 7)
    assert device.read_memory(0xFFFC, 4) == 7
