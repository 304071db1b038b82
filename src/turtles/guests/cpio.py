"""Writes initramfs archives: cpio in the "newc" form that the kernel unpacks.

Deterministic: the same content gives the same bytes, so that images can be cached by their hash.
Not here: reading archives, compression.
"""

from __future__ import annotations

import stat
from typing import Final

TRAILER: Final = "TRAILER!!!"
BLOCK: Final = 512


class Archive:
    """An archive in the making; directories on the way to a file are added by themselves."""

    def __init__(self) -> None:
        self._body = bytearray()
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, once."""
        path = path.strip("/")
        if path and path not in self._directories:
            self._parents(path)
            self._directories.add(path)
            self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parents(path)
        self._entry(path.strip("/"), stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        self._entry(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a device node; writing one into an archive needs no rights."""
        self._parents(path)
        self._entry(path.strip("/"), stat.S_IFCHR | mode, b"", major, minor)

    def finish(self) -> bytes:
        """The archive with its trailer, padded to a multiple of 512 bytes."""
        self._entry(TRAILER, 0, b"")
        self._body += bytes(-len(self._body) % BLOCK)
        return bytes(self._body)

    def _parents(self, path: str) -> None:
        parent = path.strip("/").rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _entry(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, nlink, mtime, size, dev major, dev minor, rdev major, rdev minor, name, check
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name), 0)
        self._body += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        self._body += bytes(-len(self._body) % 4)
        self._body += data
        self._body += bytes(-len(self._body) % 4)
