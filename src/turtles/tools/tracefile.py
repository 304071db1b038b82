"""The file of `turtles run --trace`: a heading in JSON, then blocks of exit records and of notes.

    "TURTLES\\1", u32 length, heading; then blocks: kind (4 bytes), u32 virtual CPU, u64 length, contents

Blocks are written as they fill up: the file of a run that was killed ends early, but is good up to there.
Little-endian. What a record holds is L0's matter (`turtles.l0.trace`); the heading names its words.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from turtles.l0 import trace
from turtles.l0.outcome import GuestStop
from turtles.l0.trace import ExitRecord
from turtles.tools.options import Failure

MAGIC: Final = b"TURTLES\x01"
_LENGTH: Final = struct.Struct("<I")
_BLOCK: Final = struct.Struct("<4sIQ")
_NUMBER: Final = struct.Struct("<Q")
EXITS: Final = b"EXIT"
NOTE: Final = b"NOTE"
END: Final = b"DONE"
LONGEST_HEADING: Final = 1 << 20


class Writer:
    """A `Sink` that writes a file."""

    def __init__(self, path: str, facts: Mapping[str, Any]) -> None:
        self._path = path
        heading = json.dumps({"words": trace.WORDS, **facts}).encode()
        try:
            self._file = io.FileIO(path, "wb")
            self._write(MAGIC + _LENGTH.pack(len(heading)) + heading)
        except OSError as e:
            raise Failure(f"--trace {path}: {e.strerror}") from None

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _block(self, kind: bytes, cpu: int, contents: bytes | memoryview[int]) -> None:
        try:
            self._write(_BLOCK.pack(kind, cpu, len(contents)) + bytes(contents))
        except OSError as e:
            raise GuestStop(f"--trace {self._path}: {e.strerror}") from None

    def exits(self, cpu: int, data: memoryview[int]) -> None:
        """See `Sink`."""
        self._block(EXITS, cpu, data)

    def note(self, cpu: int, number: int, text: str) -> None:
        """See `Sink`."""
        self._block(NOTE, cpu, _NUMBER.pack(number) + text.encode())

    def close(self, facts: Mapping[str, Any]) -> None:
        """The end of the run, with what is known only now."""
        try:
            self._block(END, 0, json.dumps(facts).encode())
        finally:
            self._file.close()


@dataclass
class TraceFile:
    """A file as read. `records` and `notes` are by virtual CPU; a note's number counts records."""

    facts: dict[str, Any]
    ending: dict[str, Any] | None
    """None for a file that ends early."""
    blocks: dict[int, list[bytes]] = field(default_factory=dict)
    notes: dict[int, dict[int, str]] = field(default_factory=dict)

    def cpus(self) -> list[int]:
        """The virtual CPUs there are."""
        return sorted(self.blocks)

    def records(self, cpu: int) -> Iterator[ExitRecord]:
        """The exits of one, in order."""
        for block in self.blocks.get(cpu, []):
            yield from trace.decode(block)


def read(path: str) -> TraceFile:
    """Reads a file; Failure where it is none."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise Failure(f"{path}: {e.strerror}") from None
    at = len(MAGIC) + _LENGTH.size
    size = _LENGTH.unpack_from(data, len(MAGIC))[0] if len(data) >= at else LONGEST_HEADING + 1
    if not data.startswith(MAGIC) or size > LONGEST_HEADING:
        raise Failure(f"{path}: this is no trace; `turtles run --trace FILE` writes one")
    try:
        facts = json.loads(data[at : at + size])
    except ValueError:
        raise Failure(f"{path}: the trace's heading is damaged") from None
    if not isinstance(facts, dict) or tuple(facts.get("words", ())) != trace.WORDS:
        raise Failure(f"{path}: another version of turtles wrote this trace; use that one to read it")
    found = TraceFile(facts, None)
    at += size
    while at + _BLOCK.size <= len(data):
        kind, cpu, length = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        contents = data[at : at + length]
        at += length
        _take(found, kind, cpu, contents, whole=len(contents) == length)
    return found


def _take(found: TraceFile, kind: bytes, cpu: int, contents: bytes, *, whole: bool) -> None:
    """Adds a block; of one that was cut off, the records that are complete."""
    if kind == EXITS:
        found.blocks.setdefault(cpu, []).append(contents[: len(contents) // trace.SIZE * trace.SIZE])
    elif kind == NOTE and whole:
        number = _NUMBER.unpack_from(contents)[0]
        found.notes.setdefault(cpu, {})[number] = contents[_NUMBER.size :].decode("utf-8", "replace")
    elif kind == END and whole:
        with contextlib.suppress(ValueError):
            found.ending = json.loads(contents)
