"""The command line: `turtles run | demo | trace | image | compile | doctor | bench | lockstep`.

Options only; each command's work lives in the module of its name, imported when it is asked for, so
that `turtles --help` is quick. Not here: what a guest sees.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from turtles import __doc__ as summary
from turtles.guests.state import GuestError
from turtles.l0.mmu.ept02 import Tactic
from turtles.l0.tactics import ALL, Tactics
from turtles.tools.options import (
    DEFAULT_MEMORY,
    CpuChoice,
    CpuOption,
    DebugExit,
    DebugExitOption,
    Drive,
    DriveOption,
    Engine,
    MemorySize,
    RunOptions,
    SerialOption,
    TacticsOption,
)


class Program(click.Group):
    """Every error of the command line is one line on the standard error stream."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **more: Any) -> Any:
        """Run and exit: 2 for a usage error, 1 for a failure, else the command's status."""
        more["standalone_mode"] = False
        try:
            sys.exit(super().main(args, *rest, **more))
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.format_message())
            sys.exit(2)
        except click.UsageError as e:
            where = f"{e.ctx.command_path}: " if e.ctx else "turtles: "
            click.echo(f"{where}{_one_line(e.format_message())}", err=True)
            sys.exit(2)
        except (click.ClickException, GuestError) as e:
            text = e.format_message() if isinstance(e, click.ClickException) else str(e)
            click.echo(f"turtles: {_one_line(text)}", err=True)
            sys.exit(1)
        except (click.Abort, KeyboardInterrupt):
            click.echo("turtles: interrupted", err=True)
            sys.exit(1)


def _one_line(text: str) -> str:
    return " ".join(text.split())


@click.group(cls=Program, help=summary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="turtles")
def main() -> None:
    """Entry point of the `turtles` program."""


@main.command()
@click.option("--kernel", required=True, metavar="FILE", help="Linux bzImage or Multiboot kernel.")
@click.option(
    "--initrd", "initrds", multiple=True, metavar="FILE", help="Initrd, or Multiboot module (repeat)."
)
@click.option("--append", default="", metavar="TEXT", help="Kernel command line.")
@click.option("-m", "--memory", type=MemorySize(), default=DEFAULT_MEMORY, show_default=True, help="RAM.")
@click.option("--prealloc", is_flag=True, help="Have the host provide all RAM before the guest starts.")
@click.option("--smp", type=click.IntRange(min=1), default=1, show_default=True, help="Processors.")
@click.option(
    "--drive",
    "drives",
    type=DriveOption(),
    multiple=True,
    metavar="FILE[,readonly=on][,snapshot=on]",
    help="Raw disk image, as virtio-blk (repeat).",
)
@click.option("--nic", default="none", metavar="none", help="Network card; none so far.")
@click.option(
    "--serial", type=SerialOption(), default="stdio", show_default=True, help="stdio, none or file:NAME."
)
@click.option(
    "--cpu", type=CpuOption(), default="default", metavar="MODEL[,+F][,-F]", help="Processor model."
)
@click.option(
    "--mmu",
    type=click.Choice(["multidim", "shadow-on-ept", "shadow-on-shadow"]),
    default="multidim",
    show_default=True,
    help="How L2's memory is virtualized.",
)
@click.option(
    "--ept12",
    type=click.Choice([tactic.value for tactic in Tactic]),
    default=Tactic.INVEPT.value,
    show_default=True,
    help="How multidim follows what L1 writes to its EPT.",
)
@click.option(
    "--tactics",
    type=TacticsOption(),
    default=ALL,
    metavar="[none][,T][,no-T]",
    help=f"Optimisations of L0 to use or leave out: {', '.join(Tactics.names())}.  [default: all]",
)
@click.option("--clock", type=click.Choice(["host", "virtual"]), default="host", show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["interpreter", "translator"]),
    default="translator",
    show_default=True,
    help="What executes guest code.",
)
@click.option(
    "--debug-exit", type=DebugExitOption(), metavar="PORT[:WIDTH]", help="As QEMU's isa-debug-exit."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="End with status 124."
)
@click.option("--stats", metavar="FILE", help="Write exit statistics as JSON.")
@click.option("--trace", metavar="FILE", help="Record every exit; `turtles trace FILE` shows it.")
@click.option("--marks", metavar="FILE", help="Write each console line with the counters at that moment.")
@click.option("--gdb", metavar="[ADDR:]PORT", help="Debugger stub (not yet).")
def run(
    kernel: str,
    initrds: tuple[str, ...],
    append: str,
    memory: int,
    prealloc: bool,
    smp: int,
    drives: tuple[Drive, ...],
    nic: str,
    serial: str,
    cpu: CpuChoice,
    mmu: str,
    ept12: str,
    tactics: Tactics,
    clock: str,
    engine: Engine,
    debug_exit: DebugExit | None,
    timeout: float | None,
    stats: str | None,
    trace: str | None,
    marks: str | None,
    gdb: str | None,
) -> None:
    """Run a guest with its serial console in this terminal.

    Status: 0 when the guest powers off, (V << 1) | 1 after a debug-exit of V, 124 on --timeout,
    2 for a usage error, 1 for anything else.
    """
    if smp != 1:
        raise click.BadParameter(
            "one processor is supported so far; leave it out or say 1", param_hint="--smp"
        )
    if nic != "none":
        raise click.BadParameter("there is no network card yet; say none", param_hint="--nic")
    if gdb is not None:
        raise click.BadParameter("there is no debugger stub yet; --trace shows the exits", param_hint="--gdb")
    from turtles.tools.run import run_guest

    options = RunOptions(
        kernel,
        initrds,
        append,
        memory,
        smp,
        drives,
        serial,
        cpu,
        mmu,
        clock,
        engine,
        tactics,
        Tactic(ept12),
        debug_exit,
        timeout,
        stats,
        trace,
        marks,
        prealloc,
    )
    raise SystemExit(run_guest(options))


