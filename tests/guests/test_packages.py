"""The package store against an apt-get that we write ourselves: what is asked, and what each failure says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from turtles.guests.packages import NoMirror, Package, PackageStore, unpack
from turtles.guests.state import GuestError

SILENT = lambda what, share: None  # noqa: E731

SIMULATION = """\
Inst libc6 (2.36-9 Debian:12/stable [amd64])
Inst qemu-system-x86 [1:7.1] (1:7.2+dfsg-7+b3 Debian:12/stable, Debian-Security:12 [amd64]) []
Inst seabios (1.16.2-1 Debian:12/stable [all])
Conf libc6 (2.36-9 Debian:12/stable [amd64])
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory at the head of PATH; the test writes `apt-get` there."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    write(directory / "dpkg-deb", "exit 0")
    return directory


def write(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def test_a_host_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoMirror, match="no apt-get"):
        PackageStore(tmp_path / "apt").update(SILENT)


def test_no_mirror_answers(apt: Path, tmp_path: Path) -> None:
    write(apt / "apt-get", "echo 'W: Failed to fetch something'; exit 0")
    with pytest.raises(NoMirror, match="no package mirror answered: W: Failed to fetch"):
        PackageStore(tmp_path / "apt").update(SILENT)
    write(apt / "apt-get", "echo 'E: The list of sources could not be read.'; exit 100")
    with pytest.raises(NoMirror, match="The list of sources could not be read"):
        PackageStore(tmp_path / "apt").update(SILENT)


def test_resolution(apt: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text(SIMULATION)
    write(apt / "apt-get", f"cat {tmp_path}/out")
    found = PackageStore(tmp_path / "apt").resolve(["qemu-system-x86"])
    assert found == [
        Package("libc6", "2.36-9", "amd64"),
        Package("qemu-system-x86", "1:7.2+dfsg-7+b3", "amd64"),
        Package("seabios", "1.16.2-1", "all"),
    ]
    assert found[1].file == "qemu-system-x86_1%3a7.2+dfsg-7+b3_amd64.deb"


def test_only_private_state_is_used(apt: Path, tmp_path: Path) -> None:
    write(apt / "apt-get", f'echo "$@" >{tmp_path}/arguments; echo "Inst a (1 x [all])"')
    PackageStore(tmp_path / "apt").resolve(["a"])
    arguments = (tmp_path / "arguments").read_text()
    for option in ("Dir::State=", "Dir::State::status=", "Dir::Cache="):
        assert f"-o{option}{tmp_path}/apt/" in arguments


def test_progress_and_missing_files(apt: Path, tmp_path: Path) -> None:
    body = 'for a; do case $a in *Status-Fd=*) fd=${a##*=};; esac; done; echo dlstatus:1:25.5:x >&"$fd"'
    write(apt / "apt-get", body)
    said: list[tuple[str, float | None]] = []
    store = PackageStore(tmp_path / "apt")
    with pytest.raises(NoMirror, match=r"did not fetch a_1_all\.deb"):
        store.fetch(["a"], [Package("a", "1", "all")], lambda what, share: said.append((what, share)))
    assert ("fetching 1 packages", 0.255) in said


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_damaged_package(tmp_path: Path) -> None:
    damaged = tmp_path / "a_1_all.deb"
    damaged.write_bytes(b"!<arch>\n" + bytes(100))
    with pytest.raises(GuestError, match="cannot unpack a_1_all"):
        unpack([damaged], tmp_path / "out", SILENT)
