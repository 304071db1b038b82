"""L0's tactics: each changes how, not what; and each is really off when it is off."""

from __future__ import annotations

import random
from dataclasses import fields
from functools import partial

import pytest

from tests.l0.guest import CPUID, DONE, mov
from tests.l0.nested_guest import VMLAUNCH, NestedGuest, skip_and_resume
from turtles import compiled
from turtles.l0.baseline import ENCODING_OF, ByField, EnterByField, LeaveByField
from turtles.l0.interrupts import delivery
from turtles.l0.outcome import STOPPED, Outcome
from turtles.l0.tactics import Tactics
from turtles.l0.vcpu import Vcpu
from turtles.l0.vmcs import rules, vmcs02
from turtles.l0.vmcs.vmcs12 import NARROW, Vmcs12
from turtles.silicon import Copies, ExitReason
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F

ROUNDS = 8
WIDTHS = dict(NARROW)
A_MILLISECOND = 1_000_000
LOOP = b"\xbf" + ROUNDS.to_bytes(4, "little") + CPUID + b"\x4f\x75\xfb" + mov(0, 0x77) + DONE
SINGLES = [Tactics(**{field.name: False}) for field in fields(Tactics)]
PAIRS = [Tactics(bulk=False, changed_only=False), Tactics.none()]


def without(tactics: Tactics) -> str:
    return "without " + " ".join(tactics.off())


def final_state(guest: NestedGuest) -> tuple[bytes, bytes, list[int]]:
    """Guest state and exit information of vmcs12, and how many exits L2 made for each reason."""
    v = guest.c.v
    return bytes(v[rules.GUEST_STATE]), bytes(v[rules.EXIT_INFORMATION]), guest.vcpu.stats.counts[2]


@pytest.mark.parametrize("tactics", SINGLES + PAIRS, ids=without)
def test_results_do_not_depend_on_a_tactic(tactics: Tactics) -> None:
    usual = NestedGuest(LOOP, skip_and_resume(2))
    other = NestedGuest(LOOP, skip_and_resume(2), tactics=tactics)
    assert usual.result() == other.result() == 0x77
    assert final_state(usual) == final_state(other)


@pytest.mark.parametrize("tactics", [Tactics(bulk=False), Tactics.none()], ids=without)
def test_random_vmcs12s_end_alike(tactics: Tactics) -> None:
    """Entries that fail in between must not leave vmcs02 with fields that vmcs12 no longer has."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    # L1 after an exit, or a failed entry: a guest field is written again, and L2 is launched again.
    again = b"\xb8\x00\x44\0\0\x0f\x78\xc3\x89\xd8" + DONE
    for _ in range(40):
        changes = [(rng.randrange(8, 131), rng.getrandbits(rng.choice((4, 16, 64)))) for _ in range(2)]
        flags = rng.choice((2, 2, 0))
        ends: list[tuple[Outcome, bytes]] = []
        for used in (Tactics(), tactics):
            l1 = VMLAUNCH + mov(0, 0xFA11) + DONE
            guest = NestedGuest(CPUID + DONE, again, l1=l1, tactics=used, clock="virtual")
            guest.events.deadline = A_MILLISECOND
            guest.events.callbacks.append(partial(guest.machine.stop, STOPPED))
            v12 = guest.c.v
            v12[F.GUEST_RFLAGS] = flags
            for slot, value in changes:
                v12[slot] = value & WIDTHS.get(slot, (1 << 64) - 1)
            ends.append((guest.run(), bytes(v12[rules.GUEST_STATE])))
        assert ends[0] == ends[1], changes


@pytest.mark.skipif(not compiled.WHY_NOT, reason="compiled functions cannot be spied on: TURTLES_L0=python")
def test_off_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[int] = []
    looks: list[int] = []
    merge, deliver = vmcs02.merge, delivery.deliver

    def counted_merge(vcpu: Vcpu, c: Vmcs12, written: int) -> None:
        merges.append(written)
        merge(vcpu, c, written)

    def counted_look(vcpu: Vcpu) -> None:
        looks.append(vcpu.level)
        deliver(vcpu)

    monkeypatch.setattr(vmcs02, "merge", counted_merge)
    monkeypatch.setattr(delivery, "deliver", counted_look)
    found: dict[bool, tuple[object, ...]] = {}
    self = "__self__"
    for tactics in (Tactics(), Tactics.none()):
        merges.clear()
        looks.clear()
        guest = NestedGuest(LOOP, skip_and_resume(2), tactics=tactics)
        guest.c.v[F.PRIMARY_CONTROLS] |= C.PRIMARY_SECONDARY
        guest.c.v[F.SECONDARY_CONTROLS] |= C.SECONDARY_VPID
        guest.c.v[F.VPID] = 9
        assert guest.result() == 0x77
        exits = sum(map(sum, guest.vcpu.stats.counts))
        found[tactics.bulk] = (
            sum(written == rules.WRITTEN_ALL for written in merges),
            len(looks) > exits // 2,
            [bool(v[F.SECONDARY_CONTROLS] & C.SECONDARY_VPID) for v in (guest.v, guest.c.v02)],
            guest.vcpu.stats.counts[1][ExitReason.VMREAD],
            guest.vcpu.regs is guest.core.slots,
            *(type(getattr(move, self)) for move in (guest.c.enter, guest.c.leave, guest.c.load_host)),
        )  # fmt: skip
    assert found[True] == (0, False, [True, True], 0, True, Copies, Copies, Copies)
    assert found[False] == (
        ROUNDS + 1, True, [False, False], ROUNDS, False, EnterByField, LeaveByField, ByField,
    )  # fmt: skip


def test_only_groups_that_were_written_are_copied() -> None:
    """After an exit, L1 writes GUEST_RIP: of guest state its group alone is copied by the next entry."""
    guest = NestedGuest(LOOP, skip_and_resume(2), tactics=Tactics(bulk=False))
    written: list[int] = []

    @guest.machine.on_exit(ExitReason.VMRESUME, level=1)
    def spy(vcpu: Vcpu) -> bool:
        written.append(guest.c.v[F.WRITTEN] & 0xF)
        # A field of another group, behind L1's back: it must not reach vmcs02.
        guest.c.v[F.GUEST_TR_SELECTOR] = 0x28
        return False

    before = guest.c.v[F.GUEST_TR_SELECTOR]
    assert guest.result() == 0x77
    assert set(written) == {F.WRITTEN_GUEST_EXECUTION}
    assert guest.c.v02[F.GUEST_TR_SELECTOR] == before


def test_fields_have_encodings() -> None:
    encodings = {ENCODING_OF[slot] for slot in range(rules.GUEST_FIRST, rules.GUEST_COPY_END)}
    assert {E.GUEST_RIP, E.GUEST_CR0, E.GUEST_TR_BASE} <= encodings
    assert len(encodings) == rules.GUEST_COPY_END - rules.GUEST_FIRST
