"""Towers: the embedded one, and an L1 boot from packages if a mirror answers. The full one is the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from turtles.guests import embedded
from turtles.guests.images import RECIPES, obtain
from turtles.guests.packages import NoMirror

FORBIDDEN = (
    "unchecked MSR",
    "WARNING",
    "Call Trace",
    "unstable",
    "calibration failed",
    "stall",
    "soft lockup",
)


def turtles(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "turtles", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_embedded_tower(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    result = turtles("demo", "--embedded", "--stats", str(stats), "--timeout", "200", timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    levels = {e["level"] for e in json.loads(stats.read_text())["exits"]}
    assert levels >= {1, 2}
    for level in ("L1", "L2", "L3"):
        assert any(f"{level} │" in line for line in result.stdout.splitlines())


def test_embedded_tower_repeats_under_virtual_time(tmp_path: Path) -> None:
    found = set()
    for i in range(2):
        stats = tmp_path / f"{i}.json"
        result = turtles("demo", "--embedded", "--clock", "virtual", "--stats", str(stats), timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
        lines = tuple(line for line in result.stdout.splitlines() if " │ " in line)
        found.add((json.loads(stats.read_text())["run"]["digest"], lines))
    assert len(found) == 1


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hypervisors_run_themselves(depth: int, tmp_path: Path) -> None:
    kernel = embedded.build(tmp_path)
    result = turtles(
        *("run", "--kernel", str(kernel), "--append", f"depth={depth}", "-m", "128M"),
        *("--debug-exit", "0xf4", "--timeout", "200"),
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for level in range(1, depth + 1):
        assert any(line.startswith(f"[L{level}] exits: cpuid ") for line in lines)
    guest = [line for line in lines if line.startswith(f"[L{depth + 1}]")]
    assert guest[0].endswith("a guest")
    assert guest[-1] == f"[L{depth + 1}] done"
    assert any("pages came by EPT violation" in line for line in guest)
    assert any("timer interrupts while halted" in line for line in guest)


def test_boot_of_l1() -> None:
    try:
        images = obtain(RECIPES["tower"], lambda what, share: None)
    except NoMirror as e:
        pytest.skip(f"no packages: {e}")
    reports = os.environ.get("TURTLES_REPORTS")
    result = turtles(
        "run",
        *("--kernel", str(images.kernel), "--initrd", str(images.initrd), "-m", "512M"),
        *("--drive", f"{images.root},snapshot=on", "--append", f"{images.append} turtles.mode=boot"),
        *("--timeout", "500"),
        timeout=600,
    )
    if reports:
        Path(reports, "l1-boot.txt").write_text(result.stdout + result.stderr)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr
    assert "L1: Linux" in result.stdout
    assert "L1: dmesg is clean" in result.stdout
    complaints = [line for line in result.stdout.splitlines() if any(word in line for word in FORBIDDEN)]
    assert complaints == []
