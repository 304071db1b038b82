"""The program as a process: its status, and that nothing it said is lost."""

import subprocess
import sys
from pathlib import Path

import pytest


def turtles(*arguments: str, out: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turtles", *arguments]
    if out is None:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    with out.open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--version"], 0), (["run", "--kernel", "/nowhere"], 1), (["nonsense"], 2)]
)
def test_status(arguments: list[str], status: int) -> None:
    assert turtles(*arguments).returncode == status


def test_all_that_was_said_arrives_in_a_pipe() -> None:
    said = turtles("--help").stdout
    assert said.startswith("Usage:")
    assert said.endswith("\n")


def test_what_cannot_be_said_is_a_failure() -> None:
    # 120 is Python's own, where the output was not kept back until the end.
    assert turtles("--help", out=Path("/dev/full")).returncode in (1, 120)
