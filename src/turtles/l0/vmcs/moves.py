"""What moves at an entry into L2, at an exit from it, and when L1's host state is loaded: each in one call.

Which slots these are depends on vmcs12's controls alone and is worked out when they are merged (SDM 27.3.2,
28.3 and 28.5). With each go comparisons that tell whether the usual is all there is to do. Decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0 import baseline
from turtles.l0.vmcs import rules
from turtles.silicon import Copies, Vmcs
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

# What `Vmcs12.enter` may find: L2 does not start active,
NOT_ACTIVE: Final = 1 << 0
# L1's MSR bitmap is not what was merged.
NEW_BITMAP: Final = 1 << 1
# And `Vmcs12.leave`: L2 is not in the mode that vmcs12's entry controls name.
NEW_MODE: Final = 1 << 0

_CONSTANTS: Final = memoryview(bytes(8) + (1).to_bytes(8, "little")).cast("Q")
_ZERO: Final = _CONSTANTS[0:1]
_ONE: Final = _CONSTANTS[1:2]


class _Area:
    """A VMCS, or slots that only L0 knows, of which runs are copied."""

    def __init__(self, slots: memoryview[int], vmcs: Vmcs | None = None, first: int = 0) -> None:
        self.slots, self.vmcs, self.first = slots, vmcs, first

    def run(self, area: slice) -> baseline.Run:
        """Slots of a VMCS, by its own numbers."""
        return baseline.Run(
            self.slots[area.start - self.first : area.stop - self.first], self.vmcs, area.start
        )

    def one(self, slot: int) -> baseline.Run:
        """One of them."""
        return self.run(slice(slot, slot + 1))


def make(vcpu: Vcpu, c: Vmcs12) -> None:
    """The three of `c`, for its controls as they are merged now."""
    a12, a02 = _Area(c.v), _Area(c.v02, c.vmcs02)
    a01, image = _Area(vcpu.v01, vcpu.vmcs01), _Area(c.host_image, first=rules.GUEST_FIRST)
    core = _Area(vcpu.regs)
    saves = c.exit_controls
    shared = []  # both ways, where controls say so
    if c.delivers:
        shared.append(F.GUEST_INTERRUPT_STATUS)

    enter = [(a02.run(rules.GUEST_STATE), a12.run(rules.GUEST_STATE))]
    if not c.loads_debug:
        enter += [(a02.one(slot), a01.one(slot)) for slot in (F.GUEST_DR7, F.GUEST_DEBUGCTL)]
    enter += [(a02.one(slot), a12.one(slot)) for slot in shared]
    if c.uses_timer:
        enter.append((a02.one(F.GUEST_PREEMPTION_TIMER), a12.one(F.GUEST_PREEMPTION_TIMER)))
    entered = [(c.host_pa + 8 * F.GUEST_ACTIVITY, C.ACTIVITY_ACTIVE.to_bytes(8, "little"))]
    if c.bitmap12:
        entered.append((c.bitmap12_host_pa, c.bitmap12))

    # What an exit does not save stays as it was in vmcs12, and so in vmcs02.
    leave = [(a02.one(slot), a12.one(slot)) for slot in c.kept]
    leave += [(a12.run(area), a02.run(area)) for area in (rules.EXIT_INFORMATION, rules.GUEST_STATE)]
    leave += [(a12.one(slot), a02.one(slot)) for slot in shared]
    if c.uses_timer and saves & C.EXIT_SAVE_TIMER:
        leave.append((a12.one(F.GUEST_PREEMPTION_TIMER), a02.one(F.GUEST_PREEMPTION_TIMER)))
    leave.append((a12.one(F.LAUNCH_STATE), baseline.Run(_ONE)))
    # The instruction does not go on in L2: nothing is to be replayed.
    leave.append((core.one(S.ASSIST_DONE), baseline.Run(_ZERO)))
    left = [(c.vmcs02.host_pa + 8 * F.ENTRY_CONTROLS, c.v02[F.ENTRY_CONTROLS].to_bytes(8, "little"))]

    load = [(a01.run(rules.GUEST_STATE), image.run(rules.GUEST_STATE))]
    if saves & C.EXIT_LOAD_PAT:
        load.append((core.one(S.PAT), image.one(F.GUEST_PAT)))
    if saves & C.EXIT_LOAD_EFER:
        load.append((core.one(S.EFER), image.one(F.GUEST_EFER)))

    memory = vcpu.machine.memory
    if not vcpu.machine.tactics.bulk:
        entering = baseline.EnterByField(memory, enter, entered, c.v)
        c.enter = entering.run
        c.leave = baseline.LeaveByField(memory, leave, left, entering).run
        c.load_host = baseline.ByField(memory, load, []).run
        return
    c.enter = Copies(memory, [(to.slots, source.slots) for to, source in enter], entered).run
    c.leave = Copies(memory, [(to.slots, source.slots) for to, source in leave], left).run
    c.load_host = Copies(memory, [(to.slots, source.slots) for to, source in load]).run
