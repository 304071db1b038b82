"""Progress of work that takes a while: one line that changes, or plain lines where no terminal is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from turtles.guests.packages import Report


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """A reporter for `turtles.guests`; its lines go to the standard error stream."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def plain(what: str, share: float | None) -> None:
            nonlocal last
            if what != last:
                last = what
                console.print(f"{title}: {what}", highlight=False)

        yield plain
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def live(what: str, share: float | None) -> None:
            bar.update(
                task,
                description=f"{title}: {what}",
                total=None if share is None else 1.0,
                completed=share or 0,
            )

        yield live
