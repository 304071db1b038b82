"""Where turtles keeps what it has built: guest images, compiled modules. Not here: what is in there."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$TURTLES_CACHE`, or turtles' directory below the user's cache directory."""
    if explicit := os.environ.get("TURTLES_CACHE"):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "turtles"
