"""An exit from L2 becomes L1's: vmcs12 gets what the processor updated, and L1 goes on at its host state.

Two runs of slots are copied into vmcs12 and one into vmcs01; what else an exit does depends on vmcs12's VM-
exit controls (SDM 28.3 to 28.6) and was worked out when they were merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from turtles.l0.nested import msr_lists
from turtles.l0.outcome import GuestStop
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import moves
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

# VMX-abort indicators, and where the VMCS region has it (SDM 25.2, 28.7).
ABORT_SAVING_MSRS: Final = 1
ABORT_HOST_PDPTES: Final = 2
ABORT_LOADING_MSRS: Final = 4
ABORT_INDICATOR: Final = 4


def reflect(vcpu: Vcpu) -> None:
    """Gives L1 the exit that vmcs02 holds, unchanged."""
    c = vcpu.entered12
    _leave(vcpu, c, c.leave())


def reflect_as(vcpu: Vcpu, reason: int, qualification: int = 0, interruption: int = 0) -> None:
    """Gives L1 an exit that L0 made: an interrupt for L1, or a fault that ept12 is to blame for.

    Guest-physical and guest-linear address, IDT-vectoring and instruction length stay as silicon left them.
    """
    c = vcpu.entered12
    found = c.leave()
    v = c.v
    v[F.EXIT_REASON] = reason
    v[F.EXIT_QUALIFICATION] = qualification
    v[F.EXIT_INTERRUPTION_INFO] = interruption
    _leave(vcpu, c, found)


def reflect_interrupt(vcpu: Vcpu, reason: int, interruption: int) -> None:
    """An interrupt or NMI for L1 that came at an instruction boundary of L2: nothing was being delivered."""
    reflect_as(vcpu, reason, 0, interruption)
    c = vcpu.current12
    assert c is not None
    c.v[F.IDT_VECTORING_INFO] = 0


def reflect_exception(vcpu: Vcpu, vector: int, error: int | None) -> None:
    """An exception that L0 raises in L2 for an instruction that L1 let through, and that L1 intercepts."""
    info = X.VALID | X.TYPE_HARDWARE | vector
    if error is not None and vcpu.v[F.GUEST_CR0] & X.CR0_PE:
        info |= X.HAS_ERROR_CODE
        vcpu.v[F.EXIT_INTERRUPTION_ERROR] = error
    reflect_as(vcpu, ExitReason.EXCEPTION_OR_NMI, 0, info)


def _leave(vcpu: Vcpu, c: Vmcs12, found: int) -> None:
    """vmcs12 is up to date but for what is seldom there (`found`: what `c.leave` returned); on to L1."""
    if c.event_given:
        # The valid bit of the injected event is cleared (SDM 28.2).
        c.event_given = False
        c.v[F.ENTRY_INTERRUPTION_INFO] &= ~X.VALID
    if found or c.leaves_more:
        _leave_more(vcpu, c, found)
    vcpu.switch_to_l1()
    c.load_host()
    if found or c.loads_more:
        _load_more(vcpu, c)
    if c.shares_nmi_blocking:
        # Other exits than an NMI's do not change blocking by NMI (SDM 28.5.5).
        vcpu.v01[F.GUEST_INTERRUPTIBILITY] |= c.v02[F.GUEST_INTERRUPTIBILITY] & C.BLOCKING_NMI
    vcpu.reflected = True


def _leave_more(vcpu: Vcpu, c: Vmcs12, found: int) -> None:
    v = c.v
    if vcpu.shadow is not None:
        v[F.GUEST_CR3] = c.cr3
    if found & moves.NEW_MODE:
        # With unrestricted guest the exit tells L1 in the entry controls which mode L2 is in (SDM 28.3.1).
        v[F.ENTRY_CONTROLS] ^= (v[F.ENTRY_CONTROLS] ^ c.v02[F.ENTRY_CONTROLS]) & C.ENTRY_IA32E
        v[F.WRITTEN] |= F.WRITTEN_CONTROLS
    if c.shadows and c.v02[F.VM_INSTRUCTION_ERROR]:
        # L2's VMREAD or VMWRITE failed without an exit (SDM 31.2): its current VMCS is L1's.
        v[F.VM_INSTRUCTION_ERROR] = c.v02[F.VM_INSTRUCTION_ERROR]
        c.v02[F.VM_INSTRUCTION_ERROR] = 0
    if c.has_msr_lists and v[F.EXIT_MSR_STORE_COUNT]:
        stored = msr_lists.store(vcpu, v[F.EXIT_MSR_STORE_ADDRESS], v[F.EXIT_MSR_STORE_COUNT])
        if not stored:
            _abort(vcpu, c, ABORT_SAVING_MSRS, "an MSR cannot be saved at a VM exit")


def _abort(vcpu: Vcpu, c: Vmcs12, number: int, text: str) -> NoReturn:
    """A VMX abort (SDM 28.7): the indicator in L1's VMCS region, then shutdown, which ends the run."""
    vcpu.machine.l1.write(c.l1_pa + ABORT_INDICATOR, number.to_bytes(4, "little"))
    raise GuestStop(f"VMX abort in L1: {text}")


def load_host_state(vcpu: Vcpu, c: Vmcs12) -> None:
    """vmcs12's host state becomes L1's state (SDM 28.5)."""
    vcpu.switch_to_l1()
    c.load_host()
    _load_more(vcpu, c)


def _load_more(vcpu: Vcpu, c: Vmcs12) -> None:
    """What of host state is seldom there, or seldom another than that of L2."""
    v, v01, regs = c.v, vcpu.v01, vcpu.regs
    if not c.exit_controls & C.EXIT_LOAD_EFER:
        if c.host_64:
            regs[S.EFER] |= X.EFER_LMA | X.EFER_LME
        else:
            regs[S.EFER] &= ~(X.EFER_LMA | X.EFER_LME)
    if not c.uses_vpid:
        vcpu.flush_tlb()  # without VPIDs an exit flushes the host's translations too (SDM 29.4.3.1)
    if not c.host_64 and v01[F.GUEST_CR4] & X.CR4_PAE and not vcpu.load_pdptes(v01, v01[F.GUEST_CR3]):
        _abort(vcpu, c, ABORT_HOST_PDPTES, "PDPTEs of the host state cannot be loaded")
    if c.has_msr_lists and v[F.EXIT_MSR_LOAD_COUNT]:
        bad = msr_lists.load(vcpu, v[F.EXIT_MSR_LOAD_ADDRESS], v[F.EXIT_MSR_LOAD_COUNT])
        if bad:
            _abort(vcpu, c, ABORT_LOADING_MSRS, f"entry {bad} of the VM-exit MSR-load area cannot be loaded")
    if vcpu.shadow is not None:
        vcpu.shadow.load_host_state(vcpu)


def failed_entry(vcpu: Vcpu, c: Vmcs12, reason: int, qualification: int) -> None:
    """A failure while guest state or MSRs are loaded (SDM 27.8): only reason and qualification change."""
    v = c.v
    v[F.EXIT_REASON] = reason | X.ENTRY_FAILURE
    v[F.EXIT_QUALIFICATION] = qualification
    load_host_state(vcpu, c)
    vcpu.reflected = True
