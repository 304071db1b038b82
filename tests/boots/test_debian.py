"""Debian's cloud kernel as L1 to its init, twice under virtual time; needs the image cache or a mirror."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.boots.machine import boot, image_set, kept
from turtles.guests.images import ImageSet
from turtles.l0.outcome import Ending
from turtles.tools.demo import tower_options
from turtles.tools.lockstep import NoEngine, lockstep, sides_for

COMPLAINTS = (
    "unchecked MSR",
    "WARNING",
    "Call Trace",
    "unstable",
    "calibration failed",
    "stall",
    "soft lockup",
)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return image_set("tower")


def test_l1_boots_to_init_and_virtual_time_repeats(images: ImageSet) -> None:
    options = tower_options(images, "boot", "virtual", None)
    first, second = boot(options, "virtual"), boot(options, "virtual")
    with kept("debian-l1", first, second):
        assert first.outcome.ending is Ending.POWER_OFF, first.outcome
        assert any(line.startswith("L1: Linux") for line in first.lines)
        assert [line for line in first.lines if any(word in line for word in COMPLAINTS)] == []
        assert first.serial == second.serial
        assert first.exits == second.exits
        assert (first.retired, first.digest) == (second.retired, second.digest)


@pytest.mark.parametrize("mode", ["shadow-on-ept", "shadow-on-shadow"])
def test_the_tower_without_ept_for_l1(images: ImageSet, mode: str) -> None:
    """The same unmodified tower; L1's KVM shadows L2's page tables, and without EPT L0 shadows L1's."""
    found = boot(replace(tower_options(images, "tower", "virtual", 1500), mmu=mode), "virtual")
    with kept(f"debian-{mode}", found):
        assert found.outcome.ending is Ending.POWER_OFF, found.outcome
        assert [line for line in found.lines if any(word in line for word in COMPLAINTS)] == []
        assert "L1: kvm_intel.ept=N" in found.lines
        for line in ("L2| L2: dmesg is clean", "L1: dmesg is clean"):
            assert line in found.lines
        assert found.exits[2, "EXCEPTION_OR_NMI", "L1"] > 1000, "L2's page faults are L1's"
        assert bool(found.exits[1, "EXCEPTION_OR_NMI", "L0"]) == (mode == "shadow-on-shadow")


@pytest.mark.parametrize("variant", ["cuts", "engines"])
def test_the_beginning_of_a_boot_in_lockstep(images: ImageSet, variant: str) -> None:
    options = replace(tower_options(images, "boot", "virtual", None), memory=256 << 20)
    try:
        result = lockstep(options, sides_for(variant, seed=1), until=300_000_000)
    except NoEngine as e:
        pytest.skip(e.format_message())
    assert result.difference is None, "\n".join(result.difference.lines())
    assert result.comparisons >= 300
