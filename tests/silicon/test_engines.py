"""Loops of random instructions on both engines: registers, flags, memory and time must come out equal.

The translator's runs are cut at random times besides, so that each loop is entered and left in its middle.
"""

from __future__ import annotations

import os
import random
from typing import Final, Literal

import pytest

from tests.silicon.machine import CODE, DATA, STACK, Machine
from turtles.silicon import ExitReason, SiliconError, disassemble, slots
from turtles.silicon import fields as f
from turtles.silicon._silicon import STATE_SLOTS

LOOPS: Final = int(os.environ.get("TURTLES_FUZZ_LOOPS", "150"))
ITERATIONS: Final = 60
LENGTH: Final = 24
DATA_BYTES: Final = 0x3000
COUNTER, BASE, INDEX, RSP = 11, 13, 10, 4
FREE: Final = [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 14, 15]
COMPARED: Final = ["gpr", "rip", "rflags", "retired", "ymm", "mxcsr", "cr2"]


class Writer:
    """Encodes random instructions; memory operands are [r13 + disp] and [r13 + r10 + disp] in DATA."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def encode(
        self, opcode: bytes, reg: int, *, size: int, memory: bool, tail: bytes = b"", prefix: bytes = b"",
        free: bool = True, rm: int | None = None
    ) -> bytes:  # fmt: skip
        """One instruction with a ModRM byte; `size` is that of the operand, 1 to 8."""
        rng = self.rng
        rex = 0x40 | (8 if size == 8 else 0) | (4 if reg & 8 else 0)
        if memory:
            near = rng.choice([0, 8, 0xFFC, 0xFFF, 0x1001, rng.randrange(0x2000)])
            rex |= 1  # r13
            if rng.random() < 0.3:
                rex |= 2  # r10
                modrm = bytes([0x80 | (reg & 7) << 3 | 4, (INDEX & 7) << 3 | BASE & 7])
            else:
                modrm = bytes([0x80 | (reg & 7) << 3 | BASE & 7])
            modrm += near.to_bytes(4, "little")
        else:
            other = (rng.choice(FREE) if free else rng.randrange(16)) if rm is None else rm
            rex |= 1 if other & 8 else 0
            modrm = bytes([0xC0 | (reg & 7) << 3 | other & 7])
        return (b"\x66" if size == 2 else b"") + prefix + bytes([rex]) + opcode + modrm + tail

    def instruction(self) -> bytes:
        """Any of the kinds below; now and then after a REX prefix that means nothing, or something else."""
        stray = bytes([0x40 | self.rng.randrange(16)]) if self.rng.random() < 0.03 else b""
        return stray + self.rng.choice(KINDS)(self)

    def _immediate(self, size: int) -> bytes:
        return self.rng.randbytes(min(size, 4))

    def alu(self) -> bytes:
        rng = self.rng
        size, memory = rng.choice([1, 2, 4, 8]), rng.random() < 0.5
        kind = rng.randrange(8)
        if rng.random() < 0.3:
            tail = self._immediate(size)
            lock = b"\xf0" if memory and kind != 7 and rng.random() < 0.2 else b""
            return self.encode(
                b"\x80" if size == 1 else b"\x81", kind, size=size, memory=memory, tail=tail, prefix=lock
            )
        opcode = kind << 3 | (2 if rng.random() < 0.5 else 0) | (size != 1)
        return self.encode(bytes([opcode]), rng.choice(FREE), size=size, memory=memory)

    def move(self) -> bytes:
        rng = self.rng
        size, memory = rng.choice([1, 2, 4, 8]), rng.random() < 0.7
        if rng.random() < 0.3:
            opcode = rng.choice([b"\x0f\xb6", b"\x0f\xb7", b"\x0f\xbe", b"\x0f\xbf"])
            return self.encode(opcode, rng.choice(FREE), size=rng.choice([2, 4, 8]), memory=memory)
        opcode = bytes([rng.choice([0x88, 0x8A, 0x84, 0x86]) | (size != 1)])
        return self.encode(opcode, rng.choice(FREE), size=size, memory=memory)

    def shift(self) -> bytes:
        rng = self.rng
        size, memory, kind = rng.choice([1, 2, 4, 8]), rng.random() < 0.3, rng.choice([0, 1, 2, 3, 4, 5, 7])
        opcode = rng.choice([0xC0, 0xD0, 0xD2])
        tail = rng.randbytes(1) if opcode == 0xC0 else b""
        return self.encode(bytes([opcode | (size != 1)]), kind, size=size, memory=memory, tail=tail)

    def one_operand(self) -> bytes:
        rng = self.rng
        size, memory = rng.choice([1, 2, 4, 8]), rng.random() < 0.3
        if rng.random() < 0.4:  # INC, DEC
            return self.encode(b"\xfe" if size == 1 else b"\xff", rng.randrange(2), size=size, memory=memory)
        return self.encode(  # NOT, NEG, MUL, IMUL
            b"\xf6" if size == 1 else b"\xf7", rng.choice([2, 3, 4, 5]), size=size, memory=memory
        )

    def two_bytes(self) -> bytes:
        rng = self.rng
        size, memory = rng.choice([2, 4, 8]), rng.random() < 0.4
        reg = rng.choice(FREE)
        kind = rng.randrange(7)
        if kind == 0:
            return self.encode(b"\x0f\xaf", reg, size=size, memory=memory)  # IMUL
        if kind == 1:
            return self.encode(bytes([0x0F, 0x40 | rng.randrange(16)]), reg, size=size, memory=memory)  # CMOV
        if kind == 2:
            return self.encode(bytes([0x0F, 0x90 | rng.randrange(16)]), 0, size=1, memory=memory)  # SETcc
        if kind == 3:
            tail = rng.randbytes(1)
            return self.encode(b"\x0f\xba", rng.randrange(4, 8), size=size, memory=memory, tail=tail)  # BT*
        if kind == 4:
            return self.encode(
                bytes([0x0F, rng.choice([0xA4, 0xAC])]), reg, size=size, memory=memory, tail=rng.randbytes(1)
            )  # SHLD, SHRD
        if kind == 5:
            lock = b"\xf0" if memory and rng.random() < 0.3 else b""
            return self.encode(
                bytes([0x0F, rng.choice([0xB1, 0xC1])]), reg, size=size, memory=memory, prefix=lock
            )  # CMPXCHG, XADD
        prefix = rng.choice([b"", b"\xf3"])
        return self.encode(
            bytes([0x0F, rng.choice([0xBC, 0xBD])]), reg, size=size, memory=memory, prefix=prefix
        )

    def vector(self) -> bytes:
        rng = self.rng
        memory = rng.random() < 0.4
        prefix, opcode = rng.choice(
            [(b"\x66", 0xFE), (b"\x66", 0xD4), (b"\x66", 0xEF), (b"\x66", 0xEB), (b"\x66", 0x62)]
            if not memory
            else [(b"\xf3", 0x6F), (b"\xf3", 0x7F), (b"\x66", 0xD6), (b"\xf3", 0x7E), (b"\xf2", 0x10)]
        )
        return self.encode(
            bytes([0x0F, opcode]), rng.randrange(16), size=4, memory=memory, prefix=prefix, free=False
        )

    def single(self) -> bytes:
        return self.rng.choice(
            [b"\x98", b"\x48\x98", b"\x99", b"\x48\x99", b"\xf5", b"\xf8", b"\xf9", b"\x9f", b"\x9e"]
            + [bytes([0x48, 0x0F, 0xC8 | self.rng.choice([0, 1, 2, 3, 5, 6, 7])]), b"\x90"]
        )

    def stack(self) -> bytes:
        a, b = (self.rng.choice([0, 1, 2, 3, 5, 6, 7]) for _ in range(2))
        kind = self.rng.randrange(3)
        if kind == 0:
            return bytes([0x50 | a, 0x58 | b])
        if kind == 1:
            return b"\xe8\0\0\0\0" + bytes([0x58 | b])  # call to the next; pop
        return b"\x9c" + bytes([0x58 | b])  # pushfq; pop

    def skip(self) -> bytes:
        over = self.rng.choice([self.alu, self.move, self.shift, self.one_operand])()
        return bytes([0x70 | self.rng.randrange(16), len(over)]) + over

    def string(self) -> bytes:
        """A short REP MOVSB or STOSB within DATA."""
        op = self.rng.choice([0xA4, 0xAA])
        lea_rsi, lea_rdi = b"\x49\x8d\xb5", b"\x49\x8d\xbd"  # lea rsi/rdi, [r13 + disp]
        at = [self.rng.randrange(0x1F00).to_bytes(4, "little") for _ in range(2)]
        count = b"\xb9" + self.rng.randrange(200).to_bytes(4, "little")
        return lea_rsi + at[0] + lea_rdi + at[1] + count + b"\xf3" + bytes([op])


KINDS: Final = [
    *[Writer.alu] * 4,
    *[Writer.move] * 3,
    *[Writer.shift] * 2,
    Writer.one_operand,
    *[Writer.two_bytes] * 3,
    *[Writer.vector] * 2,
    Writer.single,
    Writer.stack,
    *[Writer.skip] * 2,
    Writer.string,
]


def loop(rng: random.Random) -> tuple[bytes, list[bytes]]:
    """LENGTH instructions, ITERATIONS times, then HLT."""
    writer = Writer(rng)
    mask_index = b"\x41\x81\xe2\xff\x07\0\0"  # and r10d, 7FFH
    body = [writer.instruction() for _ in range(LENGTH)]
    body.insert(0, mask_index)
    code = b"".join(body)
    end = b"\x49\xff\xcb" + b"\x0f\x85" + (-(len(code) + 9)).to_bytes(4, "little", signed=True) + b"\xf4"
    return code + end, body


class Engine:
    """A machine that runs loops from a given state."""

    def __init__(self, engine: Literal["interpreter", "translator"]) -> None:
        self.machine = Machine(engine=engine)
        if self.machine.core.engine != engine:
            pytest.skip(f"no {engine} on this host")
        self.machine.core.keep_flags()
        self.good = bytes(self.machine.slots)

    def run(self, code: bytes, seed: int, cuts: random.Random | None) -> dict[str, object]:
        m, rng = self.machine, random.Random(seed)
        m.slots.cast("B")[:] = self.good
        m.memory.write(CODE, code)
        m.memory.write(DATA, rng.randbytes(DATA_BYTES))
        for n in range(16):
            m.state[slots.RAX + n] = rng.choice(
                [0, 1, rng.getrandbits(8), rng.getrandbits(32), rng.getrandbits(64)]
            )
        m.state[slots.RAX + COUNTER], m.state[slots.RAX + BASE] = ITERATIONS, DATA
        first = STATE_SLOTS["ymm"][0]
        for n in range(64):
            m.state[first + n] = rng.getrandbits(64)
        begin = m.core.now()
        end = begin + 4 * 200 * LENGTH * ITERATIONS
        reason = -1
        while m.core.now() < end and reason != ExitReason.HLT:
            reason = m.core.enter(m.vmcs, m.core.now() + cuts.randrange(1, 5000) if cuts else end)
            assert reason in (ExitReason.HLT, ExitReason.EXTERNAL_INTERRUPT), reason
        found: dict[str, object] = {"time": m.core.now() - begin, "memory": m.memory.read(DATA, DATA_BYTES)}
        found["stack"] = m.memory.read(STACK - 64, 64)
        for name in COMPARED:
            at, count = STATE_SLOTS[name]
            values = list(m.state[at : at + count])
            found[name] = [v - begin for v in values] if name == "retired" else values
        found["rsp"] = m.slots[f.GUEST_RSP]
        return found


def test_both_engines_do_the_same() -> None:
    seed = int(os.environ.get("TURTLES_SEED", random.randrange(1 << 32)))
    print(f"TURTLES_SEED={seed}")
    rng = random.Random(seed)
    interpreter, translator = Engine("interpreter"), Engine("translator")
    for number in range(LOOPS):
        code, body = loop(rng)
        start = rng.getrandbits(32)
        try:
            expected = interpreter.run(code, start, None)
            for cuts in (None, random.Random(start)):
                found = translator.run(code, start, cuts)
                wrong = {k: (expected[k], found[k]) for k in expected if found[k] != expected[k]}
                if wrong:
                    print(*(f"{i.hex(' ')}  {disassemble(i)}" for i in body), sep="\n")
                    wrong.pop("memory", None)
                    raise AssertionError(f"loop {number}, cut {cuts is not None}: {wrong}")
        except SiliconError as error:
            raise AssertionError(f"loop {number}: {error}") from None
    assert translator.machine.core.translation, "nothing was translated"
