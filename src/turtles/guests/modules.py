"""Kernel modules of an unpacked kernel package: where they are and what must be loaded before them.

Reads each module's own `depends=` (package files ship no modules.dep). Not here: loading.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from turtles.guests.state import GuestError


def _key(name: str) -> str:
    return name.replace("-", "_")


class ModuleTree:
    """The modules of one kernel version below `root`."""

    def __init__(self, root: Path) -> None:
        homes = [p for base in ("lib/modules", "usr/lib/modules") for p in sorted((root / base).glob("*"))]
        homes = [p for p in homes if (p / "kernel").is_dir()]
        if not homes:
            raise GuestError("the kernel package contains no modules")
        self.home = homes[-1]
        self.version = self.home.name
        self._files = {_key(p.name.split(".ko")[0]): p for p in self.home.rglob("*.ko*")}
        self._builtin = set()
        builtin = self.home / "modules.builtin"
        if builtin.exists():
            self._builtin = {_key(Path(line).stem) for line in builtin.read_text().split()}

    def data(self, name: str) -> bytes:
        """A module's bytes, unpacked."""
        file = self._files[_key(name)]
        raw = file.read_bytes()
        return lzma.decompress(raw) if file.suffix == ".xz" else raw

    def order(self, names: Iterable[str]) -> list[str]:
        """The modules and what they need, in an order in which they can be loaded; built-in ones left out."""
        done: list[str] = []

        def visit(name: str, optional: bool = False) -> None:
            key = _key(name)
            if key in done or key in self._builtin:
                return
            if key not in self._files:
                if optional:
                    return
                raise GuestError(f"kernel {self.version} has no module {name}")
            for dependency in self._depends(key):
                visit(dependency)
            done.append(key)

        for name in names:
            visit(name)
        return done

    def _depends(self, key: str) -> list[str]:
        try:
            section = ELFFile(io.BytesIO(self.data(key))).get_section_by_name(".modinfo")
            info = section.data() if section is not None else b""
        except (ELFError, lzma.LZMAError) as e:
            raise GuestError(f"kernel module {key}: {e}") from None
        depends: list[str] = []
        for entry in info.split(b"\0"):
            tag, _, value = entry.partition(b"=")
            if tag == b"depends":
                depends += [d for d in value.decode().split(",") if d]
        return depends
