"""A machine: what its virtual CPUs share, the registry of exit handlers, and how the run ends.

The board makes one, adds a virtual CPU for each core, and runs each in a thread of its own. Any thread may
`stop` it. It knows no devices: ports and MMIO come as protocols (`ports`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from turtles.l0 import baseline
from turtles.l0.exits import registry, shadow
from turtles.l0.exits.cpuid import CpuidTable
from turtles.l0.exits.msr import make_bitmap
from turtles.l0.mmu.ept02 import Tactic
from turtles.l0.mmu.ept12 import Ept12Walker
from turtles.l0.mmu.interface import MemoryMode
from turtles.l0.mmu.multidim import MultiDimensional
from turtles.l0.mmu.shadow_on_shadow import ShadowOnShadow
from turtles.l0.nested.shadowing import make_shadow_bitmaps
from turtles.l0.outcome import GuestStop, Outcome
from turtles.l0.pool import PAGE, PagePool, PoolExhausted
from turtles.l0.ports import EventQueue, LocalApic, MmioSpace, PortSpace, RamRegion
from turtles.l0.ram import L1Memory
from turtles.l0.tactics import ALL, Tactics
from turtles.l0.vcpu import Handler, Vcpu
from turtles.l0.vmcs.virtual_apic import x2apic_msrs
from turtles.silicon import Core, Memory, Model
from turtles.silicon._silicon import REVISION

# Features of silicon that L1 is not offered: what serves nobody below a hypervisor.
NOT_FOR_L1: Final = ("monitor",)

# Memory modes, and what L1 is not offered in them. Without EPT of its own L1 shadows L2's page tables.
MODES: Final[dict[str, tuple[str, ...]]] = {
    "multidim": (),
    "shadow-on-ept": ("ept",),
    "shadow-on-shadow": ("ept", "pcid", "invpcid"),
}
# What silicon itself is without in them, and so L1 too.
WITHOUT: Final[dict[str, tuple[str, ...]]] = {
    "shadow-on-shadow": ("ept", "ept_ad", "ept_1gb", "ept_x_only", "unrestricted_guest")
}

MSR_VMX_MISC: Final = 0x485
MSR_VMX_SECONDARY: Final = 0x48B
MSR_VMX_EPT_VPID: Final = 0x48C

# A handler that a user adds: true means that the exit is dealt with, RIP included.
UserHandler = Callable[[Vcpu], "bool | None"]


class Machine:
    """L0 for one machine. `ram` is L1's RAM over `memory`; `model` is what the cores are made with."""

    def __init__(
        self,
        memory: Memory,
        model: Model,
        ram: Sequence[RamRegion],
        ports: PortSpace,
        mmio: MmioSpace,
        *,
        mode: str = "multidim",
        tactics: Tactics = ALL,
        ept12: Tactic = Tactic.INVEPT,
    ) -> None:
        self.memory = memory
        self.model = model
        self.ports = ports
        self.mmio = mmio
        self.l1 = L1Memory(memory, ram)
        self.pool = PagePool(memory, memory.size, memory.total)
        self.revision: Final = REVISION
        self.physical_bits: Final = model.PHYSICAL_BITS
        self.vcpus: list[Vcpu] = []
        self.outcome: Outcome | None = None  # how the run ended; none while it goes on
        self._lock = threading.Lock()
        self._registry = registry.default_handlers()

        if mode not in MODES:
            raise GuestStop(f"there is no memory mode {mode!r} yet; there are: {', '.join(MODES)}")
        # What L1's processor offers: silicon's model less what L0 does not nest.
        self.l1_model = l1_model(model, (*MODES[mode], *tactics.withheld()))
        self.cpuid = CpuidTable(self.l1_model)
        self.l1_has_vmx = self.l1_model.has("vmx")
        self.l1_misc = self.l1_model.vmx_msr(MSR_VMX_MISC) or 0 if self.l1_has_vmx else 0
        self.timer_shift = self.l1_misc & 31
        self.l1_ept_vpid = self.l1_model.vmx_msr(MSR_VMX_EPT_VPID) or 0 if self.l1_has_vmx else 0
        self.tactics = tactics
        self.l1_has_shadowing = self.l1_model.has("vmcs_shadowing")
        self.shadows = tactics.shadow_vmcs and self.l1_has_vmx and model.has("vmcs_shadowing")

        try:
            self._build_tables(mode, ept12)
        except PoolExhausted:
            raise GuestStop(f"a pool of {memory.total - memory.size} bytes is too small") from None

    def _build_tables(self, mode: str, tactic: Tactic) -> None:
        pool, memory = self.pool, self.memory
        walker = Ept12Walker(self.l1, self.physical_bits, bool(self.l1_ept_vpid & 1))
        self.shadow: ShadowOnShadow | None = None
        if mode == "shadow-on-shadow":
            tags = self.tactics.vpid and self.model.has("vpid")
            track = self.tactics.track_tables
            self.shadow = ShadowOnShadow(pool, self.l1, memory, self.physical_bits, tags, track)
            self.mmu: MemoryMode = self.shadow
            if track:
                self.l1.on_write = self.shadow.stored
        else:
            self.mmu = MultiDimensional(pool, self.l1, walker, memory.invept, tactic)
            if tactic is not Tactic.INVEPT:
                self.l1.on_write = self.mmu.stored
        self.msr_bitmap01_host_pa = pool.allocate()
        efer = self.shadow is not None
        bitmap = make_bitmap(efer=efer)
        memory.write(self.msr_bitmap01_host_pa, bitmap)
        self.msr_bitmap01 = int.from_bytes(bitmap, "little")
        self._bitmaps_x2apic: dict[int, int] = {}
        self.vmread_bitmap_host_pa = pool.allocate()
        self.vmwrite_bitmap_host_pa = pool.allocate()
        reads, writes = make_shadow_bitmaps(self.l1_misc)
        memory.write(self.vmread_bitmap_host_pa, reads)
        memory.write(self.vmwrite_bitmap_host_pa, writes)
        # Stands for an APIC-access page of L1's that is not RAM: no guest's tables map it but for that.
        self.apic_stand_in = pool.allocate()
        # What is fetched, or walked as a page table, where L1 has neither RAM nor anything that could answer.
        self.nothing_host_pa = pool.allocate()
        memory.write(self.nothing_host_pa, b"\xff" * PAGE)

    def msr_bitmap01_x2apic(self, secondary02: int) -> int:
        """L0's MSR bitmap for an L2 whose x2APIC registers are virtualized."""
        bitmap = self._bitmaps_x2apic.get(secondary02)
        if bitmap is None:
            bitmap = int.from_bytes(
                make_bitmap(*x2apic_msrs(secondary02), efer=self.shadow is not None), "little"
            )
            self._bitmaps_x2apic[secondary02] = bitmap
        return bitmap

    def add_vcpu(self, core: Core, apic: LocalApic, events: EventQueue) -> Vcpu:
        """A virtual CPU on `core`; the first one is where L1 starts."""
        vcpu = Vcpu(self, core, apic, events)
        self.vcpus.append(vcpu)
        return vcpu

    # --- how it ends ---

    def stop(self, outcome: Outcome) -> None:
        """Ends the run, from any thread; the first outcome stands."""
        with self._lock:
            if self.outcome is None:
                self.outcome = outcome
        for vcpu in self.vcpus:
            vcpu.core.kick()

    def stopped(self) -> bool:
        """Whether the run has ended."""
        return self.outcome is not None

    # --- exit handlers ---

    def handler_lists(self) -> list[list[Handler]]:
        """For each level (0 is none) the handlers by basic reason."""
        handlers = [[], list(self._registry[0]), list(self._registry[1])]
        if self.shadow is not None:
            shadow.adapt(handlers, self.shadow)
        baseline.adapt(handlers, self.tactics)
        return handlers

    def on_exit(self, reason: int, level: int | None = None) -> Callable[[UserHandler], UserHandler]:
        """Decorator: `function(vcpu)` sees every exit with this reason, of `level` or of both, first.

        It returns true when it has dealt with the exit; else what was there before goes on.
        """
        levels = (1, 2) if level is None else (level,)

        def add(function: UserHandler) -> UserHandler:
            for each in levels:
                self._registry[each - 1][reason] = _chain(function, self._registry[each - 1][reason])
                for vcpu in self.vcpus:
                    vcpu.handlers[each][reason] = _chain(function, vcpu.handlers[each][reason])
            return function

        return add


def l1_model(model: Model, withheld: Sequence[str] = ()) -> Model:
    """The model that L1 sees: the same features without NOT_FOR_L1 and what `withheld` names."""
    without = set(model.FEATURES) - set(model.features) | set(NOT_FOR_L1) | set(withheld)
    return Model(model.name, disable=sorted(without))


def _chain(function: UserHandler, then: Handler) -> Handler:
    def handler(vcpu: Vcpu) -> None:
        if not function(vcpu):
            then(vcpu)

    return handler
