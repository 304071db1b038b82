"""`--trace FILE`: every exit as one line of text, as it was handled.

Columns: retired instructions, level, reason, RIP, qualification, guest-physical address, handler, and how
many nanoseconds of its clock the guest had run. Not here: what to make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Final

from turtles.l0.outcome import GuestStop
from turtles.l0.stats import reason_name
from turtles.l0.trace import ExitRecord

HEADING: Final = "# retired level reason rip qualification guest_physical handled_by ran_ns context\n"


def tracer(file: IO[str]) -> Callable[[ExitRecord], None]:
    """A hook that writes records to a file."""
    file.write(HEADING)
    write = file.write

    def hook(r: ExitRecord) -> None:
        line = (
            f"{r.retired} L{r.level} {reason_name(r.reason & 0xFFFF)} {r.rip:#x} {r.qualification:#x} "
            f"{r.guest_physical:#x} {'L1' if r.reflected else 'L0'} {r.exit_ns - r.entry_ns} {r.context:#x}\n"
        )
        try:
            write(line)
        except OSError as e:
            raise GuestStop(f"--trace: {e.strerror}") from None

    return hook
