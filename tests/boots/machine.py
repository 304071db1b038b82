"""Runs a whole guest in this process; what it said is kept under reports/ where a test then fails."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from turtles.guests.images import RECIPES, ImageSet, obtain
from turtles.guests.packages import NoMirror
from turtles.l0.outcome import Outcome
from turtles.tools.machine import Rig
from turtles.tools.options import RunOptions


@dataclass(frozen=True)
class Boot:
    """How a guest ended, what it said, and its exits as (level, reason, who handled it)."""

    outcome: Outcome
    serial: bytes
    exits: Counter[tuple[int, str, str]]
    digest: int
    retired: int

    @property
    def lines(self) -> list[str]:
        return self.serial.decode("utf-8", "replace").splitlines()


def boot(options: RunOptions, clock: str) -> Boot:
    serial = bytearray()
    rig = Rig(replace(options, clock=clock), serial.extend)
    result = rig.run()
    exits = Counter({(r.level, r.reason, r.handled_by): r.count for r in rig.vcpu.stats.rows()})
    return Boot(result.outcome, bytes(serial), exits, rig.core.digest(), result.retired)


def image_set(name: str) -> ImageSet:
    """Built images; without packages to build them from the test is skipped."""
    try:
        return obtain(RECIPES[name], lambda what, share: None)
    except NoMirror as e:
        pytest.skip(f"no packages: {e}")


@contextlib.contextmanager
def kept(name: str, *boots: Boot) -> Iterator[None]:
    """Around assertions: serial logs and exits go to reports/ when one fails."""
    try:
        yield
    except AssertionError:
        directory = Path(os.environ.get("TURTLES_REPORTS", "reports"))
        directory.mkdir(parents=True, exist_ok=True)
        for n, found in enumerate(boots):
            stem = directory / f"{name}-{n}"
            stem.with_suffix(".serial").write_bytes(found.serial)
            rows = {" ".join(map(str, key)): count for key, count in sorted(found.exits.items())}
            facts = {"outcome": str(found.outcome), "digest": found.digest, "retired": found.retired}
            stem.with_suffix(".json").write_text(json.dumps({**facts, "exits": rows}, indent=1))
        raise
