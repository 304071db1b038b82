"""vmcs02: built from vmcs01 and vmcs12, runs L2. Controls are merged only when vmcs12's written-mask says so.

`prepare` sets what never changes, `merge` applies `rules` to the groups of fields that L1 wrote. Guest
state is copied at each entry and back at each exit by `nested.entry` and `nested.reflect`, since the
processor changes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.ram import PAGE
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import moves, rules, virtual_apic
from turtles.silicon import controls as C
from turtles.silicon import fields as F

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

_ALL_ONES: Final = b"\xff" * PAGE


def prepare(vcpu: Vcpu, c: Vmcs12) -> None:
    """What vmcs02 holds whatever vmcs12 says: L0's host state, no links, no MSR lists."""
    v02, v01 = c.v02, vcpu.v01
    v02[F.REVISION] = vcpu.machine.revision
    v02[F.HOST_AREA] = v01[F.HOST_AREA]
    v02[F.GUEST_VMCS_LINK_POINTER] = X.NO_ADDRESS
    v02[F.MSR_BITMAP] = c.bitmap_host_pa


def follow_host_stack(c: Vmcs12) -> bool:
    """Whether host state differs from what was checked last in RSP alone, which is taken over.

    Hypervisors write RSP at nearly every entry, and no entry check looks at it.
    """
    v = c.v
    if v[F.HOST_RIP] != c.host_rip or c.host12.tobytes() != c.host_seen:
        return False
    c.host_image[F.GUEST_RSP - rules.GUEST_FIRST] = v[F.HOST_RSP]
    return True


def merge(vcpu: Vcpu, c: Vmcs12, written: int) -> None:
    """Brings vmcs02 up to date with the groups of vmcs12 in `written`."""
    v, v02 = c.v, c.v02
    if written & F.WRITTEN_CONTROLS:
        _merge_controls(vcpu, c)
    if written & (F.WRITTEN_HOST_STATE | F.WRITTEN_CONTROLS):
        make_host_image(c)
    if written & F.WRITTEN_CONTROL_MASKS:
        for slot in rules.MASKS_COPIED:
            v02[slot] = v[slot]
    if written & (F.WRITTEN_CONTROL_TIME | F.WRITTEN_CONTROLS):
        _merge_time(vcpu, c)
    if written & F.WRITTEN_CONTROL_TPR:
        v02[F.TPR_THRESHOLD] = v[F.TPR_THRESHOLD]


def _merge_controls(vcpu: Vcpu, c: Vmcs12) -> None:
    v, v02, v01 = c.v, c.v02, vcpu.v01
    l1 = vcpu.machine.l1
    pin12, primary12 = v[F.PIN_CONTROLS], v[F.PRIMARY_CONTROLS]
    # Without the primary control that activates them, secondary controls count as 0 (SDM 25.6.2).
    secondary12 = v[F.SECONDARY_CONTROLS] if primary12 & C.PRIMARY_SECONDARY else 0
    exit12 = v[F.EXIT_CONTROLS]
    c.pin12 = pin12
    c.exit_controls = exit12
    c.shares_nmi_blocking = not pin12 & C.PIN_VIRTUAL_NMIS
    c.uses_timer = bool(pin12 & C.PIN_PREEMPTION_TIMER)
    c.uses_ept = bool(secondary12 & C.SECONDARY_EPT)
    c.host_64 = bool(exit12 & C.EXIT_HOST_64)
    c.loads_debug = bool(v[F.ENTRY_CONTROLS] & C.ENTRY_LOAD_DEBUG)
    c.kept = tuple(s for bit, slots in rules.SAVED_IF if not exit12 & bit for s in slots)
    c.has_msr_lists = bool(v[F.ENTRY_MSR_LOAD_COUNT] | v[F.EXIT_MSR_STORE_COUNT] | v[F.EXIT_MSR_LOAD_COUNT])

    primary02 = rules.merge_primary(v01[F.PRIMARY_CONTROLS], primary12)
    secondary02 = rules.merge_secondary(v01[F.SECONDARY_CONTROLS], secondary12)
    if not vcpu.machine.tactics.vpid:
        secondary02 &= ~C.SECONDARY_VPID  # each entry flushes; L1's INVVPID finds nothing to do
    pin02 = rules.merge_pin(v01[F.PIN_CONTROLS], pin12)
    pin02, primary02, secondary02 = virtual_apic.merge(vcpu, c, pin02, primary02, secondary02)

    c.shadows = bool(secondary12 & C.SECONDARY_VMCS_SHADOWING)
    if c.shadows:
        # L1's own pages: L0 has nothing to add to them. What is not RAM reads as ones, so that all exits.
        for slot in (F.VMREAD_BITMAP, F.VMWRITE_BITMAP):
            host_pa = l1.host_page(v[slot])
            v02[slot] = vcpu.machine.nothing_host_pa if host_pa < 0 else host_pa

    v02[F.PIN_CONTROLS] = pin02
    v02[F.PRIMARY_CONTROLS] = primary02
    v02[F.SECONDARY_CONTROLS] = secondary02
    v02[F.EXIT_CONTROLS] = (
        v01[F.EXIT_CONTROLS]
        | C.EXIT_SAVE_PAT
        | C.EXIT_SAVE_EFER
        | (C.EXIT_SAVE_TIMER if c.uses_timer else 0)
        | (C.EXIT_ACKNOWLEDGE if pin02 & C.PIN_POSTED_INTERRUPTS else 0)
    )
    v02[F.ENTRY_CONTROLS] = v[F.ENTRY_CONTROLS] | C.ENTRY_LOAD_DEBUG
    v02[F.EXCEPTION_BITMAP] = v01[F.EXCEPTION_BITMAP] | v[F.EXCEPTION_BITMAP]
    for slot in rules.CONTROLS_COPIED:
        v02[slot] = v[slot]
    c.uses_vpid = bool(secondary02 & C.SECONDARY_VPID)
    if c.uses_vpid:
        v02[F.VPID] = vcpu.vpids.map(v[F.VPID])
    # What an exit and L1's host state take besides their copies.
    shadowed = vcpu.shadow is not None
    c.leaves_more = shadowed or c.has_msr_lists or c.shadows
    other_mode = c.host_64 != bool(v[F.ENTRY_CONTROLS] & C.ENTRY_IA32E) and not exit12 & C.EXIT_LOAD_EFER
    c.loads_more = shadowed or c.has_msr_lists or not c.uses_vpid or not c.host_64 or other_mode
    vcpu.machine.mmu.attach(c)
    c.bitmap12_host_pa = l1.host_page(v[F.MSR_BITMAP])
    if primary12 & C.PRIMARY_MSR_BITMAPS:
        merge_msr_bitmap(vcpu, c)
    else:
        c.bitmap12 = b""
        moves.make(vcpu, c)


