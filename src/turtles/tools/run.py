"""`turtles run`: one guest, its console in this terminal, and how it ended as an exit status.

Everything that can be wrong with the input is said before anything starts.
"""

from __future__ import annotations

from turtles.tools.options import Failure, RunOptions


def run_guest(options: RunOptions) -> int:
    """Run a guest to its end; the exit status of the program."""
    raise Failure("this build has no machine yet")
