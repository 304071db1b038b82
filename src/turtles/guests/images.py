"""Guest images from distribution packages: kernels, initrds and ext4 roots of L1 and L2, without root.

L1's root carries busybox, KVM's modules, qemu-system-x86 with its libraries and firmware, and L2 whole.
Files are the distribution's, unchanged; only init scripts are ours. Not here: running any of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from turtles.guests import benchmarks
from turtles.guests.cache import build, cache_root, digest, locked
from turtles.guests.cpio import Archive
from turtles.guests.libraries import closure
from turtles.guests.modules import ModuleTree
from turtles.guests.packages import Package, PackageStore, Report, unpack
from turtles.guests.state import GuestError

FORMAT: Final = "8"  # raised when a change here must rebuild what is cached
BLOCK: Final = 4096
FREE_BYTES: Final = 32 << 20

DISK_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
KVM_MODULES: Final = ("kvm_intel", "kvm_amd")
QEMU: Final = "usr/bin/qemu-system-x86_64"
# What QEMU reads from its data directories for a PC without graphics and network.
FIRMWARE: Final = (
    "usr/share/seabios/bios-256k.bin",
    "usr/share/seabios/bios.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot.bin",
    "usr/share/qemu/linuxboot_dma.bin",
)
SCRIPTS: Final = ("initrd-init", "common", "l1-init", "l2-init")

COMMON_APPEND: Final = "console=ttyS0 panic=-1 random.trust_cpu=on 8250.nr_uarts=1"
"""No options that hide messages: the guests' logs are part of what is shown."""


@dataclass(frozen=True)
class Recipe:
    """Which packages make a set of images."""

    name: str
    packages: tuple[str, ...]
    tower: bool
    measured: bool = False  # one root for every level, with the programs of the benches

    @property
    def key(self) -> str:
        """Content hash of everything of ours that decides what comes out."""
        scripts = [script(name) for name in SCRIPTS]
        words = [FORMAT, self.name, COMMON_APPEND, *self.packages, *DISK_MODULES, *KVM_MODULES, *FIRMWARE]
        more = benchmarks.content() if self.measured else []
        return digest(*(w.encode() for w in words), *scripts, *more)


TOWER_PACKAGES: Final = ("linux-image-cloud-amd64", "qemu-system-x86", "busybox-static")
RECIPES: Final = {
    "tower": Recipe("tower", TOWER_PACKAGES, True),
    "bench": Recipe("bench", (*TOWER_PACKAGES, *benchmarks.PACKAGES), False, measured=True),
    "standard": Recipe("standard", ("linux-image-amd64", "busybox-static"), False),
}


@dataclass(frozen=True)
class ImageSet:
    """A built set: paths of the files, and what they were made from."""

    directory: Path
    recipe: str
    kernel_version: str
    packages: tuple[Package, ...]

    @property
    def kernel(self) -> Path:
        """The distribution's bzImage."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """Our initrd with the distribution's busybox and modules."""
        return self.directory / "initrd"

    @property
    def root(self) -> Path:
        """The root disk of the outermost guest."""
        return self.directory / "root.img"

    @property
    def append(self) -> str:
        """The kernel command line that goes with the set."""
        return COMMON_APPEND


def script(name: str) -> bytes:
    """One of our init scripts."""
    return resources.files("turtles.guests").joinpath("scripts", name).read_bytes()


def find(recipe: Recipe) -> ImageSet | None:
    """The set in the cache, if it is there."""
    directory = cache_root() / "images" / f"{recipe.name}-{recipe.key}"
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        packages = tuple(Package(**p) for p in manifest["packages"])
        return ImageSet(directory, recipe.name, str(manifest["kernel_version"]), packages)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def superseded() -> list[Path]:
    """Sets in the cache that no recipe stands for any more: of earlier versions, or of other packages."""
    current = {f"{recipe.name}-{recipe.key}" for recipe in RECIPES.values()}
    try:
        return sorted(p for p in (cache_root() / "images").iterdir() if p.is_dir() and p.name not in current)
    except OSError:
        return []


