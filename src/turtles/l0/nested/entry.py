"""VMLAUNCH and VMRESUME of L1: from vmcs12 to an entry into L2 through vmcs02.

Checks run only for the areas that L1 wrote since they last passed; silicon checks the guest state of vmcs02
at each entry, and what it refuses becomes L1's failed entry. GPRs, CR2 and the like are the core's and stay
as L1 left them, as on hardware.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from turtles.l0.nested import msr_lists, reflect
from turtles.l0.nested.errors import VmError, fail, fail_invalid
from turtles.l0.nested.instructions import permitted
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import moves, rules, vmcs02
from turtles.l0.vmcs.vmcs01 import VPID01
from turtles.l0.vmcs.vmcs12 import CLEAR, LAUNCHED
from turtles.silicon import ExitReason, check_entry
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.ports import Slots
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

log = logging.getLogger(__name__)

QUALIFICATION_PDPTE = 2
QUALIFICATION_LINK_POINTER = 4


def vmlaunch(vcpu: Vcpu) -> None:
    """VMLAUNCH."""
    _enter(vcpu, CLEAR, VmError.VMLAUNCH_NOT_CLEAR)


def vmresume(vcpu: Vcpu) -> None:
    """VMRESUME."""
    _enter(vcpu, LAUNCHED, VmError.VMRESUME_NOT_LAUNCHED)


def _enter(vcpu: Vcpu, state: int, error: VmError) -> None:
    """The checks in the order of SDM 27.1 and of the instructions' operation."""
    if not permitted(vcpu):
        return
    c = vcpu.current12
    if c is None:
        fail_invalid(vcpu)
        return
    if vcpu.v[F.GUEST_INTERRUPTIBILITY] & C.BLOCKING_MOV_SS:
        fail(vcpu, VmError.ENTRY_BLOCKED_BY_MOV_SS)
        return
    v = c.v
    if v[F.LAUNCH_STATE] != state:
        fail(vcpu, error)
        return
    written = v[F.WRITTEN]
    if written & ~rules.WRITTEN_GUEST and not _take_over(vcpu, c, written):
        return
    if c.ept02 is not None and (c.ept02.expected >= 0 or not c.ept02.alive):
        vcpu.machine.mmu.before_l2(c)
    found = c.enter()
    if found & moves.NEW_BITMAP:
        vmcs02.merge_msr_bitmap(vcpu, c)
    if c.link_fails and not _link(vcpu, c):
        _fail_guest_state(vcpu, c, QUALIFICATION_LINK_POINTER)
        return
    if not c.uses_ept and not _load_pdptes(vcpu, c):
        _fail_guest_state(vcpu, c, QUALIFICATION_PDPTE)
        return
    if vcpu.shadow is not None and not vcpu.shadow.enter_l2(vcpu, c):
        reflect.failed_entry(vcpu, c, ExitReason.ENTRY_GUEST_STATE, 0)
        return
    if c.has_msr_lists and v[F.ENTRY_MSR_LOAD_COUNT]:
        if _refuse(vcpu, c):
            return
        bad = msr_lists.load(vcpu, v[F.ENTRY_MSR_LOAD_ADDRESS], v[F.ENTRY_MSR_LOAD_COUNT])
        if bad:
            reflect.failed_entry(vcpu, c, ExitReason.ENTRY_MSR_LOAD, bad)
            return
    vcpu.switch_to_l2(c)
    if found & moves.NOT_ACTIVE and not c.v02[F.ENTRY_INTERRUPTION_INFO] & X.VALID:
        # L2 goes on sleeping. That is L0's to do once the processor has had its say: entry checks, an open
        # window, a pending debug exception, a timer at zero. The kick ends that run otherwise.
        vcpu.core.kick()


def _take_over(vcpu: Vcpu, c: Vmcs12, written: int) -> bool:
    """What L1 wrote besides guest state is checked, merged and copied; false after VMfail."""
    v, v02 = c.v, c.v02
    looked_at = written
    if written & rules.WRITTEN_CHECKED == F.WRITTEN_HOST_STATE and vmcs02.follow_host_stack(c):
        looked_at &= ~F.WRITTEN_HOST_STATE
    if looked_at & rules.WRITTEN_CHECKED and not _check(vcpu, c):
        return False
    if looked_at & rules.WRITTEN_MERGE:
        vmcs02.merge(vcpu, c, looked_at)
    v[F.WRITTEN] = written & rules.WRITTEN_GUEST
    if looked_at & (F.WRITTEN_GUEST_OTHER | F.WRITTEN_CONTROLS):
        _link(vcpu, c)
    if looked_at & F.WRITTEN_CONTROL_EVENT:
        for slot in rules.EVENT_COPIED:
            v02[slot] = v[slot]
        c.event_given = True
    return True


