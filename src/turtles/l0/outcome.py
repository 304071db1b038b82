"""How a run ended: a value that the command line turns into an exit status and one line for the user.

It holds no policy: what a status is lies with the tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Ending(Enum):
    """Kinds of ending."""

    POWER_OFF = "powered off"
    RESET = "asked for a reset"
    DEBUG_EXIT = "wrote to the debug-exit port"
    TRIPLE_FAULT = "triple fault"
    TIMEOUT = "timeout"
    STOPPED = "stopped from outside"
    ERROR = "error"


@dataclass(frozen=True)
class Outcome:
    """What ended the run. `code` is the value written for DEBUG_EXIT; `message` is one line, if any."""

    ending: Ending
    code: int = 0
    message: str = ""


class GuestStop(Exception):
    """A guest cannot go on, or silicon lacks something; the message says what happened."""


POWER_OFF = Outcome(Ending.POWER_OFF)
RESET = Outcome(Ending.RESET)
TIMEOUT = Outcome(Ending.TIMEOUT)
STOPPED = Outcome(Ending.STOPPED)


def debug_exit(value: int) -> Outcome:
    """The guest wrote `value` to the debug-exit port."""
    return Outcome(Ending.DEBUG_EXIT, code=value)