def prune(report: Report) -> list[Path]:
    """Remove them; machines that run from one keep its files until they end."""
    root = cache_root()
    with locked(root, report):
        removed = superseded()
        for directory in removed:
            report(f"removing {directory.name}", None)
            try:
                shutil.rmtree(directory)
            except OSError as e:
                raise GuestError(f"cannot remove {directory}: {e.strerror}") from None
    return removed


def obtain(recipe: Recipe, report: Report, renew: bool = False) -> ImageSet:
    """The set from the cache, else built; `renew` builds it again from today's packages."""
    if not renew and (found := find(recipe)):
        return found
    root = cache_root()
    with locked(root, report):
        if not renew and (found := find(recipe)):
            return found
        try:
            directory = root / "images" / f"{recipe.name}-{recipe.key}"
            build(directory, lambda target: _build(recipe, target, root, report))
        except OSError as e:
            raise GuestError(f"cannot build images in {root}: {e}") from None
    made = find(recipe)
    if made is None:
        raise GuestError(f"images in {directory} disappeared while they were built")
    return made


def _build(recipe: Recipe, target: Path, root: Path, report: Report) -> None:
    store = PackageStore(root / "apt")
    store.update(report)
    # Asked after the mirrors: where there are none, that is what to say, and what runs without is run.
    if mke2fs() is None:
        raise GuestError("mke2fs is missing; install the package e2fsprogs")
    packages = store.resolve(recipe.packages)
    files = store.fetch(recipe.packages, packages, report)
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=target) as name:
        tree = Path(name)
        unpack(files, tree, report)
        modules = ModuleTree(tree)
        report("making the initrd", None)
        shutil.copyfile(_kernel_file(tree, modules.version), target / "vmlinuz")
        busybox = _busybox(tree)
        (target / "initrd").write_bytes(_initrd(modules, busybox))
        stage = tree / "stage"
        if recipe.measured:
            report("making the root", None)
            _stage_kvm(stage, tree, target, modules, busybox, "l1-init")
            benchmarks.stage(stage, tree, root / "workloads")
            _ld_cache(stage)
            (stage / "sbin/init").write_bytes(benchmarks.file("bench-init"))
            make_ext4(stage, target / "root.img")
            return _write_manifest(target, modules.version, packages)
        report("making L2's root", None)
        _stage_base(stage / "l2", busybox, "l2-init")
        if not recipe.tower:
            make_ext4(stage / "l2", target / "root.img")
        else:
            make_ext4(stage / "l2", tree / "l2.img")
            report("making L1's root", None)
            _stage_kvm(stage / "l1", tree, target, modules, busybox, "l1-init")
            shutil.copyfile(tree / "l2.img", stage / "l1/l2/root.img")
            make_ext4(stage / "l1", target / "root.img")
    _write_manifest(target, modules.version, packages)


def _write_manifest(target: Path, version: str, packages: Sequence[Package]) -> None:
    manifest = {"kernel_version": version, "packages": [asdict(p) for p in packages]}
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _kernel_file(tree: Path, version: str) -> Path:
    for path in (tree / "boot" / f"vmlinuz-{version}", tree / "usr/lib/modules" / version / "vmlinuz"):
        if path.exists():
            return path
    raise GuestError(f"the kernel package contains no vmlinuz-{version}")


def _busybox(tree: Path) -> Path:
    for path in (tree / "bin/busybox", tree / "usr/bin/busybox"):
        if path.is_file():
            return path
    raise GuestError("the package busybox-static contains no busybox")


