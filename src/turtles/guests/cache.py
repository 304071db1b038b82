"""The cache directory of built guests: named by what they were made from, made by one process at a time.

A set appears whole or not at all: it is built beside its place and renamed. Not here: what is in a set.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from turtles.cache import cache_root as cache_root
from turtles.guests.packages import Report
from turtles.guests.state import GuestError

BUILDING: Final = "building-"


def digest(*parts: bytes) -> str:
    """A short content hash of all parts, their lengths included."""
    h = hashlib.sha256()
    for part in parts:
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:16]


@contextlib.contextmanager
def locked(root: Path, report: Report) -> Iterator[None]:
    """Hold the cache's lock; waits for another process that builds, and says so."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise GuestError(
            f"cache {root}: {e.strerror}; set TURTLES_CACHE to a directory that can be written"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another turtles that builds images", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def build(directory: Path, make: Callable[[Path], None]) -> None:
    """Fill a directory with `make`, then give it its name in one step; the lock must be held."""
    parent = directory.parent
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(BUILDING + "*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=BUILDING, dir=parent))
    try:
        make(temporary)
        temporary.chmod(0o755)
        if directory.exists():
            # A run that has the old files open keeps them.
            old = parent / f"{BUILDING}old-{directory.name}"
            directory.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
