"""vmcs01: what L0 runs L1 with. Set up once from the model's capabilities; then only a few fields change.

The guest sees a processor with unrestricted guest, so that L0 emulates no mode. Host state is only what entry
checks: silicon has no root mode. The values that depend on the memory mode come from there.
"""

from __future__ import annotations

from typing import Final

from turtles.l0.outcome import GuestStop
from turtles.l0.ports import Slots, StartState
from turtles.l0.vmcs import bits as X
from turtles.silicon import Model
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

VPID01: Final = 1

# The capability MSRs that say which settings a control vector allows (SDM appendix A), and L0's wishes:
# the first must be had, the second may.
_PIN: Final = (0x48D, C.PIN_EXTERNAL_INTERRUPT | C.PIN_NMI | C.PIN_VIRTUAL_NMIS, 0)
_PRIMARY: Final = (
    0x48E,
    C.PRIMARY_HLT
    | C.PRIMARY_MWAIT
    | C.PRIMARY_MONITOR
    | C.PRIMARY_RDPMC
    | C.PRIMARY_CR8_LOAD
    | C.PRIMARY_CR8_STORE
    | C.PRIMARY_UNCONDITIONAL_IO
    | C.PRIMARY_MSR_BITMAPS
    | C.PRIMARY_SECONDARY,
    0,
)
_SECONDARY: Final = (
    0x48B,
    C.SECONDARY_EPT | C.SECONDARY_UNRESTRICTED,
    C.SECONDARY_VPID | C.SECONDARY_RDTSCP | C.SECONDARY_INVPCID | C.SECONDARY_XSAVES,
)
# Without EPT: page tables are shadowed, so that L0 sees CR3 and INVLPG.
_PRIMARY_SHADOW: Final = (0x48E, _PRIMARY[1] | C.PRIMARY_CR3_LOAD | C.PRIMARY_CR3_STORE | C.PRIMARY_INVLPG, 0)
_SECONDARY_SHADOW: Final = (0x48B, 0, C.SECONDARY_VPID | C.SECONDARY_RDTSCP | C.SECONDARY_XSAVES)
# PAT and EFER stay in the core between L1 and L2, as on hardware whose VMCSs do not name them.
_EXIT: Final = (0x48F, C.EXIT_SAVE_DEBUG | C.EXIT_HOST_64, 0)
_ENTRY: Final = (0x490, C.ENTRY_LOAD_DEBUG, 0)

# CR0.NE and CR4.VMXE must be 1 in VMX non-root operation, whatever L1 believes (SDM 24.8).
CR0_OWNED: Final = X.CR0_NE
CR4_OWNED: Final = X.CR4_VMXE
# In VMX operation L1 may not clear these either.
CR0_OWNED_IN_VMX: Final = X.CR0_NE | X.CR0_PE | X.CR0_PG

_SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")
_GPRS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


def settle(model: Model, msr: int, wanted: int, optional: int) -> int:
    """A control vector: what must be 1, what L0 needs, and what it likes where the model has it."""
    capability = model.vmx_msr(msr) or 0
    ones, may = capability & 0xFFFF_FFFF, capability >> 32
    if wanted & ~may:
        raise GuestStop(
            f"this processor model lacks VT-x controls that L0 needs ({msr:#x}: {wanted & ~may:#x})"
        )
    return ones | wanted | optional & may


def initialise(v: Slots, model: Model, revision: int, eptp01: int, msr_bitmap_host_pa: int) -> None:
    """Controls and host state of a zeroed VMCS region. `eptp01` is 0 where L1's page tables are shadowed."""
    v[F.REVISION] = revision
    v[F.PIN_CONTROLS] = settle(model, *_PIN)
    v[F.PRIMARY_CONTROLS] = settle(model, *(_PRIMARY if eptp01 else _PRIMARY_SHADOW))
    v[F.SECONDARY_CONTROLS] = settle(model, *(_SECONDARY if eptp01 else _SECONDARY_SHADOW))
    v[F.EXCEPTION_BITMAP] = 0 if eptp01 else 1 << X.VECTOR_PF
    v[F.EXIT_CONTROLS] = settle(model, *_EXIT)
    v[F.ENTRY_CONTROLS] = settle(model, *_ENTRY)
    v[F.EPT_POINTER] = eptp01
    v[F.VPID] = VPID01
    v[F.MSR_BITMAP] = msr_bitmap_host_pa
    v[F.CR0_MASK] = CR0_OWNED
    v[F.CR4_MASK] = CR4_OWNED
    v[F.GUEST_VMCS_LINK_POINTER] = X.NO_ADDRESS
    _host_state(v)


def _host_state(v: Slots) -> None:
    """The least that SDM 27.2.2 and 27.2.3 accept."""
    v[F.HOST_CR0] = X.CR0_PE | X.CR0_PG | X.CR0_NE
    v[F.HOST_CR4] = X.CR4_PAE | X.CR4_VMXE
    v[F.HOST_CS_SELECTOR] = 0x08
    v[F.HOST_TR_SELECTOR] = 0x10


def set_cr0(v: Slots, value: int) -> None:
    """Gives the guest CR0 = value, with what L0 owns kept as VMX operation wants it."""
    v[F.GUEST_CR0] = value | X.CR0_NE | X.CR0_ET
    v[F.CR0_READ_SHADOW] = value | X.CR0_ET


def set_cr4(v: Slots, value: int) -> None:
    """Gives the guest CR4 = value."""
    v[F.GUEST_CR4] = value | X.CR4_VMXE
    v[F.CR4_READ_SHADOW] = value


def load_start_state(v: Slots, regs: Slots, state: StartState) -> None:
    """Puts L1 at its first instruction as a loader describes it."""
    registers = state.registers
    for number, name in enumerate(_GPRS):
        regs[S.GPR + number] = registers.get(name, 0)
    v[F.GUEST_RSP] = registers.get("rsp", 0)
    v[F.GUEST_RIP] = registers.get("rip", 0)
    v[F.GUEST_RFLAGS] = registers.get("rflags", 0) | 2
    set_cr0(v, registers.get("cr0", 0))
    set_cr4(v, registers.get("cr4", 0))
    v[F.GUEST_CR3] = registers.get("cr3", 0)
    efer = registers.get("efer", 0)
    regs[S.EFER] = efer
    v[F.ENTRY_CONTROLS] = v[F.ENTRY_CONTROLS] & ~C.ENTRY_IA32E | (C.ENTRY_IA32E if efer & X.EFER_LMA else 0)
    for number, name in enumerate(_SEGMENTS):
        segment = state.segments[name]
        base = F.GUEST_ES_SELECTOR + 4 * number
        v[base] = segment.selector
        v[base + 1] = segment.base
        v[base + 2] = segment.limit
        v[base + 3] = segment.access
    v[F.GUEST_GDTR_BASE], v[F.GUEST_GDTR_LIMIT] = state.gdtr.base, state.gdtr.limit
    v[F.GUEST_IDTR_BASE], v[F.GUEST_IDTR_LIMIT] = state.idtr.base, state.idtr.limit
    v[F.GUEST_DR7] = 0x400
    v[F.GUEST_ACTIVITY] = C.ACTIVITY_ACTIVE
    v[F.GUEST_INTERRUPTIBILITY] = 0
