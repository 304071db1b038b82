"""The embedded tower: a small hypervisor that runs copies of itself, and a plain guest on top.

It needs nothing from outside, so it shows and tests nesting where no package mirror answers. Boot it with
the command line `depth=N`: N hypervisors (levels 1 to N) and a guest at level N + 1.
"""

from __future__ import annotations

from pathlib import Path

from turtles.guests.freestanding import compile_guest


def build(cache: Path) -> Path:
    """Compiles the embedded tower into `cache`; returns the path of its Multiboot ELF."""
    return compile_guest(Path(__file__).parent, cache, "embedded-tower")
