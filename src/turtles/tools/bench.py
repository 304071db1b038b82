"""`turtles bench`: how fast silicon is, the tower beside QEMU's TCG, and whether virtual time repeats.

Every run is a process of its own, timed from outside by the host's clock. Not here: plots, ratios to reach.
"""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from turtles.guests import workloads
from turtles.guests.cache import cache_root
from turtles.guests.images import RECIPES, ImageSet, obtain
from turtles.tools.doctor import cpu_name, find_tool
from turtles.tools.options import Failure
from turtles.tools.progress import progress

LONGEST_RUN_S: Final = 1800.0
INIT_LINE: Final = b"L1: Linux"  # the first line of L1's init script
L2_LINE: Final = b"L2| L2: Linux"  # of L2's
MEMORY: Final = "1G"
ENGINES: Final = ("interpreter", "translator")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One timed process: seconds until each landmark in its output, and until its end."""

    seconds: float
    landmarks: Mapping[str, float]
    status: int
    output: bytes = field(repr=False)


def timed(command: Sequence[str], landmarks: Mapping[str, bytes], limit: float = LONGEST_RUN_S) -> Run:
    """Run a command and note when its output first contains each landmark."""
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if process.stdout is None or process.stderr is None:
        raise Failure("cannot read what a program writes")
    output, seen = bytearray(), dict[str, float]()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stderr, selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() - begin > limit:
                process.kill()
            for key, _ in selector.select(1.0):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                output += data
            now = time.monotonic() - begin
            for name, text in landmarks.items():
                if name not in seen and text in output:
                    seen[name] = now
    status = process.wait()
    return Run(time.monotonic() - begin, seen, status, bytes(output))


def turtles(*arguments: str) -> list[str]:
    """The command of a run of this program."""
    return [sys.executable, "-m", "turtles", *arguments]


def turtles_guest(images: ImageSet, mode: str, *more: str) -> list[str]:
    """`turtles run` of a set of images."""
    files = ("--kernel", str(images.kernel), "--initrd", str(images.initrd), "-m", MEMORY)
    disk = ("--drive", f"{images.root},snapshot=on")
    return turtles("run", *files, *disk, "--append", f"{images.append} turtles.mode={mode}", *more)


def qemu_guest(images: ImageSet, mode: str) -> list[str]:
    """The same guest under QEMU's TCG, which has SVM where silicon has VT-x."""
    qemu = find_tool("qemu-system-x86_64")
    if qemu is None:
        raise Failure("qemu-system-x86_64 is missing; install the package qemu-system-x86")
    machine = ("-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-nodefaults", "-nographic", "-no-reboot")
    files = ("-kernel", str(images.kernel), "-initrd", str(images.initrd), "-serial", "stdio")
    disk = ("-drive", f"file={images.root},if=virtio,format=raw,snapshot=on")
    return [qemu, *machine, *files, *disk, "-append", f"{images.append} turtles.mode={mode}"]


def checked(name: str, run: Run, status: int = 0) -> Run:
    """A run that must have ended with `status`; else what it said last."""
    if run.status != status:
        last = run.output.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing was said"]
        raise Failure(f"{name} ended with status {run.status}: {last[0]}")
    return run


def images(name: str) -> ImageSet:
    """A set of images, from the cache or built now."""
    with progress(f"{name} images") as report:
        return obtain(RECIPES[name], report)


# --- what is measured ---


