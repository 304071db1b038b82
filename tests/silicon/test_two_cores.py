"""Two cores over one memory: ordering, locks, self-modifying code, invalidation that reaches both.

Each core runs in its own thread under the host's clock. What the guests do is written beside their bytes.
"""

from __future__ import annotations

import struct
import threading
import time

import pytest

from tests.silicon.machine import CODE, DATA, GUEST_TABLES, STACK, Machine
from turtles.silicon import Core, ExitReason, Vmcs, controls, slots
from turtles.silicon import fields as f

CODE2 = CODE + 0x8000
"""Where the second core begins: another page than the first."""
X, Y, LOCK, COUNT, MEETING = DATA, DATA + 0x40, DATA + 0x80, DATA + 0xC0, DATA + 0x100
SECONDS = 20
ROUNDS = 1_000_000


def a32(address: int) -> bytes:
    """An absolute 32-bit address or immediate."""
    return struct.pack("<I", address)


class Pair:
    """Two cores with the same tables; each ends with HLT."""

    def __init__(self, first: bytes, second: bytes) -> None:
        self.machine = Machine(first, clock="host")
        m = self.machine
        m.memory.write(CODE2, second)
        vmcs = Vmcs(m.memory, m.page())
        vmcs.copy_from(m.vmcs, 0, 512)
        vmcs.slots[f.GUEST_RIP] = CODE2
        vmcs.slots[f.GUEST_RSP] = STACK + 0x8000
        self.cores = (m.core, Core(m.memory, m.model, "host"))
        self.vmcss = (m.vmcs, vmcs)
        self.reasons: list[int | None] = [None, None]
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in (0, 1)]

    def _run(self, n: int) -> None:
        core = self.cores[n]
        self.reasons[n] = core.enter(self.vmcss[n], core.now() + SECONDS * 10**9)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[int | None]:
        for thread in self._threads:
            thread.join()
        return self.reasons

    def run(self) -> list[int | None]:
        self.start()
        return self.finish()


def counted(body: bytes, meet: bool = True) -> bytes:
    """`body`, ROUNDS times (in ECX), then HLT; first the cores wait for each other."""
    meeting = (
        b"\xf0\xff\x04\x25"  # lock inc dword [MEETING]
        + a32(MEETING)
        + b"\xf3\x90"  # pause
        + b"\x83\x3c\x25"  # cmp dword [MEETING], 2
        + a32(MEETING)
        + b"\x02\x75\xf4"  # jne to the pause
    )
    loop = body + b"\xff\xc9"  # dec ecx
    jump = b"\x0f\x85" + struct.pack("<i", -(len(loop) + 6))  # jnz loop
    return (meeting if meet else b"") + b"\xb9" + a32(ROUNDS) + loop + jump + b"\xf4"


BOTH_HALTED = [ExitReason.HLT, ExitReason.HLT]


def test_locked_increments_lose_nothing() -> None:
    code = counted(b"\xf0\x48\xff\x04\x25" + a32(COUNT))  # lock inc qword [COUNT]
    pair = Pair(code, code)
    assert pair.run() == BOTH_HALTED
    assert pair.machine.memory.load(COUNT) == 2 * ROUNDS


def test_locked_increments_over_two_pages_lose_nothing() -> None:
    at = DATA + 0xFFE
    code = counted(b"\xf0\xff\x04\x25" + a32(at))  # lock inc dword [at]
    pair = Pair(code, code)
    assert pair.run() == BOTH_HALTED
    assert int.from_bytes(pair.machine.memory.read(at, 4), "little") == 2 * ROUNDS


def test_a_spin_lock_protects_a_plain_increment() -> None:
    take = b"\xb8\x01\0\0\0" + b"\x87\x04\x25" + a32(LOCK) + b"\x85\xc0"  # mov eax, 1; xchg [LOCK], eax; test
    body = (
        take
        + b"\x75"  # jnz: try again
        + struct.pack("b", -(len(take) + 2))
        + b"\x48\xff\x04\x25"  # inc qword [COUNT]
        + a32(COUNT)
        + b"\xc7\x04\x25"  # mov dword [LOCK], 0
        + a32(LOCK)
        + a32(0)
    )
    pair = Pair(counted(body), counted(body))
    assert pair.run() == BOTH_HALTED
    assert pair.machine.memory.load(COUNT) == 2 * ROUNDS


def test_message_passing_keeps_its_order() -> None:
    """Stores are seen in their order (SDM vol. 3, 9.2.2): who sees Y sees at least as much in X."""
    writer = counted(
        b"\x48\xff\xc2"  # inc rdx
        + b"\x48\x89\x14\x25"  # mov [X], rdx
        + a32(X)
        + b"\x48\x89\x14\x25"  # mov [Y], rdx
        + a32(Y)
    )
    load = b"\x48\x8b\x04\x25" + a32(Y) + b"\x48\x8b\x1c\x25" + a32(X)  # mov rax, [Y]; mov rbx, [X]
    reader = counted(load + b"\x48\x39\xc3" + b"\x73\x02" + b"\x0f\x0b")  # cmp rbx, rax; jae +2; ud2
    pair = Pair(writer, reader)
    assert pair.run() == BOTH_HALTED
    assert pair.machine.memory.load(Y) == ROUNDS


