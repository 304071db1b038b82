"""Distribution packages without root: a private apt state over the host's own list of sources.

Resolves, downloads and unpacks; the host's package database is neither read nor changed. Not here: what
goes into an image. Everything that can fail says in one line what to do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turtles.guests.state import GuestError

Report = Callable[[str, float | None], None]
"""Told what is being done, and which share of it is done where that is known."""

UPDATE_TIMEOUT_S: Final = 120
FETCH_TIMEOUT_S: Final = 1200


class NoMirror(GuestError):
    """No package mirror answered, or this host has no apt."""


@dataclass(frozen=True)
class Package:
    """A package as apt resolved it."""

    name: str
    version: str
    architecture: str

    @property
    def file(self) -> str:
        """The name that apt gives the file: an epoch's colon is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class PackageStore:
    """A private apt state and archive cache in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archives = root / "cache" / "archives"

    def _options(self) -> list[str]:
        status = self.root / "status"
        return [
            f"-oDir::State={self.root}/state",
            f"-oDir::State::status={status}",
            f"-oDir::Cache={self.root}/cache",
            "-oAPT::Sandbox::User=",
            "-oAPT::Architecture=amd64",
            "-oAPT::Install-Recommends=false",
            "-oAcquire::Retries=2",
            "-oAcquire::http::Timeout=20",
            "-oAcquire::https::Timeout=20",
            "-oAcquire::Languages=none",
            # A host may be told to keep no archives; this state keeps its own.
            "-oAPT::Update::Post-Invoke-Success::=",
            "-oAPT::Keep-Downloaded-Packages=true",
        ]

    def _run(
        self, arguments: Sequence[str], timeout: float, report: Report | None = None, what: str = ""
    ) -> str:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise NoMirror("this host has no apt-get and dpkg-deb to fetch packages with")
        for directory in (self.root / "state/lists/partial", self.archives / "partial"):
            directory.mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        read, write = os.pipe()
        command = ["apt-get", *self._options(), f"-oAPT::Status-Fd={write}", *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        log = self.root / "log"
        with log.open("w+") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[write],
                env=environment,
            )
            os.close(write)
            try:
                with os.fdopen(read, errors="replace") as status:
                    for line in status:
                        if report and (match := re.match(r"(?:dl|pm)status:[^:]*:([\d.]+):", line)):
                            report(what, float(match[1]) / 100)
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise NoMirror(f"apt-get did not finish within {timeout:.0f} s; see {log}") from None
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        text = log.read_text(errors="replace")
        if process.returncode != 0:
            errors = [line[2:].strip() for line in text.splitlines() if line.startswith("E:")]
            raise NoMirror(f"apt-get failed: {errors[0] if errors else 'see'} ({log})")
        return text

    def update(self, report: Report) -> None:
        """Fetch the lists of packages."""
        report("reading the lists of packages", None)
        text = self._run(["update"], UPDATE_TIMEOUT_S, report, "reading the lists of packages")
        # With no mirror at all apt-get only warns, as long as it may use older lists: there are none.
        if not any((self.root / "state/lists").glob("*_Packages*")):
            failed = [line for line in text.splitlines() if line.startswith(("W:", "Err:"))]
            raise NoMirror(
                f"no package mirror answered: {failed[0] if failed else 'no sources are configured'}"
            )

    def resolve(self, names: Sequence[str]) -> list[Package]:
        """The packages and everything that they depend on."""
        text = self._run(["-y", "--simulate", "install", *names], UPDATE_TIMEOUT_S)
        # Inst NAME [OLD VERSION] (VERSION ORIGIN... [ARCHITECTURE])
        lines = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\w+)\]\)", text, re.MULTILINE)
        packages = [Package(*line) for line in lines]
        if not packages:
            raise GuestError(f"apt-get found nothing to fetch for {' '.join(names)}")
        return packages

    def fetch(self, names: Sequence[str], packages: Sequence[Package], report: Report) -> list[Path]:
        """Download what is not there yet; apt checks signatures and checksums."""
        what = f"fetching {len(packages)} packages"
        report(what, 0.0)
        files = [self.archives / p.file for p in packages]
        if not all(f.exists() for f in files):
            self._run(["-y", "--download-only", "install", *names], FETCH_TIMEOUT_S, report, what)
        missing = [f.name for f in files if not f.exists()]
        if missing:
            raise NoMirror(f"apt-get did not fetch {missing[0]}; see {self.root / 'log'}")
        return files


def unpack(files: Sequence[Path], target: Path, report: Report) -> None:
    """Unpack package files into a directory, without their scripts."""
    target.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        report("unpacking", i / len(files))
        # Through tar, because dpkg-deb -x would replace a link lib -> usr/lib by a directory.
        archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE)
        result = subprocess.run(
            [
                "tar",
                "-x",
                "--keep-directory-symlink",
                "--no-same-owner",
                "--exclude=./dev/*",
                "-C",
                str(target),
            ],
            stdin=archive.stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        if archive.stdout:
            archive.stdout.close()
        if archive.wait() or result.returncode:
            raise GuestError(f"cannot unpack {file.name}: {result.stderr.strip()[:200] or 'damaged package'}")
