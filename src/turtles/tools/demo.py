"""`turtles demo`: the tower. L0 runs an unmodified Debian with KVM (L1), which runs another Debian (L2).

Shows each level's console lines marked, then what each exit cost. Where no package mirror answers, the
embedded tower runs instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from turtles.guests import embedded
from turtles.guests.cache import cache_root
from turtles.guests.freestanding import ToolchainError
from turtles.guests.images import RECIPES, ImageSet, obtain
from turtles.guests.packages import NoMirror
from turtles.l0.outcome import Ending
from turtles.tools.levels import Line, LineSplitter
from turtles.tools.options import DebugExit, Drive, Failure, RunOptions
from turtles.tools.progress import progress
from turtles.tools.run import Finished, drive, ending_line, exit_status, header, write_statistics
from turtles.tools.statistics import exit_table, level_lines

TOWER_MEMORY: Final = 1 << 30
EMBEDDED_MEMORY: Final = 256 << 20
EMBEDDED_DEPTH: Final = 2
_PLACE: Final = "*"
STYLES: Final = {1: "cyan", 2: "green", 3: "magenta", 4: "yellow"}


class LevelConsole:
    """Prints console lines with their level's mark, and remembers which levels spoke."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._frames: dict[int, tuple[str, str]] = {}
        self.lines_by_level: dict[int, int] = {}
        self.splitter = LineSplitter(self.show)

    def show(self, line: Line) -> None:
        """Print one line. The guest waits meanwhile: what does not change is worked out once."""
        self.lines_by_level[line.level] = self.lines_by_level.get(line.level, 0) + 1
        frame = self._frames.get(line.level)
        if frame is None:
            frame = self._frames[line.level] = self._frame(line.level)
        before, after = frame
        out = self._console.file
        out.write(f"{before}{line.text}{after}")
        out.flush()

    def _frame(self, level: int) -> tuple[str, str]:
        """What stands before and behind a level's lines, as this terminal has it."""
        style = STYLES.get(level, "white")
        with self._console.capture() as captured:
            text = f"{'  ' * (level - 1)}L{level} │ {_PLACE}"
            self._console.print(Text(text, style=f"bold {style}"), soft_wrap=True)
        before, _, after = captured.get().partition(_PLACE)
        return before, after


def tower_options(images: ImageSet, mode: str, clock: str, timeout: float | None) -> RunOptions:
    """The machine that L1's images are made for."""
    return RunOptions(
        kernel=str(images.kernel),
        initrds=(str(images.initrd),),
        append=f"{images.append} turtles.mode={mode}",
        memory=TOWER_MEMORY,
        drives=(Drive(str(images.root), snapshot=True),),
        clock=clock,
        timeout=timeout,
    )


def embedded_options(depth: int, clock: str, timeout: float | None) -> RunOptions:
    """The machine for the embedded tower of `depth` hypervisors."""
    try:
        kernel = embedded.build(cache_root() / "embedded")
    except (ToolchainError, OSError) as e:
        raise Failure(f"the embedded tower cannot be built: {e}") from None
    return RunOptions(
        kernel=str(kernel),
        append=f"depth={depth}",
        memory=EMBEDDED_MEMORY,
        clock=clock,
        debug_exit=DebugExit(0xF4),
        timeout=timeout,
    )


def find_guests(say: Callable[[str], None]) -> ImageSet | None:
    """The tower's images, from the cache or built now; None where no mirror answers."""
    try:
        with progress("guest images") as report:
            return obtain(RECIPES["tower"], report)
    except NoMirror as e:
        say(f"{e}")
        say("no packages can be had: running the embedded tower, which needs nothing from outside")
        return None


def run_demo(
    *, only_embedded: bool, clock: str, timeout: float | None, stats: str | None, trace: str | None = None
) -> int:
    """The whole demonstration; 0 when the tower ran and every level was heard."""
    console = Console(highlight=False)
    images = (
        None if only_embedded else find_guests(lambda text: console.print(f"turtles: {text}", soft_wrap=True))
    )
    if images is None:
        options, levels = embedded_options(EMBEDDED_DEPTH, clock, timeout), set(range(1, EMBEDDED_DEPTH + 2))
    else:
        options, levels = tower_options(images, "tower", clock, timeout), {1, 2}
    consoles = LevelConsole(console)
    finished = drive(
        replace(options, trace=trace),
        consoles.splitter.feed,
        keyboard=False,
        started=lambda rig: console.print(header(rig), soft_wrap=True),
    )
    consoles.splitter.finish()
    show_result(finished, console)
    if stats is not None:
        write_statistics(finished, stats)
    return judge(finished, consoles, levels)


def show_result(finished: Finished, console: Console) -> None:
    """The exit table and the run's figures."""
    result = finished.result
    console.print()
    console.print(exit_table(finished.rows))
    console.print("\n" + "; ".join(level_lines(finished.levels)), soft_wrap=True)
    millions = result.retired / 1e6
    rate = millions / result.seconds if result.seconds else 0.0
    console.print(
        f"{result.seconds:.1f} s, {millions:,.0f} million instructions, {rate:.1f} million a second"
    )


def judge(finished: Finished, consoles: LevelConsole, levels: set[int]) -> int:
    """The exit status; a tower that ended well but silently is a failure too."""
    outcome = finished.result.outcome
    # The embedded tower reports 0 by debug-exit where it finds no ACPI.
    well = outcome.ending is Ending.POWER_OFF or (outcome.ending is Ending.DEBUG_EXIT and outcome.code == 0)
    if not well:
        click.echo(ending_line(outcome) or f"turtles: the guest reported {outcome.code}", err=True)
        return exit_status(outcome)
    silent = sorted(levels - set(consoles.lines_by_level))
    # L0 sees what lies deeper than L2 as L2.
    unseen = sorted({1, 2} - {row.level for row in finished.rows})
    if silent or unseen:
        level = (silent or unseen)[0]
        click.echo(f"turtles: L{level} was never {'heard' if silent else 'run'}", err=True)
        return 1
    return 0
