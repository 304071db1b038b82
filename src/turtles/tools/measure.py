"""Runs what the benches compare and reads what it prints: lines of results, with the host's time of each.

A guest's clock is checked against the host's: a figure from inside a guest means nothing without. Not here:
medians, ratios, pages.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from turtles.guests import benchmarks
from turtles.guests.cache import cache_root
from turtles.guests.images import ImageSet
from turtles.tools.doctor import find_tool
from turtles.tools.levels import Line, LineSplitter
from turtles.tools.options import Failure

MEMORY: Final = "1G"
LONGEST_RUN_S: Final = 3600.0
RESULT: Final = re.compile(r"BENCH (\S+) (\d+) ([\d.]+)$")
BEGIN: Final = "begin."
"""Before a row's name: what it times begins now."""
CLOCK_TOLERANCE: Final = 0.001
CLOCK_SHORTEST_S: Final = 5.0  # below, the console's own delay would be larger than the tolerance

HOST_MEMORY: Final = 1536 << 20
"""What a run takes of the host at most, in bytes: the guest's memory, translated code, the process."""
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; `mmap` has no name for it

Say = Callable[[str], None]


def provide_memory() -> None:
    """Have the host provide what the next run will take, so that none pays for what lay idle before it.

    The host of a virtual machine takes idle memory back; what is touched first then takes very long.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = min(HOST_MEMORY, free // 2)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as memory, contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(_MADV_POPULATE_WRITE)


@dataclass(frozen=True)
class Settings:
    """What a set runs: the micro-benchmarks' scale, how often, which rows (none: all), programs or not."""

    scale: float
    repeats: int
    rows: tuple[str, ...] = ()
    programs: bool = True
    levels: int = 2
    named: tuple[str, ...] = ()
    """Programs by name, in place of the usual ones."""
    at: tuple[int, ...] = ()
    """The levels that run the set; none: all."""

    @property
    def words(self) -> tuple[str, str, str, str]:
        """As the script that runs the set takes them."""
        programs = ",".join(self.named) or str(int(self.programs))
        return str(self.scale), str(self.repeats), ",".join(self.rows) or ",", programs

    @property
    def append(self) -> str:
        """As words of a guest's command line."""
        names = ("scale", "repeats", "rows", "programs")
        words = [f"bench.{name}={word}" for name, word in zip(names, self.words, strict=True)]
        at = [f"bench.at={','.join(map(str, self.at))}"] if self.at else []
        return " ".join([*words, f"bench.levels={self.levels}", *at])


@dataclass(frozen=True)
class Sample:
    """One measured figure. `level` 0 is the host; `ns` is for one operation."""

    program: str
    level: int
    pair: int
    repeat: int
    row: str
    ns: float


@dataclass(frozen=True)
class ClockCheck:
    """Seconds by a guest's clock and by the host's, between the same two lines."""

    program: str
    level: int
    pair: int
    guest_s: float
    host_s: float

    @property
    def error(self) -> float:
        """Relative; positive where the guest's clock is fast."""
        return self.guest_s / self.host_s - 1

    @property
    def holds(self) -> bool | None:
        """Whether it is within the tolerance; none where the run was too short to tell."""
        return abs(self.error) <= CLOCK_TOLERANCE if self.host_s >= CLOCK_SHORTEST_S else None


@dataclass
class Results:
    """What all runs of a bench gave."""

    samples: list[Sample] = field(default_factory=list)
    clocks: list[ClockCheck] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    """What turtles says of its own runs of the set: time translating, exits."""


class Reader:
    """Turns console lines of one run into samples and clock checks as they come."""

    def __init__(self, program: str, pair: int, base_level: int, results: Results, say: Say) -> None:
        self._program, self._pair, self._results, self._say = program, pair, results, say
        self._shift = base_level - 1  # a console's outermost level is L1, the host's own is level 0
        self._repeat: dict[int, int] = {}
        self._clock: dict[int, tuple[float, float]] = {}
        self.begin = time.monotonic()
        self.inits: dict[int, float] = {}
        self.last = "nothing was said"

    def line(self, line: Line) -> None:
        """A line, now."""
        now, level = time.monotonic(), line.level + self._shift
        text = line.text.strip()
        self.last = text or self.last
        if level not in self.inits and text.startswith(f"L{level}: Linux"):
            self.inits[level] = now - self.begin
        match = RESULT.search(text)
        if match is None:
            return
        row, value = match[1], float(match[3])
        if row.startswith(BEGIN):
            self._say(f"L{level} {row.removeprefix(BEGIN)}" if level else row.removeprefix(BEGIN))
        elif row == "repeat":
            self._repeat[level] = int(match[2])
        elif row != "clock":
            self._say(f"L{level} {row}" if level else row)
            self._add(level, row, value)
        elif level not in self._clock:
            self._clock[level] = (value, now)
        else:
            guest, host = self._clock[level]
            self._results.clocks.append(
                ClockCheck(self._program, level, self._pair, (value - guest) / 1e9, now - host)
            )

    def _add(self, level: int, row: str, ns: float) -> None:
        repeat = self._repeat.get(level, 0)
        self._results.samples.append(Sample(self._program, level, self._pair, repeat, row, ns))

    def landmark(self, level: int, row: str, seconds: float) -> None:
        """A figure by the host's clock alone."""
        self._add(level, row, seconds * 1e9)