def _check(vcpu: Vcpu, c: Vmcs12) -> bool:
    """Silicon's entry checks on vmcs12, against what L1's processor offers; false after VMfail."""
    machine = vcpu.machine
    c.v[F.REVISION] = machine.revision  # as L1 sees it; the shadow indicator is L0's
    rule = check_entry(c.region, machine.l1_model, machine.l1.load64)
    c.v[F.REVISION] = machine.revision | X.SHADOW_VMCS
    if rule is None or not rule.error:
        # Guest state is checked by silicon when vmcs02 is entered; the mode of whoever enters it cannot know.
        if _same_address_space(vcpu, c.v):
            return True
        vcpu.broken_rule = "host address-space size and the mode of L1 (27.2.4)"
        fail(vcpu, VmError.ENTRY_HOST)
        return False
    vcpu.broken_rule = f"{rule.name} ({rule.section})"
    log.debug("L1's entry fails: %s: %s", vcpu.broken_rule, rule.text)
    fail(vcpu, VmError(rule.error))
    return False


def _same_address_space(vcpu: Vcpu, v: Slots) -> bool:
    """An exit returns to the mode of the entry, and only IA-32e mode enters IA-32e mode (SDM 27.2.4)."""
    long = bool(vcpu.regs[S.EFER] & X.EFER_LMA)
    if bool(v[F.EXIT_CONTROLS] & C.EXIT_HOST_64) != long:
        return False
    return long or not v[F.ENTRY_CONTROLS] & C.ENTRY_IA32E


def _refuse(vcpu: Vcpu, c: Vmcs12) -> bool:
    """Whether a check of silicon's ends the entry: asked before what L0 does in the processor's place.

    What is wrong first by the order of SDM chapter 27 is what L1 is told; MSRs are loaded last.
    """
    rule = check_entry(c.vmcs02, vcpu.machine.model)
    if rule is None:
        return False
    vcpu.broken_rule = f"{rule.name} ({rule.section})"
    if rule.error:
        fail(vcpu, VmError(rule.error))
    else:
        reflect.failed_entry(vcpu, c, ExitReason.ENTRY_GUEST_STATE, rule.qualification)
    return True


def _fail_guest_state(vcpu: Vcpu, c: Vmcs12, qualification: int) -> None:
    """A check of guest state that L0 makes has failed, unless one before it has."""
    # With shadow paging tables come later, and with them a VPID; any is good enough to be asked about.
    c.v02[F.VPID] = c.v02[F.VPID] or VPID01
    if not _refuse(vcpu, c):
        reflect.failed_entry(vcpu, c, ExitReason.ENTRY_GUEST_STATE, qualification)


def refused(vcpu: Vcpu, c: Vmcs12, raw: int) -> None:
    """Silicon refused vmcs02: what L1 gets for it. `raw` is what `enter` returned."""
    rule = vcpu.core.broken_rule
    vcpu.broken_rule = f"{rule.name} ({rule.section})" if rule else ""
    log.debug("L2's entry is refused: %s", vcpu.broken_rule)
    if raw < 0:
        # A control that passed L1's checks but not in the merged form: an address that is not RAM, say.
        vcpu.switch_to_l1()
        c.v02[F.VM_INSTRUCTION_ERROR] = 0
        fail(vcpu, VmError(-raw))
        return
    reflect.failed_entry(vcpu, c, raw & 0xFFFF, c.v02[F.EXIT_QUALIFICATION])


def _link(vcpu: Vcpu, c: Vmcs12) -> bool:
    """vmcs02 shadows what vmcs12 links to; false where the link pointer fails the check (SDM 27.3.1.5).

    Aligned, in range, another VMCS, the revision fits, a shadow VMCS exactly under VMCS shadowing. What L1
    does to the revision later silicon sees at each entry.
    """
    pointer = c.v[F.GUEST_VMCS_LINK_POINTER]
    machine = vcpu.machine
    host_pa = X.NO_ADDRESS
    c.link_fails = False
    if pointer != X.NO_ADDRESS:
        revision = machine.revision | (X.SHADOW_VMCS if c.shadows else 0)
        c.link_fails = (
            bool(pointer & 0xFFF or pointer >> machine.physical_bits)
            or pointer == c.l1_pa
            or machine.l1.load64(pointer) & 0xFFFF_FFFF != revision
        )
        if c.shadows and not c.link_fails:
            host_pa = machine.l1.host_page(pointer)
    c.v02[F.GUEST_VMCS_LINK_POINTER] = host_pa
    return not c.link_fails


def _load_pdptes(vcpu: Vcpu, c: Vmcs12) -> bool:
    """Without ept12, PAE guests find PDPTEs in memory, while vmcs02 with EPT takes them from its fields."""
    v02 = c.v02
    pae = v02[F.GUEST_CR4] & X.CR4_PAE and v02[F.GUEST_CR0] & X.CR0_PG
    if not pae or v02[F.ENTRY_CONTROLS] & C.ENTRY_IA32E:
        return True
    return vcpu.load_pdptes(v02, c.v[F.GUEST_CR3])
