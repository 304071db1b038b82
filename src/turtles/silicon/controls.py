"""Bits of VM-execution, VM-exit and VM-entry controls (SDM 25.6 to 25.8) and of guest states.

Generated from the tables of the Rust crate by its test `python_constants`; do not edit.
"""

from typing import Final

# Pin-based controls.
PIN_EXTERNAL_INTERRUPT: Final = 1 << 0
PIN_NMI: Final = 1 << 3
PIN_VIRTUAL_NMIS: Final = 1 << 5
PIN_PREEMPTION_TIMER: Final = 1 << 6
PIN_POSTED_INTERRUPTS: Final = 1 << 7

# Primary processor-based controls.
PRIMARY_INTERRUPT_WINDOW: Final = 1 << 2
PRIMARY_TSC_OFFSETTING: Final = 1 << 3
PRIMARY_HLT: Final = 1 << 7
PRIMARY_INVLPG: Final = 1 << 9
PRIMARY_MWAIT: Final = 1 << 10
PRIMARY_RDPMC: Final = 1 << 11
PRIMARY_RDTSC: Final = 1 << 12
PRIMARY_CR3_LOAD: Final = 1 << 15
PRIMARY_CR3_STORE: Final = 1 << 16
PRIMARY_TERTIARY: Final = 1 << 17
PRIMARY_CR8_LOAD: Final = 1 << 19
PRIMARY_CR8_STORE: Final = 1 << 20
PRIMARY_TPR_SHADOW: Final = 1 << 21
PRIMARY_NMI_WINDOW: Final = 1 << 22
PRIMARY_MOV_DR: Final = 1 << 23
PRIMARY_UNCONDITIONAL_IO: Final = 1 << 24
PRIMARY_IO_BITMAPS: Final = 1 << 25
PRIMARY_MONITOR_TRAP: Final = 1 << 27
PRIMARY_MSR_BITMAPS: Final = 1 << 28
PRIMARY_MONITOR: Final = 1 << 29
PRIMARY_PAUSE: Final = 1 << 30
PRIMARY_SECONDARY: Final = 1 << 31

# Secondary processor-based controls.
SECONDARY_APIC_ACCESSES: Final = 1 << 0
SECONDARY_EPT: Final = 1 << 1
SECONDARY_DESCRIPTOR_TABLE: Final = 1 << 2
SECONDARY_RDTSCP: Final = 1 << 3
SECONDARY_X2APIC: Final = 1 << 4
SECONDARY_VPID: Final = 1 << 5
SECONDARY_WBINVD: Final = 1 << 6
SECONDARY_UNRESTRICTED: Final = 1 << 7
SECONDARY_APIC_REGISTER: Final = 1 << 8
SECONDARY_VIRTUAL_INTERRUPT: Final = 1 << 9
SECONDARY_PAUSE_LOOP: Final = 1 << 10
SECONDARY_RDRAND: Final = 1 << 11
SECONDARY_INVPCID: Final = 1 << 12
SECONDARY_VMFUNC: Final = 1 << 13
SECONDARY_VMCS_SHADOWING: Final = 1 << 14
SECONDARY_ENCLS: Final = 1 << 15
SECONDARY_RDSEED: Final = 1 << 16
SECONDARY_PML: Final = 1 << 17
SECONDARY_EPT_VIOLATION_VE: Final = 1 << 18
SECONDARY_XSAVES: Final = 1 << 20
SECONDARY_MODE_BASED_EXECUTE: Final = 1 << 22
SECONDARY_TSC_SCALING: Final = 1 << 25

# VM-exit controls.
EXIT_SAVE_DEBUG: Final = 1 << 2
EXIT_HOST_64: Final = 1 << 9
EXIT_LOAD_PERF: Final = 1 << 12
EXIT_ACKNOWLEDGE: Final = 1 << 15
EXIT_SAVE_PAT: Final = 1 << 18
EXIT_LOAD_PAT: Final = 1 << 19
EXIT_SAVE_EFER: Final = 1 << 20
EXIT_LOAD_EFER: Final = 1 << 21
EXIT_SAVE_TIMER: Final = 1 << 22

# VM-entry controls.
ENTRY_LOAD_DEBUG: Final = 1 << 2
ENTRY_IA32E: Final = 1 << 9
ENTRY_SMM: Final = 1 << 10
ENTRY_DUAL_MONITOR: Final = 1 << 11
ENTRY_LOAD_PERF: Final = 1 << 13
ENTRY_LOAD_PAT: Final = 1 << 14
ENTRY_LOAD_EFER: Final = 1 << 15

# Guest interruptibility state.
BLOCKING_STI: Final = 1 << 0
BLOCKING_MOV_SS: Final = 1 << 1
BLOCKING_SMI: Final = 1 << 2
BLOCKING_NMI: Final = 1 << 3

# Guest activity state.
ACTIVITY_ACTIVE: Final = 0
ACTIVITY_HLT: Final = 1
ACTIVITY_SHUTDOWN: Final = 2
ACTIVITY_WAIT_FOR_SIPI: Final = 3
