"""What the benches run inside guests and natively: micro-benchmarks of our own, and distribution programs.

Stages them into a root that serves L1 and L2 alike. Not here: running them, reading what they print.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Final

from turtles.guests.cache import digest
from turtles.guests.libraries import closure
from turtles.guests.state import GuestError

CFLAGS: Final = ("-O2", "-static", "-Wall", "-Wextra")
OURS: Final = ("ubench.c", "script.py", "work.sql", "run", "bench-init")
PACKAGES: Final = ("gcc", "libc6-dev", "python3-minimal", "libpython3-stdlib", "openssl", "sqlite3", "gzip")
TEXT_BYTES: Final = 3 << 20

# Patterns in an unpacked tree, since versions are part of names; and the names that they get in the root.
PROGRAMS: Final = (
    ("usr/bin/x86_64-linux-gnu-gcc-[0-9]*", "usr/bin/gcc"),
    ("usr/bin/x86_64-linux-gnu-as", "usr/bin/as"),
    ("usr/bin/python3.[0-9]*", "usr/bin/python3"),
    ("usr/bin/openssl", "usr/bin/openssl"),
    ("usr/bin/sqlite3", "usr/bin/sqlite3"),
    ("usr/bin/gzip bin/gzip", "usr/bin/gzip"),
)
TREES: Final = ("usr/lib/gcc/x86_64-linux-gnu/*", "usr/lib/python3.[0-9]*", "usr/include")
LEFT_OUT: Final = (
    *("*.a", "*.o", "lto*", "collect2", "lto-wrapper", "g++-mapper-server", "plugin", "libsanitizer"),
    *("*.so", "*.so.*", "test", "tests", "lib2to3", "idlelib", "ensurepip", "__pycache__", "c++"),
)


def file(name: str) -> bytes:
    """One of our files."""
    return resources.files("turtles.guests.benchmarks").joinpath(name).read_bytes()


def content() -> list[bytes]:
    """Everything of ours that decides what a root contains."""
    patterns = [w for pair in PROGRAMS for w in pair]
    return [*(w.encode() for w in (*CFLAGS, *patterns, *TREES, *LEFT_OUT)), *(file(n) for n in OURS)]


def ubench(cache: Path) -> Path:
    """The micro-benchmarks, compiled by the host's C compiler, static: the same file runs everywhere."""
    binary = cache / f"ubench-{digest(*(f.encode() for f in CFLAGS), file('ubench.c'))}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        source, made = cache / f"{binary.name}.c", cache / f"{binary.name}.new"
        source.write_bytes(file("ubench.c"))
        try:
            subprocess.run(
                ["cc", *CFLAGS, str(source), "-o", str(made)], check=True, capture_output=True, text=True
            )
        except OSError:
            raise GuestError("cc is missing; install the package gcc") from None
        except subprocess.CalledProcessError as e:
            raise GuestError(f"cc failed: {(e.stderr.strip().splitlines() or ['no message'])[0]}") from None
        made.replace(binary)
    return binary


def stage(root: Path, tree: Path, cache: Path) -> None:
    """Put the programs of the unpacked `tree`, their libraries and our own files into `root`."""
    modules = [str(p.relative_to(tree)) for p in tree.glob("usr/lib/python3.[0-9]*/lib-dynload/*.so")]
    elves = list(modules)
    for patterns, name in PROGRAMS:
        source = _first(tree, patterns.split())
        elves.append(str(source.relative_to(tree)))
        _place(source, root / name)
    for pattern in TREES:
        for source in sorted(tree.glob(pattern)):
            target = root / source.relative_to(tree)
            shutil.copytree(
                source, target, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True
            )
    compiler = _first(tree, ["usr/lib/gcc/x86_64-linux-gnu/*/cc1", "usr/libexec/gcc/x86_64-linux-gnu/*/cc1"])
    elves.append(str(compiler.relative_to(tree)))
    _place(compiler, root / compiler.relative_to(tree))
    for path in [*modules, *closure(tree, elves)]:
        _place(tree / path, root / path)
    home = root / "bench"
    home.mkdir()
    for name in OURS:
        (home / name).write_bytes(file(name))
    (home / "run").chmod(0o755)
    _place(ubench(cache), home / "ubench")
    (home / "text").write_bytes(_text(sorted((root / "usr/include").rglob("*.h"))))


def _text(sources: Iterable[Path]) -> bytes:
    """Some real text: headers one after another."""
    text = bytearray()
    for source in sources:
        if len(text) >= TEXT_BYTES:
            break
        if source.is_file():
            text += source.read_bytes()
    return bytes(text[:TEXT_BYTES])


def _first(tree: Path, patterns: Iterable[str]) -> Path:
    names = list(patterns)
    found = sorted(
        p for pattern in names for p in tree.glob(pattern) if p.is_file() and "-config" not in p.name
    )
    if not found:
        raise GuestError(f"none of the packages contains {names[0]}")
    return found[0]


def _place(source: Path, target: Path) -> None:
    """Copy a program; what stands there already, such as a link to busybox, is replaced, not followed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