def test_store_buffering_is_forbidden_with_locked_stores() -> None:
    """XCHG [X], 1 then read Y on one core, the mirror image on the other: never both zero (SDM 9.2.3.9)."""

    def side(mine: int, other: int, result: int) -> bytes:
        return (
            b"\xb8\x01\0\0\0"  # mov eax, 1
            + b"\x87\x04\x25"  # xchg [mine], eax
            + a32(mine)
            + b"\x8b\x04\x25"  # mov eax, [other]
            + a32(other)
            + b"\x89\x04\x25"  # mov [result], eax
            + a32(result)
            + b"\xf4"
        )

    pair = Pair(side(X, Y, COUNT), side(Y, X, COUNT + 4))
    for _ in range(100):
        memory = pair.machine.memory
        memory.fill(DATA, 0x100)
        for n, vmcs in enumerate(pair.vmcss):
            vmcs.slots[f.GUEST_RIP] = (CODE, CODE2)[n]
            vmcs.slots[f.GUEST_ACTIVITY] = 0
        again = [threading.Thread(target=pair._run, args=(n,)) for n in (0, 1)]
        for thread in again:
            thread.start()
        for thread in again:
            thread.join()
        assert pair.reasons == BOTH_HALTED
        assert memory.load(COUNT) != 0, "both read zero"


def test_code_that_another_core_changes() -> None:
    spin = b"\xb8\x11\x11\x11\x11" + b"\x3d\x22\x22\x22\x22" + b"\x75\xf4" + b"\xf4"  # mov; cmp; jne; hlt
    # Wait a while, so that the other runs decoded code, then change its immediate.
    change = counted(b"\x90", meet=False)[:-1] + b"\xc7\x04\x25" + a32(CODE + 1) + a32(0x22222222) + b"\xf4"
    pair = Pair(spin, change)
    assert pair.run() == BOTH_HALTED


def test_code_that_python_changes_while_it_runs() -> None:
    spin = b"\xb8\x11\x11\x11\x11" + b"\x3d\x22\x22\x22\x22" + b"\x75\xf4" + b"\xf4"
    pair = Pair(spin, spin)
    pair.start()
    time.sleep(0.05)
    with pair.machine.memory.dma(CODE + 1, 4) as view:
        view[:] = b"\x22" * 4
    pair.machine.memory.write(CODE2 + 1, b"\x22" * 4)
    assert pair.finish() == BOTH_HALTED


@pytest.mark.parametrize("write", [False, True])
def test_invept_reaches_running_cores(write: bool) -> None:
    """When INVEPT returns, no core uses the mapping any more: the counters stand still."""
    forever = b"\x48\xff\x04\x25" + a32(COUNT) + b"\xeb\xf6"  # inc qword [COUNT]; jmp
    other = b"\x48\xff\x04\x25" + a32(COUNT + 8) + b"\xeb\xf6"
    pair = Pair(forever, other)
    m = pair.machine
    entry = m.ept_4k + 8 * (COUNT >> 12)
    pair.start()
    while not (m.memory.load(COUNT) and m.memory.load(COUNT + 8)):
        time.sleep(0.001)
    m.memory.store(entry, 8, COUNT & ~0xFFF | 0x31 if write else 0)
    m.memory.invept(m.slots[f.EPT_POINTER])
    before = m.memory.read(COUNT, 16)
    time.sleep(0.02)
    assert m.memory.read(COUNT, 16) == before
    assert pair.finish() == [ExitReason.EPT_VIOLATION, ExitReason.EPT_VIOLATION]
    for vmcs in pair.vmcss:
        assert vmcs.slots[f.GUEST_PHYSICAL_ADDRESS] & ~0xFFF == COUNT & ~0xFFF


def test_dirty_pages_are_taken_while_a_core_writes() -> None:
    forever = b"\x48\xff\x04\x25" + a32(COUNT) + b"\xeb\xf6"
    pair = Pair(forever, b"\xf4")
    memory = pair.machine.memory
    pair.start()
    page = COUNT >> 12
    for _ in range(5):
        deadline = time.monotonic() + SECONDS
        while page not in memory.take_dirty():
            assert time.monotonic() < deadline, "a write to the page went unnoticed"
    for core in pair.cores:
        core.stop()
    pair.finish()


