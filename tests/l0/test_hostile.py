"""A hostile L1: random VMX instructions, control registers, MSRs, device accesses, with a random L2 behind.

L1's faults go on at the next chunk of its code, so that a program gets far. Whatever it does, the run ends
with an outcome, obeys a stop, and never shows a defect of L0 or of silicon.
"""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.l0.guest import DONE
from tests.l0.helpers import Rig
from tests.l0.nested_guest import EPTP12, PD12, SHADOW_PD, VMLAUNCH, VMRESUME, NestedGuest
from turtles.l0.outcome import STOPPED, Ending
from turtles.silicon import fields as F

PROGRAMS = 25
SECONDS_EACH = 0.15
CHUNK = 64
STACK = 0x30_F000
IDT64 = 0x4000
WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17}

L1_INSTRUCTIONS = [
    bytes.fromhex(text)
    for text in (
        "0f78c3", "0f79c3", "0fc730", "660fc730", "0fc738", "f30fc730",  # VMREAD … VMPTRST, VMXON
        "0f01c1", "0f01c2", "0f01c3", "0f01c4",  # VMCALL, VMLAUNCH, VMRESUME, VMXOFF
        "660f388003", "660f388103",  # INVEPT, INVVPID
        "0f20c0", "0f22c0", "0f20e0", "0f22e0", "440f22c0",  # CR0, CR4, CR8
        "0f30", "0f32", "0fa2", "0f01d1", "e680", "e480", "48a12000e0fe00000000",
    )
]  # fmt: skip
L2_INSTRUCTIONS = [
    bytes.fromhex(text)
    for text in (
        "0fa2",
        "f4",
        "0f32",
        "0f30",
        "e480",
        "a100002000",
        "0f20c0",
        "0f22c0",
        "0f0b",
        "0f78c3",
        "f390",
    )
]
VALUES = [
    0, 1, 2, 7, 0x681E, 0x4000, 0x4002, 0x401E, 0x201A, 0x30_0000, 0x31_0000, 0x32_0000, (1 << 64) - 1,
    0xC000_0080, 0x480, 0x800, 0x6E0, 0x10, 0x8000_0031, 0x8005_0033, 0x2020, 0x26A0, 0xD01,
]  # fmt: skip


def mov64(register: int, value: int) -> bytes:
    return bytes([0x48, 0xB8 + register]) + value.to_bytes(8, "little")


def l1_program(rng: random.Random) -> bytes:
    code = b""
    for _ in range(60):
        code += b"\x90" * (-len(code) % CHUNK)
        for register in range(4):
            if rng.random() < 0.5:
                value = rng.choice(VALUES) if rng.random() < 0.8 else rng.getrandbits(64)
                code += mov64(register, value)
        code += rng.choice(L1_INSTRUCTIONS) if rng.random() < 0.95 else rng.randbytes(4)
    return code


def survive_faults(guest: NestedGuest) -> None:
    """Exception handlers of L1 that go on at the next chunk."""
    go_on = bytes.fromhex("48832424c0488304244048cf")  # and [rsp], -64; add [rsp], 64; iretq
    memory = guest.machine.l1
    memory.write(0x508, (0x00AF_9B00_0000_FFFF).to_bytes(8, "little"))
    memory.write(0x3000, go_on)
    memory.write(0x3040, bytes.fromhex("4883c408") + go_on)  # past the error code
    for vector in range(32):
        handler = 0x3040 if vector in WITH_ERROR_CODE else 0x3000
        memory.write(IDT64 + 16 * vector, (handler | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little") + bytes(8))
    guest.v[F.GUEST_IDTR_BASE], guest.v[F.GUEST_IDTR_LIMIT] = IDT64, 0xFFF
    guest.v[F.GUEST_RSP] = STACK
    v12 = guest.c.v
    v12[F.HOST_RSP], v12[F.HOST_IDTR_BASE], v12[F.HOST_GDTR_BASE] = STACK, IDT64, 0x500


@pytest.mark.parametrize("mode", ["multidim", "shadow-on-shadow"])
def test_a_hostile_l1(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rig, "mode", mode)
    eptp12 = EPTP12 if mode == "multidim" else None
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    exits = 0
    for _ in range(PROGRAMS):
        code = l1_program(rng)
        l2 = b"".join(rng.choice(L2_INSTRUCTIONS) for _ in range(20))
        guest = NestedGuest(l2, code[-192:] + VMRESUME, l1=code + VMLAUNCH + DONE, eptp12=eptp12)
        survive_faults(guest)
        if eptp12 is None:
            guest.shadow_l2()
            guest.put64(
                SHADOW_PD + 8, rng.choice([rng.getrandbits(64), 0x33_0007, 0xD000_0007, SHADOW_PD | 7])
            )
        for _ in range(rng.randrange(4)):
            guest.c.v[rng.randrange(8, 131)] = rng.choice([rng.getrandbits(64), 0, rng.getrandbits(12)])
        guest.put64(PD12 + 8, rng.choice([rng.getrandbits(64), 0x33_0007, 0xD000_0007, 6]))
        begin = time.monotonic()
        timer = threading.Timer(SECONDS_EACH, guest.machine.stop, [STOPPED])
        timer.start()
        outcome = guest.vcpu.run()
        timer.cancel()
        assert time.monotonic() - begin < SECONDS_EACH + 1, "a stop was not obeyed"
        assert not guest.vcpu.failure, guest.vcpu.failure
        if outcome.ending is Ending.ERROR:
            assert "defect" not in outcome.message, outcome.message
        exits += sum(map(sum, guest.vcpu.stats.counts))
    assert exits > 100 * PROGRAMS, "the programs hardly ran"
