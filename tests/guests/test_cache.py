from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from turtles.guests.cache import build, digest, locked
from turtles.guests.state import GuestError


def test_digest_keeps_parts_apart() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(b"ab", b"c") == digest(b"ab", b"c")


def test_a_set_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "images" / "set"

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyError

    with pytest.raises(KeyError):
        build(target, fail)
    assert list((tmp_path / "images").iterdir()) == []
    build(target, lambda d: (d / "one").touch())
    build(target, lambda d: (d / "two").touch())
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in target.parent.iterdir()] == ["set"]


def test_lock_waits_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    waiting, entered = threading.Event(), threading.Event()

    def report(what: str, share: float | None) -> None:
        said.append(what)
        waiting.set()

    def second() -> None:
        with locked(tmp_path, report):
            entered.set()

    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(10)
    assert not entered.is_set()
    os.close(handle)
    assert entered.wait(10)
    thread.join()
    assert "waiting" in said[0]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GuestError, match="TURTLES_CACHE"), locked(tmp_path / "file", lambda *_: None):
        pass