def _initrd(modules: ModuleTree, busybox: Path) -> bytes:
    """Uncompressed: unpacking costs the guest more than reading."""
    archive = Archive()
    for directory in ("dev", "proc", "sys", "root", "bin", "modules"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("init", script("initrd-init"), 0o755)
    order = modules.order(DISK_MODULES)
    archive.file("modules/order", "".join(f"{m}\n" for m in order).encode())
    for name in order:
        archive.file(f"modules/{name}.ko", modules.data(name))
    return archive.finish()


def _stage_base(stage: Path, busybox: Path, init: str) -> None:
    for directory in ("bin", "sbin", "dev", "proc", "sys", "tmp", "etc", "root", "run", "var"):
        (stage / directory).mkdir(parents=True)
    shutil.copy(busybox, stage / "bin/busybox")
    (stage / "bin/busybox").chmod(0o755)
    for applet in _applets(busybox):
        if not (stage / "bin" / applet).exists():
            (stage / "bin" / applet).symlink_to("busybox")
    (stage / "etc/common").write_bytes(script("common"))
    (stage / "sbin/init").write_bytes(script(init))
    (stage / "sbin/init").chmod(0o755)


def _applets(busybox: Path) -> list[str]:
    """The names that the static busybox answers to; it is a program of this architecture."""
    try:
        result = subprocess.run([busybox, "--list"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as e:
        raise GuestError(f"the package's busybox does not run here: {e}") from None
    return [name for name in result.stdout.split() if "/" not in name]


def _stage_kvm(stage: Path, tree: Path, target: Path, modules: ModuleTree, busybox: Path, init: str) -> None:
    """A root with KVM, QEMU, and L2's kernel and initrd."""
    _stage_base(stage, busybox, init)
    (stage / "modules").mkdir()
    for name in KVM_MODULES:
        order = modules.order([name])
        (stage / "modules" / name).write_text("".join(f"{m}\n" for m in order))
        for module in order:
            (stage / "modules" / f"{module}.ko").write_bytes(modules.data(module))
    _copy(tree, stage, [QEMU, *closure(tree, [QEMU]), *FIRMWARE])
    (stage / "usr/share/qemu").mkdir(parents=True, exist_ok=True)
    _ld_cache(stage)
    (stage / "l2").mkdir()
    shutil.copyfile(target / "vmlinuz", stage / "l2/vmlinuz")
    shutil.copyfile(target / "initrd", stage / "l2/initrd")
    (stage / "l2/append").write_text(f"{COMMON_APPEND} turtles.level=2\n")


def _copy(tree: Path, stage: Path, paths: Sequence[str]) -> None:
    for path in paths:
        source = tree / path
        if not source.exists():
            raise GuestError(f"none of the packages contains {path}")
        destination = stage / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)  # links are followed: a library is copied under its soname
        destination.chmod(0o755)


def _ld_cache(stage: Path) -> None:
    """The loader's cache saves L1 hundreds of failing opens; without it everything still works."""
    ldconfig = shutil.which("ldconfig") or shutil.which("ldconfig", path="/usr/sbin:/sbin")
    if ldconfig is None:
        return
    directories = [
        f"/{d}" for d in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu") if (stage / d).is_dir()
    ]
    (stage / "etc/ld.so.conf").write_text("".join(f"{d}\n" for d in directories))
    subprocess.run([ldconfig, "-X", "-r", str(stage)], capture_output=True, timeout=60, check=False)


def mke2fs() -> str | None:
    """The program that makes ext4 file systems, also where only root's PATH has it."""
    return shutil.which("mke2fs") or shutil.which("mke2fs", path="/usr/sbin:/sbin")


def make_ext4(source: Path, image: Path) -> None:
    """An ext4 image with a directory's content; no journal: these roots live for one run."""
    used = sum(
        (p.lstat().st_size + BLOCK - 1) // BLOCK * BLOCK for p in source.rglob("*") if not p.is_symlink()
    )
    inodes = sum(1 for _ in source.rglob("*")) + 256
    blocks = (used + used // 20 + FREE_BYTES) // BLOCK + inodes * 256 // BLOCK
    command = [
        *(mke2fs() or "mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-N", str(inodes)),
        *("-O", "none,extent,filetype,sparse_super,large_file,dir_index,flex_bg,uninit_bg"),
        *("-E", "root_owner=0:0,lazy_itable_init=0", "-d", str(source), str(image), str(blocks)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise GuestError(f"mke2fs failed: {(result.stderr.strip().splitlines() or ['no message'])[-1]}")
