from __future__ import annotations

import os
import pty
import signal
import termios
import threading
from collections.abc import Iterator

import pytest

from turtles.tools.terminal import EscapeFilter, RawMode, Wakeup, serve_input, stop_signals, write_all


def test_escape_key() -> None:
    said: list[str] = []
    keys = EscapeFilter(lambda: said.append("end"), lambda: said.append("help"))
    assert keys.feed(b"ls\r") == b"ls\r"
    assert keys.feed(b"\x01") == b""
    assert keys.feed(b"\x01") == b"\x01", "doubled: one goes through"
    assert keys.feed(b"\x01z") == b"\x01z", "unknown commands belong to the guest"
    assert keys.feed(b"a\x01hb") == b"ab"
    assert said == ["help"]
    assert keys.feed(b"c\x01xd") == b"c"
    assert said == ["help", "end"]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_mode_is_undone(terminal: tuple[int, int]) -> None:
    _, slave = terminal
    before = termios.tcgetattr(slave)
    with pytest.raises(KeyError), RawMode(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        raise KeyError
    assert termios.tcgetattr(slave) == before


def test_input_goes_to_the_guest_until_the_end(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    finished, wakeup, got = threading.Event(), Wakeup(), bytearray()

    def end() -> None:
        finished.set()
        wakeup.set()

    with RawMode(slave):
        os.write(master, b"\x03abc\x01x")
        serve_input(finished, wakeup, slave, got.extend, end)
    wakeup.close()
    assert bytes(got) == b"\x03abc", "Ctrl-C is the guest's"


def test_signals_stop_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    got: list[int] = []
    with stop_signals(got.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert got == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == before


def test_write_all_to_a_closed_pipe() -> None:
    read, write = os.pipe()
    assert write_all(write, b"abc")
    os.close(read)
    assert not write_all(write, b"abc")
    os.close(write)
