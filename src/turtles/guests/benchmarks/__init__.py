"""What the benches run inside guests and natively: micro-benchmarks of our own, and distribution programs.

Stages them into a root that serves every level alike, and unpacks that root so that the host runs the same
files. Not here: running them, reading what they print.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Final

from turtles.guests.cache import digest
from turtles.guests.libraries import closure
from turtles.guests.state import GuestError

CFLAGS: Final = ("-O2", "-static", "-Wall", "-Wextra")
OURS: Final = ("ubench.c", "script.py", "work.sql", "run", "build.mk", "bench-init")
PACKAGES: Final = (
    *("gcc", "libc6-dev", "python3-minimal", "libpython3-stdlib", "openssl", "sqlite3", "gzip"),
    *("make", "newlib-source", "redis-server"),
)
TEXT_BYTES: Final = 3 << 20

# Patterns in an unpacked tree, since versions are part of names; and the names that they get in the root.
PROGRAMS: Final = (
    ("usr/bin/x86_64-linux-gnu-gcc-[0-9]*", "usr/bin/gcc"),
    ("usr/bin/x86_64-linux-gnu-as", "usr/bin/as"),
    ("usr/bin/python3.[0-9]*", "usr/bin/python3"),
    ("usr/bin/openssl", "usr/bin/openssl"),
    ("usr/bin/sqlite3", "usr/bin/sqlite3"),
    ("usr/bin/gzip bin/gzip", "usr/bin/gzip"),
    ("usr/bin/make", "usr/bin/make"),
    # One program that goes by what it is called; the package's redis-server is a link to it.
    ("usr/bin/redis-check-rdb", "usr/bin/redis-server"),
    ("usr/bin/redis-benchmark", "usr/bin/redis-benchmark"),
    ("usr/bin/redis-cli", "usr/bin/redis-cli"),
)
SOURCES: Final = ("newlib/libm/math/", "newlib/libm/common/", "newlib/libc/include/")
"""What of newlib's tree `build.mk` compiles: a directory, and the headers that it includes."""
CONFIGURED: Final = {"newlib.hin": "newlib.h", "_newlib_version.hin": "_newlib_version.h"}
# The loader and the C library belong together: on the host both are the host's own.
HOST_LIBRARIES: Final = ("ld-linux*", "libc.so*", "libm.so*", "libdl.so*", "libpthread.so*", "librt.so*")
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
    words = (*CFLAGS, *patterns, *TREES, *LEFT_OUT, *SOURCES, *CONFIGURED)
    return [*(w.encode() for w in words), *(file(n) for n in OURS)]


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
    _stage_source(_first(tree, ["usr/src/newlib/newlib-*.tar.xz"]), home / "newlib")
    (home / "text").write_bytes(_text(sorted((root / "usr/include").rglob("*.h"))))


def _stage_source(archive: Path, target: Path) -> None:
    """The part of a source package that the build compiles, with the two headers that its configure makes."""
    with tarfile.open(archive) as packed:
        for member in packed:
            _, _, inner = member.name.partition("/")
            configured = CONFIGURED.get(inner.removeprefix("newlib/"))
            if not member.isfile() or not (configured or inner.startswith(SOURCES)):
                continue
            source = packed.extractfile(member)
            if source is None or ".." in inner:
                continue
            place = target / (configured or inner.removeprefix("newlib/"))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.read())


def unpacked_root(image: Path) -> Path:
    """The content of an ext4 root beside its image, made once: the host runs the files that guests run."""
    target = image.with_name("native")
    if target.exists():
        return target
    program = shutil.which("debugfs") or shutil.which("debugfs", path="/usr/sbin:/sbin")
    if program is None:
        raise GuestError("debugfs is missing; install the package e2fsprogs")
    with tempfile.TemporaryDirectory(prefix="native-", dir=image.parent) as name:
        made = Path(name) / "root"
        made.mkdir()
        for directory in ("bench", "bin", "lib", "usr"):
            # It says nothing and ends with 0 even where it fails: what came out is looked at.
            subprocess.run(
                [program, "-R", f"rdump /{directory} {made}", str(image)],
                capture_output=True,
                check=False,
                timeout=300,
            )
        if not (made / "bench/run").is_file() or not (made / "usr/bin/gcc").is_file():
            raise GuestError(f"debugfs cannot read {image}; build it again: turtles image bench --renew")
        for pattern in HOST_LIBRARIES:
            for library in made.rglob(pattern):
                library.unlink()
        made.rename(target)
    return target


def native_environment(root: Path) -> dict[str, str]:
    """What lets programs of an unpacked root run on the host: their libraries, but not the C library."""
    directories = [root / d for d in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")]
    return {"LD_LIBRARY_PATH": ":".join(map(str, directories)), "LC_ALL": "C"}


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
