"""Shadow-on-shadow: no EPT anywhere. L1 runs on a mirror of its page tables, L2 on one of L1's shadow tables.

The second is the paper's fold: L1's shadow tables translate L2's linear addresses to L1-physical ones, and
their mirror (`shadow_tables`) to host-physical ones, as L1's own tables' mirror does for L1. Here lies which
tables a context uses, and what its registers are in the VMCS: CR3 refers to the mirror, paging is always on.
Without unrestricted guest an unpaged L1 runs on an identity mirror; real mode is not offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turtles.l0.mmu import paging as P
from turtles.l0.mmu.ept02 import Resolution, Resolve
from turtles.l0.mmu.mirror import Table
from turtles.l0.mmu.protection import Protection
from turtles.l0.mmu.shadow_tables import ShadowTables
from turtles.l0.outcome import GuestStop
from turtles.l0.pool import PagePool, PoolExhausted
from turtles.l0.ram import L1Memory
from turtles.l0.vmcs import bits as X
from turtles.silicon import Memory
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.vcpu import Vcpu
    from turtles.l0.vmcs.vmcs12 import Vmcs12

# Bits of L1's CR0 and CR4 that the mirror depends on, beside those that VMX operation fixes.
CR0_OWNED: Final = X.CR0_PE | X.CR0_PG | X.CR0_WP | X.CR0_CD | X.CR0_NW
CR4_OWNED: Final = X.CR4_PSE | X.CR4_PAE | X.CR4_PGE | X.CR4_PCIDE | X.CR4_SMEP | X.CR4_SMAP
LAST_VPID: Final = 0xFFFF
_FORCED: Final = X.CR0_PE | X.CR0_PG
_UNPAGED_OFF: Final = X.CR4_SMEP | X.CR4_SMAP
HIGHEST: Final = 4 << 30  # PAE roots lie below, as CR3 has 32 bits then


class ShadowOnShadow:
    """The two families of mirrors, and the VPIDs of their roots."""

    name = "shadow-on-shadow"
    eptp01 = 0

    def __init__(
        self,
        pool: PagePool,
        l1: L1Memory,
        memory: Memory,
        physical_bits: int,
        tags: bool,
        track_tables: bool = True,
    ) -> None:
        if memory.total > HIGHEST:
            raise GuestStop(
                f"shadow-on-shadow needs memory below 4 GiB: say -m {(HIGHEST >> 20) - 128}M or less"
            )
        self._memory = memory
        self._tags = tags
        self._physical_bits = physical_bits
        self._last_vpid = 0
        self._l1 = l1
        self._protection = protection = Protection() if track_tables else None
        self.tables1 = ShadowTables(pool, l1, physical_bits, self._new_vpid, self._flush, protection)
        self.tables2 = ShadowTables(pool, l1, physical_bits, self._new_vpid, self._flush, protection)

    def _new_vpid(self) -> int:
        if self._last_vpid == LAST_VPID:
            raise PoolExhausted
        self._last_vpid += 1
        return self._last_vpid

    def _flush(self, vpid: int) -> None:
        """INVVPID, single context."""
        self._memory.invvpid(1, vpid, 0)

    # --- L1's registers ---

    def registers1(self, vcpu: Vcpu) -> P.Registers:
        """What L1's translations depend on, as L1 has set it."""
        v = vcpu.v01
        return P.Registers(
            cr0=v[F.GUEST_CR0] & ~v[F.CR0_MASK] | v[F.CR0_READ_SHADOW] & v[F.CR0_MASK],
            cr3=vcpu.cr3,
            cr4=v[F.GUEST_CR4] & ~v[F.CR4_MASK] | v[F.CR4_READ_SHADOW] & v[F.CR4_MASK],
            efer=vcpu.regs[S.EFER],
            rflags=v[F.GUEST_RFLAGS],
            cpl=v[F.GUEST_SS_ACCESS] >> 5 & 3,
            pdptes=(v[F.GUEST_PDPTE0], v[F.GUEST_PDPTE1], v[F.GUEST_PDPTE2], v[F.GUEST_PDPTE3]),
            physical_bits=self._physical_bits,
        )

    def load_host_state(self, vcpu: Vcpu) -> None:
        """vmcs01 holds CR0, CR3 and CR4 of vmcs12's host state: they become L1's, and then the mirror's."""
        v = vcpu.v01
        vcpu.cr3 = v[F.GUEST_CR3]
        cache = X.CR0_CD | X.CR0_NW  # an exit leaves them alone (SDM 28.5.1)
        v[F.CR0_READ_SHADOW] = v[F.GUEST_CR0] & ~cache | v[F.CR0_READ_SHADOW] & cache
        v[F.CR4_READ_SHADOW] = v[F.GUEST_CR4]
        self.apply1(vcpu)

    def apply1(self, vcpu: Vcpu) -> None:
        """Puts the mirror of L1's tables, and registers that go with it, into vmcs01."""
        v = vcpu.v01
        r = self.registers1(vcpu)
        if not r.cr0 & X.CR0_PE:
            raise GuestStop(
                "L1 is in real mode, which shadow-on-shadow does not offer: that needs unrestricted guest"
            )
        v[F.GUEST_CR0] |= _FORCED
        if r.cr0 & X.CR0_PG:
            v[F.GUEST_CR4] |= X.CR4_PAE
        else:
            v[F.GUEST_CR4] = v[F.GUEST_CR4] & ~_UNPAGED_OFF | X.CR4_PAE
        root = self._root1(r)
        v[F.GUEST_CR3], v[F.VPID] = root.host_pa, root.vpid

    def _root1(self, r: P.Registers) -> Table:
        if self._protection is not None:
            self._protection.follow_wp(bool(r.cr0 & X.CR0_WP))
        try:
            return self.tables1.root(r)
        except PoolExhausted:
            self._release()
        try:
            return self.tables1.root(r)
        except PoolExhausted:
            raise GuestStop("the pool is too small for the mirror of one page table") from None

    def _release(self) -> None:
        self.tables1.release()
        self.tables2.release()
        if self._protection is not None:
            self._protection.clear()
        self._last_vpid = 0

    # --- L2's registers ---

    def registers2(self, vcpu: Vcpu, c: Vmcs12) -> P.Registers:
        """What L2's translations depend on, with L1's shadow tables in the place of L2's."""
        v = c.v02
        return P.Registers(
            cr0=v[F.GUEST_CR0],
            cr3=c.cr3,
            cr4=v[F.GUEST_CR4],
            efer=self._efer2(vcpu, c),
            rflags=v[F.GUEST_RFLAGS],
            cpl=v[F.GUEST_SS_ACCESS] >> 5 & 3,
            pdptes=(v[F.GUEST_PDPTE0], v[F.GUEST_PDPTE1], v[F.GUEST_PDPTE2], v[F.GUEST_PDPTE3]),
            physical_bits=self._physical_bits,
        )

    def _efer2(self, vcpu: Vcpu, c: Vmcs12) -> int:
        """EFER as the entry will leave it (SDM 27.3.2.1), or as it is while L2 runs."""
        if vcpu.level == 2:
            return vcpu.regs[S.EFER]
        v = c.v02
        controls = v[F.ENTRY_CONTROLS]
        if controls & C.ENTRY_LOAD_EFER:
            return v[F.GUEST_EFER]
        both = X.EFER_LMA | X.EFER_LME
        return vcpu.regs[S.EFER] & ~both | (both if controls & C.ENTRY_IA32E else 0)

    def enter_l2(self, vcpu: Vcpu, c: Vmcs12) -> bool:
        """vmcs02 holds the guest state of vmcs12; false where CR3 is none that a processor takes."""
        c.cr3 = c.v[F.GUEST_CR3]
        if c.cr3 >> self._physical_bits:
            return False
        if not c.v02[F.GUEST_CR4] & X.CR4_PAE:
            raise GuestStop("L2 uses 32-bit paging without PAE, which shadow-on-shadow does not fold")
        if not c.uses_vpid:
            self.tables2.forget()
        self.apply2(vcpu, c)
        return True

    def apply2(self, vcpu: Vcpu, c: Vmcs12) -> None:
        """Puts the mirror of L1's shadow tables into vmcs02."""
        root = self._root2(vcpu, self.registers2(vcpu, c))
        c.v02[F.GUEST_CR3], c.v02[F.VPID] = root.host_pa, root.vpid

    def _root2(self, vcpu: Vcpu, r: P.Registers) -> Table:
        if self._protection is not None:
            self._protection.follow_wp(bool(r.cr0 & X.CR0_WP))
        try:
            return self.tables2.root(r)
        except PoolExhausted:
            self._release()
        try:
            root = self.tables1.root(self.registers1(vcpu))
            vcpu.v01[F.GUEST_CR3], vcpu.v01[F.VPID] = root.host_pa, root.vpid
            return self.tables2.root(r)
        except PoolExhausted:
            raise GuestStop("the pool is too small for the mirrors of two page tables") from None

    # --- faults and flushes ---

    def page_fault(self, vcpu: Vcpu, linear: int, error: int) -> Resolution:
        """Answers a page fault of the context; raises paging.PageFault where it is the context's own."""
        r, found, write = self._walk(vcpu, linear, error)
        if write and self._protection is not None:
            l1_pa = linear & 0xFFFF_FFFF if found is None else found.physical
            if self._l1.host_pa(l1_pa) in self._protection:
                return Resolution(Resolve.TRACKED, l1_pa)
        for _ in range(2):
            tables, root = self._current(vcpu, r)
            try:
                missing = tables.fill(root, linear, found, r, write)
                break
            except PoolExhausted:
                self._release()
        else:
            raise GuestStop("the pool is too small for one translation")
        if missing > 0:
            return Resolution(Resolve.DEVICE, missing)
        if missing < 0:
            # The mirror allows it, so that silicon knows better: an implicit access that SMAP denies.
            raise P.PageFault(linear, error)
        return Resolution(Resolve.MAPPED)

    def _walk(self, vcpu: Vcpu, linear: int, error: int) -> tuple[P.Registers, P.Walk | None, bool]:
        r = self.registers1(vcpu) if vcpu.level == 1 else self.registers2(vcpu, vcpu.entered12)
        write = bool(error & P.ERROR_WRITE)
        if not r.cr0 & X.CR0_PG:
            return r, None, write
        l1 = vcpu.machine.l1
        found = P.walk(r, linear, error & (P.ERROR_WRITE | P.ERROR_USER | P.ERROR_FETCH), l1.load64)
        P.set_flags(r, found, write or not r.cr0 & X.CR0_WP, l1.set_bits64)
        return r, found, write

    def _current(self, vcpu: Vcpu, r: P.Registers) -> tuple[ShadowTables, Table]:
        """The family and the root that the context runs on, put into its VMCS."""
        if vcpu.level == 1:
            tables, root = self.tables1, self._root1(r)
        else:
            tables, root = self.tables2, self._root2(vcpu, r)
        vcpu.v[F.GUEST_CR3], vcpu.v[F.VPID] = root.host_pa, root.vpid
        return tables, root

    def map_nothing(self, vcpu: Vcpu, linear: int, error: int, host_pa: int) -> None:
        """After `page_fault` said DEVICE: maps a page of L0's there."""
        r, found, _ = self._walk(vcpu, linear, error)
        tables, root = self._current(vcpu, r)
        try:
            tables.map_page(root, linear, found, r, host_pa)
        except PoolExhausted:
            self._release()
            self._current(vcpu, r)  # the access faults again

    def flushed(self, level: int) -> None:
        """The context's translations count as flushed: its mirror is compared before it is used again."""
        (self.tables1 if level == 1 else self.tables2).forget()

    def invalidate_page(self, vcpu: Vcpu, linear: int) -> None:
        """INVLPG of the context that runs."""
        r = self.registers1(vcpu) if vcpu.level == 1 else self.registers2(vcpu, vcpu.entered12)
        tables, root = self._current(vcpu, r)
        if not tables.invalidate(root, linear):
            self._memory.invvpid(0, root.vpid, linear)

    # --- the rest of the interface ---

    def attach(self, c: Vmcs12) -> None:
        """See MemoryMode: every page fault of L2 is L0's first, and no CR3 goes in unseen.

        Where silicon tags its TLBs, L2's mirrors have tags whether L1 uses VPIDs or not: what an entry
        without one flushes, `enter_l2` compares.
        """
        v02 = c.v02
        c.ept02 = None
        v02[F.EXCEPTION_BITMAP] |= 1 << X.VECTOR_PF
        v02[F.PF_ERROR_MASK] = v02[F.PF_ERROR_MATCH] = 0
        v02[F.CR3_TARGET_COUNT] = 0
        if self._tags:
            v02[F.SECONDARY_CONTROLS] |= C.SECONDARY_VPID

    def resolve(self, c: Vmcs12, pa: int, access: int) -> Resolution:
        """See MemoryMode: there are no EPT violations."""
        raise GuestStop(f"an EPT violation without EPT, at {pa:#x}")

    def before_l2(self, c: Vmcs12) -> None:
        """See MemoryMode."""

    def tracks(self, l1_pa: int) -> bool:
        """See MemoryMode."""
        return self._protection is not None and self._l1.host_pa(l1_pa) in self._protection

    def tracked_write(self, l1_pa: int, width: int, data: int) -> None:
        """See MemoryMode. Here L0 does the store in the guest's place."""
        host_pa = self._l1.host_pa(l1_pa)
        self._memory.write(host_pa, data.to_bytes(8, "little")[:width])
        if self._protection is not None:
            self._protection.stored(host_pa, width)

    def stored(self, l1_pa: int, length: int) -> None:
        """See MemoryMode."""
        for page in range(l1_pa & ~0xFFF, l1_pa + length, 0x1000):
            self.untrack(page)

    def untrack(self, l1_pa: int) -> None:
        """See MemoryMode."""
        if self._protection is not None and (host_pa := self._l1.host_pa(l1_pa)) >= 0:
            self._protection.give_up(host_pa)

    def map_l1(self, l1_pa: int, host_pa: int) -> None:
        """See MemoryMode."""
        raise GuestStop(f"an EPT violation without EPT, at {l1_pa:#x}")

    def map_l2(self, c: Vmcs12, pa: int, host_pa: int) -> None:
        """See MemoryMode."""
        raise GuestStop(f"an EPT violation without EPT, at {pa:#x}")

    def invept(self, eptp12: int | None) -> None:
        """See MemoryMode: L1 has none."""
