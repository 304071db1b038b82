"""The user's terminal as a guest's serial line: raw mode, an escape key, and a sane terminal afterwards.

Ctrl-A x ends the run, Ctrl-A Ctrl-A sends one Ctrl-A, Ctrl-A h shows the keys. Not here: the UART.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

ESCAPE: Final = 0x01  # Ctrl-A
HELP: Final = "turtles: Ctrl-A x ends the run, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h shows this"
CHUNK: Final = 4096
FOREVER: Final = None


class EscapeFilter:
    """Takes the escape key's commands out of what is typed."""

    def __init__(self, end: Callable[[], None], show_help: Callable[[], None]) -> None:
        self._end = end
        self._show_help = show_help
        self._escaped = False

    def feed(self, data: bytes) -> bytes:
        """What of `data` is for the guest."""
        out = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            if byte in b"xX":
                self._end()
                return bytes(out)
            if byte in b"hH?":
                self._show_help()
            elif byte in (ESCAPE, ord("a")):
                out.append(ESCAPE)
            else:
                out += bytes((ESCAPE, byte))
        return bytes(out)


class RawMode:
    """Raw mode while entered; the terminal is put back on leaving, at exit, and when a signal ends us."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] | None = None

    def __enter__(self) -> RawMode:
        self._saved = termios.tcgetattr(self._descriptor)
        atexit.register(self.restore)
        raw = termios.tcgetattr(self._descriptor)
        raw[0] &= ~(
            termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON | termios.INLCR
        )
        raw[1] &= ~termios.OPOST  # the guest's own driver sends carriage returns
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        raw[6][termios.VMIN] = 1
        raw[6][termios.VTIME] = 0
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, raw)
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the terminal back; once is enough, more do no harm."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, saved)
            atexit.unregister(self.restore)


def is_foreground_terminal(descriptor: int) -> bool:
    """Whether it is a terminal that may be read and set without being stopped for it."""
    try:
        return os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return False


class Wakeup:
    """Wakes the main thread out of its wait; any thread and any signal handler may call `set`."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """Wake."""
        with contextlib.suppress(OSError):
            os.write(self._write_end, b"!")

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self.read_end)
        os.close(self._write_end)


@contextlib.contextmanager
def stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call `stop` with their number instead of ending the process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {n: signal.signal(n, lambda number, _frame: stop(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def serve_input(
    finished: threading.Event,
    wakeup: Wakeup,
    descriptor: int | None,
    send: Callable[[bytes], None],
    end: Callable[[], None],
    deadline: Callable[[], float | None] = lambda: FOREVER,
) -> None:
    """On the main thread: pass input to the guest until the run is finished.

    `deadline` returns the seconds left until it wants to be asked again, or None.
    """
    keys = EscapeFilter(end, lambda: show(HELP))
    interactive = descriptor is not None and os.isatty(descriptor)
    while not finished.is_set():
        watched = [wakeup.read_end] if descriptor is None else [wakeup.read_end, descriptor]
        ready, _, _ = select.select(watched, [], [], deadline())
        if wakeup.read_end in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup.read_end, CHUNK)
        if descriptor in ready and descriptor is not None:
            try:
                data = os.read(descriptor, CHUNK)
            except OSError:
                data = b""
            if not data:
                descriptor = None  # end of file: the guest simply gets no more input
            elif send_to := (keys.feed(data) if interactive else data):
                send(send_to)


def show(line: str) -> None:
    """A line of our own on the standard error stream, whatever state the terminal is in."""
    with contextlib.suppress(OSError):
        os.write(2, f"\r\n{line}\r\n".encode())


def write_all(descriptor: int, data: bytes) -> bool:
    """Write everything; False when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True
