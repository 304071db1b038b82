"""Silicon: x86-64 processors with one level of VT-x, in software; the typed face of the native module.

`fields`, `encodings`, `slots`, `reasons` and `controls` name the numbers. Silicon knows nothing of nesting.
"""

from turtles.silicon._silicon import (
    Copies,
    Core,
    DmaWindow,
    Memory,
    Model,
    Rule,
    SiliconError,
    Vmcs,
    check_entry,
    disassemble,
    entry_rules,
)
from turtles.silicon.reasons import ENTRY_FAILURE, ExitReason

__all__ = [
    "ENTRY_FAILURE",
    "Copies",
    "Core",
    "DmaWindow",
    "ExitReason",
    "Memory",
    "Model",
    "Rule",
    "SiliconError",
    "Vmcs",
    "check_entry",
    "disassemble",
    "entry_rules",
]