def silicon_speed(say: Say, *, standard: bool = False) -> list[dict[str, Any]]:
    """Million guest instructions a second on an integer loop, a memory walk, and boots, by engine."""
    tower = images("tower")
    kernel = str(workloads.build(cache_root() / "workloads"))
    small = ("run", "--kernel", kernel, "-m", "128M", "--debug-exit", "0xf4")
    commands: dict[str, tuple[list[str], int]] = {
        title: (turtles(*small, "--append", f"work={name}"), 1) for name, title in workloads.WORKLOADS.items()
    }
    commands["boot of the cloud kernel"] = (turtles_guest(tower, "boot"), 0)
    if standard:
        commands["boot of the standard kernel (xz)"] = (turtles_guest(images("standard"), "boot"), 0)
    rows = []
    for title, (command, status) in commands.items():
        for engine in ENGINES:
            say(f"{title}, {engine}")
            with tempfile.NamedTemporaryFile(suffix=".json") as stats:
                options = ("--engine", engine, "--stats", stats.name)
                checked(title, timed([*command, *options], {}), status)
                figures = json.loads(Path(stats.name).read_text())["run"]
            rows.append(
                {"what": title, "engine": engine, **{k: figures[k] for k in ("seconds", "retired", "mips")}}
            )
    return rows


def peers(say: Say, pairs: int) -> list[dict[str, Any]]:
    """The tower and L1's boot, turtles and TCG by turns."""
    tower = images("tower")
    landmarks = {"L1's init": INIT_LINE, "L2's init": L2_LINE}
    programs = {"turtles": turtles_guest(tower, "tower"), "tcg": qemu_guest(tower, "tower")}
    samples: dict[str, dict[str, list[float]]] = {p: {} for p in programs}
    for i in range(pairs):
        for program, command in programs.items():
            say(f"pair {i + 1} of {pairs}: {program}")
            run = checked(program, timed(command, landmarks))
            for what, seconds in {**run.landmarks, "whole tower": run.seconds}.items():
                samples[program].setdefault(what, []).append(seconds)
    rows = []
    for what in ("L1's init", "L2's init", "whole tower"):
        ours, theirs = (statistics.median(samples[p].get(what) or [float("nan")]) for p in ("turtles", "tcg"))
        rows.append({"what": what, "turtles_s": ours, "tcg_s": theirs, "ratio": ours / theirs})
    return rows


def determinism(say: Say, *, tower: bool) -> dict[str, Any]:
    """Two runs under virtual time: the digests of all exits and the serial bytes must be equal."""
    if tower:
        base = turtles_guest(images("tower"), "tower", "--clock", "virtual")
    else:
        base = turtles_guest(images("tower"), "boot", "--clock", "virtual")
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(2):
            say(f"run {i + 1} of 2")
            stats, serial = Path(directory, f"{i}.json"), Path(directory, f"{i}.txt")
            command = [*base, "--serial", f"file:{serial}", "--stats", str(stats)]
            checked("the run", timed(command, {}))
            found.append((json.loads(stats.read_text())["run"]["digest"], serial.read_bytes()))
    (first, second) = found
    return {
        "digests": [first[0], second[0]],
        "serial_bytes": len(first[1]),
        "equal": first == second,
    }


# --- showing it ---


def show(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A table of rows that have the same keys."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(
            *(
                f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v)
                for v in row.values()
            )
        )
    console.print(table)


def write(path: str | None, name: str, result: Any) -> None:
    """The JSON of a bench, with the host that it ran on."""
    if path is None:
        return
    host = {"processor": cpu_name(), "cores": os.cpu_count(), "kernel": os.uname().release}
    try:
        Path(path).write_text(json.dumps({"bench": name, "host": host, "result": result}, indent=1) + "\n")
    except OSError as e:
        raise Failure(f"--json {path}: {e.strerror}") from None


def run_bench(name: str, pairs: int, standard: bool, path: str | None) -> int:
    """One of the benches by name; 1 where a run that must repeat did not."""
    console = Console()
    with progress(f"bench {name}") as report:

        def say(what: str) -> None:
            report(what, None)

        if name == "silicon":
            result: Any = silicon_speed(say, standard=standard)
        elif name == "peers":
            result = peers(say, pairs)
        else:
            result = determinism(say, tower=name == "determinism-tower")
    if isinstance(result, list):
        show(name, result, console)
    else:
        console.print(result)
    write(path, name, result)
    return 0 if isinstance(result, list) or result["equal"] else 1
