"""Compiles our own small guests (C and assembly) into Multiboot ELF images with the host's C toolchain.

The result is cached by the contents of its sources. It knows nothing of what the guests do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CFLAGS = (
    "-m64 -ffreestanding -mgeneral-regs-only -mno-red-zone -fno-pic -fno-pie -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -mcmodel=kernel -O2 -Wall -Wextra -Wno-main -Wno-array-bounds"
).split()

SHARED: Final = Path(__file__).parent / "boot"
"""What our freestanding guests have in common."""


class ToolchainError(RuntimeError):
    """The C toolchain is missing or refused a source; the message is one line that says what to do."""


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        first = (result.stderr.strip().splitlines() or ["no message"])[0]
        raise ToolchainError(f"{command[0]} failed: {first}")


def compile_guest(folder: Path, cache: Path, name: str) -> Path:
    """Compiles every .c and .S file of `folder` with its `link.ld`; returns the ELF32 image in `cache`.

    They may include what lies in SHARED.

    The image is 64-bit code in an ELF32 container, as Multiboot 1 asks for.

    Raises:
        ToolchainError: `cc`, `ld` or `objcopy` is missing, or one of them failed.
    """
    sources = sorted(p for p in folder.iterdir() if p.suffix in {".c", ".S", ".h", ".ld"})
    digest = hashlib.sha256(" ".join(CFLAGS).encode())
    for source in (*sources, *sorted(SHARED.iterdir())):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    image = cache / f"{name}-{digest.hexdigest()[:16]}.elf"
    if image.exists():
        return image
    for tool in ("cc", "ld", "objcopy"):
        if shutil.which(tool) is None:
            raise ToolchainError(f"{tool} is not installed: install a C toolchain (Debian: build-essential)")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work_name:
        work = Path(work_name)
        objects = []
        for source in sources:
            if source.suffix in {".c", ".S"}:
                out = work / f"{source.stem}.o"
                _run(["cc", *CFLAGS, "-I", str(SHARED), "-c", str(source), "-o", str(out)])
                objects.append(str(out))
        linked = work / "linked.elf"
        _run(
            ["ld", "-m", "elf_x86_64", "-z", "max-page-size=4096", "--no-warn-rwx-segments"]
            + ["-T", str(folder / "link.ld"), "-o", str(linked), *objects]
        )
        finished = work / "finished.elf"
        _run(["objcopy", "-O", "elf32-i386", str(linked), str(finished)])
        os.replace(finished, image)
    return image
