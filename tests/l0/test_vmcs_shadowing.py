"""VMCS shadowing offered to L1 (SDM 25.10, 26.1.3): VMREAD and VMWRITE of L2, as L1 lets it."""

from __future__ import annotations

import pytest

from tests.l0.guest import DONE
from tests.l0.nested_guest import VMLAUNCH, NestedGuest
from turtles.l0.tactics import Tactics
from turtles.l0.vmcs import bits as X
from turtles.silicon import ExitReason
from turtles.silicon import controls as C
from turtles.silicon import encodings as E
from turtles.silicon import fields as F
from turtles.silicon import slots as S

SHADOW, READS, WRITES = 0x33_0000, 0x33_1000, 0x33_2000
VMREAD = b"\x0f\x78\xc3"  # vmread ebx, eax
VMWRITE = b"\x0f\x79\xc3"  # vmwrite eax, ebx


def field(encoding: int) -> bytes:
    """MOV EAX, encoding."""
    return b"\xb8" + encoding.to_bytes(4, "little")


REASON = field(E.EXIT_REASON) + VMREAD + b"\x89\xd8" + DONE
READ_RIP = field(E.GUEST_RIP) + VMREAD + b"\x89\xd8" + DONE


class Shadowed(NestedGuest):
    """A vmcs12 that links to a shadow VMCS; L2 may access each field."""

    def __init__(self, l2: bytes, *, l1: bytes = VMLAUNCH + b"\x0f\x0b", handler: bytes = REASON) -> None:
        super().__init__(l2, handler, l1=l1)
        self.put64(SHADOW, self.machine.revision | X.SHADOW_VMCS)
        v12 = self.c.v
        v12[F.SECONDARY_CONTROLS] |= C.SECONDARY_VMCS_SHADOWING
        v12[F.VMREAD_BITMAP], v12[F.VMWRITE_BITMAP] = READS, WRITES
        v12[F.GUEST_VMCS_LINK_POINTER] = SHADOW

    def forbid(self, bitmap: int, encoding: int) -> None:
        at = bitmap + encoding // 8
        self.machine.l1.write(at, bytes([self.machine.l1.load8(at) | 1 << encoding % 8]))


def test_l2_reads_the_shadow_vmcs_without_an_exit() -> None:
    guest = Shadowed(READ_RIP)
    guest.put64(SHADOW + 8 * F.GUEST_RIP, 0x1234)
    assert guest.result() == 0x1234
    assert guest.vcpu.stats.counts[2][ExitReason.VMREAD] == 0


def test_l2_writes_the_shadow_vmcs_in_l1s_memory() -> None:
    guest = Shadowed(field(E.GUEST_RSP) + b"\xbb\x78\x56\x34\x12" + VMWRITE + DONE)
    guest.result()
    assert guest.machine.l1.load64(SHADOW + 8 * F.GUEST_RSP) == 0x1234_5678


@pytest.mark.parametrize(("bitmap", "reason"), [(READS, ExitReason.VMREAD), (WRITES, ExitReason.VMWRITE)])
def test_what_the_bitmaps_name_exits_to_l1(bitmap: int, reason: ExitReason) -> None:
    guest = Shadowed(field(E.GUEST_RIP) + (VMREAD if bitmap == READS else VMWRITE))
    guest.forbid(bitmap, E.GUEST_RIP)
    assert guest.result() == reason


def test_bitmaps_outside_ram_let_everything_exit() -> None:
    guest = Shadowed(READ_RIP)
    guest.c.v[F.VMREAD_BITMAP] = 0xD000_0000
    assert guest.result() == ExitReason.VMREAD


@pytest.mark.parametrize("pointer", [SHADOW + 8, 1 << 45, 0x30_0000, 0x34_0000, 0xD000_0000])
def test_a_link_pointer_to_what_is_no_shadow_vmcs_fails_the_entry(pointer: int) -> None:
    guest = Shadowed(READ_RIP)
    guest.c.v[F.GUEST_VMCS_LINK_POINTER] = pointer
    assert guest.result() == ExitReason.ENTRY_GUEST_STATE | X.ENTRY_FAILURE
    assert guest.c.v[F.EXIT_QUALIFICATION] == 4


