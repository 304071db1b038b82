"""L0's tactics: the optimisations of its own that a run may leave out, to measure what each is worth.

Silicon's features (`--cpu`) are another matter: they are the processor's, these are the hypervisor's. What L0
does in place of one that is off lies in `baseline`; nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True)
class Tactics:
    """Which optimisations L0 uses; all of them, unless told otherwise."""

    bulk: bool = True
    """Bulk copies: areas of a VMCS move as runs of memory. Off: field by field, each field of vmcs01 and
    vmcs02 by an access of its own as with VMREAD and VMWRITE (the paper's baseline)."""

    changed_only: bool = True
    """Copying and merging only what L1 wrote since the last entry (the paper's "copy only what changed").
    Off: each entry checks vmcs12 whole and merges all of it."""

    shadow_vmcs: bool = True
    """The paper's direct read and write (DRW), by the processor's VMCS shadowing: L1's VMREADs and VMWRITEs
    reach vmcs12 without an exit. Off: each of them exits."""

    vpid: bool = True
    """TLB tags: L1 and L2 run under VPIDs of their own. Off: each entry flushes the TLB."""

    lazy_state: bool = True
    """Registers and MSRs that a handler does not ask for stay in the processor. Off: all of them (general,
    debug, x87 and vector registers, MSRs) are copied out at each exit and back before each entry."""

    lazy_interrupts: bool = True
    """Pending interrupts and timers are looked at when something has changed. Off: before each entry."""

    offer_shadow_vmcs: bool = True
    """VMCS shadowing is offered to L1, whose guest hypervisors then read and write their VMCSs without an
    exit. Off: L1's processor lacks it."""

    offer_apicv: bool = True
    """APIC-register virtualization, virtual-interrupt delivery and posted interrupts are offered to L1, whose
    guests' EOIs and interrupts then cost fewer exits. Off: L1's processor lacks them."""

    track_tables: bool = True
    """In shadow-on-shadow, tables of L1's that stand still are write-protected, so that stores to them exit
    and are followed at once. Off: all are compared at each flush."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """As users write them: with a hyphen."""
        return tuple(field.name.replace("_", "-") for field in fields(cls))

    @classmethod
    def none(cls) -> Tactics:
        """Every one off."""
        return cls(**{field.name: False for field in fields(cls)})

    def withheld(self) -> tuple[str, ...]:
        """Features of silicon's that L1 is not offered on their account."""
        shadowing = () if self.offer_shadow_vmcs else ("vmcs_shadowing",)
        apicv = () if self.offer_apicv else ("vapic_reg", "vid", "posted_intr")
        return shadowing + apicv

    def off(self) -> tuple[str, ...]:
        """The names of those that are off."""
        return tuple(name for name in self.names() if not getattr(self, name.replace("-", "_")))


ALL: Final = Tactics()
