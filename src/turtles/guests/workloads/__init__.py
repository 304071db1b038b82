"""Small guests that do one thing for long, to measure silicon: see `start.S`.

Boot with the command line `work=NAME`; a debug-exit of 0 (port F4H) ends the run. They check nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from turtles.guests.freestanding import compile_guest

WORKLOADS: Final = {"loop": "integer loop", "near": "memory walk, 2 MiB", "walk": "memory walk, 64 MiB"}
CPUID_ROUNDS: Final = 200_000  # as in start.S; work=cpuid, and work=none for what a run takes without


def build(cache: Path) -> Path:
    """Compile the guests into `cache`; returns the path of the Multiboot ELF."""
    return compile_guest(Path(__file__).parent, cache, "workloads")
