"""Plots as SVG text and PNG bytes, where matplotlib (the extra `bench`) is there. Not here: what is drawn."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from typing import Any, Final

MISSING: Final = "Plots need matplotlib: make bench installs it, or pip install 'turtles[bench]'."
WIDTH: Final = 9.5

Draw = Callable[[Any], None]
"""Draws into matplotlib axes."""


def available() -> bool:
    """Whether there is matplotlib."""
    return importlib.util.find_spec("matplotlib") is not None


def svg(draw: Draw, height: float) -> str:
    """An SVG element that can stand in a page."""
    return figure(lambda axes: draw(axes[0]), height, 1)[0]


def figure(draw: Draw, height: float, panels: int) -> tuple[str, bytes]:
    """Panels side by side, as an SVG element and as a PNG file; `draw` gets a list of axes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plot

    made, axes = plot.subplots(1, panels, figsize=(WIDTH, height), layout="constrained", squeeze=False)
    draw(list(axes[0]))
    text, image = io.StringIO(), io.BytesIO()
    made.savefig(text, format="svg")
    made.savefig(image, format="png", dpi=120)
    plot.close(made)
    element = text.getvalue()
    element = re.sub(r"<metadata>.*?</metadata>", "", element[element.index("<svg") :], flags=re.DOTALL)
    return element, image.getvalue()
