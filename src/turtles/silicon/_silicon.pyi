"""The native module: memory, processors, VMCS regions and the checks of VM entry."""

import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Literal, final

__all__ = [
    "EXIT_REASONS",
    "REVISION",
    "SLOTS",
    "STATE_SIZE",
    "STATE_SLOTS",
    "VMCS_FIELDS",
    "VMCS_GROUPS",
    "Copies",
    "Core",
    "DmaWindow",
    "Memory",
    "Model",
    "Rule",
    "SiliconError",
    "Vmcs",
    "check_entry",
    "disassemble",
    "entry_rules",
]

class SiliconError(RuntimeError):
    """Silicon cannot go on: an instruction that it lacks, or a defect of its own. Names RIP."""

@final
class Memory:
    """Host-physical memory: RAM `[0, size)`, then the pool of L0's own pages `[size, total)`.

    Addresses outside are a ValueError. It is a read-only buffer of `total` bytes.
    """

    def __new__(cls, size: int, pool: int = 64 << 20) -> Memory: ...
    @property
    def size(self) -> int:
        """Bytes of RAM: where the pool begins."""
    @property
    def total(self) -> int:
        """Bytes of RAM and pool."""
    def __len__(self) -> int: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
    def read(self, pa: int, length: int) -> bytes:
        """Bytes at `pa`."""
    def same(self, pa: int, data: bytes) -> bool:
        """Whether the bytes at `pa` are `data`, without copying them."""
    def provide(self, pa: int, length: int) -> bool:
        """Has the host provide bytes (whole 2-MiB regions) now, before a guest uses them.

        False: this host does not do that (Linux before 5.14).
        """
    def write(self, pa: int, data: bytes | bytearray | memoryview) -> None:
        """Stores bytes at `pa`; drops decoded code and marks pages dirty."""
    def fill(self, pa: int, length: int, byte: int = 0) -> None:
        """Fills with one value."""
    def copy(self, target: int, source: int, length: int) -> None:
        """Copies within memory; the ranges may overlap."""
    def load(self, pa: int, width: int = 8) -> int:
        """Atomic load of 1, 2, 4 or 8 bytes."""
    def store(self, pa: int, width: int, value: int) -> None:
        """Atomic store."""
    def fetch_or(self, pa: int, width: int, bits: int) -> int:
        """Atomic OR; the value before."""
    def fetch_and(self, pa: int, width: int, bits: int) -> int:
        """Atomic AND; the value before."""
    def cmpxchg(self, pa: int, width: int, old: int, new: int) -> int:
        """Atomic compare and exchange; the value found, which is `old` when it was exchanged."""
    def dma(self, pa: int, length: int) -> DmaWindow:
        """Opens a window that a device reads and writes in place until it is closed."""
    def pool_view(self, pa: int, length: int = 4096) -> memoryview[int]:
        """Pages of the pool as a writable memoryview of 64-bit slots."""
    def page_flags(self, pa: int) -> int:
        """Flags of the page: 1 dirty, 2 holds decoded code, 4 writable without notice."""
    def take_dirty(self) -> list[int]:
        """Page numbers of RAM written since the last call."""
    def invept(self, eptp: int | None = None) -> None:
        """INVEPT in every core, acknowledged: of one EPT pointer, or of all."""
    def invvpid(self, kind: int, vpid: int = 0, linear: int = 0) -> None:
        """INVVPID in every core, acknowledged: types 0 address, 1 VPID, 2 all, 3 VPID but globals."""
    def add_region(
        self, pa: int, length: int, read: Callable[[int, int], int], write: Callable[[int, int, int], object]
    ) -> None:
        """A physical device: `read(offset, width)`, `write(offset, width, value)` stand for memory."""