def _merge_time(vcpu: Vcpu, c: Vmcs12) -> None:
    v, v02, v01 = c.v, c.v02, vcpu.v01
    primary12 = v[F.PRIMARY_CONTROLS]
    if not primary12 & C.PRIMARY_TSC_OFFSETTING:
        return
    scales = primary12 & C.PRIMARY_SECONDARY and v[F.SECONDARY_CONTROLS] & C.SECONDARY_TSC_SCALING
    multiplier12 = v[F.TSC_MULTIPLIER] if scales else None
    v02[F.TSC_OFFSET] = rules.merge_tsc(v01[F.TSC_OFFSET], multiplier12, v[F.TSC_OFFSET])
    if multiplier12 is not None:
        v02[F.TSC_MULTIPLIER] = multiplier12


def make_host_image(c: Vmcs12) -> None:
    """vmcs12's host state as a run of guest-state slots, so that an exit to L1 is one copy (SDM 28.5)."""
    v, image = c.v, c.host_image
    c.host_seen, c.host_rip = c.host12.tobytes(), v[F.HOST_RIP]
    first = rules.GUEST_FIRST
    for guest, host in rules.HOST_TO_GUEST:
        image[guest - first] = v[host]
    image[F.GUEST_PAT - first], image[F.GUEST_EFER - first] = v[F.HOST_PAT], v[F.HOST_EFER]
    for guest, value in rules.HOST_FIXED:
        image[guest - first] = value
    for selector, limit, access in rules.HOST_DATA_SEGMENTS:
        image[limit - first] = 0xFFFF_FFFF
        unusable = 0 if image[selector - first] else X.ACCESS_UNUSABLE
        image[access - first] = rules.ACCESS_DATA | unusable
    image[F.GUEST_CS_ACCESS - first] = rules.ACCESS_CODE_64 if c.host_64 else rules.ACCESS_CODE_32
    cr4 = v[F.HOST_CR4] | X.CR4_VMXE
    image[F.GUEST_CR4 - first] = cr4 | X.CR4_PAE if c.host_64 else cr4 & ~X.CR4_PCIDE
    image[F.GUEST_CR0 - first] = v[F.HOST_CR0] | X.CR0_ET | X.CR0_NE | X.CR0_PE | X.CR0_PG


def merge_msr_bitmap(vcpu: Vcpu, c: Vmcs12) -> None:
    """What either level traps is trapped. L1 may change its page at any time, so each entry compares it."""
    host_pa = c.bitmap12_host_pa
    memory = vcpu.machine.memory
    c.bitmap12 = memory.read(host_pa, PAGE) if host_pa >= 0 else b""
    bitmap12 = c.bitmap12 or _ALL_ONES
    bitmap01 = vcpu.machine.msr_bitmap01
    virtualized = c.v02[F.SECONDARY_CONTROLS] & (
        C.SECONDARY_X2APIC | C.SECONDARY_APIC_REGISTER | C.SECONDARY_VIRTUAL_INTERRUPT
    )
    if virtualized & C.SECONDARY_X2APIC:
        # Registers that are virtualized are L1's to give (SDM 30.5): for those only its bits count.
        bitmap01 = vcpu.machine.msr_bitmap01_x2apic(virtualized)
    merged = int.from_bytes(bitmap12, "little") | bitmap01
    memory.write(c.bitmap_host_pa, merged.to_bytes(PAGE, "little"))
    moves.make(vcpu, c)
