"""What has been measured, one JSON line for each finished run, so that a bench that was ended goes on.

A run counts for the version that made it: the contents of everything that decides what a run does. Runs of
other versions stay in the file, and tell how long a configuration takes. Not here: what a run holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import turtles
from turtles.guests.cache import digest
from turtles.tools.options import Failure

Record = dict[str, Any]

SHOWING = ("tools/paper/", "tools/page.py", "tools/plots.py", "tools/html_parts.py", "tools/bars.py")
"""Parts of this program that no measurement depends on."""


def version(*more: str) -> str:
    """Of this program as it stands, changed sources included, and of what it is told besides."""
    root = Path(turtles.__file__).parent
    parts: list[bytes] = [word.encode() for word in more]
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in name and not name.startswith(SHOWING):
            parts += [name.encode(), path.read_bytes()]
    return digest(*parts)


class Journal:
    """The file, and what of it counts now."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        self.version = version
        self._records = list(self._read())

    def _read(self) -> Iterator[Record]:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return
        except OSError as e:
            raise Failure(f"{self._path}: {e.strerror}") from None
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that a killed run left unfinished
            if isinstance(record, dict) and {"configuration", "options", "version", "round"} <= record.keys():
                yield record

    def current(self) -> list[Record]:
        """Runs of this version, failed ones left out; the last of each."""
        kept = {}
        for r in self._records:
            if r["version"] == self.version and not r["failures"]:
                kept[(r["configuration"], r["options"], r["round"])] = r
        return list(kept.values())

    def has(self, configuration: str, options: str, number: int) -> bool:
        """Whether a run is done."""
        return any(
            (r["configuration"], r["options"], r["round"]) == (configuration, options, number)
            for r in self.current()
        )

    def seconds(self, configuration: str, options: str) -> float | None:
        """How long a configuration took last, in whichever version."""
        found = [
            float(r["seconds"])
            for r in self._records
            if (r["configuration"], r["options"]) == (configuration, options) and not r["failures"]
        ]
        return found[-1] if found else None

    def add(self, record: Record) -> None:
        """A finished run; on the disk when this returns."""
        record = {**record, "version": self.version}
        self._records.append(record)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                # A line that was cut off before must not swallow this one.
                file.write("\n" * self._cut_off() + json.dumps(record) + "\n")
        except OSError as e:
            raise Failure(f"{self._path}: {e.strerror}") from None

    def _cut_off(self) -> bool:
        with self._path.open("rb") as file:
            content = file.read()
        return bool(content) and not content.endswith(b"\n")

    def forget(self) -> None:
        """Start anew."""
        self._path.unlink(missing_ok=True)
        self._records.clear()