def test_an_ordinary_vmcs_cannot_be_shadowed() -> None:
    guest = Shadowed(READ_RIP)
    guest.put64(SHADOW, guest.machine.revision)
    assert guest.result() == ExitReason.ENTRY_GUEST_STATE | X.ENTRY_FAILURE


def test_without_a_link_vmread_of_l2_is_vmfail() -> None:
    guest = Shadowed(READ_RIP)
    guest.c.v[F.GUEST_VMCS_LINK_POINTER] = X.NO_ADDRESS
    guest.regs[3] = 0x77  # RBX: VMREAD leaves it alone
    assert guest.result() == 0x77


def test_l1_reads_a_shadow_vmcs_that_is_current_without_an_exit() -> None:
    """VMPTRLD of it, VMWRITE and VMREAD: one exit, and L1's page holds the value at once."""
    vmptrld = b"\x0f\xc7\x34\x25\x00\x08\0\0"  # vmptrld [800h]
    code = field(E.GUEST_RIP) + b"\xbb\x21\x43\0\0" + VMWRITE + b"\x31\xdb" + VMREAD + b"\x89\xd8" + DONE
    guest = Shadowed(READ_RIP, l1=vmptrld + code)
    guest.put64(0x800, SHADOW)
    assert guest.result() == 0x4321
    assert guest.machine.l1.load64(SHADOW + 8 * F.GUEST_RIP) == 0x4321
    counts = guest.vcpu.stats.counts[1]
    assert (counts[ExitReason.VMPTRLD], counts[ExitReason.VMREAD], counts[ExitReason.VMWRITE]) == (1, 0, 0)


def test_l1_that_overwrites_its_current_shadow_vmcs_goes_on() -> None:
    vmptrld = b"\x0f\xc7\x34\x25\x00\x08\0\0"
    overwrite = b"\xc7\x04\x25" + SHADOW.to_bytes(4, "little") + bytes(4)
    guest = Shadowed(READ_RIP, l1=vmptrld + overwrite + b"\x0f\xa2" + field(0x99) + DONE)
    guest.put64(0x800, SHADOW)
    assert guest.result() == 0x99
    assert guest.vcpu.current_shadow is None


def test_the_feature_is_offered_unless_withheld() -> None:
    secondary = 0x48B
    with_it = Shadowed(READ_RIP).machine.l1_model
    assert (with_it.vmx_msr(secondary) or 0) >> 32 & C.SECONDARY_VMCS_SHADOWING
    assert (with_it.vmx_msr(0x485) or 0) >> 29 & 1, "VMWRITE to any field, without which KVM does not use it"
    tactics = Tactics(offer_shadow_vmcs=False)
    without = NestedGuest(READ_RIP, REASON, tactics=tactics).machine
    assert not (without.l1_model.vmx_msr(secondary) or 0) >> 32 & C.SECONDARY_VMCS_SHADOWING
    assert without.shadows, "L0 uses it for L1 all the same"


@pytest.mark.parametrize("mapped", [True, False])
def test_the_operand_of_vmptrld_comes_with_the_exit_where_it_can_be_read(mapped: bool) -> None:
    """Silicon's decode assist; without it L0 walks L1's page tables, and finds the fault."""
    address = 0x800 if mapped else 0x1_4000_0000  # L1 maps 4 GiB
    vmptrld = b"\x48\xb9" + address.to_bytes(8, "little") + b"\x0f\xc7\x31"  # mov rcx, address; vmptrld [rcx]
    guest = Shadowed(READ_RIP, l1=vmptrld + field(0x55) + DONE)
    guest.put64(0x800, SHADOW)
    seen: list[int] = []
    guest.machine.on_exit(ExitReason.VMPTRLD, level=1)(lambda vcpu: seen.append(vcpu.regs[S.ASSIST_DATA]))
    if mapped:
        assert guest.result() == 0x55
        assert seen == [SHADOW]
        assert guest.vcpu.current_shadow is not None
    else:
        guest.run()
        assert guest.regs[S.CR2] == address