@final
class DmaWindow:
    """An open DMA transfer: `with memory.dma(pa, length) as view: ...`."""

    @property
    def view(self) -> memoryview[int]:
        """The bytes, writable."""
    def close(self) -> None:
        """Ends the transfer: drops decoded code, marks pages dirty. The view is released."""
    def __enter__(self) -> memoryview[int]: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Model:
    """What a processor offers: CPUID and VT-x capabilities."""

    NAMES: Final[tuple[str, ...]]
    """Names of models."""
    FEATURES: Final[tuple[str, ...]]
    """Names of all features there are."""
    PHYSICAL_BITS: Final[int]
    """Width of physical addresses."""

    def __new__(
        cls, name: str = "max", enable: Iterable[str] | None = None, disable: Iterable[str] | None = None
    ) -> Model:
        """The model `name` with features added and removed. ValueError says what cannot be had."""
    @property
    def name(self) -> str:
        """Its name."""
    @property
    def features(self) -> frozenset[str]:
        """Names of the features that it offers."""
    def has(self, feature: str) -> bool:
        """Whether it offers a feature; ValueError for a name that is none."""
    def cpuid(self, leaf: int, subleaf: int = 0, xcr0: int = 7) -> tuple[int, int, int, int]:
        """CPUID: EAX, EBX, ECX, EDX. OSXSAVE, APIC identifiers and hypervisor leaves are L0's to add."""
    def vmx_msr(self, msr: int) -> int | None:
        """An IA32_VMX_* capability MSR (480H to 491H); none where this processor lacks it."""
    @property
    def arch_capabilities(self) -> int:
        """IA32_ARCH_CAPABILITIES."""
    @property
    def cr4_bits(self) -> int:
        """Bits that CR4 takes."""
    @property
    def xcr0_bits(self) -> int:
        """Bits that XCR0 takes."""

@final
class Rule:
    """A rule of VM entry that a VMCS breaks."""

    @property
    def name(self) -> str:
        """Short name, such as `guest_cr0_fixed`."""
    @property
    def section(self) -> str:
        """Section of the SDM, volume 3."""
    @property
    def text(self) -> str:
        """What the rule demands."""
    @property
    def error(self) -> int:
        """VM-instruction error number 7 or 8; 0 for guest state (exit reason 33 or 34)."""
    @property
    def qualification(self) -> int:
        """Exit qualification of a failed entry (SDM 27.8); for MSR loading the number of the entry."""

@final
class Vmcs:
    """A VMCS region: 4096 bytes at `host_pa`, as 512 slots of 64 bits (see `turtles.silicon.fields`)."""

    def __new__(cls, memory: Memory, host_pa: int) -> Vmcs:
        """The region at `host_pa`; nothing is written."""
    @property
    def host_pa(self) -> int:
        """Host-physical address."""
    @property
    def slots(self) -> memoryview[int]:
        """The slots, writable, format `Q`. The same object each time."""
    def clear(self) -> None:
        """Zeroes the region, then writes the revision identifier and a VMCS link pointer of all ones."""
    def read(self, encoding: int) -> int:
        """VMREAD: the field, or the high half of a 64-bit field. KeyError for what is no field."""
    def write(self, encoding: int, value: int) -> None:
        """VMWRITE, without the written-mask. KeyError for what is no field."""
    def copy_from(self, source: Vmcs, first: int, end: int) -> None:
        """Copies slots `[first, end)` of another VMCS into this one."""

@final
class Copies:
    """Copies between arrays of slots, and comparisons of memory, made in one call."""

    def __new__(
        cls,
        memory: Memory,
        copies: Sequence[tuple[memoryview[int], memoryview[int]]],
        compared: Sequence[tuple[int, bytes]] = ...,
    ) -> Copies:
        """A copy is (to, from), as many slots; a comparison (host-physical address, bytes), 30 at most."""
    def run(self) -> int:
        """Compares, then copies, in order. Bit n is set where comparison n found a difference."""