@main.command()
@click.option("--features", is_flag=True, help="List the names that --cpu knows.")
def doctor(features: bool) -> None:
    """Say what this host offers, and what turtles will do with it."""
    from turtles.tools.doctor import examine, list_features

    raise SystemExit(list_features() if features else examine())


@main.command("compile")
def compile_command() -> None:
    """Compile L0's hot modules (mypyc): the same Python, faster. Edited ones run as Python until then."""
    from turtles.tools.compiling import compile_l0

    click.echo("compiled" if compile_l0() else "up to date")


@main.command()
@click.argument("name", type=click.Choice(["tower", "bench", "standard"]), default="tower")
@click.option("--renew", is_flag=True, help="Build again from today's packages.")
@click.option("--list", "only_list", is_flag=True, help="Say what is in the cache.")
@click.option("--prune", is_flag=True, help="Remove sets of earlier versions from the cache; build nothing.")
def image(name: str, renew: bool, only_list: bool, prune: bool) -> None:
    """Build guest images from distribution packages, without root."""
    from turtles.tools.image import build_images, list_images, prune_images

    if prune:
        raise SystemExit(prune_images())
    raise SystemExit(list_images() if only_list else build_images(name, renew))


@main.command()
@click.option("--embedded", is_flag=True, help="Run the embedded tower, which needs no packages.")
@click.option("--clock", type=click.Choice(["host", "virtual"]), default="host", show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="End with status 124.",
)
@click.option("--stats", metavar="FILE", help="Write exit statistics as JSON.")
@click.option("--trace", metavar="FILE", help="Record every exit; `turtles trace FILE` shows it.")
def demo(embedded: bool, clock: str, timeout: float, stats: str | None, trace: str | None) -> None:
    """Run the tower: L0 runs Debian with KVM, which runs Debian."""
    from turtles.tools.demo import run_demo

    raise SystemExit(run_demo(only_embedded=embedded, clock=clock, timeout=timeout, stats=stats, trace=trace))


@main.command()
@click.argument("path", metavar="FILE")
@click.option("--lines", is_flag=True, help="Every exit as a line, and no tables.")
@click.option(
    "--slowest", type=click.IntRange(min=0), default=3, show_default=True, help="Exits to show as trees."
)
@click.option("--json", "as_json", is_flag=True, help="All figures as JSON.")
@click.option("--perfetto", metavar="OUT", help="Write a trace for ui.perfetto.dev, and no tables.")
def trace(path: str, lines: bool, slowest: int, as_json: bool, perfetto: str | None) -> None:
    """Show what `run --trace FILE` recorded: exits, what they cost, and what L1 did meanwhile."""
    from turtles.tools.trace import run_trace

    if lines + as_json + (perfetto is not None) > 1:
        raise click.UsageError("say one of --lines, --json and --perfetto")
    raise SystemExit(run_trace(path, lines=lines, slowest=slowest, as_json=as_json, perfetto=perfetto))


