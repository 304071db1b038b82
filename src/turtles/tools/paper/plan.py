"""What `turtles bench paper` runs: configurations of L0, each a run of its own, and the workloads in them.

A configuration is a memory mode, tactics that are left out, features that silicon lacks, and the levels that
are measured. Not here: running one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from turtles.l0.machine import MODES
from turtles.l0.mmu.ept02 import Tactic
from turtles.l0.tactics import Tactics
from turtles.tools.measure import Settings

DEFAULT: Final = "multidim"
NATIVE: Final = "native"
NESTED: Final = "multidim no-shadow-vmcs"
"""The paper's "nested": its DRW, by VMCS shadowing, is what this one lacks."""
PLAIN: Final = "multidim none"
DRW_ONLY: Final = "multidim none,shadow-vmcs"
THIRD: Final = "multidim L3"
EPT_0: Final = "multidim ept=0"
"""L1 has EPT and is told not to use it: shadow-on-EPT by L1's choice."""

FEATURES: Final[dict[str, tuple[str, ...]]] = {
    "vmcs_shadowing": ("vmcs_shadowing",),
    "vpid": ("vpid",),
    "apicv": ("apic_virtualization", "vapic_reg", "vid", "posted_intr"),
    "posted_intr": ("posted_intr",),
    "preemption_timer": ("preemption_timer",),
    "ept_ad": ("ept_ad",),
}
"""Features of silicon that a configuration goes without, and so L1 too; each with those that need it."""

OF_SHADOWS: Final = ("track-tables",)
"""Tactics that say something in shadow-on-shadow only."""

KINDS: Final = 7
"""Of transactions, each as many times as `redis:N` says: those that the script `run` asks redis for."""
ALL_ROWS: Final = ("cpuid", "fault", "fork", "ctxsw")
STORM: Final = ("cpuid", "fault")


@dataclass(frozen=True)
class Configuration:
    """One way to run the tower, and what is measured there."""

    name: str
    at: tuple[int, ...]
    """Levels that are measured; 0 is the host."""
    rows: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    mmu: str = DEFAULT
    tactics: str = "all"
    ept12: str = Tactic.INVEPT.value
    cpu: str = ""
    """As `--cpu` has it: silicon without one of its features; empty: all of them."""
    kvm: str = ""
    """Parameters of L1's KVM, with commas."""
    scale: float = 1.0
    repeats: int = 2
    traced: bool = False
    """Every exit recorded, which costs some time of its own: for shares of time, not for times."""
    embedded: bool = False
    turns: bool = False
    """L1 and L2 run the set by turns, a row each."""
    times: int = 1
    """How often in each round, spread over it."""
    expected_s: float = 60.0
    """On two cores; what is known better is taken from earlier runs."""

    @property
    def levels(self) -> int:
        """How deep it goes."""
        return max(self.at)

    @property
    def settings(self) -> Settings:
        """For the script that runs the set."""
        rows = self.rows or ("none",)
        return Settings(
            self.scale, self.repeats, rows, False, self.levels, named=self.programs or ("0",), at=self.at
        )

    @property
    def append(self) -> str:
        """Words of the guests' command lines."""
        more = [f"bench.kvm={self.kvm}"] if self.kvm else []
        return " ".join([self.settings.append, *more, *(["bench.turns=1"] if self.turns else [])])

    @property
    def options(self) -> list[str]:
        """For `turtles run`."""
        cpu = ["--cpu", self.cpu] if self.cpu else []
        return ["--mmu", self.mmu, "--ept12", self.ept12, "--tactics", self.tactics, *cpu]


@dataclass(frozen=True)
class Sizes:
    """How much the workloads do: the loops' scale, files compiled, transactions of each kind."""

    scale: float
    files: int
    transactions: int
    repeats: int = 2

    def scaled(self, by: float) -> Sizes:
        """More or less of everything."""
        files = max(round(self.files * by), 1)
        return Sizes(self.scale * by, files, round(self.transactions * by), self.repeats)

    def configuration(
        self,
        name: str,
        at: tuple[int, ...],
        rows: tuple[str, ...] = ALL_ROWS,
        *,
        build: bool = True,
        served: bool = True,
        expected_s: float = 40,
        **options: str,
    ) -> Configuration:
        """One of this size; `options` are fields of `Configuration`."""
        programs = (f"build:{self.files}",) if build else ()
        if served and self.transactions:
            programs = (*programs, f"redis:{self.transactions}")
        found = Configuration(
            name, at, rows, programs, scale=self.scale, repeats=self.repeats, expected_s=expected_s
        )
        return replace(found, **options)  # type: ignore[arg-type]

    def traced(self, tactics: str) -> Configuration:
        """The CPUID loop in L1 and L2 with every exit recorded."""
        return Configuration(
            f"traced {tactics}", (1, 2), ("cpuid",), tactics=tactics, scale=self.scale, repeats=1,
            traced=True, expected_s=40 if tactics == "none" else 15,
        )  # fmt: skip

    def third(self) -> Configuration:
        """KVM in KVM in KVM: its boot, and the CPUID loop."""
        return Configuration(THIRD, (3,), ("cpuid",), scale=self.scale / 10, expected_s=30)