@final
class Core:
    """A logical processor. One thread runs it; others may `kick` it."""

    def __new__(
        cls,
        memory: Memory,
        model: Model,
        clock: Literal["host", "virtual"] = "host",
        origin: int | None = None,
        engine: Literal["interpreter", "translator"] = "translator",
        translation_cache: int = ...,
    ) -> Core:
        """A processor after reset. `origin`: CLOCK_MONOTONIC in nanoseconds at time zero (now)."""
    @property
    def slots(self) -> memoryview[int]:
        """The flat state, writable, format `Q` (see `turtles.silicon.slots`). Not while it runs."""
    @property
    def model(self) -> Model:
        """What it offers."""
    @property
    def engine(self) -> Literal["interpreter", "translator"]:
        """What executes guest code: the translator works beside the interpreter."""
    @property
    def translation(self) -> dict[str, int]:
        """What the translator has done, by name; empty without one."""
    @property
    def helped(self) -> dict[str, int]:
        """Calls of the interpreter by translated code, by mnemonic: TLB misses and what is not translated."""
    def enter(self, vmcs: Vmcs, deadline: int = ...) -> int:
        """VM entry, run, VM exit; the GIL is released.

        The exit reason with bit 31 for a failed entry; or minus the VM-instruction error number when the
        controls or the host state are invalid. `deadline` is a time of `now()`; it and `kick()` end the run
        with an external-interrupt exit. SiliconError when silicon cannot go on.
        """
    @property
    def broken_rule(self) -> Rule | None:
        """The rule that the last `enter` found broken, if it failed."""
    def kick(self) -> None:
        """Ends the run, or the next one, with an external-interrupt exit. From any thread."""
    def interrupt(self, vector: int) -> None:
        """An external interrupt: as `kick`, but an exit that acknowledges interrupts reports the vector.

        Where it is the notification vector of posted interrupts it does not exit: they are processed.
        """
    def stop(self) -> None:
        """As `kick`, and for good: every later `enter` returns at once. From any thread."""
    def wait(self, deadline: int | None = None) -> bool:
        """Sleeps until kicked (true) or `deadline`, without the GIL. Virtual time warps to the deadline."""
    def now(self) -> int:
        """Time in nanoseconds: the TSC before VMCS offset, IA32_TSC and IA32_TSC_ADJUST."""
    def keep_flags(self) -> None:
        """From now on arithmetic flags are exact wherever a run ends, also those that nothing will read.

        Before the first `enter`. The translator spares itself the trouble otherwise; the interpreter never.
        """
    def code(self) -> tuple[bytes, int]:
        """Bytes at RIP as an instruction fetch finds them (none where it faults), and the code's bits."""
    def fragment(self, linear: int | None = None) -> str | None:
        """The translator's fragment that holds the instruction at `linear` (RIP), as text.

        Each guest instruction with the host code made of it. None where there is no fragment.
        """
    def digest(self) -> int:
        """Hash of (retired, reason, RIP) of all exits so far: two equal runs have the same."""

def check_entry(vmcs: Vmcs, model: Model, read: Callable[[int], int] | None = None) -> Rule | None:
    """The first rule of VM entry (SDM chapter 27) that the VMCS breaks.

    `read(pa)` gives eight bytes at a physical address that the VMCS holds (virtual-APIC page, linked VMCS,
    PDPTEs); memory itself, unless the VMCS is one whose addresses are not host-physical. Neither launch
    state nor the mode of whoever enters is checked.
    """

def disassemble(code: bytes, ip: int = 0, bits: int = 64) -> str:
    """The first instruction in `code` as text in Intel's syntax; `(bad)` where there is none."""

def entry_rules() -> list[Rule]:
    """Every rule that `check_entry` knows, in the order in which they are checked."""

VMCS_FIELDS: Final[dict[str, tuple[int, int]]]
"""Slot and encoding of each VMCS field."""
VMCS_GROUPS: Final[dict[str, int]]
"""Bit in the written-mask of each group of fields."""
STATE_SLOTS: Final[dict[str, tuple[int, int]]]
"""First slot and number of slots of each field of the flat state."""
EXIT_REASONS: Final[dict[str, int]]
"""Basic exit reasons."""
REVISION: Final[int]
"""VMCS revision identifier."""
SLOTS: Final[int]
"""Slots in a VMCS region."""
STATE_SIZE: Final[int]
"""Slots in the flat state."""