@main.command()
@click.argument(
    "name", type=click.Choice(["silicon", "peers", "exits", "paper", "determinism", "determinism-tower"])
)
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    help="Runs of each peer [peers: 3; paper: 2; quick and silicon: 1].",
)
@click.option("--quick", is_flag=True, help="Micro-benchmarks only, in fewer rounds; of paper a small part.")
@click.option("--embedded", is_flag=True, help="paper: only the embedded tower, which needs no packages.")
@click.option("--only", multiple=True, metavar="NAME", help="paper: only this configuration (repeat).")
@click.option("--renew", is_flag=True, help="paper: forget what an earlier run of it measured.")
@click.option("--standard", is_flag=True, help="Also boot the standard kernel (xz), which takes longer.")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Length of the micro-benchmarks; of everything in paper.",
)
@click.option("--repeats", type=click.IntRange(min=1), help="In each run; the first warms up.")
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Only these micro-benchmarks (repeat).")
@click.option("--json", "json_path", metavar="FILE", help="Where results go [bench/results/NAME.json].")
@click.option("--page", metavar="FILE", help="Where the HTML page goes [beside the JSON].")
def bench(
    name: str,
    pairs: int | None,
    quick: bool,
    embedded: bool,
    only: tuple[str, ...],
    renew: bool,
    standard: bool,
    scale: float | None,
    repeats: int | None,
    rows: tuple[str, ...],
    json_path: str | None,
    page: str | None,
) -> None:
    """Measure.

    silicon: beside this host; peers: beside QEMU's TCG; exits: what each kind costs; paper: the Turtles
    paper's evaluation, going on where it was ended; determinism: whether virtual time repeats.
    """
    if name == "paper":
        from turtles.tools.paper.command import PaperOptions, run

        raise SystemExit(
            run(PaperOptions(quick, embedded, pairs, only, scale or 1.0, renew, json_path, page))
        )
    from turtles.tools.bench import BenchOptions, run_bench

    options = BenchOptions(name, pairs, standard, quick, scale, repeats, rows, json_path, page)
    raise SystemExit(run_bench(options))


@main.command()
@click.option("--kernel", metavar="FILE", help="Guest; without one, the embedded tower.")
@click.option("--initrd", "initrds", multiple=True, metavar="FILE", help="Initrd or module (repeat).")
@click.option("--append", default="", metavar="TEXT", help="Kernel command line.")
@click.option("-m", "--memory", type=MemorySize(), default=DEFAULT_MEMORY, show_default=True, help="RAM.")
@click.option(
    "--drive", "drives", type=DriveOption(), multiple=True, metavar="FILE,snapshot=on", help="Disk."
)
@click.option("--debug-exit", type=DebugExitOption(), metavar="PORT[:WIDTH]", help="As in `run`.")
@click.option(
    "--depth", type=click.IntRange(0, 3), default=2, show_default=True, help="Of the embedded tower."
)
@click.option(
    "--variant",
    type=click.Choice(["cuts", "engines", "translator-cuts"]),
    default="cuts",
    show_default=True,
    help="An engine against itself stopped at random times, or the two engines.",
)
@click.option("--step", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Nanoseconds.")
@click.option("--until", type=click.IntRange(min=1), metavar="NS", help="Stop at this virtual time.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random stops.")
@click.option(
    "--ignore", multiple=True, metavar="FIELD", help="A field of the state that may differ (repeat)."
)
def lockstep(
    kernel: str | None,
    initrds: tuple[str, ...],
    append: str,
    memory: int,
    drives: tuple[Drive, ...],
    debug_exit: DebugExit | None,
    depth: int,
    variant: str,
    step: int,
    until: int | None,
    seed: int,
    ignore: tuple[str, ...],
) -> None:
    """Run a guest on two machines side by side and find the first instruction after which they differ."""
    from turtles.tools.demo import embedded_options
    from turtles.tools.lockstep import run_lockstep

    if any(not drive.snapshot and not drive.readonly for drive in drives):
        raise click.BadParameter("two machines share it: say snapshot=on", param_hint="--drive")
    if kernel is None:
        options = embedded_options(depth, "virtual", None)
    else:
        options = RunOptions(
            kernel, initrds, append, memory, drives=drives, clock="virtual", debug_exit=debug_exit
        )
    raise SystemExit(run_lockstep(options, variant, step, until, seed, ignore))
