"""The program as a process: how `turtles` and `python -m turtles` begin and end.

What the commands are is in `turtles.tools.cli`, which other programs (and tests) may call without this.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from typing import Final, NoReturn

YOUNG: Final = 100_000
"""Objects made until garbage is looked for: modules and machines make many, and hardly any is garbage."""


def program() -> NoReturn:
    """Run a command and end the process."""
    gc.set_threshold(YOUNG)
    from turtles.tools.cli import main

    status = 0
    try:
        main()
    except SystemExit as e:
        if threading.active_count() > 1 or not isinstance(e.code, int | None):
            raise
        status = e.code or 0
    # A machine goes as a whole, with the process: object by object takes a good part of a short run.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(status & 0xFF)
