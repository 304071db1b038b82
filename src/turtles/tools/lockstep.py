"""`turtles lockstep`: one guest on two machines side by side; the first instruction after which they differ.

Both run under virtual time, are stopped every N nanoseconds and compared: the flat state, and every page
that either wrote. Where they differ, the same guest runs again from its start with smaller steps.
Not here: how a machine is put together, which `machine` does; what an engine is.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import click

from turtles.l0.outcome import Ending, Outcome
from turtles.silicon import Core, ExitReason, Memory, Model, Vmcs, disassemble
from turtles.silicon import fields as F
from turtles.silicon import slots as S
from turtles.silicon._silicon import STATE_SLOTS
from turtles.tools.machine import Rig, plain_core
from turtles.tools.options import Engine, Failure, RunOptions

ENGINES: Final = ("interpreter", "translator")
STEPS: Final = (1_000_000, 1000, 1)
"""Nanoseconds between two comparisons: of the first run, and of those that look closer."""
PATIENCE_S: Final = 120.0
"""A machine that lets the other one wait this long hangs."""
LAST_EXITS: Final = 5
LAST_FRAGMENTS: Final = 3
LAST_INSTRUCTIONS: Final = 70
FOREVER: Final = 1 << 62
PAGE: Final = 4096
CHUNK: Final = 16 << 20
STOPPED: Final = Outcome(Ending.STOPPED)

# Not architectural: host pointers and times there are none; what is left of a decode assist is history.
NOT_COMPARED: Final = ("entry_time", "exit_time", "assist_data", "assist_result", "replay")
GPRS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
PARTS: Final = ("selector", "base", "limit", "access")


class NoEngine(Failure):
    """This build of silicon has no such engine."""


def make_core(memory: Memory, model: Model, clock: str, engine: str) -> Core:
    """A processor that executes with `engine`."""
    if engine not in ENGINES:
        raise NoEngine(f"no engine {engine!r}; there are {', '.join(ENGINES)}")
    try:
        core = plain_core(memory, model, clock, cast(Engine, engine))
    except (ValueError, OSError) as e:
        raise NoEngine(f"the {engine} cannot be had: {e}") from None
    if core.engine != engine:
        raise NoEngine(f"this host allows no {engine}: it executes with the {core.engine}")
    core.keep_flags()
    return core


def slot_names() -> list[str]:
    """A name for every slot of the flat state, as a person would call it."""
    names = [""] * sum(count for _, count in STATE_SLOTS.values())
    for name, (first, count) in STATE_SLOTS.items():
        for n in range(count):
            names[first + n] = name if count == 1 else f"{name}[{n}]"
    for n, gpr in enumerate(GPRS):
        names[STATE_SLOTS["gpr"][0] + n] = gpr
    for n, segment in enumerate(SEGMENTS):
        for m, part in enumerate(PARTS):
            names[STATE_SLOTS["seg"][0] + 4 * n + m] = f"{segment}.{part}"
    for n in range(16):
        for m in range(4):
            names[STATE_SLOTS["ymm"][0] + 4 * n + m] = f"ymm{n}[{m}]"
    return names


NAMES: Final = slot_names()


def compared_slots(ignored: Iterable[str] = ()) -> list[int]:
    """Numbers of the slots that must be equal."""
    left_out = set[int]()
    for name in (*NOT_COMPARED, *ignored):
        if name not in STATE_SLOTS:
            raise Failure(f"the state has no field {name!r}")
        first, count = STATE_SLOTS[name]
        left_out.update(range(first, first + count))
    return [n for n in range(len(NAMES)) if n not in left_out]


@dataclass(frozen=True)
class Stop:
    """Where one machine stands at a comparison."""

    time: int
    state: tuple[int, ...]
    exits: tuple[tuple[int, int, int], ...]
    """Digest of nothing but the last real exits: time, reason, RIP."""
    exit_digest: int
    serial: bytes
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Difference:
    """What is not equal at a comparison, and what was executed since the last one."""

    before: int
    after: int
    """The window in virtual time."""
    what: list[str]
    executed: list[Executed]
    """Known where one instruction was executed at a time, or the window was searched."""
    exits: list[str]
    fragments: list[str] = field(default_factory=list)
    """What the translator made of the code that was executed last, host code included."""

    def lines(self) -> list[str]:
        """For people."""
        one = self.after - self.before <= 1
        where = f"at {self.before} ns" if one else f"between {self.before} and {self.after} ns"
        text = [f"the machines differ: equal up to {self.before} ns, different {where}"]
        if one:
            text[0] = f"the machines differ after the instruction at {self.before} ns"
        text += [f"  {e.time} RIP {e.rip:#x}: {e.text}" for e in self.executed]
        text += [f"  {line}" for line in self.what]
        text += [f"  last exits of {line}" for line in self.exits]
        for fragment in self.fragments:
            text += ["  fragment:", *(f"  {line}" for line in fragment.splitlines())]
        return text


@dataclass
class Executed:
    """What ran since the last comparison, as far as it can be told: an entry of the core each."""

    time: int
    rip: int
    text: str


class CutCore:
    """A `Core` whose runs are also ended at certain times; L0 sees those as deadlines that came early.

    `cut(now)` gives the next such time; `at_cut` is called when one is reached.
    """

    def __init__(self, core: Core, cut: Callable[[int], int], at_cut: Callable[[], None], note: bool) -> None:
        self._core = core
        self._cut = cut
        self._at_cut = at_cut
        self._next = cut(core.now())
        self._note = note
        self._last_vmcs = -1
        self.executed: list[Executed] = []
        self.last_exits: deque[tuple[int, int, int]] = deque(maxlen=LAST_EXITS)
        self.exit_digest = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def enter(self, vmcs: Vmcs, deadline: int = FOREVER) -> int:
        """As a core's, but no further than the next cut."""
        core = self._core
        if core.now() >= self._next:
            self._at_cut()
            self._next = self._cut(core.now())
        if self._note:
            self._take_note(vmcs)
        reason = core.enter(vmcs, min(deadline, self._next))
        if reason != ExitReason.EXTERNAL_INTERRUPT:  # deadlines and kicks are not the guest's doing
            record = (core.slots[S.RETIRED], reason, core.slots[S.RIP])
            self.last_exits.append(record)
            self.exit_digest = hash((self.exit_digest, record))
        return reason

    def _take_note(self, vmcs: Vmcs) -> None:
        """The instruction at RIP. After a switch of VMCS the core's address space is not yet this one's."""
        core = self._core
        rip = vmcs.slots[F.GUEST_RIP]
        text = "(first after a switch of VMCS)"
        if self._last_vmcs == vmcs.host_pa:
            core.slots[S.RIP] = rip
            code, bits = core.code()
            text = f"{code.hex(' ')}  {disassemble(code, rip, bits)}" if code else "unreadable"
        self._last_vmcs = vmcs.host_pa
        self.executed.append(Executed(core.now(), rip, text))