FULL: Final = Sizes(scale=1.0, files=18, transactions=3000)
"""A build takes L1 four seconds, transactions one: in shorter ones a few ticks of a timer are per cents."""
QUICK: Final = Sizes(scale=0.5, files=4, transactions=0)
OTHER_MODES: Final = tuple(mode for mode in MODES if mode != DEFAULT)

EPT12: Final = tuple(tactic.value for tactic in Tactic if tactic is not Tactic.INVEPT)
"""The other ways for ept02 to follow ept12."""


def full(sizes: Sizes = FULL) -> list[Configuration]:
    """Everything; what bars and the paper's figures need comes first."""
    make = sizes.configuration
    # L2 beside L1 is what most bars are about: a few per cent, where hosts wander by more, so that it takes
    # many pairs; and a build still translates code in its second repeat.
    beside = make(DEFAULT, (1, 2), expected_s=110)
    build, *redis = beside.programs
    often = (build, *redis, *redis)
    beside = replace(beside, programs=often, times=2, repeats=sizes.repeats + 3, turns=True)
    # Only where L1 itself runs in another way is it measured again.
    modes = [
        make("shadow-on-ept", (2,), mmu="shadow-on-ept", expected_s=60),
        make("shadow-on-shadow", (1, 2), mmu="shadow-on-shadow", expected_s=180),
    ]
    variants = [make(f"{DEFAULT} {name}", (2,), ept12=name) for name in EPT12]
    switches = [
        make(f"{DEFAULT} no-{name}", (2,), tactics=f"no-{name}")
        for name in Tactics.names()
        if name not in OF_SHADOWS
    ]
    shadows = [
        make(
            f"shadow-on-shadow no-{name}",
            (2,),
            build=False,
            served=False,
            tactics=f"no-{name}",
            mmu="shadow-on-shadow",
        )
        for name in OF_SHADOWS
    ]
    return [
        make(NATIVE, (0,), expected_s=6),
        beside,
        sizes.traced("all"),
        sizes.third(),
        modes[0],
        *(c for c in switches if c.name == NESTED),
        *(sizes.traced(tactics) for tactics in ("no-shadow-vmcs", "none,shadow-vmcs", "none")),
        modes[1],
        *(c for c in switches if c.name != NESTED),
        *variants,
        make(EPT_0, (2,), build=False, kvm="ept=0"),
        *(make(f"{DEFAULT} -{name}", (2,), build=False, cpu=without(name)) for name in FEATURES),
        *shadows,
        make(PLAIN, (2,), STORM, build=False, served=False, tactics="none"),
    ]


def without(feature: str) -> str:
    """`--cpu` for a silicon that lacks one of `FEATURES`."""
    return ",".join(["max", *(f"-{name}" for name in FEATURES[feature])])


def quick(sizes: Sizes = QUICK) -> list[Configuration]:
    """The CPUID loop and the fault storm in every mode, the build in the default one only."""
    make = sizes.configuration
    modes = [make(mode, (2,), STORM, build=False, mmu=mode, expected_s=20) for mode in OTHER_MODES]
    variants = [make(f"{DEFAULT} {e}", (2,), STORM, build=False, ept12=e, expected_s=10) for e in EPT12]
    return [
        make(NATIVE, (0,), STORM, expected_s=5),
        make(DEFAULT, (1, 2), STORM, expected_s=60),
        *variants,
        *modes,
        make(NESTED, (2,), STORM, build=False, tactics="no-shadow-vmcs", expected_s=15),
        *(sizes.traced(tactics) for tactics in ("all", "none")),
        sizes.third(),
    ]


def embedded() -> list[Configuration]:
    """The CPUID loop at three levels of the embedded tower, which needs no packages."""
    return [
        Configuration(
            f"embedded L{level}",
            (level,),
            ("cpuid",),
            repeats=1,
            traced=level < 3,
            embedded=True,
            expected_s=4,
        )
        for level in (1, 2, 3)
    ]