def test_store_buffering_is_forbidden_with_fences() -> None:
    """MOV [X], n; MFENCE; read Y on one core, the mirror image on the other: in each round one of them sees
    the other's store (SDM vol. 3, 9.2.5). A core that finds both results old executes UD2.
    """

    def side(mine: int, other: int, result: int) -> bytes:
        # Each round: [mine] = n, fence, r = [other], [result] = r; then wait until the other is at n too.
        body = (
            b"\x48\xff\xc2"  # inc rdx
            + b"\x48\x89\x14\x25"  # mov [mine], rdx
            + a32(mine)
            + b"\x0f\xae\xf0"  # mfence
            + b"\x48\x8b\x04\x25"  # mov rax, [other]
            + a32(other)
            + b"\x48\x89\x04\x25"  # mov [result], rax
            + a32(result)
            + b"\x48\x39\x14\x25"  # 1: cmp [other's done], rdx
            + a32(MEETING + 0x40 if mine == X else MEETING + 0x80)
        )
        done = MEETING + 0x80 if mine == X else MEETING + 0x40
        # [done] = n before the wait, so that both results of round n are in memory when anybody goes on.
        body = body[:-8] + b"\x48\x89\x14\x25" + a32(done) + body[-8:]
        body += b"\x72\xf6"  # jb 1b
        # Both have stored their results of round n: one of the two read n, or more.
        check = (
            b"\x48\x39\x14\x25"  # cmp [COUNT], rdx
            + a32(COUNT)
            + b"\x73\x0c"  # jae good
            + b"\x48\x39\x14\x25"  # cmp [COUNT + 8], rdx
            + a32(COUNT + 8)
            + b"\x73\x02"  # jae good
            + b"\x0f\x0b"  # ud2
        )
        return body + check

    rounds = 20_000
    codes = [
        counted(side(*which)).replace(b"\xb9" + a32(ROUNDS), b"\xb9" + a32(rounds))
        for which in ((X, Y, COUNT), (Y, X, COUNT + 8))
    ]
    pair = Pair(*codes)
    assert pair.run() == BOTH_HALTED
    assert pair.machine.memory.load(X) == pair.machine.memory.load(Y) == rounds


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_invvpid_reaches_running_cores(kind: int) -> None:
    """When INVVPID returns, no core uses a linear mapping of that VPID any more (SDM 29.4.3)."""
    there = 0x40000000 + COUNT  # a second name, through a PDPTE of its own
    forever = b"\x48\xff\x04\x25" + a32(there) + b"\xeb\xf6"  # inc qword [there]; jmp
    other = b"\x48\xff\x04\x25" + a32(there + 8) + b"\xeb\xf6"
    pair = Pair(forever, other)
    m = pair.machine
    for vmcs in pair.vmcss:
        vmcs.slots[f.SECONDARY_CONTROLS] |= controls.SECONDARY_VPID
        vmcs.slots[f.VPID] = 7
        vmcs.slots[f.EXCEPTION_BITMAP] = 1 << 14
    pdpte = GUEST_TABLES + 0x1008
    m.memory.store(pdpte, 8, 0x87)
    pair.start()
    deadline = time.monotonic() + SECONDS
    while not (m.memory.load(COUNT) and m.memory.load(COUNT + 8)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    m.memory.store(pdpte, 8, 0)
    m.memory.invvpid(kind, 7, there)
    before = m.memory.read(COUNT, 16)
    time.sleep(0.02)
    assert m.memory.read(COUNT, 16) == before
    assert pair.finish() == [ExitReason.EXCEPTION_OR_NMI, ExitReason.EXCEPTION_OR_NMI]
    for vmcs in pair.vmcss:
        assert vmcs.slots[f.EXIT_QUALIFICATION] & ~0xF == there & ~0xF


def test_a_loop_that_another_core_rewrites_again_and_again() -> None:
    """The immediate in a hot loop changes often: no older value comes back, and the last one arrives."""
    # 1: mov eax, imm; cmp eax, ebx; jb bad; mov ebx, eax; cmp eax, 2000; jne 1b; hlt; bad: ud2
    spin = (
        b"\xb8\0\0\0\0"
        + b"\x39\xd8"
        + b"\x72\x0a"
        + b"\x89\xc3"
        + b"\x3d"
        + a32(2000)
        + b"\x75\xee"
        + b"\xf4"
        + b"\x0f\x0b"
    )
    # mov edx, 1; 2: mov [CODE + 1], edx; mov ecx, 300; 3: dec ecx; jnz 3b; inc edx; cmp edx, 2001; jne 2b
    change = (
        b"\xba\x01\0\0\0"
        + b"\x89\x14\x25"
        + a32(CODE + 1)
        + b"\xb9"
        + a32(300)
        + b"\xff\xc9\x75\xfc"
        + b"\xff\xc2"
        + b"\x81\xfa"
        + a32(2001)
        + b"\x75\xe6"
        + b"\xf4"
    )
    for _ in range(10):
        pair = Pair(spin, change)
        assert pair.run() == BOTH_HALTED
        assert pair.machine.state[slots.RBX] == 2000
