"""Puts a machine together from options: memory, processor, board, L0 and the guest; runs it in a thread.

Everything that can be wrong with the input fails in `Rig(...)` with one line, before anything starts.
Not here: the terminal, and how an ending becomes an exit status.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from turtles import compiled
from turtles.board import layout
from turtles.board.board import Board, BoardOptions, StopKind, StopReason
from turtles.devices.virtio.image import Image, ImageError, open_image
from turtles.guests.kernel import load_kernel
from turtles.guests.state import InitialState, Platform
from turtles.l0.machine import WITHOUT, Machine
from turtles.l0.outcome import POWER_OFF, RESET, Ending, GuestStop, Outcome, debug_exit
from turtles.l0.ports import RamRegion
from turtles.l0.trace import Recorder, record
from turtles.l0.vcpu import Vcpu
from turtles.silicon import Core, Memory, Model, SiliconError
from turtles.silicon.slots import RETIRED
from turtles.tools import tracefile
from turtles.tools.doctor import available_memory
from turtles.tools.options import CpuChoice, Engine, Failure, RunOptions
from turtles.tools.progress import progress

POOL_SIZE: Final = 64 << 20
DEFAULT_MODEL: Final = "max"
STEP: Final = 64 << 20
SILENT_S: Final = 1.0
SLACK: Final = 64 << 20  # beside the guest's memory: this process
LAST_CONSOLE_BYTES: Final = 8192

Sink = Callable[[bytes], None]
MakeCore = Callable[[Memory, Model, str], Core]
"""Memory, model and clock; lockstep puts something between L0 and the core."""


@dataclass(frozen=True)
class Result:
    """How a run ended, and what it took."""

    outcome: Outcome
    seconds: float
    retired: int


def make_model(choice: CpuChoice, mmu: str = "multidim") -> Model:
    """The processor model that `--cpu` asks for, without what the memory mode does without."""
    name = DEFAULT_MODEL if choice.model == "default" else choice.model
    if name not in Model.NAMES:
        raise Failure(f"--cpu: no model {name!r}; there are {', '.join(Model.NAMES)}")
    for feature, _ in choice.features:
        if feature not in Model.FEATURES:
            raise Failure(f"--cpu: no feature {feature!r}; `turtles doctor --features` lists them")
    enable = [feature for feature, wanted in choice.features if wanted]
    disable = [feature for feature, wanted in choice.features if not wanted] + list(WITHOUT.get(mmu, ()))
    try:
        return Model(name, enable, disable)
    except ValueError as e:
        raise Failure(f"--cpu: {e}") from None


def make_memory(size: int) -> Memory:
    """RAM for the guest; refused where the host cannot back it."""
    free = available_memory()
    if free and size + SLACK > free:
        raise Failure(
            f"-m: {size >> 20} MiB are more than this host has left ({free >> 20} MiB); ask for less"
        )
    try:
        return Memory(size, POOL_SIZE)
    except (MemoryError, OSError, ValueError) as e:
        raise Failure(f"-m: the host refuses {size >> 20} MiB of memory: {e}") from None


def provide(memory: Memory) -> None:
    """Have the host provide all RAM now; says how far it is where that takes a while."""
    with progress("turtles") as say:
        begin = time.monotonic()
        for at in range(0, memory.size, STEP):
            if not memory.provide(at, min(STEP, memory.size - at)):
                raise Failure("--prealloc: this host cannot provide memory ahead (Linux 5.14); leave it out")
            if time.monotonic() - begin > SILENT_S:
                say("the host provides memory", at / memory.size)


def plain_core(memory: Memory, model: Model, clock: str, engine: Engine = "translator") -> Core:
    """A processor as `turtles run` has it; `Core.engine` says what it got."""
    return Core(memory, model, "virtual" if clock == "virtual" else "host", engine=engine)


class Rig:
    """One machine with its guest loaded, ready to run once: `l0`, `board`, `core`, `memory`, `guest`."""

    def __init__(self, options: RunOptions, console: Sink, make_core: MakeCore | None = None) -> None:
        self.options = options
        self._console = console
        self._last_console = bytearray()
        self._trace: tracefile.Writer | None = None
        self._recorder: Recorder | None = None
        if options.memory > layout.MAX_RAM:
            raise Failure(f"-m: a machine has {layout.MAX_RAM >> 30} GiB at most")
        self.model = make_model(options.cpu, options.mmu)
        with contextlib.ExitStack() as undo:
            images = self._open_images(undo)
            self.memory = make_memory(options.memory)
            if options.prealloc:
                provide(self.memory)
            make = make_core or functools.partial(plain_core, engine=options.engine)
            self.core = make(self.memory, self.model, options.clock)
            self.board = self._make_board(images)
            self.guest = self._load()
            self.l0 = self._make_l0()
            if options.trace is not None:
                self._trace = tracefile.Writer(options.trace, self.facts())
                self._recorder = record(self.vcpu, self._trace)
            undo.pop_all()
        self.result: Result | None = None
        self.error = ""

    def _open_images(self, undo: contextlib.ExitStack) -> list[Image]:
        images = []
        for drive in self.options.drives:
            try:
                image = open_image(drive.path, read_only=drive.readonly, snapshot=drive.snapshot)
            except ImageError as e:
                raise Failure(str(e)) from None
            undo.callback(image.close)
            images.append(image)
        return images

    def _make_board(self, images: list[Image]) -> Board:
        o = self.options
        port = (o.debug_exit.port, o.debug_exit.width) if o.debug_exit else None
        settings = BoardOptions(
            ram_size=o.memory,
            command_line=o.append,
            virtual_time=o.clock == "virtual",
            debug_exit=port,
            images=tuple(images),
        )
        try:
            return Board(
                settings,
                memory=self.memory,
                clock=self.core.now,
                kick=self.core.kick,
                stop=self._guest_stops,
                serial=self._output,
                debug_console=self._output,
            )
        except ValueError as e:
            raise Failure(str(e)) from None

    def _load(self) -> InitialState:
        platform = Platform(tuple(self.board.e820()), self.board.rsdp)
        state = load_kernel(self.options.kernel, self.options.initrds, self.options.append, platform)
        self.board.place_firmware()
        for write in state.memory:
            self.board.memory.write(write.l1_pa, write.data)
        return state

    def _make_l0(self) -> Machine:
        ranges = layout.ram_ranges(self.options.memory)
        try:
            l0 = Machine(
                self.memory,
                self.model,
                [RamRegion(l1_pa, size, host_pa) for l1_pa, host_pa, size in ranges],
                self.board.ports,
                self.board.mmio,
                mode=self.options.mmu,
                tactics=self.options.tactics,
                ept12=self.options.ept12,
            )
            l0.add_vcpu(self.core, self.board.apic, self.board.events).start(self.guest)
            self.board.memory.on_write = l0.l1.on_write
        except GuestStop as e:
            raise Failure(f"--cpu: {e}" if self.options.cpu.features else str(e)) from None
        return l0

    @property
    def vcpu(self) -> Vcpu:
        """The only virtual CPU."""
        return self.l0.vcpus[0]

    def _output(self, data: bytes) -> None:
        self._last_console += data
        del self._last_console[:-LAST_CONSOLE_BYTES]
        self._console(data)

    def _guest_stops(self, reason: StopReason) -> None:
        if reason.kind is StopKind.DEBUG_EXIT:
            self.l0.stop(debug_exit(reason.value))
        else:
            self.l0.stop(POWER_OFF if reason.kind is StopKind.POWER_OFF else RESET)

    # --- running ---

    def run(self) -> Result:
        """Run the guest to its end, in the thread that calls; never raises for what a guest does."""
        begin = time.monotonic()
        try:
            outcome = self.vcpu.run()
        except SiliconError as e:
            outcome = Outcome(Ending.ERROR, message=f"silicon: {e}")
        except Exception as e:
            # A defect of ours: one line for the user, the rest for the report.
            outcome = Outcome(Ending.ERROR, message=f"internal error: {type(e).__name__}: {e}")
            self.error = traceback.format_exc()
            if os.environ.get("TURTLES_DEBUG"):
                traceback.print_exc()
        seconds = time.monotonic() - begin
        try:
            self.board.close()
        except OSError as e:
            outcome = Outcome(Ending.ERROR, message=f"a drive could not be written: {e}")
        try:
            self._end_trace(outcome, seconds)
        except GuestStop as e:
            outcome = Outcome(Ending.ERROR, message=str(e))
        self.result = Result(outcome, seconds, self.core.slots[RETIRED])
        self._report(self.result)
        return self.result

    def _end_trace(self, outcome: Outcome, seconds: float) -> None:
        if self._trace is None or self._recorder is None:
            return
        self._recorder.finish()
        self._trace.close({"ending": outcome.ending.value, "message": outcome.message, "seconds": seconds})

    def facts(self) -> dict[str, Any]:
        """What the machine is, for statistics and traces."""
        options = self.options
        return {
            "guest": self.guest.what,
            "memory_bytes": options.memory,
            "clock": options.clock,
            "engine": self.core.engine,
            "l0": compiled.state(),
            "processor": self.model.name,
            "features": sorted(self.model.features),
            "mmu": options.mmu,
            "ept12": options.ept12.value,
            "tactics": asdict(options.tactics),
        }

    def start(self, finished: Callable[[], None]) -> threading.Thread:
        """Run in a thread of its own; `finished` is called there at the end."""

        def body() -> None:
            try:
                self.run()
            finally:
                finished()

        thread = threading.Thread(target=body, name="vcpu0", daemon=True)
        thread.start()
        return thread

    def stop(self, outcome: Outcome) -> None:
        """Ask the machine to end; from any thread."""
        self.l0.stop(outcome)

    def type(self, data: bytes) -> None:
        """Console input; from any thread."""
        self.board.type(data)

    # --- what is left behind ---

    def _report(self, result: Result) -> None:
        """Where `TURTLES_REPORTS` names a directory, a run that went wrong leaves a file there."""
        directory = os.environ.get("TURTLES_REPORTS")
        if not directory or result.outcome.ending not in (Ending.ERROR, Ending.TRIPLE_FAULT, Ending.TIMEOUT):
            return
        text = [
            f"guest: {self.guest.what}",
            f"options: {self.options}",
            f"ended: {result.outcome}",
            f"after: {result.seconds:.1f} s, {result.retired} instructions",
            self.error,
            "console:",
            self._last_console.decode("utf-8", "replace"),
        ]
        with contextlib.suppress(OSError):
            path = Path(directory) / f"guest-{os.getpid()}-{time.monotonic_ns()}.txt"
            path.write_text("\n".join(text) + "\n")


def open_output(path: str, option: str) -> IO[str]:
    """A file for a run's output, opened before the run starts so that a wrong name is said at once."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as e:
        raise Failure(f"{option} {path}: {e.strerror}") from None
