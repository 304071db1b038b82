"""What is copied and merged between vmcs01, vmcs12 and vmcs02, and when: as tables.

A reader can hold them against the SDM (the host-state area, 28.5) and against the paper's merge rules.
The code that applies them lies in `vmcs02` and in `nested`. Nothing here touches a VMCS.
"""

from __future__ import annotations

from typing import Final

from turtles.l0.vmcs import bits as X
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon._silicon import VMCS_GROUPS

# --- areas: runs of slots that move in one copy ---

GUEST_FIRST: Final = F.GUEST_AREA.start
# The guest state that entry and exit copy whole. Behind it lie fields with rules of their own:
# SMBASE, the VMCS link pointer (never vmcs12's own in vmcs02) and the preemption timer.
GUEST_COPY_END: Final = F.GUEST_SMBASE
# Exit information that an exit may change; the VM-instruction error behind it is not among it.
EXIT_INFORMATION: Final = slice(F.EXIT_REASON, F.VM_INSTRUCTION_ERROR)
# Host state but RSP and RIP, which come last.
HOST_BUT_STACK: Final = slice(F.HOST_AREA.start, F.HOST_RSP)
GUEST_STATE: Final = slice(F.GUEST_AREA.start, GUEST_COPY_END)

# --- written-mask: the groups of vmcs12 that must be looked at before vmcs02 runs ---

# Guest state is copied at every entry anyway; exit information never goes to vmcs02.
WRITTEN_ALL: Final = (1 << len(VMCS_GROUPS)) - 1
WRITTEN_MERGE: Final = (
    F.WRITTEN_HOST_STATE
    | F.WRITTEN_CONTROLS
    | F.WRITTEN_CONTROL_MASKS
    | F.WRITTEN_CONTROL_TIME
    | F.WRITTEN_CONTROL_TPR
    | F.WRITTEN_CONTROL_EVENT
)
# Guest state that an entry copies whole: that L1 wrote it changes nothing else.
WRITTEN_GUEST: Final = F.WRITTEN_GUEST_EXECUTION | F.WRITTEN_GUEST_CONTROL | F.WRITTEN_GUEST_SEGMENTS
WRITTEN_CHECKED: Final = F.WRITTEN_HOST_STATE | F.WRITTEN_CONTROLS

# --- controls: how vmcs01's and vmcs12's meet (paper, "merge rules") ---

# Pin-based: OR, but for those that follow vmcs12 alone.
PIN_FROM_12: Final = C.PIN_PREEMPTION_TIMER | C.PIN_POSTED_INTERRUPTS
# Primary: vmcs01's without these, OR vmcs12's.
PRIMARY_NOT_FROM_01: Final = (
    C.PRIMARY_INTERRUPT_WINDOW
    | C.PRIMARY_NMI_WINDOW
    | C.PRIMARY_TPR_SHADOW
    | C.PRIMARY_MONITOR_TRAP
    | C.PRIMARY_TSC_OFFSETTING
)
# I/O bitmaps are not merged: every port of L2 exits, and the routing asks vmcs12's bitmaps.
PRIMARY_NEVER: Final = C.PRIMARY_IO_BITMAPS
PRIMARY_ALWAYS: Final = C.PRIMARY_UNCONDITIONAL_IO | C.PRIMARY_SECONDARY
# Secondary: exiting bits OR; the enabling bits from vmcs12 alone; EPT is L0's own.
SECONDARY_EXITING: Final = (
    C.SECONDARY_DESCRIPTOR_TABLE
    | C.SECONDARY_WBINVD
    | C.SECONDARY_PAUSE_LOOP
    | C.SECONDARY_RDRAND
    | C.SECONDARY_ENCLS
    | C.SECONDARY_RDSEED
)
SECONDARY_FROM_12: Final = (
    C.SECONDARY_APIC_ACCESSES
    | C.SECONDARY_RDTSCP
    | C.SECONDARY_X2APIC
    | C.SECONDARY_VPID
    | C.SECONDARY_UNRESTRICTED
    | C.SECONDARY_APIC_REGISTER
    | C.SECONDARY_VIRTUAL_INTERRUPT
    | C.SECONDARY_INVPCID
    | C.SECONDARY_VMCS_SHADOWING
    | C.SECONDARY_XSAVES
    | C.SECONDARY_TSC_SCALING
)
# PML appears in neither set: it is never inherited. VMCS shadowing of vmcs01 is L0's own and serves L1; that
# of vmcs12 is L1's and serves L2.

# Controls that go to vmcs02 as vmcs12 has them.
CONTROLS_COPIED: Final = (
    F.PF_ERROR_MASK,
    F.PF_ERROR_MATCH,
    F.XSS_EXITING_BITMAP,
    F.PLE_GAP,
    F.PLE_WINDOW,
    F.CR3_TARGET_COUNT,
    F.CR3_TARGET0,
    F.CR3_TARGET1,
    F.CR3_TARGET2,
    F.CR3_TARGET3,
)
# CR0 and CR4: L0 traps no bit of L2's (silicon holds the bits that VMX operation fixes), so that the OR of
# the masks is vmcs12's, the shadows are vmcs12's, and what an exit writes back is the register as it stands.
MASKS_COPIED: Final = (F.CR0_MASK, F.CR4_MASK, F.CR0_READ_SHADOW, F.CR4_READ_SHADOW)
EVENT_COPIED: Final = (F.ENTRY_INTERRUPTION_INFO, F.ENTRY_ERROR_CODE, F.ENTRY_INSTRUCTION_LENGTH)

