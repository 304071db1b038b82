"""L1 in 64-bit mode and VMX operation, with a vmcs12 ready, and an L2 of a few instructions, run for real.

L1's code is at 1000H (it begins with VMLAUNCH) and its exit handler at 7000H; L2 runs 32-bit code without
paging at L2_CODE, through ept12.
"""

from __future__ import annotations

from typing import Literal

from tests.l0.guest import Guest
from tests.l0.helpers import minimal_vmcs12
from turtles.l0.mmu import ept
from turtles.l0.tactics import ALL, Tactics
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import vmcs02
from turtles.silicon import Model
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

VMLAUNCH = b"\x0f\x01\xc2"
VMRESUME = b"\x0f\x01\xc3"
HANDLER = 0x7000
REGION = 0x30_0000
PML4, PDPT = 0x31_0000, 0x31_1000
TOP12, PDPT12, PD12, PT12 = 0x32_0000, 0x32_1000, 0x32_2000, 0x32_3000
SHADOW_PDPT, SHADOW_PD = 0x33_0000, 0x33_1000
EPTP12 = TOP12 | ept.EPTP_WALK_4 | ept.WRITE_BACK
L2_CODE = 0x5000
"""L2-physical address of L2's code; ept12 maps the first 2 MiB of L2 onto L1_BASE."""
L1_BASE = 0x40_0000
WB = ept.WRITE_BACK << 3


def skip_and_resume(length: int) -> bytes:
    """An exit handler: L2's RIP moves on by `length`, and L2 goes on. RAX, RBX of L2 are lost."""
    return (
        b"\xb8\x1e\x68\0\0"  # mov eax, GUEST_RIP
        b"\x0f\x78\xc3"  # vmread rbx, rax
        b"\x48\x83\xc3" + bytes([length]) + b"\x0f\x79\xc3" + VMRESUME  # add rbx, length; vmwrite rax, rbx
    )


class NestedGuest(Guest):
    """Both levels."""

    def __init__(
        self,
        l2: bytes,
        handler: bytes,
        *,
        l1: bytes = VMLAUNCH + b"\x0f\x0b",
        eptp12: int | None = EPTP12,
        model: Model | None = None,
        tactics: Tactics = ALL,
        clock: Literal["host", "virtual"] = "host",
    ) -> None:
        super().__init__(l1, model=model, tactics=tactics, clock=clock)
        memory = self.machine.l1
        memory.write(HANDLER, handler)
        memory.write(L1_BASE + L2_CODE, l2)
        self.put64(PML4, PDPT | 3)
        for n in range(4):
            self.put64(PDPT + 8 * n, n << 30 | 0x83)
        self.put64(TOP12, PDPT12 | 7)
        self.put64(PDPT12, PD12 | 7)
        self.put64(PD12, L1_BASE | 7 | WB | ept.LARGE)
        self.long_mode()
        c = self.vcpu.vmcs12s.load(REGION)
        vmcs02.prepare(self.vcpu, c)
        from turtles.l0.nested.instructions import set_current

        set_current(self.vcpu, c)
        self.c = c
        v12 = c.v
        minimal_vmcs12(v12, self.v, eptp12)
        for number, segment in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
            at = F.GUEST_ES_SELECTOR + 4 * number
            v12[at], v12[at + 1], v12[at + 2] = (8 if segment == "cs" else 16), 0, 0xFFFF_FFFF
            v12[at + 3] = 0xC09B if segment == "cs" else 0xC093
        v12[F.GUEST_RIP], v12[F.GUEST_RSP] = L2_CODE, 0x4000
        v12[F.HOST_CR3], v12[F.HOST_RIP], v12[F.HOST_RSP] = PML4, HANDLER, 0x900
        v12[F.HOST_CR4] = X.CR4_PAE | X.CR4_VMXE
        v12[F.WRITTEN] = 0x3FF

    def shadow_l2(self) -> None:
        """L1 without EPT: a shadow table of PAE paging, linear 0 to 2 MiB at L1_BASE as with ept12."""
        self.put64(SHADOW_PDPT, SHADOW_PD | 1)
        self.put64(SHADOW_PD, L1_BASE | 7 | 1 << 7)
        v12 = self.c.v
        v12[F.GUEST_CR0] |= X.CR0_PG
        v12[F.GUEST_CR3] = SHADOW_PDPT
        v12[F.GUEST_CR4] |= X.CR4_PAE
        v12[F.WRITTEN] = 0x3FF

    def long_mode(self) -> None:
        """L1 as an operating system has it: 64-bit, paging, VMXON done."""
        v = self.v
        fixed = X.CR0_PE | X.CR0_NE | X.CR0_PG
        v[F.GUEST_CR0] = fixed | X.CR0_ET
        v[F.CR0_MASK] = fixed
        v[F.CR0_READ_SHADOW] = fixed | X.CR0_ET
        v[F.GUEST_CR4] = X.CR4_PAE | X.CR4_VMXE
        v[F.CR4_READ_SHADOW] = X.CR4_PAE | X.CR4_VMXE
        v[F.GUEST_CR3] = PML4
        v[F.GUEST_CS_ACCESS] = 0xA09B
        v[F.ENTRY_CONTROLS] |= C.ENTRY_IA32E
        self.regs[S.EFER] = X.EFER_LMA | X.EFER_LME
        self.vcpu.enter_vmx(0x2F_0000)
        shadow = self.vcpu.shadow
        if shadow is not None:
            self.vcpu.cr3 = PML4
            v[F.CR0_MASK] |= self.vcpu.cr0_owned
            shadow.apply1(self.vcpu)
