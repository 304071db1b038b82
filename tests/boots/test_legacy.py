"""L2 in the modes of old software: a boot disk of our own under SeaBIOS, in QEMU of the tower's L1."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.boots.machine import boot, image_set, kept
from turtles.guests.cpio import Archive
from turtles.l0.outcome import Ending
from turtles.tools.demo import tower_options

SOURCE = Path(__file__).parent.parent / "guests/legacy/boot.S"
# Real mode (1, 2), big real mode and its limits (3), 16-bit protected mode (4), task switches (5), a task
# gate (6), virtual-8086 mode (7), 32-bit paging (8), PAE (9), and back to real mode (A).
MODES = "0123456789A"
# First program of L1, from its initrd: the disk's root serves for QEMU and KVM's modules.
INIT = """#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /modules/order); do $bb insmod "/modules/$module.ko"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do $bb usleep 20000; tries=$((tries + 1)); done
$bb mount -t ext4 /dev/vda /root
$bb mount -t tmpfs tmp /root/tmp
$bb cp /legacy/* /root/tmp/
$bb mount -o bind /dev /root/dev
exec $bb chroot /root /bin/sh /tmp/run
"""
RUN = """export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys
for name in $(cat /modules/kvm_intel); do
    case $name in kvm?intel) insmod /modules/$name.ko OPTIONS ;; *) insmod /modules/$name.ko ;; esac
done
timeout 60 qemu-system-x86_64 -accel kvm -cpu host -m 24 -nodefaults -display none -no-reboot \\
    -debugcon file:/tmp/said -device isa-debug-exit,iobase=0xf4,iosize=1 \\
    -drive file=/tmp/disk,format=raw,if=ide </dev/null
echo "L2 said $(cat /tmp/said)"
poweroff -f
"""


def disk(directory: Path) -> bytes:
    """The assembled boot disk."""
    image = directory / "disk"
    flat = ["-Wl,-Ttext=0x7c00", "-Wl,--oformat=binary", "-Wl,--build-id=none"]
    command = ["cc", "-m32", "-nostdlib", "-static", "-no-pie", *flat, str(SOURCE), "-o", str(image)]
    subprocess.run(command, check=True)
    return image.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        "",
        pytest.param("unrestricted_guest=0", marks=pytest.mark.slow),
        pytest.param("ept=0", marks=pytest.mark.slow),
    ],
)
def test_l2_goes_through_all_modes(options: str, tmp_path: Path) -> None:
    images = image_set("tower")
    overlay = Archive()
    overlay.directory("legacy")
    overlay.file("legacy-init", INIT.encode(), 0o755)
    overlay.file("legacy/run", RUN.replace("OPTIONS", options).encode())
    overlay.file("legacy/disk", disk(tmp_path))
    (tmp_path / "overlay").write_bytes(overlay.finish())
    machine = tower_options(images, "tower", "host", 200)
    machine = replace(
        machine,
        initrds=(*machine.initrds, str(tmp_path / "overlay")),
        append=f"{machine.append} rdinit=/legacy-init",
    )
    found = boot(machine, "host")
    with kept("legacy", found):
        assert found.outcome.ending is Ending.POWER_OFF, found.outcome
        said = [line for line in found.lines if line.startswith("L2 said")]
        assert said == [f"L2 said {MODES}"], found.lines[-20:]