def follow(
    command: Sequence[str],
    reader: Reader,
    limit: float = LONGEST_RUN_S,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command, hand its lines to the reader as they come; the exit status."""
    provide_memory()
    reader.begin = time.monotonic()
    splitter = LineSplitter(reader.line)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if environment is None else {**os.environ, **environment},
    ) as process:
        try:
            if process.stdout is None:
                raise Failure("cannot read what a program writes")
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while True:
                    left = reader.begin + limit - time.monotonic()
                    if left <= 0 or not selector.select(left):
                        reader.last = f"not ended after {limit:.0f} s: {reader.last}"
                        process.kill()
                        break
                    data = os.read(process.stdout.fileno(), 65536)
                    if not data:
                        break
                    splitter.feed(data)
        except BaseException:
            process.kill()
            raise
        splitter.finish()
        return process.wait()


# --- commands ---


def turtles(*arguments: str) -> list[str]:
    """The command of a run of this program."""
    return [sys.executable, "-m", "turtles", *arguments]


def turtles_guest(images: ImageSet, append: str, *more: str, disks: int = 1) -> list[str]:
    """`turtles run` of a set of images, with its root as so many disks."""
    files = ("--kernel", str(images.kernel), "--initrd", str(images.initrd), "-m", MEMORY)
    drives = ("--drive", f"{images.root},snapshot=on") * disks
    return turtles("run", *files, *drives, "--append", f"{images.append} {append}", *more)


def qemu_guest(images: ImageSet, append: str, *more: str, disks: int = 1) -> list[str]:
    """The same guest under QEMU's TCG, which has SVM where silicon has VT-x."""
    qemu = find_tool("qemu-system-x86_64")
    if qemu is None:
        raise Failure("qemu-system-x86_64 is missing; install the package qemu-system-x86")
    machine = ("-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-nodefaults", "-nographic", "-no-reboot")
    files = ("-kernel", str(images.kernel), "-initrd", str(images.initrd), "-serial", "stdio")
    drives = ("-drive", f"file={images.root},if=virtio,format=raw,snapshot=on") * disks
    return [qemu, *machine, *files, *drives, "-append", f"{images.append} {append}", *more]


# --- runs ---


def run_native(settings: Settings, pair: int, results: Results, say: Say) -> None:
    """The micro-benchmarks on the host itself; programs only inside guests, where the files are the same."""
    binary = str(benchmarks.ubench(cache_root() / "workloads"))
    for repeat in range(settings.repeats):
        reader = Reader("native", pair, 0, results, lambda row: say(f"native: {row}"))
        reader.line(Line(1, f"BENCH repeat {repeat} 0"))
        status = follow([binary, "run", str(settings.scale), *settings.rows], reader)
        if status:
            results.failures.append(f"native ended with status {status}: {reader.last}")


def run_tower(program: str, images: ImageSet, pair: int, results: Results, say: Say) -> None:
    """L1's boot to its init, and the whole tower, by the host's clock."""
    append = "turtles.mode=tower"
    command = qemu_guest(images, append) if program == "tcg" else turtles_guest(images, append)
    reader = Reader(program, pair, 1, results, lambda row: None)
    say(f"{program}: tower")
    status = follow(command, reader)
    seconds = time.monotonic() - reader.begin
    if 1 in reader.inits:
        reader.landmark(1, "boot", reader.inits[1])
    if status == 0 and 2 in reader.inits:
        reader.landmark(2, "tower", seconds)
    else:
        results.failures.append(f"{program}: the tower ended with status {status}: {reader.last}")


def run_set(
    program: str, images: ImageSet, settings: Settings, pair: int, results: Results, say: Say, *more: str
) -> None:
    """The whole set in L1, then in L2 (`settings.levels`), in memory that the host has provided before."""
    reader = Reader(program, pair, 1, results, lambda row: say(f"{program}: {row}"))
    say(f"{program}: boot")
    if program == "tcg":
        status = follow(qemu_guest(images, settings.append, "-mem-prealloc", disks=2), reader)
    else:
        with tempfile.NamedTemporaryFile(suffix=".json") as stats:
            options = (*more, "--prealloc", "--stats", stats.name)
            status = follow(turtles_guest(images, settings.append, *options, disks=2), reader)
            with contextlib.suppress(ValueError):  # a run that broke off wrote none
                results.runs.append({"pair": pair, **json.load(stats)})
    missing = [f"L{n}" for n in range(1, settings.levels + 1) if n not in reader.inits]
    if status or missing:
        absent = f", {' and '.join(missing)} never ran" if missing else ""
        results.failures.append(f"{program} ended with status {status}{absent}: {reader.last}")


def result_directory() -> Path:
    """Where results go without being told: `bench/results` of a checkout, else here."""
    return Path("bench/results") if Path("bench/README.md").exists() else Path()
