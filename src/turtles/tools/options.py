"""The options of `turtles run`, parsed from QEMU-like strings into types.

A wrong value is a usage error (status 2) with one line. Whether files exist and fit is asked later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import click

from turtles.l0.mmu.ept02 import Tactic
from turtles.l0.tactics import ALL, Tactics

UNITS: Final[Mapping[str, int]] = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MINIMUM_MEMORY: Final = 1 << 20
DEFAULT_MEMORY: Final = "1G"


class Failure(click.ClickException):
    """An end with status 1 and one line that says what happened and what to do."""


@dataclass(frozen=True)
class Drive:
    """A disk of the guest: a raw image file."""

    path: str
    readonly: bool = False
    snapshot: bool = False


@dataclass(frozen=True)
class CpuChoice:
    """A processor model and the features that are added to or taken from it."""

    model: str = "default"
    features: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class DebugExit:
    """isa-debug-exit: a write of V ends the run with status (V << 1) | 1."""

    port: int
    width: int = 1


Engine = Literal["interpreter", "translator"]
"""What executes guest code."""


@dataclass(frozen=True)
class RunOptions:
    """Everything that `turtles run` was told."""

    kernel: str
    initrds: tuple[str, ...] = ()
    append: str = ""
    memory: int = 1 << 30
    smp: int = 1
    drives: tuple[Drive, ...] = ()
    serial: str = "stdio"
    cpu: CpuChoice = field(default_factory=CpuChoice)
    mmu: str = "multidim"
    clock: str = "host"
    engine: Engine = "translator"
    tactics: Tactics = ALL
    ept12: Tactic = Tactic.INVEPT
    debug_exit: DebugExit | None = None
    timeout: float | None = None
    stats: str | None = None
    trace: str | None = None
    marks: str | None = None
    prealloc: bool = False


class MemorySize(click.ParamType[int]):
    """`512`, `512M`, `4G`: MiB without a unit, as QEMU."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, a multiple of 1 MiB."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})([KMGT]?)i?B?", str(value).strip().upper().replace("IB", ""))
        if match is None:
            self.fail(f"{value!r} is no size; write 512M or 4G", param, ctx)
        size = int(match[1]) * UNITS[match[2]]
        if size < MINIMUM_MEMORY or size % (1 << 20):
            self.fail(f"{value!r}: memory is a multiple of 1 MiB, at least 1 MiB", param, ctx)
        return size


def _split(value: str) -> list[str]:
    """Split at commas; a doubled comma is a comma, as in QEMU."""
    return [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]


class DriveOption(click.ParamType[Drive]):
    """`FILE[,format=raw][,readonly=on][,snapshot=on]`."""

    name = "drive"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Drive:
        """Parse; unknown keys and formats are usage errors."""
        if isinstance(value, Drive):
            return value
        path, *rest = _split(str(value))
        path = path.removeprefix("file=")
        if not path:
            self.fail("a drive needs a file: FILE[,format=raw][,readonly=on][,snapshot=on]", param, ctx)
        switches = {"readonly": False, "snapshot": False}
        for part in rest:
            key, _, text = part.partition("=")
            if key == "format":
                if text != "raw":
                    self.fail(
                        f"format {text!r} is not supported; convert it: qemu-img convert -O raw", param, ctx
                    )
            elif key in switches and text in ("on", "off"):
                switches[key] = text == "on"
            elif key == "if" and text == "virtio":
                pass
            else:
                self.fail(f"{part!r}: write format=raw, readonly=on|off or snapshot=on|off", param, ctx)
        return Drive(path, switches["readonly"], switches["snapshot"])


class CpuOption(click.ParamType[CpuChoice]):
    """`MODEL[,+feature][,-feature]…`."""

    name = "cpu"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> CpuChoice:
        """Parse; whether model and features are known is asked of silicon."""
        if isinstance(value, CpuChoice):
            return value
        model, *rest = _split(str(value))
        features = []
        for part in rest:
            if len(part) < 2 or part[0] not in "+-":
                self.fail(f"{part!r}: write +feature or -feature", param, ctx)
            features.append((part[1:].lower(), part[0] == "+"))
        return CpuChoice(model or "default", tuple(features))


class TacticsOption(click.ParamType[Tactics]):
    """`[all|none][,NAME][,no-NAME]…`, from left to right."""

    name = "tactics"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Tactics:
        """Parse; an unknown name is a usage error."""
        if isinstance(value, Tactics):
            return value
        tactics, names = Tactics(), Tactics.names()
        for part in _split(str(value)):
            name = part.removeprefix("no-")
            if part in ("all", "none"):
                tactics = Tactics() if part == "all" else Tactics.none()
            elif name in names:
                tactics = replace(tactics, **{name.replace("-", "_"): name == part})
            else:
                known = ", ".join(names)
                self.fail(f"{part!r}: write all, none, NAME or no-NAME; there are {known}", param, ctx)
        return tactics


class DebugExitOption(click.ParamType[DebugExit]):
    """`PORT[:WIDTH]`, the port in C notation."""

    name = "port"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> DebugExit:
        """Parse port and width in bytes."""
        if isinstance(value, DebugExit):
            return value
        port, _, width = str(value).partition(":")
        try:
            result = DebugExit(int(port, 0), int(width, 0) if width else 1)
        except ValueError:
            self.fail(f"{value!r}: write PORT[:WIDTH], such as 0xf4:4", param, ctx)
        if result.width not in (1, 2, 4) or not 0 <= result.port <= 0x10000 - result.width:
            self.fail(f"{value!r}: ports go to 0xffff, widths are 1, 2 and 4", param, ctx)
        return result


class SerialOption(click.ParamType[str]):
    """`stdio`, `file:F` or `none`."""

    name = "serial"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the form only."""
        text = str(value)
        if text in ("stdio", "none") or (text.startswith("file:") and len(text) > 5):
            return text
        self.fail(f"{text!r}: write stdio, none or file:NAME", param, ctx)
