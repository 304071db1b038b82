"""Records of exits: sixteen words each, taken by a recorder that stands between L0 and a core.

While nothing is recorded there is no recorder, and the exit path knows nothing of it. Here is what a record
holds and how it is taken; files, trees of exits and what to make of them are the tools' matter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from turtles.l0.vmcs import bits as X
from turtles.silicon import Core, Vmcs
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

WORDS: Final = (
    "reason", "level", "context", "rip", "qualification", "guest_physical", "rax", "rcx",
    "retired", "before_ns", "entry_ns", "exit_ns", "after_ns", "ept_pointer", "reflected_as", "idle_ns",
)  # fmt: skip
"""What a record holds, 64 bits each; see `ExitRecord`."""
SIZE: Final = 8 * len(WORDS)
CAPACITY: Final = 4096
"""Records between two calls of the sink."""

VMFAIL: Final = 1 << 32
"""In the reason: the entry ended with the VM-instruction error in the low bits; nothing was executed."""
_REFLECTED: Final = 1 << 32
_RECORD: Final = struct.Struct("<14Q16x")  # what is known later comes behind
_WHOLE: Final = struct.Struct("<16Q")
_WORD: Final = struct.Struct("<Q")
_REFLECTED_AT: Final = 8 * WORDS.index("reflected_as")
_IDLE_AT: Final = 8 * WORDS.index("idle_ns")
_RIP, _QUALIFICATION, _PHYSICAL = F.GUEST_RIP, F.EXIT_QUALIFICATION, F.GUEST_PHYSICAL_ADDRESS
_RETIRED, _ENTRY, _EXIT = S.RETIRED, S.ENTRY_TIME, S.EXIT_TIME


class ExitRecord(NamedTuple):
    """An exit. Times are the core's clock: the host's, or virtual ones."""

    reason: int
    """As silicon gives it: bit 31 for a failed entry; VMFAIL for one that did not get that far."""
    level: int
    """1, or 2 for all that L0 ran through a vmcs02."""
    context: int
    """The l1_pa of the vmcs12 that L2 ran with; 0 for L1."""
    rip: int
    qualification: int
    guest_physical: int
    rax: int
    rcx: int
    retired: int
    """Instructions retired by the core until then, in all levels."""
    before_ns: int
    """When L0 asked for the entry."""
    entry_ns: int
    """When the guest began to run."""
    exit_ns: int
    """When it stopped."""
    after_ns: int
    """When L0 had control again."""
    ept_pointer: int
    """Of the vmcs12 that L2 ran with."""
    as_reason: int
    """The reason that L1 was given for it, which is another when L0 had a reason of its own (an interrupt for
    L1, say); -1 if the exit was not reflected."""
    idle_ns: int
    """How long the processor slept afterwards."""

    @property
    def basic(self) -> int:
        """The basic exit reason, or VM-instruction error."""
        return self.reason & 0xFFFF

    @property
    def refused(self) -> bool:
        """Whether the entry failed, so that nothing ran."""
        return bool(self.reason & (VMFAIL | X.ENTRY_FAILURE))

    @property
    def reflected(self) -> bool:
        """Whether L1 was given it."""
        return self.as_reason >= 0


class Sink(Protocol):
    """Where records go."""

    def exits(self, cpu: int, data: memoryview[int]) -> None:
        """Takes whole records of a virtual CPU, in order; the memory is used again afterwards."""
        ...

    def note(self, cpu: int, number: int, text: str) -> None:
        """Says more about record `number` of a virtual CPU."""
        ...


def decode(data: bytes | bytearray) -> Iterator[ExitRecord]:
    """The records in a run of bytes."""
    for w in _WHOLE.iter_unpack(data):
        # After a VMfail L1 was given no reason: vmcs12 holds an older one.
        reflected = w[14] & _REFLECTED and not w[0] & VMFAIL
        yield ExitRecord._make((*w[:14], w[14] & 0xFFFF_FFFF if reflected else -1, w[15]))


class Recorder:
    """A core as L0 uses it that keeps a record of each exit. One for each virtual CPU.

    Taking a record costs less than a microsecond. A record is complete only when the next entry is asked for:
    then it is known whether the exit was reflected.
    """

    def __init__(self, vcpu: Vcpu, sink: Sink, number: int = 0) -> None:
        self._core = vcpu.core
        self._vcpu = vcpu
        self._sink = sink
        self._number = number
        self._buffer = bytearray(SIZE * CAPACITY)
        self._at = 0  # where the last record lies; the first place is kept free for the flush's sake
        self._sunk = -1  # records that the sink has; the free place counts as one
        self._level = 0  # of the last record
        self.enter = self._make_enter()

    def _make_enter(self) -> Callable[[Vmcs, int], int]:
        core, vcpu, regs, buffer = self._core, self._vcpu, self._vcpu.regs, self._buffer
        enter, now, pack = core.enter, core.now, _RECORD.pack_into
        size, end = SIZE, len(buffer)
        last: Vmcs | None = None
        v, level, context, pointer = vcpu.v, 0, 0, 0

        def recorded(vmcs: Vmcs, deadline: int) -> int:
            nonlocal last, v, level, context, pointer
            if vmcs is not last:
                last, v, level = vmcs, vmcs.slots, vcpu.level
                self._reached(level)
                context = pointer = 0
                if level == 2:
                    c = vcpu.entered12
                    context, pointer = c.l1_pa, c.v[F.EPT_POINTER] if c.uses_ept else 0
            if vcpu.broken_rule:
                self._note()
            at = self._at + size
            if at == end:
                self.flush()
                at = size
            self._at = at
            before = now()
            raw = enter(vmcs, deadline)
            after = now()
            if raw < 0 or raw & X.ENTRY_FAILURE:
                reason = raw if raw >= 0 else VMFAIL | -raw
                pack(
                    buffer, at, reason, level, context, v[_RIP], 0, 0, regs[S.RAX], regs[S.RCX],
                    regs[_RETIRED], before, before, before, after, pointer,
                )  # fmt: skip
                return raw
            pack(
                buffer, at, raw, level, context, v[_RIP], v[_QUALIFICATION], v[_PHYSICAL], regs[0], regs[1],
                regs[_RETIRED], before, regs[_ENTRY], regs[_EXIT], after, pointer,
            )  # fmt: skip
            return raw

        return recorded

    def _reached(self, level: int) -> None:
        """Another VMCS is entered: that shows what became of the last exit."""
        came_from, self._level = self._level, level
        current = self._vcpu.current12
        if came_from == 2 and level == 1 and current is not None:
            as_reason = current.v[F.EXIT_REASON] & 0xFFFF
            _WORD.pack_into(self._buffer, self._at + _REFLECTED_AT, _REFLECTED | as_reason)

    def _note(self) -> None:
        """Says which rule an entry broke."""
        self._sink.note(self._number, self._sunk + self._at // SIZE, self._vcpu.broken_rule)
        self._vcpu.broken_rule = ""

    def wait(self, deadline: int | None = None) -> bool:
        """See `Core.wait`; the time is kept apart from L0's."""
        begin = self._core.now()
        try:
            return self._core.wait(deadline)
        finally:
            at = self._at + _IDLE_AT
            idle = _WORD.unpack_from(self._buffer, at)[0] + self._core.now() - begin
            _WORD.pack_into(self._buffer, at, idle)

    def flush(self) -> None:
        """Hands over what has been recorded."""
        end = self._at + SIZE
        if end > SIZE:
            with memoryview(self._buffer) as view:
                self._sink.exits(self._number, view[SIZE:end])
            self._sunk += self._at // SIZE
            self._at = 0

    def finish(self) -> None:
        """At the end of the run: completes the last record and hands over the rest."""
        self._reached(self._vcpu.level)
        if self._vcpu.broken_rule:
            self._note()
        self.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)


def record(vcpu: Vcpu, sink: Sink, number: int = 0) -> Recorder:
    """Puts a recorder before a virtual CPU's core; before it runs."""
    recorder = Recorder(vcpu, sink, number)
    vcpu.core = cast(Core, recorder)
    return recorder
