"""virtio block: requests, executors, images and their locks."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time as real_time
from pathlib import Path

import pytest

from tests.devices.fakes import FakeMemory, FakeTime
from tests.devices.virtio.driver import BUFFERS, FEATURES, Driver
from turtles.devices.virtio import block, pci
from turtles.devices.virtio.block import VirtioBlock
from turtles.devices.virtio.device import FEATURE_INDIRECT
from turtles.devices.virtio.executor import SEEK_NS, ThreadExecutor, VirtualTimeExecutor
from turtles.devices.virtio.image import CLUSTER, Image, ImageError, RawImage, Snapshot, open_image

HEADER, DATA, STATUS = BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x800


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"".join(bytes((i,)) * 512 for i in range(256)))
    return path


class Rig:
    def __init__(self, image: Image) -> None:
        self.time = FakeTime()
        self.memory = FakeMemory()
        self.image = image
        self.device = VirtioBlock(self.memory, image, VirtualTimeExecutor(self.time, self.time), "serial-1")
        self.driver = Driver(self.device, self.memory, features=FEATURES | FEATURE_INDIRECT)

    def request(
        self, kind: int, sector: int, *buffers: tuple[int, int, bool], indirect: bool = False
    ) -> tuple[int, int]:
        """Status byte and used length."""
        self.memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(STATUS, b"\xee")
        self.driver.chain((HEADER, 16, False), *buffers, (STATUS, 1, True), indirect=indirect)
        before = self.driver.used_index
        self.driver.offer(0)
        assert self.driver.used_index == before
        self.time.advance(10**9)
        assert self.driver.used_index == before + 1
        return self.memory.read(STATUS, 1)[0], self.driver.used(before)[1]


def test_configuration(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    assert rig.driver.get(pci.DEVICE, 8) == 256
    assert rig.driver.get(pci.DEVICE + 20, 4) == 512
    assert not rig.device.features & block.FEATURE_READ_ONLY


@pytest.mark.parametrize("indirect", [False, True])
def test_reads_into_several_segments(disk: Path, indirect: bool) -> None:
    rig = Rig(RawImage(disk))
    status, used = rig.request(
        block.IN,
        5,
        (DATA, 100, True),
        (DATA + 0x400, 412, True),
        (DATA + 0x800, 512, True),
        indirect=indirect,
    )
    assert (status, used) == (0, 1025)
    assert rig.memory.read(DATA, 100) == bytes((5,)) * 100
    assert rig.memory.read(DATA + 0x400, 412) == bytes((5,)) * 412
    assert rig.memory.read(DATA + 0x800, 512) == bytes((6,)) * 512


def test_writes_and_flush_reach_the_file(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    rig.memory.write(DATA, b"x" * 512)
    assert rig.request(block.OUT, 7, (DATA, 512, False)) == (0, 1)
    assert rig.request(block.FLUSH, 0) == (0, 1)
    assert disk.read_bytes()[7 * 512 : 8 * 512] == b"x" * 512


def test_get_id_and_unknown_requests(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    assert rig.request(block.GET_ID, 0, (DATA, 20, True)) == (0, 21)
    assert rig.memory.read(DATA, 20) == b"serial-1".ljust(20, b"\0")
    assert rig.request(99, 0, (DATA, 512, True)) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "sector", "buffer"),
    [
        (block.IN, 256, (DATA, 512, True)),
        (block.IN, 255, (DATA, 1024, True)),
        (block.OUT, (1 << 64) - 1, (DATA, 512, False)),
        (block.IN, 0, (DATA, 511, True)),
        (block.IN, 0, (1 << 40, 512, True)),
        (block.OUT, 0, (1 << 40, 512, False)),
        (block.IN, 0, (DATA, 0xFFFF_FE00, True)),
    ],
)
def test_bad_requests_fail_alone(disk: Path, kind: int, sector: int, buffer: tuple[int, int, bool]) -> None:
    rig = Rig(RawImage(disk))
    before = disk.read_bytes()
    assert rig.request(kind, sector, buffer)[0] == 1
    assert disk.read_bytes() == before
    assert not rig.driver.status & pci.NEEDS_RESET


def test_read_only_images_refuse_writes(disk: Path) -> None:
    before = disk.read_bytes()
    rig = Rig(open_image(disk, read_only=True))
    assert rig.device.features & block.FEATURE_READ_ONLY
    assert rig.request(block.OUT, 0, (DATA, 512, False))[0] == 1
    assert disk.read_bytes() == before


def test_snapshot_keeps_writes_in_memory(disk: Path) -> None:
    before = disk.read_bytes()
    rig = Rig(open_image(disk, snapshot=True))
    rig.memory.write(DATA, b"y" * 1024)
    assert rig.request(block.OUT, 127, (DATA, 1024, False))[0] == 0  # crosses a cluster
    rig.memory.write(DATA, bytes(2048))
    assert rig.request(block.IN, 126, (DATA, 2048, True))[0] == 0
    assert rig.memory.read(DATA, 2048) == bytes((126,)) * 512 + b"y" * 1024 + bytes((129,)) * 512
    assert disk.read_bytes() == before


def test_snapshot_equals_a_model(disk: Path) -> None:
    import random

    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    base = RawImage(disk, read_only=True)
    snapshot, model = Snapshot(base), bytearray(disk.read_bytes())
    for _ in range(300):
        length = rng.choice((512, 4096, CLUSTER))
        offset = rng.randrange(0, len(model) - length + 1, 512)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            snapshot.write(offset, data)
            model[offset : offset + length] = data
        else:
            assert snapshot.read(offset, length) == model[offset : offset + length]


def test_host_errors_become_io_errors(disk: Path) -> None:
    image = RawImage(disk)
    rig = Rig(image)
    os.close(image._fd)
    try:
        assert rig.request(block.IN, 0, (DATA, 512, True))[0] == 1
    finally:
        image._fd = -1


def test_without_a_status_byte_the_device_breaks(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    rig.driver.chain((HEADER, 16, False))
    rig.driver.offer(0)
    assert rig.driver.status & pci.NEEDS_RESET


def test_completion_times_depend_on_the_requests_only(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    rig.memory.write(HEADER, struct.pack("<IIQ", block.IN, 0, 0))
    rig.driver.chain((HEADER, 16, False), (DATA, 512, True), (STATUS, 1, True))
    rig.driver.offer(0, 0)
    first, second = rig.time.deadlines()
    assert first == SEEK_NS + 529 // 2
    assert second == 2 * first


def test_reset_drops_what_is_under_way(disk: Path) -> None:
    rig = Rig(RawImage(disk))
    rig.memory.write(HEADER, struct.pack("<IIQ", block.IN, 0, 3))
    rig.driver.chain((HEADER, 16, False), (DATA, 512, True), (STATUS, 1, True))
    rig.driver.offer(0)
    rig.driver.put(20, 1, 0)
    rig.time.advance(10**9)
    assert rig.memory.read(DATA, 512) == bytes(512)
    assert rig.driver.used_index == 0


def test_more_than_the_limit_waits_and_still_completes(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "IN_FLIGHT_LIMIT", 2000)
    rig = Rig(RawImage(disk))
    rig.memory.write(HEADER, struct.pack("<IIQ", block.IN, 0, 3))
    rig.driver.chain((HEADER, 16, False), (DATA, 1024, True), (STATUS, 1, True))
    rig.driver.offer(*[0] * 10)
    assert len(rig.time.deadlines()) == 1
    rig.time.advance(10**9)
    assert rig.driver.used_index == 10


class SlowImage:
    """An image whose reads wait for permission."""

    size = 1 << 20
    read_only = False

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.threads: set[str] = set()
        self.writes: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.go.wait(10)
        return b"z" * length

    def write(self, offset: int, data: bytes) -> None:
        assert self.go.wait(10)
        self.writes.append(offset)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def threaded() -> tuple[Driver, FakeTime, SlowImage, VirtioBlock]:
    image, time, memory = SlowImage(), FakeTime(), FakeMemory()
    device = VirtioBlock(memory, image, ThreadExecutor(time, "disk"))
    return Driver(device, memory), time, image, device


def wait_for(time: FakeTime) -> None:
    deadline = real_time.monotonic() + 10
    while not time.posted:
        assert real_time.monotonic() < deadline
        real_time.sleep(0.001)


def test_the_disk_works_in_its_own_thread() -> None:
    driver, time, image, device = threaded()
    driver.memory.write(HEADER, struct.pack("<IIQ", block.IN, 0, 3))
    driver.chain((HEADER, 16, False), (DATA, 512, True), (STATUS, 1, True))
    driver.offer(0)  # returns although the read waits
    assert driver.used_index == 0
    image.go.set()
    wait_for(time)
    assert driver.used_index == 0  # the ring changes in the processor's thread only
    time.run_posted()
    assert driver.used(0) == (0, 513)
    assert driver.memory.read(DATA, 512) == b"z" * 512
    assert image.threads == {"disk"}
    device.close()


def test_reset_waits_for_the_thread() -> None:
    driver, time, image, device = threaded()
    driver.memory.write(HEADER, struct.pack("<IIQ", block.IN, 0, 3))
    driver.chain((HEADER, 16, False), (DATA, 512, True), (STATUS, 1, True))
    driver.offer(0)
    assert image.begun.wait(10), "what has not begun is dropped without waiting"
    threading.Timer(0.05, image.go.set).start()
    driver.put(20, 1, 0)
    assert image.go.is_set()
    time.run_posted()
    assert driver.used_index == 0
    device.close()


def test_close_finishes_writes() -> None:
    driver, _, image, device = threaded()
    driver.memory.write(HEADER, struct.pack("<IIQ", block.OUT, 0, 3))
    driver.chain((HEADER, 16, False), (DATA, 512, False), (STATUS, 1, True))
    driver.offer(0, 0, 0)
    image.go.set()
    device.close()
    assert image.writes == [3 * 512] * 3


def test_image_errors_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot open drive .*: No such file"):
        RawImage(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="is empty"):
        RawImage(tmp_path / "empty")
    with pytest.raises(ImageError, match="neither a file nor"):
        open_image(tmp_path, read_only=True)
    with pytest.raises(ImageError, match=r"Is a directory"):
        open_image(tmp_path)


def test_locks_between_runs(disk: Path) -> None:
    holder = "import sys; from turtles.devices.virtio.image import RawImage\n"
    holder += (
        "image = RawImage(sys.argv[1], read_only=sys.argv[2] == 'ro'); print('held', flush=True); input()"
    )
    for mode, shared in (("rw", False), ("ro", True)):
        process = subprocess.Popen(
            [sys.executable, "-c", holder, str(disk), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ImageError, match="locked by another run"):
            RawImage(disk)
        if shared:
            RawImage(disk, read_only=True).close()
        else:
            with pytest.raises(ImageError, match="locked by another run that writes it"):
                RawImage(disk, read_only=True)
        process.communicate("\n", timeout=20)
    RawImage(disk).close()


def test_a_file_of_odd_length_is_padded_to_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"q" * 700)
    image = RawImage(path)
    assert image.size == 1024
    assert image.read(512, 512) == b"q" * 188 + bytes(324)
    image.close()
