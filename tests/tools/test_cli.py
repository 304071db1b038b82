"""Bad input of every kind: one clear line and status 1 or 2, before anything starts."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.guests.samples import bzimage, multiboot_kernel
from turtles.l0.tactics import Tactics
from turtles.tools.cli import main
from turtles.tools.options import TacticsOption


def turtles(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(result: Result, status: int, text: str) -> None:
    assert result.exit_code == status, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert text in lines[0]
    assert "Traceback" not in result.output


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "kernel"
    path.write_bytes(multiboot_kernel())
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--kernel"),
        (["--kernel", "k", "--smp", "2"], "one processor"),
        (["--kernel", "k", "--smp", "0"], "--smp"),
        (["--kernel", "k", "--nic", "user"], "no network card"),
        (["--kernel", "k", "--mmu", "bogus"], "--mmu"),
        (["--kernel", "k", "--gdb", "1234"], "no debugger stub"),
        (["--kernel", "k", "-m", "3 apples"], "no size"),
        (["--kernel", "k", "-m", "1K"], "multiple of 1 MiB"),
        (["--kernel", "k", "--drive", "d,format=qcow2"], "qemu-img convert"),
        (["--kernel", "k", "--drive", "d,cache=none"], "cache=none"),
        (["--kernel", "k", "--drive", ""], "needs a file"),
        (["--kernel", "k", "--debug-exit", "nonsense"], "PORT[:WIDTH]"),
        (["--kernel", "k", "--debug-exit", "0xf4:3"], "widths are 1, 2 and 4"),
        (["--kernel", "k", "--serial", "tcp:1"], "file:NAME"),
        (["--kernel", "k", "--cpu", "max,avx"], "+feature"),
        (["--kernel", "k", "--timeout", "0"], "--timeout"),
        (["--kernel", "k", "--clock", "sundial"], "--clock"),
        (["--kernel", "k", "--bogus"], "--bogus"),
    ],
)
def test_usage_errors(arguments: list[str], text: str) -> None:
    refused(turtles("run", *arguments), 2, text)


def test_unknown_command() -> None:
    refused(turtles("fly"), 2, "fly")


def test_missing_kernel(tmp_path: Path) -> None:
    refused(turtles("run", "--kernel", str(tmp_path / "none")), 1, "No such file")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "neither a Linux bzImage nor a Multiboot kernel"),
        (b"MZ" + bytes(4096), "neither a Linux bzImage nor a Multiboot kernel"),
        (bzimage()[:3000], "truncated"),
        (multiboot_kernel()[:-1], "truncated"),
        (multiboot_kernel()[:0x1040], "truncated"),
    ],
)
def test_broken_kernels(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    refused(turtles("run", "--kernel", str(path), "-m", "64M"), 1, text)


def test_devices_are_no_kernels(kernel: str) -> None:
    refused(turtles("run", "--kernel", "/dev/zero"), 1, "a device")
    refused(turtles("run", "--kernel", kernel, "--initrd", "/dev/zero", "-m", "64M"), 1, "a device")


def test_initrd_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    with (tmp_path / "initrd").open("wb") as file:
        file.truncate(100 << 20)
    result = turtles("run", "--kernel", f"{tmp_path}/kernel", "--initrd", f"{tmp_path}/initrd", "-m", "64M")
    refused(result, 1, "do not fit")


def test_drives(kernel: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    refused(turtles("run", "--kernel", kernel, "--drive", str(disk)), 1, "No such file")
    disk.touch()
    refused(turtles("run", "--kernel", kernel, "--drive", str(disk)), 1, "empty")
    disk.write_bytes(bytes(4096))
    with disk.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        refused(turtles("run", "--kernel", kernel, "--drive", str(disk)), 1, "locked by another run")
    refused(turtles("run", "--kernel", kernel, "--drive", str(tmp_path)), 1, "irectory")


def test_unknown_processor_and_feature(kernel: str) -> None:
    refused(turtles("run", "--kernel", kernel, "--cpu", "pentium"), 1, "no model 'pentium'")
    refused(turtles("run", "--kernel", kernel, "--cpu", "max,+flux"), 1, "no feature 'flux'")


@pytest.mark.parametrize("feature", ["vmx", "ept", "unrestricted_guest"])
def test_a_processor_that_l0_cannot_use(kernel: str, feature: str) -> None:
    result = turtles("run", "--kernel", kernel, "-m", "64M", "--cpu", f"max,-{feature}", "--timeout", "0.2")
    if result.exit_code != 124:
        refused(result, 1, "--cpu: ")


def test_too_much_memory(kernel: str) -> None:
    refused(turtles("run", "--kernel", kernel, "-m", "300G"), 1, "more than this host has left")
    refused(turtles("run", "--kernel", kernel, "-m", "9999G"), 1, "-m")


def test_outputs_that_cannot_be_written(kernel: str, tmp_path: Path) -> None:
    for option in ("--stats", "--trace"):
        refused(turtles("run", "--kernel", kernel, option, f"{tmp_path}/no/file"), 1, "No such file")
    refused(turtles("run", "--kernel", kernel, "--serial", f"file:{tmp_path}/no/file"), 1, "No such file")


def test_debug_exit_port_that_is_taken(kernel: str) -> None:
    refused(
        turtles("run", "--kernel", kernel, "-m", "64M", "--debug-exit", "0x3f8"), 1, "debug-exit port 0x3f8"
    )


def test_tactics_are_read_from_left_to_right() -> None:
    def parsed(text: str) -> Tactics:
        value = TacticsOption().convert(text, None, None)
        assert isinstance(value, Tactics)
        return value

    assert parsed("all") == Tactics()
    assert parsed("no-bulk,no-shadow-vmcs") == Tactics(bulk=False, shadow_vmcs=False)
    assert parsed("none,vpid").off() == tuple(name for name in Tactics.names() if name != "vpid")
    assert parsed("no-vpid,vpid") == Tactics()


def test_a_tactic_that_is_none(kernel: str) -> None:
    refused(turtles("run", "--kernel", kernel, "--tactics", "no-luck"), 2, "there are bulk, ")
