"""Whole runs of tiny Multiboot guests: how they end, what the user sees, and what is left behind."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from tests.guests.samples import elf32, multiboot_header
from turtles.l0.outcome import TIMEOUT, Ending
from turtles.tools.machine import Rig
from turtles.tools.options import DebugExit, RunOptions

POWER_OFF_WITH_5 = bytes.fromhex("b005 e6f4 f4".replace(" ", ""))  # mov al,5; out F4h,al; hlt
SPIN = bytes.fromhex("ebfe")  # jmp $
SLEEP = bytes.fromhex("faf4ebfd")  # cli; hlt; jmp back
TRIPLE = bytes.fromhex("0f0118 0f0b".replace(" ", ""))  # lidt [eax] (zeros); ud2
HELLO = b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in b"hi\n")  # mov al,c; out dx,al
COM1 = bytes.fromhex("66baf803")  # mov dx,3F8h


def kernel(directory: Path, code: bytes) -> str:
    path = directory / "kernel"
    path.write_bytes(elf32(multiboot_header().ljust(32, b"\0") + code.ljust(64, b"\xf4")))
    return str(path)


def command(path: str, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "turtles",
        "run",
        "--kernel",
        path,
        "-m",
        "32M",
        "--debug-exit",
        "0xf4",
        *more,
    ]


def run(path: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path, *more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_debug_exit_becomes_the_status(tmp_path: Path) -> None:
    result = run(kernel(tmp_path, POWER_OFF_WITH_5))
    assert result.returncode == 5 << 1 | 1, result.stderr
    assert result.stderr.startswith(("turtles: translator", "turtles: interpreter")), (
        "the header says which engine"
    )
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_header_says_what_is_off(tmp_path: Path) -> None:
    result = run(kernel(tmp_path, POWER_OFF_WITH_5), "--tactics", "no-bulk,no-lazy-state")
    assert result.returncode == 5 << 1 | 1, result.stderr
    assert ", L0 without bulk lazy-state, " in result.stderr.splitlines()[0]


def test_serial_output(tmp_path: Path) -> None:
    path = kernel(tmp_path, COM1 + HELLO + POWER_OFF_WITH_5)
    assert run(path).stdout == "hi\n"
    result = run(path, "--serial", f"file:{tmp_path}/out")
    assert (result.stdout, (tmp_path / "out").read_bytes()) == ("", b"hi\n")


def test_timeout(tmp_path: Path) -> None:
    begin = time.monotonic()
    result = run(kernel(tmp_path, SPIN), "--timeout", "0.5")
    assert result.returncode == 124
    assert "--timeout" in result.stderr
    assert time.monotonic() - begin < 20


def test_triple_fault_names_level_and_rip(tmp_path: Path) -> None:
    result = run(kernel(tmp_path, TRIPLE))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "riple fault" in last and "L1" in last and "0x1000" in last, last
    assert "Traceback" not in result.stderr


def test_statistics_and_trace(tmp_path: Path) -> None:
    stats, trace = tmp_path / "stats.json", tmp_path / "trace"
    run(kernel(tmp_path, COM1 + HELLO + POWER_OFF_WITH_5), "--stats", str(stats), "--trace", str(trace))
    data = json.loads(stats.read_text())
    rows = {(e["level"], e["reason"]): e["count"] for e in data["exits"]}
    assert rows[1, "IO"] == 4
    assert data["run"]["retired"] >= 8
    shown = subprocess.run(
        [sys.executable, "-m", "turtles", "trace", str(trace), "--lines"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len([line for line in shown.stdout.splitlines() if " L1 IO " in line]) == 4


def test_outputs_that_fill_up(tmp_path: Path) -> None:
    path = kernel(tmp_path, (COM1 + HELLO) * 200 + POWER_OFF_WITH_5)
    result = run(path, "--serial", "file:/dev/full")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "turtles: --serial /dev/full: not everything could be written"
    for option in ("--stats", "--trace"):
        result = run(path, option, "/dev/full")
        assert result.returncode == 1
        assert f"{option}" in result.stderr and "No space left" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run(tmp_path: Path, number: signal.Signals) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(8192))
    process = subprocess.Popen(
        command(kernel(tmp_path, COM1 + HELLO + SLEEP), "--drive", str(disk)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"hi\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert number.name.encode() in error and b"Traceback" not in error
    assert disk.read_bytes() == bytes(8192)


@pytest.mark.parametrize("end", ["key", "signal"])
def test_terminal_is_sane_afterwards(tmp_path: Path, end: str) -> None:
    pid, master = pty.fork()
    if pid == 0:
        path = kernel(tmp_path, COM1 + HELLO + SLEEP)
        os.execv(sys.executable, command(path))
    before = termios.tcgetattr(master)
    seen = b""
    while b"hi\n" not in seen:
        seen += os.read(master, 4096)
    assert b"Ctrl-A x" in seen, "the escape key is shown at start"
    assert not termios.tcgetattr(master)[3] & termios.ICANON
    if end == "key":
        os.write(master, b"\x01x")
    else:
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert termios.tcgetattr(master) == before
    os.close(master)


def test_an_idle_guest_costs_little(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(kernel(tmp_path, COM1 + HELLO + SLEEP)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"hi\n"

    def cpu_seconds() -> float:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    used = cpu_seconds()
    time.sleep(2)
    used = cpu_seconds() - used
    process.terminate()
    process.communicate(timeout=30)
    assert used < 0.1, "under 5 % of a core"


def test_virtual_time_repeats(tmp_path: Path) -> None:
    path = kernel(tmp_path, COM1 + HELLO + bytes.fromhex("0f31 01d0".replace(" ", "")) + POWER_OFF_WITH_5)
    digests = set()
    for i in range(2):
        stats = tmp_path / f"{i}.json"
        result = run(path, "--clock", "virtual", "--stats", str(stats))
        digest = json.loads(stats.read_text())["run"]["digest"]
        assert f"digest of all exits {digest}" in result.stderr
        digests.add(digest)
    assert len(digests) == 1


# CR4.OSFXSR and OSXSAVE, XCR0 = x87, SSE, AVX; all requested components.
VECTOR_STATE = bytes.fromhex("0f20e00d000604000f22e031c931d2b8070000000f01d1b8ffffffffbaffffffff")


@pytest.mark.parametrize(
    "code",
    {
        "fnsave": "dd35 000000e8",
        "frstor": "dd25 000000e8",
        "fxsave": "0fae05 000000e8",
        "xsave": "0fae25 000000e8",
        "enter with 31 levels": "bc000100e8 bd000000e8 c810001f",
        "pushad": "bc000100e8 60",
        "popad": "bc000100e8 61",
        "cmpxchg8b": "0fc70d 000000e8",
        "vmovdqu": "c5fe7f05 000000e8",
    }.items(),
    ids=lambda item: item[0],
)
def test_instructions_with_many_accesses_to_no_memory(tmp_path: Path, code: tuple[str, str]) -> None:
    path = kernel(tmp_path, VECTOR_STATE + bytes.fromhex(code[1]) + POWER_OFF_WITH_5)
    rig = Rig(RunOptions(path, memory=32 << 20, debug_exit=DebugExit(0xF4)), lambda data: None)
    outcome = rig.run().outcome
    assert (outcome.ending, outcome.code) == (Ending.DEBUG_EXIT, 5), outcome


def test_garbage_is_reported_never_a_crash(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    generator = random.Random(seed)
    for _ in range(25):
        path = kernel(tmp_path, generator.randbytes(64))
        rig = Rig(RunOptions(path, memory=32 << 20, debug_exit=DebugExit(0xF4)), lambda data: None)
        timer = threading.Timer(0.3, rig.stop, [TIMEOUT])
        timer.start()
        result = rig.run()
        timer.cancel()
        outcome = result.outcome
        # Reported with level, RIP and reason; never a defect of L0 or of a device.
        assert "failed" not in outcome.message and "internal" not in outcome.message, outcome
        if outcome.ending in (Ending.ERROR, Ending.TRIPLE_FAULT):
            assert "L1 at RIP" in outcome.message, outcome
