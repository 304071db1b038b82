"""The flat state by slot number: `core.slots[slots.RAX]`; arrays start at their slot.

Generated from the tables of the Rust crate by its test `python_constants`; do not edit.
"""

from typing import Final

RAX: Final = 0
RCX: Final = 1
RDX: Final = 2
RBX: Final = 3
RSP: Final = 4
RBP: Final = 5
RSI: Final = 6
RDI: Final = 7
R8: Final = 8
R9: Final = 9
R10: Final = 10
R11: Final = 11
R12: Final = 12
R13: Final = 13
R14: Final = 14
R15: Final = 15

GPR: Final = 0
ZERO: Final = 16
RIP: Final = 17
RFLAGS: Final = 18
CR0: Final = 19
CR2: Final = 20
CR3: Final = 21
CR4: Final = 22
CR8: Final = 23
YMM: Final = 24
DR: Final = 88
DR6: Final = 92
DR7: Final = 93
SEG: Final = 94
GDTR_BASE: Final = 126
GDTR_LIMIT: Final = 127
IDTR_BASE: Final = 128
IDTR_LIMIT: Final = 129
XCR0: Final = 130
EFER: Final = 131
STAR: Final = 132
LSTAR: Final = 133
CSTAR: Final = 134
FMASK: Final = 135
KERNEL_GS_BASE: Final = 136
SYSENTER_CS: Final = 137
SYSENTER_ESP: Final = 138
SYSENTER_EIP: Final = 139
PAT: Final = 140
TSC_AUX: Final = 141
TSC_ADJUST: Final = 142
TSC_BASE: Final = 143
APIC_BASE: Final = 144
MISC_ENABLE: Final = 145
FEATURE_CONTROL: Final = 146
DEBUGCTL: Final = 147
SPEC_CTRL: Final = 148
XSS: Final = 149
TSC_DEADLINE: Final = 150
MTRR_DEF_TYPE: Final = 151
MTRR_FIXED: Final = 152
MTRR_VAR: Final = 163
ST: Final = 179
FCW: Final = 195
FSW: Final = 196
FTW: Final = 197
FOP: Final = 198
FIP: Final = 199
FDP: Final = 200
FCS: Final = 201
FDS: Final = 202
MXCSR: Final = 203
INTERRUPTIBILITY: Final = 204
ACTIVITY: Final = 205
PENDING_DEBUG: Final = 206
MONITOR: Final = 207
RETIRED: Final = 208
ENTRY_TIME: Final = 209
EXIT_TIME: Final = 210
ASSIST_KIND: Final = 211
ASSIST_ADDRESS: Final = 212
ASSIST_WIDTH: Final = 213
ASSIST_DATA: Final = 214
ASSIST_DONE: Final = 215
ASSIST_RESULT: Final = 216
REPLAY_COUNT: Final = 217
REPLAY: Final = 218

# Slots of each array.
COUNTS: Final[dict[str, int]] = {
    "GPR": 16,
    "YMM": 64,
    "DR": 4,
    "SEG": 32,
    "MTRR_FIXED": 11,
    "MTRR_VAR": 16,
    "ST": 16,
    "REPLAY": 512,
}

# Offsets in a segment register's four slots, and the registers' numbers (slot = SEG + 4 * number).
SELECTOR: Final = 0
BASE: Final = 1
LIMIT: Final = 2
ACCESS: Final = 3
ES: Final = 0
CS: Final = 1
SS: Final = 2
DS: Final = 3
FS: Final = 4
GS: Final = 5
LDTR: Final = 6
TR: Final = 7
