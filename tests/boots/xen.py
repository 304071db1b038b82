"""Xen from distribution packages, with Debian's Linux as dom0: an initrd with xl and one domain's files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from turtles.guests.cache import build, cache_root, digest, locked
from turtles.guests.cpio import Archive
from turtles.guests.libraries import closure
from turtles.guests.modules import ModuleTree
from turtles.guests.packages import PackageStore, unpack

PACKAGES = ("linux-image-amd64", "busybox-static", "xen-system-amd64")
MODULES = ("xen_evtchn", "xenfs", "xen_gntdev", "xen_gntalloc", "xen_privcmd")
PROGRAMS = ("xl", "xenstored", "xenconsoled", "xenconsole", "xen-init-dom0", "libxl-save-helper")
CANCEL = "lib/x86_64-linux-gnu/libgcc_s.so.1"  # opened by name when a thread is cancelled
DOM0_INIT = """#!/bin/busybox sh
export PATH=/usr/lib/xen/bin:/bin
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /var /tmp /run/xen /run/xenstored /run/lock /var/log/xen /var/lib/xen
mount -t devpts pts /dev/pts
ln -s /run/xen /run/xenstored /run/lock /var/
ln -s /run /var/run
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "cannot load $module"; done
mount -t xenfs xenfs /proc/xen
xenstored --pid-file /run/xen/xenstored.pid
xen-init-dom0
xenconsoled --pid-file=/run/xen/xenconsoled.pid
xl info | grep -e virt_caps -e xen_version
xl create -c /pvh </dev/null 2>&1
xl list
poweroff -f
"""
DOMAIN_INIT = """#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo "DomU: $(cat /sys/hypervisor/type /sys/hypervisor/guest_type), $(head -c 1048576 /dev/zero | sha256sum)"
poweroff -f
"""
DOMAIN = """name = "pvh"
type = "pvh"
kernel = "/domain/kernel"
ramdisk = "/domain/initrd"
extra = "console=hvc0 quiet panic=-1"
memory = 160
on_reboot = "destroy"
on_crash = "destroy"
"""


@dataclass(frozen=True)
class Xen:
    """The built files."""

    hypervisor: Path
    kernel: Path
    initrd: Path


def obtain() -> Xen:
    """From the cache, else built from packages; `NoMirror` where none are to be had."""
    root = cache_root()
    directory = root / "images" / f"xen-{digest(Path(__file__).read_bytes())}"
    found = Xen(directory / "xen.gz", directory / "vmlinuz", directory / "initrd")
    if not found.initrd.exists():
        with locked(root, lambda what, share: None):
            build(directory, lambda target: _make(root, target))
    return found


def _make(root: Path, target: Path) -> None:
    store = PackageStore(root / "apt")
    store.update(_silent)
    files = store.fetch(PACKAGES, store.resolve(PACKAGES), _silent)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=target) as name:
        tree = Path(name)
        unpack(files, tree, _silent)
        modules = ModuleTree(tree)
        (target / "xen.gz").write_bytes(next((tree / "boot").glob("xen-*.gz")).read_bytes())
        kernel = (tree / f"boot/vmlinuz-{modules.version}").read_bytes()
        (target / "vmlinuz").write_bytes(kernel)
        busybox = next(p for p in (tree / "bin/busybox", tree / "usr/bin/busybox") if p.exists()).read_bytes()
        (target / "initrd").write_bytes(_dom0(tree, modules, busybox, kernel))


def _silent(what: str, share: float | None) -> None:
    """Nobody watches."""


def _base(busybox: bytes, init: str) -> Archive:
    archive = Archive()
    for directory in ("dev", "proc", "sys", "bin"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox, 0o755)
    archive.file("init", init.encode(), 0o755)
    return archive


def _dom0(tree: Path, modules: ModuleTree, busybox: bytes, kernel: bytes) -> bytes:
    archive = _base(busybox, DOM0_INIT)
    directory = next(p for p in (tree / "usr/lib").glob("xen-*/bin"))
    relative = directory.relative_to(tree)
    programs = [str(relative / name) for name in PROGRAMS]
    for path in (*programs, *closure(tree, [*programs, CANCEL]), CANCEL):
        archive.file(path, (tree / path).read_bytes(), 0o755)
    archive.symlink("usr/lib/xen", directory.parent.name)
    order = modules.order(MODULES)
    archive.file("modules/order", "".join(f"{m}\n" for m in order).encode())
    for module in order:
        archive.file(f"modules/{module}.ko", modules.data(module))
    archive.file("pvh", DOMAIN.encode())
    archive.file("domain/kernel", kernel)
    archive.file("domain/initrd", _base(busybox, DOMAIN_INIT).finish())
    return archive.finish()
