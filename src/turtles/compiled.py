"""Which modules may run compiled by mypyc, and the finder that takes their compiled form if it is up to date.

The same Python either way: `turtles compile` makes it, nothing needs it. It is kept in the cache beside a
digest of the sources; after an edit the digests differ, and the edited Python runs. `TURTLES_L0=python` asks
for Python always. Figures are in docs/decisions.md.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

from turtles.cache import cache_root

PACKAGE: Final = Path(__file__).parent
HOT: Final = (
    # The loop, and what each exit runs through.
    *("l0/vcpu.py", "l0/machine.py", "l0/stats.py", "l0/ram.py", "l0/pool.py"),
    *("l0/exits/*.py", "l0/interrupts/*.py", "l0/nested/*.py", "l0/vmcs/*.py", "l0/mmu/*.py"),
    # What exits reach most: buses, timers, the interrupt controllers, the console. Not PCI and virtio: their
    # classes are there to be extended, which a compiled class does not allow a Python one.
    *("board/bus.py", "board/events.py"),
    *("devices/lapic.py", "devices/ioapic.py", "devices/apic_bus.py", "devices/pic.py", "devices/uart.py"),
)
SUFFIX: Final = str(sysconfig.get_config_var("EXT_SUFFIX"))
DIGEST: Final = "digest"
SWITCH: Final = "TURTLES_L0"


def sources() -> list[Path]:
    """The modules, relative to the package, in order."""
    found = (path for pattern in HOT for path in PACKAGE.glob(pattern))
    return sorted(path.relative_to(PACKAGE) for path in found if path.name != "__init__.py")


def digest() -> str:
    """Of what the compiled form was made from; constants of silicon's are compiled in."""
    h = hashlib.sha256(f"{sys.version} {SUFFIX}".encode())
    constants = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.glob("silicon/*.py*")))
    for path in (*sources(), *constants):
        h.update(str(path).encode() + b"\0" + (PACKAGE / path).read_bytes())
    return h.hexdigest()


def directory() -> Path:
    """Where this installation's compiled modules are: another one has another place."""
    place = hashlib.sha256(f"{PACKAGE} {SUFFIX}".encode()).hexdigest()[:16]
    return cache_root() / f"compiled-{place}"


class _Finder:
    """Finds modules in the directory, before the usual finders look at the sources."""

    def __init__(self, place: Path) -> None:
        self._files = {
            ".".join(path.relative_to(place).parts).removesuffix(SUFFIX): path
            for path in place.rglob(f"*{SUFFIX}")
        }

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        file = self._files.get(name)
        if file is None:
            return None
        return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))


def _use() -> str:
    """Takes the compiled form if it is there and up to date; returns why not."""
    if os.environ.get(SWITCH) == "python":
        return f"{SWITCH}=python"
    place = directory()
    try:
        made_from = (place / DIGEST).read_text()
    except OSError:
        return "`turtles compile` has not been run"
    if made_from != digest():
        return "edited since `turtles compile`"
    sys.meta_path.insert(0, _Finder(place))
    return ""


WHY_NOT: Final = _use()
"""Why Python's own form runs; empty: the compiled one does."""


def state() -> str:
    """What runs, for the user."""
    return f"Python ({WHY_NOT})" if WHY_NOT else "compiled"
