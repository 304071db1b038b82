"""Disk images: raw files, read-write, read-only, or with writes kept in memory.

A file is locked while it is open: shared for reading, exclusive for writing, so two runs cannot damage it.
Formats other than raw are not read here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Protocol

SECTOR = 512
CLUSTER = 1 << 16


class ImageError(Exception):
    """The image cannot be used; the message says why and what to do."""


class Image(Protocol):
    """A disk's contents. Offsets and lengths are within `size`; methods may block and raise OSError."""

    size: int
    read_only: bool

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Store all of `data`."""
        ...

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        ...

    def close(self) -> None:
        """Release the file and its lock."""
        ...


class RawImage:
    """A raw file or block device, locked."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        try:
            flags = os.O_RDONLY if read_only else os.O_RDWR
            self._fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            hint = " (add readonly=on or snapshot=on)" if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise ImageError(f"cannot open drive {self.path}: {error.strerror}{hint}") from error
        try:
            self.size = self._measure()
            fcntl.flock(self._fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise ImageError(
                f"drive {self.path} is locked by another run that "
                f"{'writes' if read_only else 'uses'} it: end that one, or give this one a copy"
            ) from error
        except OSError as error:
            os.close(self._fd)
            raise ImageError(f"cannot lock drive {self.path}: {error.strerror}") from error
        except ImageError:
            os.close(self._fd)
            raise

    def _measure(self) -> int:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(f"drive {self.path} is neither a file nor a block device")
        length = os.lseek(self._fd, 0, os.SEEK_END)
        if length == 0:
            raise ImageError(f"drive {self.path} is empty: make it as large as the disk is to be")
        return -(-length // SECTOR) * SECTOR

    def read(self, offset: int, length: int) -> bytes:
        """Read; what lies beyond the end of the file is zero."""
        pieces: list[bytes] = []
        left = length
        while left:
            piece = os.pread(self._fd, left, offset)
            if not piece:
                pieces.append(bytes(left))
                break
            pieces.append(piece)
            offset += len(piece)
            left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view = view[done:]
            offset += done

    def flush(self) -> None:
        """fdatasync."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close; the lock goes with the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Snapshot:
    """Another image with all writes kept in memory, by clusters of 64 KiB, and lost at the end."""

    def __init__(self, base: Image) -> None:
        self._base = base
        self.size = base.size
        self.read_only = False
        self._clusters: dict[int, bytearray] = {}

    def read(self, offset: int, length: int) -> bytes:
        """From memory where it was written, else from the base."""
        first, last = offset // CLUSTER, (offset + length - 1) // CLUSTER
        if not any(cluster in self._clusters for cluster in range(first, last + 1)):
            return self._base.read(offset, length)
        pieces: list[bytes] = []
        while length:
            cluster, start = divmod(offset, CLUSTER)
            step = min(length, CLUSTER - start)
            kept = self._clusters.get(cluster)
            pieces.append(
                self._base.read(offset, step) if kept is None else bytes(kept[start : start + step])
            )
            offset += step
            length -= step
        return b"".join(pieces)

    def write(self, offset: int, data: bytes) -> None:
        """Into memory."""
        view = memoryview(data)
        while view:
            cluster, start = divmod(offset, CLUSTER)
            step = min(len(view), CLUSTER - start)
            kept = self._clusters.get(cluster)
            if kept is None:
                base = cluster * CLUSTER
                kept = bytearray(CLUSTER)
                if step < CLUSTER:
                    known = self._base.read(base, min(CLUSTER, self.size - base))
                    kept[: len(known)] = known
                self._clusters[cluster] = kept
            kept[start : start + step] = view[:step]
            view = view[step:]
            offset += step

    def flush(self) -> None:
        """Nothing: memory is as stable as this gets."""

    def close(self) -> None:
        """Forget the writes and release the base."""
        self._clusters.clear()
        self._base.close()


def open_image(path: str | os.PathLike[str], *, read_only: bool = False, snapshot: bool = False) -> Image:
    """A raw image as a drive option describes it; raises `ImageError` with one clear line."""
    if snapshot:
        base = RawImage(path, read_only=True)
        if read_only:
            return base
        return Snapshot(base)
    return RawImage(path, read_only=read_only)