@dataclass
class Side:
    """One of the two machines: an engine and how its run is cut."""

    engine: str
    random_cuts: random.Random | None = None
    """Besides the comparisons, stop at random times."""
    label: str = ""


class Meeting:
    """Where the two machines' threads wait for each other; the second one to come compares."""

    def __init__(self, compare: Callable[[Stop, Stop], bool]) -> None:
        self._barrier = threading.Barrier(2, timeout=PATIENCE_S)
        self._stops: list[Stop | None] = [None, None]
        self._compare = compare
        self.going_on = True
        self.failure: BaseException | None = None

    def meet(self, side: int, stop: Stop) -> bool:
        """True to go on; false when a difference was found or the other side is gone."""
        self._stops[side] = stop
        try:
            if self._barrier.wait() == 0 and self.going_on:
                first, second = self._stops
                assert first is not None and second is not None
                try:
                    self.going_on = self._compare(first, second)
                except BaseException as error:  # it must not leave the other thread waiting
                    self.failure, self.going_on = error, False
            self._barrier.wait()
        except threading.BrokenBarrierError:
            self.going_on = False
        return self.going_on

    def leave(self) -> None:
        """Nobody waits for a thread that ended without meeting."""
        self._barrier.abort()


@dataclass
class Run:
    """Both machines from their start, compared every `step` nanoseconds from `begin` on."""

    options: RunOptions
    sides: tuple[Side, Side]
    begin: int
    step: int
    until: int
    ignored: tuple[str, ...] = ()
    meddle: Callable[[int, Rig, int], None] | None = None
    """For tests of this tool: called with side, machine and time before each comparison."""
    comparisons: int = 0
    difference: Difference | None = None
    trace: list[Executed] = field(default_factory=list)
    """What the first machine executed, where it was stopped after each instruction."""
    ended: Outcome | None = None
    _rigs: list[Rig] = field(default_factory=list)
    _before: int = 0

    def __post_init__(self) -> None:
        self._slots = compared_slots(self.ignored)

    def run(self) -> None:
        """To the end of the guest, of `until`, or to a difference."""
        meeting = Meeting(self._compare)
        serial = [bytearray(), bytearray()]
        self._rigs = [self._rig(n, meeting, serial[n]) for n in (0, 1)]
        for rig in self._rigs:
            rig.memory.take_dirty()
        self._compare_memory_at_start()
        threads = [
            threading.Thread(target=self._body, args=(n, meeting, serial[n]), daemon=True) for n in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if meeting.failure is not None:
            raise meeting.failure

    def _rig(self, number: int, meeting: Meeting, serial: bytearray) -> Rig:
        side = self.sides[number]
        meets_at = self.begin or self.step

        def cut(now: int) -> int:
            if side.random_cuts is None:
                return meets_at
            return min(meets_at, now + side.random_cuts.randrange(1, self.step + 1))

        def at_cut() -> None:
            nonlocal meets_at
            now = rig.core.now()
            if now < meets_at:
                return
            meets_at = now + self.step - (now - self.begin) % self.step
            if self.meddle is not None:
                self.meddle(number, rig, now)
            if not meeting.meet(number, self._stop(rig, serial)) or now >= self.until:
                meets_at = FOREVER
                rig.stop(STOPPED)
            executed = cast(CutCore, rig.core).executed
            if number == 0:
                self.trace += executed
            executed.clear()

        def make(memory: Memory, model: Model, clock: str) -> Core:
            core = make_core(memory, model, clock, side.engine)
            return cast(Core, CutCore(core, cut, at_cut, self.step == STEPS[-1]))

        rig = Rig(self.options, serial.extend, make)
        return rig

    def _body(self, number: int, meeting: Meeting, serial: bytearray) -> None:
        rig = self._rigs[number]
        outcome = rig.run().outcome
        if outcome is STOPPED:
            return
        if meeting.meet(number, self._stop(rig, serial, outcome)):
            self.ended = outcome
        meeting.leave()

    @property
    def rigs(self) -> list[Rig]:
        """The machines as they stand."""
        return self._rigs

    def fragments(self, executed: list[Executed]) -> list[str]:
        """The fragments that hold these instructions, the last one first, as far as they are still there."""
        found = dict[str, None]()
        for rig in self._rigs:
            for e in reversed(executed):
                text = rig.core.fragment(e.rip)
                if text is not None:
                    found[text] = None
        return list(found)[:LAST_FRAGMENTS]

    def _stop(self, rig: Rig, serial: bytearray, outcome: Outcome | None = None) -> Stop:
        core = cast(CutCore, rig.core)
        exits = tuple(core.last_exits)
        return Stop(rig.core.now(), tuple(rig.core.slots), exits, core.exit_digest, bytes(serial), outcome)

    # --- comparing ---

    def _compare_memory_at_start(self) -> None:
        a, b = (rig.memory for rig in self._rigs)
        for at in range(0, a.size, CHUNK):
            length = min(CHUNK, a.size - at)
            if a.read(at, length) != b.read(at, length):
                raise Failure("the two machines are not equal before they start")

    def _compare(self, a: Stop, b: Stop) -> bool:
        self.comparisons += 1
        what = []
        if a.outcome != b.outcome or a.time != b.time:
            what.append(f"time and outcome: {a.time} {a.outcome} | {b.time} {b.outcome}")
        for n in self._slots:
            if a.state[n] != b.state[n]:
                what.append(f"{NAMES[n]}: {a.state[n]:#x} | {b.state[n]:#x}")
        if a.exit_digest != b.exit_digest:
            what.append("exits before this point")
        if a.serial != b.serial:
            what.append(f"serial output: …{a.serial[-40:]!r} | …{b.serial[-40:]!r}")
        what += self._compare_memory()
        if not what:
            self._before = a.time
            return True
        executed = [cast(CutCore, rig.core).executed for rig in self._rigs]
        exits = [
            f"{side.label or side.engine}: "
            + ", ".join(f"{reason} at {at:#x} ({time})" for time, reason, at in stop.exits)
            for side, stop in zip(self.sides, (a, b), strict=True)
        ]
        self.difference = Difference(self._before, max(a.time, b.time), what, executed[0][:], exits)
        return False

    def _compare_memory(self) -> list[str]:
        a, b = (rig.memory for rig in self._rigs)
        what = []
        for page in sorted({*a.take_dirty(), *b.take_dirty()}):
            first, second = a.read(page * PAGE, PAGE), b.read(page * PAGE, PAGE)
            if first != second:
                at = next(n for n in range(PAGE) if first[n] != second[n])
                pair = f"{first[at : at + 8].hex()} | {second[at : at + 8].hex()}"
                what.append(f"memory at {page * PAGE + at:#x}: {pair}")
        return what


@dataclass(frozen=True)
class Result:
    """What a comparison came to."""

    difference: Difference | None
    comparisons: int
    nanoseconds: int
    ended: Outcome | None


def lockstep(
    options: RunOptions,
    sides: tuple[Side, Side],
    *,
    step: int = STEPS[0],
    until: int = FOREVER,
    ignored: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda text: None,
    meddle: Callable[[int, Rig, int], None] | None = None,
) -> Result:
    """Compare two machines over a guest's run; a difference is narrowed down to one instruction."""
    options = replace(options, clock="virtual")
    seeds = [side.random_cuts.getstate() if side.random_cuts else None for side in sides]
    run = Run(options, sides, 0, step, until, ignored, meddle)
    run.run()
    found = run.difference
    for finer in (n for n in STEPS if n < step):
        if found is None or found.after - found.before <= 1:
            break
        say(f"they differ between {found.before} and {found.after} ns; again, every {finer} ns")
        for side, seed in zip(sides, seeds, strict=True):
            if side.random_cuts is not None and seed is not None:
                side.random_cuts.setstate(seed)
        # One step more than the window: a machine may be late by an instruction that cannot be cut.
        closer = Run(options, sides, found.before, finer, found.after + finer, ignored, meddle)
        closer.run()
        if closer.difference is None:
            if finer == STEPS[-1]:
                say(
                    "one instruction at a time they do not differ: looking for the first longer run that does"
                )
                found = search(options, sides, found, closer.trace, ignored)
            break
        found = closer.difference
    return Result(found, run.comparisons, run._before, run.ended)


def search(
    options: RunOptions,
    sides: tuple[Side, Side],
    found: Difference,
    trace: list[Executed],
    ignored: tuple[str, ...],
) -> Difference:
    """A shortest run from the window's beginning, in one go, after which the machines differ.

    For an engine that executes many instructions at a time, and only so does something else.
    """
    low, high = found.before, found.after
    witness: Run | None = None
    while high - low > 1:
        middle = (low + high) // 2
        run = Run(options, sides, found.before, middle - found.before, middle, ignored)
        run.run()
        if run.difference is None:
            low = middle
        else:
            high, found, witness = middle, replace(run.difference, before=found.before), run
    last = [e for e in trace if found.before <= e.time < found.after][-LAST_INSTRUCTIONS:]
    return replace(found, executed=last, fragments=[] if witness is None else witness.fragments(last))


def sides_for(variant: str, seed: int) -> tuple[Side, Side]:
    """The machines of a variant: `cuts`, or `engines`."""
    if variant == "engines":
        return Side("interpreter"), Side("translator")
    if variant == "translator-cuts":
        return Side("translator"), Side("translator", random.Random(seed), "translator, cut")
    return Side("interpreter"), Side("interpreter", random.Random(seed), "interpreter, cut")


def run_lockstep(
    options: RunOptions, variant: str, step: int, until: int | None, seed: int, ignored: tuple[str, ...]
) -> int:
    """The command: 0 where the machines are equal to the end, 1 where they differ."""
    sides = sides_for(variant, seed)
    click.echo(f"turtles: lockstep, {variant}, every {step} ns of virtual time, seed {seed}", err=True)
    try:
        result = lockstep(
            options,
            sides,
            step=step,
            until=FOREVER if until is None else until,
            ignored=ignored,
            say=lambda text: click.echo(f"turtles: {text}", err=True),
        )
    except NoEngine as e:
        click.echo(f"turtles: skipped: {e.format_message()}", err=True)
        return 0
    if result.difference is None:
        how = f"; the guest ended: {result.ended.ending.value}" if result.ended else ""
        click.echo(f"equal at {result.comparisons} comparisons, {result.nanoseconds} ns{how}")
        return 0
    for line in result.difference.lines():
        click.echo(line)
    return 1
