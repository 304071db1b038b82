"""VMCS shadowing used for L1: which VMREAD and VMWRITE of L1 go to the cached vmcs12 without an exit.

All fields that there are, but writes of read-only fields where L1's processor does not offer them. A bit
that is set makes the access exit (SDM 25.6.15), so that L0 answers with the error number.
"""

from __future__ import annotations

from turtles.l0.ram import PAGE
from turtles.silicon._silicon import VMCS_FIELDS

_WIDTH_64 = 1
_MISC_VMWRITE_ANY = 1 << 29


def make_shadow_bitmaps(misc: int) -> tuple[bytes, bytes]:
    """VMREAD and VMWRITE bitmaps, by bits 14:0 of the encoding. `misc` is L1's IA32_VMX_MISC."""
    reads, writes = bytearray(b"\xff" * PAGE), bytearray(b"\xff" * PAGE)
    for _, encoding in VMCS_FIELDS.values():
        read_only = encoding >> 10 & 3 == 1
        names = (encoding, encoding | 1) if encoding >> 13 & 3 == _WIDTH_64 else (encoding,)
        for name in names:
            reads[name >> 3] &= ~(1 << (name & 7))
            if not read_only or misc & _MISC_VMWRITE_ANY:
                writes[name >> 3] &= ~(1 << (name & 7))
    return bytes(reads), bytes(writes)