# --- guest state that an exit saves only when a VM-exit control says so (SDM 28.3.1) ---

SAVED_IF: Final = (
    (C.EXIT_SAVE_DEBUG, (F.GUEST_DR7, F.GUEST_DEBUGCTL)),
    (C.EXIT_SAVE_PAT, (F.GUEST_PAT,)),
    (C.EXIT_SAVE_EFER, (F.GUEST_EFER,)),
)

# --- host state of vmcs12, as L1 finds it after an exit (SDM 28.5) ---

# Guest field of vmcs01, host field of vmcs12.
HOST_TO_GUEST: Final = (
    (F.GUEST_CR0, F.HOST_CR0),
    (F.GUEST_CR3, F.HOST_CR3),
    (F.GUEST_CR4, F.HOST_CR4),
    (F.GUEST_RIP, F.HOST_RIP),
    (F.GUEST_RSP, F.HOST_RSP),
    (F.GUEST_ES_SELECTOR, F.HOST_ES_SELECTOR),
    (F.GUEST_CS_SELECTOR, F.HOST_CS_SELECTOR),
    (F.GUEST_SS_SELECTOR, F.HOST_SS_SELECTOR),
    (F.GUEST_DS_SELECTOR, F.HOST_DS_SELECTOR),
    (F.GUEST_FS_SELECTOR, F.HOST_FS_SELECTOR),
    (F.GUEST_GS_SELECTOR, F.HOST_GS_SELECTOR),
    (F.GUEST_TR_SELECTOR, F.HOST_TR_SELECTOR),
    (F.GUEST_FS_BASE, F.HOST_FS_BASE),
    (F.GUEST_GS_BASE, F.HOST_GS_BASE),
    (F.GUEST_TR_BASE, F.HOST_TR_BASE),
    (F.GUEST_GDTR_BASE, F.HOST_GDTR_BASE),
    (F.GUEST_IDTR_BASE, F.HOST_IDTR_BASE),
    (F.GUEST_SYSENTER_CS, F.HOST_SYSENTER_CS),
    (F.GUEST_SYSENTER_ESP, F.HOST_SYSENTER_ESP),
    (F.GUEST_SYSENTER_EIP, F.HOST_SYSENTER_EIP),
)
ACCESS_CODE_64: Final = 0xA09B
ACCESS_CODE_32: Final = 0xC09B
ACCESS_DATA: Final = 0xC093
ACCESS_TSS: Final = 0x008B
# What the exit sets whatever vmcs12 says (28.5.1 to 28.5.5).
HOST_FIXED: Final = (
    (F.GUEST_RFLAGS, 2),
    (F.GUEST_DR7, 0x400),
    (F.GUEST_CS_LIMIT, 0xFFFF_FFFF),
    (F.GUEST_TR_LIMIT, 0x67),
    (F.GUEST_TR_ACCESS, ACCESS_TSS),
    (F.GUEST_LDTR_ACCESS, X.ACCESS_UNUSABLE),
    (F.GUEST_GDTR_LIMIT, 0xFFFF),
    (F.GUEST_IDTR_LIMIT, 0xFFFF),
)
# Selector and access rights of the data segments; a null selector leaves one unusable.
HOST_DATA_SEGMENTS: Final = (
    (F.GUEST_ES_SELECTOR, F.GUEST_ES_LIMIT, F.GUEST_ES_ACCESS),
    (F.GUEST_SS_SELECTOR, F.GUEST_SS_LIMIT, F.GUEST_SS_ACCESS),
    (F.GUEST_DS_SELECTOR, F.GUEST_DS_LIMIT, F.GUEST_DS_ACCESS),
    (F.GUEST_FS_SELECTOR, F.GUEST_FS_LIMIT, F.GUEST_FS_ACCESS),
    (F.GUEST_GS_SELECTOR, F.GUEST_GS_LIMIT, F.GUEST_GS_ACCESS),
)


# --- the rules as pure functions ---


def merge_pin(pin01: int, pin12: int) -> int:
    """Pin-based controls of vmcs02."""
    return (pin01 & ~PIN_FROM_12) | pin12


def merge_primary(primary01: int, primary12: int) -> int:
    """Primary controls of vmcs02. Without a TPR shadow of L1's own, CR8 goes to L0 as it does for L1."""
    merged = (primary01 & ~PRIMARY_NOT_FROM_01) | primary12
    if primary12 & C.PRIMARY_TPR_SHADOW:
        cr8 = C.PRIMARY_CR8_LOAD | C.PRIMARY_CR8_STORE
        merged = merged & ~cr8 | primary12 & cr8
    if not primary12 & C.PRIMARY_MSR_BITMAPS:
        merged &= ~C.PRIMARY_MSR_BITMAPS  # every MSR access exits
    return (merged & ~PRIMARY_NEVER) | PRIMARY_ALWAYS


def merge_secondary(secondary01: int, secondary12: int) -> int:
    """Secondary controls of vmcs02."""
    exiting = (secondary01 | secondary12) & SECONDARY_EXITING
    return exiting | (secondary12 & SECONDARY_FROM_12) | (secondary01 & C.SECONDARY_EPT)


def merge_tsc(offset01: int, multiplier12: int | None, offset12: int) -> int:
    """TSC offset of vmcs02: offset01 scaled by L1's multiplier (48 fraction bits), plus L1's offset."""
    if multiplier12 is not None:
        signed = offset01 - (1 << 64) if offset01 >> 63 else offset01
        offset01 = signed * multiplier12 >> 48
    return (offset01 + offset12) & 0xFFFF_FFFF_FFFF_FFFF
