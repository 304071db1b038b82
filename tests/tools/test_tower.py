"""Towers: the embedded one, and an L1 boot from packages if a mirror answers. The full one is the demo."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.boots.machine import image_set
from turtles.guests import embedded
from turtles.guests.images import ImageSet

FORBIDDEN = (
    "unchecked MSR",
    "WARNING",
    "Call Trace",
    "unstable",
    "calibration failed",
    "stall",
    "soft lockup",
)
ASLEEP = 0.25
"""Of a core: what sleeps takes some hundredths on any host, what spins takes all."""


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


def test_hypervisors_run_themselves(tmp_path: Path) -> None:
    depth = 3
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


def test_demo_without_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\necho 'E: nothing answers here'; exit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{apt.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TURTLES_CACHE", str(tmp_path / "cache"))
    result = turtles("demo", "--timeout", "200", timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing answers here" in result.stdout
    assert "running the embedded tower" in result.stdout
    assert "L3 │ done" in result.stdout


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return image_set("tower")


def boot(images: ImageSet, mode: str, *more: str, memory: str = "512M") -> list[str]:
    """Arguments that boot L1."""
    return [
        *("run", "--kernel", str(images.kernel), "--initrd", str(images.initrd), "-m", memory),
        *("--drive", f"{images.root},snapshot=on", "--append", f"{images.append} turtles.mode={mode}"),
        *("--timeout", "900", *more),
    ]


def check_console(text: str, level: str) -> None:
    """The kernel's log of a level is clean, in its own words and in ours."""
    assert f"{level}: Linux" in text
    assert f"{level}: dmesg is clean" in text
    lines = text.splitlines()
    assert [line for line in lines if any(word in line for word in FORBIDDEN)] == []
    about_kvm = (line for line in lines if "kvm" in line.lower() or "vmx" in line.lower())
    assert [line for line in about_kvm if "error" in line.lower()] == []


def keep(name: str, text: str) -> None:
    """Leaves a console for the report, where one is asked for."""
    if reports := os.environ.get("TURTLES_REPORTS"):
        Path(reports, name).write_text(text)


def test_interactive_console(images: ImageSet) -> None:
    process, master = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "turtles", *boot(images, "shell")])
    seen = b""

    def until(pattern: bytes, seconds: float = 60) -> None:
        nonlocal seen
        ends_at = time.monotonic() + seconds
        while re.search(pattern, seen) is None:
            left = ends_at - time.monotonic()
            assert left > 0 and select.select([master], [], [], left)[0], seen[-1000:]
            seen += os.read(master, 4096)

    try:
        until(rb"/ # ", 600)
        assert b"Ctrl-A x ends the run" in seen
        for typed, answer in (
            (b"echo $((6 * 7))\r", rb"\r\n42\r\n.*/ # "),
            (b'echo read""y; cat\r', rb"ready\r\n"),
            (b"x" * 1000 + b"\r", rb"x{1000}\r\nx{1000}\r\n"),
            (b"\x03", rb"\^C.*/ # "),  # Ctrl-C is the guest's
        ):
            seen = b""
            os.write(master, typed)
            until(b"(?s)" + answer)
            time.sleep(1)  # the shell gives the terminal to what it starts
        begin = cpu_seconds(process)
        time.sleep(3)
        idle = (cpu_seconds(process) - begin) / 3
        seen = b""
        os.write(master, b"poweroff -f\r")
        until(rb"Power down")
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        process = 0
    finally:
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        os.close(master)
    assert idle < ASLEEP


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_full_tower(images: ImageSet, tmp_path: Path) -> None:
    """Everything that is promised of the tower but its time; L2 idles for a while in the middle."""
    stats = tmp_path / "stats.json"
    arguments = boot(images, "tower turtles.l2=turtles.idle=8", "--stats", str(stats), memory="1G")
    process = subprocess.Popen(
        [sys.executable, "-m", "turtles", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    idle = 0.0
    for line in process.stdout:
        lines.append(line)
        if "L2: idle for" in line:
            time.sleep(2)
            idle = cpu_seconds(process.pid)
            time.sleep(4)
            idle = (cpu_seconds(process.pid) - idle) / 4
    _, errors = process.communicate(timeout=60)
    text = "".join(lines)
    keep("tower.txt", text + errors)
    assert process.returncode == 0, text[-2000:] + errors
    for level in ("L1", "L2"):
        check_console(text, level)
    for flag in ("vmx", "ept", "vpid"):
        assert re.search(rf"L1: processor offers:.* {flag}\b", text)
    for name in ("ept", "unrestricted_guest", "vpid", "flexpriority", "nested"):
        assert f"L1: kvm_intel.{name}=Y" in text
    vulnerabilities = dict(re.findall(r"L1: vulnerability (\w+): (.*)", text))
    assert len(vulnerabilities) > 10
    del vulnerabilities["spectre_v1"]
    for name, state in vulnerabilities.items():
        assert state.strip() == "Not affected" or "Enhanced / Automatic IBRS" in state, name
    rows = {
        (e["level"], e["reason"], e["handled_by"]): e["count"] for e in json.loads(stats.read_text())["exits"]
    }
    assert rows[1, "VMRESUME", "L0"] and rows[2, "IO", "L1"] and rows[2, "EPT_VIOLATION", "L1"]
    assert 0 < idle < ASLEEP, "an idle tower sleeps"
