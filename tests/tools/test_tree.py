"""Exits as a tree: what belongs to what, where time goes, and how levels above 2 are told apart."""

from __future__ import annotations

from tests.tools.exits import HANDLE, RUN, SWITCH, Story
from turtles.silicon import ExitReason as R
from turtles.tools.tree import Exit, Forest


def roots(story: Story) -> list[Exit]:
    return list(Forest().grow(story.records))


def shape(exit_: Exit) -> str:
    below = " ".join(shape(child) for child in exit_.children)
    return f"L{exit_.level} {R(exit_.record.basic).name}" + (f" [{below}]" if below else "")


def test_exits_of_l1_hang_under_the_exit_of_l2_that_it_handles() -> None:
    story = Story().l1(R.CPUID, R.VMLAUNCH).l2(R.CPUID).l1(R.VMREAD, R.VMWRITE, R.VMRESUME).l2(R.HLT)
    assert [shape(root) for root in roots(story)] == [
        "L1 CPUID",
        "L1 VMLAUNCH",
        "L2 CPUID [L1 VMREAD L1 VMWRITE L1 VMRESUME]",
        "L2 HLT",
    ]


def test_time_and_instructions_of_an_exit() -> None:
    story = Story().l2(R.CPUID).l1(R.VMREAD, R.VMRESUME).l2(R.HLT)
    first, last = roots(story)
    handling = first.handling
    assert handling is not None and last.handling is None, "L2 never ran after its HLT"
    assert handling.ran_ns[1] == 2 * RUN
    assert handling.l0_ns == 3 * HANDLE
    assert handling.switching_ns == 6 * SWITCH
    assert handling.total_ns == story.records[3].entry_ns - story.records[0].exit_ns
    assert (handling.exits[1], handling.retired[1], handling.retired[2]) == (2, 14, 0)
    assert (first.handled_by, first.children[0].handled_by) == (1, 0)
    assert [child.handling.total_ns for child in first.children if child.handling] == [
        HANDLE + 2 * SWITCH
    ] * 2


def test_all_time_is_somewhere() -> None:
    story = Story().l1(R.VMLAUNCH).l2(R.CPUID).l1(R.VMRESUME).exit(2, R.EPT_VIOLATION, 0xA000).l2(R.HLT)
    forest = Forest()
    found = [x for root in forest.grow(story.records) for x in root.walk()]
    assert sorted(x.number for x in found) == list(range(5))
    assert forest.spent.total_ns == story.records[-1].after_ns
    assert sum(forest.spent.retired) == story.records[-1].retired
    assert forest.spent.exits[1:3] == (2, 3)
    assert [x.handled_by for x in found if x.record.basic == R.EPT_VIOLATION] == [0]


def test_a_second_guest_of_l1_is_no_l3() -> None:
    story = Story().l2(R.HLT, 0xA000).l1(R.VMPTRLD, R.VMLAUNCH).l2(R.CPUID, 0xB000).l1(R.VMRESUME)
    assert {root.level for root in roots(story)} == {2}


def l3_story() -> Story:
    """L2 enters L3; L3 exits; L1 gives the exit to L2, which resumes L3."""
    story = Story().l2(R.CPUID, 0xA000).l1(R.VMRESUME).l2(R.VMLAUNCH, 0xA000).l1(R.VMPTRLD, R.VMLAUNCH)
    story.l2(R.CPUID, 0xB000, 1).l1(R.VMPTRLD, R.VMRESUME)
    story.l2(R.VMREAD, 0xA000).l1(R.VMRESUME)
    return story.l2(R.VMRESUME, 0xA000).l1(R.VMPTRLD, R.VMRESUME).l2(R.HLT, 0xB000, 1)


def test_l3_is_inferred() -> None:
    assert [shape(root) for root in roots(l3_story())] == [
        "L2 CPUID [L1 VMRESUME]",
        "L2 VMLAUNCH [L1 VMPTRLD L1 VMLAUNCH]",
        "L3 CPUID [L1 VMPTRLD L1 VMRESUME L2 VMREAD [L1 VMRESUME] L2 VMRESUME [L1 VMPTRLD L1 VMRESUME]]",
        "L3 HLT",
    ]
    cpuid = roots(l3_story())[2]
    assert cpuid.handled_by == 2
    assert cpuid.handling is not None and cpuid.handling.exits[1:4] == (5, 2, 0)


def test_l4_in_the_same_vmcs12_is_told_by_its_ept_pointer() -> None:
    story = l3_story().l1(R.VMRESUME).l2(R.VMRESUME, 0xB000, 1).l1(R.VMRESUME)
    story.l2(R.VMRESUME, 0xA000).l1(R.VMRESUME).l2(R.CPUID, 0xB000, 2)
    assert roots(story)[-1].level == 4
    assert roots(story)[-2].level == 3 and shape(roots(story)[-2]).startswith("L3 VMRESUME [L1 VMRESUME L2 V")


def test_a_level_that_comes_back_by_another_way_closes_what_is_below() -> None:
    """L1 leaves one guest for another: what it did in between is still the first one's."""
    story = (
        Story().l2(R.HLT, 0xA000).l1(R.WRMSR, R.VMRESUME).l2(R.CPUID, 0xC000).l1(R.VMRESUME).l2(R.HLT, 0xA000)
    )
    assert [shape(root) for root in roots(story)] == [
        "L2 HLT [L1 WRMSR L1 VMRESUME]",
        "L2 CPUID [L1 VMRESUME]",
        "L2 HLT",
    ]
