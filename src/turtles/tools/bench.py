"""`turtles bench`: picks the bench; here also silicon's bare speed, and whether virtual time repeats.

Every run is a process of its own. Not here: what is compared with the host and with QEMU (`compare`), plots.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from turtles.guests import workloads
from turtles.guests.cache import cache_root
from turtles.tools import compare, exit_bench
from turtles.tools.compare import images
from turtles.tools.doctor import cpu_name
from turtles.tools.measure import (
    Reader,
    Results,
    Say,
    Settings,
    follow,
    result_directory,
    turtles,
    turtles_guest,
)
from turtles.tools.options import Failure
from turtles.tools.progress import progress

ENGINES: Final = ("interpreter", "translator")


def checked(name: str, command: Sequence[str], status: int = 0) -> None:
    """Run a command that must end with `status`; else what it said last."""
    reader = Reader(name, 0, 1, Results(), lambda row: None)
    ended = follow(command, reader)
    if ended != status:
        raise Failure(f"{name} ended with status {ended}: {reader.last}")


# --- what is measured ---


def silicon_speed(say: Say, *, standard: bool = False) -> list[dict[str, Any]]:
    """Million guest instructions a second on an integer loop, a memory walk, and boots, by engine."""
    tower = images("tower")
    kernel = str(workloads.build(cache_root() / "workloads"))
    small = ("run", "--kernel", kernel, "-m", "128M", "--debug-exit", "0xf4")
    commands: dict[str, tuple[list[str], int]] = {
        title: (turtles(*small, "--append", f"work={name}"), 1) for name, title in workloads.WORKLOADS.items()
    }
    commands["boot of the cloud kernel"] = (turtles_guest(tower, "turtles.mode=boot"), 0)
    if standard:
        commands["boot of the standard kernel (xz)"] = (
            turtles_guest(images("standard"), "turtles.mode=boot"),
            0,
        )
    rows = []
    for title, (command, status) in commands.items():
        for engine in ENGINES:
            say(f"{title}, {engine}")
            with tempfile.NamedTemporaryFile(suffix=".json") as stats:
                options = ("--engine", engine, "--stats", stats.name)
                checked(title, [*command, *options], status)
                figures = json.loads(Path(stats.name).read_text())["run"]
            rows.append(
                {"what": title, "engine": engine, **{k: figures[k] for k in ("seconds", "retired", "mips")}}
            )
    return rows


def determinism(say: Say, *, tower: bool) -> dict[str, Any]:
    """Two runs under virtual time: the digests of all exits and the serial bytes must be equal."""
    if tower:
        base = turtles_guest(images("tower"), "turtles.mode=tower", "--clock", "virtual")
    else:
        base = turtles_guest(images("tower"), "turtles.mode=boot", "--clock", "virtual")
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(2):
            say(f"run {i + 1} of 2")
            stats, serial = Path(directory, f"{i}.json"), Path(directory, f"{i}.txt")
            command = [*base, "--serial", f"file:{serial}", "--stats", str(stats)]
            checked("the run", command)
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


@dataclass(frozen=True)
class BenchOptions:
    """What `turtles bench` was told; none: as the bench has it by itself."""

    name: str
    pairs: int | None = None
    standard: bool = False
    quick: bool = False
    scale: float | None = None
    repeats: int | None = None
    rows: tuple[str, ...] = ()
    json: str | None = None
    page: str | None = None


def pairs(o: BenchOptions) -> int:
    """How often each peer runs."""
    return o.pairs or (compare.PAIRS if o.name == "peers" and not o.quick else 1)


def settings(o: BenchOptions) -> Settings:
    """What the set runs."""
    base = compare.QUICK if o.quick or o.name == "silicon" else compare.FULL
    return replace(base, scale=o.scale or base.scale, repeats=o.repeats or base.repeats, rows=o.rows)


def run_bench(o: BenchOptions) -> int:
    """One of the benches; 1 where a run failed, or one that must repeat did not."""
    with progress(f"bench {o.name}") as report:

        def say(what: str) -> None:
            report(what, None)

        if o.name in ("silicon", "peers"):
            json_path = Path(o.json) if o.json else result_directory() / f"{o.name}.json"
            if o.name == "silicon":
                found = compare.silicon(say, pairs(o), settings(o), compare.QUICK_ROUNDS)
                if not o.quick:
                    found.speed = silicon_speed(say, standard=o.standard)
            else:
                found = compare.peers(say, pairs(o), settings(o), json_path)
        elif o.name == "exits":
            costs, profile = exit_bench.exits(say)
        else:
            repeated = determinism(say, tower=o.name == "determinism-tower")
    if o.name in ("silicon", "peers"):
        if found.speed:
            show("speed", found.speed, Console())
        return compare.finish(found, json_path, Path(o.page) if o.page else json_path.with_suffix(".html"))
    if o.name == "exits":
        json_path = Path(o.json) if o.json else result_directory() / "exits.json"
        write(str(json_path), o.name, [asdict(cost) for cost in costs])
        json_path.with_suffix(".profile.txt").write_text(profile)
        for l0 in dict.fromkeys(cost.l0 for cost in costs):
            rows = [exit_bench.as_row(cost) for cost in costs if cost.l0 == l0]
            show(f"exits, L0: {l0}", rows, Console(width=100))
        return 0
    Console().print(repeated)
    write(o.json, o.name, repeated)
    return 0 if repeated["equal"] else 1
