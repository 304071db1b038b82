from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from turtles.guests.cpio import Archive


def sample() -> bytes:
    archive = Archive()
    archive.file("bin/tool", b"#!/bin/sh\n", 0o755)
    archive.file("etc/a/b", b"x" * 5)
    archive.symlink("bin/sh", "tool")
    archive.directory("bin")
    return archive.finish()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs the program cpio as the reference")
def test_another_program_reads_it(tmp_path: Path) -> None:
    subprocess.run(["cpio", "-id", "--quiet"], input=sample(), cwd=tmp_path, check=True)
    assert (tmp_path / "etc/a/b").read_bytes() == b"xxxxx"
    assert (tmp_path / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/sh").readlink() == Path("tool")


def test_format() -> None:
    data = sample()
    assert len(data) % 512 == 0
    assert data.count(b"070701") == 7, "bin, bin/tool, etc, etc/a, etc/a/b, bin/sh and the trailer"
    assert sample() == data
