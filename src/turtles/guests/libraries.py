"""Shared libraries of a program in an unpacked tree: what the dynamic loader will ask for.

Follows DT_NEEDED only: libraries that a program opens by name at run time are not found.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from turtles.guests.state import GuestError

DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib")


def needed(file: Path) -> list[str]:
    """The names in a file's DT_NEEDED entries, and its program interpreter's path."""
    try:
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            # pyelftools makes these attributes at run time, which its types do not know.
            names: list[str] = []
            for section in elf.iter_sections():
                if isinstance(section, DynamicSection):
                    names += [cast(Any, tag).needed for tag in section.iter_tags("DT_NEEDED")]
            names += [cast(Any, s).get_interp_name() for s in elf.iter_segments("PT_INTERP")]
            return names
    except (ELFError, OSError) as e:
        raise GuestError(f"{file.name}: {e}") from None


def closure(root: Path, programs: Iterable[str]) -> list[str]:
    """Paths (relative to root) of all libraries that the programs need, directly or not."""
    found: dict[str, str] = {}
    queue = list(programs)
    while queue:
        program = queue.pop()
        for name in needed(root / program):
            if name in found:
                continue
            places = [name.lstrip("/")] if "/" in name else [f"{d}/{name}" for d in DIRECTORIES]
            path = next((p for p in places if (root / p).exists()), None)
            if path is None:
                raise GuestError(f"{program} needs {name}, which none of the packages contains")
            found[name] = path
            queue.append(path)
    return sorted(set(found.values()))
