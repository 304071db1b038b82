"""Formats beside the control bits: interruption information, register bits, vectors, access rights.

Only names and fixed values. The control bits themselves are silicon's (`turtles.silicon.controls`).
"""

from __future__ import annotations

from typing import Final

DEBUGCTL_BTF: Final = 1 << 1  # IA32_DEBUGCTL: single-step on branches
PENDING_SINGLE_STEP: Final = 1 << 14  # of the pending debug exceptions (SDM table 25-4)

# Interruption information, of entry and exit, and IDT-vectoring information (25.8.3, 25.9.2, 25.9.3).
VALID: Final = 1 << 31
HAS_ERROR_CODE: Final = 1 << 11
NMI_UNBLOCKED_BY_IRET: Final = 1 << 12
TYPE_MASK: Final = 7 << 8
TYPE_EXTERNAL: Final = 0 << 8
TYPE_NMI: Final = 2 << 8
TYPE_HARDWARE: Final = 3 << 8
TYPE_SOFTWARE_INTERRUPT: Final = 4 << 8
TYPE_PRIVILEGED: Final = 5 << 8
TYPE_SOFTWARE_EXCEPTION: Final = 6 << 8
TYPE_OTHER: Final = 7 << 8
"""Of an injected event, with vector 0: a pending MTF VM exit."""

ENTRY_FAILURE: Final = 1 << 31  # of the exit reason
SHADOW_VMCS: Final = 1 << 31  # of the revision identifier
NO_ADDRESS: Final = (1 << 64) - 1  # VMCS link pointer and current-VMCS pointer that point nowhere

# Exception vectors.
VECTOR_DB: Final = 1
VECTOR_NMI: Final = 2
VECTOR_UD: Final = 6
VECTOR_DF: Final = 8
VECTOR_TS: Final = 10
VECTOR_NP: Final = 11
VECTOR_SS: Final = 12
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14

# Registers.
RFLAGS_CF: Final = 1 << 0
RFLAGS_STATUS: Final = 0x8D5
RFLAGS_ZF: Final = 1 << 6
RFLAGS_TF: Final = 1 << 8
RFLAGS_IF: Final = 1 << 9
RFLAGS_NT: Final = 1 << 14
RFLAGS_VM: Final = 1 << 17
RFLAGS_AC: Final = 1 << 18
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_WP: Final = 1 << 16
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_PGE: Final = 1 << 7
CR4_VMXE: Final = 1 << 13
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
ACCESS_LONG: Final = 1 << 13
ACCESS_DB: Final = 1 << 14
ACCESS_UNUSABLE: Final = 1 << 16
