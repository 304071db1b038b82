"""`turtles doctor`: what this host offers, and what turtles will do with it.

Looks only; changes nothing and needs no rights. Not here: measuring speed (that is `turtles bench`).
"""

from __future__ import annotations

import importlib
import mmap
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from turtles import compiled

GOOD, NOTE, BAD = "[green]yes[/]", "[yellow]no[/]", "[red]no[/]"

# Features that guests get only where the host's processor executes them natively.
NATIVE_FEATURES: Final = (
    *("ssse3", "sse4_1", "sse4_2", "popcnt", "aes", "pclmulqdq", "avx", "avx2", "fma"),
    *("f16c", "sha_ni", "xsave", "bmi1", "bmi2", "adx", "movbe"),
)
REQUIRED_FEATURES: Final = ("cx16", "sse4_2", "fxsr")
DEMO_MEMORY: Final = 3 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    what: str
    state: str
    consequence: str
    fatal: bool = False


def _kvm() -> Finding:
    path = Path("/dev/kvm")
    if not path.exists():
        return Finding("KVM on this host", NOTE, "not needed: silicon has VT-x of its own")
    usable = os.access(path, os.R_OK | os.W_OK)
    return Finding("KVM on this host", GOOD if usable else NOTE, "not used: silicon has VT-x of its own")


def _architecture() -> Finding:
    machine = platform.machine()
    if machine == "x86_64" and sys.platform == "linux":
        return Finding("x86-64 Linux", GOOD, f"{cpu_name()}, {os.cpu_count()} processors")
    return Finding(
        "x86-64 Linux", BAD, f"{sys.platform} on {machine}: silicon runs on x86-64 Linux only", True
    )


def cpu_name() -> str:
    """The host processor's name as the kernel reports it."""
    return _cpuinfo("model name") or "unknown processor"


def host_flags() -> frozenset[str]:
    """The host processor's feature flags."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _features() -> Finding:
    flags = host_flags()
    missing = [f for f in REQUIRED_FEATURES if f not in flags]
    if missing:
        return Finding("processor features", BAD, f"silicon needs {', '.join(missing)}", True)
    have = [f for f in NATIVE_FEATURES if f in flags]
    lack = [f for f in NATIVE_FEATURES if f not in flags]
    text = "guests get " + " ".join(have)
    return Finding("processor features", GOOD, text + (f"; not {' '.join(lack)}" if lack else ""))


def available_memory() -> int:
    """Bytes that processes can still get without swapping, 0 where that cannot be told."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _memory() -> Finding:
    free = available_memory()
    text = f"{free / (1 << 30):.1f} GiB available"
    if free < DEMO_MEMORY:
        return Finding("memory for the tower", NOTE, f"{text}; the demo wants {DEMO_MEMORY >> 30} GiB")
    return Finding("memory for the tower", GOOD, text)


def executable_memory() -> bool:
    """Whether the host lets a process make memory executable that it wrote."""
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except (OSError, PermissionError):
        return False
    return True


def _executable_memory() -> Finding:
    if executable_memory():
        return Finding("executable memory", GOOD, "vector instructions run natively")
    return Finding("executable memory", BAD, "the host forbids it: vector instructions cannot run", True)


def find_tool(name: str) -> str | None:
    """A program's path; the system directories count even where a user's PATH lacks them."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _image_tools() -> Finding:
    wanted = {"apt-get": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs"}
    missing = [package for name, package in wanted.items() if find_tool(name) is None]
    if missing:
        text = f"missing packages: {' '.join(missing)}; `turtles demo` runs the embedded tower instead"
        return Finding("tools for guest images", NOTE, text)
    return Finding("tools for guest images", GOOD, "`turtles image` builds guests from distribution packages")


def _silicon() -> Finding:
    try:
        importlib.import_module("turtles.silicon._silicon")
    except ImportError as e:
        return Finding("silicon", BAD, f"not built ({e}); run `make`", True)
    return Finding("silicon", GOOD, "engines: translator for 64-bit code, interpreter for the rest")


def _l0() -> Finding:
    if compiled.WHY_NOT:
        return Finding("L0 compiled", NOTE, f"it runs as Python: {compiled.WHY_NOT}")
    return Finding("L0 compiled", GOOD, "its exit path takes about half as long as in Python")


CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    _architecture,
    _silicon,
    _l0,
    _features,
    _executable_memory,
    _memory,
    _kvm,
    _image_tools,
)


def examine() -> int:
    """Show the table; 0 where turtles can run, 1 where it cannot."""
    # Here, since every run imports this module for `available_memory`.
    from rich.console import Console
    from rich.table import Table

    findings = [check() for check in CHECKS]
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "what follows"):
        table.add_column(heading)
    for f in findings:
        table.add_row(f.what, f.state, f.consequence)
    console = Console()
    console.print(table)
    fatal = [f for f in findings if f.fatal]
    if fatal:
        console.print(f"turtles cannot run here: {fatal[0].consequence}")
        return 1
    console.print("turtles can run here.")
    return 0


def list_features() -> int:
    """The models and features that `--cpu` knows; those that the default model offers here are marked."""
    from turtles.silicon import Model

    click.echo(f"models: {' '.join(Model.NAMES)}")
    offered = Model().features
    for feature in sorted(Model.FEATURES):
        click.echo(f"{'+' if feature in offered else ' '} {feature}")
    return 0
