"""What L0 does in place of a tactic that is off (see `tactics`), chosen when a machine is made.

The usual path has no branch for any of this: the objects and handlers here stand where the fast ones would.
Results are the same, only dearer. Not here: VMCS shadowing and VPIDs, whose controls are simply left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

from turtles.l0.ports import Slots
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs import rules
from turtles.silicon import Core, ExitReason, Memory, Vmcs
from turtles.silicon import fields as F
from turtles.silicon import slots as S
from turtles.silicon._silicon import VMCS_FIELDS

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu

ENCODING_OF: Final = {slot: encoding for slot, encoding in VMCS_FIELDS.values()}
_GUEST_GROUPS: Final = (
    (F.WRITTEN_GUEST_EXECUTION, F.GUEST_EXECUTION_SLOTS),
    (F.WRITTEN_GUEST_CONTROL, F.GUEST_CONTROL_SLOTS),
    (F.WRITTEN_GUEST_SEGMENTS, F.GUEST_SEGMENTS_SLOTS),
)
_ALL_GUEST: Final = rules.WRITTEN_GUEST

Handler = Callable[["Vcpu"], None]

# --- bulk copies off ---


class Run:
    """Slots that are copied: of `vmcs`, from its slot `first`, or (none) of memory that only L0 knows."""

    def __init__(self, slots: Slots, vmcs: Vmcs | None = None, first: int = 0) -> None:
        self.slots, self.vmcs, self.first = slots, vmcs, first


class ByField:
    """As `silicon.Copies`, but fields of a VMCS that the processor uses go one by one, by encoding."""

    def __init__(
        self, memory: Memory, copies: Sequence[tuple[Run, Run]], compared: Sequence[tuple[int, bytes]]
    ) -> None:
        self._memory, self._copies, self._compared = memory, copies, compared

    def run(self) -> int:
        """See `silicon.Copies.run`."""
        different = 0
        for number, (host_pa, data) in enumerate(self._compared):
            if not self._memory.same(host_pa, data):
                different |= 1 << number
        for to, source in self._copies:
            self._copy(to, source)
        return different

    def _copy(self, to: Run, source: Run) -> None:
        for index in range(len(to.slots)):
            copy_field(to, source, index)


def copy_field(to: Run, source: Run, index: int) -> None:
    """One slot."""
    if source.vmcs is None:
        value = source.slots[index]
    else:
        value = source.vmcs.read(ENCODING_OF[source.first + index])
    if to.vmcs is None:
        to.slots[index] = value
    else:
        to.vmcs.write(ENCODING_OF[to.first + index], value)


class EnterByField(ByField):
    """An entry: of registers only the groups that L1 wrote are copied, where vmcs02 and vmcs12 agreed before.

    That is so at the first entry after an exit; L0 may change vmcs02 in between others, and entries may fail.
    """

    def __init__(
        self,
        memory: Memory,
        copies: Sequence[tuple[Run, Run]],
        compared: Sequence[tuple[int, bytes]],
        v12: Slots,
    ) -> None:
        super().__init__(memory, copies, compared)
        self._v12 = v12
        self.follows = False  # set by an exit

    def run(self) -> int:
        """See `silicon.Copies.run`."""
        different = super().run()
        self.follows = False
        self._v12[F.WRITTEN] &= ~_ALL_GUEST
        return different

    def _copy(self, to: Run, source: Run) -> None:
        written = self._v12[F.WRITTEN] if self.follows else _ALL_GUEST
        if len(to.slots) == 1:
            written = _ALL_GUEST
        for index in range(len(to.slots)):
            if written & _group_bit(to.first + index):
                copy_field(to, source, index)


class LeaveByField(ByField):
    """An exit, after which `enter` may copy less."""

    def __init__(
        self,
        memory: Memory,
        copies: Sequence[tuple[Run, Run]],
        compared: Sequence[tuple[int, bytes]],
        enter: EnterByField,
    ) -> None:
        super().__init__(memory, copies, compared)
        self._enter = enter

    def run(self) -> int:
        """See `silicon.Copies.run`."""
        self._enter.follows = True
        return super().run()


def _group_bit(slot: int) -> int:
    return next((bit for bit, area in _GUEST_GROUPS if area.start <= slot < area.stop), _ALL_GUEST)


# --- handlers ---


def _all_is_new(then: Handler) -> Handler:
    """VMLAUNCH or VMRESUME as if L1 had written every field since the last one."""

    def enter(vcpu: Vcpu) -> None:
        if vcpu.current12 is not None:
            vcpu.current12.v[F.WRITTEN] = rules.WRITTEN_ALL
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
