"""What L0 does in place of a tactic that is off (see `tactics`), chosen when a machine is made.

The usual path has no branch for any of this: the objects and handlers here stand where the fast ones would.
Results are the same, only dearer. Not here: VMCS shadowing and VPIDs, whose controls are simply left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from turtles.l0.ports import Slots
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs import rules
from turtles.silicon import Core, ExitReason, Vmcs
from turtles.silicon import fields as F
from turtles.silicon import slots as S
from turtles.silicon._silicon import VMCS_FIELDS

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

_ENCODING_OF: Final = {slot: encoding for slot, encoding in VMCS_FIELDS.values()}
_GUEST_GROUPS: Final = (
    (F.WRITTEN_GUEST_EXECUTION, F.GUEST_EXECUTION_SLOTS),
    (F.WRITTEN_GUEST_CONTROL, F.GUEST_CONTROL_SLOTS),
    (F.WRITTEN_GUEST_SEGMENTS, F.GUEST_SEGMENTS_SLOTS),
    (F.WRITTEN_GUEST_OTHER, F.GUEST_OTHER_SLOTS),
)
_ALL_GUEST: Final = 0xF

Handler = Callable[["Vcpu"], None]


class Run(Protocol):
    """A run of a VMCS's slots that is copied whole: `a[:] = b`. With bulk copies, a memoryview."""

    def __setitem__(self, key: slice, source: Slots, /) -> None: ...


# --- bulk copies off ---


class ProcessorRun:
    """Fields of a VMCS that the processor uses: each is read and written by its encoding."""

    def __init__(self, vmcs: Vmcs, area: slice) -> None:
        self.vmcs = vmcs
        self.fields = tuple((slot - area.start, _ENCODING_OF[slot]) for slot in range(area.start, area.stop))

    def __setitem__(self, key: slice, source: Slots) -> None:
        write = self.vmcs.write
        for index, encoding in self.fields:
            write(encoding, source[index])


class Guest02Run(ProcessorRun):
    """vmcs02's guest state; `written` says which groups the next entry copies, if not all."""

    def __init__(self, vmcs: Vmcs) -> None:
        super().__init__(vmcs, rules.GUEST_STATE)
        self._of_group = [
            (bit, tuple((i, e) for i, e in self.fields if area.start <= i + rules.GUEST_FIRST < area.stop))
            for bit, area in _GUEST_GROUPS
        ]
        self.written = _ALL_GUEST
        self.follows = False  # whether vmcs02 and vmcs12 agreed when L1 got its last exit

    def __setitem__(self, key: slice, source: Slots) -> None:
        written = self.written if self.follows else _ALL_GUEST
        self.written, self.follows = _ALL_GUEST, False
        write = self.vmcs.write
        for bit, fields in self._of_group:
            if written & bit:
                for index, encoding in fields:
                    write(encoding, source[index])


class Run12:
    """Fields of a vmcs12: plain memory to L0. What is copied into it is read from vmcs02 one by one."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def __getitem__(self, index: int) -> int:
        return self._slots[index]

    def __setitem__(self, key: slice, source: ProcessorRun) -> None:
        read, slots = source.vmcs.read, self._slots
        for index, encoding in source.fields:
            slots[index] = read(encoding)
        if isinstance(source, Guest02Run):
            source.follows = True


def copy_by_field(c: Vmcs12) -> None:
    """From now on entries with `c`, and exits, copy field by field."""
    c.guest12, c.exit12 = cast(Slots, Run12(c.guest12)), cast(Slots, Run12(c.exit12))
    c.guest02 = cast(Slots, Guest02Run(c.vmcs02))
    c.exit02 = cast(Slots, ProcessorRun(c.vmcs02, rules.EXIT_INFORMATION))


def guest01(vmcs01: Vmcs, tactics: Tactics) -> Run:
    """vmcs01's guest state, as the target of vmcs12's host state."""
    return vmcs01.slots[rules.GUEST_STATE] if tactics.bulk else ProcessorRun(vmcs01, rules.GUEST_STATE)


# --- handlers ---


def _all_is_new(then: Handler) -> Handler:
    """VMLAUNCH or VMRESUME as if L1 had written every field since the last one."""

    def enter(vcpu: Vcpu) -> None:
        if vcpu.current12 is not None:
            vcpu.current12.v[F.WRITTEN] = rules.WRITTEN_ALL
        then(vcpu)

    return enter


def _groups_noted(then: Handler) -> Handler:
    """VMLAUNCH or VMRESUME that copies, field by field, the groups of guest state that L1 wrote."""

    def enter(vcpu: Vcpu) -> None:
        c = vcpu.current12
        if c is not None:
            cast(Guest02Run, c.guest02).written = c.v[F.WRITTEN]
        then(vcpu)

    return enter


def _with_a_look(then: Handler) -> Handler:
    def handle(vcpu: Vcpu) -> None:
        then(vcpu)
        vcpu.attention = True

    return handle


def adapt(handlers: list[list[Handler]], tactics: Tactics) -> None:
    """Puts the dearer handlers into the lists of a virtual CPU (by level, then reason)."""
    for reason in (ExitReason.VMLAUNCH, ExitReason.VMRESUME):
        if not tactics.changed_only:
            handlers[1][reason] = _all_is_new(handlers[1][reason])
        elif not tactics.bulk:
            handlers[1][reason] = _groups_noted(handlers[1][reason])
    if not tactics.lazy_interrupts:
        for of_level in handlers:
            of_level[:] = [_with_a_look(handler) for handler in of_level]


# --- lazy state off ---


class EagerCore:
    """A core whose registers L0 sees as a copy in memory, taken at each exit and put back at each entry."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._registers = core.slots[: S.REPLAY]  # what lies behind is silicon's own
        self.slots = memoryview(bytearray(core.slots)).cast("Q")
        self._copy = self.slots[: S.REPLAY]

    def enter(self, vmcs: Vmcs, deadline: int) -> int:
        """See `Core.enter`."""
        self._registers[:] = self._copy
        try:
            return self._core.enter(vmcs, deadline)
        finally:
            self._copy[:] = self._registers

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)


def choose_core(core: Core, tactics: Tactics) -> Core:
    """The core as L0 uses it."""
    return core if tactics.lazy_state else cast(Core, EagerCore(core))
