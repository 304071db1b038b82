"""Module order and library closure, on files that the host's own toolchain makes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from turtles.guests.libraries import closure, needed
from turtles.guests.modules import ModuleTree
from turtles.guests.state import GuestError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to make samples")


def module(tree: Path, name: str, depends: str) -> None:
    home = tree / "lib/modules/1.0/kernel"
    home.mkdir(parents=True, exist_ok=True)
    source = f'.section .modinfo,"a"\n.asciz "depends={depends}"\n.asciz "license=GPL"\n'
    command = ["cc", "-x", "assembler", "-c", "-", "-o", str(home / f"{name}.ko")]
    subprocess.run(command, input=source, text=True, check=True)


def test_order_puts_dependencies_first(tmp_path: Path) -> None:
    module(tmp_path, "virtio_pci", "virtio,virtio-ring")
    module(tmp_path, "virtio-ring", "")
    module(tmp_path, "virtio", "")
    module(tmp_path, "virtio_blk", "virtio,virtio_ring")
    (tmp_path / "lib/modules/1.0/modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    tree = ModuleTree(tmp_path)
    assert tree.version == "1.0"
    assert tree.order(["virtio_pci", "virtio_blk", "ext4"]) == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
        "virtio_blk",
    ]
    assert tree.data("virtio_ring")[:4] == b"\x7fELF"
    with pytest.raises(GuestError, match="no module kvm"):
        tree.order(["kvm"])


def test_package_without_modules(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no modules"):
        ModuleTree(tmp_path)


def test_library_closure(tmp_path: Path) -> None:
    library, program = tmp_path / "usr/lib/libone.so", tmp_path / "usr/bin/program"
    for directory in (library.parent, program.parent):
        directory.mkdir(parents=True)
    subprocess.run(
        ["cc", "-shared", "-nostdlib", "-x", "c", "-", "-o", library, "-Wl,-soname,libone.so"],
        input=b"int one(void) { return 1; }",
        check=True,
    )
    subprocess.run(
        ["cc", "-nostdlib", "-shared", "-x", "c", "-", "-x", "none", library, "-o", program],
        input=b"int one(void); int two(void) { return one(); }",
        check=True,
    )
    assert "libone.so" in needed(program)
    assert closure(tmp_path, ["usr/bin/program"]) == ["usr/lib/libone.so"]
    library.unlink()
    with pytest.raises(GuestError, match=r"needs libone\.so"):
        closure(tmp_path, ["usr/bin/program"])
